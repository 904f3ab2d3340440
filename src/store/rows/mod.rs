//! The row memo: results of single rows, kept across attempts, nodes and pipelines.
//!
//! ```text
//! rows/SPACE/
//!   space.json          what is computed: what, by which models and fields, on which class of device
//!   NAME.jsonl          segments: a line per row, see `line`; each is written by one attempt
//!   NAME.idx            beside a segment that is complete: where its rows are, see `table`
//!   uses                how many rows were looked up and found, for people
//!   lock                held shared by all that have the space open, exclusively by who merges or evicts
//! ```
//!
//! A *space* holds the rows of one computation; within it a row goes by the digest of what else decides its result. Results
//! stay on the disk until they are asked for: in memory is where they are, 44 bytes a row. A line that was torn by a kill, or
//! damaged since, does not match its check and is passed over: its row is computed again.
//!
//! Nothing here can make a result wrong: a line carries its key and a check of both. Tables, uses and `space.json` are not
//! waited for; without them it takes longer, or is told less of.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Store, StoreError};
use crate::digest::Digest;
use crate::fs::{self, absent_is_none};

mod about;
mod bound;
mod line;
mod list;
mod merge;
mod table;
#[cfg(test)]
mod tests;

pub use about::{About, Uses};
pub use bound::{Evicted, RowLimit};
pub use list::{KeptRow, SpaceLine};

use table::{Place, Table};

/// Tables of fewer rows are joined in memory, so that a look-up asks few.
const SMALL: usize = 4096;
/// Rows that lie so near to each other are read at once.
const GAP: u64 = 4096;
/// Bytes read at once at most, but for a row that is longer.
const RUN: u64 = 1 << 20;
/// Who has not written to its segment for so long is dead.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A row of a segment among several.
type Spot = (Digest, u32, Place);

/// An open space of the row memo.
#[derive(Debug)]
pub struct RowSpace {
    directory: PathBuf,
    about: About,
    /// Segments as they were found.
    segments: Vec<PathBuf>,
    /// Tables of segments with many rows, by the segment's number.
    large: Vec<(u32, Table)>,
    /// Rows of all other segments, in the order of keys.
    small: Vec<Spot>,
    own: Own,
    uses: Uses,
    /// Segments of which rows were used; their numbers change where others merge them.
    used: BTreeSet<PathBuf>,
    /// Held shared while the space is open.
    lock: Option<fs_err::File>,
}

/// The segment that this attempt writes.
#[derive(Debug)]
struct Own {
    path: PathBuf,
    rows: Vec<(Digest, Place)>,
    size: u64,
    /// Whether a write failed: then it is not known what the segment holds.
    torn: bool,
}

/// A row that is known now.
#[derive(Debug, Clone, Copy)]
pub struct NewRow<'a> {
    /// What it goes by.
    pub key: Digest,
    /// Its result, as JSON without line breaks or tabs, as serde_json writes it.
    pub value: &'a str,
    /// A word on what was asked, for people.
    pub note: Option<&'a str>,
}

impl Store {
    /// Opens a space of the row memo; `about` says what its rows are results of.
    pub fn open_rows(&self, space: &Digest, about: About) -> Result<RowSpace, StoreError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let directory = self.rows_dir(space)?;
        let lock = merge::share(&directory);
        // No two attempts write to one segment: the name holds the process, the time and a number within the process.
        let (process, time) = (std::process::id(), fs::now().as_nanosecond());
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let own = Own {
            path: directory.join(format!("{time}-{process}-{serial}.jsonl")),
            rows: Vec::new(),
            size: 0,
            torn: false,
        };
        let mut space = RowSpace {
            directory,
            about,
            segments: Vec::new(),
            large: Vec::new(),
            small: Vec::new(),
            own,
            uses: Uses::default(),
            used: BTreeSet::new(),
            lock,
        };
        space.load()?;
        Ok(space)
    }
}

impl RowSpace {
    /// Finds out where rows are.
    fn load(&mut self) -> Result<(), StoreError> {
        self.segments = segments(&self.directory)?;
        self.segments.retain(|path| *path != self.own.path);
        (self.large, self.small) = (Vec::new(), Vec::new());
        for (number, path) in self.segments.iter().enumerate() {
            let number = number as u32;
            let Some(table) = absent_is_none(table_of(path))? else { continue };
            if table.len() >= SMALL {
                self.large.push((number, table));
            } else {
                self.small.extend(table.rows().map(|(key, place)| (key, number, place)));
            }
        }
        self.small.sort_unstable();
        self.small.dedup_by_key(|spot| spot.0);
        Ok(())
    }

    /// How many rows are known, those that several segments hold counted for each that is large.
    pub fn len(&self) -> usize {
        self.small.len() + self.large.iter().map(|(_, table)| table.len()).sum::<usize>() + self.own.rows.len()
    }

    /// Whether no row is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory for knowing where rows are.
    pub fn index_bytes(&self) -> usize {
        let large: usize = self.large.iter().map(|(_, table)| table.len() * table::ENTRY).sum();
        large + self.small.capacity() * size_of::<Spot>() + self.own.rows.capacity() * size_of::<(Digest, Place)>()
    }

    fn find(&self, key: &Digest) -> Option<(u32, Place)> {
        let in_large = self.large.iter().find_map(|(number, table)| Some((*number, table.find(key)?)));
        in_large.or_else(|| {
            let at = table::search(self.small.len(), key, |at| self.small[at].0.as_bytes())?;
            Some((self.small[at].1, self.small[at].2))
        })
    }

    /// Looks rows up, and reads those that are known: `take` gets the place of the key and the result, in any order, and says
    /// whether it can be used. Rows of which it cannot, or whose line is damaged, are as good as unknown.
    pub fn read(&mut self, keys: &[Digest], mut take: impl FnMut(usize, &str) -> bool) -> Result<(), StoreError> {
        let mut found = vec![false; keys.len()];
        if !self.read_once(keys, &mut found, &mut take)? {
            // Someone merged segments meanwhile: their rows are elsewhere now.
            self.load()?;
            self.read_once(keys, &mut found, &mut take)?;
        }
        self.uses.asked += keys.len() as u64;
        self.uses.reused += found.iter().filter(|found| **found).count() as u64;
        Ok(())
    }

    /// Reads what was not found before. Returns whether all segments were there.
    fn read_once(
        &mut self,
        keys: &[Digest],
        found: &mut [bool],
        take: &mut impl FnMut(usize, &str) -> bool,
    ) -> Result<bool, StoreError> {
        let mut wanted: Vec<(u32, Place, usize)> = Vec::new();
        for (at, key) in keys.iter().enumerate().filter(|(at, _)| !found[*at]) {
            wanted.extend(self.find(key).map(|(number, place)| (number, place, at)));
        }
        wanted.sort_unstable();
        let (mut whole, mut damaged) = (true, 0);
        let mut bytes = Vec::new();
        for in_segment in wanted.chunk_by(|a, b| a.0 == b.0) {
            let number = in_segment[0].0;
            let path = &self.segments[number as usize];
            let Some(mut file) = absent_is_none(fs_err::File::open(path))? else {
                whole = false;
                continue;
            };
            let size = file.metadata()?.len();
            for run in runs(in_segment) {
                let first = run[0].1.offset;
                let end = run.iter().map(|(_, place, _)| place.end()).max().unwrap_or(first);
                bytes.clear();
                // A table that lies may name any place.
                if first < size {
                    file.seek(SeekFrom::Start(first))?;
                    (&mut file).take(end.min(size) - first).read_to_end(&mut bytes)?;
                }
                for (_, place, at) in run {
                    let start = (place.offset - first) as usize;
                    let line = bytes.get(start..start.saturating_add(place.length as usize));
                    let line = line.and_then(|line| line::read(line.strip_suffix(b"\n")?));
                    match line.filter(|line| line.key == keys[*at]) {
                        Some(line) if take(*at, line.value) => found[*at] = true,
                        _ => damaged += 1,
                    }
                }
            }
            self.used.insert(path.clone());
        }
        if damaged > 0 {
            tracing::warn!("{damaged} damaged rows of {} are computed again", self.directory.display());
        }
        Ok(whole)
    }

    /// Adds the results of a batch; once this returns they survive anything.
    pub fn add(&mut self, batch: &[NewRow<'_>]) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (mut text, mut at) = (String::new(), self.own.size);
        for row in batch {
            let length = line::write(&mut text, &row.key, row.value, row.note);
            self.own.rows.push((row.key, Place { offset: at, length: length as u32 }));
            at += length as u64;
        }
        let mut appended = absent_is_none(fs::append(&self.own.path, text.as_bytes()));
        if matches!(appended, Ok(None)) {
            // Somebody evicted the space, which held nothing yet, between our opening it and now.
            appended = fs::create_directory(&self.directory)
                .and_then(|()| fs::append(&self.own.path, text.as_bytes()))
                .map(Some);
        }
        if let Err(error) = appended {
            self.own.torn = true;
            return Err(error.into());
        }
        self.own.size = at;
        Ok(())
    }

    /// Ends the use of the space: what was written is complete now. That some of it cannot be told is no failure.
    pub fn finish(mut self, who: &str) {
        let told = self.seal().and_then(|()| self.touch()).and_then(|()| {
            self.about.write(&self.directory)?;
            self.uses.tell(&self.directory, who)
        });
        if let Err(error) = told {
            tracing::debug!("{}: {error}", self.directory.display());
        }
        // So that merging finds the space unused, if nobody else has it open.
        drop(self.lock.take());
        if let Err(error) = merge::merge(&self.directory) {
            tracing::debug!("{}: segments were not merged: {error}", self.directory.display());
        }
    }

    fn seal(&mut self) -> std::io::Result<()> {
        if self.own.rows.is_empty() || self.own.torn {
            return Ok(());
        }
        Table::of(std::mem::take(&mut self.own.rows)).write(&self.own.path)
    }

    /// Marks the segments whose rows were used, unless that was done a little while ago.
    fn touch(&self) -> std::io::Result<()> {
        let now = fs::system_now();
        for path in &self.used {
            let marked = table::beside(path);
            let marked = if marked.exists() { marked } else { continue };
            if let Some(file) = absent_is_none(fs_err::OpenOptions::new().append(true).open(marked))? {
                let age = now.duration_since(file.metadata()?.modified()?).unwrap_or_default();
                if age > ABANDONED {
                    file.file().set_modified(now)?;
                }
            }
        }
        Ok(())
    }
}

/// Cuts sorted places into runs that are read at once.
fn runs(mut places: &[(u32, Place, usize)]) -> impl Iterator<Item = &[(u32, Place, usize)]> {
    std::iter::from_fn(move || {
        let first = places.first()?.1.offset;
        let mut end = first;
        let next = places.iter().position(|(_, place, _)| {
            let apart = place.offset > end.saturating_add(GAP) || place.offset - first > RUN;
            if !apart {
                end = end.max(place.end());
            }
            apart && place.offset > first
        });
        let (run, rest) = places.split_at(next.unwrap_or(places.len()));
        places = rest;
        Some(run)
    })
}

/// The segments of a space, in the order of their names, which is that of time.
fn segments(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "jsonl");
    Ok(fs::list(directory)?.into_iter().filter(is_segment).collect())
}

/// Whether a line of a segment is whole.
pub(super) fn is_line(line: &[u8]) -> bool {
    line::read(line).is_some()
}

/// Where the rows of a segment are: from the table beside it, or by reading it.
fn table_of(segment: &Path) -> std::io::Result<Table> {
    if let Some(table) = Table::beside(segment)? {
        return Ok(table);
    }
    let (table, passed_over) = Table::by_reading(segment)?;
    if passed_over > 0 {
        tracing::warn!("{passed_over} torn or damaged rows of {} are computed again", segment.display());
    }
    Ok(table)
}
