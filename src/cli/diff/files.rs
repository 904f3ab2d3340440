//! The files of two artifacts beside each other, each by what it holds.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::super::context::Failure;
use super::Side;
use crate::compare::{self, Opening, RowChanges, TensorChanges};
use crate::diag::Diagnostic;
use crate::graph::key::{self, Change};
use crate::store::{Blob, Store};

/// Largest file of JSON, and of text, that is read as a whole.
const LARGEST: u64 = 16 << 20;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Added,
    Removed,
    Changed,
}

/// A file, or the weights of a model in all their files, that differs.
#[derive(Debug, Serialize)]
pub(super) struct FileChange {
    /// Its name.
    pub(super) name: String,
    /// What became of it.
    pub(super) state: State,
    /// Bytes that it had.
    pub(super) before: Option<u64>,
    /// Bytes that it has.
    pub(super) after: Option<u64>,
    /// What differs in it, if that can be told.
    pub(super) content: Option<Content>,
}

/// What differs in a file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Content {
    /// By row.
    Rows(RowChanges),
    /// By tensor.
    Tensors(TensorChanges),
    /// By field of a JSON value.
    Values(Vec<Change>),
    /// Both texts.
    Text { before: String, after: String },
}

/// The files that differ, in the order of their names.
pub(super) fn changes(store: &Store, before: &Side, after: &Side, rows: usize) -> Result<Vec<FileChange>, Failure> {
    let paths = [store.files(&before.id)?, store.files(&after.id)?];
    let mut names: Vec<&String> = before.manifest.files.keys().chain(after.manifest.files.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let mut changes = Vec::new();
    let is_model = before.manifest.kind == "model";
    if is_model {
        changes.extend(weights(before, after, &paths)?);
    }
    for name in names {
        let (old, new) = (before.manifest.files.get(name), after.manifest.files.get(name));
        if old == new || (is_model && is_weights(name)) {
            continue;
        }
        let state = match (old, new) {
            (None, _) => State::Added,
            (_, None) => State::Removed,
            _ => State::Changed,
        };
        let content = match (old.zip(new), paths[0].get(name).zip(paths[1].get(name))) {
            (Some((old, new)), Some(paths)) => content(name, [old, new], [paths.0, paths.1], rows)?,
            _ => None,
        };
        let size = |blob: Option<&Blob>| blob.map(|blob| blob.size);
        changes.push(FileChange { name: name.clone(), state, before: size(old), after: size(new), content });
    }
    Ok(changes)
}

fn is_weights(name: &str) -> bool {
    has_extension(name, "safetensors")
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found == extension)
}

/// What cannot be read, and where from.
fn unreadable(path: &Path, error: std::io::Error) -> Failure {
    let what = format!("`{}` cannot be read: {error}", path.display());
    let fault = Diagnostic::error("cli::diff-unreadable", what);
    let help = "`sami cache verify` says what is damaged, and which nodes make it again";
    Failure { code: super::super::FAILED, ..fault.help(help).into() }
}

fn content(name: &str, blobs: [&Blob; 2], paths: [&PathBuf; 2], rows: usize) -> Result<Option<Content>, Failure> {
    if has_extension(name, "jsonl") {
        let found = compare::rows(paths[0], paths[1], rows).map_err(|error| unreadable(paths[0], error))?;
        return Ok(Some(Content::Rows(found)));
    }
    if blobs.iter().any(|blob| blob.size > LARGEST) {
        return Ok(None);
    }
    let read = |path: &PathBuf| fs_err::read(path).map_err(|error| unreadable(path, error));
    let (old, new) = (read(paths[0])?, read(paths[1])?);
    if has_extension(name, "json")
        && let (Ok(old), Ok(new)) = (serde_json::from_slice::<Value>(&old), serde_json::from_slice::<Value>(&new))
    {
        return Ok(Some(Content::Values(key::changes(&old, &new))));
    }
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    Ok(text(old).zip(text(new)).map(|(before, after)| Content::Text { before, after }))
}

/// The weights of two models, whatever files they are in.
fn weights(before: &Side, after: &Side, paths: &[BTreeMap<String, PathBuf>; 2]) -> Result<Option<FileChange>, Failure> {
    let blobs = |side: &Side| -> BTreeMap<String, Blob> {
        side.manifest.files.clone().into_iter().filter(|(name, _)| is_weights(name)).collect()
    };
    let (old, new) = (blobs(before), blobs(after));
    if old == new {
        return Ok(None);
    }
    let openings = |names: &BTreeMap<String, Blob>, paths: &BTreeMap<String, PathBuf>| -> Vec<Opening<'static>> {
        let opening = |path: PathBuf| -> Opening<'static> {
            Box::new(move || Ok(Box::new(std::io::BufReader::new(crate::pieces::open(&path)?)) as Box<dyn Read>))
        };
        names.keys().filter_map(|name| paths.get(name)).cloned().map(opening).collect()
    };
    let first = |paths: &BTreeMap<String, PathBuf>| paths.values().next().cloned().unwrap_or_default();
    let found = compare::tensors(&openings(&old, &paths[0]), &openings(&new, &paths[1]))
        .map_err(|error| unreadable(&first(&paths[0]), error))?;
    let size = |blobs: &BTreeMap<String, Blob>| Some(blobs.values().map(|blob| blob.size).sum());
    Ok(Some(FileChange {
        name: "weights".to_owned(),
        state: State::Changed,
        before: size(&old),
        after: size(&new),
        content: Some(Content::Tensors(found)),
    }))
}
