//! The decoder as one operation of candle's graph, whatever computes it.
//!
//! Forward and backward pass run outside of the graph, which would copy every intermediate gradient twice. An operation
//! there has at most three inputs, though, and the decoder has many weights. So the result goes through a chain of
//! operations that change nothing, one for each weight: on the way back, the first to be asked (the last of the chain) runs
//! the backward pass, and each hands its weight's gradient to candle. The trainer goes without: it adds the gradients of
//! several passes up in one place (`train/pass.rs`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout as Strides, Shape, Tensor};

use super::cpu::Keep;
use super::{LmError, Model, Sequence};

/// A model's pass over a batch: scores, and afterwards the gradients of a loss that knows the model through them.
pub(super) trait Scores: Sized + Send + 'static {
    /// Of the weights that want one.
    type Gradients: Default + Send + 'static;

    /// Scores the response tokens of sequences, at least one: log-probabilities, and KL(policy‖reference), if there is a
    /// reference.
    fn new(model: &Model, reference: Option<&Model>, sequences: &[Sequence], keep: Keep) -> Result<Self, LmError>;

    /// Log-probabilities and divergences: (outputs) each.
    fn take(&mut self) -> (Vec<f32>, Option<Vec<f32>>);

    /// Adds the gradients to all weights that want one, from those to log-probabilities and divergences (outputs each, or
    /// no divergences). Memory of the pass is let go of on the way.
    fn backward(self, logprobs: &[f32], kls: &[f32], gradients: &mut Self::Gradients) -> Result<(), LmError>;

    /// Takes a weight's gradient out, in the weight's form.
    fn gradient(gradients: &mut Self::Gradients, name: &str, weight: &Tensor) -> candle_core::Result<Option<Tensor>>;
}

/// A pass, and what its backward pass gave.
struct Tape<S: Scores> {
    outputs: usize,
    /// Taken by the chain's last operation, which fills the gradients; the others empty them.
    state: Mutex<(Option<S>, S::Gradients)>,
}

impl<S: Scores> Tape<S> {
    fn state(&self) -> MutexGuard<'_, (Option<S>, S::Gradients)> {
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
}

/// One link of the chain: gives its weight the gradient.
struct Link<S: Scores> {
    tape: Arc<Tape<S>>,
    weight: String,
    first: bool,
    last: bool,
}

impl<S: Scores> CustomOp2 for Link<S> {
    fn name(&self) -> &'static str {
        "decoder"
    }

    fn cpu_fwd(
        &self,
        values: &CpuStorage,
        strides: &Strides,
        _: &CpuStorage,
        _: &Strides,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((values.try_clone(strides)?, strides.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        values: &CudaStorage,
        strides: &Strides,
        _: &CudaStorage,
        _: &Strides,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((values.try_clone(strides)?, strides.shape().clone()))
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
        let to_weight = S::gradient(&mut self.tape.state().1, &self.weight, weight)?;
        Ok(((!self.first).then(|| gradient.clone()), to_weight))
    }
}

/// Log-probabilities of the sequences' response tokens (outputs), and KL(policy‖reference) there, if there is a reference.
///
/// With gradients, if a weight of the model wants one and anything is kept for it.
pub(super) fn scores_of<S: Scores>(
    model: &Model,
    reference: Option<&Model>,
    sequences: &[Sequence],
    keep: Keep,
) -> Result<(Tensor, Option<Tensor>), LmError> {
    if sequences.iter().all(|sequence| sequence.ids.len() == sequence.prompt) {
        let nothing = || Tensor::zeros(0, DType::F32, model.device());
        return Ok((nothing()?, reference.map(|_| nothing()).transpose()?));
    }
    let wanted: Vec<(String, &Tensor)> = if keep == Keep::Nothing { Vec::new() } else { model.wanted().collect() };
    let keep = if wanted.is_empty() { Keep::Nothing } else { keep };
    let mut scored = S::new(model, reference, sequences, keep)?;
    let (mut values, kls) = scored.take();
    let outputs = values.len();
    values.extend(kls.unwrap_or_default());
    let length = values.len();
    let mut result = Tensor::from_vec(values, length, model.device())?;
    let tape = Arc::new(Tape { outputs, state: Mutex::new((Some(scored), S::Gradients::default())) });
    for (index, (name, weight)) in wanted.iter().enumerate() {
        let (first, last) = (index == 0, index + 1 == wanted.len());
        let link = Link { tape: Arc::clone(&tape), weight: name.clone(), first, last };
        result = result.apply_op2(weight, link)?;
    }
    let kl = reference.map(|_| result.narrow(0, outputs, outputs)).transpose()?;
    Ok((if length == outputs { result } else { result.narrow(0, 0, outputs)? }, kl))
}
