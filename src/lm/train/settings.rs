//! How to train.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::adapter::LoraSettings;
use super::super::optimizer::OptimizerSettings;
use super::super::schedule::Schedule;
use super::super::{Config, memory};
use super::batch::kept_of_a_token;
use super::form::Form;
use super::objective::{KlOver, Objective};

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// What is minimised.
    pub objective: Objective,
    /// Examples in a step.
    pub batch: usize,
    /// Steps in all.
    pub steps: u64,
    /// The optimiser and its learning rate.
    pub optimizer: OptimizerSettings,
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// Largest norm of the gradient; 0 does not clip.
    pub clip: f64,
    /// Weight of KL(policy‖reference), nats a response token, in the loss.
    pub kl_weight: f64,
    /// Which sequences that KL is a mean over.
    pub kl_over: KlOver,
    /// Training ends once KL on the probes is above this, nats a response token. The step that brought it there stays:
    /// going back would need a second copy of the weights.
    pub kl_budget: Option<f64>,
    /// Steps from one measurement of KL on the probes to the next, the last step measured too; without it every step where
    /// there is a budget, else none.
    pub probe_every: Option<u64>,
    /// Of the order of the examples.
    pub seed: u64,
    /// Sequences in a pass; `None`: by their tokens. Changes results by rounding only.
    pub micro_batch: Option<usize>,
    /// What the passes compute in. Parameters, moments and sums of gradients are f32.
    #[serde(default)]
    pub compute: Compute,
    /// Trains adapters of low rank instead of the weights.
    pub lora: Option<LoraSettings>,
    /// Responses to each constitution of an example, M.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub responses_each: usize,
    /// What becomes of the gradients of a step's parts.
    #[serde(default, skip_serializing_if = "Accumulation::is_default")]
    pub accumulation: Accumulation,
    /// What the parameters are rounded to after each update.
    #[serde(default, skip_serializing_if = "Weights::is_default")]
    pub weights: Weights,
    /// Whether a pass keeps only each layer's input and makes the rest again for the gradient: less memory, a third more
    /// work, the same bits. `None`: where the memory would not suffice otherwise. It is no part of what a run is.
    #[serde(skip)]
    pub activation_checkpointing: Option<bool>,
}

impl TrainSettings {
    /// With what is usual elsewhere: one example in each of 100 steps, a constant learning rate, clipped at a norm of 1.
    pub fn new(objective: Objective, optimizer: OptimizerSettings) -> Self {
        Self {
            objective,
            batch: 1,
            steps: 100,
            optimizer,
            schedule: Schedule::default(),
            clip: 1.0,
            kl_weight: 0.0,
            kl_over: KlOver::default(),
            kl_budget: None,
            probe_every: None,
            seed: 0,
            micro_batch: None,
            compute: Compute::F32,
            lora: None,
            responses_each: 1,
            accumulation: Accumulation::default(),
            weights: Weights::default(),
            activation_checkpointing: None,
        }
    }

    /// How the sequences of an example make a matrix.
    pub(super) fn form(&self) -> Form {
        self.objective.form(self.responses_each)
    }

    /// Steps from one measurement on the probes to the next; `None`: there are none.
    pub(super) fn probes(&self) -> Option<u64> {
        self.probe_every.or(self.kl_budget.map(|_| 1))
    }
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_one(number: &usize) -> bool {
    *number == 1
}

/// A step's examples in equal parts, in their order, and whose gradient moves the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Accumulation {
    /// How many parts; each one's gradient is divided by that.
    pub parts: usize,
    /// Those that are kept.
    #[serde(default)]
    pub kept: Kept,
}

/// Parts of a step whose gradients are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// All: the gradient is that of the step's mean loss.
    #[default]
    All,
    /// The last, as where gradients are set to zero before each part: the others are not even computed.
    Last,
}

impl Default for Accumulation {
    fn default() -> Self {
        Self { parts: 1, kept: Kept::All }
    }
}

impl Accumulation {
    /// Whether it is the default, which stands in no key.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What parameters are rounded to after each update.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// Not at all: they are f32.
    #[default]
    F32,
    /// bf16, as where weights are kept in that alone: what moves one by less than half of its last place is lost.
    Bf16,
}

impl Weights {
    /// Whether it is the default, which stands in no key.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A type that passes compute in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// 24 bits of mantissa.
    #[default]
    F32,
    /// 8 bits of mantissa: half the memory, and faster where the device has it.
    Bf16,
}

/// Whether what a pass of so many tokens keeps takes no more than half of the memory that is free.
pub(super) fn fits(config: &Config, tokens: usize) -> bool {
    memory::free().is_none_or(|free| tokens as u64 * kept_of_a_token(config) <= free / 2)
}
