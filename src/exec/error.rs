//! What can go wrong around attempts; what goes wrong in one is told by an event.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::diag::{Diagnostic, Source};
use crate::store::StoreError;

/// Why nothing could be planned, or a run could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Datasets or models that cannot be read, each with its place.
    #[error("{} of the pipeline's sources cannot be read", .0.len())]
    Sources(Vec<Diagnostic>),
    /// A name that no node has.
    #[error("no node is called `{name}`")]
    UnknownNode {
        /// As typed.
        name: String,
        /// The name that was perhaps meant.
        near: Option<String>,
        /// Some of the names that there are.
        known: Vec<String>,
    },
    /// A device that cannot be.
    #[error("`{device}` is no device")]
    BadDevice {
        /// As written.
        device: String,
        /// Where, if in the pipeline.
        place: Option<(Arc<Source>, Range<usize>)>,
    },
    /// A GPU that is named is not there.
    #[error("there is no GPU `{device}` on this machine")]
    NoGpu {
        /// As named.
        device: String,
        /// Those that are there.
        there: String,
        /// The node.
        place: Box<(Arc<Source>, Range<usize>)>,
    },
    /// More ranks than there are GPUs for them.
    #[error("node `{node}` is to have {ranks} ranks on GPUs, and there is room for {gpus}")]
    TooManyRanks {
        /// Its name.
        node: String,
        /// How many are wanted.
        ranks: usize,
        /// How many GPUs it may take.
        gpus: usize,
        /// The node.
        place: Box<(Arc<Source>, Range<usize>)>,
    },
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What jobs need is not as it must be, as far as the engine or a first job says.
    #[error("{}", .0.first().map_or("jobs cannot do their work", |finding| finding.title.as_str()))]
    Cluster(Vec<Diagnostic>),
    /// A worker could not be started.
    #[error("a worker cannot be started: {0}")]
    Spawn(io::Error),
    /// A node cannot be computed again.
    #[error("node `{node}` cannot be audited: {what}")]
    Audit {
        /// Its name.
        node: String,
        /// Why.
        what: String,
        /// What to do about it.
        help: String,
        /// The last lines of the worker's log, if there was one.
        tail: Vec<String>,
    },
    /// The worker's job file cannot be used.
    #[error("`{}` is no job: {what}", .path.display())]
    BadJob {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl From<io::Error> for ExecError {
    fn from(error: io::Error) -> Self {
        Self::Store(error.into())
    }
}

impl ExecError {
    /// As data that the command line draws.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let title = self.to_string();
        vec![match self {
            Self::Sources(findings) | Self::Cluster(findings) => return findings.clone(),
            Self::UnknownNode { near: Some(near), .. } => Diagnostic::error("exec::unknown-node", title)
                .help(format!("a node with a similar name exists: `{near}`")),
            Self::UnknownNode { known, .. } => {
                let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
                Diagnostic::error("exec::unknown-node", title).help(format!("name one of {}", names.join(", ")))
            }
            Self::BadDevice { place, .. } => {
                let finding =
                    Diagnostic::error("exec::bad-device", title).help("write `auto`, `cpu`, `cuda` or `cuda:N`");
                match place {
                    Some((source, span)) => finding.label(source, span.clone(), "of this node"),
                    None => finding,
                }
            }
            Self::NoGpu { there, place, .. } => Diagnostic::error("exec::no-gpu", title)
                .label(&place.0, place.1.clone(), "of this node")
                .help(format!("there are {there}; `cuda` is any of them")),
            Self::TooManyRanks { place, .. } => {
                Diagnostic::error("exec::too-many-ranks", title).label(&place.0, place.1.clone(), "of this node").help(
                    "each rank has a GPU of its own: give `run.ranks` as many as there are, with `device = \"auto\"`",
                )
            }
            Self::Store(error) => error.diagnostic(),
            Self::Spawn(_) => Diagnostic::error("exec::spawn", title)
                .help("see that the machine has processes and memory left; `-j 1` starts one worker at a time"),
            Self::Audit { help, tail, .. } => {
                let finding = Diagnostic::error("exec::no-audit", title).help(help.clone());
                if tail.is_empty() {
                    finding
                } else {
                    finding.note(format!("the last lines of its log:\n{}", tail.join("\n")))
                }
            }
            Self::BadJob { .. } => {
                Diagnostic::error("exec::bad-job", title).help("`sami run` writes job files and starts workers on them")
            }
        }]
    }
}
