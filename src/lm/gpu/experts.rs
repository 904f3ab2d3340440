//! A layer's second half: a feed-forward layer, or several of which each token uses some.

use candle_core::{D, DType, Result, Tensor};

use super::linear::{Gradients, gate_and_up, linear, linear_back, wants};
use super::ops::{softmax, swiglu, swiglu_back};
use crate::lm::decoder::{Dense, Mlp};
use crate::lm::plain::largest;

/// What a feed-forward layer's gradient is made from.
pub(super) struct DenseTrace {
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    inner: Tensor,
}

/// What the gradient is made from.
pub(super) enum Trace {
    Dense(DenseTrace),
    Experts(Box<Mixed>),
}

/// Tokens spread over experts.
pub(super) struct Mixed {
    x: Tensor,
    /// Softmax of the router's logits, f32: (N, X).
    likely: Tensor,
    /// Which experts each token uses: (N, P).
    chosen: Tensor,
    /// The weights of those before they are made to add up to 1, f32: (N, P).
    kept: Tensor,
    /// What is done with the results: (N, P) f32.
    shares: Tensor,
    /// Tokens of the rows, expert after expert: (N·P).
    tokens: Tensor,
    /// Which of (N, P) each row is: (N·P).
    order: Tensor,
    /// Which row is a token's `p`th: P of (N).
    rows: Vec<Tensor>,
    /// Experts that have rows, each with their number.
    used: Vec<(usize, usize)>,
    /// The experts' results: (N·P, D).
    results: Tensor,
    traces: Vec<DenseTrace>,
}

/// (N, D) to (N, D).
pub(super) fn forward(x: &Tensor, mlp: &Mlp) -> Result<(Tensor, Trace)> {
    match mlp {
        Mlp::Dense(layer) => {
            let (y, trace) = dense(x, layer)?;
            Ok((y, Trace::Dense(trace)))
        }
        Mlp::Experts { router, experts, per_token, normalise } => {
            let (y, mixed) = mixture(x, router, experts, *per_token, *normalise)?;
            Ok((y, Trace::Experts(Box::new(mixed))))
        }
    }
}

/// The gradient to the input from that to the result. `name` is the router's.
pub(super) fn backward(
    mlp: &Mlp,
    name: &str,
    trace: &Trace,
    gradient: &Tensor,
    gradients: &mut Gradients,
) -> Result<Tensor> {
    match (mlp, trace) {
        (Mlp::Dense(layer), Trace::Dense(trace)) => dense_back(layer, trace, gradient, gradients),
        (Mlp::Experts { router, experts, normalise, .. }, Trace::Experts(mixed)) => {
            mixed.backward((router, name), experts, *normalise, gradient, gradients)
        }
        _ => candle_core::bail!("the trace is of another layer"),
    }
}

fn dense(x: &Tensor, layer: &Dense) -> Result<(Tensor, DenseTrace)> {
    let [gate, up] = gate_and_up(x, layer)?;
    let inner = swiglu(&gate, &up)?;
    Ok((linear(&inner, &layer.down)?, DenseTrace { x: x.clone(), gate, up, inner }))
}

fn dense_back(layer: &Dense, trace: &DenseTrace, gradient: &Tensor, gradients: &mut Gradients) -> Result<Tensor> {
    let to_inner = linear_back(&trace.inner, &layer.down, gradient, gradients)?;
    let (to_gate, to_up) = swiglu_back(&trace.gate, &trace.up, &to_inner)?;
    drop(to_inner);
    linear_back(&trace.x, &layer.gate, &to_gate, gradients)? + linear_back(&trace.x, &layer.up, &to_up, gradients)?
}

/// The sum of the experts that each token uses. Rows are gathered, never scattered: each token has P of them.
fn mixture(
    x: &Tensor,
    router: &Tensor,
    experts: &[Dense],
    per_token: usize,
    normalise: bool,
) -> Result<(Tensor, Mixed)> {
    let device = x.device();
    let count = x.dim(0)?;
    let likely = softmax(&x.matmul(&router.detach().t()?)?.to_dtype(DType::F32)?)?; // (N, X)
    let chosen: Vec<Vec<usize>> = likely.to_vec2::<f32>()?.iter().map(|row| largest(row, per_token)).collect();
    let mut users: Vec<Vec<(usize, usize)>> = vec![Vec::new(); experts.len()];
    for (token, chosen) in chosen.iter().enumerate() {
        for (place, expert) in chosen.iter().enumerate() {
            users[*expert].push((token, place));
        }
    }
    let mut rows = vec![vec![0u32; count]; per_token];
    let (mut tokens, mut order) = (Vec::with_capacity(count * per_token), Vec::with_capacity(count * per_token));
    for (token, place) in users.iter().flatten() {
        rows[*place][*token] = tokens.len() as u32;
        tokens.push(*token as u32);
        order.push((token * per_token + place) as u32);
    }
    let used: Vec<(usize, usize)> = users.iter().map(Vec::len).enumerate().filter(|(_, count)| *count > 0).collect();
    let chosen: Vec<u32> = chosen.iter().flatten().map(|expert| *expert as u32).collect();
    let chosen = Tensor::from_vec(chosen, (count, per_token), device)?;
    let (tokens, order) = (Tensor::new(tokens.as_slice(), device)?, Tensor::new(order.as_slice(), device)?);
    let rows = rows.iter().map(|rows| Tensor::new(rows.as_slice(), device)).collect::<Result<Vec<_>>>()?;

    let kept = likely.gather(&chosen, 1)?;
    let shares = if normalise { kept.broadcast_div(&kept.sum_keepdim(D::Minus1)?)? } else { kept.clone() };
    let spread = x.index_select(&tokens, 0)?;
    let (mut results, mut traces, mut start) = (Vec::new(), Vec::new(), 0);
    for (expert, count) in &used {
        let (y, trace) = dense(&spread.narrow(0, start, *count)?, &experts[*expert])?;
        results.push(y);
        traces.push(trace);
        start += count;
    }
    let results = Tensor::cat(&results, 0)?;
    let mut sum: Option<Tensor> = None;
    for (place, rows) in rows.iter().enumerate() {
        let share = shares.narrow(1, place, 1)?.to_dtype(x.dtype())?;
        let part = results.index_select(rows, 0)?.broadcast_mul(&share)?;
        sum = Some(sum.map_or(Ok(part.clone()), |sum| sum + part)?);
    }
    let sum = sum.map_or_else(|| x.zeros_like(), Ok)?;
    Ok((sum, Mixed { x: x.clone(), likely, chosen, kept, shares, tokens, order, rows, used, results, traces }))
}

impl Mixed {
    fn backward(
        &self,
        (router, name): (&Tensor, &str),
        experts: &[Dense],
        normalise: bool,
        gradient: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let dtype = self.x.dtype();
        // To the shares: the gradient times what the expert gave.
        let wide = gradient.to_dtype(DType::F32)?;
        let of_place =
            |rows: &Tensor| (self.results.index_select(rows, 0)?.to_dtype(DType::F32)? * &wide)?.sum_keepdim(D::Minus1);
        let to_shares = Tensor::cat(&self.rows.iter().map(of_place).collect::<Result<Vec<_>>>()?, 1)?; // (N, P)
        let to_kept = if normalise {
            let along = (&to_shares * &self.shares)?.sum_keepdim(D::Minus1)?;
            to_shares.broadcast_sub(&along)?.broadcast_div(&self.kept.sum_keepdim(D::Minus1)?)?
        } else {
            to_shares
        };
        let to_likely = self.likely.zeros_like()?.scatter_add(&self.chosen, &to_kept, 1)?; // (N, X)
        let along = (&to_likely * &self.likely)?.sum_keepdim(D::Minus1)?;
        let to_logits = (to_likely.broadcast_sub(&along)? * &self.likely)?.to_dtype(dtype)?;
        if wants(router) {
            gradients.add(name, to_logits.t()?.matmul(&self.x)?)?;
        }
        let mut to_x = to_logits.matmul(&router.detach())?;

        // To the experts: the gradient of their tokens times their shares, in the order of the rows.
        let shares = self.shares.flatten_all()?.index_select(&self.order, 0)?.unsqueeze(1)?.to_dtype(dtype)?;
        let spread = gradient.index_select(&self.tokens, 0)?.broadcast_mul(&shares)?;
        let (mut parts, mut start) = (Vec::new(), 0);
        for ((expert, count), trace) in self.used.iter().zip(&self.traces) {
            parts.push(dense_back(&experts[*expert], trace, &spread.narrow(0, start, *count)?, gradients)?);
            start += count;
        }
        let parts = Tensor::cat(&parts, 0)?;
        for rows in &self.rows {
            to_x = (to_x + parts.index_select(rows, 0)?)?;
        }
        Ok(to_x)
    }
}
