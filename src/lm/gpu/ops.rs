//! Norms, rotations and the gate, each with its gradient: by a kernel of our own where it computes, else plainly.

use candle_core::{DType, Result, Tensor};

use super::kernels::{self, Kernel, Turned};
use super::plain::{self, Angles};

/// Rows of the last dimension over their root mean square, times `weight`: any shape (…, D).
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if Kernel::Norm.computes(x.device(), x.dtype()) {
        return kernels::rms_norm(x, weight, eps);
    }
    plain::rms_norm(x, weight, eps)
}

/// x + change, and its [`rms_norm`].
pub(super) fn add_rms_norm(x: &Tensor, change: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    if Kernel::Norm.computes(x.device(), x.dtype()) {
        return kernels::add_rms_norm(x, change, weight, eps);
    }
    let sum = (x + change)?;
    let normed = plain::rms_norm(&sum, weight, eps)?;
    Ok((sum, normed))
}

/// The gradients of [`rms_norm`] to `x`, plus `residual`, and to `weight` if it is `wanted`, from that to its result.
pub(super) fn rms_norm_back(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    gradient: &Tensor,
    residual: Option<&Tensor>,
    wanted: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let fits = !wanted || weight.elem_count() <= kernels::WIDEST;
    if fits && Kernel::NormBack.computes(x.device(), x.dtype()) {
        return kernels::rms_norm_back(x, weight, eps, gradient, residual, wanted);
    }
    let (to_x, to_weight) = plain::rms_norm_back(x, weight, eps, gradient, wanted)?;
    Ok((residual.map_or_else(|| Ok(to_x.clone()), |residual| residual + &to_x)?, to_weight))
}

/// The turn of queries and keys by the angles of their tokens, and the scale of the scores, which queries get.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    /// (N, E/2), in the type of the model.
    cos: Tensor,
    sin: Tensor,
    scale: f64,
    /// Where no kernel computes.
    angles: Option<Angles>,
}

impl Turn {
    pub(super) fn new(cos: Tensor, sin: Tensor, scale: f64) -> Result<Self> {
        let kernel = Kernel::Turn.computes(cos.device(), cos.dtype());
        let angles = (!kernel).then(|| Angles::new(cos.clone(), sin.clone(), scale)).transpose()?;
        Ok(Self { cos, sin, scale, angles })
    }

    /// The turn of some of its tokens.
    pub(super) fn select(&self, tokens: &Tensor) -> Result<Self> {
        Self::new(self.cos.index_select(tokens, 0)?, self.sin.index_select(tokens, 0)?, self.scale)
    }

    /// Queries (N, H, E), keys and values (N, K, E) as attention takes them, without gaps: queries and keys normed, where
    /// they are, and turned, queries scaled. `transformers` pairs the first half of a head with the second.
    pub(super) fn apply(
        &self,
        [query, key, value]: [&Tensor; 3],
        norms: [Option<&Tensor>; 2],
        eps: f64,
    ) -> Result<[Tensor; 3]> {
        let norms = norms.map(|norm| norm.map(Tensor::detach));
        let norms = [norms[0].as_ref(), norms[1].as_ref()];
        let (query, key, new) = self.turned(Turned { query, key, value: Some(value), norms, eps }, false)?;
        Ok([query, key, new.unwrap_or_else(|| value.clone())])
    }

    /// The gradients to queries and keys before the turn, without their norms, from those after it.
    pub(super) fn back(&self, query: &Tensor, key: &Tensor) -> Result<[Tensor; 2]> {
        let (query, key, _) = self.turned(Turned { query, key, value: None, norms: [None; 2], eps: 0.0 }, true)?;
        Ok([query, key])
    }

    fn turned(&self, what: Turned<'_>, back: bool) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        match &self.angles {
            None => kernels::turn(what, (&self.cos, &self.sin), self.scale, if back { -1.0 } else { 1.0 }),
            Some(angles) if back => plain::turn(what, &angles.back()?),
            Some(angles) => plain::turn(what, angles),
        }
    }
}

/// silu(gate) · up: (N, F) each.
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if Kernel::Gate.computes(gate.device(), gate.dtype()) {
        return kernels::swiglu(gate, up);
    }
    plain::swiglu(gate, up)
}

/// The gradients of [`swiglu`] to gate and up.
pub(super) fn swiglu_back(gate: &Tensor, up: &Tensor, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
    if Kernel::GateBack.computes(gate.device(), gate.dtype()) {
        return kernels::swiglu_back(gate, up, gradient);
    }
    plain::swiglu_back(gate, up, gradient)
}

/// The softmax over the last dimension, with f32 sums.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    // candle's kernel for the CPU sums in the type itself, its kernels for GPUs in f32.
    let (dtype, exact) = (x.dtype(), !x.device().is_cpu());
    let x = if exact { x.clone() } else { x.to_dtype(DType::F32)? };
    #[expect(clippy::disallowed_methods, reason = "no graph is built here")]
    candle_nn::ops::softmax_last_dim(&x)?.to_dtype(dtype)
}
