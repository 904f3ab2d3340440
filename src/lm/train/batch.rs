//! Which examples a step takes, and how they are cut into passes that fit memory.

use std::ops::Range;

use super::super::random::Stream;

/// Tokens of a pass, where no number of sequences is set. A pass of a model with 12 layers of 768 keeps about 1.5 MB a token.
const TOKENS: usize = 4096;

/// The order of the examples: shuffled anew for each turn through all of them.
#[derive(Debug)]
pub(super) struct Order {
    count: usize,
    seed: u64,
    /// The turn that `indices` belongs to.
    turn: u64,
    indices: Vec<usize>,
}

impl Order {
    /// Of `count` examples, at least one. A function of the seed alone.
    pub(super) fn new(count: usize, seed: u64) -> Self {
        Self { count, seed, turn: 0, indices: turn(count, seed, 0) }
    }

    /// The examples of a step, from 0, in which every example comes up once before any comes up again.
    pub(super) fn batch(&mut self, step: u64, size: usize) -> Vec<usize> {
        let first = step * size as u64;
        (first..first + size as u64).map(|at| self.at(at)).collect()
    }

    fn at(&mut self, at: u64) -> usize {
        let (turn_of, within) = (at / self.count as u64, at % self.count as u64);
        if turn_of != self.turn {
            self.turn = turn_of;
            self.indices = turn(self.count, self.seed, turn_of);
        }
        self.indices[within as usize]
    }
}

fn turn(count: usize, seed: u64, turn: u64) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..count).collect();
    Stream::new(seed, &format!("examples, turn {turn}")).shuffle(&mut indices);
    indices
}

/// Cuts items in their order into runs that fit a pass: at most `most` sequences, or [`TOKENS`] tokens.
///
/// An item is its sequences and its tokens; one that is too large by itself makes a run of its own.
pub(super) fn runs(items: impl Iterator<Item = (usize, usize)>, most: Option<usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (index, (sequences, tokens)) in items.enumerate() {
        let (size, room) = most.map_or((tokens, TOKENS), |most| (sequences, most));
        match runs.last_mut() {
            Some(run) if filled + size <= room => {
                run.end = index + 1;
                filled += size;
            }
            _ => {
                runs.push(index..index + 1);
                filled = size;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_once_before_any_again() {
        let mut order = Order::new(7, 3);
        let taken: Vec<usize> = (0..6).flat_map(|step| order.batch(step, 5)).take(28).collect();
        for turn in taken.chunks(7) {
            let mut turn = turn.to_vec();
            turn.sort_unstable();
            assert_eq!(turn, (0..7).collect::<Vec<_>>());
        }
        assert_ne!(taken[..7], taken[7..14], "each turn has its own order");
        assert_ne!(taken[..7], Order::new(7, 4).batch(0, 7)[..], "each seed has its own order");
    }

    #[test]
    fn order_does_not_depend_on_what_was_asked_before() {
        let mut straight = Order::new(10, 1);
        let all: Vec<_> = (0..9).map(|step| straight.batch(step, 4)).collect();
        for (step, batch) in all.iter().enumerate() {
            assert_eq!(*batch, Order::new(10, 1).batch(step as u64, 4));
        }
        assert_eq!(straight.batch(2, 4), all[2]);
    }

    #[test]
    fn batch_larger_than_all_examples_goes_round() {
        let mut batch = Order::new(3, 0).batch(0, 7);
        batch.sort_unstable();
        assert!(batch.iter().filter(|example| **example == 0).count() >= 2, "{batch:?}");
        assert_eq!(batch.len(), 7);
    }

    #[test]
    fn runs_fit_and_lose_nothing() {
        let cut = |items: &[(usize, usize)], most| runs(items.iter().copied(), most);
        assert_eq!(cut(&[(4, 10), (4, 10), (4, 10)], Some(8)), [0..2, 2..3]);
        assert_eq!(cut(&[(4, 10), (9, 10), (4, 10)], Some(8)), [0..1, 1..2, 2..3]);
        assert_eq!(cut(&[(1, TOKENS), (1, 1), (1, 1)], None), [0..1, 1..3]);
        assert_eq!(cut(&[(1, 3 * TOKENS)], None), vec![0..1]);
        assert!(cut(&[], None).is_empty());
    }
}
