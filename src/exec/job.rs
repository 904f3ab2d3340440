//! What scheduler and worker tell each other: a job, in a file or over the socket, then words over the socket, a line of
//! JSON each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::endpoint::{Allowance, Calling, Spent};
use crate::fs::Stamp;
use crate::kinds::Progress;
use crate::pipeline::ArtifactType;
use crate::secret;
use crate::store::Usage;

/// All that an attempt needs to know: `job.json` in its directory, or a line to a worker that takes several.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// Node name, for messages.
    pub(super) node: String,
    /// Kind name.
    pub(super) kind: String,
    /// The kind's fields after defaults.
    pub(super) fields: Value,
    /// Inputs by field path.
    pub(super) inputs: BTreeMap<String, JobInput>,
    /// Large files of the inputs, and the stamps that they had when they were found whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) trusted: Vec<(PathBuf, Stamp)>,
    /// The node key.
    pub(super) key: Digest,
    /// What the node makes.
    pub(super) output: ArtifactType,
    /// `cpu` or `cuda:N`.
    pub(super) device: String,
    /// Processes that compute it together, if the user said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ranks: Option<usize>,
    /// Devices of the ranks on this machine, one each; where there are fewer, they have the device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) devices: Vec<String>,
    /// Threads to compute with, of each rank.
    pub(super) threads: usize,
    /// Rows to compute together, if the user said.
    pub(super) micro_batch: Option<usize>,
    /// Whether to keep little for gradients, if the user said.
    pub(super) activation_checkpointing: Option<bool>,
    /// Whether remembered rows are computed again, for an audit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) afresh: bool,
    /// Root of the store.
    pub(super) store: PathBuf,
    /// Where the run names what gc is to leave alone; the worker does, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) live: Option<PathBuf>,
    /// Survives kills; given again to the next attempt at the key.
    pub(super) scratch: PathBuf,
    /// Empty at the start; this attempt's alone, so that what a dead one left running cannot write into it.
    pub(super) staging: PathBuf,
    /// Where the attempt's log goes, if the worker is to open it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) log: Option<PathBuf>,
    /// Where the result goes, if not only over the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<PathBuf>,
    /// What may be spent on calls.
    #[serde(default)]
    pub(super) allowance: Allowance,
}

/// An input of a job.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JobInput {
    /// Content id.
    pub(super) id: Digest,
    /// What it is.
    #[serde(rename = "type")]
    pub(super) kind: ArtifactType,
    /// Paths by file name.
    pub(super) files: BTreeMap<String, PathBuf>,
    /// Rows to leave out at the start.
    pub(super) skip: u64,
    /// Rows to take after those.
    pub(super) take: Option<u64>,
    /// How it is called, if it is an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) calling: Option<Calling>,
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Word {
    /// How far it is.
    Progress(Progress),
    /// What it has spent on calls so far.
    Spent(Spent),
    /// What it used, measured at its end.
    Used(Usage),
    /// This worker takes no further job: what the attempt started is still running, and ends with the worker.
    Last,
    /// How it ended; the last word of the attempt. The same is in `result.json`, if there is to be one.
    Result(JobResult),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(super) enum JobResult {
    /// The artifact is in the store.
    Done {
        /// Its id.
        artifact: Digest,
        /// The node's metrics.
        metrics: Map<String, Value>,
        /// Its files in the store, and the stamps that they had when they were put.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        put: Vec<(PathBuf, Stamp)>,
        /// What the disk is still to be waited for before that counts.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unsettled: Vec<PathBuf>,
    },
    /// The node cannot be done.
    Failed {
        /// What is wrong.
        what: String,
        /// What to do about it, if that is known.
        help: Option<String>,
    },
    /// It was told to stop; scratch holds what was done.
    Interrupted,
}

impl JobResult {
    /// The same without what must not be shown or stored.
    pub(super) fn without_secrets(self) -> Self {
        let redacted = |text: String| secret::redact(&text).into_owned();
        match self {
            Self::Failed { what, help } => Self::Failed { what: redacted(what), help: help.map(redacted) },
            other => other,
        }
    }
}

/// What the scheduler says to make a worker stop at the next good moment. To make it stop now, it closes the socket,
/// which is also what happens when the scheduler dies.
pub(super) const STOP: &[u8] = b"stop\n";
