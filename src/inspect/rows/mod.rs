//! A page of a file of rows, however large the file and however long its rows.
//!
//! Approach: the file is read from front to back and nothing is kept of it but the beginnings of the rows that are wanted. How
//! many bytes are looked at is bounded: whoever asks is told how far that got, and may go on from there.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;

mod filter;
mod mend;
mod scan;
mod table;

pub use filter::Filter;
pub use mend::mend;
pub use table::{Cell, Line, Table, object, one_line, table, texts};

/// Bytes of a row that are kept; the rest is its own page.
pub const KEPT: usize = 64 << 10;
/// Bytes that are looked at in one go: a tenth of a second or two where the file is in memory.
pub const BUDGET: u64 = 512 << 20;
/// The same where every row is taken apart.
pub const BUDGET_OF_FIELDS: u64 = 128 << 20;
/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

/// A place in a file where a row begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The byte.
    pub byte: u64,
    /// The row's number, from 0.
    pub row: u64,
    /// How many rows before it pass the filter.
    pub nth: u64,
}

/// What is asked of a file of rows.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Where looking begins.
    pub from: Place,
    /// The first row that is wanted, counted among those that pass the filter, from 0.
    pub nth: u64,
    /// How many are wanted.
    pub take: usize,
    /// Whether looking ends with the last of these, rather than counting those behind it.
    pub enough: bool,
    /// Which rows.
    pub filter: Filter,
    /// Bytes that are looked at, at most, but for the end of a row.
    pub budget: u64,
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Where it begins.
    pub at: Place,
    /// Its bytes, without the end of the line.
    pub length: u64,
    /// Its text: no more than its beginning where it is longer than [`KEPT`]. What is no UTF-8 shows as `�`.
    pub text: String,
}

impl Row {
    /// Whether the text is all of it.
    pub fn is_whole(&self) -> bool {
        self.length as usize <= KEPT
    }
}

/// A page of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The rows.
    pub rows: Vec<Row>,
    /// Where the next page begins, if there are more rows that pass.
    pub next: Option<Place>,
    /// How far was looked; its `nth` counts the rows up to there that pass.
    pub looked: Place,
    /// Whether that is the end of the file.
    pub ended: bool,
    /// Bytes of the file.
    pub size: u64,
}

impl Found {
    /// About how many rows the file has: exact where all was looked at.
    pub fn rows_in_all(&self) -> u64 {
        if self.ended || self.looked.byte == 0 {
            return self.looked.row;
        }
        (self.looked.row as f64 / self.looked.byte as f64 * self.size as f64).round() as u64
    }
}

/// Looks for rows. A place to begin at that is no beginning of a row is passed over for the first.
pub fn look(path: &Path, ask: &Ask) -> io::Result<Found> {
    let mut file = crate::fs::open(path)?;
    let size = file.metadata()?.len();
    // The first row has the number 0, whatever was said.
    let is_sound = ask.from.byte > 0 && ask.from.nth <= ask.nth && begins(&mut file, ask.from.byte, size)?;
    let from = if is_sound { ask.from } else { Place::default() };
    file.seek(SeekFrom::Start(from.byte))?;
    let mut scan = scan::Scan::new(ask, from);
    let mut block = vec![0; BLOCK];
    let mut ended = false;
    while !scan.is_done() {
        let read = match file.read(&mut block) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if read == 0 {
            scan.end();
            ended = true;
            break;
        }
        scan.see(&block[..read]);
    }
    let (rows, looked) = scan.into_found();
    let after =
        rows.last().map(|row| Place { byte: row.at.byte + row.length + 1, row: row.at.row + 1, nth: row.at.nth + 1 });
    let next = after.filter(|after| looked.nth > after.nth);
    Ok(Found { rows, next, looked, ended, size })
}

/// The text of a row, no more than `most` bytes of it.
pub fn text_of(path: &Path, row: &Row, most: u64) -> io::Result<String> {
    let mut file = crate::fs::open(path)?;
    file.seek(SeekFrom::Start(row.at.byte))?;
    let mut bytes = Vec::new();
    file.take(row.length.min(most)).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a row begins at a byte.
fn begins(file: &mut (impl Read + Seek), byte: u64, size: u64) -> io::Result<bool> {
    if byte == 0 || byte >= size {
        return Ok(byte == 0);
    }
    file.seek(SeekFrom::Start(byte - 1))?;
    let mut before = [0];
    file.read_exact(&mut before)?;
    Ok(before == *b"\n")
}

#[cfg(test)]
mod tests;
