//! How many attempts go on at once: threads and devices of the machine, shared out.

use super::slots::{Gpu, Slot, Slots, Want};
use crate::graph::made_by;
use crate::pipeline::{ArtifactType, Link, Node, Pipeline};

/// The device of nodes that may compute on any GPU of the machine.
pub(super) const ANY_GPU: &str = "any GPU";

/// Whether a node computes nothing that a GPU does: it takes none unless it names it.
pub(super) fn computes_on_cpu(pipeline: &Pipeline, node: &Node) -> bool {
    is_light(pipeline, node) || node.kind.name == "init"
}

/// Whether a node does next to no computing itself: one thread is its own. Constitutions that a model with weights writes
/// are computed like responses.
pub(super) fn is_light(pipeline: &Pipeline, node: &Node) -> bool {
    let is_called = |link: &Link| made_by(link, pipeline) == ArtifactType::Endpoint;
    match node.kind.name {
        "command" => true,
        "constitutions" => node.links.iter().all(is_called),
        _ => false,
    }
}

/// The models whose weights a node samples or scores with, and does not change.
pub(super) fn needs_weights<'a>(pipeline: &'a Pipeline, node: &'a Node) -> impl Iterator<Item = &'a Link> {
    let uses = matches!(node.kind.name, "constitutions" | "probe" | "generate" | "score" | "evaluate");
    node.links.iter().filter(move |link| uses && made_by(link, pipeline) == ArtifactType::Model)
}

/// Whether a node may hold as much memory as a model does.
pub(super) fn holds_models(pipeline: &Pipeline, node: &Node) -> bool {
    node.kind.name == "init" || node.links.iter().any(|link| made_by(link, pipeline) == ArtifactType::Model)
}

/// Threads that a node wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// So many.
    Threads(usize),
    /// Its share: all of them if it is alone.
    Share,
}

impl Wish {
    /// The wish of a node; `threads` is what the user said.
    pub(super) fn of(light: bool, threads: Option<usize>) -> Self {
        match threads {
            Some(threads) => Self::Threads(threads.max(1)),
            None if light => Self::Threads(1),
            None => Self::Share,
        }
    }
}

/// Why a node cannot start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// No threads are left, or enough attempts go on. Nodes behind it wait too, lest small ones keep a large one from
    /// ever starting.
    Machine,
    /// Another node is on its device.
    Device,
}

/// What is taken of the machine.
#[derive(Debug)]
pub(super) struct Room {
    threads: usize,
    capacity: usize,
    jobs: usize,
    used: usize,
    attempts: usize,
    gpus: Slots,
}

/// What an attempt has taken; given back by [`Room::leave`].
#[derive(Debug)]
pub(super) struct Place {
    /// Threads to compute with.
    pub(super) threads: usize,
    counted: usize,
    /// Its GPUs, one for each rank; none on the CPU.
    devices: Vec<String>,
    /// What it has of them, if they are of this room.
    slots: Vec<Slot>,
    /// Whether it is on no machine of this room.
    away: bool,
}

impl Place {
    /// A place elsewhere, which takes nothing of this machine.
    pub(super) fn away(threads: usize, devices: Vec<String>) -> Self {
        Self { threads, counted: 0, devices, slots: Vec::new(), away: true }
    }

    /// Whether it is on no machine of this room.
    pub(super) fn is_away(&self) -> bool {
        self.away
    }

    /// Bytes of its GPU that it may take, if it has not all of it.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.slots.first()?.bytes
    }

    /// Seconds of GPUs that it takes in so many; none on the CPU.
    pub(super) fn gpu_seconds(&self, seconds: f64) -> Option<f64> {
        (!self.devices.is_empty()).then_some(seconds * self.devices.len() as f64)
    }

    /// The device that it is on, or its first rank: `cpu` or `cuda:N`.
    pub(super) fn device(&self) -> &str {
        self.devices.first().map_or("cpu", String::as_str)
    }

    /// How many GPUs it has.
    pub(super) fn gpus(&self) -> usize {
        self.devices.len()
    }

    /// The GPUs of its ranks; none on the CPU, or if it has one.
    pub(super) fn devices(&self) -> &[String] {
        if self.devices.len() > 1 { &self.devices } else { &[] }
    }
}

impl Room {
    /// An empty machine. `jobs` is how many attempts the user wants at once: more than there are threads if so wished.
    /// `gpus` are those that [`ANY_GPU`] means, the first that is free first.
    pub(super) fn new(threads: usize, jobs: Option<usize>, gpus: &[Gpu]) -> Self {
        let threads = threads.max(1);
        let jobs = jobs.unwrap_or(threads).max(1);
        let (capacity, gpus) = (threads.max(jobs), Slots::new(gpus));
        Self { threads, capacity, jobs, used: 0, attempts: 0, gpus }
    }

    /// Takes room for an attempt of so many ranks. `ready` nodes, this one among them, could start now; `want` is what it wants of a
    /// GPU, each rank of one of its own.
    pub(super) fn enter(
        &mut self,
        wish: Wish,
        device: &str,
        ranks: usize,
        ready: usize,
        want: Want,
    ) -> Result<Place, Full> {
        let left = self.capacity - self.used;
        let slots = self.jobs.saturating_sub(self.attempts);
        if slots == 0 || left == 0 {
            return Err(Full::Machine);
        }
        let threads = match wish {
            Wish::Threads(threads) => threads,
            Wish::Share => (self.threads.saturating_sub(self.used) / ready.clamp(1, slots)).max(1),
        };
        // One that wants more than there is runs alone.
        let counted = threads.min(self.capacity);
        if counted > left {
            return Err(Full::Machine);
        }
        let slots = match device {
            "cpu" => Vec::new(),
            ANY_GPU => self.gpus.enter_all(ranks.max(1), want).ok_or(Full::Device)?,
            device => vec![self.gpus.enter(Some(device), want).ok_or(Full::Device)?],
        };
        self.used += counted;
        self.attempts += 1;
        let devices = slots.iter().map(|slot| slot.device.clone()).collect();
        Ok(Place { threads, counted, devices, slots, away: false })
    }

    /// Bytes of the smallest GPU of a place, if they are known.
    pub(super) fn memory(&self, place: &Place) -> Option<u64> {
        let memory: Option<Vec<u64>> = place.devices.iter().map(|device| self.gpus.memory(device)).collect();
        memory?.into_iter().min()
    }

    /// GPUs that no one is on.
    pub(super) fn empty_gpus(&self) -> usize {
        self.gpus.empty()
    }

    /// Whether a GPU has more memory than this, or one for each of several ranks.
    pub(super) fn has_above(&self, memory: u64, ranks: usize) -> bool {
        self.gpus.could(ranks.max(1), Want { above: Some(memory), ..Want::default() })
    }

    /// Gives room back.
    pub(super) fn leave(&mut self, place: &Place) {
        if place.away {
            return;
        }
        self.used -= place.counted;
        self.attempts -= 1;
        for slot in &place.slots {
            self.gpus.leave(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(room: &mut Room, wish: Wish, device: &str, ready: usize) -> Result<Place, Full> {
        room.enter(wish, device, 1, ready, Want::default())
    }

    fn threads(room: &mut Room, wish: Wish, ready: usize) -> Result<usize, Full> {
        enter(room, wish, "cpu", ready).map(|place| place.threads)
    }

    #[test]
    fn one_node_has_all_threads_and_several_share_them() {
        assert_eq!(threads(&mut Room::new(16, None, &[]), Wish::Share, 1), Ok(16));
        let mut room = Room::new(16, None, &[]);
        let shares: Vec<_> = (1..=3).rev().map(|ready| threads(&mut room, Wish::Share, ready)).collect();
        assert_eq!(shares, [Ok(5), Ok(5), Ok(6)]);
        assert_eq!(threads(&mut room, Wish::Threads(1), 1), Err(Full::Machine));
        let mut room = Room::new(16, Some(2), &[]);
        assert_eq!(threads(&mut room, Wish::Share, 9), Ok(8));
        assert_eq!(threads(&mut room, Wish::Share, 8), Ok(8));
    }

    #[test]
    fn jobs_may_be_fewer_or_more_than_threads() {
        let mut room = Room::new(4, Some(1), &[]);
        enter(&mut room, Wish::Threads(1), "cpu", 2).unwrap();
        assert_eq!(threads(&mut room, Wish::Threads(1), 1), Err(Full::Machine));
        let mut room = Room::new(2, Some(4), &[]);
        for _ in 0..4 {
            assert_eq!(threads(&mut room, Wish::Threads(1), 4), Ok(1));
        }
        assert_eq!(threads(&mut room, Wish::Share, 1), Err(Full::Machine));
    }

    #[test]
    fn a_wish_beyond_the_machine_is_granted_alone() {
        let mut room = Room::new(2, None, &[]);
        let place = enter(&mut room, Wish::Threads(8), "cpu", 1).unwrap();
        assert_eq!(place.threads, 8);
        assert_eq!(threads(&mut room, Wish::Threads(1), 1), Err(Full::Machine));
        room.leave(&place);
        assert_eq!(threads(&mut room, Wish::Threads(2), 1), Ok(2));
    }

    #[test]
    fn a_gpu_has_one_node_at_a_time() {
        let mut room = Room::new(8, None, &[]);
        let place = enter(&mut room, Wish::Threads(1), "cuda:0", 1).unwrap();
        assert_eq!(enter(&mut room, Wish::Threads(1), "cuda:0", 1).unwrap_err(), Full::Device);
        enter(&mut room, Wish::Threads(1), "cuda:1", 1).unwrap();
        room.leave(&place);
        enter(&mut room, Wish::Threads(1), "cuda:0", 1).unwrap();
    }

    #[test]
    fn ranks_have_a_gpu_each_or_wait() {
        let names = ["cuda:0", "cuda:1", "cuda:2"].map(str::to_owned);
        let gpus = names.clone().map(|device| Gpu { device, memory: Some(80 << 30) });
        let mut room = Room::new(8, None, &gpus);
        let small = Want { bytes: Some(1 << 30), ..Want::default() };
        let enter = |room: &mut Room, device: &str, ranks| room.enter(Wish::Threads(1), device, ranks, 1, small);
        let place = enter(&mut room, ANY_GPU, 2).unwrap();
        assert_eq!((place.device(), place.devices()), ("cuda:0", &names[..2]));
        // All of each, as nobody knows what is left beside a rank.
        assert_eq!((place.bytes(), place.gpu_seconds(2.0)), (None, Some(4.0)));
        assert_eq!(enter(&mut room, ANY_GPU, 2).unwrap_err(), Full::Device);
        assert_eq!(room.empty_gpus(), 1, "what is too little is given back");
        assert_eq!(enter(&mut room, "cuda:1", 1).unwrap_err(), Full::Device);
        let alone = enter(&mut room, ANY_GPU, 1).unwrap();
        assert_eq!((alone.device(), alone.devices().len()), ("cuda:2", 0));
        room.leave(&place);
        enter(&mut room, ANY_GPU, 2).unwrap();
        assert_eq!(enter(&mut room, "cpu", 4).unwrap().devices().len(), 0);
        assert!(room.has_above(1 << 30, 3) && !room.has_above(1 << 30, 4) && !room.has_above(80 << 30, 1));
    }

    #[test]
    fn nodes_spread_over_the_gpus() {
        let gpus = ["cuda:1", "cuda:0"].map(|device| Gpu { device: device.to_owned(), memory: None });
        let mut room = Room::new(8, None, &gpus);
        enter(&mut room, Wish::Threads(1), "cuda:1", 3).unwrap();
        let place = enter(&mut room, Wish::Threads(1), ANY_GPU, 2).unwrap();
        assert_eq!(place.device(), "cuda:0");
        assert_eq!(enter(&mut room, Wish::Threads(1), ANY_GPU, 1).unwrap_err(), Full::Device);
        assert_eq!(enter(&mut room, Wish::Threads(1), "cpu", 1).unwrap().device(), "cpu");
        room.leave(&place);
        assert_eq!(enter(&mut room, Wish::Threads(1), ANY_GPU, 1).unwrap().device(), "cuda:0");
    }
}
