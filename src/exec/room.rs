//! How many attempts go on at once: threads and devices of the machine, shared out.

use std::collections::BTreeSet;

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
    /// GPUs that nodes have which name none, best first.
    gpus: Vec<String>,
    devices: BTreeSet<String>,
}

/// What an attempt has taken; given back by [`Room::leave`].
#[derive(Debug)]
pub(super) struct Place {
    /// Threads to compute with.
    pub(super) threads: usize,
    counted: usize,
    /// Its GPUs, one for each rank; none on the CPU.
    devices: Vec<String>,
}

impl Place {
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
    pub(super) fn new(threads: usize, jobs: Option<usize>, gpus: &[String]) -> Self {
        let threads = threads.max(1);
        let jobs = jobs.unwrap_or(threads).max(1);
        let (capacity, gpus) = (threads.max(jobs), gpus.to_vec());
        Self { threads, capacity, jobs, used: 0, attempts: 0, gpus, devices: BTreeSet::new() }
    }

    /// Takes room for an attempt of so many ranks. `ready` nodes, this one among them, could start now.
    pub(super) fn enter(&mut self, wish: Wish, device: &str, ranks: usize, ready: usize) -> Result<Place, Full> {
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
        let free = |gpu: &&String| !self.devices.contains(*gpu);
        let devices: Vec<String> = match device {
            "cpu" => Vec::new(),
            ANY_GPU => self.gpus.iter().filter(free).take(ranks.max(1)).cloned().collect(),
            device => Some(device.to_owned()).filter(|device| free(&device)).into_iter().collect(),
        };
        let wanted = match device {
            "cpu" => 0,
            ANY_GPU => ranks.max(1),
            _ => 1,
        };
        if devices.len() < wanted {
            return Err(Full::Device);
        }
        self.devices.extend(devices.iter().cloned());
        self.used += counted;
        self.attempts += 1;
        Ok(Place { threads, counted, devices })
    }

    /// Gives room back.
    pub(super) fn leave(&mut self, place: &Place) {
        self.used -= place.counted;
        self.attempts -= 1;
        for device in &place.devices {
            self.devices.remove(device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(room: &mut Room, wish: Wish, ready: usize) -> Result<usize, Full> {
        room.enter(wish, "cpu", 1, ready).map(|place| place.threads)
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
        room.enter(Wish::Threads(1), "cpu", 1, 2).unwrap();
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
        let place = room.enter(Wish::Threads(8), "cpu", 1, 1).unwrap();
        assert_eq!(place.threads, 8);
        assert_eq!(threads(&mut room, Wish::Threads(1), 1), Err(Full::Machine));
        room.leave(&place);
        assert_eq!(threads(&mut room, Wish::Threads(2), 1), Ok(2));
    }

    #[test]
    fn a_gpu_has_one_node_at_a_time() {
        let mut room = Room::new(8, None, &[]);
        let place = room.enter(Wish::Threads(1), "cuda:0", 1, 1).unwrap();
        assert_eq!(room.enter(Wish::Threads(1), "cuda:0", 1, 1).unwrap_err(), Full::Device);
        room.enter(Wish::Threads(1), "cuda:1", 1, 1).unwrap();
        room.leave(&place);
        room.enter(Wish::Threads(1), "cuda:0", 1, 1).unwrap();
    }

    #[test]
    fn ranks_have_a_gpu_each_or_wait() {
        let gpus = ["cuda:0", "cuda:1", "cuda:2"].map(str::to_owned);
        let mut room = Room::new(8, None, &gpus);
        let place = room.enter(Wish::Threads(1), ANY_GPU, 2, 1).unwrap();
        assert_eq!((place.device(), place.devices()), ("cuda:0", &gpus[..2]));
        assert_eq!(room.enter(Wish::Threads(1), ANY_GPU, 2, 1).unwrap_err(), Full::Device);
        assert_eq!(room.enter(Wish::Threads(1), "cuda:1", 1, 1).unwrap_err(), Full::Device);
        let alone = room.enter(Wish::Threads(1), ANY_GPU, 1, 1).unwrap();
        assert_eq!((alone.device(), alone.devices().len()), ("cuda:2", 0));
        room.leave(&place);
        room.enter(Wish::Threads(1), ANY_GPU, 2, 1).unwrap();
        assert_eq!(room.enter(Wish::Threads(1), "cpu", 4, 1).unwrap().devices().len(), 0);
    }

    #[test]
    fn nodes_spread_over_the_gpus() {
        let gpus = ["cuda:1", "cuda:0"].map(str::to_owned);
        let mut room = Room::new(8, None, &gpus);
        room.enter(Wish::Threads(1), "cuda:1", 1, 3).unwrap();
        let place = room.enter(Wish::Threads(1), ANY_GPU, 1, 2).unwrap();
        assert_eq!(place.device(), "cuda:0");
        assert_eq!(room.enter(Wish::Threads(1), ANY_GPU, 1, 1).unwrap_err(), Full::Device);
        assert_eq!(room.enter(Wish::Threads(1), "cpu", 1, 1).unwrap().device(), "cpu");
        room.leave(&place);
        assert_eq!(room.enter(Wish::Threads(1), ANY_GPU, 1, 1).unwrap().device(), "cuda:0");
    }
}
