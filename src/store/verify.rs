//! Reads every byte of the store against its digest.
//!
//! Looked at is every directory in which something rests on a file (`files`); what lies in `tmp/`, `partial/`, `locks/`
//! and `quarantine/` is scratch. Objects, manifests, records of nodes and runs and rows have digests, so any byte of
//! them that changed is found; logs and events are for people and only have to be readable.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::gc::Gone;
use super::thin::Flaw;
use super::{Index, Store, StoreError};
use crate::digest::Digest;

mod files;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// In which way.
    pub state: State,
    /// `object`, `manifest`, `external`, `file` (outside), `node`, `run`, `rows`, `pin` or `index`.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// What is wrong with it.
    pub how: String,
    /// Nodes that will run again because of it.
    pub nodes: Vec<String>,
    /// Nodes that took what is affected: they stay as they are if it comes out the same.
    pub takers: Vec<String>,
}

/// In which way something is not as it should be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is not what it was.
    #[default]
    Damaged,
    /// It is not there.
    Missing,
    /// It does not belong there.
    Foreign,
}

impl State {
    /// As it is told.
    pub fn name(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Missing => "missing",
            Self::Foreign => "foreign",
        }
    }
}

/// What a verification saw.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    /// Objects read.
    pub objects: u64,
    /// Artifacts looked at.
    pub artifacts: u64,
    /// Node records looked at.
    pub nodes: u64,
    /// Bytes of objects read.
    pub bytes: u64,
    /// What is wrong, in the order of the paths.
    pub findings: Vec<Finding>,
}

impl Verification {
    /// Whether nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }
}

/// What is wrong with a file, and with what it affects.
#[derive(Debug, Default)]
struct Fault {
    state: State,
    what: &'static str,
    how: String,
    artifacts: BTreeSet<Digest>,
    keys: BTreeSet<Digest>,
}

/// A verification that goes on.
struct Sight<'a> {
    store: &'a Store,
    seen: Verification,
    /// In order, with sizes.
    objects: Vec<(Digest, u64)>,
    bad_objects: BTreeSet<Digest>,
    /// Files that are kept in pieces, and what is wrong with them.
    in_pieces: BTreeMap<Digest, Option<Flaw>>,
    /// Those whose manifest is whole, in order.
    artifacts: Vec<Digest>,
    /// Keys of which the index knows something else, and runs that it alone knows.
    stale: Vec<Digest>,
    gone: Vec<String>,
    faults: BTreeMap<PathBuf, Fault>,
}

impl Store {
    /// Reads everything; `progress` is told bytes of objects done and in all. Changes nothing but the index, which
    /// forgets what is not so: the next run of the pipeline makes again what is damaged and moves the damaged file aside.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Verification, StoreError> {
        let mut sight = Sight {
            store: self,
            seen: Verification::default(),
            objects: Vec::new(),
            bad_objects: BTreeSet::new(),
            in_pieces: BTreeMap::new(),
            artifacts: Vec::new(),
            stale: Vec::new(),
            gone: Vec::new(),
            faults: BTreeMap::new(),
        };
        sight.top()?;
        sight.objects(progress)?;
        sight.manifests()?;
        sight.external()?;
        let index = Index::look(self);
        if let Err(how) = &index {
            sight.fault(State::Damaged, "index", &self.root.join("index.sqlite"), how);
        }
        let index = index.ok().flatten();
        sight.nodes(index.as_ref())?;
        sight.runs(index.as_ref())?;
        sight.rows()?;
        sight.pins()?;
        sight.end(index)
    }

    /// Moves what a verification found damaged or foreign into `quarantine/`, so that the next run makes it again, and
    /// the index with it; files outside of the store stay. Returns what was moved.
    ///
    /// Waits until no other process is putting anything; `waiting` is called if that takes long.
    pub fn repair(&self, seen: &Verification, waiting: &mut dyn FnMut()) -> Result<Vec<PathBuf>, StoreError> {
        let alone = self.alone(waiting)?;
        let mut moved = Vec::new();
        for finding in &seen.findings {
            let path = &finding.path;
            if finding.state != State::Missing && path.starts_with(&self.root) && fs_err::symlink_metadata(path).is_ok()
            {
                self.quarantine(path)?;
                moved.push(path.clone());
            }
        }
        drop(alone);
        if !seen.is_whole() {
            Index::rebuild(self)?;
        }
        Ok(moved)
    }
}

impl Sight<'_> {
    /// Looks for the nodes that are affected, and has the index forget those of which it knows what is not so.
    fn end(mut self, index: Option<Index>) -> Result<Verification, StoreError> {
        let mut nodes: BTreeMap<PathBuf, [BTreeSet<String>; 2]> = BTreeMap::new();
        let affected: BTreeSet<Digest> = self.faults.values().flat_map(|fault| &fault.artifacts).copied().collect();
        let keys: BTreeSet<Digest> = self.faults.values().flat_map(|fault| &fault.keys).copied().collect();
        // Records are read once more rather than kept: there may be many.
        for key in if affected.is_empty() { Vec::new() } else { self.store.node_keys()? } {
            let Ok(Some(record)) = self.store.node(&key) else { continue };
            if !affected.contains(&record.artifact) && !record.inputs.values().any(|input| affected.contains(input)) {
                continue;
            }
            for (path, fault) in &self.faults {
                let [makers, takers] = nodes.entry(path.clone()).or_default();
                if fault.artifacts.contains(&record.artifact) {
                    makers.insert(record.node.clone());
                } else if record.inputs.values().any(|input| fault.artifacts.contains(input)) {
                    takers.insert(record.node.clone());
                }
            }
        }
        // A record that cannot be read does not say whose it is; runs do.
        for run in if keys.is_empty() { Vec::new() } else { self.store.runs()? } {
            for node in &run.nodes {
                let of_node = |fault: &&mut Fault| node.key.is_some_and(|key| fault.keys.contains(&key));
                for (path, _) in self.faults.iter_mut().filter(|(_, fault)| of_node(fault)) {
                    nodes.entry(path.clone()).or_default()[0].insert(node.name.clone());
                }
            }
        }
        self.stale.extend(keys);
        // Remembered answers rest on seals, and on no record.
        if !(self.stale.is_empty() && affected.is_empty())
            && let Err(error) = self.store.forget_answers()
            && !error.is_read_only()
        {
            return Err(error);
        }
        if let Some(mut index) = index {
            index.unseal(&affected.into_iter().collect::<Vec<_>>());
            index.forget(&Gone { runs: self.gone, keys: self.stale, artifacts: Vec::new() });
        }
        for (path, Fault { state, what, how, .. }) in self.faults {
            let [nodes, takers] = nodes.remove(&path).unwrap_or_default().map(|names| names.into_iter().collect());
            self.seen.findings.push(Finding { state, what, path, how, nodes, takers });
        }
        Ok(self.seen)
    }
}

#[cfg(test)]
mod tests;
