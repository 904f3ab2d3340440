//! What an artifact would be called.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::hash::hash_file;
use super::{Blob, Manifest, Store, StoreError};
use crate::digest::Digest;
use crate::fs;
use crate::pieces::{self, Recipe};

impl Store {
    /// The id that files would have as an artifact of a type; nothing is put.
    pub fn identity(kind: &str, files: &BTreeMap<String, PathBuf>) -> Result<Digest, StoreError> {
        let blobs = files.iter().map(|(name, path)| Ok((name.clone(), blob(path)?)));
        let files = blobs.collect::<Result<_, StoreError>>()?;
        Ok(Manifest { kind: kind.to_owned(), files }.id())
    }
}

/// What a file holds, in whatever pieces it lies.
fn blob(path: &Path) -> Result<Blob, StoreError> {
    if !Recipe::is_at(path) {
        return hash_file(path);
    }
    let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
    fs::each_block(&mut pieces::open(path)?, |block| {
        hasher.update(block);
        size += block.len() as u64;
        Ok(())
    })?;
    Ok(Blob { digest: Digest::from(hasher.finalize()), size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_the_artifact_is_called_once_it_is_put() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let path = folder.path().join("file");
        fs_err::write(&path, b"content").unwrap();
        let files = BTreeMap::from([("a.txt".to_owned(), path.clone()), ("b/c.txt".to_owned(), path)]);
        let id = Store::identity("files", &files).unwrap();
        assert!(store.artifact_ids().unwrap().is_empty());
        assert_eq!(store.put_artifact("files", &files).unwrap(), id);
    }
}
