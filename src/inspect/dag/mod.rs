//! A pipeline's graph as it is looked at: nodes with their states, and what is folded of them.
//!
//! The nodes of an iteration are folded into one box, or those of several iterations that stand side by side; the cells of a
//! matrix of one node into another. What is open is chosen by whoever looks, within what can be drawn.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::name::Name;
use super::story::Story;
use crate::digest::Digest;
use crate::exec::{Plan, State};
use crate::inspect::figures;
use crate::pipeline::{Pipeline, Target};
use crate::store::{RunRecord, Store, StoreError};

/// Boxes up to which everything is open unless something else is asked for.
pub const ROOMY: usize = 60;
/// Most boxes that are drawn.
pub const MOST: usize = 1000;
/// Iterations up to which each folded one has its own box.
const SIDE_BY_SIDE: usize = 16;

/// States in the order in which they are told: what needs a look first.
pub const STATES: [&str; 12] = [
    "failed", "running", "waiting", "stale", "unknown", "refused", "stopped", "skipped", "outside", "ran", "hit",
    "fresh",
];

/// A node.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// Its whole name.
    pub name: String,
    /// The name without iteration and cell.
    pub base: String,
    /// Its iteration, if it is of a loop.
    pub iteration: Option<u64>,
    /// Whether it is a cell of a matrix.
    pub is_cell: bool,
    /// Kind name; `dataset` or `model` of what comes from outside.
    pub kind: String,
    /// One of [`STATES`]; empty of what has none.
    pub state: &'static str,
    /// Why it is so.
    pub why: String,
    /// Its key, if it is known.
    pub key: Option<Digest>,
    /// Its artifact, if there is one.
    pub artifact: Option<Digest>,
    /// Wall seconds of the attempt that made it, or so far.
    pub seconds: Option<f64>,
    /// How much is done, from 0 to 1, of one that runs.
    pub share: Option<f64>,
    /// Whether it comes from outside: a dataset or a model.
    pub is_source: bool,
}

/// A graph: nodes in the order of the pipeline, then what comes from outside.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Dag {
    /// Nodes and sources.
    pub items: Vec<Item>,
    /// From what is taken to what takes it, each pair once.
    pub arrows: Vec<(usize, usize)>,
}

/// What is to be unfolded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Open {
    /// Everything.
    pub all: bool,
    /// These iterations; `None`: those that are worth it.
    pub iterations: Option<BTreeSet<u64>>,
    /// The cells of nodes of this name.
    pub base: Option<String>,
}

/// A box of a folded graph.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Group {
    /// One node or source.
    One(usize),
    /// The cells of a matrix: of nodes of this name, in an iteration or in none.
    Cells(String, Option<u64>),
    /// All nodes of these iterations, the first and the last.
    Iterations(u64, u64),
}

/// A graph of which parts are folded.
#[derive(Debug, Clone)]
pub struct Folded {
    /// The boxes, each with the items in it.
    pub boxes: Vec<(Group, Vec<usize>)>,
    /// From box to box, each pair once.
    pub arrows: Vec<(usize, usize)>,
    /// Iterations that are unfolded.
    pub open: BTreeSet<u64>,
    /// Whether less is unfolded than was asked for, as it would be too much to draw.
    pub too_much: bool,
}

impl Item {
    fn new(name: &str, kind: &str) -> Self {
        let Name { base, cell, iteration } = Name::of(name);
        Self {
            name: name.to_owned(),
            base: base.to_owned(),
            iteration,
            is_cell: !cell.is_empty(),
            kind: kind.to_owned(),
            state: "",
            why: String::new(),
            key: None,
            artifact: None,
            seconds: None,
            share: None,
            is_source: false,
        }
    }

    fn source(name: &str, kind: &str) -> Self {
        let (name, base) = (name.to_owned(), name.to_owned());
        Self { name, base, iteration: None, is_cell: false, is_source: true, ..Self::new("", kind) }
    }
}

impl Dag {
    /// Of a pipeline, with what a plan says of its nodes.
    pub fn of_plan(pipeline: &Pipeline, plan: Option<&Plan>) -> Self {
        let mut items: Vec<Item> = pipeline.nodes.iter().map(|node| Item::new(&node.name, node.kind.name)).collect();
        for (item, state) in items.iter_mut().zip(plan.iter().flat_map(|plan| &plan.nodes)) {
            match state {
                State::Outside => item.state = "outside",
                State::Hit { key, artifact } => {
                    (item.state, item.key, item.artifact) = ("fresh", Some(*key), Some(*artifact));
                }
                State::Run { key, reason } => {
                    (item.state, item.key, item.why) = ("stale", Some(*key), reason.to_string());
                }
                State::Unknown { until, downloads } => {
                    let names = until.iter().map(|node| pipeline.nodes[*node].name.clone());
                    let models = downloads.keys().map(|name| format!("{name} is downloaded"));
                    let told: Vec<String> = names.chain(models).collect();
                    (item.state, item.why) = ("unknown", format!("until {}", figures::some(&told, ", ", 4)));
                }
            }
        }
        let mut sources: HashMap<&Target, usize> = HashMap::new();
        let mut arrows = Vec::new();
        for (at, node) in pipeline.nodes.iter().enumerate() {
            for link in &node.links {
                let from = match &link.target {
                    Target::Node(from) => *from,
                    target @ (Target::Model(name) | Target::Dataset(name)) => {
                        *sources.entry(target).or_insert_with(|| {
                            let kind = if matches!(target, Target::Model(_)) { "model" } else { "dataset" };
                            items.push(Item::source(name, kind));
                            items.len() - 1
                        })
                    }
                };
                arrows.push((from, at));
            }
        }
        Self::with(items, arrows)
    }

    /// Of a run, where its pipeline cannot be read: its nodes with their states then, and arrows by what they took.
    pub fn of_run(store: &Store, run: &RunRecord) -> Result<Self, StoreError> {
        let mut items: Vec<Item> = Vec::new();
        let mut makers: HashMap<Digest, usize> = HashMap::new();
        for node in &run.nodes {
            let state = STATES.into_iter().find(|state| *state == node.state).unwrap_or_default();
            let seconds = Some(node.seconds).filter(|_| state != "skipped");
            if let Some(artifact) = node.artifact {
                makers.entry(artifact).or_insert(items.len());
            }
            items.push(Item {
                state,
                key: node.key,
                artifact: node.artifact,
                seconds,
                ..Item::new(&node.name, &node.kind)
            });
        }
        let mut sources: HashMap<String, usize> = HashMap::new();
        let mut arrows = Vec::new();
        for at in 0..run.nodes.len() {
            let Some(record) = run.nodes[at].key.map(|key| store.node(&key)).transpose()?.flatten() else { continue };
            for (field, id) in &record.inputs {
                match (makers.get(id), record.sources.get(field)) {
                    (Some(from), _) => arrows.push((*from, at)),
                    (None, Some(named)) => {
                        let from = *sources.entry(named.clone()).or_insert_with(|| {
                            let (kind, name) = named.split_once(':').unwrap_or(("dataset", named));
                            items.push(Item::source(name, kind));
                            items.len() - 1
                        });
                        arrows.push((from, at));
                    }
                    (None, None) => {}
                }
            }
        }
        Ok(Self::with(items, arrows))
    }

    fn with(items: Vec<Item>, mut arrows: Vec<(usize, usize)>) -> Self {
        arrows.sort_unstable();
        arrows.dedup();
        Self { items, arrows }
    }

    /// Takes over what a run that goes on has told of nodes: newer than any plan.
    pub fn hear(&mut self, story: &Story) {
        for item in self.items.iter_mut().filter(|item| !item.is_source) {
            let Some(told) = story.told.get(&item.name) else { continue };
            // What has ended well shows in the plan, which knows whether it still holds.
            if matches!(told.state, "ran" | "hit") && item.state == "fresh" {
                continue;
            }
            item.state = told.state;
            item.share = told.share();
            item.seconds = Some(told.seconds).filter(|seconds| *seconds > 0.0);
            item.key = item.key.or(told.key);
            item.why = if told.error.is_empty() { told.why.clone() } else { told.error.clone() };
        }
    }

    /// How many nodes are in which state, in the order of [`STATES`].
    pub fn counts(&self) -> Vec<(&'static str, usize)> {
        count(self.items.iter())
    }

    /// All iterations, in order, each with its nodes.
    pub fn iterations(&self) -> BTreeMap<u64, Vec<usize>> {
        let mut iterations: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (at, item) in self.items.iter().enumerate() {
            if let Some(iteration) = item.iteration {
                iterations.entry(iteration).or_default().push(at);
            }
        }
        iterations
    }

    /// The states of some items, as [`Dag::counts`].
    pub fn counts_of(&self, members: &[usize]) -> Vec<(&'static str, usize)> {
        count(members.iter().map(|at| &self.items[*at]))
    }

    /// Folds what is not open.
    pub fn fold(&self, open: &Open) -> Folded {
        let iterations = self.iterations();
        let everything: BTreeSet<u64> = iterations.keys().copied().collect();
        let roomy = self.items.len() <= ROOMY;
        let chosen = match &open.iterations {
            _ if open.all => everything.clone(),
            Some(asked) => asked.intersection(&everything).copied().collect(),
            None if roomy => everything.clone(),
            None => self.worth_it(&iterations).into_iter().collect(),
        };
        let cells = open.all || roomy;
        let folded = self.folded(&iterations, &chosen, cells, open.base.as_deref());
        if folded.boxes.len() <= MOST {
            return folded;
        }
        // Cells first, then all iterations but one.
        let fewer = self.folded(&iterations, &chosen, false, None);
        let fewer = if fewer.boxes.len() <= MOST {
            fewer
        } else {
            let one = chosen.first().copied().filter(|_| chosen.len() < everything.len());
            self.folded(&iterations, &one.or_else(|| self.worth_it(&iterations)).into_iter().collect(), false, None)
        };
        Folded { too_much: true, ..fewer }
    }

    /// The first iteration in which something is to be looked at, or else the last one.
    fn worth_it(&self, iterations: &BTreeMap<u64, Vec<usize>>) -> Option<u64> {
        let is_done = |at: &usize| matches!(self.items[*at].state, "fresh" | "ran" | "hit" | "");
        let first = iterations.iter().find(|(_, members)| !members.iter().all(is_done));
        first.or_else(|| iterations.iter().next_back()).map(|(iteration, _)| *iteration)
    }

    fn folded(
        &self,
        iterations: &BTreeMap<u64, Vec<usize>>,
        open: &BTreeSet<u64>,
        cells: bool,
        base: Option<&str>,
    ) -> Folded {
        let ranges = ranges(iterations, open);
        let mut names: HashMap<&str, usize> = HashMap::new();
        self.items.iter().filter(|item| item.is_cell).for_each(|item| *names.entry(&item.base).or_default() += 1);
        let group = |at: usize, item: &Item| match item.iteration {
            Some(iteration) if !open.contains(&iteration) => {
                let (first, last) = ranges[&iteration];
                Group::Iterations(first, last)
            }
            _ if item.is_cell && !cells && base != Some(&item.base) => Group::Cells(item.base.clone(), item.iteration),
            _ => Group::One(at),
        };
        let mut boxes: Vec<(Group, Vec<usize>)> = Vec::new();
        let mut places: HashMap<Group, usize> = HashMap::new();
        let mut within = Vec::with_capacity(self.items.len());
        for (at, item) in self.items.iter().enumerate() {
            let group = group(at, item);
            let place = *places.entry(group.clone()).or_insert_with(|| {
                boxes.push((group, Vec::new()));
                boxes.len() - 1
            });
            boxes[place].1.push(at);
            within.push(place);
        }
        let between = self.arrows.iter().map(|(from, to)| (within[*from], within[*to])).filter(|(from, to)| from != to);
        let arrows: BTreeSet<(usize, usize)> = between.collect();
        Folded { boxes, arrows: arrows.into_iter().collect(), open: open.clone(), too_much: false }
    }
}

/// For each folded iteration the first and the last that share its box.
fn ranges(iterations: &BTreeMap<u64, Vec<usize>>, open: &BTreeSet<u64>) -> HashMap<u64, (u64, u64)> {
    let apart = iterations.len() <= SIDE_BY_SIDE;
    let mut ranges: Vec<Vec<u64>> = Vec::new();
    let mut goes_on = false;
    for iteration in iterations.keys() {
        if open.contains(iteration) {
            goes_on = false;
            continue;
        }
        match ranges.last_mut() {
            Some(range) if goes_on && !apart => range.push(*iteration),
            _ => ranges.push(vec![*iteration]),
        }
        goes_on = true;
    }
    let ends = |range: &Vec<u64>| (range[0], range[range.len() - 1]);
    ranges.iter().flat_map(|range| range.iter().map(move |iteration| (*iteration, ends(range)))).collect()
}

fn count<'a>(items: impl Iterator<Item = &'a Item>) -> Vec<(&'static str, usize)> {
    let mut counts = [0; STATES.len()];
    for item in items {
        if let Some(place) = STATES.iter().position(|state| *state == item.state) {
            counts[place] += 1;
        }
    }
    STATES.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests;
