//! What is told of a run, on its page and in the report: sections for the templates in `_run.html`.

use std::collections::BTreeSet;

use minijinja::value::Serde;
use minijinja::{Value, context};
use serde::Serialize;
use serde_json::Value as Json;

use super::Problem;
use super::charts::{self, Labelled, Line, legend, safe};
use crate::inspect::figures::{cut, figure};
use crate::inspect::metric::{self, Metric};
use crate::inspect::run::{self, Account, STATES};
use crate::plot::curve::Curves;
use crate::store::Store;

/// Letters of a param's value.
const LETTERS: usize = 240;
/// Nodes that are listed; a run of more shows those that need a look first.
const NODES: usize = 400;
/// Metrics of a node in the list.
const METRICS: usize = 4;

/// A run's head.
#[derive(Debug, Serialize)]
pub(super) struct Head {
    run: String,
    pipeline: String,
    file: String,
    started: String,
    /// Wall seconds, of one that has ended.
    took: Option<f64>,
    state: &'static str,
    params: Vec<(String, String)>,
    /// Nodes by state, in words.
    counts: Vec<(String, usize)>,
    nodes: u64,
    /// Nodes that were fresh from the start, of a run that has not ended: it does not name them.
    unnamed: u64,
}

/// What an account says first.
pub(super) fn head(account: &Account) -> Head {
    let Account { run, story } = account;
    let states: BTreeSet<&str> = run.nodes.iter().map(|node| node.state.as_str()).collect();
    // The usual ones in their usual order, then those of a run that goes on.
    let known = STATES.into_iter().filter(|state| states.contains(state));
    let others = states.iter().copied().filter(|state| !STATES.contains(state));
    let count = |state: &str| (state.to_owned(), run.nodes.iter().filter(|node| node.state == state).count());
    let ended = run.finished.is_some();
    Head {
        run: run.run.clone(),
        pipeline: run.pipeline.clone(),
        file: run.file.clone(),
        started: run.started.clone(),
        took: run::took(run),
        state: account.state(),
        params: run.params.iter().map(|(name, value)| (name.clone(), param(value))).collect(),
        counts: known.chain(others).map(count).collect(),
        nodes: if ended { run.nodes.len() as u64 } else { story.nodes },
        unnamed: if ended { 0 } else { story.hits },
    }
}

/// A param as it is shown.
pub(super) fn param(value: &Json) -> String {
    match value {
        Json::String(text) => cut(text, LETTERS),
        Json::Number(number) => number.to_string(),
        other => cut(&other.to_string(), LETTERS),
    }
}

/// A node of a run, as the list has it.
#[derive(Debug, Serialize)]
struct NodeLine {
    name: String,
    kind: String,
    state: String,
    /// Wall seconds, of one that was worked at in this run.
    seconds: Option<f64>,
    artifact: Option<crate::digest::Digest>,
    key: Option<crate::digest::Digest>,
    metrics: Vec<String>,
    /// How much is done, in percent, and of what.
    done: Option<String>,
}

/// The nodes of a run, and how many are not listed.
pub(super) fn nodes(account: &Account) -> Value {
    let Account { run, story } = account;
    let line = |node: &crate::store::RunNode| {
        let told = story.told.get(&node.name).filter(|_| node.state == "running" || node.state == "stopped");
        let done =
            told.filter(|told| told.total > 0).map(|told| format!("{} of {} {}", told.done, told.total, told.unit));
        NodeLine {
            name: node.name.clone(),
            kind: node.kind.clone(),
            state: node.state.clone(),
            // What did not run took no time in this run.
            seconds: (!matches!(node.state.as_str(), "hit" | "skipped" | "refused" | "waiting"))
                .then_some(node.seconds),
            artifact: node.artifact,
            key: node.key,
            metrics: metric::listed(&node.metrics).iter().take(METRICS).map(short).collect(),
            done,
        }
    };
    let urgent = |state: &str| matches!(state, "ran" | "hit");
    let mut all: Vec<&crate::store::RunNode> = run.nodes.iter().collect();
    if all.len() > NODES {
        all.sort_by_key(|node| urgent(&node.state));
    }
    let lines: Vec<NodeLine> = all.iter().take(NODES).map(|node| line(node)).collect();
    context! { lines => Serde(lines), more => all.len().saturating_sub(NODES) }
}

/// A metric in a few letters: its name, its value, its interval.
fn short(metric: &Metric) -> String {
    let interval = metric.interval.map_or_else(String::new, |[low, high]| {
        format!(" ({} to {})", figure(&Json::from(low)), figure(&Json::from(high)))
    });
    format!("{} {}{interval}", metric.name, value(&metric.value))
}

/// A metric's value; what is no number says so.
pub(super) fn value(value: &Json) -> String {
    if value.is_null() { "not a number".to_owned() } else { figure(value) }
}

/// What went wrong in a run, node by node.
#[derive(Debug, Serialize)]
struct Failure {
    node: String,
    attempt: u32,
    error: String,
    help: Option<String>,
    tail: Vec<String>,
}

/// The nodes that failed, and why.
pub(super) fn failures(account: &Account) -> Value {
    let failed = account.story.told.iter().filter(|(_, told)| told.state == "failed" || !told.error.is_empty());
    // One that failed once and then ran is no failure.
    let failed = failed.filter(|(_, told)| told.state != "ran");
    let failures: Vec<Failure> = failed
        .map(|(node, told)| Failure {
            node: node.clone(),
            attempt: told.attempt,
            error: told.error.clone(),
            help: told.help.clone(),
            tail: told.tail.clone(),
        })
        .collect();
    Value::from(Serde(failures))
}

/// Win rates: a picture of all evaluations, and what else the last one found.
pub(super) fn rates(store: &Store, account: &Account) -> Value {
    let run = &account.run;
    let all = charts::win_rates(&[Labelled { label: "", run }]);
    let last = charts::last_evaluation(store, run);
    let against = last.as_ref().map(|(_, found)| found.against.clone()).unwrap_or_default();
    let parts = last.map(|(node, found)| charts::evaluation(&node.name, &found)).unwrap_or_default();
    let pictures: Vec<Value> = all.iter().chain(&parts).map(|bars| safe(bars.svg())).collect();
    context! { pictures, against }
}

/// Figures over iterations: those to look at first, and the others.
pub(super) fn iterations(account: &Account) -> Value {
    let pictures = charts::iterations(&account.run);
    let (first, more) = pictures.split_at(pictures.len().min(6));
    context! { first => drawn(first), more => drawn(more) }
}

/// Curves of training, family by family.
pub(super) fn training(store: &Store, account: &Account) -> Value {
    let families = charts::families(store, &account.run);
    families.into_iter().map(|(name, lines)| family(&name, &lines)).collect()
}

/// The pictures of a family, or of a node in several runs.
pub(super) fn family(name: &str, lines: &[Line]) -> Value {
    let (first, more) = charts::training(lines);
    let names = legend(lines.iter().map(|line| (line.look, line.name.as_str())));
    let goes_on: Vec<String> = lines
        .iter()
        .filter_map(|line| Some(format!("{}: step {} of {}", line.name, line.training.steps, line.training.total?)))
        .collect();
    let cut = lines.iter().any(|line| line.training.cut);
    context! { name, several => lines.len() > 1, legend => names, first => drawn(&first), more => drawn(&more), goes_on, cut }
}

fn drawn(curves: &[Curves]) -> Vec<Value> {
    curves.iter().map(|curves| safe(curves.svg())).collect()
}

/// The account of the run that an address names.
pub(super) fn of(store: &Store, what: &str) -> Result<Account, Problem> {
    let absent = || Problem::new(404, format!("there is no run `{what}`"), "the list of runs has those that there are");
    let run = run::named(store, what)?.ok_or_else(absent)?;
    Account::of(store, &run)?.ok_or_else(|| {
        let help =
            "it did not get as far as writing one, is damaged, or is of another version; `sami cache verify` tells";
        Problem::new(404, format!("run {run} has no record that can be read"), help)
    })
}
