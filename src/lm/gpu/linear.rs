//! Linear layers with their biases and adapters.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use crate::lm::decoder::{Adapter, Linear};

/// Gradients by the names of weights, in the types of the weights.
#[derive(Debug, Default)]
pub(super) struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    /// Adds to a weight's gradient.
    pub(super) fn add(&mut self, name: &str, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(name) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.0.insert(name.to_owned(), sum);
        Ok(())
    }

    /// Takes a weight's gradient out.
    pub(super) fn take(&mut self, name: &str) -> Option<Tensor> {
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
    let Some(Adapter { a, b, scale, .. }) = adapter else { return Ok(y) };
    let low = (x.matmul(&a.detach().t()?)? * *scale)?; // (N, r)
    y + low.matmul(&b.detach().t()?)?
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
    if let Some(Adapter { a, b, scale, .. }) = &layer.adapter {
        let to_low = (gradient.matmul(&b.detach())? * *scale)?; // (N, r)
        if wants(a) {
            gradients.add(&a_name(layer), to_low.t()?.matmul(x)?)?;
        }
        if wants(b) {
            let low = (x.matmul(&a.detach().t()?)? * *scale)?;
            gradients.add(&b_name(layer), gradient.t()?.matmul(&low)?)?;
        }
        to_x = (to_x + to_low.matmul(&a.detach())?)?;
    }
    Ok(to_x)
}

/// The name of the first matrix of a layer's adapter.
pub(super) fn a_name(layer: &Linear) -> String {
    format!("{}.lora_A.weight", layer.name)
}

/// The name of the second.
pub(super) fn b_name(layer: &Linear) -> String {
    format!("{}.lora_B.weight", layer.name)
}
