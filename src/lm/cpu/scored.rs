//! A pass over a batch: scores, and afterwards the gradients of a loss that knows the model through them.

use candle_core::{Device, Tensor};

use super::attention::{self, Shape};
use super::backward::Pass;
use super::forward::{Context, Traces, layers};
use super::gradients::Gradients;
use super::head::{Hidden, scores};
use super::layout::Layout;
use super::pool::Buffer;
use crate::lm::graph::Scores;
use crate::lm::memory::guarded;
use crate::lm::{LmError, Model, Sequence};

/// How much a pass keeps for the gradient. The gradient is the same, to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lm) enum Keep {
    /// Nothing: there will be none.
    Nothing,
    /// Each layer's input; the rest is made again, a layer at a time.
    Inputs,
    /// All that is not made again cheaply.
    Everything,
}

/// A model's pass over a batch, up to the normalised hidden states.
struct Run {
    context: Context,
    traces: Traces,
    /// The residual stream after the last layer, of the chosen tokens: (M, D).
    x: Buffer,
    hidden: Hidden,
}

/// Attention of a batch, as [`layers`] wants it.
pub(super) fn attend(context: &Context, layout: &Layout) -> impl Fn(usize, &Shape, &[f32], &mut [f32]) {
    |_, shape, qkv, mixed| attention::forward(shape, &layout.groups, qkv, mixed, &context.pool)
}

impl Run {
    fn new(model: &Model, layout: &Layout, keep: Keep) -> Result<Self, LmError> {
        let positions = layout.positions.iter().max().map_or(0, |last| *last as usize + 1);
        let context = Context::new(model, positions)?;
        let mut traces = Traces { whole: keep == Keep::Everything, layers: Vec::new() };
        let into = (keep != Keep::Nothing).then_some(&mut traces);
        let x = layers(&context, model, layout, attend(&context, layout), into)?;
        let hidden = Hidden::new(&context, &x, keep == Keep::Everything);
        Ok(Self { context, traces, x, hidden })
    }
}

/// Runs work on the threads of the pool, so that it is not woken for every part of it.
pub(in crate::lm) fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::join(work, || ()).0
}

/// As [`in_pool`]; where there is no memory, that is an error.
fn in_pool_guarded<T: Send>(work: impl FnOnce() -> Result<T, LmError> + Send) -> Result<T, LmError> {
    guarded(|| in_pool(work))
}

/// What a pass gave, and what its backward pass needs.
pub(in crate::lm) struct Scored {
    model: Model,
    layout: Layout,
    run: Run,
    reference: Option<Run>,
    logprobs: Vec<f32>,
    kls: Option<Vec<f32>>,
}

impl Scores for Scored {
    type Gradients = Gradients;

    fn new(model: &Model, reference: Option<&Model>, sequences: &[Sequence], keep: Keep) -> Result<Self, LmError> {
        let layout = Layout::new(sequences);
        in_pool_guarded(|| {
            let mut run = Run::new(model, &layout, keep)?;
            let mut reference = reference.map(|model| Run::new(model, &layout, Keep::Nothing)).transpose()?;
            let theirs = reference.as_mut().map(|run| (&run.context, &mut run.hidden));
            let (logprobs, kls) = scores(&run.context, &mut run.hidden, theirs, &layout);
            Ok(Self { model: model.clone(), layout, run, reference, logprobs, kls })
        })
    }

    fn take(&mut self) -> (Vec<f32>, Option<Vec<f32>>) {
        (std::mem::take(&mut self.logprobs), self.kls.take())
    }

    fn backward(self, logprobs: &[f32], kls: &[f32], gradients: &mut Gradients) -> Result<(), LmError> {
        let Self { model, layout, run, reference, .. } = self;
        let Run { context, traces, x, hidden } = run;
        // Without a gradient to the divergences they need not be computed.
        let reference = reference.filter(|_| kls.iter().any(|gradient| *gradient != 0.0));
        let reference = reference.as_ref().map(|run| (&run.context, &run.hidden));
        let pass = Pass { context: &context, model: &model, layout: &layout, reference };
        in_pool_guarded(|| pass.backward(traces, x, hidden, (logprobs, kls), gradients))
    }

    fn gradient(gradients: &mut Gradients, name: &str, weight: &Tensor) -> candle_core::Result<Option<Tensor>> {
        gradients.take(name).map(|numbers| Tensor::from_vec(numbers, weight.shape(), &Device::Cpu)).transpose()
    }
}

/// A model's hidden states of sequences that others are measured against again and again.
pub(in crate::lm) struct Recalled {
    layout: Layout,
    run: Run,
}

impl Recalled {
    /// Runs the layers of a model that does not change.
    pub(in crate::lm) fn new(model: &Model, sequences: &[Sequence]) -> Result<Self, LmError> {
        let layout = Layout::new(sequences);
        in_pool_guarded(|| Ok(Self { run: Run::new(model, &layout, Keep::Nothing)?, layout }))
    }

    /// KL(policy‖model) at each response token, in nats: (outputs).
    pub(in crate::lm) fn kl(&mut self, policy: &Model) -> Result<Vec<f32>, LmError> {
        let Self { layout, run: theirs } = self;
        in_pool_guarded(|| {
            let mut run = Run::new(policy, layout, Keep::Nothing)?;
            let theirs = Some((&theirs.context, &mut theirs.hidden));
            Ok(scores(&run.context, &mut run.hidden, theirs, layout).1.unwrap_or_default())
        })
    }
}
