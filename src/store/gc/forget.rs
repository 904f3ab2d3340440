//! Forgetting by name: records, and what nothing else needs.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use super::mark::Places;
use super::plan::Plan;
use super::sweep::Sweep;
use super::{Garbage, Item};
use crate::digest::Digest;
use crate::store::glance::Run;
use crate::store::inventory::weigh;
use crate::store::inventory::{Inventory, node_name};
use crate::store::{Index, Store, StoreError};

/// What is to be forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Records under these keys.
    pub keys: BTreeSet<Digest>,
    /// These artifacts, with the records of all that made them.
    pub artifacts: BTreeSet<Digest>,
    /// These runs, with what they recorded.
    pub runs: BTreeSet<String>,
    /// All that nodes of these names made, in a pipeline or in all; iterations and cells of a matrix with the name of their node.
    pub nodes: BTreeSet<(Option<String>, String)>,
    /// These pipelines: their runs, and all that their nodes made.
    pub pipelines: BTreeSet<String>,
}

/// What forgetting comes to.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Forgetting {
    /// What goes.
    #[serde(flatten)]
    pub plan: Plan,
    /// Pipelines and nodes (with a `/` between them) of which the records go, in order.
    pub nodes: Vec<String>,
    /// Those of them of which the latest result goes: they run again.
    pub reruns: Vec<String>,
    /// Bytes of the files of artifacts of which the records go, whether they go or not.
    pub bytes: u64,
    /// Artifacts among them that are pinned, which keeps them from going.
    pub pinned: Vec<Digest>,
    /// Records of them that a `sami` uses that goes on now, which keeps them from going.
    pub in_use: u64,
}

impl Selection {
    /// Whether a node is the one of a name, or an iteration or a cell of it.
    pub fn is_of(node: &str, name: &str) -> bool {
        node.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['@', '[']))
    }

    /// Whether a node is among those named; its name is that of the pipeline and its own, with a `/` between them.
    fn names(&self, name: &str) -> bool {
        let Some((pipeline, node)) = name.split_once('/') else { return false };
        self.pipelines.contains(pipeline)
            || self.nodes.iter().any(|(within, wanted)| {
                within.as_ref().is_none_or(|within| within == pipeline) && Self::is_of(node, wanted)
            })
    }
}

impl Store {
    /// What it would come to to forget something, as far as the index knows.
    pub fn preview_forget(&self, index: &mut Index, what: &Selection) -> Result<Forgetting, StoreError> {
        self.plan_forget(&Inventory::of_index(self, index)?, what)
    }

    /// Removes records, and what nothing else needs, beside whatever goes on. As [`Store::collect`].
    ///
    /// What is pinned is unpinned first: `ask` is to say no if that is not wanted.
    pub fn forget(
        &self,
        what: &Selection,
        ask: &mut dyn FnMut(&Forgetting) -> bool,
        waiting: &mut dyn FnMut(),
    ) -> Result<Option<Garbage>, StoreError> {
        let _only = self.begin_gc(waiting)?;
        let forgetting = self.plan_forget(&Inventory::of_files(self)?, what)?;
        if !ask(&forgetting) {
            return Ok(None);
        }
        let plan = if forgetting.pinned.is_empty() {
            forgetting.plan
        } else {
            forgetting.pinned.iter().try_for_each(|id| self.unpin(id))?;
            self.plan_forget(&Inventory::of_files(self)?, what)?.plan
        };
        Sweep::new(self, waiting).run(plan.items, false).map(Some)
    }

    fn plan_forget(&self, inventory: &Inventory, what: &Selection) -> Result<Forgetting, StoreError> {
        let mut forgetting = Forgetting::default();
        let living = self.living()?;
        let pins: BTreeSet<Digest> = self.pins()?.into_iter().collect();
        let mut runs = what.runs.clone();
        let mut latest: HashMap<String, Digest> = HashMap::new();
        self.each_run(&mut |Run { id, record }| {
            let Some(record) = record else { return };
            for node in &record.nodes {
                if let (Some(key), Some(_)) = (node.key, node.artifact) {
                    latest.entry(node_name(&record.pipeline, &node.name)).or_insert(key);
                }
            }
            if what.pipelines.contains(&record.pipeline) {
                runs.insert(id);
            }
        })?;
        // Records that go, those that stay, and what each of them touches.
        let named: Vec<bool> = inventory.names.all().iter().map(|name| what.names(name)).collect();
        let in_run: BTreeSet<u32> = what.runs.iter().filter_map(|run| inventory.names.find(run)).collect();
        let [mut touched, mut needed, mut counted] = [(); 3].map(|()| Places::of(inventory.artifacts.len()));
        let mut names = BTreeSet::new();
        for id in what.artifacts.iter().filter_map(|id| inventory.artifacts.find(id)) {
            touched.add(id);
        }
        for (place, key) in inventory.keys.all().iter().enumerate() {
            let Some(record) = &inventory.records[place] else { continue };
            let artifact = record.artifact();
            let id = artifact.map(|artifact| inventory.artifacts[artifact]);
            let chosen = named[record.node as usize]
                || in_run.contains(&record.run)
                || what.keys.contains(key)
                || id.is_some_and(|id| what.artifacts.contains(&id));
            let pinned = chosen && id.is_some_and(|id| pins.contains(&id));
            let in_use = chosen && living.contains(key);
            forgetting.pinned.extend(id.filter(|_| pinned));
            forgetting.in_use += u64::from(in_use);
            let goes = chosen && !pinned && !in_use;
            for artifact in artifact.into_iter().chain(inventory.inputs(record)) {
                if goes {
                    touched.add(artifact)
                } else {
                    needed.add(artifact)
                };
            }
            if let Some(artifact) = artifact.filter(|artifact| chosen && counted.add(*artifact)) {
                forgetting.bytes +=
                    inventory.stands(artifact).map(|object| self.object_bytes(inventory, object)).sum::<u64>();
            }
            if goes {
                names.insert(record.node);
                forgetting.plan.garbage.nodes += 1;
                forgetting.plan.garbage.bytes += match record.bytes {
                    0 => super::size(&self.node_path(key)),
                    bytes => u64::from(bytes),
                };
                forgetting.plan.items.push(Item::Node(*key));
            }
        }
        for id in pins.iter().chain(&living) {
            if let Some(place) = inventory.artifacts.find(id) {
                needed.add(place);
                if what.artifacts.contains(id) && pins.contains(id) {
                    forgetting.pinned.push(*id);
                }
            }
        }
        let goes = |artifact: usize| touched.has(artifact) && !needed.has(artifact);
        let mut standing = Places::of(inventory.objects.len());
        for artifact in (0..inventory.artifacts.len()).filter(|artifact| !goes(*artifact)) {
            inventory.stands(artifact).for_each(|object| _ = standing.add(object));
        }
        self.plan_artifacts(inventory, &goes, &standing, &mut forgetting.plan)?;
        let mut freed = Places::of(inventory.objects.len());
        for artifact in (0..inventory.artifacts.len()).filter(|artifact| goes(*artifact)) {
            for object in inventory.stands(artifact).filter(|object| !standing.has(*object)) {
                if freed.add(object) {
                    forgetting.plan.garbage.objects += 1;
                    forgetting.plan.garbage.bytes += self.object_bytes(inventory, object);
                    forgetting.plan.items.push(Item::Object(inventory.objects[object]));
                }
            }
        }
        for run in runs {
            let (files, bytes) = weigh(&self.run_dir(&run))?;
            forgetting.plan.garbage.runs += 1;
            forgetting.plan.garbage.files += files;
            forgetting.plan.garbage.bytes += bytes;
            let ended = self.run(&run)?.is_some_and(|run| run.finished.is_some());
            forgetting.plan.items.push(Item::Run(run, ended));
        }
        forgetting.plan.items.sort_unstable();
        forgetting.nodes = names.into_iter().map(|name| inventory.names.get(name).to_owned()).collect();
        forgetting.nodes.sort_unstable();
        let gone = |key| forgetting.plan.items.binary_search(&Item::Node(key)).is_ok();
        forgetting.reruns = latest.into_iter().filter(|(_, key)| gone(*key)).map(|(name, _)| name).collect();
        forgetting.reruns.sort_unstable();
        forgetting.pinned.sort_unstable();
        forgetting.pinned.dedup();
        Ok(forgetting)
    }
}
