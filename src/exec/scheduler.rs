//! Runs what is stale.

use std::path::PathBuf;

use crate::graph::Graph;
use crate::pipeline::Pipeline;
use crate::store::{Index, RunNode, Store};

use super::{Event, ExecError, Plan};

/// How to run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The pipeline file as typed, for the record.
    pub file: String,
    /// The program that is a worker when called with `worker JOB`.
    pub program: PathBuf,
    /// Attempts at once; as many as `threads` allow without it.
    pub jobs: Option<usize>,
    /// Threads of the machine.
    pub threads: usize,
    /// Device of nodes that name none: `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// Whether to go on with what does not depend on a failed node.
    pub keep_going: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The run's id.
    pub run: String,
    /// Whether it was interrupted.
    pub interrupted: bool,
    /// Wall seconds.
    pub seconds: f64,
    /// All nodes asked for, in the order of the pipeline.
    pub nodes: Vec<RunNode>,
}

/// Runs a plan; `report` is told what happens.
pub fn run(
    _pipeline: &Pipeline,
    _graph: &Graph,
    _store: &Store,
    _index: &mut Index,
    _plan: Plan,
    _options: &RunOptions,
    _report: &mut dyn FnMut(&Event),
) -> Result<Summary, ExecError> {
    Ok(Summary { run: String::new(), interrupted: false, seconds: 0.0, nodes: Vec::new() })
}
