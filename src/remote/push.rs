//! From here to there: objects, then manifests, then records, then runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;

use super::client::in_parallel;
use super::{Failed, Found, LARGE, Moved, Moving, Other, Remote, RemoteError, Tell, Wanted, marker, names, upload};
use crate::digest::Digest;
use crate::pieces::Recipe;
use crate::store::{Blob, NodeRecord, Store, StoreError};

/// Objects with where they lie, and blobs that go as lists of parts.
type Gathered = (Vec<(Blob, PathBuf)>, Vec<Blob>);

/// What several threads find out.
#[derive(Default)]
struct Shared {
    moved: Moved,
    /// Records that are to go there.
    records: Vec<NodeRecord>,
    /// Artifacts that are to go there, by id, with the digests of their objects.
    artifacts: BTreeMap<Digest, Vec<Digest>>,
    /// Their objects, each with its size and where it lies.
    objects: BTreeMap<Digest, (Blob, PathBuf)>,
    /// Of those of them that lie in pieces here, the lists of these.
    recipes: BTreeMap<Digest, Blob>,
    /// What cannot go.
    broken: BTreeSet<Digest>,
}

impl Remote {
    /// Sends records with their artifacts, artifacts and runs. What is there is not sent again, unless `again` says so.
    ///
    /// Errs if the remote fails; what was sent until then stays, and the next push goes on from there. What is damaged
    /// or missing here is in the answer.
    pub fn push(&self, store: &Store, wanted: &Wanted, again: bool, tell: Tell<'_>) -> Result<Moved, RemoteError> {
        let marker = marker::ensure(&self.client)?;
        let shared = Mutex::new(Shared::default());
        let lock = || shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.each(wanted.keys.clone(), |key| {
            let Some(record) = store.node(&key)? else {
                lock()
                    .moved
                    .failed
                    .push(Failed { what: format!("key {}", key.short()), why: "it has no record".into() });
                return Ok(());
            };
            match self.node(&key)? {
                Some(found) if found.record.artifact != record.artifact => {
                    lock().moved.others.push(other(&record, &found));
                }
                Some(_) if !again => lock().moved.known += 1,
                _ => lock().records.push(record),
            }
            Ok(())
        })?;
        let mut ids: BTreeSet<Digest> = lock().records.iter().map(|record| record.artifact).collect();
        ids.extend(&wanted.artifacts);
        self.each(ids.into_iter().collect(), |id| {
            // Objects go before their manifest, so they are there if it is.
            if !again && self.client.size(&names::artifact(&id))?.is_some() {
                return Ok(());
            }
            match self.gather(store, &id, again)? {
                Ok((objects, recipes)) => {
                    let needed =
                        objects.iter().map(|(blob, _)| blob.digest).chain(recipes.iter().map(|blob| blob.digest));
                    let mut shared = lock();
                    shared.artifacts.insert(id, needed.collect());
                    shared.objects.extend(objects.into_iter().map(|(blob, path)| (blob.digest, (blob, path))));
                    shared.recipes.extend(recipes.into_iter().map(|blob| (blob.digest, blob)));
                }
                Err(error) => lock().breaks(id, format!("artifact {}", id.short()), &error),
            }
            Ok(())
        })?;
        let mut objects: Vec<_> = std::mem::take(&mut lock().objects).into_values().collect();
        // The large ones first, so that none is left to the end.
        objects.sort_by_key(|(blob, _)| std::cmp::Reverse(blob.size));
        tell(Moving::Begins { objects: objects.len() as u64, bytes: objects.iter().map(|(blob, _)| blob.size).sum() });
        self.each(objects, |(blob, path)| {
            let is_there = !again && self.client.size(&names::object(&blob.digest))? == Some(blob.size);
            if is_there {
                tell(Moving::Bytes(blob.size));
            } else {
                match upload::object(&self.client, store, &blob, &path, tell) {
                    Ok(()) => {
                        let moved = &mut lock().moved;
                        (moved.objects, moved.bytes) = (moved.objects + 1, moved.bytes + blob.size);
                    }
                    // What is wrong with this one file does not keep the others here.
                    Err(RemoteError::Store(error)) => {
                        lock().breaks(blob.digest, format!("object {}", blob.digest.short()), &error);
                    }
                    Err(error) => return Err(error),
                }
            }
            tell(Moving::Object);
            Ok(())
        })?;
        let recipes = std::mem::take(&mut lock().recipes);
        self.each(recipes.into_values().collect(), |blob| {
            if let Err(error) = self.send_recipe(store, &blob, again)? {
                lock().breaks(blob.digest, format!("list of parts {}", blob.digest.short()), &error);
            }
            Ok(())
        })?;
        let artifacts = std::mem::take(&mut lock().artifacts);
        self.each(artifacts.into_iter().collect(), |(id, objects)| {
            if objects.iter().any(|object| lock().broken.contains(object)) {
                lock().broken.insert(id);
                return Ok(());
            }
            self.client.put(&names::artifact(&id), store.manifest_bytes(&id)?)?;
            lock().moved.artifacts += 1;
            Ok(())
        })?;
        let records = std::mem::take(&mut lock().records);
        self.each(records, |record| {
            if lock().broken.contains(&record.artifact) {
                return Ok(());
            }
            let name = names::node(&record.key);
            let created = self.client.create(&name, store.node_bytes(&record.key)?)?;
            // Where the server does not keep writers apart, what is there now may be another's all the same.
            if created && marker.conditional_put {
                lock().moved.nodes += 1;
                return Ok(());
            }
            match self.node(&record.key)? {
                Some(found) if found.record.artifact != record.artifact => {
                    lock().moved.others.push(other(&record, &found));
                }
                // A record that is damaged there, and that could not be replaced by creating it.
                None => self.client.put(&name, store.node_bytes(&record.key)?)?,
                Some(_) => {}
            }
            let moved = &mut lock().moved;
            if created {
                moved.nodes += 1;
            } else {
                moved.known += 1;
            }
            Ok(())
        })?;
        for run in &wanted.runs {
            if let Some(bytes) = store.run_bytes(run)? {
                self.client.put(&names::run(run), bytes)?;
                lock().moved.runs += 1;
            }
        }
        let mut moved = std::mem::take(&mut lock().moved);
        moved.sort();
        Ok(moved)
    }

    /// The objects that an artifact needs there, each with where it lies here, and the blobs that go as lists of parts.
    /// The inner error is that of this artifact alone.
    fn gather(&self, store: &Store, id: &Digest, again: bool) -> Result<Result<Gathered, StoreError>, RemoteError> {
        let (mut objects, mut recipes) = (Vec::new(), Vec::new());
        let (manifest, files) = match store.manifest(id).and_then(|manifest| Ok((manifest, store.files(id)?))) {
            Ok(read) => read,
            Err(error) => return Ok(Err(error)),
        };
        for (name, blob) in manifest.files {
            let path = &files[&name];
            // Whoever pulls asks for the lists of parts of large ones alone.
            if blob.size < LARGE || !Recipe::is_at(path) {
                objects.push((blob, path.clone()));
                continue;
            }
            // Someone whose cache had it whole may have sent it so.
            if !again && self.client.size(&names::object(&blob.digest))? == Some(blob.size) {
                continue;
            }
            let recipe = match Recipe::read(path) {
                Ok(recipe) => recipe,
                Err(error) => return Ok(Err(error.into())),
            };
            let parts =
                recipe.parts.into_iter().map(|(digest, size)| (Blob { digest, size }, store.blob_path(&digest)));
            objects.extend(parts);
            recipes.push(blob);
        }
        Ok(Ok((objects, recipes)))
    }

    /// Sends the list of a blob's parts, which are there. The inner error is that of this blob alone.
    fn send_recipe(&self, store: &Store, blob: &Blob, again: bool) -> Result<Result<(), StoreError>, RemoteError> {
        let name = names::recipe(&blob.digest);
        if !again && self.client.size(&name)?.is_some() {
            return Ok(Ok(()));
        }
        match store.has_whole(blob) {
            Ok(true) => {}
            Ok(false) => {
                return Ok(Err(StoreError::Damaged { what: "its parts are not what they should be".to_owned() }));
            }
            Err(error) => return Ok(Err(error)),
        }
        self.client.put(&name, fs_err::read(store.recipe_path(&blob.digest))?)?;
        Ok(Ok(()))
    }

    pub(super) fn each<T: Send>(
        &self,
        items: Vec<T>,
        work: impl Fn(T) -> Result<(), RemoteError> + Sync,
    ) -> Result<(), RemoteError> {
        in_parallel(items, self.concurrency, work)
    }
}

fn other(record: &NodeRecord, there: &Found) -> Other {
    Other { node: record.node.clone(), key: record.key, artifact: record.artifact, stays: there.record.artifact }
}

impl Shared {
    fn breaks(&mut self, id: Digest, what: String, error: &StoreError) {
        self.broken.insert(id);
        self.moved.failed.push(Failed { what, why: error.to_string() });
    }
}

impl Moved {
    /// In an order that does not hang on which thread was first.
    pub(super) fn sort(&mut self) {
        self.others.sort_by(|a, b| (&a.node, a.key).cmp(&(&b.node, b.key)));
        self.failed.sort_by(|a, b| a.what.cmp(&b.what));
    }
}
