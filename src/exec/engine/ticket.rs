//! Who is at a key: written down before a job counts as running, so that whoever comes next finds it again.
//!
//! A ticket is in two places: `ticket.json` in the scratch of the key, where a scheduler looks that is about to begin at the
//! key, written before the job is submitted, with its mark alone; and `engine.json` beside the job, for people and for what
//! reads a run, where the job's id is noted once there is one. A scheduler that dies before that is no loss: the engine is
//! asked for the job with that mark.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::exec::ExecError;
use crate::exec::job::{Exit, RESULT};
use crate::fs;
use crate::store::{Store, StoreError};

const IN_PARTIAL: &str = "ticket.json";
const BESIDE_JOB: &str = "engine.json";

/// An attempt in the hands of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::exec) struct Ticket {
    /// The engine's name.
    pub(in crate::exec) engine: String,
    /// Names the attempt and no other: see [`super::Submission::mark`].
    pub(in crate::exec) mark: String,
    /// The job's id, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::exec) job: Option<String>,
    /// The machine that it was submitted from.
    pub(in crate::exec) host: String,
    /// When it was submitted, for people.
    pub(in crate::exec) submitted: String,
    /// Where the attempt's files are.
    pub(in crate::exec) directory: PathBuf,
    /// What a person types to see the job.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(in crate::exec) look: String,
    /// Which part of the node it is at, from 0, if at a part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::exec) part: Option<usize>,
}

impl Ticket {
    /// Writes it in both places.
    pub(in crate::exec) fn write(&self, store: &Store, key: &Digest) -> Result<(), ExecError> {
        store.partial_dir(key)?;
        let bytes = serde_json::to_vec_pretty(self).map_err(StoreError::from)?;
        fs::write_atomic(&path(store, key, self.part), &bytes)?;
        Ok(fs::write(&self.directory.join(BESIDE_JOB), &bytes)?)
    }

    /// Notes the id of its job. Neither whole at once nor waited for: where it cannot be read there is the mark.
    pub(in crate::exec) fn note(&self) -> Result<(), ExecError> {
        let bytes = serde_json::to_vec_pretty(self).map_err(StoreError::from)?;
        Ok(fs::write(&self.directory.join(BESIDE_JOB), &bytes)?)
    }

    /// The ticket at a key, or at a part of its node, whose end no scheduler has seen. One that cannot be read is none: then work may be done twice.
    pub(in crate::exec) fn at(store: &Store, key: &Digest, part: Option<usize>) -> Option<Self> {
        let read = |path: &Path| serde_json::from_slice::<Self>(&fs_err::read(path).ok()?).ok();
        let ticket = read(&path(store, key, part))?;
        let noted = read(&ticket.directory.join(BESIDE_JOB)).filter(|noted| noted.mark == ticket.mark);
        Some(noted.unwrap_or(ticket))
    }

    /// All that there are, by the key.
    pub(in crate::exec) fn all(store: &Store) -> Result<BTreeMap<Digest, Vec<Self>>, ExecError> {
        let mut all = BTreeMap::new();
        for scratch in fs::list(&Path::new(store.root()).join("partial"))? {
            let Some(key) = scratch.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            let part = |path: &PathBuf| match path.file_name()?.to_str()? {
                IN_PARTIAL => Some(None),
                name => Some(Some(name.strip_prefix("ticket-")?.strip_suffix(".json")?.parse().ok()?)),
            };
            let parts: Vec<Option<usize>> = fs::list(&scratch).unwrap_or_default().iter().filter_map(part).collect();
            let tickets: Vec<Self> = parts.into_iter().filter_map(|part| Self::at(store, &key, part)).collect();
            if !tickets.is_empty() {
                all.insert(key, tickets);
            }
        }
        Ok(all)
    }

    /// Whether what it is for ended in something that is not to be had from it any more: to be told of that, someone would
    /// have had to be there. An attempt that made its artifact is as good as one that goes on.
    pub(in crate::exec) fn is_spent(&self) -> bool {
        let exit = fs_err::read(self.directory.join(RESULT)).ok();
        let exit: Option<Exit> = exit.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        exit.is_some_and(|exit| !exit.result.is_done())
    }

    /// Takes the ticket at a key, or at a part of its node, away: its end was seen.
    pub(in crate::exec) fn clear(store: &Store, key: &Digest, part: Option<usize>) -> Result<(), ExecError> {
        Ok(fs::absent_is_none(fs::remove_file(&path(store, key, part))).map(|_| ())?)
    }
}

fn path(store: &Store, key: &Digest, part: Option<usize>) -> PathBuf {
    let name = part.map_or_else(|| IN_PARTIAL.to_owned(), |part| format!("ticket-{part}.json"));
    Path::new(store.root()).join("partial").join(key.to_string()).join(name)
}
