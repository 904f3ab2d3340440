//! The decoder as one operation of candle's graph.
//!
//! Forward and backward pass run outside of the graph, which would copy every intermediate gradient twice. An operation
//! there has at most three inputs, though, and the decoder has many weights. So the result goes through a chain of
//! operations that change nothing, one for each weight: on the way back, the first to be asked (the last of the chain) runs
//! the backward pass, and each hands its weight's gradient to candle.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout as Strides, Shape, Tensor};

use super::attention;
use super::backward::{Gradients, Pass};
use super::forward::{Context, Saved, layers};
use super::head::{Hidden, scores};
use super::layout::Layout;
use crate::lm::{LmError, Model, Sequence};

/// A model's pass over a batch, up to the normalised hidden states.
struct Run {
    context: Context,
    x: super::pool::Buffer,
    hidden: Hidden,
}

impl Run {
    fn new(model: &Model, layout: &Layout, saved: Option<&mut Vec<Saved>>) -> Result<Self, LmError> {
        let positions = layout.positions.iter().max().map_or(0, |last| *last as usize + 1);
        let context = Context::new(model, positions)?;
        let attend = |_: usize, shape: &attention::Shape, qkv: &[f32], mixed: &mut [f32]| {
            attention::forward(shape, &layout.groups, qkv, mixed, &context.pool);
        };
        let x = layers(&context, model, layout, attend, saved)?;
        let hidden = Hidden::new(&context, &x);
        Ok(Self { context, x, hidden })
    }
}

/// What the backward pass needs of the forward pass.
struct Tape {
    model: Model,
    layout: Layout,
    saved: Vec<Saved>,
    run: Run,
    reference: Option<Run>,
    /// Filled by the chain's last operation, emptied by the others.
    gradients: Mutex<Gradients>,
}

impl Tape {
    fn gradients(&self) -> std::sync::MutexGuard<'_, Gradients> {
        self.gradients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backward(&self, gradient: &Tensor) -> Result<(), LmError> {
        let gradient = gradient.to_vec1::<f32>()?;
        let (logprobs, kls) = gradient.split_at(self.layout.outputs);
        let pass = Pass {
            context: &self.run.context,
            model: &self.model,
            layout: &self.layout,
            saved: &self.saved,
            x: &self.run.x,
            hidden: &self.run.hidden,
            // Without a gradient to the divergences they need not be computed.
            reference: self
                .reference
                .as_ref()
                .filter(|_| kls.iter().any(|gradient| *gradient != 0.0))
                .map(|run| (&run.context, &run.hidden)),
        };
        let gradients = in_pool(|| pass.backward(logprobs, kls))?;
        *self.gradients() = gradients;
        Ok(())
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
        _weight: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        if self.last {
            self.tape.backward(gradient).map_err(|error| candle_core::Error::Msg(error.to_string()).bt())?;
        }
        let to_weight = self.tape.gradients().remove(&self.weight);
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
    let layout = Layout::new(sequences);
    let outputs = layout.outputs;
    let wanted: Vec<&String> = if graph {
        model.weights().iter().filter(|(_, weight)| weight.track_op()).map(|(name, _)| name).collect()
    } else {
        Vec::new()
    };
    if outputs == 0 {
        let nothing = || Tensor::zeros(0, DType::F32, &Device::Cpu);
        return Ok((nothing()?, reference.map(|_| nothing()).transpose()?));
    }
    let (tape, mut values) = in_pool(|| {
        let mut saved = Vec::new();
        let mut run = Run::new(model, &layout, (!wanted.is_empty()).then_some(&mut saved))?;
        let mut reference = reference.map(|model| Run::new(model, &layout, None)).transpose()?;
        let theirs = reference.as_mut().map(|run| (&run.context, &mut run.hidden));
        let (mut values, kls) = scores(&run.context, &mut run.hidden, theirs, &layout);
        values.extend(kls.unwrap_or_default());
        let tape = Tape { model: model.clone(), layout, saved, run, reference, gradients: Mutex::default() };
        Ok::<_, LmError>((Arc::new(tape), values))
    })
    .map(|(tape, values)| (tape, values.into_iter().collect::<Vec<f32>>()))?;
    let length = values.len();
    let mut result = Tensor::from_vec(std::mem::take(&mut values), length, &Device::Cpu)?;
    for (index, name) in wanted.iter().enumerate() {
        let link = Link {
            tape: Arc::clone(&tape),
            weight: (*name).clone(),
            first: index == 0,
            last: index + 1 == wanted.len(),
        };
        result = result.apply_op2(&model.weights()[*name], link)?;
    }
    let kl = reference.map(|_| result.narrow(0, outputs, outputs)).transpose()?;
    Ok((if length == outputs { result } else { result.narrow(0, 0, outputs)? }, kl))
}
