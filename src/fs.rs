//! The only door to the disk for writes, so that tests can make the Nth of them fail; also time and file stamps.
//!
//! Every function that changes the disk first passes `operation`, which counts. With `SAMI_FAULT=store-op:N` (or
//! `with_fault` in a test) the Nth operation fails as a full disk would, and nothing is changed by it.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use fs_err::File;
use serde::{Deserialize, Serialize};

use crate::env;

mod plain;
mod transfer;
mod watch;

pub use plain::{AtMost, open, read, read_text};
pub use transfer::{copy_range, hard_link, mark, reflink, rename_all, symlink};
pub use watch::{Aspect, Watch};

thread_local! {
    /// What is to be waited for later, if anything is.
    static DEFERRED: RefCell<Option<Vec<PathBuf>>> = const { RefCell::new(None) };
    /// Operations left until the one that fails, in a test on this thread.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Operations of this process, counted only while `SAMI_FAULT` asks for it.
static OPERATIONS: AtomicU64 = AtomicU64::new(0);
/// Tells files apart that one process writes at once.
static SERIAL: AtomicU64 = AtomicU64::new(0);

fn fault(point: &str) -> Option<i64> {
    env::FAULT.get()?.strip_prefix(point)?.strip_prefix(':')?.parse().ok()
}

/// Counts a change to the disk; errs if a test wants this one to fail.
fn operation(path: &Path) -> io::Result<()> {
    static FAILING: OnceLock<Option<i64>> = OnceLock::new();
    if let Some(failing) = *FAILING.get_or_init(|| fault("store-op"))
        && OPERATIONS.fetch_add(1, Ordering::Relaxed) + 1 == failing as u64
    {
        return Err(full(path));
    }
    match LEFT.get() {
        Some(left) if left > 0 => {
            LEFT.set(Some(left - 1));
            if left == 1 { Err(full(path)) } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

fn full(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, format!("no space left on device: `{}`", path.display()))
}

/// Runs `work` with the `n`th disk operation of this thread failing (from 1). Returns whether it was reached, too.
#[cfg(test)]
pub(crate) fn with_fault<T>(n: u64, work: impl FnOnce() -> T) -> (T, bool) {
    LEFT.set(Some(n));
    let result = work();
    let reached = LEFT.replace(None) == Some(0);
    (result, reached)
}

/// The time, for people and file names; nothing may rest on it alone, for clocks jump. `SAMI_FAULT=clock:SECONDS`
/// moves it.
pub fn now() -> jiff::Timestamp {
    static SHIFT: OnceLock<i64> = OnceLock::new();
    let shift = *SHIFT.get_or_init(|| fault("clock").unwrap_or(0));
    let now = jiff::Timestamp::now();
    now.checked_add(jiff::SignedDuration::from_secs(shift)).unwrap_or(now)
}

/// Writes a file whole or not at all: beside its place, to the disk, then renamed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomic_via(path.parent().unwrap_or(Path::new(".")), path, bytes)
}

/// As [`write_atomic`], with the directory named where the unfinished file lies; it is on the file system of `path`.
pub fn write_atomic_via(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_if(directory, path, &mut |out| out.write_all(bytes).map(|()| true)).map(drop)
}

/// As [`write_atomic_via`], of what `write` writes, if that returns true; returns what it returned.
pub fn write_if(
    directory: &Path,
    path: &Path,
    write: &mut dyn FnMut(&mut dyn Write) -> io::Result<bool>,
) -> io::Result<bool> {
    let unfinished = unfinished(directory);
    let written = (|| {
        let mut file = create(&unfinished)?;
        operation(&unfinished)?;
        if !write(&mut file)? {
            return Ok(false);
        }
        sync(&file)?;
        rename(&unfinished, path).map(|()| true)
    })();
    if !matches!(written, Ok(true)) {
        discard(&unfinished);
    }
    written
}

/// A fresh name in `directory` for a file that is being written.
pub fn unfinished(directory: &Path) -> PathBuf {
    directory.join(format!(".{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)))
}

/// Adds to the end of a file, which is made if it is absent, in one write, and waits until the disk has it.
pub fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    operation(path)?;
    let mut file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(bytes)?;
    operation(path)?;
    file.sync_data()
}

/// A place where a test may have the process killed: `SAMI_FAULT=kill:PLACE:N` kills it at the Nth call with this
/// place's name.
pub fn kill_point(place: &str) {
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = env::FAULT.get()?;
        let (place, count) = text.strip_prefix("kill:")?.split_once(':')?;
        Some((place.to_owned(), count.parse().ok()?))
    });
    if let Some((wanted, count)) = wanted
        && wanted == place
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *count
    {
        // Nothing is flushed or unwound: this stands for `kill -9`.
        std::process::abort();
    }
}

/// Opens a file to read and to write it, and makes it if it is absent; what it holds stays.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    operation(path)?;
    fs_err::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Replaces what a small file holds, in one write.
pub fn overwrite(file: &File, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    operation(file.path())?;
    file.file().write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)
}

/// Creates a file, or empties it.
pub fn create(path: &Path) -> io::Result<File> {
    operation(path)?;
    File::create(path)
}

/// Writes a block to a file that is open.
pub fn write_all(file: &mut File, block: &[u8]) -> io::Result<()> {
    operation(file.path())?;
    file.write_all(block)
}

/// Copies `reader` into a new file, handing each block to `see`, and waits until the disk has it.
pub fn copy_to(reader: &mut impl Read, path: &Path, mut see: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut file = create(path)?;
    let mut size = 0;
    each_block(reader, |block| {
        operation(path)?;
        see(block);
        size += block.len() as u64;
        file.write_all(block)
    })?;
    sync(&file)?;
    Ok(size)
}

/// Reads to the end in blocks of a MiB at most.
pub fn each_block(reader: &mut impl Read, see: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    each_block_of(1 << 20, reader, see)
}

/// As [`each_block`], in blocks of at most `size` bytes.
pub fn each_block_of(
    size: usize,
    reader: &mut impl Read,
    mut see: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut block = vec![0; size];
    loop {
        match reader.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(read) => see(&block[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits until the disk has the file, or leaves that to the caller of [`deferred`].
pub fn sync(file: &File) -> io::Result<()> {
    operation(file.path())?;
    if defer(file.path()) { Ok(()) } else { file.sync_all() }
}

/// Renames, replacing what is there, and waits until the disk has the new name, or leaves that to the caller of
/// [`deferred`].
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    operation(to)?;
    fs_err::rename(from, to)?;
    DEFERRED.with_borrow_mut(|deferred| {
        deferred.iter_mut().flatten().filter(|path| *path == from).for_each(|path| to.clone_into(path));
    });
    let Some(directory) = to.parent() else { return Ok(()) };
    operation(directory)?;
    if defer(directory) { Ok(()) } else { fs_err::File::open(directory)?.sync_all() }
}

/// Does `work` without waiting for the disk. Returns the files and directories that would have been waited for, too: what
/// was written is there when they went through [`settle`], and after a power cut may be torn until then.
pub fn deferred<T>(work: impl FnOnce() -> T) -> (T, Vec<PathBuf>) {
    let outer = DEFERRED.replace(Some(Vec::new()));
    let done = work();
    (done, DEFERRED.replace(outer).unwrap_or_default())
}

/// Has a path be waited for by the caller of [`deferred`], if there is one: what is there already may be what another
/// process has not waited for yet.
pub fn defer(path: &Path) -> bool {
    DEFERRED.with_borrow_mut(|deferred| match deferred {
        Some(paths) => {
            paths.push(path.to_owned());
            true
        }
        None => false,
    })
}

/// Waits until the disk has these files and directories; those that are gone are passed over. Many are waited for
/// together, with all else that is written on their file systems: the price of a wait is the wait, not the file.
pub fn settle(paths: &[PathBuf]) -> io::Result<()> {
    const FEW: usize = 6;
    let Some(first) = paths.first() else { return Ok(()) };
    operation(first)?;
    let mut systems = std::collections::BTreeSet::new();
    for path in paths {
        let there = (|| {
            if paths.len() <= FEW {
                return File::open(path)?.sync_all();
            }
            if systems.insert(fs_err::metadata(path)?.dev()) {
                rustix::fs::syncfs(File::open(path)?)?;
            }
            Ok(())
        })();
        absent_is_fine(there)?;
    }
    Ok(())
}

/// Renames without waiting for the disk: what is there only as long as processes live, and what is on its way out.
pub fn rename_soon(from: &Path, to: &Path) -> io::Result<()> {
    operation(to)?;
    fs_err::rename(from, to)
}

/// Writes to the end of an open file without waiting for the disk.
pub fn add(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    operation(file.path())?;
    file.write_all(bytes)
}

/// Makes a directory and those above it.
pub fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    operation(path)?;
    fs_err::create_dir_all(path)
}

/// Removes a file; one that is not there is removed already.
pub fn remove_file(path: &Path) -> io::Result<()> {
    operation(path)?;
    absent_is_fine(fs_err::remove_file(path))
}

/// Removes a directory and all in it; one that is not there is removed already.
pub fn remove_directory(path: &Path) -> io::Result<()> {
    operation(path)?;
    absent_is_fine(fs_err::remove_dir_all(path))
}

/// Removes all that is in a directory; one that is not there is empty already.
pub fn empty_directory(path: &Path) -> io::Result<()> {
    for entry in list(path)? {
        operation(&entry)?;
        let is_directory = fs_err::symlink_metadata(&entry)?.is_dir();
        absent_is_fine(if is_directory { fs_err::remove_dir_all(&entry) } else { fs_err::remove_file(&entry) })?;
    }
    Ok(())
}

/// Removes a directory unless something is in it.
pub fn remove_if_empty(path: &Path) -> io::Result<()> {
    operation(path)?;
    match fs_err::remove_dir(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        other => absent_is_fine(other),
    }
}

/// Sets the permissions to read-only for everyone.
pub fn protect(path: &Path) -> io::Result<()> {
    operation(path)?;
    fs_err::set_permissions(path, PermissionsExt::from_mode(0o444))
}

/// Removes what an operation that failed left; that it cannot be removed is no news then.
pub fn discard(path: &Path) {
    let _ = fs_err::remove_file(path);
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// What tells, without reading it, that a file is as it was. The change time is what an overwrite that sets the
/// modification time back cannot set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// Modification time in nanoseconds.
    pub modified: i64,
    /// Change time in nanoseconds.
    pub changed: i64,
    /// Inode.
    pub inode: u64,
    /// Device of the file system: inodes of two may be the same.
    pub device: u64,
}

impl Stamp {
    /// The stamp of a file, links followed; `None` if it is not there or no file.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => Ok(Some(Self {
                size: metadata.size(),
                modified: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
                changed: metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
                inode: metadata.ino(),
                device: metadata.dev(),
            })),
            Ok(_) => Ok(None),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(io::Error::new(error.kind(), format!("{error}: `{}`", path.display()))),
        }
    }

    /// Whether the file could no longer change without its stamp changing: file systems tick in milliseconds, so a
    /// file that changed just now could do so again within the tick.
    pub fn is_settled(&self) -> bool {
        const TICK: i128 = 20_000_000;
        jiff::Timestamp::now().as_nanosecond() - i128::from(self.changed) > TICK
    }
}

/// Bytes that can still be written where a path is or will be; `None` where nobody says. `SAMI_FAULT=room:BYTES` says
/// that there are so many.
pub fn free(path: &Path) -> Option<u64> {
    if let Some(bytes) = fault("room") {
        return u64::try_from(bytes).ok();
    }
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|ancestor| ancestor.exists())?;
    let system = rustix::fs::statvfs(there).ok()?;
    Some(system.f_bavail.saturating_mul(system.f_frsize))
}

/// The files under a directory, in the order of their paths; none if it is not there. Links are not followed.
pub fn walk(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for path in list(&directory)? {
            match fs_err::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => left.push(path),
                Ok(_) => files.push(path),
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// What is in a directory, in order; nothing if it is not there.
pub fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs_err::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_whole_or_absent_whatever_fails() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_atomic(&path, b"old").unwrap();
        for n in 1.. {
            let (result, reached) = with_fault(n, || write_atomic(&path, b"new"));
            let text = fs_err::read_to_string(&path).unwrap();
            assert!(text == "old" || text == "new");
            if !reached {
                result.unwrap();
                assert_eq!(text, "new");
                assert!(n > 4);
                break;
            }
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
            assert_eq!(list(directory.path()).unwrap(), std::slice::from_ref(&path));
        }
    }

    #[test]
    fn a_stamp_sees_an_overwrite_that_restores_the_modification_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_atomic(&path, b"abc").unwrap();
        let before = Stamp::of(&path).unwrap().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let mut file = fs_err::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(b"xyz").unwrap();
        let modified = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(before.modified as u64);
        file.file().set_modified(modified).unwrap();
        let after = Stamp::of(&path).unwrap().unwrap();
        assert_eq!((after.size, after.modified, after.inode), (before.size, before.modified, before.inode));
        assert_ne!(after, before);
        assert_eq!(Stamp::of(&directory.path().join("none")).unwrap(), None);
    }
}
