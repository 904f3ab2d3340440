//! From a TOML file to a checked list of plain nodes.
//!
//! Reading order: [`tree`] (TOML with spans), [`kind`] (what a node kind declares), `expr` (`${…}`), `parse` (the
//! tables), `expand` (loop and matrix), [`dataset`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use crate::diag::Source;

pub mod dataset;
pub mod kind;
pub mod tree;

pub use kind::{ArtifactType, Input, InputField, KindSpec, Problem, Spec};

/// A pipeline, expanded: no expression, loop or matrix is left, every reference is resolved.
#[derive(Debug)]
pub struct Pipeline {
    /// The file it came from.
    pub source: Arc<Source>,
    /// The directory that relative paths in it start from: the one that holds the file.
    pub directory: PathBuf,
    /// `name`, or the file's stem.
    pub name: String,
    /// `description`, or empty.
    pub description: String,
    /// Params after `--set`.
    pub params: BTreeMap<String, Value>,
    /// Models that come from outside; those with `init` are nodes.
    pub models: IndexMap<String, ModelSource>,
    /// Datasets.
    pub datasets: IndexMap<String, dataset::DatasetSpec>,
    /// Nodes in the order of the file, iterations and matrix cells in order; an `init` model's node is named
    /// `models.NAME` and comes first.
    pub nodes: Vec<Node>,
}

/// A model directory in Hugging Face format.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSource {
    /// Where it is.
    pub path: PathBuf,
    /// `f32`, `bf16` or `f16`; what the checkpoint says without it.
    pub dtype: Option<String>,
    /// Place of the `source` value.
    pub span: Range<usize>,
}

/// A plain node.
#[derive(Debug)]
pub struct Node {
    /// Unique: `generate`, `generate@2` (iteration), `finetune[lr=1e-7,seed=0]` (matrix), `finetune@2[lr=1e-7]`.
    pub name: String,
    /// Its kind.
    pub kind: &'static KindSpec,
    /// Its typed fields.
    pub spec: Box<dyn Spec>,
    /// What each input refers to, in the order of [`Spec::inputs`].
    pub links: Vec<Link>,
    /// Execution fields, not in the key.
    pub run: RunFields,
    /// Place of the node's header (key of its table).
    pub span: Range<usize>,
}

/// An input resolved.
#[derive(Debug, Clone)]
pub struct Link {
    /// The field.
    pub field: InputField,
    /// What it refers to.
    pub target: Target,
    /// Place of the reference.
    pub span: Range<usize>,
}

/// What a reference can name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Index into [`Pipeline::nodes`].
    Node(usize),
    /// Name in [`Pipeline::models`].
    Model(String),
    /// Name in [`Pipeline::datasets`].
    Dataset(String),
}

/// `run = { … }`: how a node is executed. Never in the key.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunFields {
    /// `auto`, `cpu` or `cuda:N`.
    pub device: Option<String>,
    /// Threads that the worker computes with.
    pub threads: Option<usize>,
    /// Rows computed together; chosen by the kind without it.
    pub micro_batch: Option<usize>,
    /// Parts that a row-wise node is split into.
    pub shards: Option<usize>,
    /// Times that a failed attempt is made again.
    pub retries: Option<u32>,
}
