//! Attempts that ran out of memory: what is tried before that counts as a failure.

use super::{Scheduler, Stop};
use crate::exec::attempt::Attempt;
use crate::exec::room::ANY_GPU;
use crate::exec::slots::Want;

/// Attempts at a node, or at a part of one, that are made again for want of memory.
const MOST: u32 = 4;
/// The first number of rows that is tried where the user gave none and the kind's own choice did not fit.
const FIRST: usize = 8;

/// What a node that ran out of memory tries next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::exec) struct Strait {
    tries: u32,
    /// Rows to compute together, if they are fewer than at first.
    pub(in crate::exec) micro_batch: Option<usize>,
    /// Whether it has to have a GPU to itself.
    alone: bool,
    /// Whether it has to be one with more memory than this.
    above: Option<u64>,
}

impl Strait {
    /// What is tried after this did not do, and what is told of it: a GPU to itself if it shared one; fewer rows together, unless a
    /// single `row` did not fit; a GPU with more memory.
    fn next(self, had: &Had) -> Option<(Self, String)> {
        if self.tries >= MOST {
            return None;
        }
        let tried = Self { tries: self.tries + 1, ..self };
        if had.shared && !self.alone {
            return Some((Self { alone: true, ..tried }, "it has the GPU to itself next".to_owned()));
        }
        let rows = self.micro_batch.or(had.micro_batch);
        // The last try is for a larger GPU, if there is one.
        if !had.row && rows != Some(1) && (self.tries + 1 < MOST || had.larger.is_none()) {
            let rows = rows.map_or(FIRST, |rows| rows.div_ceil(4));
            let told = format!("with `micro_batch = {rows}` next");
            return Some((Self { micro_batch: Some(rows), ..tried }, told));
        }
        let memory = had.larger?;
        Some((Self { above: Some(memory), alone: true, ..tried }, "on a GPU with more memory next".to_owned()))
    }
}

/// What an attempt had that ran out of memory.
#[derive(Debug, Clone, Copy, Default)]
struct Had {
    /// Whether others were on its GPU, or might have been.
    shared: bool,
    /// Whether a single row did not fit.
    row: bool,
    micro_batch: Option<usize>,
    /// The memory of its GPU, if another one has more that it may have.
    larger: Option<u64>,
}

impl Scheduler<'_> {
    /// What a node wants of a GPU: as long as there is one for each that could start, all of it, so that its batches are large.
    pub(super) fn want(&self, node: usize) -> Want {
        let strait = self.straits.get(&node).copied().unwrap_or_default();
        let waiting = self.could_start(|device| device == ANY_GPU || device.starts_with("cuda:"));
        let crowded = waiting > self.room.empty_gpus();
        let bytes = self.options.needs.get(&node).and_then(crate::exec::budget::Needs::gpu_memory);
        Want { bytes: bytes.filter(|_| crowded), alone: strait.alone, above: strait.above, near: self.near(node) }
    }

    /// An attempt ran out of memory: lets the next one have more, or need less. Returns what is told of it; nothing if all was
    /// tried.
    pub(super) fn relieve(&mut self, attempt: &Attempt) -> Option<String> {
        let row = attempt.full?;
        if self.stop != Stop::No || attempt.remote.is_some() {
            return None;
        }
        let node = attempt.node;
        let (memory, ranks) = (self.room.memory(&attempt.place), self.pipeline.nodes[node].run.ranks.unwrap_or(1));
        let may_move = &*self.devices[node] == ANY_GPU;
        let strait = self.straits.get(&node).copied().unwrap_or_default();
        let had = Had {
            shared: attempt.place.bytes().is_some(),
            row,
            micro_batch: self.pipeline.nodes[node].run.micro_batch,
            larger: memory.filter(|memory| may_move && self.room.has_above(*memory, ranks)),
        };
        let (next, told) = strait.next(&had)?;
        self.straits.insert(node, next);
        Some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of each try until there is none left.
    fn tries(had: impl Fn(&Strait) -> Had) -> Vec<String> {
        let mut strait = Strait::default();
        let mut told = Vec::new();
        while let Some((next, what)) = strait.next(&had(&strait)) {
            strait = next;
            told.push(what.trim_end_matches(" next").to_owned());
        }
        told
    }

    #[test]
    fn what_is_cheap_is_tried_first_and_all_of_it_ends() {
        let shared = |strait: &Strait| Had { shared: !strait.alone, larger: Some(1), ..Had::default() };
        let batches = ["with `micro_batch = 8`", "with `micro_batch = 2`"];
        assert_eq!(tries(shared), ["it has the GPU to itself", batches[0], batches[1], "on a GPU with more memory"]);
        assert_eq!(tries(|_| Had::default()), [batches[0], batches[1], "with `micro_batch = 1`"]);
        assert_eq!(tries(|_| Had { micro_batch: Some(1), ..Had::default() }), Vec::<String>::new());
        // A row that does not fit by itself is no smaller in a smaller batch.
        assert_eq!(tries(|_| Had { row: true, ..Had::default() }), Vec::<String>::new());
        let row =
            |strait: &Strait| Had { row: true, larger: Some(1).filter(|_| strait.above.is_none()), ..Had::default() };
        assert_eq!(tries(row), ["on a GPU with more memory"]);
        assert!(tries(|_| Had { larger: Some(1), ..Had::default() }).len() <= MOST as usize);
    }
}
