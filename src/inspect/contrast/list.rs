//! The queries of an artifact with their figures, in an order that people ask for.

use std::io::{self, Read};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::super::rows::Place;
use super::row;
use crate::lm::loss::Contrast;

/// Bytes that are looked at: some ten thousands of queries.
const LOOKED: u64 = 48 << 20;
/// Letters of a query that a list shows.
const QUERY: usize = 160;

/// An order of queries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sort {
    /// As in the file.
    #[default]
    File,
    /// Least told of the constitution first.
    BoundUp,
    /// Most told first.
    BoundDown,
    /// By the gap, largest first.
    Gap,
    /// Those that lost the most against the first candidate first.
    Lost,
    /// Those that gained the most first.
    Gained,
}

impl Sort {
    /// All of them with their names in addresses, and in words.
    pub const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::File, "file", "order of the file"),
        (Self::BoundUp, "bound-up", "lowest bound first"),
        (Self::BoundDown, "bound-down", "highest bound first"),
        (Self::Gap, "gap", "largest gap first"),
        (Self::Lost, "lost", "bound lost first"),
        (Self::Gained, "gained", "bound gained first"),
    ];

    /// The one of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(sort, _, _)| *sort)
    }
}

/// A query in a list.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Where its row begins.
    pub at: Place,
    /// Bytes of the row.
    pub length: u64,
    /// The row's id.
    pub id: String,
    /// The beginning of what was asked.
    pub query: String,
    /// The figures of each candidate; `None` if its matrix has none.
    pub figures: Vec<Option<Contrast>>,
    /// Responses of each query; 0 if there are none at all.
    pub responses: usize,
}

/// The queries of a file.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Listing {
    /// The queries.
    pub entries: Vec<Entry>,
    /// Names of the candidates; one without a name in what `score` made.
    pub candidates: Vec<String>,
    /// Whether that is all of the file.
    pub ended: bool,
    /// Bytes of the file.
    pub size: u64,
}

impl Listing {
    /// Puts the queries in an order, by the figures of a candidate; those without figures come last.
    pub fn sort(&mut self, sort: Sort, candidate: usize) {
        let bound = |entry: &Entry, at: usize| Some(entry.figures.get(at).copied().flatten()?.bound);
        let key = |entry: &Entry| -> Option<f64> {
            match sort {
                Sort::File => None,
                Sort::BoundUp => bound(entry, candidate),
                Sort::BoundDown => bound(entry, candidate).map(|bound| -bound),
                Sort::Gap => Some(-entry.figures.get(candidate).copied().flatten()?.gap),
                Sort::Lost => Some(bound(entry, candidate)? - bound(entry, 0)?),
                Sort::Gained => Some(bound(entry, 0)? - bound(entry, candidate)?),
            }
        };
        // Stable: equal ones stay in the order of the file.
        self.entries.sort_by_cached_key(|entry| key(entry).map_or((1, 0), |key| (0, ordered(key))));
    }
}

/// A number whose order is that of the float.
fn ordered(number: f64) -> i64 {
    let bits = number.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

/// Lists the queries of a file of rows, those of its beginning if it is very large.
pub fn list(path: &Path) -> io::Result<Listing> {
    let mut file = crate::fs::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(LOOKED)).unwrap_or_default());
    (&mut file).take(LOOKED).read_to_end(&mut bytes)?;
    let ended = bytes.len() as u64 == size;
    let mut lines = Vec::new();
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', &bytes) {
        lines.push((start, &bytes[start..end]));
        start = end + 1;
    }
    if ended && start < bytes.len() {
        lines.push((start, &bytes[start..]));
    }
    let read = |(row, (start, line)): (usize, &(usize, &[u8]))| {
        let at = Place { byte: *start as u64, row: row as u64, nth: row as u64 };
        entry(at, line)
    };
    let read: Vec<(Entry, Vec<String>)> = lines.par_iter().enumerate().map(read).collect();
    let candidates = read.iter().map(|(_, names)| names).find(|names| !names.is_empty()).cloned().unwrap_or_default();
    Ok(Listing { entries: read.into_iter().map(|(entry, _)| entry).collect(), candidates, ended, size })
}

fn entry(at: Place, line: &[u8]) -> (Entry, Vec<String>) {
    let length = line.len() as u64;
    let Some(row) = std::str::from_utf8(line).ok().and_then(row::read) else {
        let query = String::from_utf8_lossy(&line[..line.len().min(QUERY)]).into_owned();
        return (Entry { at, length, id: String::new(), query, figures: Vec::new(), responses: 0 }, Vec::new());
    };
    let figures = row.candidates.iter().map(|candidate| candidate.figures().ok()).collect();
    let responses = row.candidates.iter().map(|candidate| candidate.responses.len()).max().unwrap_or(0);
    let query = row.query.chars().take(QUERY).collect();
    let names = row.candidates.into_iter().map(|candidate| candidate.name).collect();
    (Entry { at, length, id: row.id, query, figures, responses }, names)
}
