//! The store: artifacts, node records and runs on disk.
//!
//! ```text
//! cache/
//!   VERSION                 format version, a number
//!   objects/ab/cdef…        blobs by blake3, read-only
//!   artifacts/ab/cdef….json manifests: {"type", "files": {name: {digest, size}}}; named by the digest of their bytes
//!   external/ID.json        {"directory"}: where a model artifact's files are that were not copied in
//!   nodes/ab/KEY.json       node records: key → artifact, preimage, metrics, provenance
//!   rows/SPACE/…jsonl       row memos, one append-only segment per attempt
//!   partial/KEY/            scratch of unfinished attempts (checkpoints)
//!   runs/RUN/               run.json, events.jsonl, NODE.ATTEMPT/{job.json,log.txt,result.json}
//!   pins/ID                 artifacts that gc keeps
//!   tmp/                    what is being written
//!   index.sqlite            a view of the above; can be deleted
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;

/// A file's content in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// blake3 of the bytes.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// What an artifact is made of. Its id is the digest of this, serialised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The artifact type's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Blobs by file name (may contain `/`, never `..`).
    pub files: BTreeMap<String, Blob>,
}

/// What is remembered of a node's work: the truth behind a hit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Format of this record.
    pub format: u32,
    /// The node key.
    pub key: Digest,
    /// Node name at the time.
    pub node: String,
    /// Pipeline name at the time.
    pub pipeline: String,
    /// Kind name.
    pub kind: String,
    /// The artifact made.
    pub artifact: Digest,
    /// The key's preimage.
    pub preimage: Value,
    /// Inputs: field path → artifact id.
    pub inputs: BTreeMap<String, Digest>,
    /// Metrics.
    pub metrics: Map<String, Value>,
    /// Run and attempt that made it.
    pub run: String,
    /// Attempt number within the run.
    pub attempt: u32,
    /// Start, as RFC 3339.
    pub started: String,
    /// Wall seconds.
    pub seconds: f64,
    /// Host name, device, version of sami.
    pub host: String,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Version of sami.
    pub version: String,
}

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk said no.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, making it if there is none.
    pub fn open(_root: &Path) -> Result<Self, StoreError> {
        todo!()
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
