//! What would run and why.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::records::{Found, Records};
use super::select::{Bare, select};
use super::source::Sources;
use super::{ExecError, Reason, tolerance};
use crate::digest::Digest;
use crate::graph::{Graph, key};
use crate::pipeline::{Pipeline, Target};
use crate::store::{Index, NodeRecord, Store};

/// Nodes that an unknown one is said to wait for, at most: so that a plan is linear in the pipeline.
const MOST_UNTIL: usize = 8;

/// What to plan.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Names of nodes to bring up to date, with all that they need; all nodes if empty. A name without an iteration
    /// means the last one, a name without variables all cells of the matrix.
    pub targets: Vec<String>,
    /// Names of nodes to run even if they are fresh. A name without an iteration means all of them.
    pub force: Vec<String>,
    /// Whether datasets that are read are put into the store: a run is to follow.
    pub put_sources: bool,
    /// Whether it is likely that little of what the index has is asked for: then that is looked up, and all is loaded only when
    /// it turns out to be much.
    pub few: bool,
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Not asked for.
    Outside,
    /// Fresh: its artifact is there and whole.
    Hit {
        /// Its key.
        key: Digest,
        /// Its artifact.
        artifact: Digest,
    },
    /// It has to run.
    Run {
        /// Its key.
        key: Digest,
        /// Why.
        reason: Reason,
    },
    /// Whether it has to run shows when others have run, or models and datasets are there.
    Unknown {
        /// The nodes that have to run before, by index, ascending; the first few if they are many.
        until: Vec<usize>,
        /// The models and datasets that have to be downloaded before, each with its bytes if the hub tells.
        downloads: BTreeMap<String, Option<u64>>,
    },
}

/// What is known of all nodes.
#[derive(Debug)]
pub struct Plan {
    /// By the nodes' index in [`Pipeline::nodes`].
    pub nodes: Vec<State>,
    /// The nodes asked for and all that they need, each after what it needs.
    pub order: Vec<usize>,
    /// Nodes that run even if they are fresh.
    force: BTreeSet<usize>,
    pub(super) sources: Sources,
    pub(super) records: Records,
}

/// A node's key, and what it is made of.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) key: Digest,
    pub(super) preimage: Value,
    pub(super) inputs: BTreeMap<String, Digest>,
}

/// Plans. Of what has not changed it reads no more than stamps; it writes nothing but the index (and, if a run is to
/// follow, datasets). Linear in nodes and inputs.
///
/// Errs with sources that cannot be read and names that no node has.
pub fn plan(
    pipeline: &Pipeline,
    graph: &Graph,
    store: &Store,
    index: &mut Index,
    options: &PlanOptions,
) -> Result<Plan, ExecError> {
    let order = asked(pipeline, graph, &options.targets)?;
    let force: BTreeSet<usize> = select(pipeline, &options.force, Bare::All)?.into_iter().collect();
    let sources = Sources::resolve(pipeline, &order, store, index, options.put_sources)?;
    // What counts as an earlier artifact is held against that one's seal.
    let few = options.few && order.iter().all(|node| pipeline.nodes[*node].tolerance.is_none());
    let records = if few { Records::look_up(&pipeline.name, index) } else { Records::load(&pipeline.name, index) };
    let mut plan = Plan { nodes: vec![State::Outside; pipeline.nodes.len()], order, force, sources, records };
    plan.decide_all(pipeline, store, index)?;
    index.save_stamps(&plan.records.stamps);
    Ok(plan)
}

/// The nodes of these names and all that they need, each after what it needs; all nodes if no name is given.
pub(super) fn asked(pipeline: &Pipeline, graph: &Graph, targets: &[String]) -> Result<Vec<usize>, ExecError> {
    let targets = match targets {
        [] => (0..pipeline.nodes.len()).collect(),
        names => select(pipeline, names, Bare::Last)?,
    };
    let mut asked = vec![false; pipeline.nodes.len()];
    graph.closure(&targets).into_iter().for_each(|node| asked[node] = true);
    Ok(graph.order().iter().copied().filter(|node| asked[*node]).collect())
}

/// Tells gc of a hit, in the section in which it was found.
pub(super) fn hold_one(store: &Store, state: &State) -> Result<(), ExecError> {
    if let State::Hit { key, artifact } = state {
        store.need_hits([(*key, *artifact)])?;
    }
    Ok(())
}

impl Plan {
    /// Tells gc of all that a run of this plan goes by, if there is anything to run. To be called in the
    /// [section](Store::sharing) in which it was made.
    pub fn hold(&self, store: &Store) -> Result<(), ExecError> {
        let is_stale = |node: &usize| matches!(self.nodes[*node], State::Run { .. } | State::Unknown { .. });
        if self.order.iter().any(is_stale) {
            let hit = |state: &State| match state {
                State::Hit { key, artifact } => Some((*key, *artifact)),
                _ => None,
            };
            store.need_hits(self.nodes.iter().filter_map(hit))?;
            store.need_artifacts(self.sources.artifacts())?;
        }
        Ok(())
    }

    /// The nodes that have to run, and the models and datasets that have to be downloaded, before anything is known of a node.
    fn waits_for(&self, pipeline: &Pipeline, node: usize) -> (Vec<usize>, BTreeMap<String, Option<u64>>) {
        let (mut until, mut downloads) = (Vec::new(), BTreeMap::new());
        for link in &pipeline.nodes[node].links {
            downloads.extend(self.sources.absent(link).map(|(name, bytes)| (name.clone(), bytes)));
            let Target::Node(input) = link.target else { continue };
            match &self.nodes[input] {
                State::Run { .. } => until.push(input),
                State::Unknown { until: further, downloads: more } => {
                    until.extend(further);
                    downloads.extend(more.iter().map(|(name, bytes)| (name.clone(), *bytes)));
                }
                State::Hit { .. } | State::Outside => {}
            }
        }
        until.sort_unstable();
        until.dedup();
        until.truncate(MOST_UNTIL);
        (until, downloads)
    }

    /// Decides all nodes by what is here.
    pub(super) fn decide_all(
        &mut self,
        pipeline: &Pipeline,
        store: &Store,
        index: &mut Index,
    ) -> Result<(), ExecError> {
        // What waits for a node is decided by its state, which must not be one of before.
        self.nodes.fill(State::Outside);
        for at in 0..self.order.len() {
            let node = self.order[at];
            self.nodes[node] = self.state(pipeline, store, index, node)?;
        }
        Ok(())
    }

    /// What is known of a node, those that it needs being decided.
    pub(super) fn state(
        &mut self,
        pipeline: &Pipeline,
        store: &Store,
        index: &mut Index,
        node: usize,
    ) -> Result<State, ExecError> {
        let (until, downloads) = self.waits_for(pipeline, node);
        if until.is_empty() && downloads.is_empty() {
            self.decide(pipeline, store, index, node)
        } else {
            Ok(State::Unknown { until, downloads })
        }
    }

    /// The recipe of a node whose inputs are all known.
    pub(super) fn recipe(&self, pipeline: &Pipeline, node: usize) -> Recipe {
        let node = &pipeline.nodes[node];
        let mut inputs = BTreeMap::new();
        for link in &node.links {
            let id = match link.target {
                Target::Node(input) => self.artifact(input),
                _ => self.sources.id(link),
            };
            inputs.extend(id.map(|id| (link.field.path.clone(), id)));
        }
        let preimage = key::preimage(node, &inputs);
        Recipe { key: key::key(&preimage), preimage, inputs }
    }

    /// The artifact of a node that is fresh.
    pub(super) fn artifact(&self, node: usize) -> Option<Digest> {
        match &self.nodes[node] {
            State::Hit { artifact, .. } => Some(*artifact),
            _ => None,
        }
    }

    /// The artifact that a node hands down to those below it, of what its record says.
    pub(super) fn handed_down(
        &mut self,
        pipeline: &Pipeline,
        store: &Store,
        node: usize,
        record: &NodeRecord,
    ) -> Result<Digest, ExecError> {
        match pipeline.nodes[node].tolerance {
            Some(tolerance) => Ok(tolerance::handed_down(store, &mut self.records.stamps, tolerance, record)?),
            None => Ok(record.artifact),
        }
    }

    /// Whether a node whose inputs are all known is fresh or has to run.
    pub(super) fn decide(
        &mut self,
        pipeline: &Pipeline,
        store: &Store,
        index: &mut Index,
        node: usize,
    ) -> Result<State, ExecError> {
        let Recipe { key, preimage, .. } = self.recipe(pipeline, node);
        if self.force.contains(&node) {
            return Ok(State::Run { key, reason: Reason::Forced });
        }
        Ok(match self.records.find(store, index, &key)? {
            Found::Whole(artifact) => {
                let record = match pipeline.nodes[node].tolerance {
                    Some(_) => store.node(&key)?,
                    None => None,
                };
                let artifact = match record {
                    Some(record) => self.handed_down(pipeline, store, node, &record)?,
                    None => artifact,
                };
                State::Hit { key, artifact }
            }
            found => {
                let reason = self.records.reason(store, index, &pipeline.nodes[node].name, &key, &preimage, found)?;
                State::Run { key, reason }
            }
        })
    }
}
