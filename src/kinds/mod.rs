//! The node kinds: what each does with its inputs. One file per kind, one line per kind in [`KINDS`].

use std::any::Any;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use self::estimate::{Estimate, Known};
use self::part::Part;
use crate::collective::{Team, TeamError};
use crate::digest::Digest;
use crate::endpoint::{Calling, Purse};
use crate::lm::LmError;
use crate::pipeline::{ArtifactType, KindSpec, Spec};
use crate::store::{Reproduces, Store, Tolerance};

mod alike;
mod breakdown;
mod check;
pub mod command;
pub mod constitutions;
mod contest;
pub mod contrast;
pub mod draw;
mod environment;
pub mod estimate;
pub mod evaluate;
mod examples;
mod figures;
pub mod finetune;
pub mod generate;
pub mod hold_out;
mod imported;
pub mod init;
pub mod judge;
pub mod keep;
mod markers;
mod memo;
pub mod part;
mod policy;
pub mod principles;
pub mod probe;
mod prompter;
pub mod provenance;
mod query;
mod responses;
pub mod rows;
pub mod score;
pub mod several;
mod shape;
mod shelf;
mod speaker;
mod stats;
pub mod tally;
pub mod template;
mod versus;
mod writer;

/// A kind: its typed fields are the implementing struct, whose doc comment is the kind's page.
pub trait NodeKind: Spec + Serialize + DeserializeOwned + JsonSchema + Sized + 'static {
    /// The name after `kind =`.
    const NAME: &'static str;
    /// Raised when equal inputs would give other outputs.
    const VERSION: u32;
    /// The kind's page, Markdown.
    const DOC: &'static str;
    /// Whether users may write it.
    const PUBLIC: bool = true;

    /// What a node will come to, as far as that can be told before it runs. Pure, and cheap.
    fn estimate(&self, known: &Known<'_>) -> Estimate {
        let _ = known;
        Estimate::default()
    }

    /// What may be expected of computing a node again. By default: the same bytes on a CPU; on GPUs nothing, as rounding
    /// there depends on which rows go together.
    fn reproduces(&self, given: &Setting<'_>) -> Reproduces {
        given.sampled()
    }

    /// The input whose rows the node's rows are made from one by one, by their `id`: then some of them can be made again.
    const ROWS_OF: Option<&'static str> = None;

    /// Does the node's work. May be killed at any moment and called again with the same scratch directory.
    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError>;
}

/// A row of the registry: the pipeline's view of a kind and how to run it.
#[derive(Debug)]
pub struct Entry {
    /// What `pipeline::load` is given.
    pub spec: KindSpec,
    run: fn(&Value, &mut Cx<'_>) -> Result<Outputs, NodeError>,
    estimate: fn(&dyn Spec, &Known<'_>) -> Estimate,
    reproduces: fn(&dyn Spec, &Setting<'_>) -> Option<Reproduces>,
    /// The input whose rows the node's rows are made from one by one, if they are.
    pub rows_of: Option<&'static str>,
    /// The JSON Schema of the kind's own fields, made of the type that reads them.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Entry {
    /// The entry of a kind.
    pub const fn of<K: NodeKind>() -> Self {
        Self {
            spec: KindSpec {
                name: K::NAME,
                version: K::VERSION,
                doc: K::DOC,
                parse: |tree| Ok(Arc::new(crate::pipeline::tree::from_tree::<K>(tree)?)),
                public: K::PUBLIC,
                row_wise: K::ROWS_OF.is_some(),
            },
            run: |fields, cx| {
                let kind: K = serde_json::from_value(fields.clone()).map_err(|error| {
                    NodeError::failed(format!("the job's fields do not fit kind `{}`: {error}", K::NAME))
                })?;
                kind.run(cx)
            },
            estimate: |spec, known| {
                let spec: &dyn Any = spec;
                spec.downcast_ref::<K>().map(|kind| kind.estimate(known)).unwrap_or_default()
            },
            reproduces: |spec, given| {
                let spec: &dyn Any = spec;
                spec.downcast_ref::<K>().map(|kind| kind.reproduces(given))
            },
            rows_of: K::ROWS_OF,
            schema: K::json_schema,
        }
    }

    /// What a node of this kind will come to.
    pub fn estimate(&self, spec: &dyn Spec, known: &Known<'_>) -> Estimate {
        (self.estimate)(spec, known)
    }

    /// What may be expected of computing a node of this kind again.
    pub fn reproduces(&self, spec: &dyn Spec, given: &Setting<'_>) -> Reproduces {
        (self.reproduces)(spec, given).unwrap_or_else(|| Setting::no("a kind that is not known"))
    }

    /// Runs a node of this kind from the fields that [`Spec::fields`] gave.
    pub fn run(&self, fields: &Value, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        (self.run)(fields, cx)
    }
}

pub(crate) use command::input_place;
pub use shelf::Shelf;

/// What decides, beside a kind and its fields, whether what it makes can be made again.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// The class of the device, as [`device_class`] has it.
    pub class: &'a str,
    /// Whether an endpoint is called.
    pub called: bool,
    /// What the pipeline says of a program.
    pub said: Option<bool>,
}

impl Setting<'_> {
    /// Of what is computed in the same order whatever the company: on GPUs as near as this.
    fn computed(&self, apart: Tolerance) -> Reproduces {
        match (self.called, self.class) {
            (true, _) => Self::no("an endpoint may answer otherwise"),
            (_, "cpu" | "cpu:unfused") => Reproduces::BitExact,
            _ => Reproduces::Within(apart),
        }
    }

    /// Of what is sampled or trained: where rounding differs, texts part and errors grow.
    fn sampled(&self) -> Reproduces {
        match self.computed(Tolerance::default()) {
            Reproduces::Within(_) => Self::no("on a GPU rounding depends on which rows go together"),
            other => other,
        }
    }

    fn no(because: &str) -> Reproduces {
        Reproduces::No { because: because.to_owned() }
    }
}

/// The class of a device, see [`crate::lm::device::class`].
pub fn device_class(device: &str) -> Result<String, NodeError> {
    Ok(crate::lm::device::class(device)?)
}

/// Bounds the bytes that this process takes of a GPU when it chooses how many rows go together; `None` lets it have all.
pub fn bound_gpu_memory(bytes: Option<u64>) {
    crate::lm::memory::bound(bytes);
}

/// Bytes that this process has held of a GPU at most, as far as it was looked at.
pub fn gpu_peak() -> Option<u64> {
    crate::lm::memory::peak()
}

/// Begins to measure what this process holds at most for another node on such a device.
pub fn begin_peaks(device: &str) {
    crate::lm::peaks::begin(device);
}

/// Bytes of the machine's memory that this process has held at most for the node that it executes.
pub fn peak() -> Option<u64> {
    crate::lm::peaks::peak()
}

/// Bytes of the machine's memory that can still be had, where the system says.
pub fn free_memory() -> Option<u64> {
    crate::lm::memory::free()
}

/// All kinds.
pub static KINDS: &[Entry] = &[
    Entry::of::<constitutions::ConstitutionsKind>(),
    Entry::of::<probe::Probe>(),
    Entry::of::<generate::Generate>(),
    Entry::of::<score::Score>(),
    Entry::of::<finetune::Finetune>(),
    Entry::of::<evaluate::Evaluate>(),
    Entry::of::<tally::Tally>(),
    Entry::of::<command::Command>(),
    Entry::of::<init::Init>(),
];

/// What `pipeline::load` is given.
pub fn specs() -> Vec<&'static KindSpec> {
    KINDS.iter().map(|entry| &entry.spec).collect()
}

/// The entry of the kind called `name`.
pub fn find(name: &str) -> Option<&'static Entry> {
    KINDS.iter().find(|entry| entry.spec.name == name)
}

/// An input as the node sees it: files that are there and were verified.
#[derive(Debug, Clone)]
pub struct InputArtifact {
    /// Content id.
    pub id: Digest,
    /// What it is.
    pub kind: ArtifactType,
    /// Paths by file name (`rows.jsonl`, `config.json`, …). Read only.
    pub files: BTreeMap<String, PathBuf>,
    /// Rows to leave out at the start (slices of what a node made; slices of datasets are cut before).
    pub skip: u64,
    /// Rows to take after those.
    pub take: Option<u64>,
    /// How it is called, if it is an endpoint.
    pub calling: Option<Calling>,
}

/// What a node is given besides its fields.
pub struct Cx<'a> {
    /// The store; a worker writes blobs and row memos, never the index.
    pub store: &'a Store,
    /// Inputs by field path.
    pub inputs: BTreeMap<String, InputArtifact>,
    /// The node's name, for messages only.
    pub node: String,
    /// The node's key.
    pub key: Digest,
    /// Survives kills and is given again to the next attempt at the same key; removed when one succeeds.
    pub scratch: PathBuf,
    /// Empty at the start; output files are written here.
    pub staging: PathBuf,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Threads to compute with.
    pub threads: usize,
    /// Rows to compute together, if the user said.
    pub micro_batch: Option<usize>,
    /// Whether to keep little for gradients and compute more, if the user said.
    pub activation_checkpointing: Option<bool>,
    /// Whether every row is computed, remembered or not, and none is remembered: it is an audit.
    pub afresh: bool,
    /// Which rows it computes.
    pub part: Part,
    /// Whether the user said how many ranks compute the node, be it one.
    pub ranked: bool,
    /// The other ranks, until the node takes them. Of an attempt that is not rank 0 nothing is kept: it writes nothing.
    pub team: Option<Team>,
    /// Where progress goes.
    pub progress: &'a mut dyn FnMut(Progress),
    /// Weights that are there from the node before, and where those go that the next one may want.
    pub shelf: Arc<Shelf>,
    /// What may be spent on calls to endpoints.
    pub purse: Arc<Purse>,
    /// Set when the run is interrupted: finish the batch, save, return [`NodeError::Interrupted`].
    pub cancel: &'a AtomicBool,
}

impl Cx<'_> {
    /// The input under `path`; the scheduler has seen to it that it is there.
    pub fn input(&self, path: &str) -> Result<&InputArtifact, NodeError> {
        self.inputs.get(path).ok_or_else(|| NodeError::failed(format!("the job has no input `{path}`")))
    }

    /// Errs with [`NodeError::Interrupted`] once the run is interrupted.
    pub fn check_interrupt(&self) -> Result<(), NodeError> {
        if self.cancel.load(Ordering::Relaxed) { Err(NodeError::Interrupted) } else { Ok(()) }
    }
}

impl InputArtifact {
    /// The path of a file of the artifact.
    pub fn file(&self, name: &str) -> Result<&Path, NodeError> {
        self.files.get(name).map(PathBuf::as_path).ok_or_else(|| {
            NodeError::failed(format!("the {} artifact {} has no file `{name}`", self.kind, self.id.short()))
        })
    }
}

/// How far an attempt is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, serde::Deserialize)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// `rows`, `steps`, `documents`.
    pub unit: String,
    /// Figures worth a look while it runs, such as `loss`.
    pub metrics: Map<String, Value>,
    /// All figures of each step since the last word, as the lines of `train.jsonl`: every step is told once, however seldom
    /// words are. An attempt that goes on from a checkpoint tells the steps before it again. A figure that is no number
    /// is null.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Map<String, Value>>,
    /// How the work is done, where there are several ways: each is told once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What a node made.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Files of the artifact under [`Cx::staging`], by their name in the artifact.
    pub files: BTreeMap<String, PathBuf>,
    /// Metrics: numbers, by name.
    pub metrics: Map<String, Value>,
}

/// Why a node failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The run was interrupted; scratch holds what was done.
    #[error("interrupted")]
    Interrupted,
    /// Anything that the user can read and act on.
    #[error("{what}")]
    Failed {
        /// What is wrong.
        what: String,
        /// What to do about it, if that is known.
        help: Option<String>,
    },
    /// A row does not fit the memory by itself.
    #[error("{what}")]
    Full {
        /// Which.
        what: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// The store said no.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The language model said no.
    #[error(transparent)]
    Lm(#[from] crate::lm::LmError),
    /// An endpoint said no, or nothing.
    #[error(transparent)]
    Endpoint(#[from] crate::endpoint::EndpointError),
    /// The disk said no.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<TeamError> for NodeError {
    fn from(error: TeamError) -> Self {
        Self::Lm(error.into())
    }
}

impl NodeError {
    /// What went wrong between ranks, if that is it.
    pub fn of_team(&self) -> Option<&TeamError> {
        match self {
            Self::Lm(crate::lm::LmError::Team(error)) => Some(error),
            _ => None,
        }
    }

    /// A failure without a known fix.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), help: None }
    }

    /// Whether memory ran out; with a single row?
    pub fn is_out_of_memory(&self) -> Option<bool> {
        match self {
            Self::Full { .. } | Self::Lm(LmError::RowOutOfMemory { .. }) => Some(true),
            Self::Lm(LmError::OutOfMemory { .. }) => Some(false),
            _ => None,
        }
    }

    /// A failure and its fix.
    pub fn with_help(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), help: Some(help.into()) }
    }
}

#[cfg(test)]
mod tests;
