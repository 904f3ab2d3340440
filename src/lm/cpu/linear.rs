//! Linear layers as products: their weights in panels, and what comes on top of them.

use std::ops::Deref;
use std::sync::Arc;

use rayon::prelude::*;

use super::forward::{BLOCK, Share};
use super::matmul::Panels;
use super::packed::view;
use super::pool::{Buffer, Pool};
use super::simd;
use crate::lm::LmError;
use crate::lm::decoder::Linear;

/// The numbers of a linear layer's weight, with what an adapter adds: (out, in).
fn effective<'a>(
    pool: &Arc<Pool>,
    linear: &'a Linear,
) -> Result<Effective<impl Deref<Target = [f32]> + use<'a>>, LmError> {
    let weight = view(&linear.weight)?;
    let Some(adapter) = &linear.adapter else { return Ok(Effective::Plain(weight)) };
    let (rank, inputs) = adapter.a.dims2()?;
    let mut sum = pool.take(weight.len());
    sum.copy_from_slice(&weight);
    let a = Panels::stacked(pool, &[&view(&adapter.a)?], inputs); // (r, in)
    let scaled: Vec<f32> = view(&adapter.b)?.iter().map(|b| b * adapter.scale as f32).collect(); // (out, r)
    let rows = sum.par_chunks_mut(BLOCK * inputs).zip(scaled.par_chunks(BLOCK * rank));
    rows.for_each(|(sum, b)| a.multiply(b, sum, true));
    Ok(Effective::Merged(sum))
}

/// Numbers as they are, or with something added.
enum Effective<Plain> {
    Plain(Plain),
    Merged(Buffer),
}

impl<Plain: Deref<Target = [f32]>> Deref for Effective<Plain> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Plain(numbers) => numbers,
            Self::Merged(numbers) => numbers,
        }
    }
}

/// Linear layers of the same input, whose results lie side by side: x (N, in) to (N, out).
#[derive(Debug)]
pub(super) struct Forwards {
    panels: Panels, // (in, out)
    /// (out), if one of them has a bias.
    bias: Option<Vec<f32>>,
}

impl Forwards {
    pub(super) fn new(pool: &Arc<Pool>, linears: &[&Linear]) -> Result<Self, LmError> {
        let weights = linears.iter().map(|linear| effective(pool, linear)).collect::<Result<Vec<_>, _>>()?;
        let depth = linears[0].weight.dim(1)?;
        let panels = Panels::transposed(pool, &weights.iter().map(|numbers| &**numbers).collect::<Vec<_>>(), depth);
        let mut bias = None;
        let mut start = 0;
        for linear in linears {
            let end = start + linear.weight.dim(0)?;
            if let Some(own) = &linear.bias {
                bias.get_or_insert_with(|| vec![0.0; panels.columns()])[start..end].copy_from_slice(&view(own)?);
            }
            start = end;
        }
        Ok(Self { panels, bias })
    }

    /// y = the results, or y += the results if `add`.
    pub(super) fn apply(&self, share: Share, x: &[f32], y: &mut [f32], add: bool) {
        share.multiply(&self.panels, x, y, add);
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(bias.len()).for_each(|y| simd::add(y, bias));
        }
    }
}

/// The same linear layers for the gradient: from that to their results (N, out) to that to their input (N, in).
pub(super) struct Backwards {
    panels: Panels, // (out, in)
}

impl Backwards {
    pub(super) fn new(pool: &Arc<Pool>, linears: &[&Linear]) -> Result<Self, LmError> {
        let weights = linears.iter().map(|linear| effective(pool, linear)).collect::<Result<Vec<_>, _>>()?;
        let columns = linears[0].weight.dim(1)?;
        let panels = Panels::stacked(pool, &weights.iter().map(|numbers| &**numbers).collect::<Vec<_>>(), columns);
        Ok(Self { panels })
    }

    /// Writes the gradient to the input, on this thread.
    pub(super) fn apply(&self, to: &[f32], to_x: &mut [f32]) {
        self.panels.multiply(to, to_x, false);
    }
}
