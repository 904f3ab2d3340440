//! The lines of a file that may still grow, or be damaged.

use std::io::{self, Read};

use fs_err::File;

/// What is read at once.
const BLOCK: usize = 64 << 10;

/// Reads lines from a file's beginning on, those that are whole: one whose end is not there yet comes once it is, one that
/// is longer than a line may be never does.
#[derive(Debug)]
pub struct Lines {
    /// As far as it is read in all.
    file: io::Take<File>,
    /// The most bytes of a line.
    longest: usize,
    /// A line whose end is not there yet.
    rest: Vec<u8>,
    /// Whether it is too long, so that its end is only waited for.
    too_long: bool,
}

impl Lines {
    /// Of an open file, of which at most `most` bytes are read; lines of more than `longest` bytes are left out.
    pub fn of(file: File, longest: usize, most: u64) -> Self {
        Self { file: file.take(most), longest, rest: Vec::new(), too_long: false }
    }

    /// The file.
    pub fn file(&self) -> &File {
        self.file.get_ref()
    }

    /// Gives `see` each line that became whole since this was called last, without its end. Returns whether that is all that
    /// there is by now, rather than all that may be read.
    pub fn news(&mut self, see: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        let mut block = vec![0; BLOCK];
        loop {
            let read = match self.file.read(&mut block) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                return Ok(self.file.limit() > 0);
            }
            self.take(&block[..read], see);
        }
    }

    fn take(&mut self, mut block: &[u8], see: &mut dyn FnMut(&[u8])) {
        while let Some(end) = memchr::memchr(b'\n', block) {
            let line = &block[..end];
            block = &block[end + 1..];
            let fits = self.rest.len() + line.len() <= self.longest;
            if !std::mem::take(&mut self.too_long) && fits {
                if self.rest.is_empty() {
                    see(line);
                } else {
                    self.rest.extend(line);
                    see(&self.rest);
                }
            }
            self.rest.clear();
        }
        if self.too_long || self.rest.len() + block.len() > self.longest {
            self.too_long = true;
            self.rest.clear();
        } else {
            self.rest.extend(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is seen of a file that is written in pieces, after each of them.
    fn seen(longest: usize, most: u64, pieces: &[&str]) -> (Vec<String>, bool) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        fs_err::write(&path, "").unwrap();
        let mut lines = Lines::of(File::open(&path).unwrap(), longest, most);
        let (mut seen, mut all) = (Vec::new(), true);
        for piece in pieces {
            super::super::append(&path, piece.as_bytes()).unwrap();
            all = lines.news(&mut |line| seen.push(String::from_utf8_lossy(line).into_owned())).unwrap();
        }
        (seen, all)
    }

    #[test]
    fn lines_come_whole_whatever_pieces_they_are_written_in() {
        let long = "x".repeat(200_000);
        let (lines, all) = seen(1 << 20, u64::MAX, &["one\nt", "", "wo\n", &long, "\n\nend"]);
        assert_eq!((lines, all), (["one", "two", &long, ""].map(String::from).to_vec(), true));
    }

    #[test]
    fn what_is_too_long_is_left_out_and_its_end_is_no_line() {
        let pieces = ["123456\n12345", "6", "7\n1234", "5\n", "12345678901234567890\nend\n"];
        assert_eq!(seen(5, u64::MAX, &pieces).0, ["12345", "end"]);
    }

    #[test]
    fn what_is_beyond_the_bound_is_not_read() {
        assert_eq!(seen(99, 6, &["a\nb\n", "c\n", "d\n"]), (vec!["a".into(), "b".into(), "c".into()], false));
    }
}
