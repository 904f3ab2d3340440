//! What lies at a remote, and whether it is what it should be.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures_util::TryStreamExt;
use serde::Serialize;

use super::client::Client;
use super::{MOST_RECORD, Marker, Moving, Remote, RemoteError, Tell, marker, names};
use crate::digest::Digest;
use crate::pieces::Recipe;

/// How much there is of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Folder {
    /// `objects`, `artifacts`, `nodes` or `runs`.
    pub name: &'static str,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Flaw {
    /// Its name there.
    pub name: String,
    /// `damaged`, `missing` or `foreign`.
    pub state: &'static str,
    /// What about it.
    pub what: String,
}

/// What lies at a remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// The marker.
    pub marker: Marker,
    /// Whether the server refuses the second of two writers now; `None` where nothing can be written.
    pub conditional_put: Option<bool>,
    /// What there is.
    pub folders: Vec<Folder>,
    /// What is not as it should be; of objects only if every byte was read.
    pub flaws: Vec<Flaw>,
}

impl Remote {
    /// Looks at what is there, and tries whether two writers are kept apart. With `every_byte` everything is read and
    /// held to its digest.
    pub fn survey(&self, every_byte: bool, tell: Tell<'_>) -> Result<Survey, RemoteError> {
        let marker = self.marker()?;
        let conditional_put = if self.client.is_read_only() {
            None
        } else {
            match marker::probe(&self.client) {
                Ok(kept) => Some(kept),
                // Who may only read is told the rest all the same.
                Err(RemoteError::Denied { .. }) => None,
                Err(error) => return Err(error),
            }
        };
        let mut folders = Vec::new();
        let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
        for name in [names::OBJECTS, names::ARTIFACTS, names::NODES, names::RUNS] {
            let found = self.client.list(name)?;
            folders.push(Folder { name, files: found.len() as u64, bytes: found.iter().map(|(_, size)| size).sum() });
            sizes.extend(found);
        }
        let mut flaws = Vec::new();
        let foreign = sizes.keys().filter(|name| !name.starts_with(names::RUNS) && names::id(name).is_none());
        flaws.extend(foreign.map(|name| flaw(name, "foreign", "nothing here is called so")));
        if every_byte {
            self.read_all(&sizes, &mut flaws, tell)?;
        }
        flaws.sort();
        Ok(Survey { marker, conditional_put, folders, flaws })
    }

    fn read_all(
        &self,
        sizes: &BTreeMap<String, u64>,
        flaws: &mut Vec<Flaw>,
        tell: Tell<'_>,
    ) -> Result<(), RemoteError> {
        let found = Mutex::new(Vec::new());
        let add = |flaw: Flaw| found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(flaw);
        let of = |folder: &'static str| {
            let names = sizes.keys().filter(move |name| name.starts_with(folder));
            names.filter_map(|name| Some((name.clone(), names::id(name)?))).collect::<Vec<_>>()
        };
        tell(Moving::Begins { objects: of(names::OBJECTS).len() as u64, bytes: sizes.values().sum() });
        self.each(of(names::OBJECTS), |(name, digest)| {
            if names::is_recipe(&name) {
                if let Some(what) = self.recipe_flaw(&name, &digest)? {
                    add(flaw(&name, "damaged", &what));
                }
            } else if self.digest(std::slice::from_ref(&name), tell)? != Some(digest) {
                add(flaw(&name, "damaged", "its bytes are not those of its name"));
            }
            tell(Moving::Object);
            Ok(())
        })?;
        self.each(of(names::ARTIFACTS), |(name, id)| {
            match self.manifest(&id) {
                Ok(manifest) => {
                    for blob in manifest.files.values() {
                        let object = names::object(&blob.digest);
                        match sizes.get(&object) {
                            None if sizes.contains_key(&names::recipe(&blob.digest)) => {}
                            None => add(flaw(&object, "missing", &format!("artifact {} needs it", id.short()))),
                            Some(size) if *size != blob.size => {
                                add(flaw(&object, "damaged", &format!("it has {size} bytes, not {}", blob.size)));
                            }
                            Some(_) => {}
                        }
                    }
                }
                Err(error) if !error.is_down() => add(flaw(&name, "damaged", &error.to_string())),
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        self.each(of(names::NODES), |(name, key)| {
            match self.node(&key)? {
                Some(found) if !sizes.contains_key(&names::artifact(&found.record.artifact)) => {
                    let what = format!("the record of {} needs it", found.record.node);
                    add(flaw(&names::artifact(&found.record.artifact), "missing", &what));
                }
                Some(_) => {}
                None => add(flaw(&name, "damaged", "it is no record of its key")),
            }
            Ok(())
        })?;
        let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        found.sort();
        found.dedup();
        flaws.extend(found);
        Ok(())
    }

    /// What is wrong with a list of parts, or with them together.
    fn recipe_flaw(&self, name: &str, digest: &Digest) -> Result<Option<String>, RemoteError> {
        let bytes = self.client.get(name, MOST_RECORD)?.unwrap_or_default();
        let Ok(recipe) = serde_json::from_slice::<Recipe>(&bytes) else { return Ok(Some("it is no list".to_owned())) };
        let parts: Vec<String> = recipe.parts.iter().map(|(part, _)| names::object(part)).collect();
        match self.digest(&parts, &|_| {}) {
            Ok(found) if found == Some(*digest) => Ok(None),
            Ok(_) => Ok(Some("its parts make up another file".to_owned())),
            Err(RemoteError::Incomplete { name, .. }) => Ok(Some(format!("`{name}`, a part, is not there"))),
            Err(error) => Err(error),
        }
    }

    /// The digest of what is under names, one after the other; `None` if it cannot be read to its end.
    fn digest(&self, names: &[String], tell: Tell<'_>) -> Result<Option<Digest>, RemoteError> {
        let mut hasher = blake3::Hasher::new();
        for name in names {
            let Some(found) = self.client.open(name, None)? else { return Ok(None) };
            let mut blocks = found.into_stream();
            loop {
                match self.client.block_on(blocks.try_next()) {
                    Ok(Some(block)) => {
                        hasher.update(&block);
                        tell(Moving::Bytes(block.len() as u64));
                    }
                    Ok(None) => break,
                    Err(error) => match Client::fault(&error) {
                        RemoteError::Answer { .. } => return Ok(None),
                        fault => return Err(fault),
                    },
                }
            }
        }
        Ok(Some(hasher.finalize().into()))
    }
}

fn flaw(name: &str, state: &'static str, what: &str) -> Flaw {
    Flaw { name: name.to_owned(), state, what: what.to_owned() }
}
