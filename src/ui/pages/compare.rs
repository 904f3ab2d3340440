//! `/compare`: two or more runs beside each other.

use minijinja::value::Serde;
use minijinja::{Value, context};
use serde_json::Value as Json;

use super::runs::{accounts, label};
use crate::inspect::compare::{self, MetricRow, NodeRow, Row};
use crate::inspect::diff;
use crate::inspect::figures::figure;
use crate::inspect::run::Account;
use crate::inspect::training::Training;
use crate::store::{RunRecord, Store};
use crate::ui::account::{self, head, value};
use crate::ui::charts::{self, Labelled, Line, safe};
use crate::ui::html::{Page, Tab};
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// Runs beside each other at most.
const RUNS: usize = 8;
/// Nodes whose curves are drawn; the first of them is open.
const TRAINED: usize = 24;
/// Rows of what differs, and of what does not.
const ROWS: usize = 200;
/// Changes of a node's recipe.
const CHANGES: usize = 12;

/// The page.
pub(super) fn page(site: &Site, query: &Query) -> Result<Page, Problem> {
    let store = site.store()?;
    let mut names: Vec<&str> = Vec::new();
    for name in query.all("run") {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.len() < 2 {
        return Err(Problem::new(
            400,
            "there is nothing to compare with",
            "choose two or more runs in the list of runs",
        ));
    }
    if names.len() > RUNS {
        return Err(Problem::new(400, format!("more than {RUNS} runs do not fit beside each other"), "choose fewer"));
    }
    let accounts = accounts(&store, &names)?;
    let labels: Vec<String> = (0..accounts.len()).map(label).collect();
    let runs: Vec<RunRecord> = accounts.iter().map(|account| account.run.clone()).collect();
    let told = compare::runs(&runs);
    let labelled: Vec<Labelled<'_>> = labels.iter().zip(&runs).map(|(label, run)| Labelled { label, run }).collect();
    let heads: Vec<Value> = labels
        .iter()
        .zip(&accounts)
        .enumerate()
        .map(|(look, (label, account))| {
            context! { label, head => Serde(head(account)), swatch => safe(crate::plot::svg::swatch(look)) }
        })
        .collect();
    let rates = charts::win_rates(&labelled).map(|bars| safe(bars.svg()));
    Ok(Page::new(Tab::Runs, format!("{} runs beside each other", runs.len()), "compare.html")
        .with("labels", &labels)
        .value("heads", Value::from(heads))
        .value("params", params(&told.params))
        .value("nodes", nodes(&told.nodes))
        .value("recipes", recipes(&store, &runs, &labels)?)
        .value("metrics", metrics(&told.metrics))
        .value("rates", rates.unwrap_or_default())
        .value("training", training(&store, &accounts, &labels)))
}

/// What differs, then what does not, each as far as a page bears it.
fn parted<T>(rows: &[T], differs: impl Fn(&T) -> bool, shown: impl Fn(&T) -> Value) -> Value {
    let part = |wanted: bool| -> (Vec<Value>, usize) {
        let of_part: Vec<&T> = rows.iter().filter(|row| differs(row) == wanted).collect();
        (of_part.iter().take(ROWS).map(|row| shown(row)).collect(), of_part.len())
    };
    let ((differ, differing), (same, alike)) = (part(true), part(false));
    context! { differ, differing, same, alike }
}

fn params(rows: &[Row<Json>]) -> Value {
    parted(
        rows,
        |row| row.differs,
        |row| {
            let cells: Vec<String> =
                row.cells.iter().map(|cell| cell.as_ref().map_or_else(String::new, account::param)).collect();
            context! { name => &row.name, cells }
        },
    )
}

fn nodes(rows: &[NodeRow]) -> Value {
    parted(
        rows,
        |row| row.row.differs,
        |row| {
            context! { name => &row.row.name, kind => &row.kind, cells => Serde(&row.row.cells) }
        },
    )
}

fn metrics(rows: &[MetricRow]) -> Value {
    parted(
        rows,
        |row| row.row.differs,
        |row| {
            let cell = |cell: &Option<crate::inspect::metric::Metric>| {
                let told = cell.as_ref()?;
                let interval =
                    told.interval.map(|[low, high]| format!("{} to {}", figure(&low.into()), figure(&high.into())));
                Some(context! { value => value(&told.value), interval })
            };
            let cells: Vec<Option<Value>> = row.row.cells.iter().map(cell).collect();
            context! { node => &row.node, name => &row.row.name, cells }
        },
    )
}

/// Where each run parts from the first: nodes that changed themselves, with what changed in them.
fn recipes(store: &Store, runs: &[RunRecord], labels: &[String]) -> Result<Value, Problem> {
    let first = &runs[0];
    let mut told = Vec::new();
    for (run, label) in runs.iter().zip(labels).skip(1) {
        let diff = diff::runs(store, first.clone(), run.clone())?;
        let changed: Vec<Value> = diff
            .changed
            .iter()
            .filter(|node| node.first && !node.changes.is_empty())
            .take(ROWS)
            .map(|node| {
                let changes: Vec<String> = node.changes.iter().take(CHANGES).map(ToString::to_string).collect();
                context! { node => &node.node, changes, more => node.changes.len().saturating_sub(CHANGES) }
            })
            .collect();
        let follow = diff.changed.iter().filter(|node| !node.first).count();
        told.push(context! { label, changed, follow });
    }
    Ok(Value::from(told))
}

/// The curves of every node that was trained in more than one of the runs, or in any if no node was in two.
fn training(store: &Store, accounts: &[Account], labels: &[String]) -> Value {
    let mut nodes: indexmap::IndexMap<String, Vec<Line>> = indexmap::IndexMap::new();
    for (look, (account, label)) in accounts.iter().zip(labels).enumerate() {
        for line in charts::families(store, &account.run).into_values().flatten() {
            // Equal keys have equal curves; they are drawn all the same, one over the other.
            let Line { name, training, ceiling, .. } = line;
            nodes.entry(name).or_default().push(Line { name: label.clone(), look, training, ceiling });
        }
    }
    // The last iterations say most.
    let mut order: Vec<(String, Vec<Line>)> = nodes.into_iter().collect();
    order.reverse();
    order.sort_by_key(|(_, lines)| lines.len() < 2 || alike(lines));
    let family = |(name, lines): &(String, Vec<Line>)| account::family(name, lines);
    order.iter().take(TRAINED).map(family).collect()
}

/// Whether all lines are the same one.
fn alike(lines: &[Line]) -> bool {
    lines.windows(2).all(|pair| same(&pair[0].training, &pair[1].training))
}

fn same(one: &Training, other: &Training) -> bool {
    one.steps == other.steps && one.figures.get("loss") == other.figures.get("loss")
}
