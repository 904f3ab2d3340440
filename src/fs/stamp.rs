//! What tells that a file is as it was.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

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

#[cfg(test)]
mod tests {
    use super::super::write_atomic;
    use super::*;
    use std::io::Write;

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
