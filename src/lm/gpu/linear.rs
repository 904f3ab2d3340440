//! Linear layers with their biases and adapters.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

use super::attention::Heads;
use crate::lm::adapter::Adapter;
use crate::lm::decoder::{Dense, Layer, Linear};

/// Gradients by the names of weights: in the types of the weights, but f32 where several were added up.
#[derive(Debug, Default)]
pub(in crate::lm) struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    /// Adds to a weight's gradient.
    pub(super) fn add(&mut self, name: &str, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(name) {
            Some(sum) => (sum.to_dtype(DType::F32)? + gradient.to_dtype(DType::F32)?)?,
            None => gradient,
        };
        self.0.insert(name.to_owned(), sum);
        Ok(())
    }

    /// Takes a weight's gradient out.
    pub(in crate::lm) fn take(&mut self, name: &str) -> Option<Tensor> {
        self.0.remove(name)
    }
}

/// Whether a weight wants a gradient.
pub(super) fn wants(weight: &Tensor) -> bool {
    weight.track_op()
}

/// A layer's result for `x` (N, in): (N, out).
pub(super) fn linear(x: &Tensor, layer: &Linear) -> Result<Tensor> {
    let mut y = x.matmul(&layer.weight.detach().t()?)?;
    if let Some(bias) = &layer.bias {
        y = y.broadcast_add(&bias.detach())?;
    }
    add_adapter(y, x, layer.adapter.as_ref())
}

/// What an adapter adds to a layer's result.
pub(super) fn add_adapter(y: Tensor, x: &Tensor, adapter: Option<&Adapter>) -> Result<Tensor> {
    let Some(adapter) = adapter else { return Ok(y) };
    let (a, b) = matrices(adapter, x)?;
    let low = (x.matmul(&a.t()?)? * adapter.scale)?; // (N, r)
    y + low.matmul(&b.t()?)?
}

/// An adapter's matrices in the type that is computed in; they are f32 whatever the weights are.
fn matrices(adapter: &Adapter, x: &Tensor) -> Result<(Tensor, Tensor)> {
    Ok((adapter.a.detach().to_dtype(x.dtype())?, adapter.b.detach().to_dtype(x.dtype())?))
}

/// Queries (N, H, E), keys and values (N, K, E) of a layer, in one product if it can be. Heads of a token lie side by side,
/// tokens perhaps not.
pub(super) fn queries_keys_values(x: &Tensor, layer: &Layer, heads: Heads) -> Result<[Tensor; 3]> {
    let counts = [heads.queries, heads.keys, heads.keys];
    let Some(joined) = &layer.joined else {
        let of = |layer: &Linear, count: usize| linear(x, layer)?.reshape(((), count, heads.width));
        return Ok([of(&layer.query, counts[0])?, of(&layer.key, counts[1])?, of(&layer.value, counts[2])?]);
    };
    let all = joined.apply(x)?.reshape(((), counts.iter().sum::<usize>(), heads.width))?;
    let of = |layer: &Linear, first: usize, count: usize| {
        let part = all.narrow(1, first, count)?;
        if layer.adapter.is_none() {
            return Ok(part);
        }
        let part = part.reshape(((), count * heads.width))?;
        add_adapter(part, x, layer.adapter.as_ref())?.reshape(((), count, heads.width))
    };
    Ok([
        of(&layer.query, 0, counts[0])?,
        of(&layer.key, counts[0], counts[1])?,
        of(&layer.value, counts[0] + counts[1], counts[2])?,
    ])
}

/// Gate and up (N, F) of a feed-forward layer, in one product if it can be; then rows perhaps lie apart.
pub(super) fn gate_and_up(x: &Tensor, layer: &Dense) -> Result<[Tensor; 2]> {
    let Some(joined) = &layer.joined else { return Ok([linear(x, &layer.gate)?, linear(x, &layer.up)?]) };
    let both = joined.apply(x)?;
    let width = both.dim(1)? / 2;
    let of = |layer: &Linear, first: usize| add_adapter(both.narrow(1, first, width)?, x, layer.adapter.as_ref());
    Ok([of(&layer.gate, 0)?, of(&layer.up, width)?])
}

/// The gradient to a layer's input (N, in) from that to its result (N, out); those to its weights that want one go into
/// `gradients`.
pub(super) fn linear_back(x: &Tensor, layer: &Linear, gradient: &Tensor, gradients: &mut Gradients) -> Result<Tensor> {
    let mut to_x = gradient.matmul(&layer.weight.detach())?;
    if wants(&layer.weight) {
        gradients.add(&format!("{}.weight", layer.name), gradient.t()?.matmul(x)?)?;
    }
    if let Some(bias) = layer.bias.as_ref().filter(|bias| wants(bias)) {
        // As a product: f32 sums, whatever the type.
        let ones = gradient.narrow(1, 0, 1)?.ones_like()?.contiguous()?; // (N, 1)
        let sum = ones.t()?.matmul(gradient)?.reshape(bias.shape())?;
        gradients.add(&format!("{}.bias", layer.name), sum)?;
    }
    if let Some(adapter) = &layer.adapter {
        let (a, b) = matrices(adapter, x)?;
        let to_low = (gradient.matmul(&b)? * adapter.scale)?; // (N, r)
        let [(a_name, _), (b_name, _)] = adapter.named(&layer.name);
        if wants(&adapter.a) {
            gradients.add(&a_name, to_low.t()?.matmul(x)?.to_dtype(adapter.a.dtype())?)?;
        }
        if wants(&adapter.b) {
            let low = (x.matmul(&a.t()?)? * adapter.scale)?;
            gradients.add(&b_name, gradient.t()?.matmul(&low)?.to_dtype(adapter.b.dtype())?)?;
        }
        to_x = (to_x + to_low.matmul(&a)?)?;
    }
    Ok(to_x)
}
