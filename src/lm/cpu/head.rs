//! From hidden states to log-probabilities and divergences, a few rows of the vocabulary at a time.

use std::ops::Deref;

use rayon::prelude::*;

use super::forward::{Context, normalise};
use super::layout::Layout;
use super::pool::Buffer;
use super::simd;

/// Numbers of logits that one task has in memory: enough rows that the head is not read again for every few of them.
const TASK: usize = 1 << 20;

/// Numbers of logits that are kept for the gradient at most; where there are more, they are made again.
const KEPT: usize = 1 << 25;

/// Hidden states of a model at the chosen tokens of a batch, normalised: (M, D).
pub(super) struct Hidden {
    pub(super) rows: Buffer,
    /// ln Σ e^logit of each row: (M).
    pub(super) totals: Vec<f32>,
    /// The logits, if they are kept: (M, V).
    pub(super) logits: Option<Buffer>,
}

impl Hidden {
    /// Normalises the residual stream `x` (M, D) after the last layer. Logits are kept, if `keep`, unless they are many.
    pub(super) fn new(context: &Context, x: &[f32], keep: bool) -> Self {
        let mut rows = context.pool.take(x.len());
        normalise(x, &context.packed.norm, context.eps, &mut rows);
        let totals = vec![0.0; x.len() / context.width];
        let numbers = totals.len() * context.packed.head.columns();
        let logits = (keep && numbers <= KEPT).then(|| context.pool.take(numbers));
        Self { rows, totals, logits }
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

/// Logits of some rows, where they are kept or else for now.
enum Logits<'a> {
    Kept(&'a [f32]),
    Own(Buffer),
}

impl Deref for Logits<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Kept(logits) => logits,
            Self::Own(logits) => logits,
        }
    }
}

fn logits_in<'a>(context: &Context, rows: &[f32], kept: &'a mut Option<&mut [f32]>) -> Logits<'a> {
    match kept {
        Some(kept) => {
            context.packed.head.multiply(rows, kept, false);
            Logits::Kept(kept)
        }
        None => Logits::Own(logits(context, rows)),
    }
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
    let mut kept: Vec<Option<&mut [f32]>> = match &mut hidden.logits {
        Some(logits) => logits.chunks_mut(task * vocabulary).map(Some).collect(),
        None => (0..hidden.totals.len().div_ceil(task)).map(|_| None).collect(),
    };
    let picked: Vec<Vec<f32>> = match reference {
        None => hidden
            .rows
            .par_chunks(task * context.width)
            .zip(hidden.totals.par_chunks_mut(task))
            .zip(layout.predictions.par_chunks(task))
            .zip(&mut kept)
            .map(|(((rows, totals), predictions), kept)| {
                let logits = logits_in(context, rows, kept);
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
            .zip(&mut kept)
            .map(|((((((rows, totals), predictions), their_rows), their_totals), by_row), kept)| {
                let (ours, theirs) = (logits_in(context, rows, kept), logits(their_context, their_rows));
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
