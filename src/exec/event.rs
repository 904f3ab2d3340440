//! What a run tells while it goes on: the terminal, the plain log, `--json` and `events.jsonl` draw from it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::kinds::Progress;
use crate::store::{EqualToWithin, RunNode};

/// Something that happened in a run. As JSON it has its name under `event`: `start`, `node-start`, …, `done`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A model or a dataset comes from the hub, before the run begins.
    Download {
        /// Its name in the pipeline.
        name: String,
        /// Bytes that are there.
        done: u64,
        /// Bytes that are downloaded, as far as they are known by now.
        total: u64,
        /// Wall seconds since the download began.
        seconds: f64,
        /// Whether it is whole and checked.
        finished: bool,
    },
    /// The run begins.
    Start {
        /// The run's id.
        run: String,
        /// Pipeline name.
        pipeline: String,
        /// Nodes asked for, with all that they need.
        nodes: usize,
        /// Of these, fresh ones.
        hits: usize,
        /// Threads of the machine.
        threads: usize,
        /// Seconds that nodes will take, those of which earlier attempts tell that.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        likely: BTreeMap<String, f64>,
    },
    /// A node turned out to be fresh; those that were fresh from the start are only counted.
    NodeHit {
        /// Node name.
        node: String,
        /// Its key.
        key: Digest,
        /// Its artifact.
        artifact: Digest,
    },
    /// Another process works at the node's key; this one waits for it.
    NodeWait {
        /// Node name.
        node: String,
        /// Its key.
        key: Digest,
        /// Which process, and on which machine if that is another one; not known of older versions.
        by: Option<String>,
    },
    /// An attempt begins.
    NodeStart {
        /// Node name.
        node: String,
        /// Kind name.
        kind: String,
        /// Its key.
        key: Digest,
        /// Number of the attempt in the run, from 1.
        attempt: u32,
        /// Why it runs.
        why: String,
        /// `cpu` or `cuda:N`.
        device: String,
        /// Threads that it computes with.
        threads: usize,
        /// The attempt's log.
        log: PathBuf,
        /// The parts that its rows are computed in, if there are several: each has attempts of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shards: Option<usize>,
    },
    /// An attempt at a part of a node's rows begins, or has ended.
    NodeShard {
        /// Node name.
        node: String,
        /// The part's number, from 1.
        shard: usize,
        /// How many parts there are.
        of: usize,
        /// What happened.
        state: ShardState,
        /// Number of the attempt at the part in this attempt at the node, from 1.
        attempt: u32,
        /// `cpu` or `cuda:N`.
        device: String,
        /// Threads that it computes with.
        threads: usize,
        /// Wall seconds, once it has ended.
        seconds: f64,
        /// What is wrong, if it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// Its log.
        log: PathBuf,
    },
    /// An attempt's job is somewhere else than before.
    NodeJob {
        /// Node name.
        node: String,
        /// The engine.
        engine: String,
        /// The job's id, once there is one.
        job: Option<String>,
        /// `submitted`, `waits`, `runs`, `unseen` (the engine does not answer), `adopted` (an earlier run began it) or
        /// `left` (it goes on without this run).
        state: String,
        /// The machine, if it has one.
        host: Option<String>,
        /// Why it waits, or what to type to see it.
        why: String,
    },
    /// An attempt goes on.
    NodeProgress {
        /// Node name.
        node: String,
        /// How far it is.
        #[serde(flatten)]
        progress: Progress,
        /// Seconds since the attempt began.
        seconds: f64,
        /// Of a node in parts, units done and in all of each; `progress` is their sum.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        shards: Vec<[u64; 2]>,
    },
    /// An attempt succeeded and its result is recorded.
    NodeFinish {
        /// Node name.
        node: String,
        /// Kind name.
        kind: String,
        /// Its key.
        key: Digest,
        /// Its artifact.
        artifact: Digest,
        /// What the attempt made, if that is another artifact than the one recorded first, which stays.
        other: Option<Digest>,
        /// The artifact that it counts as for what is below it, which is `artifact` then; what it made is in its record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        equal_to_within: Option<EqualToWithin>,
        /// Wall seconds.
        seconds: f64,
        /// How often it used weights that were in memory from the node before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weights_kept: Option<u32>,
        /// Its metrics.
        metrics: Map<String, Value>,
    },
    /// An attempt failed.
    NodeFail {
        /// Node name.
        node: String,
        /// Number of the attempt; 0 if it could not be started.
        attempt: u32,
        /// Whether it is made again.
        retry: bool,
        /// What is wrong.
        error: String,
        /// What to do about it, if that is known.
        help: Option<String>,
        /// The attempt's log.
        log: Option<PathBuf>,
        /// The log's last lines.
        tail: Vec<String>,
    },
    /// An attempt was stopped; what it did is kept for the next one.
    NodeStop {
        /// Node name.
        node: String,
        /// Wall seconds.
        seconds: f64,
    },
    /// A node will not run because one that it needs failed.
    NodeSkip {
        /// Node name.
        node: String,
        /// The node that failed.
        because: String,
    },
    /// A node does not start: it would pass what is left of the budget.
    NodeRefuse {
        /// Node name.
        node: String,
        /// What it needs, and what is left.
        why: String,
    },
    /// A bound of the budget is reached: attempts that use it stop.
    Budget {
        /// Which, and what was used.
        what: String,
    },
    /// The run was interrupted.
    Interrupt {
        /// Whether for the second time: workers are killed.
        again: bool,
    },
    /// The run is over.
    Done {
        /// Whether all went well.
        ok: bool,
        /// Nodes that ran.
        ran: usize,
        /// Nodes that were fresh.
        hits: usize,
        /// Nodes that failed.
        failed: usize,
        /// All nodes asked for, in the order of the pipeline.
        nodes: Vec<RunNode>,
    },
}

/// What happened to a part of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShardState {
    /// An attempt begins.
    Started,
    /// Its rows are there.
    Done,
    /// An attempt failed, and another one is made.
    Again,
    /// It failed, and with it the node.
    Failed,
    /// It was stopped; what it did is kept.
    Stopped,
}
