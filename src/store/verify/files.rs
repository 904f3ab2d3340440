//! What verification knows of each directory of a store: which names belong there, and what their files must be.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use serde_json::Value;

use super::super::hash::hash_file;
use super::super::index::Index;
use super::super::record::{LARGEST_RECORD, read_json, sound};
use super::super::rows::is_line;
use super::super::thin::Flaw;
use super::super::{Blob, DIRECTORIES, External, NodeRecord, RunRecord, StoreError, name};
use super::{Fault, Sight, State};
use crate::digest::Digest;
use crate::fs;
use crate::pieces;

/// What may lie beside the directories of a store.
const BESIDE: &[&str] =
    &["VERSION", "index.sqlite", "index.sqlite-journal", "README.md", "quarantine", "tensorboard", "trackers", "trash"];

impl Sight<'_> {
    /// The top of the store.
    pub(super) fn top(&mut self) -> Result<(), StoreError> {
        for path in fs::list(&self.store.root)? {
            let name = name(&path);
            if !DIRECTORIES.contains(&name.as_str()) && !BESIDE.contains(&name.as_str()) && !name.starts_with('.') {
                self.fault(State::Foreign, "file", &path, "a cache has nothing of this name");
            }
        }
        Ok(())
    }

    /// The ids in `FOLDER/ab/cdef…SUFFIX`, in order, with the files' sizes; tells of everything else there.
    fn sharded(&mut self, folder: &str, suffix: &str, what: &'static str) -> Result<Vec<(Digest, u64)>, StoreError> {
        let mut ids = Vec::new();
        for shard in fs::list(&self.store.root.join(folder))? {
            let prefix = name(&shard);
            if !shard.is_dir() || prefix.len() != 2 {
                self.fault(State::Foreign, what, &shard, "no name of a directory of digests");
                continue;
            }
            for path in fs::list(&shard)? {
                let name = name(&path);
                // Lists of pieces lie among the objects.
                if what == "object" && name.ends_with(pieces::SUFFIX) {
                    self.recipe(&prefix, &path);
                    continue;
                }
                let id = name.strip_suffix(suffix).and_then(|rest| format!("{prefix}{rest}").parse::<Digest>().ok());
                let Some(id) = id else {
                    self.fault(State::Foreign, what, &path, "its name is no digest");
                    continue;
                };
                let Ok(metadata) = fs_err::symlink_metadata(&path) else { continue };
                if metadata.is_file() {
                    ids.push((id, metadata.len()));
                } else {
                    self.fault(State::Damaged, what, &path, "no file").artifacts.insert(id);
                    self.bad_objects.insert(id);
                }
            }
        }
        Ok(ids)
    }

    /// A list of pieces; that it is the right one, the file shows that it makes.
    fn recipe(&mut self, prefix: &str, path: &Path) {
        let name = name(path);
        let id = name.strip_suffix(pieces::SUFFIX).and_then(|rest| format!("{prefix}{rest}").parse::<Digest>().ok());
        match id {
            None => _ = self.fault(State::Foreign, "parts", path, "its name is no digest"),
            Some(_) if fs_err::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) => {}
            Some(_) => _ = self.fault(State::Damaged, "parts", path, "no file"),
        }
    }

    /// A file of an artifact that is kept in pieces: whether they are there, and make it.
    fn in_pieces(&mut self, artifact: Digest, blob: &Blob) -> Result<(), StoreError> {
        // A file that several artifacts have is read once.
        let flaw = match self.in_pieces.get(&blob.digest) {
            Some(flaw) => flaw.clone(),
            None => {
                let flaw = self.store.examine_pieces(blob, &|_, _| false, &mut |_, _| {})?;
                self.in_pieces.entry(blob.digest).or_insert(flaw).clone()
            }
        };
        let (state, path) = match flaw {
            None => return Ok(()),
            Some(Flaw::Missing(path)) => (State::Missing, path),
            Some(Flaw::Damaged(path)) => (State::Damaged, path),
        };
        let what = if pieces::Recipe::is_at(&path) { "parts" } else { "object" };
        let how = format!("a piece or the list of pieces of a file of artifact {}", artifact.short());
        self.fault(state, what, &path, &how).artifacts.insert(artifact);
        Ok(())
    }

    /// Hashes all objects, several at once.
    pub(super) fn objects(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StoreError> {
        let objects = self.sharded("objects", "", "object")?;
        let total = objects.iter().map(|(_, size)| size).sum();
        let (sender, receiver) = channel();
        let store = self.store;
        let wrong: Vec<(Digest, String)> = std::thread::scope(|scope| {
            let hashing = scope.spawn(|| {
                let hash = |told: &mut Sender<u64>, (id, size): &(Digest, u64)| {
                    // A sector that cannot be read is as bad as one with other bytes.
                    let wrong = match hash_file(&store.blob_path(id)) {
                        Ok(blob) if blob.digest == *id => None,
                        Ok(_) => Some((*id, "its bytes have another digest".to_owned())),
                        Err(error) => Some((*id, error.to_string())),
                    };
                    let _ = told.send(*size);
                    wrong
                };
                objects.par_iter().map_with(sender, hash).flatten().collect()
            });
            for size in receiver {
                self.seen.objects += 1;
                self.seen.bytes += size;
                progress(self.seen.bytes, total);
            }
            hashing.join().expect("hashing does not panic")
        });
        for (id, how) in wrong {
            let path = self.store.blob_path(&id);
            self.fault(State::Damaged, "object", &path, &how);
            self.bad_objects.insert(id);
        }
        self.objects = objects;
        Ok(())
    }

    /// Manifests: their digests, and whether what they name is there.
    pub(super) fn manifests(&mut self) -> Result<(), StoreError> {
        for (id, _) in self.sharded("artifacts", ".json", "manifest")? {
            self.seen.artifacts += 1;
            let path = self.store.manifest_path(&id);
            let manifest = match self.store.manifest(&id) {
                Ok(manifest) => manifest,
                Err(StoreError::NoArtifact(_)) => continue,
                Err(error) => {
                    self.fault(State::Damaged, "manifest", &path, &error.to_string()).artifacts.insert(id);
                    continue;
                }
            };
            self.artifacts.push(id);
            let external = self.store.external(&id)?;
            for (name, blob) in &manifest.files {
                let thin = self.objects.binary_search_by_key(&blob.digest, |(id, _)| *id).is_err()
                    && fs_err::symlink_metadata(self.store.recipe_path(&blob.digest)).is_ok();
                if thin {
                    self.in_pieces(id, blob)?;
                    continue;
                }
                if self.bad_objects.contains(&blob.digest) {
                    let path = self.store.blob_path(&blob.digest);
                    self.of_object(&path, id);
                    continue;
                }
                let place = self.store.place_of(name, blob, external.as_ref());
                let found = self.objects.binary_search_by_key(&blob.digest, |(id, _)| *id).ok();
                let wrong = match (found, external.is_some()) {
                    (Some(at), _) if self.objects[at].1 == blob.size => continue,
                    (Some(_), _) => Some((State::Damaged, "manifest", "it gives a file another size".to_owned())),
                    // It may have been put just now.
                    (None, false) if place.is_file() => {
                        outside(&place, blob.digest).map(|(state, how)| (state, "object", how))
                    }
                    (None, false) => Some((State::Missing, "object", format!("`{name}` of artifact {}", id.short()))),
                    (None, true) => outside(&place, blob.digest).map(|(state, how)| (state, "file", how)),
                };
                if let Some((state, what, how)) = wrong {
                    self.fault(state, what, if what == "manifest" { &path } else { &place }, &how).artifacts.insert(id);
                }
            }
        }
        Ok(())
    }

    /// Where files of artifacts are that were not copied in.
    pub(super) fn external(&mut self) -> Result<(), StoreError> {
        for path in fs::list(&self.store.root.join("external"))? {
            let id = name(&path).strip_suffix(".json").and_then(|id| id.parse::<Digest>().ok());
            let Some(id) = id else {
                self.fault(State::Foreign, "external", &path, "its name is no digest");
                continue;
            };
            if read_json::<External>(&path).ok().flatten().is_none() {
                self.fault(State::Damaged, "external", &path, "it does not say where files are").artifacts.insert(id);
            } else if !self.is_artifact(&id) && !self.is_at_fault(&id) {
                self.fault(State::Foreign, "external", &path, "there is no such artifact");
            }
        }
        Ok(())
    }

    /// Node records: whether they are what their names and their own digests say.
    pub(super) fn nodes(&mut self, index: Option<&Index>) -> Result<(), StoreError> {
        let known: BTreeMap<Digest, Digest> = index.map(Index::artifacts_by_key).into_iter().flatten().collect();
        let keys = self.sharded("nodes", ".json", "node")?;
        for (key, _) in &keys {
            self.seen.nodes += 1;
            let path = self.store.node_path(key);
            match sound::<NodeRecord>(&path) {
                Ok(Some(record)) if record.key != *key => self.bad_record(*key, "it is of another key"),
                Ok(Some(record)) if Digest::of_value(&record.preimage) != record.key => {
                    self.bad_record(*key, "what was hashed to its key is not what it says");
                }
                Ok(Some(record)) => {
                    if known.get(key).is_some_and(|artifact| *artifact != record.artifact) {
                        self.stale.push(*key);
                    }
                    if !self.is_artifact(&record.artifact) && !self.is_at_fault(&record.artifact) {
                        let manifest = self.store.manifest_path(&record.artifact);
                        self.fault(State::Missing, "manifest", &manifest, "a node record names it")
                            .artifacts
                            .insert(record.artifact);
                    }
                }
                Ok(None) => {}
                Err(how) => self.bad_record(*key, &how),
            }
        }
        let gc_was_killed = self.gc_was_killed();
        let gone: Vec<Digest> = known
            .keys()
            .filter(|_| !gc_was_killed)
            .filter(|key| keys.binary_search_by_key(*key, |(key, _)| *key).is_err())
            .copied()
            .collect();
        for key in gone {
            let path = self.store.node_path(&key);
            self.fault(State::Missing, "node", &path, "the index knows it").keys.insert(key);
        }
        Ok(())
    }

    fn bad_record(&mut self, key: Digest, how: &str) {
        let path = self.store.node_path(&key);
        self.fault(State::Damaged, "node", &path, how).keys.insert(key);
    }

    /// Runs: their records, and whether what they left can be read.
    pub(super) fn runs(&mut self, index: Option<&Index>) -> Result<(), StoreError> {
        let known = if self.gc_was_killed() { None } else { index.map(Index::run_ids) };
        for run in known.into_iter().flatten() {
            let path = self.store.run_dir(&run).join("run.json");
            if fs_err::symlink_metadata(&path).is_err() {
                self.fault(State::Missing, "run", &path, "the index knows it");
                self.gone.push(run);
            }
        }
        for directory in fs::list(&self.store.root.join("runs"))? {
            if !directory.is_dir() {
                self.fault(State::Foreign, "run", &directory, "no directory of a run");
                continue;
            }
            let path = directory.join("run.json");
            let ended = match sound::<RunRecord>(&path) {
                Ok(Some(run)) if run.run != name(&directory) => {
                    self.fault(State::Damaged, "run", &path, "it is of another run");
                    true
                }
                Ok(run) => run.is_some_and(|run| run.finished.is_some()),
                Err(how) => {
                    self.fault(State::Damaged, "run", &path, &how);
                    true
                }
            };
            for path in fs::walk(&directory)? {
                if path.is_symlink() && !path.exists() {
                    self.fault(State::Damaged, "run", &path, "a link to nowhere");
                    continue;
                }
                let wrong = match name(&path).as_str() {
                    "events.jsonl" => lines(&path, |line| serde_json::from_slice::<Value>(line).is_ok())?,
                    // Nobody waited until the disk had them, so they may be empty.
                    "job.json" | "result.json" if ended => match fs::read(&path, LARGEST_RECORD) {
                        Ok(bytes) => !bytes.is_empty() && serde_json::from_slice::<Value>(&bytes).is_err(),
                        // One that was just removed.
                        Err(error) if error.kind() == ErrorKind::NotFound => false,
                        Err(error) => return Err(error.into()),
                    },
                    _ => false,
                };
                if wrong {
                    self.fault(State::Damaged, "run", &path, "it is no JSON");
                }
            }
        }
        Ok(())
    }

    /// Row memos: whether each line has the digest that it says.
    pub(super) fn rows(&mut self) -> Result<(), StoreError> {
        for space in fs::list(&self.store.root.join("rows"))? {
            // What the memo's bound keeps for itself.
            if name(&space).starts_with('.') {
                continue;
            }
            if !space.is_dir() || name(&space).parse::<Digest>().is_err() {
                self.fault(State::Foreign, "rows", &space, "its name is no digest");
                continue;
            }
            for path in fs::list(&space)? {
                let name = name(&path);
                // Beside the rows lies what can be made again, or tells people of them.
                let is = |extension| path.extension().is_some_and(|found| found == extension);
                if is("idx") || ["space.json", "uses", "lock"].contains(&name.as_str()) || name.starts_with('.') {
                    continue;
                }
                if !is("jsonl") {
                    self.fault(State::Foreign, "rows", &path, "no segment of a row memo");
                } else if lines(&path, is_line)? {
                    self.fault(State::Damaged, "rows", &path, "rows in it are computed again");
                }
            }
        }
        Ok(())
    }

    /// What gc is to keep.
    pub(super) fn pins(&mut self) -> Result<(), StoreError> {
        for path in fs::list(&self.store.root.join("pins"))? {
            match name(&path).parse::<Digest>() {
                Err(_) => _ = self.fault(State::Foreign, "pin", &path, "its name is no digest"),
                Ok(id) if !self.is_artifact(&id) && !self.is_at_fault(&id) => {
                    let manifest = self.store.manifest_path(&id);
                    self.fault(State::Missing, "manifest", &manifest, "a pin names it").artifacts.insert(id);
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Whether a gc left what it removes in the trash. It tells the index when it has moved all.
    fn gc_was_killed(&self) -> bool {
        fs::walk(&self.store.root.join("trash")).is_ok_and(|files| !files.is_empty())
    }

    /// Whether there is an artifact that is not damaged; it may have been put just now.
    fn is_artifact(&self, id: &Digest) -> bool {
        self.artifacts.binary_search(id).is_ok() || self.store.manifest(id).is_ok()
    }

    fn is_at_fault(&self, id: &Digest) -> bool {
        self.faults.values().any(|fault| fault.artifacts.contains(id))
    }

    fn of_object(&mut self, path: &Path, artifact: Digest) {
        if let Some(fault) = self.faults.get_mut(path) {
            fault.artifacts.insert(artifact);
        }
    }

    pub(super) fn fault(&mut self, state: State, what: &'static str, path: &Path, how: &str) -> &mut Fault {
        let fault = || Fault { state, what, how: how.to_owned(), ..Fault::default() };
        self.faults.entry(path.to_owned()).or_insert_with(fault)
    }
}

/// What is wrong with a file outside of the store.
fn outside(path: &Path, digest: Digest) -> Option<(State, String)> {
    match hash_file(path) {
        Ok(blob) if blob.digest == digest => None,
        Ok(_) => Some((State::Damaged, "its bytes have another digest".to_owned())),
        Err(_) if !path.is_file() => Some((State::Missing, "it was not copied in".to_owned())),
        Err(error) => Some((State::Damaged, error.to_string())),
    }
}

/// Whether a file has a line that is not `whole`. The last one may be torn: who wrote it may have been killed.
fn lines(path: &Path, whole: impl Fn(&[u8]) -> bool) -> Result<bool, StoreError> {
    let mut reader = BufReader::new(fs::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(false);
        }
        match line.strip_suffix(b"\n") {
            Some(line) if !whole(line) => return Ok(true),
            _ => {}
        }
    }
}
