//! Artifacts, made of blobs by their digests: what a manifest says and where the files are.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hash::{hash_all, hash_file};
use super::{Store, StoreError, is_no_file};
use crate::digest::Digest;
use crate::fs;
use crate::pieces;

/// A manifest of a million files with names of a hundred letters is as large.
pub(super) const LARGEST_MANIFEST: u64 = 256 << 20;
const LARGEST_EXTERNAL: u64 = 16 << 20;
/// Longest name of a file within an artifact, and of a part of it: what file systems have room for.
const LONGEST_NAME: usize = 4000;
const LONGEST_PART: usize = 255;

/// A file's content in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// blake3 of the bytes.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

impl Blob {
    /// What a file holds, wherever it is, whole or in pieces; it is read once, a large one by all threads.
    pub fn of_file(path: &Path) -> Result<Self, StoreError> {
        if !pieces::Recipe::is_at(path) {
            return hash_file(path);
        }
        let pieces = pieces::open(path)?;
        let size = pieces.size();
        hash_all(pieces, size)
    }
}

/// What an artifact is made of. Its id is the digest of this, serialised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The artifact type's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Blobs by file name (may contain `/`, never `..`).
    pub files: BTreeMap<String, Blob>,
}

impl Manifest {
    /// The artifact's id.
    pub fn id(&self) -> Digest {
        Digest::of(&self.bytes())
    }

    /// Bytes of all files together.
    pub fn size(&self) -> u64 {
        self.files.values().map(|blob| blob.size).sum()
    }

    /// Reads one. Errs on names that lead out of the directory that its files are put into.
    pub fn parse(bytes: &[u8]) -> Result<Self, StoreError> {
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.files.keys().try_for_each(|name| check_name(name))?;
        Ok(manifest)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, digests and numbers are always JSON")
    }
}

/// Where the files of an artifact are that were not copied in. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// The directory in which they have their names.
    pub directory: PathBuf,
    /// Those that are elsewhere, or there under another name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub at: BTreeMap<String, PathBuf>,
}

impl External {
    /// All files under their names in one directory.
    pub fn in_directory(directory: &Path) -> std::io::Result<Self> {
        Ok(Self { directory: std::path::absolute(directory)?, at: BTreeMap::new() })
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.at.get(name).cloned().unwrap_or_else(|| self.directory.join(name))
    }
}

impl Store {
    /// Where a blob is, if it is in the store.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.sharded("objects", digest, "")
    }

    /// Puts the manifest of an artifact whose blobs are there: put in the same [section](Store::sharing), or gc may have
    /// taken them since.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<Digest, StoreError> {
        manifest.files.keys().try_for_each(|name| check_name(name))?;
        let bytes = manifest.bytes();
        if bytes.len() as u64 > LARGEST_MANIFEST {
            let what = format!(
                "an artifact of {} files has a list of more than {} MiB: put them into fewer files",
                manifest.files.len(),
                LARGEST_MANIFEST >> 20
            );
            return Err(std::io::Error::new(ErrorKind::FileTooLarge, what).into());
        }
        let id = Digest::of(&bytes);
        let path = self.manifest_path(&id);
        let _section = self.sharing()?;
        self.need_artifacts([id])?;
        if path.exists() {
            if path.is_file() && fs::read(&path, LARGEST_MANIFEST).is_ok_and(|there| there == bytes) {
                // Whoever put it may not have waited for the disk yet, or been killed before.
                fs::sync_named(&path)?;
                return Ok(id);
            }
            self.quarantine(&path)?;
        }
        self.write_known(&path, &bytes, false)?;
        Ok(id)
    }

    /// Puts an artifact whose files stay where they are.
    pub fn put_external(
        &self,
        kind: &str,
        external: &External,
        files: &BTreeMap<String, Blob>,
    ) -> Result<Digest, StoreError> {
        let _section = self.sharing()?;
        let id = self.put_manifest(&Manifest { kind: kind.to_owned(), files: files.clone() })?;
        let bytes = serde_json::to_vec(external)?;
        let path = self.external_path(&id);
        if std::fs::metadata(&path).is_err() || fs::read(&path, LARGEST_EXTERNAL)? != bytes {
            self.write(&path, &bytes)?;
        }
        Ok(id)
    }

    /// An artifact's manifest. Errs if there is none or it is not what its name says.
    pub fn manifest(&self, id: &Digest) -> Result<Manifest, StoreError> {
        let path = self.manifest_path(id);
        let damaged = |how: &str| StoreError::Damaged { what: format!("manifest `{}` {how}", path.display()) };
        let bytes = match fs::read(&path, LARGEST_MANIFEST) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(StoreError::NoArtifact(*id)),
            Err(error) if error.kind() == ErrorKind::FileTooLarge => return Err(damaged("is far too large")),
            Err(error) if is_no_file(&error) => {
                return Err(damaged("is no plain file"));
            }
            Err(error) => return Err(error.into()),
        };
        self.manifest_of(id, &bytes)
    }

    /// What the bytes of a manifest say. Errs if they are not what its name says.
    pub(super) fn manifest_of(&self, id: &Digest, bytes: &[u8]) -> Result<Manifest, StoreError> {
        let damaged = |how: &str| {
            let path = self.manifest_path(id);
            StoreError::Damaged { what: format!("manifest `{}` {how}", path.display()) }
        };
        if Digest::of(bytes) != *id {
            return Err(damaged("does not have the digest that it is named by"));
        }
        Manifest::parse(bytes).map_err(|error| match error {
            StoreError::Json(_) => damaged("is no manifest"),
            other => other,
        })
    }

    /// Where an artifact's files are, by name: in the store, or in the directory that they were left in. What is kept in
    /// pieces is at the path of its recipe: open it with [`pieces::open`].
    pub fn files(&self, id: &Digest) -> Result<BTreeMap<String, PathBuf>, StoreError> {
        let manifest = self.manifest(id)?;
        let external = self.external(id)?;
        let place = |(name, blob): (String, Blob)| {
            let path = self.place_of(&name, &blob, external.as_ref());
            (name, path)
        };
        Ok(manifest.files.into_iter().map(place).collect())
    }

    /// Ids of all artifacts, in order.
    pub fn artifact_ids(&self) -> Result<Vec<Digest>, StoreError> {
        self.sharded_ids("artifacts", ".json")
    }

    /// Ids of artifacts that begin with these hex digits, two at least, in order.
    pub fn artifacts_beginning(&self, prefix: &str) -> Result<Vec<Digest>, StoreError> {
        self.ids_beginning("artifacts", ".json", prefix)
    }

    /// Where an artifact's files were left, if they were not copied in.
    pub fn external(&self, id: &Digest) -> Result<Option<External>, StoreError> {
        match fs::read(&self.external_path(id), LARGEST_EXTERNAL) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            // One that is no such file says nothing: the artifact's files are missing then.
            Err(error) if error.kind() == ErrorKind::NotFound || is_no_file(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The artifacts whose files were left where they were, in no order.
    pub(super) fn external_ids(&self) -> Result<Vec<Digest>, StoreError> {
        let mut ids = Vec::new();
        super::ids::each_name(&self.root.join("external"), |name| {
            ids.extend(name.strip_suffix(".json").and_then(|id| id.parse::<Digest>().ok()));
        })?;
        Ok(ids)
    }

    pub(super) fn place_of(&self, name: &str, blob: &Blob, external: Option<&External>) -> PathBuf {
        let here = self.place_of_blob(&blob.digest);
        match external {
            Some(external) if !here.exists() => external.path(name),
            _ => here,
        }
    }

    pub(super) fn manifest_path(&self, id: &Digest) -> PathBuf {
        self.sharded("artifacts", id, ".json")
    }

    pub(super) fn external_path(&self, id: &Digest) -> PathBuf {
        self.root.join("external").join(format!("{id}.json"))
    }
}

pub(super) fn check_name(name: &str) -> Result<(), StoreError> {
    let plain = |part| matches!(part, Component::Normal(part) if part.len() <= LONGEST_PART);
    if !name.is_empty()
        && name.len() <= LONGEST_NAME
        && !name.contains(['\0', '\n'])
        && Path::new(name).components().all(plain)
    {
        return Ok(());
    }
    Err(StoreError::BadName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        let (long, deep) = ("x".repeat(256), "x/".repeat(2001));
        for name in ["", "..", "../x", "/etc/passwd", "//x", "a/../../b", "./a", "a\nb", "a\0b", &long, &deep] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        // Odd, and inside.
        for name in ["...", "C:\\x", "..\\x", "\u{202e}x", "CON", "a b", "ﬃ/é", &long[1..]] {
            check_name(name).unwrap();
        }
        check_name("a/b.json").unwrap();
    }
}
