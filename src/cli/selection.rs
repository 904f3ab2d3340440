//! From what people type after `cache forget` and `cache du` to what it means: all of it, unlike `find`, which wants one thing.

use super::context::Failure;
use super::find;
use crate::diag::{Diagnostic, did_you_mean};
use crate::store::{Index, Selection, Store};

/// What runs, pipelines, nodes, artifacts and keys these words mean: names of nodes (with their iterations and cells) and of
/// pipelines, `PIPELINE/NODE`, and beginnings of ids.
///
/// Errs with the first that means nothing, or several things.
pub(super) fn select(store: &Store, index: &Index, what: &[String]) -> Result<Selection, Failure> {
    let mut selection = Selection::default();
    let (pipelines, nodes) = (index.pipeline_names(), index.node_names());
    for word in what {
        let whole = word.strip_suffix('/').unwrap_or(word);
        let is_pipeline = pipelines.iter().any(|name| name == whole);
        let of_node = |wanted: &str| nodes.iter().any(|name| Selection::is_of(name, wanted));
        match (is_pipeline, whole == word && of_node(word)) {
            (true, true) => {
                return Err(Diagnostic::error("cli::ambiguous", format!("`{word}` means several things"))
                    .note(format!("pipeline {word}"))
                    .note(format!("node {word}"))
                    .help(format!("say `{word}/` for the pipeline, `PIPELINE/{word}` for the node"))
                    .into());
            }
            (true, false) => _ = selection.pipelines.insert(whole.to_owned()),
            (false, true) => _ = selection.nodes.insert((None, word.clone())),
            (false, false) => match word.split_once('/') {
                Some((pipeline, node)) if pipelines.iter().any(|name| name == pipeline) && of_node(node) => {
                    selection.nodes.insert((Some(pipeline.to_owned()), node.to_owned()));
                }
                _ => by_id(store, word, &mut selection, pipelines.iter().chain(&nodes))?,
            },
        }
    }
    Ok(selection)
}

fn by_id<'a>(
    store: &Store,
    word: &str,
    selection: &mut Selection,
    names: impl Iterator<Item = &'a String>,
) -> Result<(), Failure> {
    let runs = find::beginning(store.run_ids()?, word);
    let hex = find::is_hex(word);
    let artifacts = if hex { store.artifacts_beginning(word)? } else { Vec::new() };
    let keys = if hex { store.keys_beginning(word)? } else { Vec::new() };
    match (&runs[..], &artifacts[..], &keys[..]) {
        ([run], [], []) => _ = selection.runs.insert(run.clone()),
        ([], [artifact], []) => _ = selection.artifacts.insert(*artifact),
        ([], [], [key]) => _ = selection.keys.insert(*key),
        ([], [], []) => {
            let fault = Diagnostic::error("cli::unknown", format!("nothing in the cache is called `{word}`"));
            return Err(match did_you_mean(word, names.map(String::as_str)) {
                Some(near) => fault.help(format!("a similar name exists: `{near}`")),
                None => fault.help(
                    "name a node, a pipeline, or the beginning of the id of a run, an artifact or a key; `sami cache ls` and \
                     `sami runs` list them",
                ),
            }
            .into());
        }
        _ => {
            let runs = runs.iter().map(|run| format!("run {run}"));
            let artifacts = artifacts.iter().map(|id| format!("artifact {}", id.short()));
            let keys = keys.iter().map(|key| format!("key {}", key.short()));
            return Err(find::ambiguous(word, runs.chain(artifacts).chain(keys).collect()));
        }
    }
    Ok(())
}
