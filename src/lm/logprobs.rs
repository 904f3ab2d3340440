//! Log-probabilities of responses, and how far two models are apart on them.

use std::ops::Range;

use candle_core::Tensor;

use super::{LmError, Model};

/// Tokens of a prompt and its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// All tokens; the first is never scored.
    pub ids: Vec<u32>,
    /// How many of them are the prompt, at least 1: `ids[prompt..]` is the response.
    pub prompt: usize,
}

/// Log-probabilities of the response tokens of a batch, differentiable.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// (N) f32, in nats: one for each response token, sequence after sequence in the order given.
    pub logprobs: Tensor,
    /// Which of them are whose: `segments[i]` for the `i`th sequence. Empty for an empty response.
    pub segments: Vec<Range<usize>>,
}

/// Returns the log-probability of each response token, in nats. Builds no graph.
///
/// Any number of sequences: they are split up where they are too many for one pass. The result for a sequence does not
/// depend on what else is in the batch, to the bit (CPU). Errs on a sequence that is longer than the model's positions,
/// or has no prompt, or has a token that the model does not have.
pub fn response_logprobs(model: &Model, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>, LmError> {
    let _ = (model, sequences);
    Err(LmError::Mismatch { what: "not built".to_owned() })
}

/// Returns KL(policy‖reference) over the whole vocabulary at each response token, in nats. Builds no graph.
pub fn response_kl(policy: &Model, reference: &Model, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>, LmError> {
    let _ = (policy, reference, sequences);
    Err(LmError::Mismatch { what: "not built".to_owned() })
}

/// As [`response_logprobs`], with gradients to those weights that are variables, and as one pass.
pub fn token_logprobs(model: &Model, sequences: &[Sequence]) -> Result<Tokens, LmError> {
    let _ = (model, sequences);
    Err(LmError::Mismatch { what: "not built".to_owned() })
}

/// As [`response_kl`], with gradients to the policy's weights only: (N) in the order of [`Tokens::logprobs`].
pub fn token_kl(policy: &Model, reference: &Model, sequences: &[Sequence]) -> Result<Tensor, LmError> {
    token_logprobs_and_kl(policy, reference, sequences).map(|(_, kl)| kl)
}

/// [`token_logprobs`] and [`token_kl`] in one pass of the policy, which costs about half of the two alone.
pub fn token_logprobs_and_kl(
    policy: &Model,
    reference: &Model,
    sequences: &[Sequence],
) -> Result<(Tokens, Tensor), LmError> {
    let _ = (policy, reference, sequences);
    Err(LmError::Mismatch { what: "not built".to_owned() })
}
