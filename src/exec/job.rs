//! What scheduler and worker tell each other: a job, in a file or over the socket, then words over the socket, a line of
//! JSON each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ExecError;
use crate::digest::Digest;
use crate::endpoint::{Allowance, Calling, Spent};
use crate::fs::Stamp;
use crate::kinds::Progress;
use crate::pipeline::ArtifactType;
use crate::secret;
use crate::store::Usage;

/// All that an attempt needs to know: `job.json` in its directory, or a line to a worker that takes several light ones.
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
    /// Bytes of the GPU that it may take, if others are on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gpu_bytes: Option<u64>,
    /// Rows to compute together, if the user said.
    pub(super) micro_batch: Option<usize>,
    /// Whether to keep little for gradients, if the user said.
    pub(super) activation_checkpointing: Option<bool>,
    /// Whether remembered rows are computed again, for an audit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) afresh: bool,
    /// Which rows it is about, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) part: Option<JobPart>,
    /// Models of the inputs that a later node wants, too: a worker that is left with their weights waits for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) keep: Vec<Digest>,
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
    /// Of a detached job, the version of the scheduler that wrote it: another one does not execute it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
}

impl Job {
    /// Reads a job file.
    pub(super) fn read(path: &Path) -> Result<Self, ExecError> {
        let bad = |what: String| ExecError::BadJob { path: path.to_owned(), what };
        let bytes = fs_err::read(path).map_err(|error| bad(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))
    }
}

/// Which rows a job is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum JobPart {
    /// Those of one part; nothing is made of them.
    Shard {
        /// Its number, from 0.
        number: usize,
        /// How many parts there are.
        of: usize,
        /// Where what was done is told.
        report: PathBuf,
    },
    /// All, which are there, as all parts are done.
    Join {
        /// What was done, as told by the parts.
        reports: Vec<PathBuf>,
        /// The class of device that it was done on, if that is not the class of this attempt's.
        class: Option<String>,
    },
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
    /// A detached one: where it has begun.
    Began {
        /// The machine's name.
        host: String,
    },
    /// How far it is.
    Progress(Progress),
    /// What it has spent on calls so far.
    Spent(Spent),
    /// The memory is full.
    Full {
        /// Whether with a single row.
        row: bool,
    },
    /// What it used, measured at its end.
    Used(Usage),
    /// This worker takes no further job: what the attempt started is still running, and ends with the worker.
    Last,
    /// The attempt is done, and this worker waits for the next one with the weights of these models.
    Kept {
        /// Their ids.
        models: Vec<Digest>,
    },
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
    /// The rows of the part are remembered.
    Computed {
        /// The class of device that they were computed on, if it can be told.
        class: Option<String>,
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

/// How a detached attempt ended: the record that its worker leaves, in `result.json` beside its job. Written whole or not
/// at all, and after all else: where it is, the worker writes nothing more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Exit {
    /// What came of it.
    pub(super) result: JobResult,
    /// Of an attempt that was told to stop, by whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) told: Option<ToldBy>,
    /// Where it ran.
    pub(super) host: String,
    /// Wall seconds, without those in the queue.
    pub(super) seconds: f64,
    /// What it used.
    pub(super) usage: Usage,
    /// What it spent on calls.
    #[serde(default)]
    pub(super) spent: Spent,
}

/// What made a detached worker stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ToldBy {
    /// The file that a scheduler puts beside its job.
    File,
    /// SIGUSR1: its time is nearly up.
    TimeLimit,
    /// SIGTERM or SIGINT: whoever ends its job.
    Signal,
}

impl JobResult {
    /// Whether what was to be done is done.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Computed { .. })
    }

    /// The exit code of a process that ends with it.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Done { .. } | Self::Computed { .. } => 0,
            Self::Failed { .. } => 1,
            Self::Interrupted => 130,
        }
    }

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

/// Beside the job of a detached worker: what it says, how it ended, and what makes it stop.
pub(super) const WORDS: &str = "words.jsonl";
/// See [`WORDS`].
pub(super) const RESULT: &str = "result.json";
/// See [`WORDS`].
pub(super) const STOP_FILE: &str = "stop";
