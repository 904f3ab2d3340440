//! The decoder as one operation of candle's graph.
//!
//! Forward and backward pass run outside of the graph, which would copy every intermediate gradient twice. An operation
//! there has at most three inputs, though, and the decoder has many weights. So the result goes through a chain of
//! operations that change nothing, one for each weight: on the way back, the first to be asked (the last of the chain) runs
//! the backward pass, and each hands its weight's gradient to candle. The trainer goes without: it adds the gradients of
//! several passes up in one place (`scored.rs`).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout as Strides, Shape, Tensor};

use super::gradients::Gradients;
use super::scored::{Keep, Scored};
use crate::lm::{LmError, Model, Sequence};

/// A pass, and what its backward pass gave.
struct Tape {
    outputs: usize,
    /// Taken by the chain's last operation, which fills the gradients; the others empty them.
    state: Mutex<(Option<Scored>, Gradients)>,
}

impl Tape {
    fn state(&self) -> std::sync::MutexGuard<'_, (Option<Scored>, Gradients)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backward(&self, gradient: &Tensor) -> Result<(), LmError> {
        let gradient = gradient.to_vec1::<f32>()?;
        let (logprobs, kls) = gradient.split_at(self.outputs);
        let (scored, gradients) = &mut *self.state();
        let scored = scored
            .take()
            .ok_or_else(|| LmError::Candle(candle_core::Error::Msg("a pass has one backward pass".to_owned()).bt()))?;
        scored.backward(logprobs, kls, gradients)
    }

    /// The gradient to a weight, once it is there.
    fn take(&self, name: &str, weight: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let numbers = self.state().1.take(name);
        numbers.map(|numbers| Tensor::from_vec(numbers, weight.shape(), &Device::Cpu)).transpose()
    }
}

/// One link of the chain: gives its weight the gradient.
struct Link {
    tape: Arc<Tape>,
    weight: String,
    first: bool,
    last: bool,
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "decoder"
    }

    fn cpu_fwd(
        &self,
        values: &CpuStorage,
        strides: &Strides,
        _weight: &CpuStorage,
        _: &Strides,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (start, end) = strides
            .contiguous_offsets()
            .ok_or_else(|| candle_core::Error::Msg("the chain of the decoder was cut".to_owned()).bt())?;
        Ok((CpuStorage::F32(values.as_slice::<f32>()?[start..end].to_vec()), strides.shape().clone()))
    }

    fn bwd(
        &self,
        _values: &Tensor,
        weight: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        if self.last {
            self.tape.backward(gradient).map_err(|error| candle_core::Error::Msg(error.to_string()).bt())?;
        }
        let to_weight = self.tape.take(&self.weight, weight)?;
        Ok(((!self.first).then(|| gradient.clone()), to_weight))
    }
}

/// Runs work on the threads of the pool, so that it is not woken for every part of it.
pub(in crate::lm) fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::join(work, || ()).0
}

/// Log-probabilities of the sequences' response tokens (outputs), and KL(policy‖reference) there, if there is a reference.
///
/// With gradients, if a weight of the model wants one and `graph` says so.
pub(in crate::lm) fn scores_of(
    model: &Model,
    reference: Option<&Model>,
    sequences: &[Sequence],
    graph: bool,
) -> Result<(Tensor, Option<Tensor>), LmError> {
    let wanted: Vec<(String, &Tensor)> = if graph { model.wanted().collect() } else { Vec::new() };
    if sequences.iter().all(|sequence| sequence.ids.len() == sequence.prompt) {
        let nothing = || Tensor::zeros(0, DType::F32, &Device::Cpu);
        return Ok((nothing()?, reference.map(|_| nothing()).transpose()?));
    }
    let keep = if wanted.is_empty() { Keep::Nothing } else { Keep::Everything };
    let mut scored = Scored::new(model, reference, sequences, keep)?;
    let (mut values, kls) = scored.take();
    let outputs = values.len();
    values.extend(kls.unwrap_or_default());
    let length = values.len();
    let mut result = Tensor::from_vec(values, length, &Device::Cpu)?;
    let tape = Arc::new(Tape { outputs, state: Mutex::new((Some(scored), Gradients::default())) });
    for (index, (name, weight)) in wanted.iter().enumerate() {
        let link =
            Link { tape: Arc::clone(&tape), weight: name.clone(), first: index == 0, last: index + 1 == wanted.len() };
        result = result.apply_op2(weight, link)?;
    }
    let kl = reference.map(|_| result.narrow(0, outputs, outputs)).transpose()?;
    Ok((if length == outputs { result } else { result.narrow(0, 0, outputs)? }, kl))
}
