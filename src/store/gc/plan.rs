//! What would go, counted and told.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};

use serde::Serialize;

use super::mark::{Kept, Places};
use super::scratch::Scratch;
use super::{Garbage, Item, Roots, STAY, size};
use crate::digest::Digest;
use crate::store::inventory::Inventory;
use crate::store::inventory::weigh;
use crate::store::{Index, Store, StoreError};

/// How many artifacts are told one by one.
const LARGEST: usize = 10;

/// What gc has in mind.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Counted, if all of it goes.
    pub garbage: Garbage,
    /// By type of artifact, in the order of the types.
    pub types: Vec<Class>,
    /// The artifacts that free most.
    pub largest: Vec<Going>,
    /// What becomes of the budget, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<Room>,
    #[serde(skip)]
    pub(super) items: Vec<Item>,
}

/// What becomes of a budget.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Room {
    /// Bytes that may stay.
    pub keep: u64,
    /// Bytes that stay.
    pub left: u64,
    /// Of these, row memos, which are not taken.
    pub rows: u64,
    /// Artifacts that go though something wants them.
    pub evicted: u64,
}

/// Artifacts of a type that go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Class {
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many.
    pub artifacts: u64,
    /// Bytes of objects that they free.
    pub bytes: u64,
}

/// An artifact that goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Going {
    /// Its id.
    pub artifact: Digest,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes of objects that it frees: what it shares with others that go counts for the first of them.
    pub bytes: u64,
    /// Pipeline and node that made it, with a `/` between them; none of what came from outside.
    pub node: Option<String>,
    /// When it was made.
    pub made: Option<String>,
    /// Seconds that it took.
    pub seconds: Option<f32>,
    /// Whether on a GPU.
    pub gpu: bool,
}

impl Plan {
    /// Whether nothing would go.
    pub fn is_empty(&self) -> bool {
        self.garbage == Garbage::default()
    }

    /// Takes down what goes, if it may go by this inventory: of millions that are only told, the list would be most of what is held.
    fn list(&mut self, inventory: &Inventory, item: impl FnOnce() -> Item) {
        if !inventory.is_view {
            self.items.push(item());
        }
    }
}

impl Store {
    /// What [`Store::collect`] removes.
    pub(in crate::store) fn plan_gc(&self, roots: &Roots) -> Result<Plan, StoreError> {
        let scratch = self.scratch()?;
        self.plan_with(scratch, &Inventory::of_files(self)?, roots)
    }

    /// What [`Store::collect`] would remove, as far as the index knows.
    pub fn preview_gc(&self, index: &mut Index, roots: &Roots) -> Result<Plan, StoreError> {
        let scratch = self.scratch()?;
        self.plan_with(scratch, &Inventory::of_index(self, index)?, roots)
    }

    /// [`Store::plan_gc`] by an inventory of whatever kind.
    #[cfg(test)]
    pub(in crate::store) fn plan_by(&self, inventory: &Inventory, roots: &Roots) -> Result<Plan, StoreError> {
        self.plan_with(self.scratch()?, inventory, roots)
    }

    fn plan_with(&self, scratch: Scratch, inventory: &Inventory, roots: &Roots) -> Result<Plan, StoreError> {
        let mut kept = Kept::mark(self, inventory, roots)?;
        let mut plan = Plan::default();
        if let Some(budget) = &roots.budget {
            let rows = weigh(&self.root.join("rows"))?.1;
            let going: HashSet<&str> = kept.runs_to_go.iter().map(|(run, _)| run.as_str()).collect();
            let mut fixed = rows + size(&self.root.join("index.sqlite"));
            for part in STAY {
                fixed += weigh(&self.root.join(part))?.1;
            }
            for run in self.run_ids()?.iter().filter(|run| !going.contains(run.as_str())) {
                fixed += weigh(&self.run_dir(run))?.1;
            }
            let evicted = self.evict(inventory, &mut kept, budget, fixed)?;
            plan.room = Some(Room { keep: budget.keep, left: evicted.left, rows, evicted: evicted.artifacts });
            for key in evicted.partial {
                let (files, bytes) = weigh(&self.root.join("partial").join(key.to_string()))?;
                plan.garbage.files += files;
                plan.garbage.bytes += bytes;
                plan.items.push(Item::Partial(key));
            }
        }
        for (run, ended) in &kept.runs_to_go {
            let (files, bytes) = weigh(&self.run_dir(run))?;
            plan.garbage.runs += 1;
            plan.garbage.files += files;
            plan.garbage.bytes += bytes;
            plan.items.push(Item::Run(run.clone(), *ended));
        }
        for (place, key) in inventory.keys.all().iter().enumerate().filter(|(place, _)| !kept.records.has(*place)) {
            plan.garbage.nodes += 1;
            plan.garbage.bytes += match &inventory.records[place] {
                Some(record) if record.bytes > 0 => u64::from(record.bytes),
                _ => size(&self.node_path(key)),
            };
            plan.list(inventory, || Item::Node(*key));
        }
        self.plan_artifacts(inventory, &|artifact| !kept.artifacts.has(artifact), &kept.objects, &mut plan)?;
        for (place, id) in inventory.objects.all().iter().enumerate().filter(|(place, _)| !kept.objects.has(*place)) {
            plan.garbage.objects += 1;
            plan.garbage.bytes += self.object_bytes(inventory, place);
            plan.list(inventory, || Item::Object(*id));
        }
        for path in scratch.garbage(self, &inventory.keys)? {
            let (files, bytes) = if path.is_dir() { weigh(&path)? } else { (1, size(&path)) };
            plan.garbage.files += files;
            plan.garbage.bytes += bytes;
        }
        plan.items.sort_unstable();
        Ok(plan)
    }

    /// Plans that artifacts go. `standing` are the objects that others stand on.
    pub(super) fn plan_artifacts(
        &self,
        inventory: &Inventory,
        goes: &dyn Fn(usize) -> bool,
        standing: &Places,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let mut counted = Places::of(inventory.objects.len());
        let mut types: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let mut largest: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        // Few are, and to ask the disk of each of a million takes a second.
        let outside: HashSet<Digest> = self.external_ids()?.into_iter().collect();
        for (place, id) in inventory.artifacts.all().iter().enumerate().filter(|(place, _)| goes(*place)) {
            let artifact = &inventory.manifests[place];
            plan.garbage.artifacts += 1;
            plan.garbage.bytes += u64::from(artifact.bytes);
            if outside.contains(id) {
                plan.garbage.bytes += size(&self.external_path(id));
            }
            plan.list(inventory, || Item::Artifact(*id));
            let free = inventory.stands(place).filter(|object| !standing.has(*object) && counted.add(*object));
            let bytes: u64 = free.map(|object| self.object_bytes(inventory, object)).sum();
            let class = types.entry(artifact.kind).or_default();
            class.0 += 1;
            class.1 += bytes;
            largest.push(Reverse((bytes, place)));
            if largest.len() > LARGEST {
                largest.pop();
            }
        }
        let class = |(kind, (artifacts, bytes)): (u32, (u64, u64))| {
            let kind = inventory.types.get(kind).to_owned();
            Class { kind, artifacts, bytes }
        };
        plan.types = types.into_iter().map(class).collect();
        plan.types.sort_by(|a, b| a.kind.cmp(&b.kind));
        let places: BTreeMap<usize, u64> = largest.iter().map(|Reverse((bytes, place))| (*place, *bytes)).collect();
        let mut going: BTreeMap<usize, Going> = BTreeMap::new();
        for (place, bytes) in places {
            let kind = inventory.types.get(inventory.manifests[place].kind).to_owned();
            let artifact = inventory.artifacts[place];
            going.insert(place, Going { artifact, kind, bytes, node: None, made: None, seconds: None, gpu: false });
        }
        for record in inventory.records.iter().flatten() {
            let Some(one) = record.artifact().and_then(|place| going.get_mut(&place)) else { continue };
            let made = jiff::Timestamp::from_second(record.made).unwrap_or_default().to_string();
            if one.made.as_ref().is_none_or(|known| *known < made) {
                one.node = Some(inventory.names.get(record.node).to_owned());
                one.made = Some(made);
                one.seconds = Some(record.seconds);
                one.gpu = record.gpu;
            }
        }
        plan.largest = going.into_values().collect();
        plan.largest.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.artifact.cmp(&b.artifact)));
        Ok(())
    }

    /// Bytes of an object, by the manifests that name it or by its file.
    pub(in crate::store) fn object_bytes(&self, inventory: &Inventory, place: usize) -> u64 {
        match inventory.sizes[place] {
            0 => self.object_size(&inventory.objects[place]),
            size => size,
        }
    }
}
