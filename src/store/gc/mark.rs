//! What is kept: from roots to records, artifacts and objects.

use std::collections::{BTreeMap, HashSet};

use super::Roots;
use crate::digest::Digest;
use crate::store::glance::Run;
use crate::store::inventory::{Inventory, node_name};
use crate::store::live::{Listener, Need};
use crate::store::{Store, StoreError};

/// A set of places.
#[derive(Debug, Default, Clone)]
pub(super) struct Places(Vec<u64>);

impl Places {
    pub(super) fn of(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    /// Adds a place; returns whether it is new.
    pub(super) fn add(&mut self, place: usize) -> bool {
        let new = !self.has(place);
        self.0[place / 64] |= 1 << (place % 64);
        new
    }

    /// Takes a place away; returns whether it was there.
    pub(super) fn remove(&mut self, place: usize) -> bool {
        let there = self.has(place);
        self.0[place / 64] &= !(1 << (place % 64));
        there
    }

    pub(super) fn has(&self, place: usize) -> bool {
        self.0[place / 64] & (1 << (place % 64)) != 0
    }
}

/// What is kept of an inventory.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) records: Places,
    pub(super) artifacts: Places,
    pub(super) objects: Places,
    /// Artifacts that are kept at any price: pins and what living processes need, with what it takes to look at them.
    pub(super) firm: Places,
    /// Keys that living processes need.
    pub(super) needed: HashSet<Digest>,
    /// When each record was made, or used by a run that there is, last; in seconds since 1970.
    pub(super) used: Vec<i64>,
    /// Runs that are not kept, and whether each had ended.
    pub(super) runs_to_go: Vec<(String, bool)>,
}

impl Kept {
    /// Marks what the roots need.
    pub(super) fn mark(store: &Store, inventory: &Inventory, roots: &Roots) -> Result<Self, StoreError> {
        let mut kept = Self {
            records: Places::of(inventory.keys.len()),
            artifacts: Places::of(inventory.artifacts.len()),
            objects: Places::of(inventory.objects.len()),
            firm: Places::of(inventory.artifacts.len()),
            needed: HashSet::new(),
            used: inventory.records.iter().map(|record| record.as_ref().map_or(0, |record| record.made)).collect(),
            runs_to_go: Vec::new(),
        };
        for need in Listener::default().news(store)? {
            match need {
                Need::Key(key) => _ = kept.needed.insert(key),
                Need::Artifact(id) => kept.hold(inventory, &id),
                Need::Object(id) => {
                    for object in store.kept_by(&id)?.iter().chain([&id]) {
                        inventory.objects.find(object).into_iter().for_each(|place| _ = kept.objects.add(place));
                    }
                }
            }
        }
        for id in store.pins()?.iter().chain(&store.promises()?) {
            kept.hold(inventory, id);
        }
        let unlisted = kept.mark_runs(store, inventory, roots)?;
        let since = roots.since.map_or(i64::MAX, jiff::Timestamp::as_second);
        let mut firmly = Vec::new();
        for (place, record) in inventory.records.iter().enumerate() {
            let Some(record) = record else { continue };
            let artifact = record.artifact();
            let firm = kept.needed.contains(&inventory.keys[place]) || artifact.is_some_and(|id| kept.firm.has(id));
            let wanted = firm || record.made >= since || unlisted.contains(&record.run);
            if wanted || kept.records.has(place) {
                kept.records.add(place);
                for artifact in artifact.into_iter().chain(inventory.inputs(record)) {
                    kept.artifacts.add(artifact);
                    if firm {
                        firmly.push(artifact);
                    }
                }
            }
        }
        // Not before: what was made of a pin's inputs needs no record of theirs.
        firmly.into_iter().for_each(|artifact| _ = kept.firm.add(artifact));
        if let Some(since) = roots.since {
            kept.keep_young_sources(store, inventory, since);
        }
        for artifact in 0..inventory.artifacts.len() {
            if kept.artifacts.has(artifact) {
                for object in inventory.stands(artifact) {
                    kept.objects.add(object);
                }
            }
        }
        Ok(kept)
    }

    fn hold(&mut self, inventory: &Inventory, id: &Digest) {
        if let Some(place) = inventory.artifacts.find(id) {
            self.artifacts.add(place);
            self.firm.add(place);
        }
    }

    /// Marks the records that runs used. Returns those runs (by number) that are kept and have no list of nodes: they go
    /// on or were killed, and what they recorded carries their name.
    fn mark_runs(&mut self, store: &Store, inventory: &Inventory, roots: &Roots) -> Result<HashSet<u32>, StoreError> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut latest: HashSet<String> = HashSet::new();
        let mut unlisted = HashSet::new();
        store.each_run(&mut |Run { id, record }| {
            // A run without a record did not get as far as running anything.
            let Some(record) = record else { return self.runs_to_go.push((id, false)) };
            let count = counts.entry(record.pipeline.clone()).or_default();
            let recent = *count < roots.keep_runs;
            *count += 1;
            let mut used = recent;
            let begun = record.started.parse().map_or(0, jiff::Timestamp::as_second);
            for node in &record.nodes {
                // A record that went with another choice of roots keeps no run.
                let Some(place) = node.key.and_then(|key| inventory.keys.find(&key)) else { continue };
                self.used[place] = self.used[place].max(begun);
                let newest =
                    roots.latest && node.artifact.is_some() && latest.insert(node_name(&record.pipeline, &node.name));
                used |= newest;
                if recent || newest {
                    self.records.add(place);
                }
            }
            if used && record.nodes.is_empty() {
                unlisted.extend(inventory.names.find(&id));
            }
            if !used {
                self.runs_to_go.push((id, record.finished.is_some()));
            }
        })?;
        self.runs_to_go.reverse();
        Ok(unlisted)
    }

    /// Keeps artifacts that no node made and that came in lately: sources of a node that is yet to run.
    fn keep_young_sources(&mut self, store: &Store, inventory: &Inventory, since: jiff::Timestamp) {
        let mut made = Places::of(inventory.artifacts.len());
        for record in inventory.records.iter().flatten() {
            record.artifact().map(|artifact| made.add(artifact));
        }
        for (place, id) in inventory.artifacts.all().iter().enumerate() {
            if self.artifacts.has(place) || made.has(place) {
                continue;
            }
            let modified = std::fs::metadata(store.manifest_path(id)).and_then(|file| file.modified());
            if modified.is_ok_and(|modified| jiff::Timestamp::try_from(modified).is_ok_and(|time| time >= since)) {
                self.artifacts.add(place);
            }
        }
    }
}
