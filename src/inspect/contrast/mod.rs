//! How likely each response of a query is under each of its constitutions, by every model that was asked.
//!
//! Approach: `score` and `evaluate` keep a matrix of log-probabilities in each row. A row says what one model, or one
//! candidate after another, made of a query; the other models' matrices stand in rows of the same query in other artifacts of
//! the run. `row` reads a row, `list` all of a file, `models` finds the other artifacts.

use std::path::Path;

use serde::Serialize;

use super::rows::{self, Ask, Filter};
use crate::digest::Digest;
use crate::lm::loss::Contrast;
use crate::store::{Index, Store, StoreError};

mod list;
mod marks;
mod models;
mod row;

pub use list::{Entry, Listing, Sort, list};
pub use marks::{Part, marks};
pub use models::{Asked, Source, sources};
pub use row::{Candidate, Response, Scored, read};

/// Types of artifacts whose rows have matrices.
pub const TYPES: [&str; 2] = ["evaluation", "scores"];
/// Bytes of each other artifact that are looked through for a query.
const LOOKED: u64 = 64 << 20;

/// A query with all matrices that there are of it.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// The row's id.
    pub id: String,
    /// What was asked.
    pub query: String,
    /// Texts of its constitutions.
    pub constitutions: Vec<String>,
    /// What the models made of it, in the order in which the models were made.
    pub panels: Vec<Panel>,
    /// Nodes whose rows were not all looked through.
    pub unlooked: Vec<String>,
}

/// What a model makes of a query.
#[derive(Debug, Clone, Serialize)]
pub struct Panel {
    /// The model, and when it was asked.
    pub asked: Asked,
    /// Artifacts that say so, with the names of their nodes: the same model may have been asked again.
    pub by: Vec<(Digest, String)>,
    /// Its own responses, or those that it was given: the responses to the first constitution, those to the second, and so on.
    pub responses: Vec<Response>,
    /// C rows of CM cells: summed log-probabilities in nats. What is no finite number is `None`.
    pub cells: Vec<Vec<Option<f64>>>,
    /// The figures of it.
    pub figures: Option<Contrast>,
    /// Why there are none.
    pub why: Option<String>,
}

impl Panel {
    /// Responses to each constitution.
    pub fn each(&self) -> usize {
        self.cells.first().map_or(0, Vec::len) / self.cells.len().max(1)
    }

    /// The cells per token of their responses; without the numbers of those whose tokens are not known.
    pub fn per_token(&self) -> Vec<Vec<Option<f64>>> {
        let tokens = |j: usize| self.responses.get(j).and_then(|response| response.tokens).filter(|tokens| *tokens > 0);
        let row = |row: &Vec<Option<f64>>| {
            row.iter().enumerate().map(|(j, cell)| Some((*cell)? / tokens(j)? as f64)).collect()
        };
        self.cells.iter().map(row).collect()
    }

    /// What the constitutions' shares in each response are: the softmax over its column, which is 1/C each where the response
    /// tells nothing of its constitution.
    pub fn shares(&self) -> Vec<Vec<Option<f64>>> {
        let width = self.cells.iter().map(Vec::len).max().unwrap_or(0);
        let column =
            |j: usize| -> Option<Vec<f64>> { self.cells.iter().map(|row| row.get(j).copied().flatten()).collect() };
        let mut shares = vec![vec![None; width]; self.cells.len()];
        for (j, column) in (0..width).filter_map(|j| Some((j, column(j)?))) {
            let largest = column.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = column.iter().map(|cell| (cell - largest).exp()).sum();
            for (k, cell) in column.iter().enumerate() {
                shares[k][j] = Some((cell - largest).exp() / sum);
            }
        }
        shares
    }
}

/// Reads the query of a row, with what other models in the same run made of it.
pub fn case(
    store: &Store,
    index: &Index,
    artifact: &Digest,
    row: &str,
    run: Option<&str>,
) -> Result<Option<Case>, StoreError> {
    let Some(own) = read(row) else { return Ok(None) };
    let mut panels: Vec<(usize, Panel)> = Vec::new();
    let mut unlooked = Vec::new();
    for source in sources(store, index, artifact, run)? {
        let found = if source.artifact == *artifact {
            Some(own.clone())
        } else {
            let looked = find(store, &source.artifact, &own.id)?;
            unlooked.extend(looked.is_none().then(|| source.node.clone()));
            looked.flatten().filter(|other| other.query == own.query && other.constitutions == own.constitutions)
        };
        for candidate in found.into_iter().flat_map(|row| row.candidates) {
            add(&mut panels, &source, candidate);
        }
    }
    panels.sort_by_key(|(order, _)| *order);
    let panels = panels.into_iter().map(|(_, panel)| panel).collect();
    Ok(Some(Case { id: own.id, query: own.query, constitutions: own.constitutions, panels, unlooked }))
}

/// Adds what a candidate made of it, or that another node says the same.
fn add(panels: &mut Vec<(usize, Panel)>, source: &Source, candidate: Candidate) {
    let asked = source.asked(&candidate.name);
    let same = panels.iter_mut().map(|(_, panel)| panel).find(|panel| {
        panel.asked.model == asked.model && panel.cells == candidate.cells && panel.responses == candidate.responses
    });
    let by = (source.artifact, source.node.clone());
    if let Some(panel) = same {
        panel.by.push(by);
        return;
    }
    let (figures, why) = match candidate.figures() {
        Ok(figures) => (Some(figures), None),
        Err(why) => (None, Some(why)),
    };
    let Candidate { responses, cells, .. } = candidate;
    panels.push((asked.order, Panel { asked, by: vec![by], responses, cells, figures, why }));
}

/// The row of an id in another artifact, and whether it is known that there is none.
#[expect(clippy::option_option, reason = "`None`: not all of it was looked through; `Some(None)`: it has no such row")]
fn find(store: &Store, artifact: &Digest, id: &str) -> Result<Option<Option<Scored>>, StoreError> {
    let Some(path) = rows_file(store, artifact)? else { return Ok(Some(None)) };
    let ask = Ask { take: 1, enough: true, filter: Filter::of_id(id), budget: LOOKED, ..Ask::default() };
    // What a gc takes away in the meantime has nothing to say.
    let Ok(found) = rows::look(&path, &ask) else { return Ok(Some(None)) };
    match found.rows.first() {
        Some(row) => Ok(Some(read(&whole(&path, row)?))),
        None => Ok(found.ended.then_some(None)),
    }
}

/// The file of an artifact's rows, if it has one.
pub fn rows_file(store: &Store, artifact: &Digest) -> Result<Option<std::path::PathBuf>, StoreError> {
    match store.files(artifact) {
        Ok(files) => Ok(files.get("rows.jsonl").cloned()),
        Err(StoreError::NoArtifact(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The text of the row at a place, of so many bytes at most; of a very long one what can be read of its beginning.
pub fn text_at(path: &Path, at: rows::Place, length: u64) -> Result<String, StoreError> {
    let text = rows::text_of(path, &rows::Row { at, length, text: String::new() }, ROW)?;
    Ok(match text.split_once('\n') {
        Some((line, _)) => line.to_owned(),
        None if text.len() as u64 >= ROW => rows::mend(&text),
        None => text,
    })
}

/// The text of a row, of a very long one what can be read of its beginning.
fn whole(path: &Path, row: &rows::Row) -> Result<String, StoreError> {
    Ok(if row.is_whole() { row.text.clone() } else { rows::mend(&rows::text_of(path, row, ROW)?) })
}

/// Bytes of a row that are read.
const ROW: u64 = 4 << 20;

#[cfg(test)]
mod tests;
