//! From hidden states to log-probabilities and divergences, some rows of the vocabulary at a time: the logits of all rows
//! are never there at once, and are made again for the gradient.

use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor};

use super::linear::{Gradients, wants};
use super::ops::softmax;
use crate::lm::Model;
use crate::lm::layout::Layout;

/// Numbers of logits that are there at once.
const LOGITS: usize = 1 << 26;

/// The names of the head's weight, tied and not.
const NAMES: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

/// What is predicted at some rows.
struct Chunk {
    rows: Range<usize>,
    /// Predicted tokens, padded with 0: (rows, P).
    tokens: Tensor,
    /// Where in the result each is: (row, place in the row, output).
    outputs: Vec<(usize, usize, usize)>,
    width: usize,
}

fn chunks(layout: &Layout, vocabulary: usize, device: &Device) -> Result<Vec<Chunk>> {
    let size = (LOGITS / vocabulary).max(1);
    let starts = (0..layout.chosen.len()).step_by(size);
    let of_rows = starts.map(|start| {
        let rows = start..(start + size).min(layout.chosen.len());
        let predictions = &layout.predictions[rows.clone()];
        let width = predictions.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let mut tokens = vec![0u32; rows.len() * width];
        let mut outputs = Vec::new();
        for (row, predictions) in predictions.iter().enumerate() {
            for (place, (output, token)) in predictions.iter().enumerate() {
                tokens[row * width + place] = *token;
                outputs.push((row, place, *output));
            }
        }
        Ok(Chunk { tokens: Tensor::from_vec(tokens, (rows.len(), width), device)?, rows, outputs, width })
    });
    of_rows.collect()
}

/// Logits of hidden states (rows, D), in f32: (rows, V).
pub(super) fn logits(model: &Model, hidden: &Tensor) -> Result<Tensor> {
    hidden.matmul(&model.head.detach().t()?)?.to_dtype(DType::F32)
}

/// Log-probabilities over the vocabulary: (rows, V) f32.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// Log-probabilities of what is predicted (outputs), and KL(policy‖reference) there, if there is a reference: on the host.
pub(super) fn scores(
    model: &Model,
    hidden: &Tensor,
    reference: Option<(&Model, &Tensor)>,
    layout: &Layout,
) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
    let mut logprobs = vec![0.0; layout.outputs];
    let mut kls = reference.is_some().then(|| vec![0.0; layout.outputs]);
    for chunk in chunks(layout, model.config().vocab_size, model.device())? {
        let part = |hidden: &Tensor| hidden.narrow(0, chunk.rows.start, chunk.rows.len());
        let ours = log_softmax(&logits(model, &part(hidden)?)?)?;
        let picked = ours.gather(&chunk.tokens, 1)?.to_vec2::<f32>()?;
        for (row, place, output) in &chunk.outputs {
            logprobs[*output] = picked[*row][*place];
        }
        if let (Some((reference, theirs)), Some(kls)) = (reference, &mut kls) {
            let theirs = log_softmax(&logits(reference, &part(theirs)?)?)?;
            let kl = (ours.exp()? * (&ours - theirs)?)?.sum(D::Minus1)?.to_vec1::<f32>()?;
            for (row, _, output) in &chunk.outputs {
                kls[*output] = kl[*row];
            }
        }
    }
    Ok((logprobs, kls))
}

/// The gradient to the hidden states (M, D), from those to log-probabilities and divergences (outputs each; the latter
/// may be empty); that to the head's weight goes into `gradients`.
pub(super) fn backward(
    model: &Model,
    hidden: &Tensor,
    reference: Option<(&Model, &Tensor)>,
    layout: &Layout,
    (to_logprobs, to_kls): (&[f32], &[f32]),
    gradients: &mut Gradients,
) -> Result<Tensor> {
    let device = model.device();
    let name = NAMES[usize::from(!model.config().tie_word_embeddings)];
    let mut parts = Vec::new();
    for chunk in chunks(layout, model.config().vocab_size, device)? {
        let count = chunk.rows.len();
        let part = |hidden: &Tensor| hidden.narrow(0, chunk.rows.start, count);
        let (mut slopes, mut sums, mut of_kl) = (vec![0f32; count * chunk.width], vec![0f32; count], vec![0f32; count]);
        for (row, place, output) in &chunk.outputs {
            slopes[row * chunk.width + place] += to_logprobs[*output];
            sums[*row] -= to_logprobs[*output];
            of_kl[*row] += to_kls.get(*output).copied().unwrap_or(0.0);
        }
        let column = |values: Vec<f32>| Tensor::from_vec(values, (count, 1), device);
        let slopes = Tensor::from_vec(slopes, (count, chunk.width), device)?;
        let mine = part(hidden)?;
        let logits_here = logits(model, &mine)?;
        let weights = softmax(&logits_here)?;
        let mut to_logits = weights.broadcast_mul(&column(sums)?)?;
        if let Some((reference, theirs)) = reference.filter(|_| of_kl.iter().any(|slope| *slope != 0.0)) {
            let apart = (log_softmax(&logits_here)? - log_softmax(&logits(reference, &part(theirs)?)?)?)?;
            let kl = (&weights * &apart)?.sum_keepdim(D::Minus1)?;
            let slope = (weights * apart.broadcast_sub(&kl)?)?;
            to_logits = (to_logits + slope.broadcast_mul(&column(of_kl)?)?)?;
        }
        drop(logits_here);
        let to_logits = to_logits.scatter_add(&chunk.tokens, &slopes, 1)?.to_dtype(hidden.dtype())?;
        parts.push(to_logits.matmul(&model.head.detach())?);
        if wants(&model.head) {
            gradients.add(name, to_logits.t()?.matmul(&mine)?)?;
        }
    }
    Tensor::cat(&parts, 0)
}
