//! The next tokens, from logits.

use candle_core::{Result, Tensor};

use super::launch::Launch;

const THREADS: usize = 512;

/// What stands for no token: a logit was not a number, or none was finite.
pub(in crate::lm) const NONE: u32 = u32::MAX;

/// Picks a token from row `rows[b]` of the logits (R, V) for each b, into `tokens` (B) u32. With `inverse` 0 it is the
/// likeliest, the first of several; else that where the probabilities under logits times `inverse`, added up in the order
/// of tokens, are first above `numbers[b]` (f64, of [0, 1)). [`NONE`] where a row is broken.
pub(in crate::lm::gpu) fn pick(
    logits: &Tensor,
    rows: &Tensor,
    numbers: &Tensor,
    inverse: f32,
    tokens: &Tensor,
) -> Result<()> {
    let count = rows.elem_count();
    Launch::new("pick", "pick", logits.dtype())
        .over([count, 1, 1], [THREADS, 1, 1])
        .reads(logits)
        .reads(rows)
        .reads(numbers)
        .f32(f64::from(inverse))
        .writes(tokens)
        .u32(logits.dim(1)?)
        .run(logits.device())
}
