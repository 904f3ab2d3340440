//! Datasets: rows from a file or from a seeded template, given ids, sliced, deduplicated and shuffled.

use std::ops::Range;
use std::path::PathBuf;

use serde_json::{Map, Value};

/// Where rows come from.
#[derive(Debug, Clone, PartialEq)]
pub enum RowSource {
    /// A `.jsonl`, `.json` (an array of objects, or an object of objects), `.csv` or `.txt` (a row per line, field
    /// `text`) file.
    File(PathBuf),
    /// `make = { rows, seed, template }`: a minijinja template rendered once per row to a JSON object, with seeded
    /// `choose(list)`, `chance(p)`, `sample(list, n)`, `shuffle(list)`, `between(a, b)` and `row` (the index).
    Template {
        /// Number of rows.
        rows: u64,
        /// Seed.
        seed: u64,
        /// The template's text.
        template: String,
    },
}

/// A dataset as declared. Applied in the order: read, `id` and field templates, duplicate check or `unique`,
/// `shuffle`, `skip`, `take`.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetSpec {
    /// Name in the pipeline.
    pub name: String,
    /// Where the rows come from.
    pub source: RowSource,
    /// Template of the id; the row's `id` field or else its number (from 0) without it.
    pub id: Option<String>,
    /// Template fields, by name (such as `query`): each adds a field to the row.
    pub fields: Vec<(String, String)>,
    /// Keep the first row of each id instead of calling a second one an error.
    pub unique: bool,
    /// Seed of the shuffle.
    pub shuffle: Option<u64>,
    /// Rows left out at the start.
    pub skip: u64,
    /// Rows taken after those; all without it.
    pub take: Option<u64>,
    /// Place of the declaration.
    pub span: Range<usize>,
}

/// A row: its id is under `id` as a string.
pub type Row = Map<String, Value>;
