//! Locks between processes, one per key that is worked on.
//!
//! They are `flock`s: the kernel lets go of them when their holder dies, however it dies.

use std::fs::TryLockError;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Store, StoreError};
use crate::digest::Digest;
use crate::fs;

/// The right to work on a key, until it is dropped or the process dies.
#[derive(Debug)]
pub struct KeyLock {
    _file: fs_err::File,
}

impl Store {
    /// Locks a key; if another process holds it, calls `waiting` once and waits.
    pub fn lock_key(&self, key: &Digest, waiting: &mut dyn FnMut()) -> Result<KeyLock, StoreError> {
        let mut told = false;
        loop {
            let path = self.key_lock_path(key);
            let file = self.lock_file(&path)?;
            match file.file().try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        waiting();
                    }
                    file.file().lock()?;
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            if is_at(&file, &path) {
                return Ok(KeyLock { _file: file });
            }
        }
    }

    /// Locks a key, or returns `None` at once if another process holds it.
    pub fn try_lock_key(&self, key: &Digest) -> Result<Option<KeyLock>, StoreError> {
        loop {
            let path = self.key_lock_path(key);
            let file = self.lock_file(&path)?;
            match file.file().try_lock() {
                Ok(()) if is_at(&file, &path) => return Ok(Some(KeyLock { _file: file })),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
    }

    /// Whether someone works at a key, as far as that can be told without writing.
    pub(super) fn is_key_locked(&self, key: &Digest) -> bool {
        let file = fs_err::File::open(self.key_lock_path(key));
        file.is_ok_and(|file| matches!(file.file().try_lock(), Err(TryLockError::WouldBlock)))
    }

    fn lock_file(&self, path: &Path) -> Result<fs_err::File, StoreError> {
        fs::create_directory(&self.root.join("locks"))?;
        Ok(fs::create(path)?)
    }

    pub(super) fn key_lock_path(&self, key: &Digest) -> PathBuf {
        self.root.join("locks").join(key.to_string())
    }
}

/// Whether a file that is locked now is still the one at its path: who held it before may have been gc, which removes it,
/// and a lock on a file that no one can find keeps no one out.
fn is_at(file: &fs_err::File, path: &Path) -> bool {
    let inode = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (held, there) = (file.metadata().map(inode), std::fs::metadata(path).map(inode));
    matches!((held, there), (Ok(held), Ok(there)) if held == there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_whose_file_was_removed_is_taken_at_the_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let key = Digest::of(b"key");
        let first = store.try_lock_key(&key).unwrap().unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| store.lock_key(&key, &mut || {}).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(30));
            fs::remove_file(&store.key_lock_path(&key)).unwrap();
            drop(first);
            let _second = second.join().unwrap();
            assert!(store.try_lock_key(&key).unwrap().is_none());
        });
    }

    #[test]
    fn a_key_is_locked_once_and_free_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let key = Digest::of(b"key");
        let lock = store.try_lock_key(&key).unwrap().unwrap();
        assert!(store.try_lock_key(&key).unwrap().is_none());
        let mut waited = false;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _lock = store.lock_key(&key, &mut || waited = true).unwrap();
            });
            std::thread::sleep(std::time::Duration::from_millis(30));
            drop(lock);
        });
        assert!(waited);
        assert!(store.try_lock_key(&key).unwrap().is_some());
    }
}
