//! Linear layers as products: their weights in panels, and what comes on top of them.

use std::sync::Arc;

use super::forward::Share;
use super::matmul::Panels;
use super::packed::view;
use super::pool::Pool;
use super::simd;
use crate::lm::LmError;
use crate::lm::decoder::Linear;

/// Linear layers of the same input, whose results lie side by side: x (N, in) to (N, out).
#[derive(Debug)]
pub(super) struct Forwards {
    panels: Panels, // (in, out)
    /// (out), if one of them has a bias.
    bias: Option<Vec<f32>>,
}

impl Forwards {
    pub(super) fn new(pool: &Arc<Pool>, linears: &[&Linear]) -> Result<Self, LmError> {
        let views = linears.iter().map(|linear| view(&linear.weight)).collect::<Result<Vec<_>, _>>()?;
        let depth = linears[0].weight.dim(1)?;
        let panels = Panels::transposed(pool, &views.iter().map(|numbers| &**numbers).collect::<Vec<_>>(), depth);
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
        let views = linears.iter().map(|linear| view(&linear.weight)).collect::<Result<Vec<_>, _>>()?;
        let columns = linears[0].weight.dim(1)?;
        let panels = Panels::stacked(pool, &views.iter().map(|numbers| &**numbers).collect::<Vec<_>>(), columns);
        Ok(Self { panels })
    }

    /// Writes the gradient to the input, on this thread.
    pub(super) fn apply(&self, to: &[f32], to_x: &mut [f32]) {
        self.panels.multiply(to, to_x, false);
    }
}
