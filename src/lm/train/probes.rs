//! KL to a reference on sequences that stay the same.

use super::super::cpu::Recalled;
use super::super::logprobs::response_kl;
use super::super::{LmError, Model, Sequence};
use super::Example;
use super::form::Form;

/// Sequences that KL is measured on.
const PROBES: usize = 32;

/// Up to [`PROBES`] sequences with a response under its own constitution.
pub(super) struct Probes {
    sequences: Vec<Sequence>,
    reference: Reference,
    every: u64,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes")
            .field("sequences", &self.sequences.len())
            .field("every", &self.every)
            .finish_non_exhaustive()
    }
}

/// What KL is measured against.
enum Reference {
    /// Its hidden states: its layers run only once.
    Recalled(Box<Recalled>),
    /// A model whose passes run in candle's operations.
    Model(Model),
}

impl Probes {
    /// Takes the first examples.
    pub(super) fn new<'a>(
        reference: &Model,
        examples: impl Iterator<Item = &'a Example>,
        form: Form,
        every: u64,
    ) -> Result<Self, LmError> {
        let sequences = examples.flat_map(|Example { sequences, .. }| {
            sequences.iter().enumerate().filter(|(cell, _)| form.is_own(*cell, sequences.len()))
        });
        let sequences: Vec<Sequence> = sequences.map(|(_, sequence)| sequence.clone()).take(PROBES).collect();
        let reference = if reference.on_cpu() {
            Reference::Recalled(Box::new(Recalled::new(reference, &sequences)?))
        } else {
            Reference::Model(reference.clone())
        };
        Ok(Self { sequences, reference, every })
    }

    /// Whether KL is measured after a step, from 1, of so many.
    pub(super) fn are_due(&self, step: u64, steps: u64) -> bool {
        step.is_multiple_of(self.every) || step == steps
    }

    /// KL(policy‖reference), nats a response token.
    pub(super) fn kl(&mut self, policy: &Model) -> Result<f64, LmError> {
        let kls = match &mut self.reference {
            Reference::Recalled(recalled) => recalled.kl(policy)?,
            Reference::Model(reference) => response_kl(policy, reference, &self.sequences)?.concat(),
        };
        Ok(kls.iter().map(|kl| f64::from(*kl)).sum::<f64>() / kls.len() as f64)
    }
}
