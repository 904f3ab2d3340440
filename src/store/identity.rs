//! What an artifact would be called.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Blob, Manifest, Store, StoreError};
use crate::digest::Digest;

impl Store {
    /// The id that files would have as an artifact of a type; nothing is put.
    pub fn identity(kind: &str, files: &BTreeMap<String, PathBuf>) -> Result<Digest, StoreError> {
        let blobs = files.iter().map(|(name, path)| Ok((name.clone(), Blob::of_file(path)?)));
        let files = blobs.collect::<Result<_, StoreError>>()?;
        Ok(Manifest { kind: kind.to_owned(), files }.id())
    }
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
