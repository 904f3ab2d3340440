//! From there to here: objects, each held to its digest, then manifests, then records, then runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use super::{
    Failed, Found, LARGE, MOST_MANIFEST, MOST_RECORD, Moved, Moving, Other, Remote, RemoteError, Tell, Wanted,
    download, names,
};
use crate::digest::Digest;
use crate::pieces::Recipe;
use crate::store::{Blob, Manifest, NodeRecord, Store, StoreError};

/// Objects to fetch, and the list of parts that they are of.
type Expanded = (Vec<Blob>, Option<(Blob, Recipe, Vec<u8>)>);

/// What several threads find out.
#[derive(Default)]
struct Shared {
    moved: Moved,
    manifests: BTreeMap<Digest, Manifest>,
    /// What cannot come.
    broken: BTreeSet<Digest>,
}

/// What came.
#[derive(Debug, Default)]
pub struct Pulled {
    /// In figures.
    pub moved: Moved,
    /// The records that stand here now, for the index.
    pub records: Vec<NodeRecord>,
}

impl Remote {
    /// Brings records with their artifacts, artifacts and runs here. Errs if the remote fails; what came until then
    /// stays, and the next pull goes on from there. What is missing or wrong there is in the answer.
    pub fn pull(&self, store: &Store, wanted: &Wanted, tell: Tell<'_>) -> Result<Pulled, RemoteError> {
        self.marker()?;
        let found = self.find(&wanted.keys)?;
        let mut pulled = self.take(store, &found, &wanted.artifacts, false, tell)?;
        let there: BTreeSet<Digest> = found.iter().map(|found| found.record.key).collect();
        for key in wanted.keys.iter().filter(|key| !there.contains(key)) {
            let what = format!("key {}", key.short());
            pulled.moved.failed.push(Failed { what, why: "the remote cache has no record of it".into() });
        }
        for run in &wanted.runs {
            if let Some((record, bytes)) = self.run(run)?
                && store.take_run(&record, &bytes)?
            {
                pulled.moved.runs += 1;
            }
        }
        pulled.moved.sort();
        Ok(pulled)
    }

    /// Brings the artifacts of records that were found, then the records. With `thorough` what is here is read, and
    /// what of it is damaged is brought again.
    pub fn take(
        &self,
        store: &Store,
        found: &[Found],
        artifacts: &[Digest],
        thorough: bool,
        tell: Tell<'_>,
    ) -> Result<Pulled, RemoteError> {
        let shared = Mutex::new(Shared::default());
        let lock = || shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut ids: BTreeSet<Digest> = found.iter().map(|found| found.record.artifact).collect();
        ids.extend(artifacts);
        self.each(ids.iter().copied().collect(), |id| {
            let manifest = match store.manifest(&id) {
                Ok(manifest) => Ok(manifest),
                Err(_) => self.manifest(&id),
            };
            match manifest {
                Ok(manifest) => _ = lock().manifests.insert(id, manifest),
                Err(error) => lock().breaks(id, format!("artifact {}", id.short()), error)?,
            }
            Ok(())
        })?;
        let blobs = |shared: &Shared| {
            let all = shared.manifests.values().flat_map(|manifest| manifest.files.values());
            all.map(|blob| (blob.digest, *blob)).collect::<BTreeMap<_, _>>()
        };
        let mut missing: Vec<Blob> = Vec::new();
        for blob in blobs(&lock()).into_values() {
            if !(store.keeps_object(&blob)? && (!thorough || store.has_whole(&blob)?)) {
                missing.push(blob);
            }
        }
        let expanded = Mutex::new((Vec::new(), Vec::new()));
        self.each(missing, |blob| {
            match self.expand(store, &blob) {
                Ok((objects, recipe)) => {
                    let mut expanded = expanded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    expanded.0.extend(objects);
                    expanded.1.extend(recipe);
                }
                Err(error) => lock().breaks(blob.digest, names::object(&blob.digest), error)?,
            }
            Ok(())
        })?;
        let (objects, recipes) = expanded.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let objects: BTreeMap<Digest, Blob> = objects.into_iter().map(|blob: Blob| (blob.digest, blob)).collect();
        let mut objects: Vec<Blob> = objects.into_values().collect();
        objects.sort_by_key(|blob| std::cmp::Reverse(blob.size));
        tell(Moving::Begins { objects: objects.len() as u64, bytes: objects.iter().map(|blob| blob.size).sum() });
        self.each(objects, |blob| {
            match download::object(&self.client, store, &blob, tell) {
                Ok(()) => {
                    let moved = &mut lock().moved;
                    (moved.objects, moved.bytes) = (moved.objects + 1, moved.bytes + blob.size);
                }
                Err(error) => lock().breaks(blob.digest, names::object(&blob.digest), error)?,
            }
            tell(Moving::Object);
            Ok(())
        })?;
        for (blob, recipe, bytes) in recipes {
            let name = names::recipe(&blob.digest);
            if recipe.parts.iter().any(|(part, _)| lock().broken.contains(part)) {
                lock().broken.insert(blob.digest);
            } else if let Err(error) = store.take_recipe(&blob, &bytes) {
                let error = match error {
                    StoreError::Damaged { what } => RemoteError::WrongBytes { name: name.clone(), what },
                    error => error.into(),
                };
                lock().breaks(blob.digest, name, error)?;
            }
        }
        let Shared { mut moved, manifests, mut broken } = std::mem::take(&mut *lock());
        for (id, manifest) in &manifests {
            if manifest.files.values().any(|blob| broken.contains(&blob.digest)) {
                broken.insert(*id);
                continue;
            }
            let known = store.manifest(id).is_ok();
            // One that is there is named to gc by that.
            store.put_manifest(manifest)?;
            moved.artifacts += u64::from(!known);
        }
        let mut records = Vec::new();
        for Found { record, bytes } in found.iter().filter(|found| !broken.contains(&found.record.artifact)) {
            let known = store.node(&record.key)?.is_some_and(|known| known.artifact == record.artifact);
            let stays = store.take_node(record, bytes)?;
            if known {
                moved.known += 1;
            } else if stays == record.artifact {
                moved.nodes += 1;
            } else {
                let (node, key, artifact) = (record.node.clone(), record.key, record.artifact);
                moved.others.push(Other { node, key, artifact, stays });
            }
            if stays == record.artifact {
                records.push(record.clone());
            }
        }
        moved.sort();
        Ok(Pulled { moved, records })
    }

    /// The objects to fetch for a blob: itself, or those of its parts that are not here, with the list of all of them.
    fn expand(&self, store: &Store, blob: &Blob) -> Result<Expanded, RemoteError> {
        // Lists of parts are for large ones; of the others it shows when they are fetched that they are not there.
        if blob.size < LARGE || self.client.size(&names::object(&blob.digest))?.is_some() {
            return Ok((vec![*blob], None));
        }
        let name = names::recipe(&blob.digest);
        let Some(bytes) = self.client.get(&name, MOST_RECORD)? else { return Ok((vec![*blob], None)) };
        let wrong = |error: StoreError| RemoteError::WrongBytes { name: name.clone(), what: error.to_string() };
        let recipe = Store::arrived_recipe(blob, &bytes).map_err(wrong)?;
        let parts = recipe.parts.iter().map(|(digest, size)| Blob { digest: *digest, size: *size });
        let mut missing = Vec::new();
        for part in parts {
            if !store.keeps_object(&part)? {
                missing.push(part);
            }
        }
        Ok((missing, Some((*blob, recipe, bytes))))
    }

    /// A manifest that lies there; it is asked for twice if it comes wrong.
    pub(super) fn manifest(&self, id: &Digest) -> Result<Manifest, RemoteError> {
        let name = names::artifact(id);
        let mut wrong = None;
        for _ in 0..2 {
            let Some(bytes) = self.client.get(&name, MOST_MANIFEST)? else {
                return Err(RemoteError::Incomplete { name, of: format!("artifact {}", id.short()) });
            };
            match Store::arrived_manifest(id, &bytes) {
                Ok(manifest) => return Ok(manifest),
                Err(error) => wrong = Some(error.to_string()),
            }
        }
        Err(RemoteError::WrongBytes { name, what: wrong.unwrap_or_default() })
    }
}

impl Shared {
    /// Takes note of what cannot come; errs if the fault is not that of this one thing.
    fn breaks(&mut self, id: Digest, what: String, error: RemoteError) -> Result<(), RemoteError> {
        if error.is_down() || matches!(error, RemoteError::Store(StoreError::Io(_))) {
            return Err(error);
        }
        self.broken.insert(id);
        self.moved.failed.push(Failed { what, why: error.to_string() });
        Ok(())
    }
}
