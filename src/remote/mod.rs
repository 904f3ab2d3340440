//! A remote cache: records, manifests and objects in a bucket or a directory, for other machines and people.
//!
//! ```text
//! remote.json              format, and whether the server keeps two writers apart
//! objects/ab/cdef…         the bytes of a store's objects
//! artifacts/ab/cdef….json  its manifests
//! nodes/ab/cdef….json      its node records
//! runs/RUN/run.json        what a run was
//! ```
//!
//! Objects and manifests are named by their digests, so it does not matter who writes them, or how often. They go before
//! what names them: a reader never finds a record whose bytes are not there. Records are created, never replaced: the
//! first one under a key stays. What comes back is held to its digest before it gets a name in the store. A bucket can
//! therefore break, vanish or lie, and the worst of it is that something is computed again; but a record says what came
//! of a key, and that is believed: who may write there decides what others do not compute.
//!
//! Reading order: this file, `client` (requests and what errors mean), `upload` and `download` (an object), `push` and
//! `pull` (what belongs together, in order), `resolve` (names to what is there), `marker`, `survey`.

use serde::Serialize;

use crate::digest::Digest;
use crate::settings::RemoteSettings;
use crate::store::{NodeRecord, RunRecord, Store};

mod client;
mod credentials;
mod download;
mod error;
mod marker;
mod names;
mod pull;
mod push;
mod resolve;
mod survey;
mod upload;

pub use client::{Access, Patience};
pub use error::RemoteError;
pub use marker::Marker;
pub use pull::Pulled;
pub use survey::{Flaw, Folder, Survey};

use client::{Client, in_parallel};

/// Manifests larger than this are not read: a million files fit.
const MOST_MANIFEST: u64 = 256 << 20;
/// Records and runs larger than this are not read.
const MOST_RECORD: u64 = 64 << 20;

/// What a transfer tells while it goes on. Called from several threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moving {
    /// It is known how much there is to do.
    Begins {
        /// Objects.
        objects: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// So many bytes are where they should be.
    Bytes(u64),
    /// So many have to be moved again.
    Lost(u64),
    /// An object is there.
    Object,
}

/// Who is told.
pub type Tell<'a> = &'a (dyn Fn(Moving) + Sync);

/// What to move.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// Node records, each with its artifact.
    pub keys: Vec<Digest>,
    /// Artifacts without a record.
    pub artifacts: Vec<Digest>,
    /// Runs: what they were; their nodes are among `keys`.
    pub runs: Vec<String>,
}

/// A record as it lies there.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The record.
    pub record: NodeRecord,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A key under which another artifact was recorded first, which stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Other {
    /// Node name.
    pub node: String,
    /// The key.
    pub key: Digest,
    /// The artifact that would have been recorded.
    pub artifact: Digest,
    /// The one that stays.
    pub stays: Digest,
}

/// Something that could not be moved, while the rest could.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// What was moved.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Moved {
    /// Records that are there now and were not before.
    pub nodes: u64,
    /// Records that were there.
    pub known: u64,
    /// Artifacts that are there now and were not before.
    pub artifacts: u64,
    /// Objects that were moved.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Runs.
    pub runs: u64,
    /// Keys with another artifact.
    pub others: Vec<Other>,
    /// What could not be moved.
    pub failed: Vec<Failed>,
}

impl Moved {
    /// Adds what was moved besides.
    pub fn add(&mut self, other: Self) {
        self.nodes += other.nodes;
        self.known += other.known;
        self.artifacts += other.artifacts;
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.runs += other.runs;
        self.others.extend(other.others);
        self.failed.extend(other.failed);
    }
}

/// Blobs smaller than this go whole: no list of parts is asked for.
const LARGE: u64 = 1 << 20;

/// A remote cache.
pub struct Remote {
    client: Client,
    concurrency: usize,
}

impl Remote {
    /// Makes ready to speak to a remote. Only of a directory it is known after this whether it is there.
    pub fn open(settings: &RemoteSettings, patience: Patience, access: Access) -> Result<Self, RemoteError> {
        let client = Client::new(settings, patience, access)?;
        Ok(Self { client, concurrency: settings.concurrency })
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        self.client.url()
    }

    /// Reads the marker; errs if there is none, or one of a later version.
    pub fn marker(&self) -> Result<Marker, RemoteError> {
        marker::read(&self.client)?.ok_or_else(|| RemoteError::Absent { url: self.url().to_owned() })
    }

    /// The records under these keys, as far as there are any, in the order of the keys. One that is damaged is as good
    /// as none, which a warning tells.
    pub fn find(&self, keys: &[Digest]) -> Result<Vec<Found>, RemoteError> {
        let slots: Vec<_> = keys.iter().map(|_| std::sync::Mutex::new(None)).collect();
        in_parallel(keys.iter().zip(&slots).collect(), self.concurrency, |(key, slot)| {
            let found = self.node(key)?;
            if let Ok(mut slot) = slot.lock() {
                *slot = found;
            }
            Ok(())
        })?;
        Ok(slots.into_iter().filter_map(|slot| slot.into_inner().ok().flatten()).collect())
    }

    /// The record under a key.
    fn node(&self, key: &Digest) -> Result<Option<Found>, RemoteError> {
        let Some(bytes) = self.client.get(&names::node(key), MOST_RECORD)? else { return Ok(None) };
        match Store::arrived_node(key, &bytes) {
            Ok(record) => Ok(Some(Found { record, bytes })),
            Err(error) => {
                tracing::warn!("passed over in the remote cache: {error}");
                Ok(None)
            }
        }
    }

    /// A run's record and its bytes.
    fn run(&self, run: &str) -> Result<Option<(RunRecord, Vec<u8>)>, RemoteError> {
        let Some(bytes) = self.client.get(&names::run(run), MOST_RECORD)? else { return Ok(None) };
        let record = serde_json::from_slice::<RunRecord>(&bytes).ok().filter(|record| record.run == run);
        Ok(record.map(|record| (record, bytes)))
    }
}
