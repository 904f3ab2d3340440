//! Where rows stand: tables in the order of keys, in memory and beside a segment that is complete.
//!
//! The file `NAME.idx` beside `NAME.jsonl` says that no one will write to the segment any more, and where each row of it is:
//!
//! ```text
//! "samirow1"  rows u64  bytes of the segment u64  blake3 of its last 4 KiB  blake3 of all else in this file
//! rows × (key 32, offset u64, length u32)                                   little endian, in the order of keys
//! ```
//!
//! It is a hint: a line has its key and a check of its own, so that a wrong table can cost a computation and never give a
//! wrong result. One that does not fit its segment is made again.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::line;
use crate::digest::Digest;
use crate::fs;

const MAGIC: &[u8; 8] = b"samirow1";
const HEAD: usize = 8 + 8 + 8 + 32 + 32;
/// Bytes of a row in a table.
pub(super) const ENTRY: usize = 32 + 8 + 4;
/// Bytes of a segment's end that its table knows.
const TAIL: u64 = 4096;

/// Where a line is in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Where it begins.
    pub(super) offset: u64,
    /// Its bytes, with its end.
    pub(super) length: u32,
}

impl Place {
    /// Where it ends.
    pub(super) fn end(self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }
}

/// Rows of one segment in the order of their keys, as they are in the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(Vec<u8>);

impl Table {
    /// The table of rows in any order; of rows with one key the last stays.
    pub(super) fn of(mut rows: Vec<(Digest, Place)>) -> Self {
        // Later rows first among equals.
        rows.sort_by(|(a, one), (b, other)| a.cmp(b).then(other.offset.cmp(&one.offset)));
        rows.dedup_by_key(|(key, _)| *key);
        let mut bytes = Vec::with_capacity(rows.len() * ENTRY);
        for (key, place) in &rows {
            bytes.extend_from_slice(key.as_bytes());
            bytes.extend_from_slice(&place.offset.to_le_bytes());
            bytes.extend_from_slice(&place.length.to_le_bytes());
        }
        Self(bytes)
    }

    /// The rows of a segment as they are found by reading it, and how many lines were torn or damaged.
    pub(super) fn by_reading(segment: &Path) -> std::io::Result<(Self, u64)> {
        let mut rows = Vec::new();
        let passed_over = line::scan(segment, |line, offset, bytes| {
            rows.push((line.key, Place { offset, length: bytes.len() as u32 }));
            Ok(())
        })?;
        Ok((Self::of(rows), passed_over))
    }

    /// The table beside a segment, if there is one that fits it.
    pub(super) fn beside(segment: &Path) -> std::io::Result<Option<Self>> {
        let bytes = match fs_err::read(beside(segment)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (size, tail) = end(segment)?;
        let fits = bytes.len() >= HEAD
            && (bytes.len() - HEAD).is_multiple_of(ENTRY)
            && bytes[..HEAD] == head(&bytes[HEAD..], size, &tail)[..];
        Ok(fits.then(|| Self(bytes[HEAD..].to_vec())))
    }

    /// Writes the table beside its segment. It need not be on the disk, only whole: what rests on it is time.
    pub(super) fn write(&self, segment: &Path) -> std::io::Result<()> {
        let (size, tail) = end(segment)?;
        let directory = segment.parent().unwrap_or(Path::new("."));
        let unfinished = fs::unfinished(directory);
        let written = (|| {
            let mut file = fs::writer(&unfinished)?;
            file.write_all(&head(&self.0, size, &tail))?;
            file.write_all(&self.0)?;
            fs_err::rename(&unfinished, beside(segment))
        })();
        if written.is_err() {
            fs::discard(&unfinished);
        }
        written
    }

    /// How many rows.
    pub(super) fn len(&self) -> usize {
        self.0.len() / ENTRY
    }

    /// Where a row is.
    pub(super) fn find(&self, key: &Digest) -> Option<Place> {
        let at = search(self.len(), key, |at| self.key(at))?;
        Some(self.row(at).1)
    }

    /// The rows in the order of keys.
    pub(super) fn rows(&self) -> impl Iterator<Item = (Digest, Place)> {
        (0..self.len()).map(|at| self.row(at))
    }

    fn key(&self, at: usize) -> &[u8] {
        &self.0[at * ENTRY..at * ENTRY + 32]
    }

    fn row(&self, at: usize) -> (Digest, Place) {
        let entry = &self.0[at * ENTRY..(at + 1) * ENTRY];
        let (mut key, mut offset, mut length) = ([0; 32], [0; 8], [0; 4]);
        key.copy_from_slice(&entry[..32]);
        offset.copy_from_slice(&entry[32..40]);
        length.copy_from_slice(&entry[40..]);
        (Digest::from_bytes(key), Place { offset: u64::from_le_bytes(offset), length: u32::from_le_bytes(length) })
    }
}

/// The place of a key among `count` sorted ones. Keys are digests, evenly spread, so that a guess by proportion is near.
pub(super) fn search<'a>(count: usize, key: &Digest, at: impl Fn(usize) -> &'a [u8]) -> Option<usize> {
    let leading = |bytes: &[u8]| bytes[..8].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let wanted = leading(key.as_bytes());
    // The key, if it is there, is in low..high; low and high have these leading numbers at most and at least.
    let (mut low, mut high) = (0, count);
    let (mut least, mut most) = (0u64, u64::MAX);
    let mut guesses = 0;
    while low < high {
        let middle = if guesses < 8 && most > least {
            guesses += 1;
            let share = u128::from(wanted.clamp(least, most) - least) * (high - low) as u128 / u128::from(most - least);
            low + (share as usize).min(high - low - 1)
        } else {
            low + (high - low) / 2
        };
        let found = at(middle);
        match found.cmp(key.as_bytes().as_slice()) {
            std::cmp::Ordering::Equal => return Some(middle),
            std::cmp::Ordering::Less => (low, least) = (middle + 1, leading(found)),
            std::cmp::Ordering::Greater => (high, most) = (middle, leading(found)),
        }
    }
    None
}

/// The path of the table of a segment.
pub(super) fn beside(segment: &Path) -> PathBuf {
    segment.with_extension("idx")
}

fn head(table: &[u8], size: u64, tail: &Digest) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&((table.len() / ENTRY) as u64).to_le_bytes());
    head.extend_from_slice(&size.to_le_bytes());
    head.extend_from_slice(tail.as_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head).update(table);
    head.extend_from_slice(hasher.finalize().as_bytes());
    head
}

/// A segment's size, and the digest of its end.
fn end(segment: &Path) -> std::io::Result<(u64, Digest)> {
    let mut file = fs_err::File::open(segment)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok((size, Digest::of(&tail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    #[test]
    fn every_row_is_found_and_no_other() {
        for count in [0, 1, 2, 3, 100, 5000] {
            let place = |n: u64| Place { offset: n * 3, length: n as u32 };
            let table = Table::of((0..count).map(|n| (key(n), place(n))).collect());
            assert_eq!(table.len() as u64, count);
            assert!((0..count).all(|n| table.find(&key(n)) == Some(place(n))));
            assert!((count..count + 500).all(|n| table.find(&key(n)).is_none()));
            for byte in [0, 255] {
                assert_eq!(table.find(&Digest::from_bytes([byte; 32])), None);
            }
        }
    }

    #[test]
    fn keys_that_are_anything_but_evenly_spread_are_found() {
        let odd = |n: u64| {
            let mut bytes = [7; 32];
            bytes[24..].copy_from_slice(&n.to_be_bytes());
            Digest::from_bytes(bytes)
        };
        let place = |n: u64| Place { offset: n, length: 1 };
        let table = Table::of((0..1000).map(|n| (odd(2 * n), place(n))).collect());
        assert!((0..1000).all(|n| table.find(&odd(2 * n)) == Some(place(n)) && table.find(&odd(2 * n + 1)).is_none()));
    }

    #[test]
    fn of_equal_keys_the_later_row_stays() {
        let place = |offset| Place { offset, length: 1 };
        let table = Table::of(vec![(key(1), place(5)), (key(2), place(7)), (key(1), place(9))]);
        assert_eq!((table.len(), table.find(&key(1))), (2, Some(place(9))));
    }

    #[test]
    fn a_table_is_used_only_beside_the_segment_that_it_is_of() {
        let folder = tempfile::tempdir().unwrap();
        let segment = folder.path().join("a.jsonl");
        let mut text = String::new();
        for n in 0..50 {
            line::write(&mut text, &key(n), "1", None);
        }
        fs_err::write(&segment, &text).unwrap();
        assert!(Table::beside(&segment).unwrap().is_none());
        let (table, passed_over) = Table::by_reading(&segment).unwrap();
        assert_eq!((table.len(), passed_over), (50, 0));
        table.write(&segment).unwrap();
        let whole = fs_err::read(beside(&segment)).unwrap();
        assert_eq!(Table::beside(&segment).unwrap().unwrap().0, table.0);
        // Any byte changed, any length cut.
        for at in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs_err::write(beside(&segment), &damaged).unwrap();
            assert!(Table::beside(&segment).unwrap().is_none(), "byte {at}");
            fs_err::write(beside(&segment), &whole[..at]).unwrap();
            assert!(Table::beside(&segment).unwrap().is_none(), "cut at {at}");
        }
        fs_err::write(beside(&segment), &whole).unwrap();
        for other in [text[..text.len() - 1].to_owned(), format!("{text}x"), text.replacen(" 1\n", " 2\n", 50)] {
            fs_err::write(&segment, other).unwrap();
            assert!(Table::beside(&segment).unwrap().is_none());
        }
    }
}
