//! `/`: what goes on, and what there is.

use serde::Serialize;

use super::pipelines;
use crate::inspect::run;
use crate::inspect::story::{Story, Told};
use crate::store::{RunRecord, Store};
use crate::ui::html::{Page, Tab};
use crate::ui::pipelines::LATEST;
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// Runs that are listed.
const RUNS: usize = 10;
/// Nodes that are listed of a run that goes on.
const RUNNING: usize = 12;

/// A run in a list.
#[derive(Debug, Serialize)]
struct Line {
    run: String,
    pipeline: String,
    started: String,
    took: Option<f64>,
    state: &'static str,
    counts: Vec<(&'static str, usize)>,
    /// How the last evaluation came out.
    win_rate: Option<String>,
}

/// A run that goes on.
#[derive(Debug, Serialize)]
struct Going {
    run: String,
    pipeline: String,
    started: String,
    seconds: Option<f64>,
    nodes: u64,
    finished: u64,
    failed: usize,
    running: Vec<Running>,
    more: usize,
}

/// A node that runs.
#[derive(Debug, Serialize)]
struct Running {
    name: String,
    #[serde(flatten)]
    told: Told,
    percent: Option<f64>,
    left: Option<f64>,
    rate: Option<f64>,
}

/// The page.
pub(super) fn page(site: &Site, _query: &Query) -> Result<Page, Problem> {
    let (store, index) = site.open()?;
    let mut runs = Vec::new();
    let mut going = Vec::new();
    let ids = store.run_ids()?;
    for (place, id) in ids.iter().rev().enumerate() {
        if runs.len() == RUNS {
            break;
        }
        let Some(run) = store.run(id)? else { continue };
        let line = line(&store, &run);
        if place < LATEST && line.state == "running" {
            going.push(far(&store, &run)?);
        }
        runs.push(line);
    }
    let page = Page::new(Tab::Overview, "Overview", "overview.html")
        .with("root", &site.root())
        .with("going", &going)
        .with("pipelines", &pipelines::lines(site, &store, &index)?)
        .with("more", &ids.len().saturating_sub(runs.len()))
        .with("runs", &runs);
    Ok(page)
}

fn line(store: &Store, run: &RunRecord) -> Line {
    let counts = run::STATES.into_iter().zip(run::counts(run)).filter(|(_, count)| *count > 0);
    Line {
        run: run.run.clone(),
        pipeline: run.pipeline.clone(),
        started: run.started.clone(),
        took: run::took(run),
        state: run::state_now(store, run),
        counts: counts.collect(),
        win_rate: run::win_rate(run),
    }
}

/// How far a run is that goes on.
fn far(store: &Store, run: &RunRecord) -> Result<Going, Problem> {
    let story = Story::of(store, &run.run)?;
    let all = story.running().count();
    let since = run.started.parse::<jiff::Timestamp>().ok();
    Ok(Going {
        run: run.run.clone(),
        pipeline: run.pipeline.clone(),
        started: run.started.clone(),
        seconds: since.map(|since| (crate::fs::now() - since).as_secs_f64().max(0.0)),
        nodes: story.nodes,
        finished: story.finished(),
        failed: story.told.values().filter(|told| told.state == "failed").count(),
        running: story.running().take(RUNNING).map(|(name, told)| running(name, told)).collect(),
        more: all.saturating_sub(RUNNING),
    })
}

fn running(name: &str, told: &Told) -> Running {
    Running {
        name: name.to_owned(),
        percent: told.share().map(|share| 100.0 * share),
        left: told.left(),
        rate: Some(told.done as f64 / told.seconds).filter(|rate| rate.is_finite() && *rate > 0.0),
        told: told.clone(),
    }
}
