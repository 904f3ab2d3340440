//! From here to there: objects, then manifests, then records, then runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;

use super::client::in_parallel;
use super::{Failed, Found, Moved, Moving, Other, Remote, RemoteError, Tell, Wanted, marker, names, upload};
use crate::digest::Digest;
use crate::store::{Blob, NodeRecord, Store, StoreError};

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
                    lock().moved.others.push(other(&record, &found))
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
            let read = store.manifest(&id).and_then(|manifest| Ok((manifest, store.files(&id)?)));
            let mut shared = lock();
            match read {
                Ok((manifest, files)) => {
                    let blobs =
                        manifest.files.into_iter().map(|(name, blob)| (blob.digest, (blob, files[&name].clone())));
                    let blobs: Vec<_> = blobs.collect();
                    shared.artifacts.insert(id, blobs.iter().map(|(digest, _)| *digest).collect());
                    shared.objects.extend(blobs);
                }
                Err(error) => shared.breaks(id, format!("artifact {}", id.short()), &error),
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
                moved.nodes += 1
            } else {
                moved.known += 1
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
