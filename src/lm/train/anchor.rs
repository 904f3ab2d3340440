//! What the reference says of the examples: computed once, a few examples at a time, and kept.

use std::collections::BTreeMap;

use super::super::logprobs::response_logprobs;
use super::super::{LmError, Model, Sequence};
use super::batch::Order;
use super::gather::sum;
use super::{Example, TrainSettings};

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

    /// Computes the sums of the next few examples; `policy` must not have been changed yet. Returns whether all are known.
    pub(super) fn advance(&mut self, policy: &Model, examples: &[Example]) -> Result<bool, LmError> {
        let next = self.waiting.split_off(self.waiting.len().saturating_sub(TOGETHER));
        let sequences: Vec<Sequence> =
            next.iter().flat_map(|index| examples[*index].sequences.iter().cloned()).collect();
        let logprobs = response_logprobs(self.reference.as_ref().unwrap_or(policy), &sequences);
        let logprobs = logprobs.map_err(|error| match error {
            // Its rows are those of a few examples, and nobody else's.
            LmError::RowOutOfMemory { what, .. } => LmError::OutOfMemory { what },
            other => other,
        })?;
        let mut sums = logprobs.iter().map(|logprobs| sum(logprobs));
        for index in next {
            let own: Vec<f64> = sums.by_ref().take(examples[index].sequences.len()).collect();
            if !own.iter().all(|sum| sum.is_finite()) {
                let what = "has log-probabilities that are not finite under the reference".to_owned();
                return Err(LmError::Example { id: examples[index].id.clone(), what });
            }
            self.known.insert(index, own);
        }
        if self.waiting.is_empty() {
            self.reference = None;
        }
        Ok(self.waiting.is_empty())
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
