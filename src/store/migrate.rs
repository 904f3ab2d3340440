//! From one format version to the next.
//!
//! Raise [`super::FORMAT`] only for what an older program would misread; a field more in a record or a directory more is
//! no new format. Then add a step to [`STEPS`], which makes a store of the version before into one of the new version:
//!
//! - It is called while no other process uses the store.
//! - It may be killed anywhere and is then called again on what it left, so each of its changes is one rename, and one
//!   that is made already is passed over. `VERSION` is raised after it, not by it.
//! - It moves or adds files and removes none that the old version needs before all that replaces them is on the disk.
//! - What it costs to make again (artifacts, records, rows) comes out with the same keys and ids.
//!
//! And keep a small store of the version before under `tests/it/fixtures/`, with a test that opens it and hits
//! everything in it.

use std::path::Path;

use super::{StoreError, live, lock, version};
use crate::fs;

/// Makes a store of one version into one of the next, in its directory.
type Step = fn(&Path) -> Result<(), StoreError>;

/// The step at `n` starts from version `n + 1`.
pub(super) const STEPS: &[Step] = &[];

/// Brings a store up to the version after the last step.
///
/// Errs with [`StoreError::InUse`] while another process has it open; with one that is read-only, too.
pub(super) fn migrate(root: &Path, steps: &[Step]) -> Result<(), StoreError> {
    let _lock = lock::whole(root)?;
    if live::any_lives(root)? {
        return Err(StoreError::InUse);
    }
    // Another process may have done it just now.
    let from = version(root)?.unwrap_or(1) as usize;
    for (step, number) in steps.iter().zip(1..).skip(from - 1) {
        tracing::info!("the cache is brought from format version {number} to {}", number + 1);
        step(root)?;
        fs::write_atomic_via(&root.join("tmp"), &root.join("VERSION"), format!("{}\n", number + 1).as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;
    use crate::fs::{Kind, with_fault_of};

    /// `old` becomes `new`, in which every letter is doubled.
    fn double(root: &Path) -> Result<(), StoreError> {
        let (old, new) = (root.join("old"), root.join("new"));
        if old.exists() {
            let text = fs_err::read_to_string(&old)?;
            let doubled: String = text.chars().flat_map(|letter| [letter, letter]).collect();
            fs::write_atomic_via(&root.join("tmp"), &new, doubled.as_bytes())?;
            fs::remove_file(&old)?;
        }
        Ok(())
    }

    fn shout(root: &Path) -> Result<(), StoreError> {
        let path = root.join("new");
        let text = fs_err::read_to_string(&path)?.to_uppercase();
        Ok(fs::write_atomic_via(&root.join("tmp"), &path, text.as_bytes())?)
    }

    #[test]
    fn each_step_is_made_once_wherever_it_fails() {
        for kind in [Kind::Full, Kind::Broken] {
            for n in 1.. {
                let directory = tempfile::tempdir().unwrap();
                drop(Store::open(directory.path()).unwrap());
                fs::write(&directory.path().join("old"), "ab").unwrap();
                let (first, reached) = with_fault_of(kind, n, || migrate(directory.path(), &[double, shout]));
                assert!(first.is_err() || !reached, "operation {n}");
                migrate(directory.path(), &[double, shout]).unwrap();
                assert_eq!(fs_err::read_to_string(directory.path().join("new")).unwrap(), "AABB");
                assert_eq!(version(directory.path()).unwrap(), Some(3));
                // A version that is not known any more is refused by this program.
                assert!(matches!(Store::open(directory.path()), Err(StoreError::NewerFormat { found: 3, .. })));
                if !reached {
                    assert!(n > 10, "only {n} operations");
                    break;
                }
            }
        }
    }

    #[test]
    fn it_waits_for_no_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let section = store.sharing().unwrap();
        assert!(matches!(migrate(directory.path(), &[double]), Err(StoreError::InUse)));
        drop(section);
        store.live_file().unwrap();
        assert!(matches!(migrate(directory.path(), &[double]), Err(StoreError::InUse)));
        drop(store);
        assert_eq!(version(directory.path()).unwrap(), Some(1));
    }
}
