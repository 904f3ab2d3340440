//! What would run and why.

use crate::digest::Digest;
use crate::graph::Graph;
use crate::graph::key::Change;
use crate::pipeline::Pipeline;
use crate::store::{Index, Store};

use super::ExecError;

/// What to plan.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Names of nodes to bring up to date, with all that they need; all nodes if empty.
    pub targets: Vec<String>,
    /// Names of nodes to run even if they are fresh.
    pub force: Vec<String>,
}

/// Why a node has to run.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// It never had an artifact.
    New,
    /// It had one, but the record of that is gone.
    Forgotten,
    /// Its key differs from the one that it had when it last had an artifact; how.
    Changed(Vec<Change>),
    /// A file of the artifact is not there; which.
    Missing(String),
    /// A file of the artifact is not what it was; which.
    Damaged(String),
    /// The user wants it.
    Forced,
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
    /// Whether it has to run shows when others have run.
    Unknown {
        /// The nodes that have to run before, by index, in the order of the pipeline; the first few if they are many.
        until: Vec<usize>,
    },
}

/// What is known of all nodes.
#[derive(Debug)]
pub struct Plan {
    /// By the nodes' index in [`Pipeline::nodes`].
    pub nodes: Vec<State>,
    /// The nodes asked for and all that they need, each after what it needs.
    pub order: Vec<usize>,
}

/// Plans. Reads no more than stamps if nothing has changed; writes nothing but the index.
///
/// Errs with sources that cannot be read and names that no node has.
pub fn plan(
    pipeline: &Pipeline,
    graph: &Graph,
    _store: &Store,
    _index: &mut Index,
    _options: &PlanOptions,
) -> Result<Plan, ExecError> {
    Ok(Plan { nodes: vec![State::Outside; pipeline.nodes.len()], order: graph.order().to_vec() })
}
