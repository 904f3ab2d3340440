//! Waiting for the disk later, for much at once.

use std::cell::RefCell;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err::File;
use indexmap::IndexSet;

use super::{absent_is_none, crash, discard, sync_directory_now, sync_now, sync_system};

thread_local! {
    /// What is to be waited for later, if anything is.
    static DEFERRED: RefCell<Option<IndexSet<PathBuf>>> = const { RefCell::new(None) };
}

/// What was to be waited for has another name.
pub(super) fn renamed(from: &Path, to: &Path) {
    DEFERRED.with_borrow_mut(|deferred| {
        if let Some(paths) = deferred
            && let Some((at, _)) = paths.swap_remove_full(from)
            && let (last, true) = paths.insert_full(to.to_owned())
        {
            paths.swap_indices(at, last);
        }
    });
}

/// Does `work` without waiting for the disk. Returns the files and directories that would have been waited for, too: what
/// was written is there when they went through [`settle`], and after a power cut may be torn until then.
pub fn deferred<T>(work: impl FnOnce() -> T) -> (T, Vec<PathBuf>) {
    let outer = DEFERRED.replace(Some(IndexSet::new()));
    let done = work();
    (done, DEFERRED.replace(outer).into_iter().flatten().collect())
}

/// Has a path be waited for by the caller of [`deferred()`], if there is one: what is there already may be what another
/// process has not waited for yet.
pub fn defer(path: &Path) -> bool {
    DEFERRED.with_borrow_mut(|deferred| match deferred {
        Some(paths) => {
            paths.insert(path.to_owned());
            true
        }
        None => false,
    })
}

/// Waits until the disk has these files and directories; those that are gone are passed over. Many are waited for
/// together, with all else that is written on their file systems: the price of a wait is the wait, not the file.
///
/// A file that could not be synced is removed: later syncs would call it safe.
pub fn settle(paths: &[PathBuf]) -> io::Result<()> {
    const FEW: usize = 6;
    if paths.len() > FEW {
        let mut systems = std::collections::BTreeSet::new();
        let mut together = || {
            for path in paths {
                let system = absent_is_none(fs_err::metadata(path))?.map(|metadata| metadata.dev());
                if system.is_some_and(|system| systems.insert(system)) {
                    sync_system(path)?;
                }
            }
            Ok::<_, io::Error>(())
        };
        if together().is_ok() {
            return paths.iter().try_for_each(|path| crash::lasting(path));
        }
    }
    let mut settled = Ok(());
    for path in paths {
        let Some(file) = absent_is_none(File::open(path))? else { continue };
        if file.metadata()?.is_dir() {
            settled = settled.and(sync_directory_now(path));
        } else if let Err(error) = sync_now(&file) {
            discard(path);
            settled = settled.and(Err(error));
        }
    }
    settled
}
