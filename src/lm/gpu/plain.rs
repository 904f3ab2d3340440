//! Norms, rotations and the gate in candle's operations, each with its gradient: on any device.
//!
//! candle's fused operations are used here, which have no backward pass: none of this is part of a graph.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::silu;

use super::kernels::Turned;

/// As [`super::ops::rms_norm`].
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    #[expect(clippy::disallowed_methods, reason = "no graph is built here; the gradient is `rms_norm_back`")]
    candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps as f32)
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

/// Cosines and sines of the angles of tokens, as they are for keys and with a scale for queries: (N, E/2) each.
#[derive(Debug, Clone)]
pub(super) struct Angles {
    keys: (Tensor, Tensor),
    queries: (Tensor, Tensor),
}

impl Angles {
    pub(super) fn new(cos: Tensor, sin: Tensor, scale: f64) -> Result<Self> {
        Ok(Self { queries: ((&cos * scale)?, (&sin * scale)?), keys: (cos, sin) })
    }

    /// The angles of the turn back.
    pub(super) fn back(&self) -> Result<Self> {
        let back = |(cos, sin): &(Tensor, Tensor)| Ok::<_, candle_core::Error>((cos.clone(), sin.neg()?));
        Ok(Self { keys: back(&self.keys)?, queries: back(&self.queries)? })
    }
}

/// As the kernel `turn`.
pub(super) fn turn(what: Turned<'_>, angles: &Angles) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    let turned = |x: &Tensor, norm: Option<&Tensor>, (cos, sin): &(Tensor, Tensor)| {
        let x = match norm {
            Some(norm) => rms_norm(x, norm, what.eps)?,
            None => x.contiguous()?,
        };
        #[expect(clippy::disallowed_methods, reason = "no graph is built here; the gradient is the turn back")]
        candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?, cos, sin)?.squeeze(0)
    };
    let query = turned(what.query, what.norms[0], &angles.queries)?;
    let key = turned(what.key, what.norms[1], &angles.keys)?;
    Ok((query, key, what.value.map(Tensor::contiguous).transpose()?))
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
