//! What differs between two runs: params, nodes that came and went, keys that changed, metrics.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;
use serde_json::{Value, json};

use super::metric::{self, MetricChange};
use super::run;
use crate::digest::Digest;
use crate::graph::key::{self, Change};
use crate::store::{NodeRecord, RunNode, RunRecord, Store, StoreError};

/// What differs between two runs.
#[derive(Debug, Serialize)]
pub struct RunDiff {
    /// The earlier run's head.
    pub before: Value,
    /// The later run's head.
    pub after: Value,
    /// Params that differ.
    pub params: Vec<Change>,
    /// Nodes that the later run alone has.
    pub added: Vec<String>,
    /// Nodes that the earlier run alone has.
    pub removed: Vec<String>,
    /// Nodes of both that are not the same, each after the ones that it takes something from; those that changed
    /// themselves first.
    pub changed: Vec<NodeDiff>,
    /// Nodes of both that have one key and one artifact.
    pub same: usize,
    /// Their records.
    #[serde(skip)]
    pub runs: [RunRecord; 2],
}

/// A node of both runs that is not the same.
#[derive(Debug, Serialize)]
pub struct NodeDiff {
    /// Its name.
    pub node: String,
    /// Its kind.
    pub kind: String,
    /// Whether its own fields, or inputs that no node of the run made, changed; else it follows from what it takes.
    pub first: bool,
    /// It in the earlier run.
    pub before: Of,
    /// It in the later run.
    pub after: Of,
    /// What differs in the keys; nothing if one of them is not known.
    pub changes: Vec<Change>,
    /// The nodes whose changed artifacts it takes, by the input that it takes them as.
    pub from: BTreeMap<String, String>,
    /// Metrics that differ.
    pub metrics: Vec<MetricChange>,
}

/// A node in one of the runs.
#[derive(Debug, Serialize)]
pub struct Of {
    /// What became of it.
    pub state: String,
    /// Wall seconds of the attempt that made its artifact.
    pub seconds: f64,
    /// Its key, if it was known.
    pub key: Option<Digest>,
    /// Its artifact, if there is one.
    pub artifact: Option<Digest>,
}

impl Of {
    fn new(node: &RunNode) -> Self {
        Self { state: node.state.clone(), seconds: node.seconds, key: node.key, artifact: node.artifact }
    }
}

/// Compares. Reads the records of nodes whose keys differ.
pub fn runs(store: &Store, before: RunRecord, after: RunRecord) -> Result<RunDiff, StoreError> {
    let old: HashMap<&str, &RunNode> = before.nodes.iter().map(|node| (node.name.as_str(), node)).collect();
    let new: HashMap<&str, &RunNode> = after.nodes.iter().map(|node| (node.name.as_str(), node)).collect();
    let only = |one: &RunRecord, other: &HashMap<&str, &RunNode>| -> Vec<String> {
        one.nodes.iter().filter(|node| !other.contains_key(node.name.as_str())).map(|node| node.name.clone()).collect()
    };
    let differ: Vec<(&RunNode, &RunNode)> = after
        .nodes
        .iter()
        .filter_map(|node| Some((*old.get(node.name.as_str())?, node)))
        .filter(|(old, new)| (old.key, old.artifact) != (new.key, new.artifact) || old.metrics != new.metrics)
        .collect();
    // What a changed input comes from, if that is a node that is not the same.
    let makers: HashMap<Digest, &str> =
        differ.iter().filter_map(|(_, node)| Some((node.artifact?, node.name.as_str()))).collect();
    let record = |node: &RunNode| node.key.map(|key| store.node(&key)).transpose().map(Option::flatten);
    let mut changed: Vec<NodeDiff> = Vec::new();
    for (was, is) in &differ {
        let (old_record, new_record) = (record(was)?, record(is)?);
        let preimages = old_record.as_ref().zip(new_record.as_ref());
        let changes = preimages.map(|(old, new)| recipe(old, new)).unwrap_or_default();
        let from = taken_from(&changes, &makers, &is.name);
        changed.push(NodeDiff {
            node: is.name.clone(),
            kind: is.kind.clone(),
            first: changes
                .iter()
                .any(|change| change.path.strip_prefix("input ").is_none_or(|input| !from.contains_key(input)))
                || (changes.is_empty() && was.artifact != is.artifact && preimages.is_some()),
            before: Of::new(was),
            after: Of::new(is),
            changes,
            from,
            metrics: metric::changes(&was.metrics, &is.metrics),
        });
    }
    let changed = ordered(changed);
    let both = after.nodes.iter().filter(|node| old.contains_key(node.name.as_str())).count();
    let params = key::changes(&json!(before.params), &json!(after.params));
    let head = |run: &RunRecord| {
        json!({"run": run.run, "pipeline": run.pipeline, "file": run.file, "started": run.started,
            "seconds": run::took(run), "state": run::state(run)})
    };
    Ok(RunDiff {
        before: head(&before),
        after: head(&after),
        params,
        added: only(&after, &old),
        removed: only(&before, &new),
        same: both - changed.len(),
        changed,
        runs: [before, after],
    })
}

/// The nodes that made the changed inputs.
fn taken_from(changes: &[Change], makers: &HashMap<Digest, &str>, own: &str) -> BTreeMap<String, String> {
    let maker = |change: &Change| {
        let id: Digest = change.new.as_ref()?.as_str()?.parse().ok()?;
        let maker = makers.get(&id).filter(|maker| **maker != own)?;
        Some((change.path.strip_prefix("input ")?.to_owned(), (*maker).to_owned()))
    };
    changes.iter().filter_map(maker).collect()
}

/// Those that changed themselves first, and each after those that it takes something from.
fn ordered(nodes: Vec<NodeDiff>) -> Vec<NodeDiff> {
    let places: HashMap<String, usize> = nodes.iter().enumerate().map(|(at, node)| (node.node.clone(), at)).collect();
    let above: Vec<BTreeSet<usize>> =
        nodes.iter().map(|node| node.from.values().filter_map(|from| places.get(from)).copied().collect()).collect();
    let mut order = Vec::with_capacity(nodes.len());
    let mut seen = vec![false; nodes.len()];
    for start in 0..nodes.len() {
        let mut open = vec![(start, false)];
        while let Some((at, done)) = open.pop() {
            if done {
                order.push(at);
            } else if !std::mem::replace(&mut seen[at], true) {
                open.push((at, true));
                open.extend(above[at].iter().rev().filter(|above| !seen[**above]).map(|above| (*above, false)));
            }
        }
    }
    let mut nodes: Vec<Option<NodeDiff>> = nodes.into_iter().map(Some).collect();
    let mut ordered: Vec<NodeDiff> = order.into_iter().filter_map(|at| nodes[at].take()).collect();
    ordered.sort_by_key(|node| !node.first);
    ordered
}

/// What differs between two preimages, without the holes that inputs that came or went leave in the fields.
pub fn recipe(before: &NodeRecord, after: &NodeRecord) -> Vec<Change> {
    let is_nothing = |value: &Option<Value>| value.as_ref().is_none_or(Value::is_null);
    let mut changes = key::diff(&before.preimage, &after.preimage);
    changes.retain(|change| !is_nothing(&change.old) || !is_nothing(&change.new));
    changes
}
