//! Norms, rotations and the gate, each with its gradient.
//!
//! candle's fused operations are used here, which have no backward pass: none of this is part of a graph.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::silu;

/// Rows of the last dimension over their root mean square, times `weight`: any shape (…, D).
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    #[expect(clippy::disallowed_methods, reason = "no graph is built here; the gradient is `rms_norm_back`")]
    candle_nn::ops::rms_norm(x, weight, eps as f32)
}

/// The gradients of [`rms_norm`] to `x`, and to `weight` if it is `wanted`, from that to its result.
pub(super) fn rms_norm_back(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    gradient: &Tensor,
    wanted: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let dtype = x.dtype();
    let (x, gradient) = (x.to_dtype(DType::F32)?, gradient.to_dtype(DType::F32)?);
    let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?; // (…, 1)
    let normed = x.broadcast_mul(&inverse)?;
    let scaled = gradient.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    let along = (&scaled * &normed)?.mean_keepdim(D::Minus1)?; // (…, 1)
    let to_x = (scaled - normed.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?.to_dtype(dtype)?;
    if !wanted {
        return Ok((to_x, None));
    }
    let to_weight = (gradient * normed)?.reshape(((), weight.elem_count()))?.sum(0)?.to_dtype(weight.dtype())?;
    Ok((to_x, Some(to_weight)))
}

/// Cosines and sines of the angles of tokens: (N, E/2) each, in the type of the model.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Turn {
    /// Heads of tokens `x` (N, heads, E), turned: `transformers` pairs the first half of a head with the second.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        #[expect(clippy::disallowed_methods, reason = "no graph is built here; the gradient is the turn back")]
        candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?.contiguous()?, &self.cos, &self.sin)?.squeeze(0)
    }

    /// The turn that a gradient takes.
    pub(super) fn back(&self) -> Result<Self> {
        Ok(Self { cos: self.cos.clone(), sin: self.sin.neg()? })
    }

    /// The turn, and a factor to all numbers.
    pub(super) fn scaled(&self, factor: f64) -> Result<Self> {
        Ok(Self { cos: (&self.cos * factor)?, sin: (&self.sin * factor)? })
    }
}

/// silu(gate) · up.
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    silu(gate)? * up
}

/// The gradients of [`swiglu`] to gate and up.
pub(super) fn swiglu_back(gate: &Tensor, up: &Tensor, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
    let sigmoid = (((gate.neg()?.exp()?) + 1.0)?).recip()?;
    let silu = (gate * &sigmoid)?;
    // silu′(x) = σ(x) · (1 + x · (1 − σ(x))) = σ(x) + silu(x) · (1 − σ(x))
    let slope = (&sigmoid + (&silu * sigmoid.affine(-1.0, 1.0)?)?)?;
    Ok((((gradient * up)? * slope)?, (gradient * silu)?))
}

/// The softmax over the last dimension, with f32 sums.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    // candle's kernel for the CPU sums in the type itself, its kernels for GPUs in f32.
    let (dtype, exact) = (x.dtype(), !x.device().is_cpu());
    let x = if exact { x.clone() } else { x.to_dtype(DType::F32)? };
    #[expect(clippy::disallowed_methods, reason = "no graph is built here")]
    candle_nn::ops::softmax_last_dim(&x)?.to_dtype(dtype)
}
