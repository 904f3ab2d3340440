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

/// Artifacts by key, the keys that nodes had latest, and the seals of files.
#[derive(Debug, Default)]
pub(super) struct Records {
    artifacts: HashMap<Digest, Digest>,
    latest: HashMap<String, Digest>,
    /// Seals, for [`Store::health`].
    pub(super) stamps: Stamps,
}

impl Records {
    /// Loads what the index has.
    pub(super) fn load(pipeline: &str, index: &Index) -> Self {
        Self { artifacts: index.artifacts_by_key(), latest: index.latest_keys(pipeline), stamps: index.stamps() }
    }

    /// Gives back the memory of all but the seals.
    pub(super) fn shrink(&mut self) {
        (self.artifacts, self.latest) = Default::default();
    }

    /// Looks a key up. The index is asked first; what it lacks may still be in the store's files, left by a run that
    /// was killed or by another process.
    pub(super) fn find(&mut self, store: &Store, index: &mut Index, key: &Digest) -> Result<Found, StoreError> {
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

    /// The cells of a matrix of this name, each with the key that it had when it last had an artifact.
    pub(super) fn cells(&self, stem: &str) -> impl Iterator<Item = (&String, &Digest)> {
        self.latest.iter().filter(move |(name, _)| name.split_once('[').is_some_and(|(own, _)| own == stem))
    }

    /// Why a node without a whole artifact has to run.
    pub(super) fn reason(
        &self,
        store: &Store,
        node: &str,
        key: &Digest,
        preimage: &serde_json::Value,
        found: Found,
    ) -> Result<Reason, StoreError> {
        Ok(match (found, self.latest(node)) {
            (Found::Missing(file), _) => Reason::Missing(file),
            (Found::Damaged(file), _) => Reason::Damaged(file),
            (_, None) => Reason::New,
            (_, Some(latest)) if latest == key => Reason::Forgotten,
            (_, Some(latest)) => match store.node(latest)? {
                Some(record) => Reason::Changed(key::diff(&record.preimage, preimage)),
                None => Reason::Forgotten,
            },
        })
    }
}
