//! From hidden states to log-probabilities and divergences, a few rows of the vocabulary at a time.

use rayon::prelude::*;

use super::forward::{Context, normalise};
use super::layout::Layout;
use super::pool::Buffer;
use super::simd;

/// Numbers of logits that one task has in memory.
const TASK: usize = 1 << 18;

/// Hidden states of a model at the chosen tokens of a batch, normalised: (M, D).
pub(super) struct Hidden {
    pub(super) rows: Buffer,
    /// ln Σ e^logit of each row: (M).
    pub(super) totals: Vec<f32>,
}

impl Hidden {
    /// Normalises the residual stream `x` (M, D) after the last layer.
    pub(super) fn new(context: &Context, x: &[f32]) -> Self {
        let mut rows = context.pool.take(x.len());
        normalise(x, &context.packed.norm, context.eps, &mut rows);
        let totals = vec![0.0; x.len() / context.width];
        Self { rows, totals }
    }
}

/// Rows of one task.
pub(super) fn rows_of_a_task(vocabulary: usize) -> usize {
    (TASK / vocabulary).clamp(8, 96)
}

/// Logits of rows of hidden states: (rows, V).
pub(super) fn logits(context: &Context, rows: &[f32]) -> Buffer {
    let mut logits = context.pool.take(rows.len() / context.width * context.packed.head.columns());
    context.packed.head.multiply(rows, &mut logits, false);
    logits
}

/// Log-probabilities of what is predicted (outputs), and KL(policy‖reference) there, if there is a reference.
pub(super) fn scores(
    context: &Context,
    hidden: &mut Hidden,
    reference: Option<(&Context, &mut Hidden)>,
    layout: &Layout,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let vocabulary = context.packed.head.columns();
    let task = rows_of_a_task(vocabulary);
    let mut logprobs = vec![0.0; layout.outputs];
    let mut kls = reference.is_some().then(|| vec![0.0; layout.outputs]);
    let mut by_row = vec![0.0; layout.chosen.len()];
    let picked: Vec<Vec<f32>> = match reference {
        None => hidden
            .rows
            .par_chunks(task * context.width)
            .zip(hidden.totals.par_chunks_mut(task))
            .zip(layout.predictions.par_chunks(task))
            .map(|((rows, totals), predictions)| {
                let logits = logits(context, rows);
                let rows = logits.chunks_exact(vocabulary).zip(totals).zip(predictions);
                rows.flat_map(|((logits, total), predictions)| {
                    *total = simd::log_sum_exp(logits);
                    predictions.iter().map(|(_, token)| logits[*token as usize] - *total)
                })
                .collect()
            })
            .collect(),
        Some((their_context, theirs)) => hidden
            .rows
            .par_chunks(task * context.width)
            .zip(hidden.totals.par_chunks_mut(task))
            .zip(layout.predictions.par_chunks(task))
            .zip(theirs.rows.par_chunks(task * their_context.width))
            .zip(theirs.totals.par_chunks_mut(task))
            .zip(by_row.par_chunks_mut(task))
            .map(|(((((rows, totals), predictions), their_rows), their_totals), by_row)| {
                let (ours, theirs) = (logits(context, rows), logits(their_context, their_rows));
                let rows = ours.chunks_exact(vocabulary).zip(totals).zip(predictions);
                let rows = rows.zip(theirs.chunks_exact(vocabulary)).zip(their_totals).zip(by_row);
                rows.flat_map(|(((((ours, total), predictions), theirs), their_total), kl)| {
                    *total = simd::log_sum_exp(ours);
                    *their_total = simd::log_sum_exp(theirs);
                    *kl = simd::kl(ours, *total, theirs, *their_total);
                    predictions.iter().map(|(_, token)| ours[*token as usize] - *total)
                })
                .collect()
            })
            .collect(),
    };
    let mut picked = picked.into_iter().flatten();
    for (predictions, kl) in layout.predictions.iter().zip(&by_row) {
        for (output, _) in predictions {
            logprobs[*output] = picked.next().expect("there is one for each prediction");
            if let Some(kls) = &mut kls {
                kls[*output] = *kl;
            }
        }
    }
    (logprobs, kls)
}
