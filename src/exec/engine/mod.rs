//! Engines: what executes detached workers. An engine submits jobs, says how many jobs are at once, and ends them; all
//! else goes through files in the shared cache (`worker/detached.rs`), so an engine knows nothing of nodes.
//!
//! Reading order: this file (the trait), `script` (what a job executes), `slurm`, `ssh` and `command` (the engines), `watch`
//! (the thread that submits, listens and polls for all jobs of a run), `fate` (what the end of a job means for its node),
//! `ticket` (the files that say who is at a key, by which another scheduler finds the job again), `check` (what is found
//! out before any work).

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::PathBuf;

use crate::diag::Diagnostic;
use crate::settings::Resources;

mod check;
mod command;
mod fate;
mod program;
mod script;
mod slurm;
mod ssh;
mod ticket;
mod watch;

pub use check::check;
pub(super) use check::probe;
pub(super) use fate::{Again, Fate, Judged, Patience, Terms, judge};
pub(super) use script::{NO_ROOM, script};
pub(super) use ticket::Ticket;
pub(super) use watch::{Order, Rhythm, Sight, Watcher};

use crate::settings::{Executor, Profile};

/// What executes detached workers. Calls may take seconds; only the watcher's thread makes them.
pub trait Engine: Send + Sync + Debug {
    /// What it is called in records and messages.
    fn name(&self) -> &str;

    /// Submits jobs and returns the id of each, or why it was refused, in their order. Several calls of a program may be
    /// needed for it; jobs with the same `group` may be submitted as one.
    fn submit(&self, jobs: &[Submission]) -> Vec<Result<String, Refusal>>;

    /// How jobs are, by id, in one call for all of them. A job that is not known (any more) is left out.
    fn poll(&self, jobs: &[&str]) -> Result<HashMap<String, Seen>, Refusal>;

    /// The ids of jobs with these marks, as far as there are such: a scheduler that died may have submitted them without
    /// having written down more than the mark.
    fn find(&self, marks: &[&str]) -> Result<HashMap<String, String>, Refusal>;

    /// Ends jobs, whether they wait or run: first by SIGTERM. One that is over already is no error.
    fn cancel(&self, jobs: &[&str]) -> Result<(), Refusal>;

    /// No more is asked of these jobs: they are over.
    fn over(&self, jobs: &[&str]) {
        let _ = jobs;
    }

    /// What is wrong with what is asked for, as far as the engine says so without starting anything.
    fn review(&self, asked: &Submission) -> Vec<Diagnostic> {
        let _ = asked;
        Vec::new()
    }

    /// What a person types to see a job.
    fn look(&self, job: &str) -> String;
}

/// The engine of a profile; `None` if its workers are processes of this machine.
pub fn engine(profile: &Profile) -> Option<std::sync::Arc<dyn Engine>> {
    match &profile.executor {
        Executor::Local => None,
        Executor::Slurm => Some(std::sync::Arc::new(slurm::Slurm)),
        Executor::Ssh(hosts) => Some(std::sync::Arc::new(ssh::Ssh::new(&profile.name, hosts.clone()))),
        Executor::Command(templates) => {
            Some(std::sync::Arc::new(command::Templated::new(&profile.name, templates.clone())))
        }
    }
}

/// The engine of this name, where no profile is needed to ask it.
pub(super) fn bare(name: &str) -> Option<std::sync::Arc<dyn Engine>> {
    (name == "slurm").then(|| std::sync::Arc::new(slurm::Slurm) as std::sync::Arc<dyn Engine>)
}

/// A job to submit.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// Names this attempt and no other one: `RUN/NODE.ATTEMPT`, or with `#SHARD`. Kept where the engine keeps such things.
    pub mark: String,
    /// A short name for lists of jobs.
    pub name: String,
    /// What it is, in a line for people.
    pub what: String,
    /// Where its files are.
    pub directory: PathBuf,
    /// What it prints goes there.
    pub log: PathBuf,
    /// What it needs.
    pub resources: Resources,
    /// How long before its time limit it is told to save.
    pub notice: std::time::Duration,
    /// Jobs of one group ask for the same and may be submitted as one array.
    pub group: Option<String>,
}

/// How a job is, as its engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its state.
    pub state: Standing,
    /// The machine, if it has one.
    pub host: Option<String>,
    /// What the engine says of it: why it waits, or how it ended.
    pub why: String,
}

/// A job's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It waits for its turn.
    Waits,
    /// It has a machine.
    Runs,
    /// It ended by itself; with an exit code, if that is known.
    Ended(Option<i32>),
    /// A person or a rule ended it.
    Cancelled,
    /// Its time was up.
    TimeLimit,
    /// Its memory was not enough.
    OutOfMemory,
    /// It had to go for another one.
    Preempted,
    /// Its machine failed, or could not start it.
    HostFailed,
}

impl Standing {
    /// Whether it is over.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Waits | Self::Runs)
    }
}

/// Why an engine did not do what it was asked to.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What is wrong.
    pub finding: Box<Diagnostic>,
    /// Whether the same may succeed in a while: the engine is out of reach or has enough to do.
    pub passing: bool,
}

impl Refusal {
    /// What to tell in a line.
    pub fn line(&self) -> String {
        match self.finding.notes.first() {
            Some(note) => format!("{}: {note}", self.finding.title),
            None => self.finding.title.clone(),
        }
    }
}

impl Submission {
    /// Seconds before its end at which it is told that its time is nearly up: half its time at most.
    fn notice(&self) -> Option<u64> {
        let most = self.resources.time.map_or(u64::MAX, |time| time.as_secs().div_ceil(60).max(1) * 30);
        let notice = self.notice.as_secs().min(most).min(65535);
        (notice > 0).then_some(notice)
    }

    #[cfg(test)]
    fn sample() -> Self {
        Self {
            mark: "run/node.1".into(),
            name: "sami".into(),
            what: "a job for a test".into(),
            directory: "/nowhere".into(),
            log: "/nowhere/log.txt".into(),
            resources: Resources::default(),
            notice: std::time::Duration::from_secs(30),
            group: None,
        }
    }
}
