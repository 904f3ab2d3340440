//! Garbage collection: what no recent run uses goes.
//!
//! Kept are pinned artifacts, and the records and artifacts (outputs and inputs) that the last runs of each pipeline
//! used or that a node had latest in them. Row memos stay: they may have been paid for. Scratch of attempts that
//! were killed stays as long as their key has no record. Records go before manifests and manifests before objects,
//! so that a gc that is killed leaves garbage but never a record without its artifact.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Index, Store, StoreError, name};
use crate::digest::Digest;
use crate::fs;

/// What was (or would be) removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Garbage {
    /// Node records.
    pub nodes: u64,
    /// Artifacts.
    pub artifacts: u64,
    /// Objects.
    pub objects: u64,
    /// Runs.
    pub runs: u64,
    /// Other files: scratch, locks, quarantine.
    pub files: u64,
    /// Bytes in all.
    pub bytes: u64,
}

impl Store {
    /// Removes what the last `keep_runs` runs of each pipeline did not use; with `dry_run` only says what that is.
    ///
    /// Errs with [`StoreError::InUse`] while another process has the store open.
    pub fn gc(&self, keep_runs: usize, dry_run: bool) -> Result<Garbage, StoreError> {
        if !dry_run {
            self.lock_whole()?;
        }
        let mut sweep = Sweep { garbage: Garbage::default(), dry_run };
        let (runs, mut keys) = self.recent(keep_runs)?;
        let mut artifacts: BTreeSet<Digest> = self.pins()?.into_iter().collect();
        let pinned = artifacts.clone();
        let all = self.node_keys()?;
        for key in &all {
            let Some(record) = self.node(key)? else { continue };
            if keys.contains(key) || pinned.contains(&record.artifact) {
                keys.insert(*key);
                artifacts.insert(record.artifact);
                artifacts.extend(record.inputs.values());
            }
        }
        for run in self.run_ids()?.iter().filter(|run| !runs.contains(*run)) {
            sweep.garbage.runs += 1;
            sweep.directory(&self.run_dir(run))?;
        }
        for key in all.iter().filter(|key| !keys.contains(key)) {
            sweep.garbage.nodes += 1;
            sweep.file(&self.node_path(key))?;
        }
        let (mut blobs, mut objects) = (BTreeSet::new(), BTreeSet::new());
        for id in self.artifact_ids()? {
            if artifacts.contains(&id) {
                // A manifest or a list of parts that is damaged keeps nothing: the next run makes it and its objects again.
                for blob in self.manifest(&id).into_iter().flat_map(|manifest| manifest.files.into_values()) {
                    blobs.insert(blob.digest);
                    objects.extend(self.stands_on(&blob.digest).unwrap_or_default());
                }
                continue;
            }
            sweep.garbage.artifacts += 1;
            sweep.file(&self.manifest_path(&id))?;
            let external = self.external_path(&id);
            if external.exists() {
                sweep.file(&external)?;
            }
        }
        // Lists before what they list.
        for id in self.recipe_ids()?.iter().filter(|id| !blobs.contains(id)) {
            sweep.garbage.files += 1;
            sweep.file(&self.recipe_path(id))?;
        }
        for id in self.object_ids()?.iter().filter(|id| !objects.contains(id)) {
            sweep.garbage.objects += 1;
            sweep.file(&self.blob_path(id))?;
        }
        self.sweep_scratch(&all, &mut sweep)?;
        if !dry_run {
            Index::rebuild_with_memory(self)?;
        }
        Ok(sweep.garbage)
    }

    /// The last runs of each pipeline, and the keys that their nodes had.
    fn recent(&self, keep_runs: usize) -> Result<(BTreeSet<String>, BTreeSet<Digest>), StoreError> {
        let mut kept: BTreeMap<String, usize> = BTreeMap::new();
        let (mut runs, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for run in self.run_ids()?.iter().rev() {
            // A run without a record did not get as far as running anything.
            let Some(record) = self.run(run)? else { continue };
            let count = kept.entry(record.pipeline.clone()).or_default();
            if *count < keep_runs {
                *count += 1;
                runs.insert(run.clone());
                keys.extend(record.nodes.iter().filter_map(|node| node.key));
                // A run that was killed has no list of nodes; what its workers recorded carries its name.
                keys.extend(if record.nodes.is_empty() { self.recorded_by(run)? } else { Vec::new() });
            }
        }
        Ok((runs, keys))
    }

    fn recorded_by(&self, run: &str) -> Result<Vec<Digest>, StoreError> {
        let mut keys = Vec::new();
        for key in self.node_keys()? {
            keys.extend(self.node(&key)?.filter(|record| record.run == run).map(|record| record.key));
        }
        Ok(keys)
    }

    /// `recorded` are the keys that had a record when gc began.
    fn sweep_scratch(&self, recorded: &[Digest], sweep: &mut Sweep) -> Result<(), StoreError> {
        let mut paths = Vec::new();
        for directory in ["tmp", "quarantine", "locks"] {
            paths.extend(fs::list(&self.root.join(directory))?);
        }
        for path in fs::list(&self.root.join("partial"))? {
            let done = name(&path).parse().map_or(true, |key: Digest| recorded.binary_search(&key).is_ok());
            paths.extend(done.then_some(path));
        }
        // The lock that this gc holds.
        for path in paths.iter().filter(|path| !path.ends_with("locks/store")) {
            if path.is_dir() {
                sweep.directory(path)?;
            } else {
                sweep.garbage.files += 1;
                sweep.file(path)?;
            }
        }
        Ok(())
    }
}

struct Sweep {
    garbage: Garbage,
    dry_run: bool,
}

impl Sweep {
    fn file(&mut self, path: &Path) -> Result<(), StoreError> {
        self.garbage.bytes += size(path);
        if self.dry_run { Ok(()) } else { Ok(fs::remove_file(path)?) }
    }

    fn directory(&mut self, path: &Path) -> Result<(), StoreError> {
        let files: Vec<PathBuf> = fs::walk(path)?;
        self.garbage.files += files.len() as u64;
        self.garbage.bytes += files.iter().map(|file| size(file)).sum::<u64>();
        if self.dry_run { Ok(()) } else { Ok(fs::remove_directory(path)?) }
    }
}

/// A file's size; 0 if it went away meanwhile.
pub(super) fn size(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{record, run};
    use super::*;

    #[test]
    fn gc_keeps_what_recent_runs_and_pins_need_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let [old, new, source, pinned, by_pinned] =
            ["old", "new", "source", "pinned", "x"].map(|node| record(&store, node, node).unwrap());
        let new = NodeRecord { inputs: [("data".to_owned(), source.artifact)].into(), ..new };
        for (record, id) in [(&old, "20260101-000000-aaaa"), (&new, "20260102-000000-aaaa")] {
            store.put_node(record).unwrap();
            store.put_run(&run(id, &[record])).unwrap();
        }
        let pinned = NodeRecord { inputs: [("data".to_owned(), by_pinned.artifact)].into(), ..pinned };
        store.put_node(&pinned).unwrap();
        store.pin(&pinned.artifact).unwrap();
        store.partial_dir(&old.key).unwrap();
        store.partial_dir(&Digest::of(b"killed")).unwrap();
        fs::write_atomic(&store.tmp().join("stray"), b"stray").unwrap();

        let planned = store.gc(1, true).unwrap();
        assert!(store.node(&old.key).unwrap().is_some());
        let done = store.gc(1, false).unwrap();
        // A directory of a done attempt, a stray file: the same plan, carried out.
        assert_eq!(planned, done);
        assert_eq!((done.nodes, done.artifacts, done.objects, done.runs), (1, 1, 1, 1));
        assert!(store.node(&old.key).unwrap().is_none());
        let mut kept = vec![new.artifact, source.artifact, pinned.artifact, by_pinned.artifact];
        kept.sort_unstable();
        assert_eq!(store.artifact_ids().unwrap(), kept);
        assert_eq!(store.run_ids().unwrap(), ["20260102-000000-aaaa"]);
        assert_eq!(fs::list(&store.root.join("partial")).unwrap().len(), 1);
        assert!(store.verify(&mut |_, _| {}).unwrap().is_whole());
        assert_eq!(store.gc(1, false).unwrap(), Garbage::default());
    }

    use super::super::NodeRecord;
}
