//! Garbage collection: what nothing that is wanted needs goes.
//!
//! Wanted are, as [`Roots`] says: pinned artifacts; what the last runs of each pipeline used; what each node had latest, also
//! in an older run; what was made lately; and what living processes name (`live`). A record that is kept keeps
//! its artifact and its inputs, and an artifact the objects that it stands on. Row memos stay: they may have been paid
//! for. Scratch of attempts that were killed stays as long as their key has no record.
//!
//! With a [`Budget`] what is wanted goes, too, in an order (`evict`), until the store is small enough; pins and what living
//! processes name stay all the same.
//!
//! **Why nothing that is needed goes**, though runs go on beside it and the index may be out of date: *What goes was there
//! when gc listed the store.* What is put later is no candidate. *What is kept is decided by files*, every record and manifest
//! read, never by the index (`--dry-run` alone asks it). *What became needed since* was found or put in a section of a
//! living process, which named it in its live file within the section. gc moves things away in steps, alone: no section
//! overlaps a step, and each step first reads what was named and leaves that, or moves it back if an
//! earlier step moved it away. A process that ended meanwhile left its live file, and one that was dead
//! before gc listed the store had recorded all that it ever recorded. So of everything that was named until a step, nothing is
//! gone after it, and what a section looks for after the step and does not find, it makes again.
//!
//! **A gc that is killed** leaves garbage, never a record without its artifact: records move before manifests and
//! manifests before objects, into `trash/`, and are deleted from there in that order. The next gc moves what it finds in `trash/`
//! back before it begins, and decides anew.

use std::path::Path;

use serde::Serialize;

use super::{Store, StoreError};
use crate::digest::Digest;

mod evict;
mod forget;
mod mark;
mod plan;
mod scratch;
mod sweep;
#[cfg(test)]
mod tests;

pub use forget::{Forgetting, Selection};
pub use plan::{Class, Going, Plan, Room};
pub(super) use sweep::Gone;

use sweep::Sweep;

/// What gc keeps beside pins and what living processes need.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// What the last so many runs of each pipeline used.
    pub keep_runs: usize,
    /// What was made since.
    pub since: Option<jiff::Timestamp>,
    /// What each node had latest in a run that is older than those.
    pub latest: bool,
    /// How much of all that may stay, if there is a bound.
    pub budget: Option<Budget>,
}

/// How large a store may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// In bytes.
    pub keep: u64,
    /// What goes first where more is wanted than that.
    pub by: By,
}

/// An order in which artifacts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    /// What costs least to make again, for the bytes that it frees.
    #[default]
    Price,
    /// What was made or used longest ago.
    Age,
}

/// What was (or would be) removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Garbage {
    /// Node records.
    pub nodes: u64,
    /// Artifacts.
    pub artifacts: u64,
    /// Objects.
    pub objects: u64,
    /// Runs.
    pub runs: u64,
    /// Other files: scratch, locks, quarantine.
    pub files: u64,
    /// Bytes in all.
    pub bytes: u64,
}

/// Something that goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    /// A run's directory; whether the run had ended.
    Run(String, bool),
    /// A node record.
    Node(Digest),
    /// A manifest, and where its files were left.
    Artifact(Digest),
    /// An object.
    Object(Digest),
    /// Scratch of a key that no one works at and that has no record.
    Partial(Digest),
}

impl Store {
    /// Removes what `roots` does not keep, beside whatever goes on. `ask` is shown what that is and may say no, and
    /// `waiting` is called while others have to be waited for. Returns what was removed; `None` after a no.
    pub fn collect(
        &self,
        roots: &Roots,
        ask: &mut dyn FnMut(&Plan) -> bool,
        waiting: &mut dyn FnMut(),
    ) -> Result<Option<Garbage>, StoreError> {
        let _only = self.begin_gc(waiting)?;
        let plan = self.plan_gc(roots)?;
        if !ask(&plan) {
            return Ok(None);
        }
        let sweep = Sweep::new(self, waiting);
        sweep.run(plan.items, true).map(Some)
    }

    /// Makes this process the only gc, and the store one in which no gc was killed.
    fn begin_gc(&self, waiting: &mut dyn FnMut()) -> Result<fs_err::File, StoreError> {
        let only = self.only_gc(waiting)?;
        // What this process put it does not go by.
        drop(self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
        self.restore_trash(waiting)?;
        self.bury_the_dead()?;
        Ok(only)
    }

    /// [`Store::collect`] without questions, or with `dry_run` `Store::plan_gc`, with the last `keep_runs` runs of each
    /// pipeline as roots.
    pub fn gc(&self, keep_runs: usize, dry_run: bool) -> Result<Garbage, StoreError> {
        let roots = Roots { keep_runs, ..Roots::default() };
        if dry_run {
            return Ok(self.preview_gc(&mut super::Index::open(self)?, &roots)?.garbage);
        }
        Ok(self.collect(&roots, &mut |_| true, &mut || {})?.unwrap_or_default())
    }
}

/// Directories that gc leaves alone, besides the rows.
pub(super) const STAY: [&str; 3] = ["external", "tensorboard", "trackers"];

/// A file's size; 0 if it went away meanwhile.
pub(super) fn size(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.len())
}
