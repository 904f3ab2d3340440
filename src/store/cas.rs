//! Blobs by digest, and artifacts made of them.
//!
//! That an object exists never proves that it is whole: a put reads what is there and replaces it if it is damaged.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::digest::Digest;
use crate::fs;

/// A file's content in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// blake3 of the bytes.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
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

/// Hashes a file without holding it.
pub(super) fn hash_file(path: &Path) -> Result<Blob, StoreError> {
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    fs::each_block(&mut fs_err::File::open(path)?, |block| {
        hasher.update(block);
        size += block.len() as u64;
        Ok(())
    })?;
    Ok(Blob { digest: hasher.finalize().into(), size })
}

impl Store {
    /// Puts bytes.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Blob, StoreError> {
        let blob = Blob { digest: Digest::of(bytes), size: bytes.len() as u64 };
        if self.has_whole(&blob)? {
            return Ok(blob);
        }
        let unfinished = self.unfinished()?;
        let placed = fs::copy_to(&mut &*bytes, &unfinished, |_| {}).map_err(StoreError::from);
        let placed = placed.and_then(|_| self.place(&unfinished, &blob));
        if placed.is_err() {
            fs::discard(&unfinished);
        }
        placed.map(|()| blob)
    }

    /// Puts a file. One that lies in the store's `tmp/` is moved, any other is copied, hashed on the way.
    pub fn put_file(&self, path: &Path) -> Result<Blob, StoreError> {
        if self.is_ours(path)? {
            let blob = hash_file(path)?;
            if self.has_whole(&blob)? {
                fs::remove_file(path)?;
            } else {
                fs::sync(&fs_err::File::open(path)?)?;
                self.place(path, &blob)?;
            }
            return Ok(blob);
        }
        let mut source = fs_err::File::open(path)?;
        let unfinished = self.unfinished()?;
        let placed = (|| {
            let mut hasher = blake3::Hasher::new();
            let size = fs::copy_to(&mut source, &unfinished, |block| {
                hasher.update(block);
            })?;
            let blob = Blob { digest: hasher.finalize().into(), size };
            if self.has_whole(&blob)? {
                fs::remove_file(&unfinished)?;
            } else {
                self.place(&unfinished, &blob)?;
            }
            Ok(blob)
        })();
        if placed.is_err() {
            fs::discard(&unfinished);
        }
        placed
    }

    /// Where a blob is, if it is in the store.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.sharded("objects", digest, "")
    }

    /// Puts files as an artifact; `files` maps their names in it to where they are. Files under the store's `tmp/`
    /// are moved.
    pub fn put_artifact(&self, kind: &str, files: &BTreeMap<String, PathBuf>) -> Result<Digest, StoreError> {
        let mut blobs = BTreeMap::new();
        // A file may be there under two names and is moved at the first.
        let mut put: BTreeMap<&Path, Blob> = BTreeMap::new();
        for name in files.keys() {
            check_name(name)?;
        }
        for (name, path) in files {
            let blob = match put.get(path.as_path()) {
                Some(blob) => *blob,
                None => self.put_file(path)?,
            };
            put.insert(path, blob);
            blobs.insert(name.clone(), blob);
        }
        self.put_manifest(&Manifest { kind: kind.to_owned(), files: blobs })
    }

    /// Puts the manifest of an artifact whose blobs are there.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<Digest, StoreError> {
        manifest.files.keys().try_for_each(|name| check_name(name))?;
        let bytes = manifest.bytes();
        let id = Digest::of(&bytes);
        let path = self.manifest_path(&id);
        if path.exists() {
            if fs_err::read(&path)? == bytes {
                return Ok(id);
            }
            self.quarantine(&path)?;
        }
        self.write(&path, &bytes)?;
        Ok(id)
    }

    /// Puts an artifact whose files stay where they are.
    pub fn put_external(
        &self,
        kind: &str,
        external: &External,
        files: &BTreeMap<String, Blob>,
    ) -> Result<Digest, StoreError> {
        let id = self.put_manifest(&Manifest { kind: kind.to_owned(), files: files.clone() })?;
        let bytes = serde_json::to_vec(external)?;
        let path = self.external_path(&id);
        if std::fs::metadata(&path).is_err() || fs_err::read(&path)? != bytes {
            self.write(&path, &bytes)?;
        }
        Ok(id)
    }

    /// An artifact's manifest. Errs if there is none or it is not what its name says.
    pub fn manifest(&self, id: &Digest) -> Result<Manifest, StoreError> {
        let path = self.manifest_path(id);
        let bytes = match fs_err::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(StoreError::NoArtifact(*id)),
            Err(error) => return Err(error.into()),
        };
        let damaged = |how: &str| StoreError::Damaged { what: format!("manifest `{}` {how}", path.display()) };
        if Digest::of(&bytes) != *id {
            return Err(damaged("does not have the digest that it is named by"));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|_| damaged("is no manifest"))?;
        manifest.files.keys().try_for_each(|name| check_name(name))?;
        Ok(manifest)
    }

    /// Where an artifact's files are, by name: in the store, or in the directory that they were left in.
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

    /// Digests of all blobs, in order.
    pub(super) fn object_ids(&self) -> Result<Vec<Digest>, StoreError> {
        self.sharded_ids("objects", "")
    }

    /// Where an artifact's files were left, if they were not copied in.
    pub fn external(&self, id: &Digest) -> Result<Option<External>, StoreError> {
        match fs_err::read(self.external_path(id)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn place_of(&self, name: &str, blob: &Blob, external: Option<&External>) -> PathBuf {
        let object = self.blob_path(&blob.digest);
        match external {
            Some(external) if !object.exists() => external.path(name),
            _ => object,
        }
    }

    pub(super) fn manifest_path(&self, id: &Digest) -> PathBuf {
        self.sharded("artifacts", id, ".json")
    }

    pub(super) fn external_path(&self, id: &Digest) -> PathBuf {
        self.root.join("external").join(format!("{id}.json"))
    }

    fn unfinished(&self) -> Result<PathBuf, StoreError> {
        fs::create_directory(&self.tmp())?;
        Ok(fs::unfinished(&self.tmp()))
    }

    /// Whether a file may be moved: it lies under `tmp/`, is no link, and has no second name.
    fn is_ours(&self, path: &Path) -> Result<bool, StoreError> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs_err::symlink_metadata(path)?;
        Ok(path.starts_with(self.tmp()) && metadata.is_file() && metadata.nlink() == 1)
    }

    /// Whether a blob is there and whole. One that is damaged is moved aside.
    fn has_whole(&self, blob: &Blob) -> Result<bool, StoreError> {
        let path = self.blob_path(&blob.digest);
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(false);
        }
        if path.is_file() && hash_file(&path)? == *blob {
            return Ok(true);
        }
        self.quarantine(&path)?;
        Ok(false)
    }

    /// Moves a synced file to where its digest says.
    fn place(&self, path: &Path, blob: &Blob) -> Result<(), StoreError> {
        let object = self.blob_path(&blob.digest);
        fs::protect(path)?;
        if let Some(directory) = object.parent() {
            fs::create_directory(directory)?;
        }
        Ok(fs::rename(path, &object)?)
    }
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let plain = |part| matches!(part, Component::Normal(_));
    if !name.is_empty() && !name.contains(['\0', '\n']) && Path::new(name).components().all(plain) {
        return Ok(());
    }
    Err(StoreError::BadName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_put_moves_what_is_in_tmp_and_copies_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("cache")).unwrap();
        let outside = directory.path().join("a");
        fs::write_atomic(&outside, b"same").unwrap();
        let inside = store.tmp().join("b");
        fs::write_atomic(&inside, b"other").unwrap();
        let files = BTreeMap::from([
            ("a".to_owned(), outside.clone()),
            ("x/b".to_owned(), inside.clone()),
            ("c".to_owned(), inside.clone()),
        ]);
        let id = store.put_artifact("files", &files).unwrap();
        assert!(outside.exists() && !inside.exists());
        let found = store.files(&id).unwrap();
        assert_eq!(fs_err::read(&found["x/b"]).unwrap(), b"other");
        assert_eq!(found["c"], found["x/b"]);
        assert!(fs_err::metadata(&found["a"]).unwrap().permissions().readonly());
        assert!(fs::list(&store.tmp()).unwrap().is_empty());
        assert_eq!(store.artifact_ids().unwrap(), [id]);
    }

    #[test]
    fn a_put_replaces_a_damaged_object_and_keeps_it_for_a_look() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let blob = store.put_bytes(b"good").unwrap();
        let path = store.blob_path(&blob.digest);
        fs_err::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        fs_err::write(&path, b"evil").unwrap();
        store.put_bytes(b"good").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"good");
        let aside = fs::list(&store.root.join("quarantine")).unwrap();
        assert_eq!(fs_err::read(&aside[0]).unwrap(), b"evil");
    }

    #[test]
    fn names_stay_inside() {
        for name in ["", "../x", "/etc/passwd", "a/../../b", "./a", "a\nb"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        check_name("a/b.json").unwrap();
    }
}
