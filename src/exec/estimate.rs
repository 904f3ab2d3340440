//! What a run will come to, node by node, before it begins.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::device::devices;
use super::history::{History, Past, Subject};
use super::model::{Located, locate, open_hub};
use super::record::host;
use super::source::row_files;
use super::{ExecError, Plan, State};
use crate::kinds::estimate::{Amount, Estimate, Facts, Known, Place};
use crate::kinds::{self, Entry};
use crate::pipeline::dataset;
use crate::pipeline::{ArtifactType, Link, Node, Origin, Pipeline, Target};
use crate::store::{Index, Store};

/// Rows that prompts are filled in for.
const ROWS: usize = 16;

/// What nodes that have to run will come to, and those of which that is not known yet.
#[derive(Debug, Default)]
pub struct Estimates {
    /// By the nodes' index, those that are not fresh.
    pub nodes: BTreeMap<usize, Estimate>,
    /// What earlier attempts make likely of them, where there were any like them.
    pub past: BTreeMap<usize, Past>,
    /// Bytes to be downloaded first; `None` if the hub does not tell of some.
    pub download: Option<u64>,
}

/// What is known so far.
struct Estimator<'a> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    plan: &'a Plan,
    devices: Vec<Arc<str>>,
    sources: HashMap<&'a Target, Facts>,
    made: HashMap<usize, Facts>,
}

/// Estimates the nodes of a plan that are not fresh; of fresh ones no more is looked at than what the others need. `device` is
/// that of nodes that name none; `auto` is a GPU where there are some.
///
/// Reads a few rows of datasets, and forms and tokenizers of models; of a model that is not here the hub is asked for its form.
pub fn estimate(
    pipeline: &Pipeline,
    store: &Store,
    index: &Index,
    plan: &Plan,
    device: &str,
    gpus: usize,
) -> Result<Estimates, ExecError> {
    let stale = |node: &usize| matches!(plan.nodes[*node], State::Run { .. } | State::Unknown { .. });
    let mut wanted: Vec<bool> = (0..plan.nodes.len()).map(|node| stale(&node)).collect();
    let mut estimates = Estimates { download: Some(0), ..Estimates::default() };
    if !wanted.contains(&true) {
        return Ok(estimates);
    }
    for node in plan.order.iter().rev().filter(|node| is_asked_of(&pipeline.nodes[**node])) {
        // A model is known by its files.
        let by_files = !stale(node) && pipeline.nodes[*node].spec.output() == ArtifactType::Model;
        if wanted[*node] && !by_files {
            for link in &pipeline.nodes[*node].links {
                if let Target::Node(input) = link.target {
                    wanted[input] = true;
                }
            }
        }
    }
    let devices = devices(pipeline, device, gpus)?;
    let mut estimator = Estimator { pipeline, store, plan, devices, sources: HashMap::new(), made: HashMap::new() };
    let (mut history, host) = (History::default(), host());
    let figures =
        if plan.order.iter().any(|node| wanted[*node] && !stale(node)) { index.figures() } else { HashMap::new() };
    let mut absent: BTreeMap<&String, Option<u64>> = BTreeMap::new();
    for node in plan.order.iter().copied().filter(|node| wanted[*node]) {
        if let State::Hit { key, artifact } = &plan.nodes[node] {
            let facts = estimator.fresh(node, artifact);
            let facts = match figures.get(key) {
                Some((_, metrics)) => facts.corrected(metrics),
                None => facts,
            };
            estimator.made.insert(node, facts);
            continue;
        }
        absent.extend(pipeline.nodes[node].links.iter().filter_map(|link| plan.sources.absent(link)));
        let (mut estimate, parameters) = estimator.sized(node);
        let (own, place) = (&pipeline.nodes[node], estimate.place.unwrap_or(Place::Cpu));
        let subject =
            Subject { node: own, pipeline: &pipeline.name, estimate: &estimate, parameters, place, host: &host };
        if let Some(past) = history.of(store, index, &subject) {
            estimates.past.insert(node, past);
        }
        estimator.made.insert(node, std::mem::take(&mut estimate.made));
        estimates.nodes.insert(node, estimate);
    }
    estimates.download = absent.values().copied().sum();
    Ok(estimates)
}

/// Whether a kind says anything of its nodes that depends on their inputs.
fn is_asked_of(node: &Node) -> bool {
    node.kind.name != "command"
}

impl<'a> Estimator<'a> {
    fn of(&mut self, node: usize) -> Estimate {
        self.sized(node).0
    }

    /// The estimate of a node, and the parameters of all its models.
    fn sized(&mut self, node: usize) -> (Estimate, u64) {
        let pipeline = self.pipeline;
        let Node { kind, spec, links, run, .. } = &pipeline.nodes[node];
        let Some(entry) = kinds::find(kind.name) else { return (Estimate::default(), 0) };
        let mut inputs = BTreeMap::new();
        if is_asked_of(&pipeline.nodes[node]) {
            for link in links {
                let input = &link.field.input;
                let facts = self.facts(link).sliced(input.skip.unwrap_or(0), input.take);
                inputs.insert(link.field.path.as_str(), facts);
            }
        }
        let parameters = inputs.values().map(Facts::parameters).sum();
        let place = if &*self.devices[node] == "cpu" { Place::Cpu } else { Place::Gpu };
        let estimate = Entry::estimate(entry, spec.as_ref(), &Known { inputs, run, place });
        (Estimate { place: Some(place), ..estimate }, parameters)
    }

    /// What is known of what a fresh node made.
    fn fresh(&mut self, node: usize, artifact: &crate::digest::Digest) -> Facts {
        let output = self.pipeline.nodes[node].spec.output();
        if ![ArtifactType::Model, ArtifactType::Dataset].contains(&output) {
            return self.of(node).made;
        }
        let files = match self.store.files(artifact) {
            Ok(files) => files,
            Err(error) => return Facts::unknown(error.to_string()),
        };
        let rows = || {
            let (rows, some) = dataset::sample_of(files.get("rows.jsonl")?, ROWS)?;
            Some(Facts::of_rows(Amount::exactly(rows), some))
        };
        if output == ArtifactType::Model { Facts::of_model(&files) } else { rows().unwrap_or_default() }
    }

    fn facts(&mut self, link: &'a Link) -> Facts {
        let target = &link.target;
        if let Target::Node(input) = target {
            return match self.made.get(input) {
                Some(facts) if !facts.are_none() => facts.clone(),
                _ => Facts::unknown(format!("until {} has run", self.pipeline.nodes[*input].name)),
            };
        }
        if let Some(facts) = self.sources.get(target) {
            return facts.clone();
        }
        let facts = match target {
            Target::Model(name) => self.model(link, name),
            Target::Dataset(name) => self.dataset(link, name),
            Target::Node(_) => Facts::default(),
        };
        self.sources.insert(target, facts.clone());
        facts
    }

    fn model(&self, link: &Link, name: &str) -> Facts {
        let Some(model) = self.pipeline.models.get(name) else { return Facts::default() };
        let absent = || Facts::unknown(format!("until {name} is downloaded"));
        let facts = match &model.origin {
            Origin::Endpoint { calling, .. } => return Facts::of_endpoint(calling.price),
            // What is not here has a form all the same.
            Origin::Hub(repo) if self.plan.sources.absent(link).is_some() => {
                open_hub().and_then(|hub| hub.config(repo)).map_or_else(|_| absent(), Facts::of_config)
            }
            _ => match locate(name, model, self.pipeline) {
                Ok(Located::Here(place)) => Facts::of_model(place.files()),
                _ => absent(),
            },
        };
        facts.of_dtype(model.dtype.as_deref())
    }

    fn dataset(&self, link: &Link, name: &str) -> Facts {
        let absent = || Facts::unknown(format!("until {name} is downloaded"));
        let Some(spec) = self.pipeline.datasets.get(name) else { return Facts::default() };
        if self.plan.sources.absent(link).is_some() {
            return absent();
        }
        let sample = match row_files(spec, self.pipeline) {
            Ok(Located::Here(files)) => dataset::sample(spec, &files, ROWS),
            _ => return absent(),
        };
        let Some(sample) = sample else { return Facts::unknown(format!("until {name} can be read")) };
        let rows = if sample.exact { Amount::exactly(sample.rows) } else { Amount::at_most(sample.rows) };
        Facts::of_rows(rows, sample.some)
    }
}
