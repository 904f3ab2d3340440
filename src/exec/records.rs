//! What the store knows of nodes' work, loaded once and asked often.

use std::collections::HashMap;

use super::Reason;
use crate::digest::Digest;
use crate::graph::key;
use crate::store::{Health, Index, NodeRecord, Stamps, Store, StoreError};

/// What there is under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// An artifact that is whole.
    Whole(Digest),
    /// An artifact of which this file is not there.
    Missing(String),
    /// An artifact of which this file is not what it was.
    Damaged(String),
    /// Nothing.
    Nothing,
}

/// Bytes of the index for which something may be looked up: as long as that takes a quarter of what it takes to load all.
const BYTES: u64 = 40_000;

/// Artifacts by key, the keys that nodes had latest, and the seals of files: all of them, or of a store's many those that were
/// asked for.
#[derive(Debug, Default)]
pub(super) struct Records {
    artifacts: HashMap<Digest, Digest>,
    latest: HashMap<String, Digest>,
    /// Seals, for [`Store::health`].
    pub(super) stamps: Stamps,
    /// What is not loaded is looked up.
    rest: Option<Rest>,
}

/// What is not loaded.
#[derive(Debug)]
struct Rest {
    pipeline: String,
    /// So often something is looked up before all is loaded.
    left: u64,
}

impl Records {
    /// Loads what the index has.
    pub(super) fn load(pipeline: &str, index: &Index) -> Self {
        let (artifacts, latest) = (index.artifacts_by_key(), index.latest_keys(pipeline));
        Self { artifacts, latest, stamps: index.stamps(), rest: None }
    }

    /// Loads nothing yet.
    pub(super) fn look_up(pipeline: &str, index: &Index) -> Self {
        let rest = Rest { pipeline: pipeline.to_owned(), left: index.size() / BYTES };
        Self { rest: Some(rest), ..Self::default() }
    }

    /// Sees to it that what the index has under a key is loaded.
    fn see(&mut self, index: &Index, key: &Digest) {
        let Some(rest) = &mut self.rest else { return };
        if self.artifacts.contains_key(key) {
            return;
        }
        match rest.left.checked_sub(1) {
            Some(left) => {
                rest.left = left;
                if let Some(artifact) = index.artifact_of(key) {
                    self.artifacts.insert(*key, artifact);
                    index.load_stamp(&mut self.stamps, &artifact);
                }
            }
            None => {
                self.latest = index.latest_keys(&rest.pipeline);
                self.rest = None;
                let found = std::mem::replace(&mut self.artifacts, index.artifacts_by_key());
                self.artifacts.extend(found);
                index.load_stamps(&mut self.stamps);
            }
        }
    }

    /// Gives back the memory of all but the seals.
    pub(super) fn shrink(&mut self) {
        (self.artifacts, self.latest) = Default::default();
    }

    /// Looks a key up. The index is asked first; what it lacks may still be in the store's files, left by a run that
    /// was killed or by another process.
    pub(super) fn find(&mut self, store: &Store, index: &mut Index, key: &Digest) -> Result<Found, StoreError> {
        self.see(index, key);
        match self.artifacts.get(key).copied() {
            Some(artifact) => self.health(store, artifact),
            None => Ok(self.find_afresh(store, index, key)?.0),
        }
    }

    /// As [`Records::find`], by the store's files alone; the record, too.
    pub(super) fn find_afresh(
        &mut self,
        store: &Store,
        index: &mut Index,
        key: &Digest,
    ) -> Result<(Found, Option<NodeRecord>), StoreError> {
        let Some(record) = store.node(key)? else { return Ok((Found::Nothing, None)) };
        if self.artifacts.insert(*key, record.artifact) != Some(record.artifact) {
            index.add_node(&record);
        }
        if self.rest.is_some() {
            index.load_stamp(&mut self.stamps, &record.artifact);
        }
        Ok((self.health(store, record.artifact)?, Some(record)))
    }

    fn health(&mut self, store: &Store, artifact: Digest) -> Result<Found, StoreError> {
        Ok(match store.health(&artifact, &mut self.stamps)? {
            Health::Whole => Found::Whole(artifact),
            Health::Missing(file) => Found::Missing(file),
            Health::Damaged(file) => Found::Damaged(file),
        })
    }

    /// Takes note of a record that was put into the store.
    pub(super) fn add(&mut self, record: &NodeRecord) {
        self.artifacts.insert(record.key, record.artifact);
    }

    /// The key that a node had when it last had an artifact.
    pub(super) fn latest(&self, node: &str) -> Option<&Digest> {
        self.latest.get(node)
    }

    /// As [`Records::latest`], whether that was loaded or not.
    pub(super) fn latest_of(&self, index: &Index, node: &str) -> Option<Digest> {
        match &self.rest {
            Some(rest) => index.latest_key(&rest.pipeline, node),
            None => self.latest(node).copied(),
        }
    }

    /// The cells of a matrix of this name, each with the key that it had when it last had an artifact.
    pub(super) fn cells(&self, index: &Index, stem: &str) -> Vec<(String, Digest)> {
        let is_cell = |name: &String| name.split_once('[').is_some_and(|(own, _)| own == stem);
        match &self.rest {
            Some(rest) => index.latest_keys(&rest.pipeline).into_iter().filter(|(name, _)| is_cell(name)).collect(),
            None => {
                let cells = self.latest.iter().filter(|(name, _)| is_cell(name));
                cells.map(|(name, key)| (name.clone(), *key)).collect()
            }
        }
    }

    /// Why a node without a whole artifact has to run.
    pub(super) fn reason(
        &self,
        store: &Store,
        index: &Index,
        node: &str,
        key: &Digest,
        preimage: &serde_json::Value,
        found: Found,
    ) -> Result<Reason, StoreError> {
        Ok(match (found, self.latest_of(index, node)) {
            (Found::Missing(file), _) => Reason::Missing(file),
            (Found::Damaged(file), _) => Reason::Damaged(file),
            (_, None) => Reason::New,
            (_, Some(latest)) if latest == *key => Reason::Forgotten,
            (_, Some(latest)) => match store.node(&latest)? {
                Some(record) => Reason::Changed(key::diff(&record.preimage, preimage)),
                None => Reason::Forgotten,
            },
        })
    }
}
