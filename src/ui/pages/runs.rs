//! `/runs`: the runs of the cache, newest first.

use serde::Serialize;

use crate::inspect::run::{self, Account};
use crate::store::{RunRecord, Store};
use crate::ui::account;
use crate::ui::html::{Page, Tab};
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// Runs of a page.
const LISTED: usize = 50;
/// Runs that are looked at for those of a pipeline.
const LOOKED_AT: usize = 2000;

#[derive(Debug, Serialize)]
struct Line {
    run: String,
    /// Absent if its record cannot be read.
    told: Option<Told>,
}

#[derive(Debug, Serialize)]
struct Told {
    pipeline: String,
    started: String,
    took: Option<f64>,
    state: &'static str,
    /// How many nodes ran, were fresh, failed, were skipped; empty as long as that is not told.
    counts: Vec<usize>,
    /// How the last evaluation came out.
    outcome: String,
}

/// The page.
pub(super) fn page(site: &Site, query: &Query) -> Result<Page, Problem> {
    let (store, index) = site.open()?;
    let wanted = query.get("pipeline");
    let mut ids = store.run_ids()?;
    ids.reverse();
    let begin = match query.get("after") {
        Some(after) => ids.iter().position(|id| id.as_str() < after).unwrap_or(ids.len()),
        None => 0,
    };
    let mut lines = Vec::new();
    let mut last = None;
    for id in ids.iter().skip(begin).take(LOOKED_AT) {
        if lines.len() == LISTED {
            break;
        }
        last = Some(id.clone());
        let record = store.run(id)?;
        if wanted.is_none_or(|wanted| record.as_ref().is_some_and(|run| run.pipeline == wanted)) {
            let told = record.map(|run| told(&store, run));
            lines.push(Line { run: id.clone(), told });
        }
    }
    let more = last.as_ref().filter(|last| ids.last() != Some(*last));
    Ok(Page::new(Tab::Runs, "Runs", "runs.html")
        .with("lines", &lines)
        .with("of", &ids.len())
        .with("pipeline", &wanted)
        .with("pipelines", &index.pipeline_names())
        .with("newest", &(begin == 0))
        .with("more", &more))
}

fn told(store: &Store, record: RunRecord) -> Told {
    let counts = if record.finished.is_some() { run::counts(&record).to_vec() } else { Vec::new() };
    let took = run::took(&record);
    let outcome = run::win_rate(&record);
    let (pipeline, started) = (record.pipeline.clone(), record.started.clone());
    let state = run::state_now(store, &record);
    Told { pipeline, started, took, state, counts, outcome: outcome.unwrap_or_default() }
}

/// The labels of runs beside each other: A, B, C, …
pub(super) fn label(at: usize) -> String {
    char::from_u32('A' as u32 + at as u32)
        .filter(char::is_ascii_uppercase)
        .map_or_else(|| format!("#{at}"), String::from)
}

/// The accounts of the runs that an address names.
pub(super) fn accounts(store: &Store, names: &[&str]) -> Result<Vec<Account>, Problem> {
    names.iter().map(|name| account::of(store, name)).collect()
}
