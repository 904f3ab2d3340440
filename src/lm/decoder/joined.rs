//! Weights that one product reads: parts of one tensor, one below the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::super::LmError;
use super::{Dense, Linear, Mlp, Model};

/// Linear layers of the same input, as one.
#[derive(Debug, Clone)]
pub(in crate::lm) struct Joined {
    weight: Tensor,       // (all their outputs, in)
    bias: Option<Tensor>, // (all their outputs)
}

impl Joined {
    /// Their results for `x` (N, in), side by side and without what adapters add: (N, all their outputs).
    pub(in crate::lm) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.broadcast_add(bias),
        }
    }

    /// Joins layers, which then have parts of the joined weight for their own; so do `weights`. `None`, with nothing
    /// changed, where a weight is a variable, or only some have a bias.
    fn of(linears: &mut [&mut Linear], weights: &mut BTreeMap<String, Tensor>) -> Result<Option<Self>> {
        let biases: Option<Vec<&Tensor>> = linears.iter().map(|linear| linear.bias.as_ref()).collect();
        let some = linears.iter().any(|linear| linear.bias.is_some());
        if linears.iter().any(|linear| linear.weight.track_op()) || (some && biases.is_none()) {
            return Ok(None);
        }
        let bias = biases.map(|biases| Tensor::cat(&biases, 0)).transpose()?;
        let parts: Vec<&Tensor> = linears.iter().map(|linear| &linear.weight).collect();
        let weight = Tensor::cat(&parts, 0)?;
        let mut start = 0;
        for linear in linears {
            let outputs = linear.weight.dim(0)?;
            linear.weight = weight.narrow(0, start, outputs)?;
            weights.insert(format!("{}.weight", linear.name), linear.weight.clone());
            start += outputs;
        }
        Ok(Some(Self { weight, bias }))
    }
}

impl Dense {
    fn join(&mut self, weights: &mut BTreeMap<String, Tensor>) -> Result<()> {
        self.joined = Joined::of(&mut [&mut self.gate, &mut self.up], weights)?;
        Ok(())
    }
}

impl Model {
    /// The model with the weights of queries, keys and values side by side, and those of gate and up. One layer's at a
    /// time are there twice, as long as nobody else holds them. A layer that has variables stays as it is.
    pub fn joined(mut self) -> std::result::Result<Self, LmError> {
        let (mut weights, mut layers) = ((*self.weights).clone(), (*self.layers).clone());
        (self.weights, self.layers) = (Arc::default(), Arc::default());
        for layer in &mut layers {
            let mut linears = [&mut layer.query, &mut layer.key, &mut layer.value];
            layer.joined = Joined::of(&mut linears, &mut weights)?;
            match &mut layer.mlp {
                Mlp::Dense(dense) => dense.join(&mut weights)?,
                Mlp::Experts { experts, .. } => experts.iter_mut().try_for_each(|dense| dense.join(&mut weights))?,
            }
        }
        (self.weights, self.layers) = (Arc::new(weights), Arc::new(layers));
        Ok(self)
    }
}
