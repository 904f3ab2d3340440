//! From a TOML file to a checked list of plain nodes.
//!
//! Reading order: [`tree`] (TOML with spans), [`kind`] (what a node kind declares), `expr` (`${…}`), `overlay`
//! (`[when]`), `declare` (the tables), `reference` (`name@prev[lr=1e-7]`), `expand` (loop and matrix), [`dataset`], [`check`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use crate::diag::{Diagnostic, Severity, Source};
use crate::endpoint::{Calling, Endpoint};
use crate::fs::{Aspect, Watch};
use crate::hub::Repo;

pub mod check;
pub mod dataset;
mod declare;
mod document;
mod endpoint;
mod expand;
mod expr;
mod findings;
mod include;
pub mod kind;
mod make;
mod matrix;
mod overlay;
mod params;
mod quick;
mod random;
mod reference;
mod rows;
mod shape;
mod shards;
mod source;
mod table;
mod tolerance;
pub mod tree;
mod typed;

use declare::Reader;
use expand::Expander;
use expr::Evaluator;
use findings::Findings;
use include::Includer;

pub use kind::{ArtifactType, Input, InputField, KindSpec, Problem, Spec};
pub use shape::{Shapes, shapes};
pub use shards::Shards;
pub use tolerance::Tolerance;

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
    /// The file and those that it includes, as they were before they were read; `None` for one that changed too short a
    /// while before.
    pub read: Vec<Option<Watch>>,
}

/// Where a model comes from. Paths start from the pipeline file's directory.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// A directory in Hugging Face format.
    Directory(PathBuf),
    /// `hf:…`: the hub.
    Hub(Repo),
    /// `gguf:…`.
    Gguf {
        /// The file.
        file: PathBuf,
        /// A `tokenizer.json` to use instead of what the file says.
        tokenizer: Option<PathBuf>,
    },
    /// `openai:…`: it can be spoken to, and has no weights here.
    Endpoint {
        /// What decides its answers.
        endpoint: Endpoint,
        /// How it is called.
        calling: Calling,
    },
}

/// A model from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSource {
    /// Where it comes from.
    pub origin: Origin,
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
    /// Its typed fields, shared by the cells that inherit a matrix.
    pub spec: Arc<dyn Spec>,
    /// What each input refers to, in the order of [`Spec::inputs`].
    pub links: Vec<Link>,
    /// Execution fields, not in the key; shared by nodes that say nothing of them.
    pub run: Arc<RunFields>,
    /// `tolerance`: how far the numbers it makes may be from earlier ones and still count as the same for what is below it.
    /// Not in the key.
    pub tolerance: Option<Tolerance>,
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
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunFields {
    /// `auto`, `cpu`, `cuda` (any GPU) or `cuda:N`.
    pub device: Option<String>,
    /// Threads that the worker computes with.
    pub threads: Option<usize>,
    /// Rows computed together; chosen by the kind without it.
    pub micro_batch: Option<usize>,
    /// Whether training keeps only each layer's input for the gradient; chosen by the memory without it.
    pub activation_checkpointing: Option<bool>,
    /// Parts that a row-wise node is split into, or `auto`; one without it.
    pub shards: Option<Shards>,
    /// Processes that compute a `finetune` together.
    pub ranks: Option<usize>,
    /// Times that a failed attempt is made again.
    pub retries: Option<u32>,
    /// Whether a `command` makes the same bytes from the same inputs, as its author says.
    pub reproducible: Option<bool>,
}

/// Reads a pipeline file and expands it. `sets` are `NAME=VALUE` overrides of params. Errs with every error of the
/// file that can be found without reading data; [`check`] also reads that.
pub fn load(path: &Path, sets: &[String], kinds: &[&'static KindSpec]) -> Result<Pipeline, Vec<Diagnostic>> {
    let (pipeline, findings) = examine(path, sets, kinds);
    match pipeline {
        Some(pipeline) if findings.iter().all(|finding| finding.severity == Severity::Warning) => Ok(pipeline),
        _ => Err(findings),
    }
}

/// Reads a pipeline file as far as that goes: what is sound of it, and every finding. A pipeline with errors lacks
/// the nodes, links and sources that are at fault; it is good for finding more errors and nothing else.
pub fn examine(path: &Path, sets: &[String], kinds: &[&'static KindSpec]) -> (Option<Pipeline>, Vec<Diagnostic>) {
    let watch = Watch::of(path, Aspect::Content).unwrap_or_default();
    let (source, tree) = match document::read(path) {
        Ok(read) => read,
        Err(findings) => return (None, findings),
    };
    let directory = path.parent().unwrap_or(Path::new("")).to_owned();
    let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
    let mut findings = Findings::new(&source);
    document::look_for_secrets(&source, sets, &mut findings);
    let mut evaluator = Evaluator::new();
    let mut includer = Includer::new(&directory);
    let mut declared = Reader {
        kinds,
        sets,
        evaluator: &mut evaluator,
        includer: &mut includer,
        findings: &mut findings,
        met_node: false,
    }
    .read(tree);
    let expander =
        Expander { evaluator: &mut evaluator, includer: &mut includer, findings: &mut findings, plain: Arc::default() };
    let nodes = expander.expand(&mut declared);
    let stem = || path.file_stem().map_or_else(|| "pipeline".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let pipeline = Pipeline {
        source,
        directory,
        name: declared.name.take().unwrap_or_else(stem),
        description: declared.description,
        params: declared.params,
        models: declared.models,
        datasets: declared.datasets,
        nodes,
        read: [watch].into_iter().chain(includer.watched()).collect(),
    };
    (Some(pipeline), findings.into_list())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod toy;
