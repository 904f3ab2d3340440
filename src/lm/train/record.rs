//! What a step did, as a line of a training log.

use serde::{Deserialize, Serialize};

use super::super::loss::Contrast;
use super::gather::Gathered;
use super::objective::Totals;

/// What a step did. Log-probabilities, losses and KL are in nats; the figures are those before the step's update.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// From 1.
    pub step: u64,
    /// What was minimised, with the KL term.
    pub loss: f64,
    /// The same without the KL term.
    pub objective: f64,
    /// Of this step.
    pub learning_rate: f64,
    /// Euclidean norm over all parameters, before clipping.
    pub gradient_norm: f64,
    /// Tokens of the step's sequences, prompts and responses.
    pub tokens: u64,
    /// Tokens of a response, mean.
    pub mean_length: f64,
    /// InfoNCE bound from summed log-probabilities, mean over queries; at most ln C.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
    /// The authors' figure, see [`Contrast::gap`](crate::lm::loss::Contrast::gap).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<f64>,
    /// Share of constitutions that favour their own response, by the scores that are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_row: Option<f64>,
    /// Share of responses that are likeliest under their own constitution, by the scores that are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_column: Option<f64>,
    /// Log-probability a token of responses under their own constitution, mean over responses. Falls when text falls apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprob_diagonal: Option<f64>,
    /// The same under the other constitutions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprob_off_diagonal: Option<f64>,
    /// Implicit reward of the responses that are preferred less that of the others, mean over preferences; see
    /// [`dpo`](crate::lm::loss::preference::dpo).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_margin: Option<f64>,
    /// That of the responses that are preferred. Falls when text falls apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_chosen: Option<f64>,
    /// Share of preferences that the rewards agree with; equal rewards count half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Exact KL(policy‖reference) a token, on responses under their own constitution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// The same on the probes, after the update; with a KL budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_kl: Option<f64>,
}

impl StepRecord {
    /// The figures that the passes of a step have brought; the rest is that of none.
    pub(super) fn of(gathered: &Gathered, totals: Totals) -> Self {
        let figures = Contrast::mean(&gathered.figures);
        let preferences = gathered.preferences;
        let preferred = |sum: f64| (preferences.count > 0).then(|| sum / preferences.count as f64);
        let contrasted = totals.sequences > totals.diagonal;
        Self {
            objective: gathered.objective,
            tokens: totals.tokens as u64,
            mean_length: totals.diagonal_responses as f64 / totals.diagonal as f64,
            bound: figures.map(|figures| figures.bound),
            gap: figures.map(|figures| figures.gap),
            accuracy_row: figures.map(|figures| figures.accuracy_row),
            accuracy_column: figures.map(|figures| figures.accuracy_column),
            logprob_diagonal: contrasted.then(|| gathered.diagonal / totals.diagonal as f64),
            logprob_off_diagonal: contrasted
                .then(|| gathered.off_diagonal / (totals.sequences - totals.diagonal) as f64),
            reward_margin: preferred(preferences.chosen - preferences.rejected),
            reward_chosen: preferred(preferences.chosen),
            accuracy: preferred(preferences.right),
            ..Self::default()
        }
    }
}
