//! Log-probabilities of responses, and how far two models are apart on them.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::cpu::Keep;
use super::decoder::Engine;
use super::graph::scores_of;
use super::{LmError, Model, cpu, gpu, plain};

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

/// Tokens in one pass without a graph, a shared prompt counted once; more are split up.
const TOKENS_PER_PASS: usize = 1 << 12;

/// Errs on sequences that this model cannot have.
fn check(model: &Model, sequences: &[Sequence]) -> Result<(), LmError> {
    let config = model.config();
    for (row, Sequence { ids, prompt }) in sequences.iter().enumerate() {
        if *prompt == 0 || *prompt > ids.len() {
            let what = format!("has {} tokens, {prompt} of them a prompt; a prompt has at least one", ids.len());
            return Err(LmError::Sequence { row, what });
        }
        if ids.len() > config.max_position_embeddings {
            return Err(LmError::TooLong { row, tokens: ids.len(), positions: config.max_position_embeddings });
        }
        if let Some(token) = ids.iter().find(|token| **token as usize >= config.vocab_size) {
            let what = format!("has the token {token}, the model has {}", config.vocab_size);
            return Err(LmError::Sequence { row, what });
        }
    }
    Ok(())
}

/// The segments of the sequences' response tokens.
fn segments(sequences: &[Sequence]) -> Vec<Range<usize>> {
    let mut end = 0;
    let lengths = sequences.iter().map(|sequence| sequence.ids.len() - sequence.prompt);
    lengths
        .map(|length| {
            end += length;
            end - length..end
        })
        .collect()
}

/// Splits sequences, by their indices, into passes of few enough tokens. Those of one prompt come one after the other, so that
/// they share it.
fn passes(sequences: &[Sequence]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|at| &sequences[*at].ids[..sequences[*at].prompt]);
    let mut passes: Vec<Vec<usize>> = Vec::new();
    let mut left = 0;
    let mut prompt: &[u32] = &[];
    for at in order {
        let Sequence { ids, prompt: length } = &sequences[at];
        let shared = std::mem::replace(&mut prompt, &ids[..*length]) == prompt;
        let mut needed = if shared { ids.len() - length } else { ids.len() };
        match passes.last_mut() {
            Some(pass) if needed <= left => pass.push(at),
            _ => {
                passes.push(vec![at]);
                (left, needed) = (TOKENS_PER_PASS, ids.len());
            }
        }
        left = left.saturating_sub(needed);
    }
    passes
}

/// Computes numbers for the response tokens of each sequence, in passes of few enough tokens. A pass that does not fit the
/// memory is halved.
fn in_passes(
    sequences: &[Sequence],
    compute: impl Fn(&[Sequence]) -> Result<Vec<f32>, LmError>,
) -> Result<Vec<Vec<f32>>, LmError> {
    let mut all = vec![Vec::new(); sequences.len()];
    let mut waiting = passes(sequences);
    waiting.reverse();
    while let Some(pass) = waiting.pop() {
        let together: Vec<Sequence> = pass.iter().map(|at| sequences[*at].clone()).collect();
        match compute(&together) {
            Ok(values) => {
                for (at, segment) in pass.iter().zip(segments(&together)) {
                    all[*at] = values[segment].to_vec();
                }
            }
            Err(LmError::OutOfMemory { what }) if pass.len() == 1 => {
                return Err(LmError::RowOutOfMemory { row: pass[0], what });
            }
            Err(LmError::OutOfMemory { .. }) => {
                let (first, second) = pass.split_at(pass.len() / 2);
                waiting.extend([second.to_vec(), first.to_vec()]);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Returns the log-probability of each response token, in nats. Builds no graph.
///
/// Any number of sequences: they are split up where they are too many for one pass or for the memory. The result for a sequence does not
/// depend on what else is in the batch, to the bit (CPU). Errs on a sequence that is longer than the model's positions,
/// or has no prompt, or has a token that the model does not have.
pub fn response_logprobs(model: &Model, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>, LmError> {
    check(model, sequences)?;
    in_passes(sequences, |pass| Ok(scores(model, None, pass, false)?.0.to_vec1()?))
}

/// Returns KL(policy‖reference) over the whole vocabulary at each response token, in nats. Builds no graph.
///
/// Errs where [`response_logprobs`] does, and on models of different vocabularies or devices.
pub fn response_kl(policy: &Model, reference: &Model, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>, LmError> {
    check_both(policy, reference, sequences)?;
    in_passes(sequences, |pass| {
        let kl = scores(policy, Some(reference), pass, false)?.1;
        Ok(kl.map(|kl| kl.to_vec1()).transpose()?.unwrap_or_default())
    })
}

/// As [`response_logprobs`], with gradients to those weights that are variables, and as one pass.
pub fn token_logprobs(model: &Model, sequences: &[Sequence]) -> Result<Tokens, LmError> {
    check(model, sequences)?;
    let (logprobs, _) = scores(model, None, sequences, true)?;
    Ok(Tokens { logprobs, segments: segments(sequences) })
}

/// As [`response_kl`], with gradients to the policy's weights only: (N) in the order of [`Tokens::logprobs`].
pub fn token_kl(policy: &Model, reference: &Model, sequences: &[Sequence]) -> Result<Tensor, LmError> {
    token_logprobs_and_kl(policy, reference, sequences).map(|(_, kl)| kl)
}

/// [`token_logprobs`] and [`token_kl`] in one pass of the policy.
pub fn token_logprobs_and_kl(
    policy: &Model,
    reference: &Model,
    sequences: &[Sequence],
) -> Result<(Tokens, Tensor), LmError> {
    check_both(policy, reference, sequences)?;
    let (logprobs, kl) = scores(policy, Some(reference), sequences, true)?;
    let tokens = Tokens { logprobs, segments: segments(sequences) };
    Ok((tokens, kl.expect("there is a reference")))
}

fn check_both(policy: &Model, reference: &Model, sequences: &[Sequence]) -> Result<(), LmError> {
    check(policy, sequences)?;
    check(reference, sequences)?;
    let (theirs, ours) = (reference.config().vocab_size, policy.config().vocab_size);
    if theirs != ours {
        return Err(LmError::Mismatch { what: format!("the policy has {ours} tokens, the reference has {theirs}") });
    }
    if !policy.device().same_device(reference.device()) {
        return Err(LmError::Mismatch { what: "they are on different devices".to_owned() });
    }
    Ok(())
}

/// Log-probabilities and divergences of the response tokens, with a graph if `graph`.
fn scores(
    model: &Model,
    reference: Option<&Model>,
    sequences: &[Sequence],
    graph: bool,
) -> Result<(Tensor, Option<Tensor>), LmError> {
    let keep = if graph { Keep::Everything } else { Keep::Nothing };
    match (model.engine(), reference.map_or(model.engine(), Model::engine)) {
        (Engine::Cpu, Engine::Cpu) => return scores_of::<cpu::Scored>(model, reference, sequences, keep),
        (Engine::Tensors, Engine::Tensors) => return scores_of::<gpu::Scored>(model, reference, sequences, keep),
        // What computes any model in any way.
        _ => {}
    }
    let (logprobs, kl) = plain_scores(model, reference, sequences)?;
    Ok(if graph { (logprobs, kl) } else { (logprobs.detach(), kl.map(|kl| kl.detach())) })
}

/// As [`scores`], in candle's operations.
pub(super) fn plain_scores(
    model: &Model,
    reference: Option<&Model>,
    sequences: &[Sequence],
) -> Result<(Tensor, Option<Tensor>), LmError> {
    let (rows, chosen, targets) = predictions(sequences);
    if chosen.is_empty() {
        let nothing = || Tensor::zeros(0, DType::F32, model.device());
        return Ok((nothing()?, reference.map(|_| nothing()).transpose()?));
    }
    let logits = plain::log_softmax_at(model, &rows, &chosen)?;
    let kl = match reference {
        None => None,
        Some(reference) => Some(plain::kl(&logits, &plain::log_softmax_at(reference, &rows, &chosen)?.detach())?),
    };
    Ok((plain::pick(&logits, &targets)?, kl))
}

/// The rows, where in them (padded on the right) a response token is predicted, and the predicted tokens.
fn predictions(sequences: &[Sequence]) -> (Vec<&[u32]>, Vec<u32>, Vec<u32>) {
    // The last token of a sequence predicts nothing.
    let rows: Vec<&[u32]> = sequences.iter().map(|sequence| &sequence.ids[..sequence.ids.len() - 1]).collect();
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let (mut chosen, mut targets) = (Vec::new(), Vec::new());
    for (row, Sequence { ids, prompt }) in sequences.iter().enumerate() {
        chosen.extend((*prompt - 1..ids.len() - 1).map(|at| (row * longest + at) as u32));
        targets.extend(&ids[*prompt..]);
    }
    (rows, chosen, targets)
}
