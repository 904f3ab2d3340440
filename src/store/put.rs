//! Putting files into the store.
//!
//! That an object exists never proves that it is whole: a put reads what is there and replaces it if it is damaged. What
//! this process has read or written itself it knows by its stamp (`Known`) and does not read again.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fs_err::File;

use super::cas::check_name;
use super::hash::hash_file;
use super::thin::Scan;
use super::{Blob, Manifest, Store, StoreError};
use crate::digest::Digest;
use crate::fs::{self, Stamp};
use crate::pieces::Recipe;

/// Files that were found whole, or put, and their stamps then.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<PathBuf, Stamp>>);

impl Known {
    fn files(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Stamp>> {
        // Each change of the map is one call: what a thread that panicked left is whole.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Store {
    /// Takes another process's word, or an earlier look's, that files were whole when they had these stamps.
    pub fn trust(&self, files: impl IntoIterator<Item = (PathBuf, Stamp)>) {
        self.known.files().extend(files);
    }

    /// The files of an artifact, in the store or outside, that this process knows to be whole, for [`Store::trust`].
    pub fn known(&self, id: &Digest) -> Result<Vec<(PathBuf, Stamp)>, StoreError> {
        let mut paths = vec![self.manifest_path(id)];
        for blob in self.manifest(id)?.files.values() {
            let place = self.place_of_blob(&blob.digest);
            if Recipe::is_at(&place) {
                paths.extend(self.stands_on(&blob.digest)?.iter().map(|part| self.blob_path(part)));
            }
            paths.push(place);
        }
        let known = self.known.files();
        Ok(paths
            .into_iter()
            .filter_map(|path| known.get_key_value(&path).map(|(path, stamp)| (path.clone(), *stamp)))
            .collect())
    }

    /// Whether a file with this stamp is known to be whole.
    pub(super) fn knows(&self, path: &Path, stamp: &Stamp) -> bool {
        self.known.files().get(path) == Some(stamp)
    }

    /// Takes note of a file that this process has just put and that was `marked` before its bytes were read. Since then
    /// its change time is another, for it was protected and renamed; not so its modification time, or someone wrote to it.
    pub(super) fn learn(&self, path: &Path, marked: &Stamp) -> Result<(), StoreError> {
        match Stamp::of(path)? {
            Some(stamp) if (stamp.size, stamp.modified) == (marked.size, marked.modified) => {
                self.known.files().insert(path.to_owned(), stamp);
                Ok(())
            }
            Some(stamp) if stamp.inode == marked.inode => {
                self.quarantine(path)?;
                Err(written_to(path))
            }
            // Another process has put the same since.
            _ => Ok(()),
        }
    }

    /// Puts bytes, for a manifest that is to be put in the same [section](Store::sharing).
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Blob, StoreError> {
        let blob = Blob { digest: Digest::of(bytes), size: bytes.len() as u64 };
        if self.has_whole(&blob)? {
            return Ok(blob);
        }
        let unfinished = self.unfinished()?;
        let placed = fs::copy_to(&mut &*bytes, &unfinished, |_| {}).map_err(StoreError::from);
        let placed = placed.and_then(|_| self.place(&unfinished, &blob, &marked(&unfinished)?));
        if placed.is_err() {
            fs::discard(&unfinished);
        }
        placed.map(|()| blob)
    }

    /// Puts a file, reading it once. One that lies in the store's `tmp/` is moved, one that is an object is there already;
    /// any other is cloned where the file system can, else copied and hashed on the way.
    pub fn put_file(&self, path: &Path) -> Result<Blob, StoreError> {
        if let Some(blob) = self.object_at(path)? {
            return if self.has_whole(&blob)? {
                Ok(blob)
            } else {
                Err(StoreError::Damaged {
                    what: format!("`{}` does not have the digest that it is named by", path.display()),
                })
            };
        }
        if self.is_ours(path)? {
            return self.take(path);
        }
        let mut source = File::open(path)?;
        let unfinished = self.unfinished()?;
        let placed = (|| {
            if fs::reflink(&source, &unfinished)? {
                return self.take(&unfinished);
            }
            let mut scan = Scan::new(self.cuts(&mut source)?);
            fs::copy_to(&mut File::open(path)?, &unfinished, |block| scan.update(block))?;
            let (blob, parts) = scan.finish();
            self.settle(&unfinished, blob, parts, &marked(&unfinished)?)
        })();
        if placed.is_err() {
            fs::discard(&unfinished);
        }
        placed
    }

    /// Puts files as an artifact; `files` maps their names in it to where they are. Files under the store's `tmp/`
    /// are moved.
    pub fn put_artifact(&self, kind: &str, files: &BTreeMap<String, PathBuf>) -> Result<Digest, StoreError> {
        let _section = self.sharing()?;
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

    /// Hashes a file that is the store's own and moves it to its place.
    pub(super) fn take(&self, path: &Path) -> Result<Blob, StoreError> {
        // Before it is read: whoever has it open still and writes to it later will be noticed.
        let marked = marked(path)?;
        let mut file = File::open(path)?;
        let (blob, parts) = match self.cuts(&mut file)? {
            None => (hash_file(path)?, None),
            cuts => {
                let mut scan = Scan::new(cuts);
                fs::each_block(&mut File::open(path)?, |block| {
                    scan.update(block);
                    Ok(())
                })?;
                scan.finish()
            }
        };
        self.settle(path, blob, parts, &marked)
    }

    /// Moves a file of `tmp/` that was hashed to its place, or drops it if the store has its like.
    fn settle(
        &self,
        path: &Path,
        blob: Blob,
        parts: Option<Vec<(Digest, u64)>>,
        marked: &Stamp,
    ) -> Result<Blob, StoreError> {
        let has_object = std::fs::symlink_metadata(self.blob_path(&blob.digest)).is_ok();
        match parts {
            // Pieces that are there are looked at one by one.
            Some(parts) if !(has_object && self.has_whole_object(&blob)?) => {
                self.place_pieces(path, &blob, parts, marked)?;
            }
            None if !self.has_whole(&blob)? => {
                fs::sync(&File::open(path)?)?;
                self.place(path, &blob, marked)?;
                return Ok(blob);
            }
            _ => {}
        }
        fs::remove_file(path)?;
        Ok(blob)
    }

    /// Takes back the manifest of an artifact that was just put, if files that it lists are gone since.
    pub fn withdraw(&self, id: &Digest) {
        let Ok(manifest) = self.manifest(id) else { return };
        if manifest.files.values().any(|blob| !self.has_object(blob)) {
            fs::discard(&self.manifest_path(id));
        }
    }

    pub(super) fn unfinished(&self) -> Result<PathBuf, StoreError> {
        fs::create_directory(&self.tmp())?;
        Ok(fs::unfinished(&self.tmp()))
    }

    /// Whether a file may be moved: it lies under `tmp/`, is no link, and has no second name.
    fn is_ours(&self, path: &Path) -> Result<bool, StoreError> {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs_err::symlink_metadata(path)?;
        Ok(path.starts_with(self.tmp()) && metadata.is_file() && metadata.nlink() == 1)
    }

    /// The blob that a path is the object or the recipe of, going by its name.
    fn object_at(&self, path: &Path) -> Result<Option<Blob>, StoreError> {
        let Ok(within) = path.strip_prefix(self.root.join("objects")) else { return Ok(None) };
        let hex: String = within.iter().filter_map(OsStr::to_str).collect();
        let Ok(digest) = hex.trim_end_matches(crate::pieces::SUFFIX).parse() else { return Ok(None) };
        let size = if Recipe::is_at(path) { Recipe::read(path)?.size } else { fs_err::metadata(path)?.len() };
        Ok(Some(Blob { digest, size }))
    }

    /// Whether a blob is there and whole, in one or in pieces. What of it is damaged is moved aside.
    pub fn has_whole(&self, blob: &Blob) -> Result<bool, StoreError> {
        if self.has_whole_object(blob)? {
            return Ok(true);
        }
        if std::fs::symlink_metadata(self.recipe_path(&blob.digest)).is_err() {
            return Ok(false);
        }
        let (mut seen, mut known, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        let flaw = self.examine_pieces(blob, &|path, stamp| self.knows(path, stamp), &mut |path, stamp| {
            let paths = if self.knows(path, &stamp) { &mut known } else { &mut unknown };
            paths.push(path.to_owned());
            seen.extend(stamp.is_settled().then(|| (path.to_owned(), stamp)));
        })?;
        match flaw {
            None => {
                // As for a whole object: whoever put them may not have waited for the disk yet.
                known.iter().for_each(|path| _ = fs::defer(path));
                unknown.iter().try_for_each(|path| fs::sync_named(path))?;
                self.trust(seen);
                Ok(true)
            }
            Some(super::thin::Flaw::Missing(_)) => Ok(false),
            Some(super::thin::Flaw::Damaged(path)) => {
                self.quarantine(&path)?;
                Ok(false)
            }
        }
    }

    /// Whether an object is there and whole. One that is damaged is moved aside.
    pub(super) fn has_whole_object(&self, blob: &Blob) -> Result<bool, StoreError> {
        let path = self.blob_path(&blob.digest);
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(false);
        }
        if let Some(stamp) = Stamp::of(&path)? {
            if self.knows(&path, &stamp) {
                fs::defer(&path);
                return Ok(true);
            }
            if stamp.size == blob.size && hash_file(&path).is_ok_and(|read| read == *blob) {
                // Whoever put it may not have waited for the disk yet, or been killed before.
                fs::sync_named(&path)?;
                if stamp.is_settled() {
                    self.trust([(path, stamp)]);
                }
                return Ok(true);
            }
        }
        self.quarantine(&path)?;
        Ok(false)
    }

    /// Moves a synced file to where its digest says.
    pub(super) fn place(&self, path: &Path, blob: &Blob, marked: &Stamp) -> Result<(), StoreError> {
        let object = self.blob_path(&blob.digest);
        fs::protect(path)?;
        if let Some(directory) = object.parent() {
            fs::create_lasting_directory(directory)?;
        }
        fs::rename(path, &object)?;
        self.learn(&object, marked)
    }
}

impl Store {
    /// Writes a small file whole or not at all, and knows it then. It is marked before it has its name: of two that put the
    /// same at once each knows its own file.
    pub(super) fn write_known(&self, path: &Path, bytes: &[u8], protect: bool) -> Result<(), StoreError> {
        if let Some(directory) = path.parent() {
            fs::create_lasting_directory(directory)?;
        }
        if path.is_dir() {
            self.quarantine(path)?;
        }
        let unfinished = self.unfinished()?;
        let written = (|| {
            fs::copy_to(&mut &*bytes, &unfinished, |_| {})?;
            let mark = marked(&unfinished)?;
            if protect {
                fs::protect(&unfinished)?;
            }
            fs::rename(&unfinished, path)?;
            self.learn(path, &mark)
        })();
        if written.is_err() {
            fs::discard(&unfinished);
        }
        written
    }
}

/// Marks a file and takes its stamp.
pub(super) fn marked(path: &Path) -> Result<Stamp, StoreError> {
    fs::mark(path)?;
    Stamp::of(path)?.ok_or_else(|| written_to(path))
}

/// That a file did not stay as it was while it was put.
pub(super) fn written_to(path: &Path) -> StoreError {
    StoreError::Damaged { what: format!("`{}` was written to while it was put into the cache", path.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_is_written_to_while_it_is_put_is_no_object() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let staged = store.unfinished().unwrap();
        fs_err::write(&staged, "good").unwrap();
        let mark = marked(&staged).unwrap();
        let blob = hash_file(&staged).unwrap();
        let mut open = fs_err::OpenOptions::new().write(true).open(&staged).unwrap();
        open.write_all(b"evil").unwrap();
        let error = store.settle(&staged, blob, None, &mark).unwrap_err().to_string();
        assert!(error.contains("was written to while"), "{error}");
        assert!(!store.blob_path(&blob.digest).exists());
        // One that another process put in the same moment is as good.
        store.put_bytes(b"good").unwrap();
        store.learn(&store.blob_path(&blob.digest), &mark).unwrap();
        assert!(store.has_whole(&blob).unwrap());
    }

    #[test]
    fn many_put_the_same_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let text = crate::store::thin::tests::tensors(&[("a", &vec![7; 100_000]), ("b", &vec![8; 100_000])]);
        let put = |_| {
            let mut store = Store::open(directory.path()).unwrap();
            store.thin_from = 1000;
            for round in 0..20u8 {
                let staged = store.unfinished().unwrap();
                fs_err::write(&staged, [&text[..], &[]].concat()).unwrap();
                store.put_file(&staged).unwrap();
                store.put_bytes(&[round; 10]).unwrap();
                store.put_manifest(&Manifest { kind: format!("k{round}"), files: BTreeMap::new() }).unwrap();
            }
        };
        std::thread::scope(|scope| {
            (0..4).map(|n| scope.spawn(move || put(n))).collect::<Vec<_>>().into_iter().for_each(|t| t.join().unwrap());
        });
        assert!(Store::open(directory.path()).unwrap().verify(&mut |_, _| {}).unwrap().is_whole());
    }

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
}
