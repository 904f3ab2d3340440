//! Moving away and deleting, in steps beside whoever is at work.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{Garbage, Item};
use crate::digest::Digest;
use crate::fs;
use crate::store::inventory::PARTS;
use crate::store::inventory::weigh;
use crate::store::live::{Listener, Need};
use crate::store::{Index, Store, StoreError};

/// Items that are moved in one step: a few milliseconds.
const STEP: usize = 500;

/// In the order in which they move and are deleted.
const FOLDERS: [&str; 5] = ["runs", "nodes", "artifacts", "external", "objects"];

/// What goes on.
pub(super) struct Sweep<'a> {
    store: &'a Store,
    waiting: &'a mut dyn FnMut(),
    listener: Listener,
    /// What was named since, and all that it needs.
    needed: Needed,
    garbage: Garbage,
    /// What is gone, for the index.
    gone: Vec<Item>,
}

#[derive(Default)]
struct Needed {
    keys: HashSet<Digest>,
    artifacts: HashSet<Digest>,
    objects: HashSet<Digest>,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(store: &'a Store, waiting: &'a mut dyn FnMut()) -> Self {
        let (listener, needed, garbage) = (Listener::default(), Needed::default(), Garbage::default());
        Self { store, waiting, listener, needed, garbage, gone: Vec::new() }
    }

    /// Removes the items, which are in order; then scratch, if that is wanted. Tells the index.
    pub(super) fn run(mut self, items: Vec<Item>, scratch: bool) -> Result<Garbage, StoreError> {
        debug_assert!(items.is_sorted());
        let stepped = self.steps(items);
        // From here on nothing in the trash can be needed: who looks for it does not find it.
        let Self { store, mut garbage, gone, .. } = self;
        // An index that cannot be opened is made again without them. Before they are deleted, and when a step failed, too: an
        // index that knows what is neither in its place nor in the trash would mean that it was lost.
        if let Ok(mut index) = Index::open(store) {
            store.forget_answers()?;
            index.forget(&gone.iter().fold(Gone::default(), Gone::with));
        }
        stepped?;
        // They may say of a node that it is fresh whose record is gone.
        store.forget_answers()?;
        // No record comes back after the power went when the objects that it stands on do not.
        fs::sync_system(&store.root)?;
        store.empty_trash()?;
        if scratch {
            let keys = gone.iter().filter_map(|item| if let Item::Node(key) = item { Some(*key) } else { None });
            store.sweep_scratch(&keys.collect(), &mut |files, bytes| {
                garbage.files += files;
                garbage.bytes += bytes;
            })?;
        }
        Ok(garbage)
    }

    fn steps(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        let mut left = items.into_iter().peekable();
        // At least one step, and that tells whether anything can be written.
        loop {
            let step: Vec<Item> = left.by_ref().take(STEP).collect();
            let last = left.peek().is_none();
            let alone = self.store.alone(self.waiting)?;
            self.listen()?;
            for item in step {
                self.go(item)?;
            }
            drop(alone);
            fs::kill_point("gc-step");
            if last {
                return Ok(());
            }
        }
    }

    /// Hears what was named since the last step; moves back what of it an earlier step moved away.
    pub(super) fn listen(&mut self) -> Result<(), StoreError> {
        let mut ids = self.store.pins()?;
        for need in self.listener.news(self.store)? {
            match need {
                Need::Key(key) => {
                    if self.needed.keys.insert(key) {
                        self.store.restore("nodes", &self.store.node_path(&key))?;
                        if let Some(record) = self.store.node(&key)? {
                            ids.push(record.artifact);
                            ids.extend(record.equal_to_within.map(|equal| equal.artifact));
                            ids.extend(record.inputs.into_values());
                        }
                    }
                }
                Need::Artifact(id) => ids.push(id),
                Need::Object(id) => self.listen_to(id)?,
            }
        }
        for id in ids {
            if !self.needed.artifacts.insert(id) {
                continue;
            }
            self.store.restore("artifacts", &self.store.manifest_path(&id))?;
            self.store.restore("external", &self.store.external_path(&id))?;
            let manifest = match self.store.manifest(&id) {
                Ok(manifest) => manifest,
                // One that is damaged or was never there needs nothing.
                Err(StoreError::NoArtifact(_) | StoreError::Damaged { .. } | StoreError::BadName(_)) => continue,
                Err(error) => return Err(error),
            };
            for blob in manifest.files.values() {
                self.listen_to(blob.digest)?;
            }
        }
        Ok(())
    }

    /// An object is needed, and those that it lies in.
    fn listen_to(&mut self, id: Digest) -> Result<(), StoreError> {
        for path in self.store.object_files(&id) {
            self.store.restore("objects", &path)?;
        }
        self.needed.objects.insert(id);
        for part in self.store.kept_by(&id)? {
            for path in self.store.object_files(&part) {
                self.store.restore("objects", &path)?;
            }
            self.needed.objects.insert(part);
        }
        Ok(())
    }

    /// Moves an item to the trash, unless it is needed by now.
    pub(super) fn go(&mut self, item: Item) -> Result<(), StoreError> {
        let (store, garbage) = (self.store, &mut self.garbage);
        match &item {
            Item::Run(run, ended) => {
                let directory = store.run_dir(run);
                // One that had not ended when it was listed may go on, or have ended since; else it was killed.
                let ended_since = || Ok::<_, StoreError>(store.run(run)?.is_some_and(|run| run.finished.is_some()));
                if !ended && (store.has_living()? || ended_since()?) {
                    return Ok(());
                }
                let (files, bytes) = weigh(&directory)?;
                store.discard("runs", &directory)?;
                self.garbage.runs += 1;
                self.garbage.files += files;
                self.garbage.bytes += bytes;
            }
            Item::Node(key) if !self.needed.keys.contains(key) => {
                garbage.nodes += 1;
                garbage.bytes += store.discard("nodes", &store.node_path(key))?;
            }
            Item::Artifact(id) if !self.needed.artifacts.contains(id) => {
                garbage.artifacts += 1;
                garbage.bytes += store.discard("artifacts", &store.manifest_path(id))?;
                garbage.bytes += store.discard("external", &store.external_path(id))?;
            }
            Item::Object(id) if !self.needed.objects.contains(id) => {
                garbage.objects += 1;
                for path in store.object_files(id) {
                    garbage.bytes += store.discard("objects", &path)?;
                }
            }
            Item::Partial(key) => {
                let lock = store.try_lock_key(key)?;
                if lock.is_none() || store.node_path(key).exists() {
                    return Ok(());
                }
                let directory = store.root.join("partial").join(key.to_string());
                let (files, bytes) = weigh(&directory)?;
                fs::remove_directory(&directory)?;
                garbage.files += files;
                garbage.bytes += bytes;
            }
            _ => return Ok(()),
        }
        self.gone.push(item);
        Ok(())
    }
}

/// What is gone, by kind.
#[derive(Debug, Default)]
pub(in crate::store) struct Gone {
    pub(in crate::store) runs: Vec<String>,
    pub(in crate::store) keys: Vec<Digest>,
    pub(in crate::store) artifacts: Vec<Digest>,
}

impl Gone {
    fn with(mut self, item: &Item) -> Self {
        match item {
            Item::Run(run, _) => self.runs.push(run.clone()),
            Item::Node(key) => self.keys.push(*key),
            Item::Artifact(id) => self.artifacts.push(*id),
            Item::Object(_) | Item::Partial(_) => {}
        }
        self
    }
}

impl Store {
    /// The files of an object: the whole of it, or what tells which objects it lies in.
    pub(super) fn object_files(&self, id: &Digest) -> [PathBuf; 2] {
        [self.blob_path(id), self.sharded("objects", id, PARTS)]
    }

    /// Bytes of an object's files.
    pub(super) fn object_size(&self, id: &Digest) -> u64 {
        self.object_files(id).iter().map(|path| super::size(path)).sum()
    }

    /// Moves a file or directory to the trash and returns the file's size. On a disk that is too full for that it is deleted.
    fn discard(&self, folder: &str, path: &Path) -> Result<u64, StoreError> {
        let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(0) };
        let trash = self.root.join("trash").join(folder);
        let moved = fs::create_directory(&trash).and_then(|()| fs::rename_soon(path, &trash.join(flat(path))));
        if moved.is_err() {
            if metadata.is_dir() { fs::remove_directory(path) } else { fs::remove_file(path) }?;
        }
        Ok(metadata.len())
    }

    /// Moves a file back that is in the trash and not at its place.
    fn restore(&self, folder: &str, path: &Path) -> Result<(), StoreError> {
        let trashed = self.root.join("trash").join(folder).join(flat(path));
        if trashed.exists() && !path.exists() {
            fs::rename_soon(&trashed, path)?;
        }
        Ok(())
    }

    /// Moves back all that a gc moved away that was killed before it was done.
    pub(super) fn restore_trash(&self, waiting: &mut dyn FnMut()) -> Result<(), StoreError> {
        let trash = self.root.join("trash");
        if !trash.exists() {
            return Ok(());
        }
        let alone = self.alone(waiting)?;
        for folder in FOLDERS.iter().rev() {
            for path in fs::list(&trash.join(folder))? {
                let name = crate::store::name(&path);
                let home = match name.split_at_checked(2) {
                    Some((shard, rest)) if matches!(*folder, "nodes" | "artifacts" | "objects") => {
                        self.root.join(folder).join(shard).join(rest)
                    }
                    _ => self.root.join(folder).join(&name),
                };
                if !home.exists() {
                    fs::rename_soon(&path, &home)?;
                }
            }
        }
        drop(alone);
        self.empty_trash()
    }

    /// Deletes what is in the trash, records first.
    fn empty_trash(&self) -> Result<(), StoreError> {
        let trash = self.root.join("trash");
        for folder in FOLDERS {
            fs::remove_directory(&trash.join(folder))?;
            fs::kill_point("gc-delete");
        }
        Ok(fs::remove_directory(&trash)?)
    }
}

/// The name of a file in the trash: without the directory that it was in, of which the name is kept where it is part of an id.
fn flat(path: &Path) -> String {
    let shard = path.parent().map(crate::store::name).filter(|shard| shard.len() == 2).unwrap_or_default();
    shard + &crate::store::name(path)
}
