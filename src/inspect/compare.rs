//! Two or more runs beside each other: params, nodes and metrics, what differs first.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value;

use super::metric::{self, Metric};
use crate::digest::Digest;
use crate::store::{RunNode, RunRecord};

/// Runs beside each other.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Params of any of the runs, those that differ first.
    pub params: Vec<Row<Value>>,
    /// Nodes of any of the runs, in their order, those that are not the same in all first.
    pub nodes: Vec<NodeRow>,
    /// Metrics of any of the nodes, those that differ first, and among these those that say how well it went.
    pub metrics: Vec<MetricRow>,
}

/// What one thing is in each of the runs.
#[derive(Debug, Serialize)]
pub struct Row<T> {
    /// What.
    pub name: String,
    /// Whether it is not the same in all.
    pub differs: bool,
    /// In each run, if it is there.
    pub cells: Vec<Option<T>>,
}

/// A node in each of the runs.
#[derive(Debug, Serialize)]
pub struct NodeRow {
    /// Its kind.
    pub kind: String,
    /// It, by run.
    pub row: Row<Cell>,
}

/// A node in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// What became of it.
    pub state: String,
    /// Its key, if it was known.
    pub key: Option<Digest>,
    /// Its artifact, if there is one.
    pub artifact: Option<Digest>,
    /// Wall seconds of the attempt that made the artifact.
    pub seconds: f64,
    /// The number of the key among those of the row, from 0: equal ones have equal keys.
    pub same: usize,
}

/// A metric in each of the runs.
#[derive(Debug, Serialize)]
pub struct MetricRow {
    /// The node's name.
    pub node: String,
    /// It, by run.
    pub row: Row<Metric>,
}

/// Lays runs beside each other.
pub fn runs(runs: &[RunRecord]) -> Comparison {
    Comparison { params: params(runs), nodes: nodes(runs), metrics: metrics(runs) }
}

fn differs<T: PartialEq>(cells: &[Option<T>]) -> bool {
    cells.windows(2).any(|pair| pair[0] != pair[1])
}

fn params(runs: &[RunRecord]) -> Vec<Row<Value>> {
    let mut names: Vec<&String> = runs.iter().flat_map(|run| run.params.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let row = |name: &String| {
        let cells: Vec<Option<Value>> = runs.iter().map(|run| run.params.get(name).cloned()).collect();
        Row { name: name.clone(), differs: differs(&cells), cells }
    };
    let mut rows: Vec<Row<Value>> = names.into_iter().map(row).collect();
    rows.sort_by_key(|row| !row.differs);
    rows
}

/// The nodes of all runs, each once, in the order of the first run that has them.
fn by_name(runs: &[RunRecord]) -> IndexMap<&str, Vec<Option<&RunNode>>> {
    let mut names: IndexMap<&str, Vec<Option<&RunNode>>> = IndexMap::new();
    for (at, run) in runs.iter().enumerate() {
        for node in &run.nodes {
            names.entry(&node.name).or_insert_with(|| vec![None; runs.len()])[at] = Some(node);
        }
    }
    names
}

fn nodes(runs: &[RunRecord]) -> Vec<NodeRow> {
    let row = |(name, nodes): (&str, Vec<Option<&RunNode>>)| {
        let mut keys: HashMap<Option<Digest>, usize> = HashMap::new();
        let mut cell = |node: &RunNode| {
            let next = keys.len();
            let same = *keys.entry(node.key).or_insert(next);
            let (state, key, artifact) = (node.state.clone(), node.key, node.artifact);
            Cell { state, key, artifact, seconds: node.seconds, same }
        };
        let cells: Vec<Option<Cell>> = nodes.iter().map(|node| node.map(&mut cell)).collect();
        let made: Vec<_> = nodes.iter().map(|node| node.map(|node| (node.key, node.artifact))).collect();
        let kind = nodes.iter().flatten().next().map_or_else(String::new, |node| node.kind.clone());
        NodeRow { kind, row: Row { name: name.to_owned(), differs: differs(&made), cells } }
    };
    let mut rows: Vec<NodeRow> = by_name(runs).into_iter().map(row).collect();
    rows.sort_by_key(|row| !row.row.differs);
    rows
}

fn metrics(runs: &[RunRecord]) -> Vec<MetricRow> {
    let mut rows = Vec::new();
    for (node, nodes) in by_name(runs) {
        let listed: Vec<Vec<Metric>> =
            nodes.iter().map(|node| node.map(|node| metric::listed(&node.metrics)).unwrap_or_default()).collect();
        let mut names: Vec<&str> = listed.iter().flatten().map(|metric| metric.name.as_str()).collect();
        names.sort_by_key(|name| metric::order(name));
        names.dedup();
        for name in names {
            let cells: Vec<Option<Metric>> =
                listed.iter().map(|metrics| metrics.iter().find(|metric| metric.name == name).cloned()).collect();
            let row = Row { name: name.to_owned(), differs: differs(&cells), cells };
            rows.push(MetricRow { node: node.to_owned(), row });
        }
    }
    let told = |row: &MetricRow| {
        let metric = row.row.cells.iter().flatten().next();
        // How well it went, then what has an interval, then how it came about.
        let rank = metric
            .map_or(2, |metric| if metric.interval.is_some() { 0 } else { usize::from(!metric.is_outcome()) + 1 });
        (!row.row.differs, rank)
    };
    rows.sort_by_key(told);
    rows
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn what_differs_comes_first() {
        let (_folder, store, _) = sample::store();
        let all: Vec<RunRecord> = store.runs().expect("runs");
        let told = runs(&all);
        let params: Vec<(&str, bool)> = told.params.iter().map(|row| (row.name.as_str(), row.differs)).collect();
        assert_eq!(params, [("lr", true), ("name", false)]);
        assert!(told.nodes.iter().all(|node| node.row.differs), "the sample's runs made different things");
        let first = &told.metrics[0];
        assert_eq!((first.node.as_str(), first.row.name.as_str(), first.row.differs), ("train@1", "bound", true));
        let last = told.metrics.last().expect("some");
        assert!(!last.row.differs);
        let same = runs(&[all[0].clone(), all[0].clone(), all[0].clone()]);
        assert!(
            same.nodes
                .iter()
                .all(|node| !node.row.differs && node.row.cells[2].as_ref().is_some_and(|cell| cell.same == 0))
        );
    }

    #[test]
    fn runs_of_other_pipelines_have_gaps() {
        let (_folder, store, _) = sample::store();
        let one = store.runs().expect("runs").remove(0);
        let empty = RunRecord { nodes: Vec::new(), params: [].into(), ..one.clone() };
        let told = runs(&[empty, one]);
        assert!(told.params.iter().all(|row| row.differs && row.cells[0].is_none()));
        assert!(told.nodes.iter().all(|node| node.row.cells[0].is_none()));
        assert!(runs(&[]).nodes.is_empty());
    }
}
