//! Below a budget: what is wanted, but can be made again, goes until the store is small enough.
//!
//! Approach: artifacts go one by one, each with its records, in an order. By age: what was made or used longest ago first.
//! By price: what costs least to make again, for the bytes that it frees. The price of an artifact are the seconds that its node took
//! (a second on a GPU counts for [`GPU`](crate::store::GPU) on a processor), and those of each artifact on the way to it that is gone and would have to
//! be made first; so as inputs go, what was made of them becomes dearer. It frees its objects, each shared out among the artifacts
//! that stand on it. What has no price goes before what has one, oldest first. Pins and what living processes need stay,
//! and what it takes to look at a pin.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::mark::Kept;
use super::{Budget, By};
use crate::digest::Digest;
use crate::fs;
use crate::store::inventory::{Inventory, Record};
use crate::store::{Store, StoreError, name};

/// Gone artifacts on the way to one that are looked at.
const FARTHEST: usize = 10_000;

/// What an eviction came to.
#[derive(Debug, Default)]
pub(super) struct Evicted {
    /// Artifacts that go though something wants them.
    pub(super) artifacts: u64,
    /// Scratch of attempts at these keys goes, though they are not done.
    pub(super) partial: Vec<Digest>,
    /// Bytes that are left.
    pub(super) left: u64,
}

fn cost(record: &Record) -> f64 {
    f64::from(record.price)
}

/// What can go, by place among the artifacts; or scratch, by place in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum One {
    Partial(usize),
    Artifact(usize),
}

/// Where something stands in the order: price for a byte, and when it was used last.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rank(f64, i64);

impl Eq for Rank {}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

struct Room<'a> {
    inventory: &'a Inventory,
    kept: &'a mut Kept,
    by: By,
    /// By place among the artifacts: the record that makes it for least, as far as records are known.
    makers: Vec<u32>,
    /// By place among the artifacts: records that are kept and have it as an input.
    users: Vec<u32>,
    /// By place among the objects: artifacts that are kept and stand on it.
    standing: Vec<u32>,
    /// The same at the beginning, by which bytes are shared out.
    shared: Vec<u32>,
    /// Bytes by place among the objects.
    sizes: Vec<u64>,
    left: u64,
    /// Records by artifact: where those of each begin, and which they are.
    starts: Vec<u32>,
    of_artifact: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl Store {
    /// Takes from what is kept until so much is left as the budget has. `fixed` are bytes that stay whatever goes.
    pub(super) fn evict(
        &self,
        inventory: &Inventory,
        kept: &mut Kept,
        budget: &Budget,
        fixed: u64,
    ) -> Result<Evicted, StoreError> {
        let partial = self.unfinished_work(kept)?;
        let mut room = Room::new(self, inventory, kept, budget.by);
        room.left += fixed + partial.iter().map(|work| work.bytes).sum::<u64>();
        let mut evicted = Evicted::default();
        let mut queue: BinaryHeap<Reverse<(Rank, One)>> = BinaryHeap::new();
        if room.left > budget.keep {
            for artifact in 0..inventory.artifacts.len() {
                if room.can_go(artifact) {
                    queue.push(Reverse((room.rank(artifact), One::Artifact(artifact))));
                }
            }
            for (place, work) in partial.iter().enumerate() {
                let rank = match budget.by {
                    By::Price => Rank(work.seconds / work.bytes.max(1) as f64, work.used),
                    By::Age => Rank(0.0, work.used),
                };
                queue.push(Reverse((rank, One::Partial(place))));
            }
        }
        while room.left > budget.keep
            && let Some(Reverse((rank, one))) = queue.pop()
        {
            match one {
                One::Partial(place) => {
                    room.left = room.left.saturating_sub(partial[place].bytes);
                    evicted.partial.push(partial[place].key);
                }
                One::Artifact(artifact) => {
                    // It became dearer when what it was made of went.
                    let now = room.rank(artifact);
                    if now > rank {
                        queue.push(Reverse((now, one)));
                    } else {
                        evicted.artifacts += room.go(artifact);
                    }
                }
            }
        }
        evicted.partial.sort_unstable();
        evicted.left = room.left;
        Ok(evicted)
    }

    /// Scratch of attempts that were killed, at keys that nobody works at now.
    fn unfinished_work(&self, kept: &Kept) -> Result<Vec<Work>, StoreError> {
        let mut all = Vec::new();
        for path in fs::list(&self.root.join("partial"))? {
            let Ok(key) = name(&path).parse::<Digest>() else { continue };
            // Its job waits or runs somewhere, perhaps without a process here.
            let is_in_a_job = path.join("ticket.json").exists();
            if is_in_a_job || kept.needed.contains(&key) || self.node_path(&key).exists() || self.is_key_locked(&key) {
                continue;
            }
            let files = fs::walk(&path)?;
            let second = |time: std::io::Result<std::time::SystemTime>| {
                time.ok().and_then(|time| jiff::Timestamp::try_from(time).ok()).map(jiff::Timestamp::as_second)
            };
            let directory = fs_err::metadata(&path)?;
            let written = |file: &std::path::PathBuf| second(std::fs::metadata(file).and_then(|file| file.modified()));
            let used = files.iter().filter_map(written).chain(second(directory.modified())).max().unwrap_or(0);
            // From the first attempt to the last: all that is known of what it cost.
            let seconds = second(directory.created()).map_or(0, |begun| (used - begun).max(0)) as f64;
            let bytes = files.iter().map(|file| super::size(file)).sum();
            all.push(Work { key, bytes, used, seconds });
        }
        Ok(all)
    }
}

/// Scratch of a key.
struct Work {
    key: Digest,
    bytes: u64,
    used: i64,
    seconds: f64,
}

impl<'a> Room<'a> {
    fn new(store: &Store, inventory: &'a Inventory, kept: &'a mut Kept, by: By) -> Self {
        let mut room = Self {
            inventory,
            by,
            makers: vec![NONE; inventory.artifacts.len()],
            users: vec![0; inventory.artifacts.len()],
            standing: vec![0; inventory.objects.len()],
            shared: Vec::new(),
            sizes: inventory.sizes.clone(),
            left: 0,
            starts: Vec::new(),
            of_artifact: Vec::new(),
            kept,
        };
        room.sort_records();
        for (place, record) in inventory.records.iter().enumerate() {
            let Some(record) = record else { continue };
            if room.kept.records.has(place) {
                room.left += u64::from(record.bytes);
                inventory.inputs(record).for_each(|input| room.users[input] += 1);
            }
            let Some(artifact) = record.artifact() else { continue };
            let known = room.record(room.makers[artifact]);
            if known.is_none_or(|known| cost(record) < cost(known)) {
                room.makers[artifact] = place as u32;
            }
        }
        for artifact in 0..inventory.artifacts.len() {
            if room.kept.artifacts.has(artifact) {
                room.left += u64::from(inventory.manifests[artifact].bytes);
                inventory.stands(artifact).for_each(|object| room.standing[object] += 1);
            }
        }
        for object in 0..inventory.objects.len() {
            if room.standing[object] > 0 {
                if room.sizes[object] == 0 {
                    room.sizes[object] = store.object_size(&inventory.objects[object]);
                }
                room.left += room.sizes[object];
            }
        }
        room.shared.clone_from(&room.standing);
        room
    }

    fn sort_records(&mut self) {
        let mut counts = vec![0_u32; self.inventory.artifacts.len() + 1];
        let artifacts = || {
            self.inventory
                .records
                .iter()
                .enumerate()
                .filter_map(|(place, record)| Some((place, record.as_ref()?.artifact()?)))
        };
        for (_, artifact) in artifacts() {
            counts[artifact + 1] += 1;
        }
        for artifact in 1..counts.len() {
            counts[artifact] += counts[artifact - 1];
        }
        let mut sorted = vec![0; counts.last().map_or(0, |all| *all as usize)];
        let mut next = counts.clone();
        for (place, artifact) in artifacts() {
            sorted[next[artifact] as usize] = place as u32;
            next[artifact] += 1;
        }
        (self.starts, self.of_artifact) = (counts, sorted);
    }

    /// The records of an artifact, by place.
    fn records_of(&self, artifact: usize) -> &[u32] {
        &self.of_artifact[self.starts[artifact] as usize..self.starts[artifact + 1] as usize]
    }

    fn record(&self, place: u32) -> Option<&'a Record> {
        self.inventory.records.get(place as usize)?.as_ref()
    }

    /// Whether an artifact is kept, but not at any price, and could be made again.
    fn can_go(&self, artifact: usize) -> bool {
        self.kept.artifacts.has(artifact) && !self.kept.firm.has(artifact) && self.makers[artifact] != NONE
    }

    fn rank(&self, artifact: usize) -> Rank {
        let used = self.kept.used.get(self.makers[artifact] as usize).copied().unwrap_or(0);
        match self.by {
            By::Age => Rank(0.0, used),
            By::Price => {
                let share = |object: usize| self.sizes[object] as f64 / f64::from(self.shared[object].max(1));
                let bytes: f64 = self.inventory.stands(artifact).map(share).sum();
                Rank(self.price(artifact) / bytes.max(1.0), used)
            }
        }
    }

    /// Seconds to make an artifact again, with all on the way to it that is gone.
    fn price(&self, artifact: usize) -> f64 {
        let mut seen = BTreeSet::from([artifact]);
        let mut open = vec![artifact];
        let mut price = 0.0;
        while let Some(artifact) = open.pop() {
            let Some(maker) = self.record(self.makers[artifact]) else { continue };
            price += cost(maker);
            for input in self.inventory.inputs(maker) {
                if !self.kept.artifacts.has(input) && seen.len() < FARTHEST && seen.insert(input) {
                    open.push(input);
                }
            }
        }
        price
    }

    /// Lets an artifact go, with its records and with what came in from outside for them alone. Returns how many artifacts that
    /// are.
    fn go(&mut self, artifact: usize) -> u64 {
        let mut gone = 0;
        let mut open = vec![artifact];
        while let Some(artifact) = open.pop() {
            if !self.kept.artifacts.remove(artifact) {
                continue;
            }
            gone += 1;
            self.left = self.left.saturating_sub(u64::from(self.inventory.manifests[artifact].bytes));
            for object in self.inventory.stands(artifact) {
                self.standing[object] -= 1;
                if self.standing[object] == 0 {
                    self.kept.objects.remove(object);
                    self.left = self.left.saturating_sub(self.sizes[object]);
                }
            }
            for place in self.records_of(artifact).to_vec() {
                let place = place as usize;
                if !self.kept.records.remove(place) {
                    continue;
                }
                let Some(record) = &self.inventory.records[place] else { continue };
                self.left = self.left.saturating_sub(u64::from(record.bytes));
                for input in self.inventory.inputs(record) {
                    self.users[input] -= 1;
                    let made = self.records_of(input).iter().any(|maker| self.kept.records.has(*maker as usize));
                    if self.users[input] == 0 && !made && !self.kept.firm.has(input) {
                        open.push(input);
                    }
                }
            }
        }
        gone
    }
}
