//! Reading what others wrote: plain files only, and not more of them than there may be; and what is in directories.

use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fs_err::File;

/// Opens a file to read it, links followed. Errs on what is no plain file: a pipe, a socket or a device could keep a reader
/// waiting forever, or never end.
pub fn open(path: &Path) -> io::Result<File> {
    super::fault::pass_read(path)?;
    let mut options = fs_err::OpenOptions::new();
    // Not to wait for who writes into a pipe; of no effect on plain files.
    options.read(true).options_mut().custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file = match options.open(path) {
        // A socket.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Err(not_plain(path, "a socket or a device")),
        other => other?,
    };
    let kind = file.metadata()?.file_type();
    let what = if kind.is_file() {
        return Ok(file);
    } else if kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, format!("`{}` is a directory", path.display())));
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(not_plain(path, what))
}

fn not_plain(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("`{}` is {what}, not a file", path.display()))
}

/// Reads a plain file of at most so many bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    // The length is only a hint: it may grow meanwhile.
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    if length <= most {
        bytes.reserve_exact(length as usize + 1);
        file.take(most + 1).read_to_end(&mut bytes)?;
    }
    if length > most || bytes.len() as u64 > most {
        let what = format!("`{}` is larger than {}, the most it may be", path.display(), size(most));
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}

/// Reads a plain file of UTF-8, of at most so many bytes.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let text = String::from_utf8(read(path, most)?);
    text.map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is not UTF-8 (byte {at})", path.display()))
    })
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

/// Errs once more than `most` bytes were read: what is unpacked may be far larger than what it is unpacked from.
#[derive(Debug)]
pub struct AtMost<R> {
    inner: R,
    left: u64,
    most: u64,
}

impl<R: Read> AtMost<R> {
    /// Lets through `most` bytes.
    pub fn new(inner: R, most: u64) -> Self {
        Self { inner, left: most, most }
    }
}

impl<R: Read> Read for AtMost<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => {
                let what = format!("it holds more than {}, the most that is read", size(self.most));
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
            }
        }
        Ok(read)
    }
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
    fn what_is_no_plain_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let pipe = path("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        fs_err::os::unix::fs::symlink(&pipe, path("link")).unwrap();
        for (path, what) in [
            (pipe, "named pipe"),
            (path("link"), "named pipe"),
            (path("socket"), "socket"),
            (Path::new("/dev/zero").to_owned(), "device"),
            (folder.path().to_owned(), "directory"),
        ] {
            let error = read(&path, 10).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(&path.display().to_string()), "{error}");
        }
        assert_eq!(open(&path("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn files_are_read_up_to_a_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs_err::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        let error = read(&path, 4).unwrap_err();
        assert!(
            error.kind() == io::ErrorKind::FileTooLarge && error.to_string().contains("larger than 4 bytes"),
            "{error}"
        );
        fs_err::write(&path, b"12\xff").unwrap();
        assert!(read_text(&path, 5).unwrap_err().to_string().contains("byte 2"));
        // Files of /proc say that they are empty.
        assert!(!read(Path::new("/proc/self/stat"), 4096).unwrap().is_empty());
        assert_eq!(read(Path::new("/proc/self/stat"), 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let mut text = String::new();
        AtMost::new(&b"12345"[..], 5).read_to_string(&mut text).unwrap();
        let error = AtMost::new(&b"12345"[..], 4).read_to_string(&mut text).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
