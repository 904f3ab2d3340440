//! AdamW and `RMSprop`: one pass over parameter, moments and gradient, in place.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::LmError;

/// Numbers that one task updates; smaller tensors are not worth a second thread.
const CHUNK: usize = 1 << 15;

/// `optimizer = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Weight decay: apart from the gradient in AdamW, added to it in `RMSprop`, as in `PyTorch`.
    #[serde(default)]
    pub weight_decay: f64,
}

/// Optimisers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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

impl OptimizerSettings {
    /// The optimiser with its usual constants: betas .9 and .999, alpha .99, eps 1e-8, no weight decay.
    pub fn new(name: OptimizerName, lr: f64) -> Self {
        Self { name, lr, beta1: beta1(), beta2: beta2(), alpha: alpha(), eps: eps(), weight_decay: 0.0 }
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

/// A moment's name, and its numbers in the order of the parameter's.
pub type Moment<'a> = (String, Cow<'a, [f32]>);

/// A parameter and what the optimiser remembers of its gradients.
#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Var,
    moments: Moments,
}

/// The first moment is empty in `RMSprop`.
#[derive(Debug)]
enum Moments {
    /// On the CPU, updated by [`Update`].
    Host { first: Vec<f32>, second: Vec<f32> },
    /// Elsewhere, updated by candle's own operations.
    Device { first: Option<Tensor>, second: Tensor },
}

/// The numbers of one update.
#[derive(Debug, Clone, Copy)]
struct Rates {
    name: OptimizerName,
    /// Times the gradient, before all else: clipping.
    scale: f64,
    /// Learning rate, over AdamW's first bias correction.
    size: f64,
    /// Times the parameter, before the update (AdamW).
    keep: f64,
    /// Times the parameter, added to the gradient (`RMSprop`).
    pull: f64,
    /// First moment's decay.
    first: f64,
    /// Second moment's decay.
    second: f64,
    /// Under the root of the second moment: AdamW's second bias correction.
    root: f64,
    eps: f64,
}

impl Optimizer {
    /// Starts with moments of zero.
    ///
    /// Parameters are f32, contiguous; they are updated in place, and tensors that share their storage with them.
    pub fn new(settings: OptimizerSettings, parameters: &BTreeMap<String, Var>) -> Result<Self, LmError> {
        let has_first = settings.name == OptimizerName::AdamW;
        let slot = |(name, parameter): (&String, &Var)| -> Result<Slot, LmError> {
            let moments = if parameter.device().is_cpu() && parameter.dtype() == DType::F32 {
                let count = parameter.elem_count();
                Moments::Host { first: vec![0.0; if has_first { count } else { 0 }], second: vec![0.0; count] }
            } else {
                let first = has_first.then(|| parameter.zeros_like()).transpose()?;
                Moments::Device { first, second: parameter.zeros_like()? }
            };
            Ok(Slot { name: name.clone(), parameter: parameter.clone(), moments })
        };
        let slots = parameters.iter().map(slot).collect::<Result<_, _>>()?;
        Ok(Self { settings, steps: 0, slots })
    }

    /// Updates every parameter with its gradient times `scale`, at the learning rate `rate`.
    ///
    /// Costs no allocation on the CPU, and gives the same bits on any number of threads. Errs if a parameter has no
    /// gradient, before any is updated.
    pub fn step(&mut self, gradients: &BTreeMap<String, Tensor>, rate: f64, scale: f64) -> Result<(), LmError> {
        if let Some(slot) = self.slots.iter().find(|slot| !gradients.contains_key(&slot.name)) {
            return Err(LmError::NoGradient { name: slot.name.clone() });
        }
        self.steps += 1;
        let rates = self.rates(rate, scale);
        for slot in &mut self.slots {
            let gradient = gradients[&slot.name].contiguous()?;
            match &mut slot.moments {
                Moments::Host { first, second } => {
                    let update = Update { rates, moments: RefCell::new((first, second)) };
                    slot.parameter.inplace_op2(&gradient, &update)?;
                }
                Moments::Device { first, second } => {
                    let updated = plain(&rates, &slot.parameter, &gradient, first, second)?;
                    slot.parameter.set(&updated)?;
                }
            }
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

    /// The moments by name: `first.NAME`, `second.NAME`.
    pub fn state(&self) -> Result<Vec<Moment<'_>>, LmError> {
        let mut state = Vec::new();
        for Slot { name, moments, .. } in &self.slots {
            let (first, second) = match moments {
                Moments::Host { first, second } => {
                    ((!first.is_empty()).then_some(Cow::Borrowed(&first[..])), Cow::Borrowed(&second[..]))
                }
                Moments::Device { first, second } => {
                    let numbers = |of: &Tensor| of.flatten_all()?.to_vec1().map(Cow::Owned);
                    (first.as_ref().map(numbers).transpose()?, numbers(second)?)
                }
            };
            state.extend(first.map(|first| (format!("first.{name}"), first)));
            state.push((format!("second.{name}"), second));
        }
        Ok(state)
    }

    /// Goes on from what [`Optimizer::state`] gave after `steps` updates. Returns false, with nothing changed, if a moment
    /// is missing or of another size.
    pub fn restore(&mut self, steps: u64, state: &mut BTreeMap<String, Vec<f32>>) -> Result<bool, LmError> {
        let has_first = self.settings.name == OptimizerName::AdamW;
        let fits = |name: String, count: usize| state.get(&name).is_some_and(|moment| moment.len() == count);
        let all_fit = self.slots.iter().all(|Slot { name, parameter, .. }| {
            let count = parameter.elem_count();
            fits(format!("second.{name}"), count) && (!has_first || fits(format!("first.{name}"), count))
        });
        if !all_fit {
            return Ok(false);
        }
        for Slot { name, parameter, moments } in &mut self.slots {
            let mut take = |prefix: &str| state.remove(&format!("{prefix}.{name}")).unwrap_or_default();
            let (new_first, new_second) = (take("first"), take("second"));
            match moments {
                Moments::Host { first, second } => (*first, *second) = (new_first, new_second),
                Moments::Device { first, second } => {
                    let tensor = |of: Vec<f32>| Tensor::from_vec(of, parameter.shape(), parameter.device());
                    *first = has_first.then(|| tensor(new_first)).transpose()?;
                    *second = tensor(new_second)?;
                }
            }
        }
        self.steps = steps;
        Ok(true)
    }
}

/// The update on the CPU: first operand the parameter, second the gradient.
struct Update<'a> {
    rates: Rates,
    /// First and second moments.
    moments: RefCell<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "optimizer-update"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        parameter_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let whole = |layout: &Layout| {
            layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("not contiguous".to_owned()))
        };
        let (start, end) = whole(gradient_layout)?;
        let gradient = &gradient.as_slice::<f32>()?[start..end];
        let (start, end) = whole(parameter_layout)?;
        let CpuStorage::F32(parameter) = parameter else { candle_core::bail!("a parameter is not f32") };
        let parameter = &mut parameter[start..end];
        let mut moments = self.moments.borrow_mut();
        let (first, second) = &mut *moments;
        let rates = &self.rates;
        let (parameters, gradients) = (parameter.par_chunks_mut(CHUNK), gradient.par_chunks(CHUNK));
        match (rates.name, parameters.len()) {
            (OptimizerName::AdamW, 0 | 1) => adamw(rates, parameter, first, second, gradient),
            (OptimizerName::RmsProp, 0 | 1) => rmsprop(rates, parameter, second, gradient),
            (OptimizerName::AdamW, _) => {
                let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
                parameters.zip(moments).zip(gradients).for_each(|((parameter, (first, second)), gradient)| {
                    adamw(rates, parameter, first, second, gradient);
                });
            }
            (OptimizerName::RmsProp, _) => {
                let moments = second.par_chunks_mut(CHUNK);
                parameters.zip(moments).zip(gradients).for_each(|((parameter, second), gradient)| {
                    rmsprop(rates, parameter, second, gradient);
                });
            }
        }
        Ok(())
    }
}

/// The order of operations is that of `torch.optim.AdamW`.
fn adamw(rates: &Rates, parameter: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
    let (scale, keep, size) = (rates.scale as f32, rates.keep as f32, rates.size as f32);
    let (new_first, second_kept, new_second) =
        ((1.0 - rates.first) as f32, rates.second as f32, (1.0 - rates.second) as f32);
    let (root, eps) = (rates.root as f32, rates.eps as f32);
    for (((parameter, first), second), gradient) in parameter.iter_mut().zip(first).zip(second).zip(gradient) {
        let gradient = gradient * scale;
        *first += (gradient - *first) * new_first;
        *second = *second * second_kept + gradient * gradient * new_second;
        *parameter = *parameter * keep - size * (*first / (second.sqrt() / root + eps));
    }
}

/// The order of operations is that of `torch.optim.RMSprop`: no momentum, not centred, no bias correction.
fn rmsprop(rates: &Rates, parameter: &mut [f32], second: &mut [f32], gradient: &[f32]) {
    let (scale, pull, size) = (rates.scale as f32, rates.pull as f32, rates.size as f32);
    let (kept, new, eps) = (rates.second as f32, (1.0 - rates.second) as f32, rates.eps as f32);
    for ((parameter, second), gradient) in parameter.iter_mut().zip(second).zip(gradient) {
        let gradient = gradient * scale + *parameter * pull;
        *second = *second * kept + gradient * gradient * new;
        *parameter -= size * (gradient / (second.sqrt() + eps));
    }
}

/// The same in candle's operations, for devices without a kernel here. Returns the parameter's new value.
fn plain(
    rates: &Rates,
    parameter: &Var,
    gradient: &Tensor,
    first: &mut Option<Tensor>,
    second: &mut Tensor,
) -> Result<Tensor, LmError> {
    let parameter = parameter.as_detached_tensor();
    let gradient = ((gradient.detach() * rates.scale)? + (&parameter * rates.pull)?)?;
    *second = ((&*second * rates.second)? + (gradient.sqr()? * (1.0 - rates.second))?)?;
    let direction = match first {
        Some(first) => {
            *first = (&*first + ((&gradient - &*first)? * (1.0 - rates.first))?)?;
            first.clone()
        }
        None => gradient,
    };
    let denominator = ((second.sqrt()? / rates.root)? + rates.eps)?;
    Ok(((parameter * rates.keep)? - ((direction / denominator)? * rates.size)?)?)
}

#[cfg(test)]
mod tests;
