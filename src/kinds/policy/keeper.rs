//! Rows looked up, the missing ones computed and kept as they are finished.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Work;
use super::batches::first_of_each;
use crate::digest::Digest;
use crate::endpoint::Tally;
use crate::kinds::NodeError;
use crate::kinds::memo::{RowMemo, Space};

/// Finished rows that are kept together, so that a kill loses little and the disk is not asked for every row.
const KEPT_TOGETHER: usize = 16;

/// How long finished rows wait for others to be kept with.
const KEPT_AFTER: Duration = Duration::from_secs(2);

/// Results in the order of what was asked for.
#[derive(Debug)]
pub(in crate::kinds) struct Rows<V> {
    /// The results.
    pub(in crate::kinds) values: Vec<V>,
    /// Whether each was remembered.
    pub(in crate::kinds) reused: Vec<bool>,
}

/// How many rows were asked for, and how many of these were remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::kinds) struct Reuse {
    /// Rows that were asked for.
    pub(in crate::kinds) asked: usize,
    /// Those that were remembered whole.
    pub(in crate::kinds) reused: usize,
}

impl Reuse {
    /// Both together.
    pub(in crate::kinds) fn and(self, other: Self) -> Self {
        Self { asked: self.asked + other.asked, reused: self.reused + other.reused }
    }

    /// As metrics whose names begin with `prefix`: `rows_asked` and `rows_reused`.
    pub(in crate::kinds) fn metrics(self, prefix: &str) -> [(String, Value); 2] {
        [(format!("{prefix}rows_asked"), json!(self.asked)), (format!("{prefix}rows_reused"), json!(self.reused))]
    }
}

impl<V> Rows<V> {
    /// Counts rows of `size` results each, one after the other.
    pub(in crate::kinds) fn reuse(&self, size: usize) -> Reuse {
        let groups = self.reused.chunks(size.max(1));
        Reuse { asked: groups.len(), reused: groups.filter(|group| group.iter().all(|reused| *reused)).count() }
    }
}

/// Keeps rows as they are finished.
pub(in crate::kinds) struct Keeper<'w, 'a, 'cx, V> {
    memo: RowMemo,
    pub(super) work: &'w mut Work<'a, 'cx>,
    /// Of the rows that are computed, each with a word on what was asked.
    keys: Vec<(Digest, String)>,
    /// Finished, and not kept yet.
    pending: Vec<(usize, V)>,
    /// Finished and kept.
    made: Vec<Option<V>>,
    kept: Instant,
}

impl<V: Clone + Serialize> Keeper<'_, '_, '_, V> {
    /// Takes finished rows; errs once the run is interrupted.
    pub(in crate::kinds) fn take(&mut self, rows: impl Iterator<Item = (usize, V)>) -> Result<(), NodeError> {
        self.pending.extend(rows);
        let enough = self.work.cx.micro_batch.unwrap_or(KEPT_TOGETHER).min(KEPT_TOGETHER);
        if self.pending.len() >= enough || self.kept.elapsed() >= KEPT_AFTER {
            self.keep()?;
        }
        self.work.cx.check_interrupt()
    }

    /// Tells what calls of the model of a field came to.
    pub(in crate::kinds) fn called(&mut self, path: &str, tally: Tally) {
        self.work.cx.part.called(path, tally);
    }

    /// Writes down what is finished.
    pub(in crate::kinds) fn keep(&mut self) -> Result<(), NodeError> {
        self.kept = Instant::now();
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut rows = Vec::with_capacity(self.pending.len());
        for (at, value) in self.pending.drain(..) {
            let (key, note) = &mut self.keys[at];
            self.made[at] = Some(value.clone());
            rows.push((*key, value, std::mem::take(note)));
        }
        self.memo.add(&rows)?;
        self.work.advance(rows.len());
        Ok(())
    }
}

impl<'a, 'cx> Work<'a, 'cx> {
    /// Looks rows up and computes the missing ones. `told` says in a word what a row asks. `compute` gets the places of the
    /// missing rows, and hands each result over with its place among them; what it has handed over is kept even if it errs.
    pub(in crate::kinds) fn remembered<V: Clone + Serialize + DeserializeOwned>(
        &mut self,
        space: &Space,
        keys: &[Digest],
        told: impl Fn(usize) -> String,
        compute: impl FnOnce(&[usize], &mut Keeper<'_, 'a, 'cx, V>) -> Result<(), NodeError>,
    ) -> Result<Rows<V>, NodeError> {
        let mut memo = RowMemo::open(self.cx, space)?;
        let mut values: Vec<Option<V>> = memo.find(keys)?;
        let found: Vec<bool> = values.iter().map(Option::is_some).collect();
        let missing = first_of_each(keys.iter().enumerate().filter(|(at, _)| !found[*at]));
        let reused = self.cx.part.remembered(&space.id, keys, found);
        if !missing.is_empty() && space.about.class.is_some() && self.cx.part.class().is_some() {
            // Here they would be computed on a device of another class.
            return Err(NodeError::with_help(
                format!("{} rows that were computed are no longer remembered", missing.len()),
                "raise `SAMI_ROWS_LIMIT` if it is low; they are computed again",
            ));
        }
        self.advance(keys.len() - missing.len());
        let asked = missing.iter().map(|at| (keys[*at], told(*at))).collect();
        let made = missing.iter().map(|_| None).collect();
        let (store, node) = (self.cx.store, self.cx.node.clone());
        let mut keeper = Keeper { memo, work: self, keys: asked, pending: Vec::new(), made, kept: Instant::now() };
        let mut result = Ok(());
        if !missing.is_empty() {
            result = keeper.work.cx.check_interrupt();
            if result.is_ok() {
                result = compute(&missing, &mut keeper);
                result = keeper.keep().and(result);
            }
        }
        let Keeper { memo, made, work, .. } = keeper;
        memo.finish(store, &node);
        result?;
        work.cx.part.computed(&space.id, missing.iter().map(|at| keys[*at]));
        let made: HashMap<&Digest, V> =
            missing.iter().zip(made).filter_map(|(at, value)| Some((&keys[*at], value?))).collect();
        for (key, value) in keys.iter().zip(&mut values).filter(|(_, value)| value.is_none()) {
            *value = made.get(key).cloned();
        }
        let value = |value: Option<V>| value.ok_or_else(|| NodeError::failed("a row was not computed"));
        Ok(Rows { values: values.into_iter().map(value).collect::<Result<_, _>>()?, reused })
    }
}
