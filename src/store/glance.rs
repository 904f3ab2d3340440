//! What is read of records, manifests and runs where there are very many: what edges are made of, nothing else.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Deserialize;

use super::{Blob, Store, StoreError, Usage};
use crate::digest::Digest;

/// What is read of a node record.
#[derive(Debug, Deserialize)]
pub(super) struct RecordGlance<'a> {
    pub(super) key: Digest,
    #[serde(borrow)]
    pub(super) node: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) pipeline: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) kind: Cow<'a, str>,
    pub(super) artifact: Digest,
    #[serde(borrow)]
    pub(super) inputs: BTreeMap<Cow<'a, str>, Digest>,
    #[serde(borrow)]
    pub(super) run: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) started: Cow<'a, str>,
    pub(super) seconds: f64,
    #[serde(borrow)]
    pub(super) device: Cow<'a, str>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    /// An earlier artifact that its own counts as for what is below.
    #[serde(default)]
    pub(super) equal_to_within: Option<EqualGlance>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EqualGlance {
    pub(super) artifact: Digest,
}

/// What is read of a manifest.
#[derive(Debug, Deserialize)]
pub(super) struct ManifestGlance<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) files: BTreeMap<Cow<'a, str>, Blob>,
}

/// A run, as far as gc needs it.
#[derive(Debug)]
pub(super) struct Run {
    /// Its id.
    pub(super) id: String,
    /// `None` if it did not get as far as writing its record.
    pub(super) record: Option<RunGlance>,
}

/// What is read of a run's record.
#[derive(Debug, Deserialize)]
pub(super) struct RunGlance {
    /// Pipeline name.
    pub(super) pipeline: String,
    /// Start, as RFC 3339.
    pub(super) started: String,
    /// End; absent while it runs and after a kill.
    pub(super) finished: Option<String>,
    /// Its nodes.
    pub(super) nodes: Vec<RunNodeGlance>,
}

/// What is read of a node in it.
#[derive(Debug, Deserialize)]
pub(super) struct RunNodeGlance {
    /// Node name.
    pub(super) name: String,
    /// The key, if it was known.
    pub(super) key: Option<Digest>,
    /// The artifact, if there is one.
    pub(super) artifact: Option<Digest>,
}

/// What is read of a run to tell how a node came out of it.
#[derive(Debug, Deserialize)]
struct StateGlance {
    nodes: Vec<NodeStateGlance>,
}

#[derive(Debug, Deserialize)]
struct NodeStateGlance {
    name: String,
    state: String,
    key: Option<Digest>,
}

/// A node's key, if it was known, and its state in a run.
pub(super) type KeyAndState = (Option<Digest>, String);

impl Store {
    /// The key and the state of the node of a name in each of these runs, if the run has it. A record of a run that is damaged
    /// may be read as if it was not: a key is good for looking for the record under it, and a state for a word that it is equal to.
    pub fn node_in_runs(&self, runs: &[String], node: &str) -> Result<Vec<Option<KeyAndState>>, StoreError> {
        let find = |run: &String| {
            let record: Option<StateGlance> = super::record::glance_at(&self.run_dir(run).join("run.json"))?;
            let found = record.and_then(|record| record.nodes.into_iter().find(|known| known.name == node));
            Ok(found.map(|found| (found.key, found.state)))
        };
        runs.par_iter().map(find).collect()
    }

    /// Hands on all runs, newest first. Few are in memory at once.
    pub(super) fn each_run(&self, see: &mut dyn FnMut(Run)) -> Result<(), StoreError> {
        let mut ids = self.run_ids()?;
        ids.reverse();
        for some in ids.chunks(8) {
            let read = |id: &String| {
                let record = super::record::read_json(&self.run_dir(id).join("run.json"))?;
                Ok(Run { id: id.clone(), record })
            };
            let runs: Result<Vec<Run>, StoreError> = some.par_iter().map(read).collect();
            runs?.into_iter().for_each(&mut *see);
        }
        Ok(())
    }
}
