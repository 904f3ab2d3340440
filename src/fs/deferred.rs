//! Waiting for the disk later, for many files at once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err::File;

use super::{absent_is_fine, crash, sync, sync_directory, sync_system};

thread_local! {
    /// What is to be waited for later, if anything is.
    static DEFERRED: RefCell<Option<Vec<PathBuf>>> = const { RefCell::new(None) };
}

/// Does `work` without waiting for the disk. Returns the files and directories that would have been waited for, too: what
/// was written is there when they went through [`settle`], and after a power cut may be torn until then.
pub fn deferred<T>(work: impl FnOnce() -> T) -> (T, Vec<PathBuf>) {
    let outer = DEFERRED.replace(Some(Vec::new()));
    let done = work();
    (done, DEFERRED.replace(outer).unwrap_or_default())
}

/// Has a path be waited for by the caller of [`deferred`]. Returns whether there is one.
pub fn defer(path: &Path) -> bool {
    DEFERRED.with_borrow_mut(|deferred| match deferred {
        Some(paths) => {
            paths.push(path.to_owned());
            true
        }
        None => false,
    })
}

/// What is to be waited for has another name.
pub(super) fn renamed(from: &Path, to: &Path) {
    DEFERRED.with_borrow_mut(|deferred| {
        deferred.iter_mut().flatten().filter(|path| *path == from).for_each(|path| to.clone_into(path));
    });
}

/// Waits until the disk has these files and directories; those that are gone are passed over. Many are waited for
/// together, with all else that is written on their file systems: the price of a wait is the wait, not the file.
pub fn settle(paths: &[PathBuf]) -> io::Result<()> {
    const FEW: usize = 6;
    let one = |path: &PathBuf| if path.is_dir() { sync_directory(path) } else { sync(&File::open(path)?) };
    if paths.len() <= FEW || crash::is_watched() {
        return paths.iter().try_for_each(|path| absent_is_fine(one(path)));
    }
    let mut systems = BTreeSet::new();
    for path in paths {
        let system = |path: &PathBuf| {
            if systems.insert(fs_err::metadata(path)?.dev()) { sync_system(path) } else { Ok(()) }
        };
        absent_is_fine(Some(path).map_or(Ok(()), system))?;
    }
    Ok(())
}
