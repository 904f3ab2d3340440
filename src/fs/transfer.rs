//! From one file to another without a detour: clones, links, copies within the kernel; and many new names at once.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use fs_err::File;
use rustix::io::Errno;

use super::{change, crash, create, discard, each_block, rename_soon, sync_directory, write_all};

/// Makes `to` a clone of `from`: it shares blocks with it until one of the two is written to. `false`, and no file, where
/// the file system cannot or the two are on different ones.
pub fn reflink(from: &File, to: &Path) -> io::Result<bool> {
    let file = create(to)?;
    change(to, || Ok(()))?;
    match rustix::fs::ioctl_ficlone(file.file(), from.file()) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
            discard(to);
            Ok(false)
        }
        Err(error) => {
            discard(to);
            Err(error.into())
        }
    }
}

/// Gives a file a second name. `false` where that cannot be: another file system, or one without such names.
pub fn hard_link(from: &Path, to: &Path) -> io::Result<bool> {
    match change(to, || std::fs::hard_link(from, to)) {
        Ok(()) => crash::made(to).map(|()| true),
        Err(error) if matches!(error.kind(), io::ErrorKind::CrossesDevices | io::ErrorKind::TooManyLinks) => Ok(false),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(false),
        Err(error) => Err(io::Error::new(error.kind(), format!("{error}: `{}`", to.display()))),
    }
}

/// Makes a symbolic link at `to`.
pub fn symlink(from: &Path, to: &Path) -> io::Result<()> {
    change(to, || fs_err::os::unix::fs::symlink(from, to))?;
    crash::made(to)
}

/// Adds `size` bytes of a file, from `at` on, to the end of another. The kernel does it, sharing blocks where the file
/// system can. Not synced.
pub fn copy_range(from: &File, at: u64, size: u64, to: &mut File) -> io::Result<()> {
    const MOST: u64 = 64 << 20;
    let (mut at, mut left) = (at, size);
    while left > 0 {
        change(to.path(), || Ok(()))?;
        let step = left.min(MOST) as usize;
        match rustix::fs::copy_file_range(from.file(), Some(&mut at), to.file(), None, step) {
            // Nothing: at the end, or of a file system that has it wrong; reading tells.
            Ok(0) | Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                return read_range(from, at, left, to);
            }
            // The kernel moves `at` on.
            Ok(copied) => left -= copied as u64,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => {
                let error = io::Error::from(error);
                return Err(io::Error::new(error.kind(), format!("{error}: `{}`", to.path().display())));
            }
        }
    }
    Ok(())
}

fn read_range(from: &File, at: u64, size: u64, to: &mut File) -> io::Result<()> {
    // Through a description of its own, so that the place in `from` stays.
    let mut source = File::open(from.path())?;
    source.seek(SeekFrom::Start(at))?;
    let mut copied = 0;
    each_block(&mut source.take(size), |block| {
        copied += block.len() as u64;
        write_all(to, block)
    })?;
    if copied == size {
        return Ok(());
    }
    let what = format!("`{}` is shorter than it should be", from.path().display());
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, what))
}

/// Sets a file's modification time to now, to the nanosecond. The kernel's own times tick in milliseconds, so that whoever
/// writes to it later leaves another time, however soon that is: its stamp can be gone by at once.
pub fn mark(path: &Path) -> io::Result<()> {
    let nanoseconds = jiff::Timestamp::now().as_nanosecond().try_into().unwrap_or_default();
    change(path, || File::open(path)?.file().set_modified(UNIX_EPOCH + Duration::from_nanos(nanoseconds)))
}

/// Renames many files, each replacing what is there, then waits until the disk has the new names: once per directory.
pub fn rename_all<'a>(pairs: impl IntoIterator<Item = (&'a Path, &'a Path)>) -> io::Result<()> {
    let mut directories: BTreeSet<PathBuf> = BTreeSet::new();
    for (from, to) in pairs {
        rename_soon(from, to)?;
        directories.extend(to.parent().map(Path::to_owned));
    }
    directories.iter().try_for_each(|directory| sync_directory(directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_write_right_after_a_mark_shows_in_the_stamp() {
        let directory = tempfile::tempdir().unwrap();
        for n in 0..20 {
            let path = directory.path().join(n.to_string());
            fs_err::write(&path, "good").unwrap();
            mark(&path).unwrap();
            let stamp = super::super::Stamp::of(&path).unwrap();
            fs_err::OpenOptions::new().write(true).open(&path).unwrap().write_all(b"evil").unwrap();
            assert_ne!(super::super::Stamp::of(&path).unwrap(), stamp);
        }
    }

    #[test]
    fn ranges_are_copied_one_after_another() {
        let directory = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
        fs_err::write(&from, &bytes).unwrap();
        let source = File::open(&from).unwrap();
        let mut file = create(&to).unwrap();
        copy_range(&source, 7, 1_500_000, &mut file).unwrap();
        copy_range(&source, 1_500_007, 5, &mut file).unwrap();
        read_range(&source, 0, 3, &mut file).unwrap();
        drop(file);
        assert_eq!(fs_err::read(&to).unwrap(), [&bytes[7..1_500_012], &bytes[..3]].concat());
        let error = copy_range(&source, 2_999_999, 2, &mut create(&to).unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // Whether this file system can or not: a clone is the file, and no clone is no file.
        match reflink(&source, &to).unwrap() {
            true => assert_eq!(fs_err::read(&to).unwrap(), bytes),
            false => assert!(!to.exists()),
        }
    }
}
