//! What the reference says of the examples: computed once, a few examples at a time, and kept.

use std::collections::BTreeMap;

use super::super::logprobs::response_logprobs;
use super::super::{LmError, Model, Sequence};
use super::batch::Order;
use super::gather::sum;
use super::{Example, TrainSettings};
use crate::collective::Team;

/// Examples whose sums are computed together.
const TOGETHER: usize = 16;

/// Sums of log-probabilities under the reference, nats, of each sequence of an example, by the example's index.
pub(super) type Anchors = BTreeMap<usize, Vec<f64>>;

/// The reference of preferences. It is let go of once all is known, so that training holds one model and not two.
pub(super) struct Anchor {
    /// `None`: the policy as it is before the first update.
    reference: Option<Model>,
    /// Examples that come up in training and are not known yet, the last first.
    waiting: Vec<usize>,
    known: Anchors,
}

impl std::fmt::Debug for Anchor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Anchor")
            .field("waiting", &self.waiting.len())
            .field("known", &self.known.len())
            .finish_non_exhaustive()
    }
}

impl Anchor {
    /// Of the examples that the steps of a run will take.
    pub(super) fn new(reference: Option<Model>, order: &mut Order, settings: &TrainSettings) -> Self {
        let taken = order.taken(settings.steps, settings.batch);
        Self { reference, waiting: taken.into_iter().rev().collect(), known: Anchors::new() }
    }

    /// Computes the sums of the next few examples, or of as many for each rank; `policy` must not have been changed yet.
    /// Returns whether all are known.
    pub(super) fn advance(
        &mut self,
        policy: &Model,
        examples: &[Example],
        team: Option<&mut Team>,
    ) -> Result<bool, LmError> {
        let mut next = || self.waiting.split_off(self.waiting.len().saturating_sub(TOGETHER));
        match team {
            None => {
                let next = next();
                let sums = self.compute(policy, examples, &next)?;
                self.learn(&next, examples, &mut sums.into_iter());
            }
            Some(team) => {
                let next: Vec<Vec<usize>> = (0..team.ranks()).map(|_| next()).collect();
                let own = self.compute(policy, examples, &next[team.rank()])?;
                let all = team.gather(own.iter().flat_map(|sum| sum.to_le_bytes()).collect())?;
                for (next, sums) in next.iter().zip(all) {
                    let sums = sums.as_chunks().0.iter().map(|sum| f64::from_le_bytes(*sum)).collect::<Vec<_>>();
                    self.learn(next, examples, &mut sums.into_iter());
                }
            }
        }
        if self.waiting.is_empty() {
            self.reference = None;
        }
        Ok(self.waiting.is_empty())
    }

    /// The sums of some examples' sequences under the reference, example after example.
    fn compute(&self, policy: &Model, examples: &[Example], next: &[usize]) -> Result<Vec<f64>, LmError> {
        let sequences: Vec<Sequence> =
            next.iter().flat_map(|index| examples[*index].sequences.iter().cloned()).collect();
        let logprobs = response_logprobs(self.reference.as_ref().unwrap_or(policy), &sequences);
        let logprobs = logprobs.map_err(|error| match error {
            // Its rows are those of a few examples, and nobody else's.
            LmError::RowOutOfMemory { what, .. } => LmError::OutOfMemory { what },
            other => other,
        })?;
        let sums: Vec<f64> = logprobs.iter().map(|logprobs| sum(logprobs)).collect();
        let mut rest = sums.iter();
        for index in next {
            if !rest.by_ref().take(examples[*index].sequences.len()).all(|sum| sum.is_finite()) {
                let what = "has log-probabilities that are not finite under the reference".to_owned();
                return Err(LmError::Example { id: examples[*index].id.clone(), what });
            }
        }
        Ok(sums)
    }

    fn learn(&mut self, next: &[usize], examples: &[Example], sums: &mut impl Iterator<Item = f64>) {
        for index in next {
            self.known.insert(*index, sums.take(examples[*index].sequences.len()).collect());
        }
    }

    /// The sums of some examples' sequences, example after example.
    pub(super) fn sums(&self, examples: &[usize]) -> Vec<f64> {
        examples.iter().filter_map(|index| self.known.get(index)).flatten().copied().collect()
    }

    /// All that is known.
    pub(super) fn known(&self) -> &Anchors {
        &self.known
    }

    /// Goes on from what was known.
    pub(super) fn restore(&mut self, known: Anchors) {
        self.waiting.retain(|index| !known.contains_key(index));
        self.known = known;
        if self.waiting.is_empty() {
            self.reference = None;
        }
    }
}
