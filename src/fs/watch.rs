//! Files that an answer rests on, and whether any of them is other than it was.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags};

use super::Stamp;

/// What is looked at of a watched path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aspect {
    /// Whether it is the same file or directory with the same content (of a directory: names), by its stamp.
    Content,
    /// Whether it is the same file, whatever is in it now.
    Identity,
}

/// A path and what it was like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    path: PathBuf,
    aspect: Aspect,
    /// All 0 if there was nothing.
    numbers: [u64; 4],
}

impl Watch {
    /// Looks at a path, links followed, before what is there is read. `None` if it changed so short a while ago that it could
    /// change again without that showing.
    pub fn of(path: &Path, aspect: Aspect) -> io::Result<Option<Self>> {
        let path = std::path::absolute(path)?;
        let (numbers, changed) = look(&path, aspect)?;
        let stamp = Stamp { size: 0, modified: 0, changed, inode: 0, device: 0 };
        let steady = aspect == Aspect::Identity || stamp.is_settled();
        Ok(steady.then_some(Self { path, aspect, numbers }))
    }

    /// Whether it is as it was.
    pub fn holds(&self) -> io::Result<bool> {
        Ok(look(&self.path, self.aspect)?.0 == self.numbers)
    }

    /// Writes it down; [`Watch::read`] reads it.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        use std::os::unix::ffi::OsStrExt;
        let path = self.path.as_os_str().as_bytes();
        bytes.push(u8::from(self.aspect == Aspect::Identity));
        self.numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend((path.len() as u32).to_le_bytes());
        bytes.extend(path);
    }

    /// Reads one that was written down from the front of `bytes`.
    pub fn read(bytes: &mut &[u8]) -> Option<Self> {
        use std::os::unix::ffi::OsStrExt;
        let (aspect, rest) = bytes.split_first()?;
        let (numbers, rest) = rest.split_first_chunk::<32>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (path, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        *bytes = rest;
        let aspect = if *aspect == 0 { Aspect::Content } else { Aspect::Identity };
        let mut each = numbers.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number));
        let numbers = std::array::from_fn(|_| each.next().unwrap_or(0));
        Some(Self { path: std::ffi::OsStr::from_bytes(path).into(), aspect, numbers })
    }
}

/// What a path is like, and when that changed last, in nanoseconds.
fn look(path: &Path, aspect: Aspect) -> io::Result<([u64; 4], i64)> {
    let found = match rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::BTIME) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(([0; 4], 0)),
        Err(error) => return Err(error.into()),
    };
    let (modified, changed) = (nanoseconds(&found.stx_mtime), nanoseconds(&found.stx_ctime));
    let numbers = match aspect {
        Aspect::Content => [found.stx_size, modified as u64, changed as u64, found.stx_ino],
        // Numbers of inodes are used again, but not at the same time.
        Aspect::Identity => [found.stx_ino, nanoseconds(&found.stx_btime) as u64, 1, 0],
    };
    Ok((numbers, changed))
}

fn nanoseconds(time: &rustix::fs::StatxTimestamp) -> i64 {
    time.tv_sec * 1_000_000_000 + i64::from(time.tv_nsec)
}

impl Stamp {
    /// As [`Stamp::of`], of a path that starts from an open directory, at the price of one call.
    pub fn within(directory: &impl std::os::fd::AsFd, path: &str) -> io::Result<Option<Self>> {
        const WANTED: StatxFlags = StatxFlags::TYPE
            .union(StatxFlags::SIZE)
            .union(StatxFlags::MTIME)
            .union(StatxFlags::CTIME)
            .union(StatxFlags::INO);
        match rustix::fs::statx(directory, path, AtFlags::empty(), WANTED) {
            Ok(found) if is_file(&found) => Ok(Some(Self {
                size: found.stx_size,
                modified: nanoseconds(&found.stx_mtime),
                changed: nanoseconds(&found.stx_ctime),
                inode: found.stx_ino,
                device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
            })),
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_file(found: &Statx) -> bool {
    rustix::fs::FileType::from_raw_mode(found.stx_mode.into()) == rustix::fs::FileType::RegularFile
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_watch_sees_every_change_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (file, gone) = (folder.path().join("a"), folder.path().join("b"));
        fs_err::write(&file, "x").unwrap();
        assert_eq!(Watch::of(&file, Aspect::Content).unwrap(), None, "it changed just now");
        std::thread::sleep(Duration::from_millis(60));
        let take = || {
            let paths = [
                (&*file, Aspect::Content),
                (&*file, Aspect::Identity),
                (&*gone, Aspect::Content),
                (folder.path(), Aspect::Content),
            ];
            paths.map(|(path, aspect)| Watch::of(path, aspect).unwrap().unwrap())
        };
        let watches = take();
        let holds = |watches: &[Watch]| watches.iter().map(|watch| watch.holds().unwrap()).collect::<Vec<_>>();
        assert_eq!(holds(&watches), [true; 4]);
        let mut bytes = Vec::new();
        watches.iter().for_each(|watch| watch.write(&mut bytes));
        let mut rest = &bytes[..];
        assert_eq!(std::iter::from_fn(|| Watch::read(&mut rest)).collect::<Vec<_>>(), watches);
        fs_err::write(&file, "y").unwrap();
        assert_eq!(holds(&watches), [false, true, true, true]);
        fs_err::write(&gone, "").unwrap();
        assert_eq!(holds(&watches), [false, true, false, false]);
        fs_err::rename(&gone, &file).unwrap();
        assert!(!watches[1].holds().unwrap());
        let root = fs_err::File::open(folder.path()).unwrap();
        assert_eq!(Stamp::within(root.file(), "a").unwrap(), Stamp::of(&file).unwrap());
        assert_eq!(Stamp::within(root.file(), "b").unwrap(), None);
        assert_eq!(Stamp::within(root.file(), ".").unwrap(), None);
    }
}
