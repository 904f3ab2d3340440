//! Deciding what has to run, and running it.
//!
//! Reading order: [`plan()`] (graph × store → hit, run or unknown), `source` (datasets and models from outside),
//! `phase` and `scheduler` (where a node is in a run, and the loop that moves it on), `job` (what scheduler and worker
//! tell each other), `attempt` and `local` (a worker from start to end), `away` and [`engine`] (workers on other machines),
//! [`work`] (what every attempt is), [`Event`]
//! (what a run tells while it goes on; `follow` reads it), [`why()`] (from a stale node to what made it so), [`bring`] (what another cache
//! has).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::store::RunNode;
use budget::{Budget, Needs};

mod attempt;
mod audit;
mod away;
pub mod budget;
mod class;
mod commit;
mod compare;
mod device;
mod elsewhere;
pub mod engine;
mod error;
mod estimate;
mod event;
mod fetch;
mod follow;
mod fresh;
mod history;
mod interrupt;
mod job;
mod journal;
mod kept;
mod keys;
mod ledger;
mod local;
mod model;
mod phase;
mod plan;
mod ranks;
mod reason;
mod record;
mod records;
mod room;
mod scheduler;
mod select;
mod shards;
mod slots;
mod source;
mod tolerance;
mod verified;
mod why;
mod worker;

pub use audit::{AuditOptions, Audited, Verdict, audit, commands};
pub use away::Away;
pub use elsewhere::{Elsewhere, bring};
pub use error::ExecError;
pub use estimate::{Estimates, estimate};
pub use event::{Event, ShardState};
pub use fetch::fetch;
pub use follow::{Follower, Told, goes_on};
pub use fresh::{FreshRun, nodes_as_text, remember, run_fresh, watched};
pub use history::{Likely, Likeness, Past, sum as sum_of_likely};
pub use journal::{INVOCATION, attempt_directory};
pub use keys::{absent_keys, require_keys};
pub use plan::{Plan, PlanOptions, State, plan};
pub use ranks::rank;
pub use reason::Reason;
pub use record::host;
pub use scheduler::run;
pub use select::{Bare, select};
pub use slots::Gpu;
pub use why::{Finding, Step, rows_now, why};
pub use worker::{serve, work, work_detached, work_probe};

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
    /// The GPUs that `auto` shares out, best first; without any it is the CPU.
    pub gpus: Vec<Gpu>,
    /// Whether to go on with what does not depend on a failed node.
    pub keep_going: bool,
    /// Whether a worker may be left with a model's weights for the next node.
    pub keep_weights: bool,
    /// Another cache, where nodes are looked for whose keys are known only while the run goes on.
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
    /// What the run may come to.
    pub budget: Budget,
    /// Where attempts execute that are no processes of this machine.
    pub away: Option<Away>,
    /// What is kept of how the run was asked for, for one that goes on where it is left.
    pub invocation: Option<serde_json::Value>,
    /// What nodes will come to, by their index, as far as it is known.
    pub needs: HashMap<usize, Needs>,
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
    /// Bounds of the budget that were reached, and nodes that did not start for it.
    pub budget: Vec<String>,
    /// Nodes whose jobs go on without this run.
    pub left: Vec<String>,
    /// All nodes asked for, in the order of the pipeline.
    pub nodes: Vec<RunNode>,
}

impl Summary {
    /// Nodes in a state: `ran`, `hit`, `failed` or `skipped`.
    pub fn count(&self, state: &str) -> usize {
        self.nodes.iter().filter(|node| node.state == state).count()
    }

    /// Whether all nodes have their artifacts.
    pub fn ok(&self) -> bool {
        self.nodes.iter().all(|node| node.artifact.is_some())
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod toy;
