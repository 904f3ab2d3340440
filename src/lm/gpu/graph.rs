//! A pass over a batch: scores, and the gradients of a loss that knows the model through them; the same in candle's graph.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout as Strides, Shape, Tensor};

use super::head;
use super::linear::Gradients;
use super::pass::Pass;
use crate::lm::cpu::Keep;
use crate::lm::layout::Layout;
use crate::lm::{LmError, Model, Sequence};

/// What a pass gave, and what its way back needs.
pub(in crate::lm) struct Scored {
    model: Model,
    layout: Layout,
    pass: Pass,
    reference: Option<(Model, Tensor)>,
    logprobs: Vec<f32>,
    kls: Option<Vec<f32>>,
}

impl Scored {
    /// Scores the response tokens of sequences, at least one: log-probabilities, and KL(policy‖reference), if there is a
    /// reference.
    pub(in crate::lm) fn new(
        model: &Model,
        reference: Option<&Model>,
        sequences: &[Sequence],
        keep: Keep,
    ) -> Result<Self, LmError> {
        let layout = Layout::new(sequences);
        if layout.outputs == 0 {
            return Err(LmError::Sequence { row: 0, what: "has no response, nor have the others".to_owned() });
        }
        let nothing = |_, _: &Tensor, _: &Tensor| Ok(());
        let reference = match reference {
            None => None,
            Some(model) => Some((model.clone(), Pass::new(model, &layout, Keep::Nothing, nothing)?.hidden)),
        };
        let pass = Pass::new(model, &layout, keep, nothing)?;
        let theirs = reference.as_ref().map(|(model, hidden)| (model, hidden));
        let (logprobs, kls) = head::scores(model, &pass.hidden, theirs, &layout)?;
        Ok(Self { model: model.clone(), layout, pass, reference, logprobs, kls })
    }

    /// Log-probabilities and divergences: (outputs) each.
    pub(in crate::lm) fn take(&mut self) -> (Vec<f32>, Option<Vec<f32>>) {
        (std::mem::take(&mut self.logprobs), self.kls.take())
    }

    /// Adds the gradients to all weights that want one, from those to log-probabilities and divergences (outputs each).
    pub(in crate::lm) fn backward(
        self,
        logprobs: &[f32],
        kls: &[f32],
        gradients: &mut Gradients,
    ) -> Result<(), LmError> {
        let Self { model, layout, pass, reference, .. } = self;
        let theirs = reference.as_ref().map(|(model, hidden)| (model, hidden));
        let to_hidden = head::backward(&model, &pass.hidden, theirs, &layout, (logprobs, kls), gradients)?;
        drop(reference);
        pass.backward(&model, &to_hidden, gradients)?;
        Ok(())
    }
}

/// A pass, and what its way back gave.
struct Tape {
    outputs: usize,
    /// Taken by the last link of the chain, which fills the gradients; the others empty them.
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
        let again = || LmError::Candle(candle_core::Error::Msg("a pass has one way back".to_owned()).bt());
        scored.take().ok_or_else(again)?.backward(logprobs, kls, gradients)
    }
}

/// One link of a chain that gives each weight its gradient: an operation of candle's graph has at most three inputs.
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
        let to_weight = self.tape.state().1.take(&self.weight);
        let to_weight = to_weight.map(|gradient| gradient.to_dtype(weight.dtype())).transpose()?;
        Ok(((!self.first).then(|| gradient.clone()), to_weight))
    }
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
    scores_keeping(model, reference, sequences, if graph { Keep::Everything } else { Keep::Nothing })
}

/// As [`scores_of`], with a graph if anything is kept for it.
pub(super) fn scores_keeping(
    model: &Model,
    reference: Option<&Model>,
    sequences: &[Sequence],
    keep: Keep,
) -> Result<(Tensor, Option<Tensor>), LmError> {
    let outputs = sequences.iter().map(|sequence| sequence.ids.len() - sequence.prompt).sum();
    if outputs == 0 {
        let nothing = || Tensor::zeros(0, DType::F32, model.device());
        return Ok((nothing()?, reference.map(|_| nothing()).transpose()?));
    }
    let wanted: Vec<(String, &Tensor)> = if keep == Keep::Nothing { Vec::new() } else { model.wanted().collect() };
    let keep = if wanted.is_empty() { Keep::Nothing } else { keep };
    let mut scored = Scored::new(model, reference, sequences, keep)?;
    let (mut values, kls) = scored.take();
    values.extend(kls.unwrap_or_default());
    let length = values.len();
    let mut result = Tensor::from_vec(values, length, model.device())?;
    let tape = Arc::new(Tape { outputs, state: Mutex::new((Some(scored), Gradients::default())) });
    for (index, (name, weight)) in wanted.iter().enumerate() {
        let (first, last) = (index == 0, index + 1 == wanted.len());
        let link = Link { tape: Arc::clone(&tape), weight: name.clone(), first, last };
        result = result.apply_op2(weight, link)?;
    }
    let kl = reference.map(|_| result.narrow(0, outputs, outputs)).transpose()?;
    Ok((if length == outputs { result } else { result.narrow(0, 0, outputs)? }, kl))
}
