//! A pass over a batch: scores, and the gradients of a loss that knows the model through them.

use candle_core::Tensor;

use super::head;
use super::linear::Gradients;
use super::pass::Pass;
use crate::lm::cpu::Keep;
use crate::lm::graph::Scores;
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

impl Scores for Scored {
    type Gradients = Gradients;

    fn new(model: &Model, reference: Option<&Model>, sequences: &[Sequence], keep: Keep) -> Result<Self, LmError> {
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

    fn take(&mut self) -> (Vec<f32>, Option<Vec<f32>>) {
        (std::mem::take(&mut self.logprobs), self.kls.take())
    }

    fn backward(self, logprobs: &[f32], kls: &[f32], gradients: &mut Gradients) -> Result<(), LmError> {
        let Self { model, layout, pass, reference, .. } = self;
        let theirs = reference.as_ref().map(|(model, hidden)| (model, hidden));
        let to_hidden = head::backward(&model, &pass.hidden, theirs, &layout, (logprobs, kls), gradients)?;
        drop(reference);
        pass.backward(&model, &to_hidden, gradients)?;
        Ok(())
    }

    fn gradient(gradients: &mut Gradients, name: &str, weight: &Tensor) -> candle_core::Result<Option<Tensor>> {
        gradients.take(name).map(|gradient| gradient.to_dtype(weight.dtype())).transpose()
    }
}
