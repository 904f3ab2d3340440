//! AdamW and `RMSprop`: one pass over parameter, moments and gradient, in place.

mod eight;
mod moments;
#[cfg(test)]
mod tests;
mod update;

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::moments::Moments;
pub use self::moments::{Moment, Numbers};
pub(in crate::lm) use self::update::{Rates, plain as plain_update};
use super::LmError;
use super::random::{Stream, hash};

/// `optimizer = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSettings {
    /// `adamw` or `rmsprop`.
    #[serde(default)]
    pub name: OptimizerName,
    /// Learning rate.
    pub lr: f64,
    /// First moment's decay (AdamW).
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// Second moment's decay (AdamW).
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// Squared gradient's decay (`RMSprop`).
    #[serde(default = "alpha")]
    pub alpha: f64,
    /// Keeps the denominator from zero.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Bits of a moment: 32, or 8 (see `eight.rs`), which makes the optimiser's memory a quarter.
    #[serde(default = "state_bits")]
    pub state_bits: u32,
    /// Weight decay: apart from the gradient in AdamW, added to it in `RMSprop`, as in `PyTorch`.
    #[serde(default)]
    pub weight_decay: f64,
}

/// Optimisers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Loshchilov and Hutter 2019.
    #[default]
    AdamW,
    /// Hinton 2012; what the authors of SAMI used.
    RmsProp,
}

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.999
}

fn alpha() -> f64 {
    0.99
}

fn eps() -> f64 {
    1e-8
}

fn state_bits() -> u32 {
    32
}

impl OptimizerSettings {
    /// The optimiser with its usual constants: betas .9 and .999, alpha .99, eps 1e-8, no weight decay,
    /// moments in f32.
    pub fn new(name: OptimizerName, lr: f64) -> Self {
        Self {
            name,
            lr,
            beta1: beta1(),
            beta2: beta2(),
            alpha: alpha(),
            eps: eps(),
            state_bits: state_bits(),
            weight_decay: 0.0,
        }
    }
}

/// An optimiser and its state over a set of parameters.
#[derive(Debug)]
pub struct Optimizer {
    settings: OptimizerSettings,
    /// Updates done.
    steps: u64,
    slots: Vec<Slot>,
}

/// A parameter and what the optimiser remembers of its gradients.
#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Var,
    moments: Moments,
    /// What rounding is random by.
    key: u64,
}

impl Optimizer {
    /// Starts with moments of zero.
    ///
    /// Parameters are f32, contiguous; they are updated in place, and tensors that share their storage with them.
    pub fn new(settings: OptimizerSettings, parameters: &BTreeMap<String, Var>) -> Result<Self, LmError> {
        let slot = |(name, parameter): (&String, &Var)| -> Result<Slot, LmError> {
            Ok(Slot {
                name: name.clone(),
                parameter: parameter.clone(),
                moments: Moments::new(&settings, parameter)?,
                key: Stream::new(0, name).bits(),
            })
        };
        let slots = parameters.iter().map(slot).collect::<Result<_, _>>()?;
        Ok(Self { settings, steps: 0, slots })
    }

    /// Updates every parameter with its gradient times `scale`, at the learning rate `rate`.
    ///
    /// Costs no allocation on the CPU, and gives the same bits on any number of threads. Errs if a parameter has no
    /// gradient, before any is updated.
    pub fn step(&mut self, gradients: &BTreeMap<String, Tensor>, rate: f64, scale: f64) -> Result<(), LmError> {
        self.step_with(gradients, rate, scale, None)
    }

    /// As [`Optimizer::step`]; `copies` of parameters, rounded to another type, follow them.
    pub(in crate::lm) fn step_with(
        &mut self,
        gradients: &BTreeMap<String, Tensor>,
        rate: f64,
        scale: f64,
        copies: Option<&BTreeMap<String, Var>>,
    ) -> Result<(), LmError> {
        if let Some(slot) = self.slots.iter().find(|slot| !gradients.contains_key(&slot.name)) {
            return Err(LmError::NoGradient { name: slot.name.clone() });
        }
        self.steps += 1;
        let rates = self.rates(rate, scale);
        for slot in &mut self.slots {
            let copy = copies.and_then(|copies| copies.get(&slot.name));
            let key = hash(slot.key, self.steps);
            update::update(&rates, (&slot.parameter, copy), &gradients[&slot.name], &mut slot.moments, key)?;
        }
        Ok(())
    }

    fn rates(&self, rate: f64, scale: f64) -> Rates {
        let settings = &self.settings;
        let steps = self.steps.min(i32::MAX as u64) as i32;
        match settings.name {
            OptimizerName::AdamW => Rates {
                name: settings.name,
                scale,
                size: rate / (1.0 - settings.beta1.powi(steps)),
                keep: 1.0 - rate * settings.weight_decay,
                pull: 0.0,
                first: settings.beta1,
                second: settings.beta2,
                root: (1.0 - settings.beta2.powi(steps)).sqrt(),
                eps: settings.eps,
            },
            OptimizerName::RmsProp => Rates {
                name: settings.name,
                scale,
                size: rate,
                keep: 1.0,
                pull: settings.weight_decay,
                first: 0.0,
                second: settings.alpha,
                root: 1.0,
                eps: settings.eps,
            },
        }
    }

    /// Updates done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments by name: `first.NAME`, `second.NAME`; of eight bits with `scale.first.NAME`, `scale.second.NAME`.
    pub fn state(&self) -> Result<Vec<Moment<'_>>, LmError> {
        let mut state = Vec::new();
        for Slot { name, moments, .. } in &self.slots {
            let parts = moments.parts()?.into_iter();
            state.extend(parts.map(|(part, numbers)| (format!("{part}.{name}"), numbers)));
        }
        Ok(state)
    }

    /// Goes on from what [`Optimizer::state`] gave after `steps` updates. Returns false, with nothing changed, if a moment
    /// is missing or of another size.
    pub fn restore(&mut self, steps: u64, state: &mut BTreeMap<String, Numbers<'static>>) -> Result<bool, LmError> {
        for Slot { name, moments, .. } in &self.slots {
            let fits = |(part, numbers): (&str, Numbers<'_>)| {
                state.get(&format!("{part}.{name}")).is_some_and(|found| found.is_like(&numbers))
            };
            if !moments.parts()?.into_iter().all(fits) {
                return Ok(false);
            }
        }
        for Slot { name, moments, parameter, .. } in &mut self.slots {
            moments.restore(parameter, |part| state.remove(&format!("{part}.{name}")))?;
        }
        self.steps = steps;
        Ok(true)
    }
}
