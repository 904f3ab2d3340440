//! `sami runs`: the runs of a cache.

use serde_json::{Value, json};

use super::figures::{clock, seconds};
use super::table::Table;
use super::{CommandResult, Context, DONE, context};
use crate::inspect::run::{counts, state, took};
use crate::store::{RunRecord, Store, StoreError};

/// Lists runs, newest first.
pub(super) fn list(context: &Context, last: usize) -> CommandResult {
    let store = Store::open_existing(&context.cache_directory(None)?)?;
    let ids = store.run_ids()?;
    let runs: Vec<RunRecord> = ids
        .iter()
        .rev()
        // A run without a record did not get as far as running anything.
        .filter_map(|id| store.run(id).transpose())
        .take(last)
        .collect::<Result<_, StoreError>>()?;
    if context.json() {
        context::print_json(&runs.iter().map(as_json).collect::<Vec<_>>())?;
        return Ok(DONE);
    }
    let mut table = Table::new(
        ["run", "pipeline", "started", "took", "state", "ran", "hit", "failed", "skipped"],
        &[3, 5, 6, 7, 8],
    );
    for run in &runs {
        let took = took(run).map_or_else(String::new, seconds);
        let head = [run.run.clone(), run.pipeline.clone(), clock(&run.started), took, state(run).to_owned()];
        let told = |count: usize| if run.nodes.is_empty() { String::new() } else { count.to_string() };
        table.row(head.into_iter().chain(counts(run).map(told)));
    }
    let mut text = if table.is_empty() { "no runs yet\n".to_owned() } else { table.text() };
    if runs.len() == last && ids.len() > last {
        text.push_str(&format!("{} more; `--last {}` lists all\n", ids.len() - last, ids.len()));
    }
    context::print(&text)?;
    Ok(DONE)
}

fn as_json(run: &RunRecord) -> Value {
    let [ran, hits, failed, skipped] = counts(run);
    json!({
        "run": run.run, "pipeline": run.pipeline, "file": run.file, "params": run.params, "state": state(run),
        "started": run.started, "finished": run.finished, "seconds": took(run), "ok": run.ok,
        "ran": ran, "hits": hits, "failed": failed, "skipped": skipped,
    })
}
