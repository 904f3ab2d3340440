//! What the index knows of artifacts on their way: who made them, who took them, and what sources are called.

use rusqlite::params;

use super::Index;
use super::index::{bytes, digest};
use crate::digest::Digest;

/// Who made or uses an artifact.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Use {
    /// The node key.
    pub key: Digest,
    /// Node name.
    pub node: String,
    /// Pipeline name.
    pub pipeline: String,
    /// The field through which it enters; empty for who made it.
    pub field: String,
    /// The run.
    pub run: String,
}

impl Index {
    /// The nodes that made an artifact, latest run first.
    pub fn makers(&self, artifact: &Digest) -> Vec<Use> {
        let query = "SELECT key, node, pipeline, '', run FROM nodes WHERE artifact = ?1 ORDER BY run DESC, node";
        self.collect(query, [bytes(artifact)], to_use)
    }

    /// The nodes that took an artifact as an input, latest run first.
    pub fn users(&self, artifact: &Digest) -> Vec<Use> {
        let query = "SELECT nodes.key, node, pipeline, field, run FROM inputs JOIN nodes ON nodes.key = inputs.key
            WHERE inputs.artifact = ?1 ORDER BY run DESC, node";
        self.collect(query, [bytes(artifact)], to_use)
    }

    /// The artifacts that nodes took from a source, such as `dataset:posts`: its slices, or the model as it was.
    pub fn named(&self, source: &str) -> Vec<Digest> {
        self.collect("SELECT artifact FROM named WHERE name = ?1 ORDER BY artifact", [source], |row| digest(row, 0))
    }

    /// What sources are called that nodes took something from.
    pub fn names_of_sources(&self) -> Vec<String> {
        self.collect("SELECT DISTINCT name FROM named ORDER BY name", [], |row| row.get(0))
    }

    /// The kind of the node that has a result under a key.
    pub fn kind_of(&self, key: &Digest) -> Option<String> {
        self.collect("SELECT kind FROM nodes WHERE key = ?1", [bytes(key)], |row| row.get(0)).pop()
    }

    /// The keys under which nodes of a kind have results, those of the latest runs first, `most` of them.
    pub fn keys_of_kind(&self, kind: &str, most: usize) -> Vec<Digest> {
        let query = "SELECT key FROM nodes WHERE kind = ?1 ORDER BY run DESC, key LIMIT ?2";
        self.collect(query, params![kind, most as i64], |row| digest(row, 0))
    }

    /// The artifacts that nodes of a kind made, each once, those of the latest runs first.
    pub fn of_kind(&self, kind: &str) -> Vec<Digest> {
        let query = "SELECT artifact FROM nodes WHERE kind = ?1 GROUP BY artifact ORDER BY max(run) DESC, artifact";
        self.collect(query, [kind], |row| digest(row, 0))
    }
}

fn to_use(row: &rusqlite::Row<'_>) -> rusqlite::Result<Use> {
    let (node, pipeline, field, run) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
    Ok(Use { key: digest(row, 0)?, node, pipeline, field, run })
}
