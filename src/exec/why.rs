//! From a node to what made it stale: the exact field or input, followed up to the first ancestor that differs.

use std::collections::HashSet;

use super::{Plan, Reason, State};
use crate::digest::Digest;
use crate::graph::key::{self, Change};
use crate::pipeline::{Link, Pipeline, Target};
use crate::store::{Index, NodeRecord, Store, StoreError};

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
    },
    /// Nothing is known until a node that it needs has run: the next step's.
    Waits {
        /// The input through which it needs that.
        input: String,
    },
    /// It made another artifact than before, because its own key changed.
    Remade {
        /// How.
        changes: Vec<Change>,
    },
    /// It made another artifact than before from the same inputs and fields.
    Differs,
    /// A dataset or a model from outside that is not what it was.
    Source,
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

/// Explains a node of a plan: first the node itself, then, input by input, the ancestors that made it so, up to one
/// whose inputs are as they were, that never ran, or that is a source.
pub fn why(
    pipeline: &Pipeline,
    store: &Store,
    index: &Index,
    plan: &Plan,
    node: usize,
) -> Result<Vec<Step>, StoreError> {
    let mut steps = Vec::new();
    let mut at = node;
    // Through nodes of which nothing is known yet, up to one that has to run.
    while let State::Unknown { .. } = &plan.nodes[at] {
        let open = |link: &&Link| match link.target {
            Target::Node(input) => plan.artifact(input).is_none(),
            _ => false,
        };
        let links = &pipeline.nodes[at].links;
        if let Some((link, (name, bytes))) = links.iter().find_map(|link| Some((link, plan.sources.absent(link)?))) {
            steps.push(step(pipeline, at, Finding::Waits { input: link.field.path.clone() }));
            steps.push(Step { name: name.clone(), finding: Finding::Absent { bytes } });
            return Ok(steps);
        }
        let Some(link) = links.iter().find(open) else { break };
        let Target::Node(input) = link.target else { break };
        steps.push(step(pipeline, at, Finding::Waits { input: link.field.path.clone() }));
        at = input;
    }
    let mut changes = match &plan.nodes[at] {
        State::Hit { key, artifact } => {
            steps.push(step(pipeline, at, Finding::Fresh { key: *key, artifact: *artifact }));
            return Ok(steps);
        }
        State::Run { key, reason } => {
            steps.push(step(pipeline, at, Finding::Runs { key: *key, reason: reason.clone() }));
            match reason {
                Reason::Changed(changes) => changes.clone(),
                _ => return Ok(steps),
            }
        }
        State::Unknown { .. } | State::Outside => return Ok(steps),
    };
    // From a changed input to the node that made it anew.
    let mut seen = HashSet::from([at]);
    while let Some((link, old)) = changed_input(&pipeline.nodes[at].links, &changes) {
        match &link.target {
            Target::Model(name) | Target::Dataset(name) => {
                steps.push(Step { name: name.clone(), finding: Finding::Source });
                break;
            }
            Target::Node(input) => {
                at = *input;
                let State::Hit { key, .. } = &plan.nodes[at] else { break };
                let name = &pipeline.nodes[at].name;
                let now = store.node(key)?;
                let before = maker(store, index, &old, name)?;
                let (Some(now), Some(before)) = (now, before) else { break };
                changes = key::diff(&before.preimage, &now.preimage);
                let finding =
                    if changes.is_empty() { Finding::Differs } else { Finding::Remade { changes: changes.clone() } };
                steps.push(step(pipeline, at, finding));
                if !seen.insert(at) {
                    break;
                }
            }
        }
    }
    Ok(steps)
}

fn step(pipeline: &Pipeline, node: usize, finding: Finding) -> Step {
    Step { name: pipeline.nodes[node].name.clone(), finding }
}

/// The first input that changed, and the content id that it had.
fn changed_input<'a>(links: &'a [Link], changes: &[Change]) -> Option<(&'a Link, Digest)> {
    changes.iter().find_map(|change| {
        let path = change.path.strip_prefix("input ")?;
        let old = change.old.as_ref()?.as_str()?.parse().ok()?;
        Some((links.iter().find(|link| link.field.path == path)?, old))
    })
}

/// The record of the work that made an artifact, that of the node called `name` before others.
fn maker(store: &Store, index: &Index, artifact: &Digest, name: &str) -> Result<Option<NodeRecord>, StoreError> {
    let makers = index.makers(artifact);
    match makers.iter().find(|maker| maker.node == name).or(makers.first()) {
        Some(maker) => store.node(&maker.key),
        None => Ok(None),
    }
}
