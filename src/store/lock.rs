//! Locks between processes: one per key that is worked on, and one for the whole store.
//!
//! They are `flock`s: the kernel lets go of them when their holder dies, however it dies.

use std::fs::TryLockError;
use std::io;
use std::path::Path;

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
        let file = self.lock_file(key)?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.file().lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(KeyLock { _file: file })
    }

    /// Locks a key, or returns `None` at once if another process holds it.
    pub fn try_lock_key(&self, key: &Digest) -> Result<Option<KeyLock>, StoreError> {
        let file = self.lock_file(key)?;
        match file.file().try_lock() {
            Ok(()) => Ok(Some(KeyLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    fn lock_file(&self, key: &Digest) -> Result<fs_err::File, StoreError> {
        let directory = self.root.join("locks");
        fs::create_directory(&directory)?;
        Ok(fs::create(&directory.join(key.to_string()))?)
    }

    /// Makes this process the only one that uses the store, or errs. The lock ends with the store.
    pub(super) fn lock_whole(&self) -> Result<(), StoreError> {
        let Some(file) = &self.shared else {
            let error = io::Error::new(io::ErrorKind::PermissionDenied, "the cache directory cannot be written");
            return Err(error.into());
        };
        match file.file().try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                // Trying to turn a shared lock into an exclusive one may have let go of it.
                file.file().lock_shared()?;
                Err(StoreError::InUse)
            }
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

/// Takes the lock of a whole store for this process alone, or errs.
pub(super) fn whole(root: &Path) -> Result<fs_err::File, StoreError> {
    fs::create_directory(&root.join("locks"))?;
    let file = fs::create(&root.join("locks/store"))?;
    match file.file().try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Takes the store's lock shared; waits while gc has it. `None` where there is no lock and none can be made.
pub(super) fn share(root: &Path) -> Result<Option<fs_err::File>, StoreError> {
    let path = root.join("locks/store");
    let file = match fs_err::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match fs::create_directory(&root.join("locks")).and_then(|()| fs::create(&path)) {
                Ok(file) => file,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(error) => return Err(error.into()),
    };
    file.file().lock_shared()?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn the_whole_store_is_locked_only_when_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let other = Store::open(directory.path()).unwrap();
        assert!(matches!(store.lock_whole(), Err(StoreError::InUse)));
        drop(other);
        store.lock_whole().unwrap();
    }
}
