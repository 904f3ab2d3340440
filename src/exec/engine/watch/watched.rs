//! A job that is watched, and its files.

use std::path::PathBuf;
use std::time::Instant;

use super::tail::Tail;
use super::{Seen, Submission};
use crate::exec::job::{Exit, RESULT, WORDS};
use crate::fs;

/// A job that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) directory: PathBuf,
    pub(super) mark: String,
    pub(super) words: Tail,
    /// To be submitted, with how often it was tried and when it is tried again.
    pub(super) waiting: Option<(Box<Submission>, u32, Instant)>,
    /// What the disk is to be waited for before.
    pub(super) unsettled: Vec<PathBuf>,
    pub(super) job: Option<String>,
    pub(super) seen: Option<Seen>,
    /// Since when it is over, or not known any more, without a record.
    pub(super) over: Option<(Instant, Option<Seen>)>,
    /// Since when there is a record, of one whose end, or what it made, is waited for all the same.
    pub(super) left: Option<Instant>,
    pub(super) stopped: bool,
}

impl Watched {
    pub(super) fn new(directory: PathBuf, mark: String, job: Option<String>) -> Self {
        let words = Tail::new(directory.join(WORDS));
        let unsettled = Vec::new();
        Self {
            directory,
            mark,
            words,
            waiting: None,
            unsettled,
            job,
            seen: None,
            over: None,
            left: None,
            stopped: false,
        }
    }

    /// The worker's record, if it is there.
    pub(super) fn exit(&self) -> Option<Exit> {
        // Listed, not looked up: NFS remembers for a while that a name was not there.
        let files = fs::list(&self.directory).ok()?;
        let file = files.iter().find(|file| file.ends_with(RESULT))?;
        serde_json::from_slice(&fs_err::read(file).ok()?).ok()
    }
}
