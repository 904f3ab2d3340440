//! A pass of the policy over some sequences: their scores, and the gradient of a loss that is known by its slopes.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use super::super::cpu::{Keep, Scored};
use super::super::decoder::Engine;
use super::super::graph::Scores;
use super::super::logprobs::{token_logprobs, token_logprobs_and_kl};
use super::super::{LmError, Model, Sequence, gpu};
use super::gradients::Gradients;

/// What a pass gave, response token by response token in the order of the sequences.
pub(super) struct Pass {
    /// Log-probabilities, in nats.
    pub(super) logprobs: Vec<f32>,
    /// KL(policy‖reference), in nats, where there is a reference.
    pub(super) kls: Option<Vec<f32>>,
    way: Way,
}

/// How the gradient is computed.
enum Way {
    /// By the CPU's passes.
    Host(Box<Scored>),
    /// By the passes of other devices.
    Device(Box<gpu::Scored>),
    /// Through candle's graph.
    Graph { logprobs: Tensor, kls: Option<Tensor> },
}

impl Pass {
    /// Scores sequences that were checked before.
    pub(super) fn new(
        policy: &Model,
        reference: Option<&Model>,
        sequences: &[Sequence],
        keep: Keep,
    ) -> Result<Self, LmError> {
        if policy.on_cpu() && reference.is_none_or(Model::on_cpu) {
            let mut scored = Scored::new(policy, reference, sequences, keep)?;
            let (logprobs, kls) = scored.take();
            return Ok(Self { logprobs, kls, way: Way::Host(Box::new(scored)) });
        }
        let device = |model: &Model| model.engine() == Engine::Tensors;
        if device(policy) && reference.is_none_or(device) {
            let mut scored = gpu::Scored::new(policy, reference, sequences, keep)?;
            let (logprobs, kls) = scored.take();
            return Ok(Self { logprobs, kls, way: Way::Device(Box::new(scored)) });
        }
        let (logprobs, kls) = match reference {
            None => (token_logprobs(policy, sequences)?.logprobs, None),
            Some(reference) => {
                let (tokens, kls) = token_logprobs_and_kl(policy, reference, sequences)?;
                (tokens.logprobs, Some(kls))
            }
        };
        Ok(Self {
            logprobs: logprobs.to_vec1()?,
            kls: kls.as_ref().map(Tensor::to_vec1).transpose()?,
            way: Way::Graph { logprobs, kls },
        })
    }

    /// Adds the gradient of a loss to those of the step, from the loss's slope against each log-probability, and against
    /// each divergence where it has one.
    pub(super) fn backward(
        self,
        to_logprobs: &[f32],
        to_kls: Option<&[f32]>,
        variables: &BTreeMap<String, Var>,
        gradients: &mut Gradients,
    ) -> Result<(), LmError> {
        match self.way {
            Way::Host(scored) => scored.backward(to_logprobs, to_kls.unwrap_or_default(), &mut gradients.host),
            Way::Device(scored) => scored.backward(to_logprobs, to_kls.unwrap_or_default(), &mut gradients.device),
            Way::Graph { logprobs, kls } => {
                let weighted = |tokens: &Tensor, slopes: &[f32]| -> Result<Tensor, LmError> {
                    Ok((tokens * Tensor::new(slopes, tokens.device())?)?.sum_all()?)
                };
                let mut loss = weighted(&logprobs, to_logprobs)?;
                if let (Some(kls), Some(slopes)) = (kls, to_kls) {
                    loss = (loss + weighted(&kls, slopes)?)?;
                }
                gradients.add(loss.backward()?, variables)
            }
        }
    }
}
