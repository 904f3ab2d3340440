//! From a node to what made it stale: the exact fields and inputs, followed up to the first ancestors that differ.
//!
//! Approach: depth first, through every input that is not known yet or not what it was, each node once; so the walk is
//! linear in what it passes. It reads records (two for a node that was made anew, `CELLS` for a new cell of a matrix, one
//! for any other), and of those no more than [`MOST`] nodes have.

use std::collections::HashSet;

use serde_json::Value;

use super::model::Located;
use super::source::{Source, row_files};
use super::{Plan, Reason, State};
use crate::digest::Digest;
use crate::graph::key::{self, Change};
use crate::pipeline::dataset::{self, Row};
use crate::pipeline::{Link, Pipeline, Target};
use crate::store::{Index, NodeRecord, Store, StoreError};

/// Nodes whose records are read.
const MOST: usize = 64;
/// Cells of a matrix that a new one is likened to.
const CELLS: usize = 8;
/// Bytes of a dataset's files that are read to tell which rows changed.
const LARGEST: u64 = 64 << 20;

/// What is said of a node on the way.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// It is fresh.
    Fresh {
        /// Its key.
        key: Digest,
        /// Its artifact.
        artifact: Digest,
    },
    /// It has to run.
    Runs {
        /// Its key.
        key: Digest,
        /// Why.
        reason: Reason,
        /// If it never ran: the cell of its matrix that is most like it, and what differs from that.
        like: Option<(String, Vec<Change>)>,
    },
    /// Nothing is known until nodes that it needs have run, or models and datasets are here.
    Waits {
        /// The inputs through which it needs them, and what they are called.
        inputs: Vec<(String, String)>,
        /// What differs already from when it last had an artifact, whatever these inputs turn out to be.
        changes: Vec<Change>,
    },
    /// It made another artifact than before, because its own key changed.
    Remade {
        /// How.
        changes: Vec<Change>,
    },
    /// It made another artifact than before from the same inputs and fields.
    Differs,
    /// A dataset or a model from outside that is not what it was.
    Source {
        /// What nodes took.
        old: Digest,
        /// What they take now, if it can be read.
        new: Option<Digest>,
        /// The node that takes it, by index, and as which input.
        taken: (usize, String),
    },
    /// A model or dataset that is not in the hub's cache yet.
    Absent {
        /// What has to be downloaded, if the hub tells.
        bytes: Option<u64>,
    },
}

/// A step on the way up.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The node; for a source the name of the dataset or model.
    pub name: String,
    /// What is said of it.
    pub finding: Finding,
}

/// Explains a node of a plan: first the node itself, then, input by input, the ancestors that made it so, up to those
/// whose inputs are as they were, that never ran, or that are sources.
pub fn why(
    pipeline: &Pipeline,
    store: &Store,
    index: &Index,
    plan: &Plan,
    node: usize,
) -> Result<Vec<Step>, StoreError> {
    let mut walk = Walk { pipeline, store, index, plan, steps: Vec::new(), named: HashSet::new(), read: 0 };
    let (mut open, mut seen) = (vec![Open::Node(node)], HashSet::from([node]));
    while let Some(next) = open.pop() {
        let mut found = match next {
            Open::Node(at) => walk.node(at)?,
            Open::Made(at, before) => walk.made(at, &before)?,
        };
        found.retain(|next| match next {
            Open::Node(at) | Open::Made(at, _) => seen.insert(*at),
        });
        open.extend(found.into_iter().rev());
    }
    Ok(walk.steps)
}

/// The rows of a slice as they are now, of a dataset that is not too large to be read for an explanation.
pub fn rows_now(pipeline: &Pipeline, node: usize, input: &str) -> Option<Vec<Row>> {
    let link = pipeline.nodes[node].links.iter().find(|link| link.field.path == input)?;
    let Source::Rows { dataset, skip, take } = Source::of(link)? else { return None };
    let spec = pipeline.datasets.get(&dataset)?;
    let Ok(Located::Here(files)) = row_files(spec, pipeline) else { return None };
    let size = |path: &std::path::Path| fs_err::metadata(path).map_or(0, |file| file.len());
    if files.iter().map(|file| size(&file.path)).sum::<u64>() > LARGEST {
        return None;
    }
    let rows = dataset::read(spec, &files).ok()?;
    Some(dataset::slice(&rows, Some(skip), take).to_vec())
}

/// What is to be looked at.
enum Open {
    /// A node as the plan has it.
    Node(usize),
    /// A node that has made another artifact than this one.
    Made(usize, Digest),
}

struct Walk<'a> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    index: &'a Index,
    plan: &'a Plan,
    steps: Vec<Step>,
    /// Sources that were told.
    named: HashSet<String>,
    /// Nodes whose records were read.
    read: usize,
}

impl Walk<'_> {
    fn step(&mut self, node: usize, finding: Finding) {
        self.steps.push(Step { name: self.pipeline.nodes[node].name.clone(), finding });
    }

    /// Says of a node what the plan has of it; returns the inputs that make it so.
    fn node(&mut self, at: usize) -> Result<Vec<Open>, StoreError> {
        match &self.plan.nodes[at] {
            State::Outside => Ok(Vec::new()),
            State::Hit { key, artifact } => {
                self.step(at, Finding::Fresh { key: *key, artifact: *artifact });
                Ok(Vec::new())
            }
            State::Run { key, reason } => {
                let like = if *reason == Reason::New { self.like(at)? } else { None };
                self.step(at, Finding::Runs { key: *key, reason: reason.clone(), like });
                let Reason::Changed(changes) = reason else { return Ok(Vec::new()) };
                Ok(self.changed_inputs(at, changes))
            }
            State::Unknown { .. } => self.waiting(at),
        }
    }

    fn waiting(&mut self, at: usize) -> Result<Vec<Open>, StoreError> {
        let (mut inputs, mut absent, mut next) = (Vec::new(), Vec::new(), Vec::new());
        for link in &self.pipeline.nodes[at].links {
            let path = || link.field.path.clone();
            if let Some((name, bytes)) = self.plan.sources.absent(link) {
                inputs.push((path(), name.clone()));
                absent.push((name.clone(), bytes));
            } else if let Target::Node(input) = link.target
                && self.plan.artifact(input).is_none()
            {
                inputs.push((path(), self.pipeline.nodes[input].name.clone()));
                next.push(Open::Node(input));
            }
        }
        let changes = self.known_changes(at, &inputs)?;
        self.step(at, Finding::Waits { inputs, changes });
        for (name, bytes) in absent {
            if self.named.insert(name.clone()) {
                self.steps.push(Step { name, finding: Finding::Absent { bytes } });
            }
        }
        Ok(next)
    }

    /// What differs from the latest record of a node, but for inputs of which nothing is known.
    fn known_changes(&mut self, at: usize, unknown: &[(String, String)]) -> Result<Vec<Change>, StoreError> {
        if self.read >= MOST {
            return Ok(Vec::new());
        }
        let latest = self.plan.records.latest_of(self.index, &self.pipeline.nodes[at].name);
        let Some(latest) = latest else { return Ok(Vec::new()) };
        self.read += 1;
        let Some(record) = self.store.node(&latest)? else { return Ok(Vec::new()) };
        let mut changes = key::diff(&record.preimage, &self.plan.recipe(self.pipeline, at).preimage);
        changes.retain(|change| {
            change.path.strip_prefix("input ").is_none_or(|path| unknown.iter().all(|(input, _)| input != path))
        });
        Ok(changes)
    }

    /// Of a cell of a matrix that never ran: the cell that did and is most like it.
    fn like(&mut self, at: usize) -> Result<Option<(String, Vec<Change>)>, StoreError> {
        let own = &self.pipeline.nodes[at].name;
        let Some((stem, _)) = own.split_once('[') else { return Ok(None) };
        if self.read >= MOST {
            return Ok(None);
        }
        self.read += 1;
        let mut cells = self.plan.records.cells(self.index, stem);
        cells.sort_unstable();
        let mut best: Option<(String, Vec<Change>)> = None;
        let preimage = self.plan.recipe(self.pipeline, at).preimage;
        for (name, key) in cells.into_iter().take(CELLS) {
            let Some(record) = self.store.node(&key)? else { continue };
            let changes = key::diff(&record.preimage, &preimage);
            if best.as_ref().is_none_or(|(_, fewest)| changes.len() < fewest.len()) {
                best = Some((name, changes));
            }
        }
        Ok(best)
    }

    /// Says of a node that is fresh how it came to make something else than before.
    fn made(&mut self, at: usize, before: &Digest) -> Result<Vec<Open>, StoreError> {
        let State::Hit { key, .. } = &self.plan.nodes[at] else { return self.node(at) };
        if self.read >= MOST {
            return Ok(Vec::new());
        }
        self.read += 1;
        let name = &self.pipeline.nodes[at].name;
        let (now, before) = (self.store.node(key)?, maker(self.store, self.index, before, name)?);
        let (Some(now), Some(before)) = (now, before) else { return Ok(Vec::new()) };
        let changes = key::diff(&before.preimage, &now.preimage);
        if changes.is_empty() {
            self.step(at, Finding::Differs);
            return Ok(Vec::new());
        }
        self.step(at, Finding::Remade { changes: changes.clone() });
        Ok(self.changed_inputs(at, &changes))
    }

    /// The nodes that made changed inputs; sources among these are told.
    fn changed_inputs(&mut self, at: usize, changes: &[Change]) -> Vec<Open> {
        let mut next = Vec::new();
        for (link, old) in changed_links(&self.pipeline.nodes[at].links, changes) {
            match &link.target {
                Target::Node(input) => next.push(Open::Made(*input, old)),
                Target::Model(name) | Target::Dataset(name) => {
                    if self.named.insert(format!("{name} {old}")) {
                        let (new, taken) = (self.plan.sources.id(link), (at, link.field.path.clone()));
                        self.steps.push(Step { name: name.clone(), finding: Finding::Source { old, new, taken } });
                    }
                }
            }
        }
        next
    }
}

/// The inputs that changed, and the content ids that they had.
fn changed_links<'a>(links: &'a [Link], changes: &[Change]) -> Vec<(&'a Link, Digest)> {
    let of = |change: &Change| {
        let path = change.path.strip_prefix("input ")?;
        let old = change.old.as_ref().and_then(Value::as_str)?.parse().ok()?;
        Some((links.iter().find(|link| link.field.path == path)?, old))
    };
    changes.iter().filter_map(of).collect()
}

/// The record of the work that made an artifact, that of the node called `name` before others.
fn maker(store: &Store, index: &Index, artifact: &Digest, name: &str) -> Result<Option<NodeRecord>, StoreError> {
    let makers = index.makers(artifact);
    match makers.iter().find(|maker| maker.node == name).or(makers.first()) {
        Some(maker) => store.node(&maker.key),
        None => Ok(None),
    }
}
