//! Reads every byte of the store against its digest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::hash::hash_file;
use super::thin::Flaw;
use super::{NodeRecord, Store, StoreError};
use crate::digest::Digest;
use crate::pieces::Recipe;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `damaged` or `missing`.
    pub state: &'static str,
    /// `object`, `parts` (the list of an object's pieces), `manifest`, `file` or `node`.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Nodes that made or took what is affected.
    pub nodes: Vec<String>,
}

/// What a verification saw.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    /// Objects read.
    pub objects: u64,
    /// Artifacts looked at.
    pub artifacts: u64,
    /// Node records looked at.
    pub nodes: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong, in the order of the paths.
    pub findings: Vec<Finding>,
}

impl Verification {
    /// Whether nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }
}

impl Store {
    /// Reads everything; `progress` is told bytes done and in all. Changes nothing: the next run of the pipeline
    /// makes again what is damaged and moves the damaged file aside.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Verification, StoreError> {
        let mut seen = Verification::default();
        let mut faults: Vec<(&'static str, &'static str, PathBuf, BTreeSet<Digest>)> = Vec::new();

        let objects = self.object_ids()?;
        let total = objects.iter().map(|id| super::gc::size(&self.blob_path(id))).sum();
        let mut damaged = BTreeSet::new();
        for id in &objects {
            let path = self.blob_path(id);
            let blob = hash_file(&path);
            // A sector that cannot be read is as bad as one with other bytes.
            if blob.as_ref().map(|blob| blob.digest).ok() != Some(*id) {
                damaged.insert(*id);
            }
            seen.objects += 1;
            seen.bytes += blob.map_or(0, |blob| blob.size);
            progress(seen.bytes, total);
        }
        let mut owners: BTreeMap<Digest, BTreeSet<Digest>> = BTreeMap::new();
        for id in self.artifact_ids()? {
            seen.artifacts += 1;
            let manifest = match self.manifest(&id) {
                Ok(manifest) => manifest,
                Err(StoreError::Damaged { .. } | StoreError::BadName(_)) => {
                    faults.push(("damaged", "manifest", self.manifest_path(&id), [id].into()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let external = self.external(&id)?;
            for (name, blob) in &manifest.files {
                owners.entry(blob.digest).or_default().insert(id);
                let path = self.place_of(name, blob, external.as_ref());
                for part in self.stands_on(&blob.digest).unwrap_or_default() {
                    owners.entry(part).or_default().insert(id);
                }
                if Recipe::is_at(&path) {
                    // Its pieces were read as objects; that they are this file shows in its own digest.
                    if let Some(flaw) = self.examine_pieces(blob, &|_, _| false, &mut |_, _| {})? {
                        let (state, path) = match flaw {
                            Flaw::Missing(path) => ("missing", path),
                            Flaw::Damaged(path) => ("damaged", path),
                        };
                        faults.push((state, if Recipe::is_at(&path) { "parts" } else { "object" }, path, [id].into()));
                    }
                } else if !path.is_file() {
                    faults.push(("missing", if external.is_some() { "file" } else { "object" }, path, [id].into()));
                } else if external.is_some() && !path.starts_with(&self.root) && hash_file(&path)? != *blob {
                    faults.push(("damaged", "file", path, [id].into()));
                }
            }
        }
        for id in damaged {
            faults.push(("damaged", "object", self.blob_path(&id), owners.remove(&id).unwrap_or_default()));
        }
        let mut records: Vec<NodeRecord> = Vec::new();
        for key in self.node_keys()? {
            seen.nodes += 1;
            let Some(record) = self.node(&key)? else {
                faults.push(("damaged", "node", self.node_path(&key), BTreeSet::new()));
                continue;
            };
            if !self.manifest_path(&record.artifact).exists() {
                faults.push(("missing", "manifest", self.manifest_path(&record.artifact), [record.artifact].into()));
            }
            records.push(record);
        }
        let mut by_path: BTreeMap<(&str, &str, PathBuf), BTreeSet<Digest>> = BTreeMap::new();
        for (state, what, path, ids) in faults {
            by_path.entry((state, what, path)).or_default().extend(ids);
        }
        for ((state, what, path), ids) in by_path {
            let touches = |record: &&NodeRecord| {
                ids.contains(&record.artifact) || record.inputs.values().any(|input| ids.contains(input))
            };
            let nodes: BTreeSet<_> = records.iter().filter(touches).map(|record| record.node.clone()).collect();
            seen.findings.push(Finding { state, what, path, nodes: nodes.into_iter().collect() });
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{record, run};
    use super::super::{Index, Stamps};
    use super::*;
    use crate::fs;
    use crate::fs::with_fault;
    use std::path::Path;

    /// All that a small run does to the store.
    fn work(root: &Path, outside: &Path, text: &str) -> Result<Digest, StoreError> {
        let store = Store::open(root)?;
        let mut index = Index::open(&store)?;
        let mut a = record(&store, "a", text)?;
        let staging = store.staging_dir(&a.key)?;
        fs::write_atomic(&staging.join("rows.jsonl"), text.as_bytes())?;
        let _lock = store.lock_key(&a.key, &mut || {})?;
        store.partial_dir(&a.key)?;
        let files = [("made".to_owned(), staging.join("rows.jsonl")), ("taken".to_owned(), outside.to_owned())];
        a.artifact = store.put_artifact("files", &files.into())?;
        store.put_node(&a)?;
        store.clear_partial(&a.key)?;
        store.put_run(&run(&a.run, &[&a]))?;
        index.add_node(&a);
        let mut stamps = index.stamps();
        store.health(&a.artifact, &mut stamps)?;
        index.save_stamps(&stamps);
        Ok(a.key)
    }

    #[test]
    fn whichever_disk_operation_fails_the_old_or_the_new_state_is_there_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::write_atomic(&outside, b"outside").unwrap();
        for n in 1.. {
            let root = directory.path().join(n.to_string());
            let (result, reached) = with_fault(n, || work(&root, &outside, "text"));
            if let Err(error) = &result {
                assert_eq!(error.diagnostic().id, "store::full", "{error}");
            }
            let store = Store::open(&root).unwrap();
            let findings = store.verify(&mut |_, _| {}).unwrap().findings;
            assert!(findings.is_empty(), "after operation {n} failed: {findings:?}");
            for key in store.node_keys().unwrap() {
                let record = store.node(&key).unwrap().unwrap();
                assert_eq!(
                    store.health(&record.artifact, &mut Stamps::default()).unwrap(),
                    super::super::Health::Whole
                );
            }
            drop(store);
            // The same again, with room on the disk, ends as if nothing had happened.
            let key = work(&root, &outside, "text").unwrap();
            let store = Store::open(&root).unwrap();
            let record = store.node(&key).unwrap().unwrap();
            let files = store.files(&record.artifact).unwrap();
            assert_eq!(fs_err::read_to_string(&files["made"]).unwrap(), "text");
            assert_eq!(fs_err::read_to_string(&files["taken"]).unwrap(), "outside");
            if !reached {
                assert!(n > 30, "only {n} operations");
                break;
            }
        }
    }

    #[test]
    fn whichever_operation_of_gc_fails_no_record_is_without_its_artifact() {
        for n in 1.. {
            let directory = tempfile::tempdir().unwrap();
            let store = Store::open(directory.path()).unwrap();
            let [old, new] = ["old", "new"].map(|node| record(&store, node, node).unwrap());
            for (record, id) in [(&old, "20260101-000000-aaaa"), (&new, "20260102-000000-aaaa")] {
                store.put_node(record).unwrap();
                store.put_run(&run(id, &[record])).unwrap();
            }
            let (result, reached) = with_fault(n, || store.gc(1, false));
            // The first is the lock; where there is no room to move things away they are deleted at once.
            assert!(n > 1 || result.is_err());
            assert!(store.verify(&mut |_, _| {}).unwrap().is_whole(), "after operation {n} failed");
            assert!(store.node(&new.key).unwrap().is_some());
            store.gc(1, false).unwrap();
            assert!(store.node(&old.key).unwrap().is_none());
            if !reached {
                break;
            }
        }
    }

    #[test]
    fn verify_finds_what_was_changed_cut_short_or_lost() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|node| record(&store, node, node).unwrap());
        for record in [&a, &b, &c] {
            store.put_node(record).unwrap();
        }
        let object = store.files(&a.artifact).unwrap()["rows.jsonl"].clone();
        fs_err::set_permissions(&object, PermissionsExt::from_mode(0o644)).unwrap();
        fs_err::write(&object, "z").unwrap();
        fs::remove_file(&store.files(&b.artifact).unwrap()["rows.jsonl"]).unwrap();
        fs_err::write(store.manifest_path(&c.artifact), "{}").unwrap();
        fs_err::write(store.node_path(&b.key), "{}").unwrap();
        let found = store.verify(&mut |_, _| {}).unwrap().findings;
        let found: Vec<_> =
            found.iter().map(|f| (f.state, f.what, f.nodes.iter().map(String::as_str).collect::<Vec<_>>())).collect();
        assert_eq!(
            found,
            [
                ("damaged", "manifest", vec!["c"]),
                ("damaged", "node", vec![]),
                ("damaged", "object", vec!["a"]),
                ("missing", "object", vec![]),
            ]
        );
        let usage = store.shares(&mut Index::open(&store).unwrap()).unwrap();
        assert!(usage.parts.iter().any(|share| share.part == "objects: files"));
    }
}
