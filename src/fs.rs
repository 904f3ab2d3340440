//! The only door to the disk for writes, so that tests can make the Nth of them fail; also time and file stamps.
//!
//! Every function that changes the disk counts what it does (`fault`): with `SAMI_FAULT=store-op:N` (or `with_fault` in
//! a test) the Nth change fails, and nothing is changed by it. What was interrupted by a signal is done again, what was
//! written in part is written on. A sync that failed is never tried again on the same file: the kernel may have dropped
//! what it could not write and call the next sync a success, so whoever sees it fail writes a new file.
//! (`crash` tells tests what a disk would have after the power went.)

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use fs_err::File;

mod crash;
mod deferred;
mod fault;
mod lines;
mod plain;
mod stamp;
mod transfer;
mod watch;

pub use crash::told;
pub use deferred::{defer, deferred, settle};
#[cfg(test)]
pub(crate) use fault::{Kind, with_fault, with_fault_of};
pub use lines::Lines;
pub use plain::{AtMost, list, open, read, read_text, walk};
pub use stamp::Stamp;
pub use transfer::{copy_range, hard_link, mark, reflink, rename_all, symlink};
pub use watch::{Aspect, Watch};

/// Tells files apart that one process writes at once.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Makes a change to the disk. One that a signal interrupted is made again.
fn change<T>(path: &Path, mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match fault::pass(path).and_then(|()| make()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            made => return made,
        }
    }
}

fn number(point: &str) -> Option<i64> {
    fault::asked(point)?.parse().ok()
}

/// The time, for people and file names; nothing may rest on it alone, for clocks jump. `SAMI_FAULT=clock:SECONDS`
/// moves it.
pub fn now() -> jiff::Timestamp {
    static SHIFT: OnceLock<i64> = OnceLock::new();
    let shift = *SHIFT.get_or_init(|| number("clock").unwrap_or(0));
    let now = jiff::Timestamp::now();
    now.checked_add(jiff::SignedDuration::from_secs(shift)).unwrap_or(now)
}

/// [`now`] as the standard library has it, to compare times of files with.
pub fn system_now() -> std::time::SystemTime {
    let nanoseconds = u64::try_from(now().as_nanosecond()).unwrap_or_default();
    std::time::UNIX_EPOCH + std::time::Duration::from_nanos(nanoseconds)
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
        let mut file = writer(&unfinished)?;
        if !write(&mut file)? {
            return Ok(false);
        }
        file.sync()?;
        rename(&unfinished, path).map(|()| true)
    })();
    if !matches!(written, Ok(true)) {
        discard(&unfinished);
    }
    written
}

/// Writes a file on which nothing rests once the machine has been off: it need not be on the disk.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    writer(path)?.write_all(bytes.as_ref())
}

/// As [`write()`], a file that no other user may read; what was there before is gone.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use fs_err::os::unix::fs::OpenOptionsExt;
    remove_file(path)?;
    let file = change(path, || fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path))?;
    crash::made(path)?;
    Writer { file }.write_all(bytes)
}

/// A fresh name in `directory` for a file that is being written.
pub fn unfinished(directory: &Path) -> PathBuf {
    directory.join(format!(".{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)))
}

/// Adds to the end of a file, which is made if it is absent, and waits until the disk has it. What failed may be there
/// in part: then nothing more is to be added to this file.
pub fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let is_new = !path.exists();
    let file = change(path, || fs_err::OpenOptions::new().create(true).append(true).open(path))?;
    let mut writer = Writer { file };
    if is_new {
        crash::made(path)?;
    }
    writer.write_all(bytes)?;
    writer.sync()?;
    match path.parent() {
        Some(directory) if is_new => sync_directory(directory),
        _ => Ok(()),
    }
}

/// A file that is being written. Each write is counted; that it may be short or interrupted is what `write_all` is for.
#[derive(Debug)]
pub struct Writer {
    file: File,
}

impl Writer {
    /// Waits until the disk has the file.
    pub fn sync(&self) -> io::Result<()> {
        sync(&self.file)
    }

    /// Lets [`is_held`] say yes until it is closed, however its process ends; where there are no locks, nothing.
    pub fn hold(&self) -> io::Result<()> {
        match self.file.file().lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.hold(),
            // Only readers need it.
            _ => Ok(()),
        }
    }
}

/// Whether some process holds a file: see [`Writer::hold`]. `None` where that cannot be found out.
pub fn is_held(file: &File) -> Option<bool> {
    match file.file().try_lock_shared() {
        Ok(()) => {
            let _ = file.file().unlock();
            Some(false)
        }
        Err(std::fs::TryLockError::WouldBlock) => Some(true),
        Err(std::fs::TryLockError::Error(_)) => None,
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = fault::pass_write(self.file.path(), bytes.len())?;
        self.file.write(&bytes[..most])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Creates a file, or empties it, to be written.
pub fn writer(path: &Path) -> io::Result<Writer> {
    Ok(Writer { file: create(path)? })
}

/// As [`append`], without waiting: for what may be lost.
pub fn append_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = change(path, || fs_err::OpenOptions::new().create(true).append(true).open(path))?;
    Writer { file }.write_all(bytes)
}

/// A place where a test may have the process killed: `SAMI_FAULT=kill:PLACE:N` kills it at the Nth call with this
/// place's name.
pub fn kill_point(place: &str) {
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = fault::asked("kill")?;
        let (place, count) = text.split_once(':')?;
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
    let open = || fs_err::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let is_new = !path.exists();
    let file = change(path, open)?;
    if is_new {
        crash::made(path)?;
    }
    Ok(file)
}

/// Replaces what a small file holds, in one write.
pub fn overwrite(file: &File, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    change(file.path(), || file.file().write_all_at(bytes, 0))?;
    file.set_len(bytes.len() as u64)
}

/// Creates a file, or empties it: one that is locked, or handed to another process or library. Else [`writer`].
pub fn create(path: &Path) -> io::Result<File> {
    let file = change(path, || File::create(path))?;
    crash::made(path)?;
    Ok(file)
}

/// Writes a block to a file that is open.
pub fn write_all(file: &mut File, block: &[u8]) -> io::Result<()> {
    let path = file.path().to_owned();
    change(&path, || file.write_all(block))
}

/// Copies `reader` into a new file, handing each block to `see`, and waits until the disk has it.
pub fn copy_to(reader: &mut impl Read, path: &Path, mut see: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut file = writer(path)?;
    let mut size = 0;
    each_block(reader, |block| {
        see(block);
        size += block.len() as u64;
        file.write_all(block)
    })?;
    file.sync()?;
    Ok(size)
}

/// Copies a file on which nothing rests once the machine has been off.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut file = writer(to)?;
    each_block(&mut File::open(from)?, |block| file.write_all(block))
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

/// Waits until the disk has the file, or leaves that to the caller of [`deferred()`].
pub fn sync(file: &File) -> io::Result<()> {
    if defer(file.path()) { Ok(()) } else { sync_now(file) }
}

fn sync_now(file: &File) -> io::Result<()> {
    let path = file.path();
    crash::synced(path, || change(path, || fault::pass_sync(path).and_then(|()| file.sync_all())))
}

/// Waits until the disk has the names in a directory, or leaves that to the caller of [`deferred()`].
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    if defer(directory) { Ok(()) } else { sync_directory_now(directory) }
}

fn sync_directory_now(directory: &Path) -> io::Result<()> {
    // What is above a name alone.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    change(directory, || File::open(directory)?.sync_all())?;
    crash::settled(directory)
}

/// Waits until the disk has a file that someone else wrote, and its name, or leaves that to the caller of [`deferred()`].
pub fn sync_named(path: &Path) -> io::Result<()> {
    sync(&File::open(path)?)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Waits until the disk has all that was done to the file system of a path.
pub fn sync_system(path: &Path) -> io::Result<()> {
    change(path, || Ok(rustix::fs::syncfs(File::open(path)?)?))
}

/// Renames, replacing what is there, and waits until the disk has the new name, or leaves that to the caller of
/// [`deferred()`].
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    rename_soon(from, to)?;
    deferred::renamed(from, to);
    to.parent().map_or(Ok(()), sync_directory)
}

/// Renames without waiting for the disk: what is there only as long as processes live, and what is on its way out.
pub fn rename_soon(from: &Path, to: &Path) -> io::Result<()> {
    change(to, || fs_err::rename(from, to))?;
    crash::renamed(from, to)
}

/// Makes a directory and those above it.
pub fn create_directory(path: &Path) -> io::Result<()> {
    create_directories(path).map(drop)
}

/// Makes a directory; errs if there is one. What is above it is there.
pub fn create_new_directory(path: &Path) -> io::Result<()> {
    change(path, || fs_err::create_dir(path))?;
    crash::made(path)
}

/// As [`create_directory`], and waits until the disk has the names of all that were made.
pub fn create_lasting_directory(path: &Path) -> io::Result<()> {
    for made in create_directories(path)? {
        made.parent().map_or(Ok(()), sync_directory)?;
    }
    Ok(())
}

/// Those that had to be made, the deepest first.
fn create_directories(path: &Path) -> io::Result<Vec<&Path>> {
    if path.is_dir() {
        return Ok(Vec::new());
    }
    let absent = |path: &&Path| !path.as_os_str().is_empty() && !path.is_dir();
    let made: Vec<&Path> = path.ancestors().take_while(absent).collect();
    change(path, || fs_err::create_dir_all(path))?;
    made.iter().rev().try_for_each(|path| crash::made(path))?;
    Ok(made)
}

/// Removes a file; one that is not there is removed already.
pub fn remove_file(path: &Path) -> io::Result<()> {
    absent_is_fine(change(path, || fs_err::remove_file(path)))?;
    crash::removed(path)
}

/// Removes a directory and all in it; one that is not there is removed already.
pub fn remove_directory(path: &Path) -> io::Result<()> {
    absent_is_fine(change(path, || fs_err::remove_dir_all(path)))?;
    crash::removed(path)
}

/// Removes all that is in a directory; one that is not there is empty already.
pub fn empty_directory(path: &Path) -> io::Result<()> {
    for entry in list(path)? {
        if fs_err::symlink_metadata(&entry)?.is_dir() { remove_directory(&entry)? } else { remove_file(&entry)? }
    }
    Ok(())
}

/// Removes a directory unless something is in it.
pub fn remove_if_empty(path: &Path) -> io::Result<()> {
    match change(path, || fs_err::remove_dir(path)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty) => return Ok(()),
        other => absent_is_fine(other)?,
    }
    crash::removed(path)
}

/// Sets the permissions to read-only for everyone.
pub fn protect(path: &Path) -> io::Result<()> {
    change(path, || fs_err::set_permissions(path, PermissionsExt::from_mode(0o444)))
}

/// Removes what an operation that failed left; that it cannot be removed is no news then.
pub fn discard(path: &Path) {
    let _ = fs_err::remove_file(path).and_then(|()| crash::removed(path));
}

/// `None` of what is not there.
pub fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Bytes that can still be written where a path is or will be; `None` where nobody says. `SAMI_FAULT=room:BYTES` says
/// that there are so many.
pub fn free(path: &Path) -> Option<u64> {
    if let Some(bytes) = number("room") {
        return u64::try_from(bytes).ok();
    }
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|ancestor| ancestor.exists())?;
    let system = rustix::fs::statvfs(there).ok()?;
    Some(system.f_bavail.saturating_mul(system.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_whole_or_absent_whatever_goes_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_atomic(&path, b"old").unwrap();
        for kind in [Kind::Full, Kind::Broken, Kind::Interrupted, Kind::Short] {
            for n in 1.. {
                write_atomic(&path, b"old").unwrap();
                let (result, reached) = with_fault_of(kind, n, || write_atomic(&path, b"new"));
                let text = fs_err::read_to_string(&path).unwrap();
                assert!(text == "old" || text == "new");
                assert_eq!(list(directory.path()).unwrap(), std::slice::from_ref(&path));
                if !reached {
                    assert!(n > 4);
                }
                if !reached || matches!(kind, Kind::Interrupted | Kind::Short) {
                    result.unwrap();
                    assert_eq!(text, "new");
                } else {
                    let error = result.unwrap_err();
                    assert_eq!(error.kind() == io::ErrorKind::StorageFull, kind == Kind::Full, "{error}");
                }
                if !reached {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_is_added_goes_on_after_a_signal_or_a_short_write() {
        let directory = tempfile::tempdir().unwrap();
        for kind in [Kind::Interrupted, Kind::Short] {
            for n in 1..8 {
                let path = directory.path().join(format!("{kind:?}-{n}"));
                append(&path, b"one\n").unwrap();
                with_fault_of(kind, n, || append(&path, b"two\n")).0.unwrap();
                assert_eq!(fs_err::read_to_string(&path).unwrap(), "one\ntwo\n");
            }
        }
    }
}
