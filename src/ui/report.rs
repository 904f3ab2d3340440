//! `sami report`: a run in one file, to be sent to someone who has nothing but a browser.
//!
//! The sections are those of the run's page, without links and without scripts; styles and pictures are in the file.

use std::collections::BTreeMap;
use std::io;

use minijinja::value::Serde;
use minijinja::{Value, context};

use super::html::{STYLE, render};
use super::{account, charts};
use crate::inspect::dag::Dag;
use crate::inspect::origin::{self, Origins};
use crate::inspect::run::Account;
use crate::inspect::samples;
use crate::plot::dag::{Block, picture};
use crate::store::{Store, StoreError};

/// Nodes up to which the graph is drawn; one that is larger is told in the table alone.
const DRAWN: usize = 60;
/// Letters of a field's value.
const LETTERS: usize = 160;
/// Nodes whose origin is listed.
const LISTED: usize = 200;

/// Draws the report of a run, with so many samples.
///
/// Errs if the disk does.
pub fn draw(store: &Store, account: &Account, count: usize) -> Result<String, StoreError> {
    let origins = origin::of_run(store, &account.run)?;
    let samples = samples::of_run(store, &account.run, count);
    let (command, in_file) = origin::command(&account.run);
    let mut data: BTreeMap<&'static str, Value> = BTreeMap::new();
    data.insert("title", Value::from(format!("{}, run {}", account.run.pipeline, account.run.run)));
    // The sheet is ours; nothing of a cache is in it.
    data.insert("style", Value::from_safe_string(STYLE.to_owned()));
    data.insert("head", Value::from(Serde(account::head(account))));
    data.insert("kinds", Value::from(Serde(origin::kinds(&account.run))));
    data.insert("failures", account::failures(account));
    data.insert("rates", account::rates(store, account));
    data.insert("iterations", account::iterations(account));
    data.insert("training", account::training(store, account));
    data.insert("nodes", account::nodes(account));
    data.insert("samples", Value::from(Serde(samples)));
    data.insert("graph", graph(store, account)?);
    data.insert("origins", told(&origins));
    data.insert("command", Value::from(command));
    data.insert("in_file", Value::from(Serde(in_file)));
    data.insert("version", Value::from(env!("CARGO_PKG_VERSION")));
    // A mistake in our own template.
    render("report.html", &data)
        .map_err(|error| io::Error::other(format!("the report could not be drawn: {error:#}")).into())
}

/// The run's nodes and what they took as a picture; nothing of one that is too large for a page.
fn graph(store: &Store, account: &Account) -> Result<Value, StoreError> {
    let dag = Dag::of_run(store, &account.run)?;
    if dag.items.is_empty() || dag.items.len() > DRAWN {
        return Ok(Value::from(()));
    }
    let block = |item: &crate::inspect::dag::Item| Block {
        name: item.name.clone(),
        what: if item.state.is_empty() { item.kind.clone() } else { format!("{} · {}", item.kind, item.state) },
        title: format!("{} ({})", item.name, item.kind),
        state: item.state,
        is_source: item.is_source,
        ..Block::default()
    };
    let blocks: Vec<Block> = dag.items.iter().map(block).collect();
    Ok(charts::safe(picture("What each node took", &blocks, &dag.arrows)))
}

fn told(origins: &Origins) -> Value {
    let short = |value: &serde_json::Value| crate::inspect::figures::cut(&value.to_string(), LETTERS);
    let nodes: Vec<Value> = origins
        .nodes
        .iter()
        .take(LISTED)
        .map(|origin| {
            let fields: Vec<(String, String)> =
                origin.fields.iter().map(|(name, value)| (name.clone(), short(value))).collect();
            context! { origin => Serde(origin), fields => Serde(fields) }
        })
        .collect();
    context! {
        nodes,
        more => origins.nodes.len().saturating_sub(LISTED),
        missing => Serde(&origins.missing),
        sources => Serde(&origins.sources),
        machines => Serde(&origins.machines),
        versions => Serde(&origins.versions),
    }
}
