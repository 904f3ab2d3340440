//! `sami runs`: the runs of a cache.

use serde_json::{Value, json};

use super::figures::{clock, seconds};
use super::table::Table;
use super::{CommandResult, Context, DONE, context};
use crate::store::{RunRecord, Store, StoreError};

/// How many nodes of a run ended in which state.
pub(super) const STATES: [&str; 4] = ["ran", "hit", "failed", "skipped"];

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

/// How a run ended, in a word.
pub(super) fn state(run: &RunRecord) -> &'static str {
    match (run.ok, &run.finished) {
        (Some(true), _) => "ok",
        (Some(false), _) if run.nodes.iter().any(|node| node.state == "failed") => "failed",
        (Some(false), _) | (None, Some(_)) => "interrupted",
        (None, None) => "unfinished",
    }
}

/// Wall seconds of a run that has ended.
pub(super) fn took(run: &RunRecord) -> Option<f64> {
    let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
    Some((time(run.finished.as_deref()?)? - time(&run.started)?).as_secs_f64().max(0.0))
}

/// Nodes by state, in the order of [`STATES`].
pub(super) fn counts(run: &RunRecord) -> [usize; 4] {
    STATES.map(|state| run.nodes.iter().filter(|node| node.state == state).count())
}

fn as_json(run: &RunRecord) -> Value {
    let [ran, hits, failed, skipped] = counts(run);
    json!({
        "run": run.run, "pipeline": run.pipeline, "file": run.file, "params": run.params, "state": state(run),
        "started": run.started, "finished": run.finished, "seconds": took(run), "ok": run.ok,
        "ran": ran, "hits": hits, "failed": failed, "skipped": skipped,
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn how_a_run_ended_shows_in_its_record() {
        let (_folder, store, _) = sample::store();
        let run = store.run("20260102-000000-bbbb").unwrap().unwrap();
        assert_eq!((state(&run), took(&run), counts(&run)), ("ok", Some(125.0), [3, 1, 0, 0]));
        let stopped = RunRecord { ok: Some(false), ..run };
        assert_eq!(state(&stopped), "interrupted");
        let mut failed = stopped.clone();
        failed.nodes[1].state = "failed".to_owned();
        assert_eq!((state(&failed), counts(&failed)), ("failed", [2, 1, 1, 0]));
        let killed = RunRecord { ok: None, finished: None, ..failed };
        assert_eq!((state(&killed), took(&killed)), ("unfinished", None));
        let backwards = RunRecord { finished: Some("2025-01-01T00:00:00Z".to_owned()), ..killed };
        assert_eq!(took(&backwards), Some(0.0));
    }
}
