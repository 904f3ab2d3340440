//! Locks between processes: one per key that is worked on, and one for the whole store.
//!
//! They are `flock`s: the kernel lets go of them when their holder dies, however it dies. Lock files of keys also say who
//! holds them, for machines that do not see each other's `flock`s: `claim`.

use std::fs::TryLockError;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::claim::{self, Holder};
use super::{Store, StoreError};
use crate::digest::Digest;
use crate::fs;

/// Between two tries at a lock.
const TICK: Duration = Duration::from_millis(20);

/// The right to work on a key, until it is dropped or the process dies.
#[derive(Debug)]
pub struct KeyLock {
    file: Arc<fs_err::File>,
}

impl KeyLock {
    /// Whether no one has taken it over, as may happen where one machine does not see another's locks.
    pub fn holds(&self) -> bool {
        is_at(&self.file, self.file.path()) && claim::holder(&self.file).is_some_and(|holder| holder == *Holder::me())
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        claim::disclaim(&self.file);
    }
}

impl Store {
    /// Locks a key; if another process holds it, calls `waiting` once and waits.
    pub fn lock_key(&self, key: &Digest, waiting: &mut dyn FnMut()) -> Result<KeyLock, StoreError> {
        let mut told = false;
        loop {
            if let Some(lock) = self.try_lock_key(key)? {
                return Ok(lock);
            }
            if !std::mem::replace(&mut told, true) {
                waiting();
            }
            std::thread::sleep(TICK);
        }
    }

    /// Locks a key, or returns `None` at once if another process holds it.
    pub fn try_lock_key(&self, key: &Digest) -> Result<Option<KeyLock>, StoreError> {
        let path = self.key_lock_path(key);
        loop {
            fs::create_directory(&self.root.join("locks"))?;
            let file = fs::open_or_create(&path)?;
            let locked = match file.file().try_lock() {
                // Who held it before may have been gc, which removes the file: a lock on a file that no one can find keeps
                // no one out.
                Ok(()) if !is_at(&file, &path) => continue,
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) if has_no_locks(&error) => false,
                Err(TryLockError::Error(error)) => return Err(error.into()),
            };
            fs::create_directory(&self.tmp())?;
            if claim::heeded(&file, &path, locked, &self.tmp())?.is_some() {
                return Ok(None);
            }
            let file = Arc::new(file);
            claim::claim(&file)?;
            return Ok(Some(KeyLock { file }));
        }
    }

    /// Whether someone works at a key, as far as that can be told without writing.
    pub(super) fn is_key_locked(&self, key: &Digest) -> bool {
        let path = self.key_lock_path(key);
        fs_err::File::open(&path).is_ok_and(|file| match file.file().try_lock() {
            Err(TryLockError::WouldBlock) => true,
            locked => claim::heeded(&file, &path, locked.is_ok(), &self.tmp()).is_ok_and(|holder| holder.is_some()),
        })
    }

    /// Who works at a key, as its lock file says.
    pub fn key_holder(&self, key: &Digest) -> Option<Holder> {
        claim::holder(&fs_err::File::open(self.key_lock_path(key)).ok()?)
    }

    pub(super) fn key_lock_path(&self, key: &Digest) -> PathBuf {
        self.root.join("locks").join(key.to_string())
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

/// Whether a file is still the one at its path.
fn is_at(file: &fs_err::File, path: &Path) -> bool {
    let inode = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (held, there) = (file.metadata().map(inode), std::fs::metadata(path).map(inode));
    matches!((held, there), (Ok(held), Ok(there)) if held == there)
}

/// Whether a file system has no locks to give, as some that are mounted over a network.
pub(super) fn has_no_locks(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL))
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
        assert_eq!(store.key_holder(&key).map(|holder| holder.process), Some(std::process::id()));
        assert!(store.is_key_locked(&key));
        std::thread::scope(|scope| {
            let second = scope.spawn(|| store.lock_key(&key, &mut || {}).unwrap());
            std::thread::sleep(Duration::from_millis(30));
            assert!(first.holds());
            fs::remove_file(&store.key_lock_path(&key)).unwrap();
            assert!(!first.holds());
            drop(first);
            let second = second.join().unwrap();
            assert!(store.try_lock_key(&key).unwrap().is_none());
            drop(second);
            assert!(!store.is_key_locked(&key));
        });
    }

    #[test]
    fn many_threads_take_turns() {
        let directory = tempfile::tempdir().unwrap();
        let key = Digest::of(b"key");
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let store = Store::open(directory.path()).unwrap();
                    for _ in 0..5 {
                        let _lock = store.lock_key(&key, &mut || {}).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        std::thread::sleep(Duration::from_millis(1));
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
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
