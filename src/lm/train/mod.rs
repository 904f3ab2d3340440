//! The training loop: one [`Trainer::step`] after another, each a whole optimiser update.
//!
//! The loss knows the model only through the log-probabilities of the step's sequences (and KL, which adds up over
//! tokens). So every pass goes the same way: log-probabilities with graph → loss and its slope against each of them, on
//! the host ([`Objective`]) → backward through their sum weighted by that slope. Passes add up to the gradient of one
//! large batch. An example with more sequences than fit a pass is scored without graph first, for its slopes.

mod batch;
mod check;
mod checkpoint;
mod gradients;
mod objective;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use self::batch::{Order, runs};
use self::checkpoint::{Source, State};
use self::gradients::Gradients;
pub use self::objective::{KlOver, Objective};
use self::objective::{Totals, Verdict, is_diagonal};
pub use self::record::StepRecord;
use super::logprobs::{response_kl, response_logprobs, token_logprobs, token_logprobs_and_kl};
use super::loss::Contrast;
use super::optimizer::{Numbers, Optimizer, OptimizerSettings};
use super::schedule::Schedule;
use super::{Config, Files, LmError, Model, Sequence, Tokens, weights};

/// Sequences that a KL budget is measured on.
const PROBES: usize = 32;

/// What training sees at once of a query or a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Names it in errors.
    pub id: String,
    /// SAMI: C·C sequences in row-major order, a row for each constitution, a column for each response. Else: one.
    pub sequences: Vec<Sequence>,
}

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
    /// Training ends after the step that brings KL on the probes above this, nats a response token.
    pub kl_budget: Option<f64>,
    /// Of the order of the examples.
    pub seed: u64,
    /// Sequences in a pass; `None`: by their tokens. Changes results by rounding only.
    pub micro_batch: Option<usize>,
}

/// A model in training.
#[derive(Debug)]
pub struct Trainer {
    settings: TrainSettings,
    examples: Vec<Example>,
    /// What is trained.
    policy: Model,
    parameters: BTreeMap<String, Var>,
    reference: Option<Model>,
    optimizer: Optimizer,
    order: Order,
    probes: Vec<Sequence>,
    records: Vec<StepRecord>,
    /// Tells this run from others, see [`checkpoint::digest`].
    run: String,
}

/// What the passes of a step have brought so far.
#[derive(Debug, Default)]
struct Gathered {
    gradients: Gradients,
    objective: f64,
    figures: Vec<Contrast>,
    diagonal: f64,
    off_diagonal: f64,
    /// Sum of KL over the response tokens of all sequences.
    kl: f64,
    /// The same over those of the diagonal.
    kl_diagonal: f64,
}

/// A pass of the policy, with graph.
struct Pass {
    tokens: Tokens,
    /// (N)
    kl: Option<Tensor>,
}

impl Trainer {
    /// Gets ready to train a model.
    ///
    /// KL is measured against `reference`, or against the model as it is now where the settings ask for KL and there is
    /// none. Errs on settings and examples that cannot be trained with.
    pub fn new(
        model: &Files,
        reference: Option<&Files>,
        examples: Vec<Example>,
        settings: TrainSettings,
        device: &Device,
    ) -> Result<Self, LmError> {
        let config = Config::load(model)?;
        let weights = weights::load(model, &config, device)?;
        let reference = reference.map(|files| Model::load(files, device)).transpose()?;
        Self::of_weights(config, weights, reference, examples, settings)
    }

    /// As [`Trainer::new`], from weights in memory.
    pub fn of_weights(
        config: Config,
        weights: BTreeMap<String, Tensor>,
        reference: Option<Model>,
        examples: Vec<Example>,
        settings: TrainSettings,
    ) -> Result<Self, LmError> {
        check::settings(&settings)?;
        check::examples(&examples, settings.objective, &config)?;
        let run = checkpoint::digest(&settings, &config, &weights, reference.as_ref().map(Model::weights), &examples)?;
        let wants_reference = settings.kl_weight > 0.0 || settings.kl_budget.is_some();
        let reference = match reference {
            Some(reference) => Some(reference),
            None if wants_reference => Some(Model::frozen(config.clone(), weights.clone())?),
            None => None,
        };
        if let Some(other) = reference.as_ref().map(|reference| reference.config().vocab_size)
            && other != config.vocab_size
        {
            let what = format!("the vocabularies have {} and {other} tokens", config.vocab_size);
            return Err(LmError::Mismatch { what });
        }
        let (policy, parameters) = Model::trainable(config, weights)?;
        let optimizer = Optimizer::new(settings.optimizer.clone(), &parameters)?;
        let mut order = Order::new(examples.len(), settings.seed);
        let probes = match settings.kl_budget {
            Some(_) => probes(&examples, &order.batch(0, examples.len())),
            None => Vec::new(),
        };
        Ok(Self {
            settings,
            examples,
            policy,
            parameters,
            reference,
            optimizer,
            order,
            probes,
            records: Vec::new(),
            run,
        })
    }

    /// Steps done.
    pub fn step_count(&self) -> u64 {
        self.records.len() as u64
    }

    /// Whether all steps are done or the KL budget is spent.
    pub fn done(&self) -> bool {
        let spent = self.records.last().and_then(|record| record.probe_kl).zip(self.settings.kl_budget);
        self.step_count() >= self.settings.steps || spent.is_some_and(|(kl, budget)| kl > budget)
    }

    /// A record for each step done, those before a [`Trainer::resume`] too.
    pub fn records(&self) -> &[StepRecord] {
        &self.records
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.policy
    }

    /// Does one optimiser update, over `batch` examples.
    ///
    /// Errs if the loss or its gradient is not finite, with the weights as they were before; and if training is done.
    pub fn step(&mut self) -> Result<StepRecord, LmError> {
        if self.done() {
            return Err(LmError::Setting { field: "steps", what: "are all done".to_owned() });
        }
        let step = self.step_count();
        let indices = self.order.batch(step, self.settings.batch);
        let mut examples: Vec<&Example> = indices.iter().map(|index| &self.examples[*index]).collect();
        // Where a device pads the sequences of a pass, they should be of like length.
        examples.sort_by_key(|example| example.sequences.iter().map(|sequence| sequence.ids.len()).max());
        let totals = Totals::of(examples.iter().copied());
        let ids = || examples.iter().map(|example| example.id.clone()).collect();
        let not_finite = |what| LmError::NotFinite { what, step: step + 1, examples: ids() };

        let mut gathered = Gathered::default();
        let sizes = examples.iter().map(|example| {
            (example.sequences.len(), example.sequences.iter().map(|sequence| sequence.ids.len()).sum())
        });
        for run in runs(sizes, self.settings.micro_batch) {
            if !self.gather(&examples[run], totals, &mut gathered)? {
                return Err(not_finite("the loss"));
            }
        }
        let (kl_sum, kl_tokens) = match self.settings.kl_over {
            KlOver::Cells => (gathered.kl, totals.responses),
            KlOver::Diagonal => (gathered.kl_diagonal, totals.diagonal_responses),
        };
        let loss = gathered.objective + self.settings.kl_weight * kl_sum / kl_tokens as f64;
        let norm = gathered.gradients.norm()?;
        if !loss.is_finite() {
            return Err(not_finite("the loss"));
        }
        if !norm.is_finite() {
            return Err(not_finite("the gradient"));
        }
        let rate = self.settings.optimizer.lr * self.settings.schedule.factor(step, self.settings.steps);
        // As `torch.nn.utils.clip_grad_norm_` does it.
        let scale = if self.settings.clip > 0.0 { (self.settings.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.optimizer.step(gathered.gradients.by_name(), rate, scale)?;

        let figures = Contrast::mean(&gathered.figures);
        let record = StepRecord {
            step: step + 1,
            loss,
            objective: gathered.objective,
            learning_rate: rate,
            gradient_norm: norm,
            tokens: totals.tokens as u64,
            mean_length: totals.diagonal_responses as f64 / totals.diagonal as f64,
            bound: figures.map(|figures| figures.bound),
            gap: figures.map(|figures| figures.gap),
            accuracy_row: figures.map(|figures| figures.accuracy_row),
            accuracy_column: figures.map(|figures| figures.accuracy_column),
            logprob_diagonal: figures.map(|_| gathered.diagonal / totals.diagonal as f64),
            logprob_off_diagonal: figures.map(|_| gathered.off_diagonal / (totals.sequences - totals.diagonal) as f64),
            kl: self.reference.as_ref().map(|_| gathered.kl_diagonal / totals.diagonal_responses as f64),
            probe_kl: self.probe()?,
        };
        if record.probe_kl.is_some_and(|kl| !kl.is_finite()) {
            return Err(not_finite("KL on the probes"));
        }
        self.records.push(record.clone());
        Ok(record)
    }

    /// Adds some of a step's examples to what is gathered. Returns false if their loss is not finite.
    fn gather(&self, examples: &[&Example], totals: Totals, gathered: &mut Gathered) -> Result<bool, LmError> {
        let sequences: Vec<Sequence> = examples.iter().flat_map(|example| example.sequences.iter().cloned()).collect();
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.ids.len() - sequence.prompt).collect();
        let on_diagonal: Vec<bool> = examples
            .iter()
            .map(|example| example.sequences.len())
            .flat_map(|cells| (0..cells).map(move |cell| is_diagonal(cell, cells)))
            .collect();
        let judge = |sums: &[f64]| -> Result<Option<Verdict>, LmError> {
            if !sums.iter().all(|sum| sum.is_finite()) {
                return Ok(None);
            }
            self.settings.objective.judge(examples, sums, &lengths, totals).map(Some)
        };
        let runs = runs(sequences.iter().map(|sequence| (1, sequence.ids.len())), self.settings.micro_batch);
        let verdict = if runs.len() == 1 {
            let pass = self.forward(&sequences)?;
            let logprobs: Vec<f32> = pass.tokens.logprobs.to_vec1()?;
            let sums: Vec<f64> = pass.tokens.segments.iter().map(|range| sum(&logprobs[range.clone()])).collect();
            let Some(verdict) = judge(&sums)? else { return Ok(false) };
            self.backward(&pass, &verdict.slopes, &on_diagonal, totals, gathered)?;
            verdict
        } else {
            let mut sums = Vec::with_capacity(sequences.len());
            for run in &runs {
                let logprobs = response_logprobs(&self.policy, &sequences[run.clone()])?;
                sums.extend(logprobs.iter().map(|logprobs| sum(logprobs)));
            }
            let Some(verdict) = judge(&sums)? else { return Ok(false) };
            for run in runs {
                let pass = self.forward(&sequences[run.clone()])?;
                self.backward(&pass, &verdict.slopes[run.clone()], &on_diagonal[run], totals, gathered)?;
            }
            verdict
        };
        gathered.objective += verdict.loss;
        gathered.figures.extend(verdict.figures);
        gathered.diagonal += verdict.diagonal;
        gathered.off_diagonal += verdict.off_diagonal;
        Ok(true)
    }

    fn forward(&self, sequences: &[Sequence]) -> Result<Pass, LmError> {
        match &self.reference {
            None => Ok(Pass { tokens: token_logprobs(&self.policy, sequences)?, kl: None }),
            Some(reference) => {
                let (tokens, kl) = token_logprobs_and_kl(&self.policy, reference, sequences)?;
                Ok(Pass { tokens, kl: Some(kl) })
            }
        }
    }

    /// Adds the gradient of a pass: the slope of each sequence times its tokens' log-probabilities, and the KL term.
    fn backward(
        &self,
        pass: &Pass,
        slopes: &[f64],
        on_diagonal: &[bool],
        totals: Totals,
        gathered: &mut Gathered,
    ) -> Result<(), LmError> {
        let Tokens { logprobs, segments } = &pass.tokens;
        let weighted = |tokens: &Tensor, weights: &dyn Fn(usize) -> f64| -> Result<Tensor, LmError> {
            let weights = segments.iter().enumerate().flat_map(|(index, segment)| {
                let weight = weights(index) as f32;
                segment.clone().map(move |_| weight)
            });
            let weights = Tensor::from_vec(weights.collect(), tokens.shape(), tokens.device())?;
            Ok((tokens * weights)?.sum_all()?)
        };
        let mut loss = weighted(logprobs, &|index| slopes[index])?;
        if let Some(kl) = &pass.kl {
            let values: Vec<f32> = kl.to_vec1()?;
            for (segment, on_diagonal) in segments.iter().zip(on_diagonal) {
                let sum = sum(&values[segment.clone()]);
                gathered.kl += sum;
                gathered.kl_diagonal += if *on_diagonal { sum } else { 0.0 };
            }
            let weight = self.settings.kl_weight;
            if weight > 0.0 {
                let term = match self.settings.kl_over {
                    KlOver::Cells => weighted(kl, &|_| weight / totals.responses as f64)?,
                    KlOver::Diagonal => weighted(kl, &|index| {
                        f64::from(u8::from(on_diagonal[index])) * weight / totals.diagonal_responses as f64
                    })?,
                };
                loss = (loss + term)?;
            }
        }
        gathered.gradients.add(loss.backward()?, &self.parameters)
    }

    /// KL on the probes, nats a response token; `None` without a budget.
    fn probe(&self) -> Result<Option<f64>, LmError> {
        let (Some(_), Some(reference)) = (self.settings.kl_budget, &self.reference) else { return Ok(None) };
        let kl = response_kl(&self.policy, reference, &self.probes)?;
        let tokens: usize = kl.iter().map(Vec::len).sum();
        Ok(Some(kl.iter().map(|kl| sum(kl)).sum::<f64>() / tokens as f64))
    }

    /// Writes all that [`Trainer::resume`] needs into a directory that exists, in place of the checkpoint there.
    ///
    /// Whatever moment the machine stops at, the directory holds the old one or the new one.
    pub fn checkpoint(&self, directory: &Path) -> Result<(), LmError> {
        let weights =
            self.parameters.iter().map(|(name, weight)| (format!("weight.{name}"), Source::In(weight.as_tensor())));
        let moments = self.optimizer.state()?.into_iter().map(|(name, moment)| (name, Source::Here(moment)));
        let state = State { run: self.run.clone(), updates: self.optimizer.steps(), records: self.records.clone() };
        checkpoint::write(directory, &state, &weights.chain(moments).collect::<Vec<_>>())
    }

    /// Goes on from the checkpoint in a directory, to the same bits as if nothing had come between.
    ///
    /// Returns false, with nothing changed, if there is none, or it is torn, or of another run: other settings, examples,
    /// weights or reference.
    pub fn resume(&mut self, directory: &Path) -> Result<bool, LmError> {
        let Some((state, mut tensors)) = checkpoint::read(directory)? else { return Ok(false) };
        let mut weights = Vec::with_capacity(self.parameters.len());
        for (name, parameter) in &self.parameters {
            match tensors.remove(&format!("weight.{name}")) {
                Some(Numbers::F32(numbers)) if numbers.len() == parameter.elem_count() => {
                    weights.push(numbers.into_owned());
                }
                _ => return Ok(false),
            }
        }
        if state.run != self.run || !self.optimizer.restore(state.updates, &mut tensors)? {
            return Ok(false);
        }
        for (parameter, numbers) in self.parameters.values().zip(weights) {
            parameter.set(&Tensor::from_vec(numbers, parameter.shape(), parameter.device())?)?;
        }
        self.records = state.records;
        Ok(true)
    }

    /// Writes the model into a directory that exists: `config.json`, `generation_config.json`, `model.safetensors`.
    pub fn save(&self, directory: &Path) -> Result<(), LmError> {
        self.policy.save(directory)
    }
}

fn sum(numbers: &[f32]) -> f64 {
    numbers.iter().map(|number| f64::from(*number)).sum()
}

/// Up to [`PROBES`] sequences with a response under its own constitution, of the first examples in the order given.
fn probes(examples: &[Example], order: &[usize]) -> Vec<Sequence> {
    let sequences = order.iter().flat_map(|index| {
        let sequences = &examples[*index].sequences;
        sequences.iter().enumerate().filter(|(cell, _)| is_diagonal(*cell, sequences.len()))
    });
    sequences.map(|(_, sequence)| sequence.clone()).take(PROBES).collect()
}
