//! What comes from elsewhere, from a remote cache or an archive: bytes wait in `tmp/arriving/` until they are what their
//! name says; then they get their place. Objects come before manifests and manifests before records, so that a record
//! never stands without its bytes.

use std::path::{Path, PathBuf};

use super::cas::LARGEST_MANIFEST;
use super::put::marked;
use super::{Blob, Health, Manifest, NodeRecord, RunRecord, Stamps, Store, StoreError};
use crate::digest::Digest;
use crate::fs;
use crate::pieces::Recipe;

impl Store {
    /// Where a blob's bytes wait while they come; its directory is made. What an earlier try left there is a beginning
    /// of them, or should be.
    pub fn arrival(&self, digest: &Digest) -> Result<PathBuf, StoreError> {
        let directory = self.tmp().join("arriving");
        fs::create_directory(&directory)?;
        Ok(directory.join(digest.to_string()))
    }

    /// Whether a blob of the right size is there, whole or in pieces. It is not read: who uses it sees to that.
    pub fn has_object(&self, blob: &Blob) -> bool {
        let is_there = |digest: &Digest, size| {
            let found = std::fs::symlink_metadata(self.blob_path(digest));
            found.is_ok_and(|found| found.is_file() && found.len() == size)
        };
        let in_pieces = || {
            let recipe = Recipe::read(&self.recipe_path(&blob.digest));
            recipe.is_ok_and(|recipe| {
                recipe.size == blob.size && recipe.parts.iter().all(|(part, size)| is_there(part, *size))
            })
        };
        is_there(&blob.digest, blob.size) || in_pieces()
    }

    /// As [`Store::has_object`]; one that is there is named to gc, which leaves it.
    pub fn keeps_object(&self, blob: &Blob) -> Result<bool, StoreError> {
        let _section = self.sharing()?;
        let there = self.has_object(blob);
        if there {
            self.need_objects([blob.digest])?;
        }
        Ok(there)
    }

    /// Gives a file its place as an object, or as pieces if it is one to be cut. The caller has read it, and it is what
    /// `blob` says.
    pub fn take_object(&self, path: &Path, blob: &Blob) -> Result<(), StoreError> {
        let _section = self.sharing()?;
        self.need_objects([blob.digest])?;
        if self.cuts(&mut fs_err::File::open(path)?)?.is_some() {
            let put = self.take(path)?;
            let other = || StoreError::Damaged { what: format!("what arrived as object {}", blob.digest.short()) };
            return if put == *blob { Ok(()) } else { Err(other()) };
        }
        fs::sync(&fs_err::File::open(path)?)?;
        let object = self.blob_path(&blob.digest);
        if std::fs::symlink_metadata(&object).is_ok_and(|found| !found.is_file() || found.len() != blob.size) {
            self.quarantine(&object)?;
        }
        self.place(path, blob, &marked(path)?)
    }

    /// Reads a recipe of a blob that arrived. Errs if it cannot be one.
    pub fn arrived_recipe(blob: &Blob, bytes: &[u8]) -> Result<Recipe, StoreError> {
        let recipe = Recipe::parse(bytes).filter(|recipe| recipe.size == blob.size);
        recipe.ok_or_else(|| StoreError::Damaged { what: format!("the list of parts of {}", blob.digest.short()) })
    }

    /// Puts a recipe whose parts are there. Errs with [`StoreError::Damaged`] if they do not make up the blob.
    pub fn take_recipe(&self, blob: &Blob, bytes: &[u8]) -> Result<(), StoreError> {
        let recipe = Self::arrived_recipe(blob, bytes)?;
        let mut hasher = blake3::Hasher::new();
        for (part, _) in &recipe.parts {
            fs::each_block(&mut fs_err::File::open(self.blob_path(part))?, |block| {
                hasher.update(block);
                Ok(())
            })?;
        }
        if Digest::from(hasher.finalize()) != blob.digest {
            let what = format!("the list of parts of {}: they make up another file", blob.digest.short());
            return Err(StoreError::Damaged { what });
        }
        let _section = self.sharing()?;
        self.need_objects([blob.digest])?;
        self.put_recipe(blob, bytes)
    }

    /// Moves a file that arrived wrong aside, for people to look at.
    pub fn set_aside(&self, path: &Path) -> Result<(), StoreError> {
        self.quarantine(path)
    }

    /// The bytes of a manifest, as they are on the disk; they are checked.
    pub fn manifest_bytes(&self, id: &Digest) -> Result<Vec<u8>, StoreError> {
        // `manifest` says best what is wrong with one that cannot be read.
        let Ok(bytes) = fs::read(&self.manifest_path(id), LARGEST_MANIFEST) else {
            return Ok(self.manifest(id)?.bytes());
        };
        self.manifest_of(id, &bytes)?;
        Ok(bytes)
    }

    /// Reads a manifest that arrived, which is put by [`Store::put_manifest`] once its objects are there.
    ///
    /// Errs if the bytes are not those of the id, or no manifest, or one that would not be written so here.
    pub fn arrived_manifest(id: &Digest, bytes: &[u8]) -> Result<Manifest, StoreError> {
        let wrong = |what: &str| StoreError::Damaged { what: format!("manifest {} {what}", id.short()) };
        if Digest::of(bytes) != *id {
            return Err(wrong("does not have the digest that it is named by"));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|_| wrong("is no manifest"))?;
        if manifest.id() != *id {
            return Err(wrong("is of a later version"));
        }
        manifest.files.keys().try_for_each(|name| super::cas::check_name(name))?;
        Ok(manifest)
    }

    /// The bytes of a record, as they are on the disk.
    pub fn node_bytes(&self, key: &Digest) -> Result<Vec<u8>, StoreError> {
        Ok(fs_err::read(self.node_path(key))?)
    }

    /// Reads a record that arrived, which is put by [`Store::take_node`] once its artifact is there.
    ///
    /// Errs if it is not of this key; a key is the digest of its preimage.
    pub fn arrived_node(key: &Digest, bytes: &[u8]) -> Result<NodeRecord, StoreError> {
        let wrong = |what: &str| StoreError::Damaged { what: format!("the record of key {} {what}", key.short()) };
        let record: NodeRecord = serde_json::from_slice(bytes).map_err(|_| wrong("is none"))?;
        if record.key != *key || Digest::of_value(&record.preimage) != *key {
            return Err(wrong("is of another key"));
        }
        Ok(record)
    }

    /// Puts a record with the bytes that it arrived in. The first artifact recorded under a key stays, as long as it is
    /// whole; returns the artifact that the record has now.
    pub fn take_node(&self, record: &NodeRecord, bytes: &[u8]) -> Result<Digest, StoreError> {
        let _section = self.sharing()?;
        self.need_hits([(record.key, record.artifact)])?;
        if let Some(first) = self.node(&record.key)?
            && (first.artifact == record.artifact
                || self.health(&first.artifact, &mut Stamps::default())? == Health::Whole)
        {
            return Ok(first.artifact);
        }
        self.write(&self.node_path(&record.key), bytes)?;
        Ok(record.artifact)
    }

    /// The bytes of a run's record, if there is one.
    pub fn run_bytes(&self, run: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match fs_err::read(self.run_dir(run).join("run.json")) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a run's record with the bytes that it arrived in, unless there is one; returns whether there was none.
    ///
    /// Errs if its id could not have been given here: it becomes the name of a directory.
    pub fn take_run(&self, record: &RunRecord, bytes: &[u8]) -> Result<bool, StoreError> {
        let plain = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || byte == b'-';
        if record.run.is_empty() || record.run.len() > 64 || !record.run.bytes().all(plain) {
            return Err(StoreError::BadName(record.run.clone()));
        }
        let path = self.run_dir(&record.run).join("run.json");
        if path.exists() {
            return Ok(false);
        }
        self.write(&path, bytes)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn what_arrives_gets_its_place_and_nothing_wrong_does() {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = (directory.path().join("here"), directory.path().join("there"));
        let (here, there) = (Store::open(&here).unwrap(), Store::open(&there).unwrap());
        let made = record(&here, "a", "text").unwrap();
        here.put_node(&made).unwrap();
        let bytes = here.manifest_bytes(&made.artifact).unwrap();
        let manifest = Store::arrived_manifest(&made.artifact, &bytes).unwrap();
        assert!(Store::arrived_manifest(&made.key, &bytes).is_err());
        assert!(Store::arrived_manifest(&Digest::of(b"{}"), b"{}").is_err());
        let evil = br#"{"type":"files","files":{"../x":{"digest":"0000000000000000000000000000000000000000000000000000000000000000","size":1}}}"#;
        assert!(matches!(Store::arrived_manifest(&Digest::of(evil), evil), Err(StoreError::BadName(_))));
        let blob = manifest.files["rows.jsonl"];
        assert!(!there.has_object(&blob));
        let waiting = there.arrival(&blob.digest).unwrap();
        fs::write_atomic(&waiting, b"text").unwrap();
        there.take_object(&waiting, &blob).unwrap();
        assert!(there.has_object(&blob) && !waiting.exists());
        there.put_manifest(&manifest).unwrap();
        let bytes = here.node_bytes(&made.key).unwrap();
        let arrived = Store::arrived_node(&made.key, &bytes).unwrap();
        assert_eq!(there.take_node(&arrived, &bytes).unwrap(), made.artifact);
        assert_eq!(there.node_bytes(&made.key).unwrap(), bytes);
        assert!(Store::arrived_node(&made.artifact, &bytes).is_err());
        let forged = String::from_utf8(bytes).unwrap().replace("\"program\": \"a\"", "\"program\": \"b\"");
        assert!(Store::arrived_node(&made.key, forged.as_bytes()).is_err());
        // Another artifact under the key does not take the place of a whole one.
        let other = NodeRecord { artifact: record(&there, "b", "other").unwrap().artifact, ..made.clone() };
        let bytes = serde_json::to_vec(&other).unwrap();
        assert_eq!(there.take_node(&other, &bytes).unwrap(), made.artifact);
        fs::remove_file(&there.blob_path(&blob.digest)).unwrap();
        assert_eq!(there.take_node(&other, &bytes).unwrap(), other.artifact);
    }
}
