//! The training loop: one [`Trainer::step`] after another, each a whole optimiser update.
//!
//! The loss knows the model only through the log-probabilities of the step's sequences (and KL, which adds up over
//! tokens). So every pass goes the same way: log-probabilities with graph → loss and its slope against each of them, on
//! the host ([`Objective`]) → backward through their sum weighted by that slope. Passes add up to the gradient of one
//! large batch. An example with more sequences than fit a pass is scored without gradient first, for its slopes.
//!
//! # Memory
//! A pass takes a few prompts with all their responses (`batch.rs`). It keeps what its gradient needs of every layer, or
//! only the layers' inputs, and hands each layer's gradient over as soon as it is there.

mod anchor;
mod batch;
mod check;
mod checkpoint;
mod device_sum;
mod footprint;
mod form;
mod gather;
mod gradients;
mod objective;
mod pass;
mod policy;
mod probes;
mod record;
mod settings;
#[cfg(test)]
pub(super) mod tests;
mod together;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use self::anchor::Anchor;
use self::batch::{Order, Room};
use self::checkpoint::{Source, State};
pub use self::footprint::{Beside, Held, footprint, on_ranks, trained};
use self::gradients::norm;
use self::objective::Totals;
pub use self::objective::{KlOver, Objective};
use self::policy::Policy;
use self::probes::Probes;
pub use self::record::StepRecord;
pub use self::settings::{Accumulation, Compute, Kept, TrainSettings, Weights};
use self::together::{Together, Work};
use super::adapter::{self, Adapters};
use super::cpu::Keep;
use super::nccl::Nccl;
use super::optimizer::{Numbers, Optimizer};
use super::random::hash;
use super::{Config, Files, LmError, Model, Sequence, weights};
use crate::collective::Team;

/// What training sees at once of a query or a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Names it in errors.
    pub id: String,
    /// SAMI, and DPO in both directions: C·CM sequences in row-major order, a row for each constitution, a column for each
    /// response, constitution by constitution. DPO in one direction: one row, the responses that are preferred first. Else:
    /// one.
    pub sequences: Vec<Sequence>,
}

/// A model in training.
#[derive(Debug)]
pub struct Trainer {
    settings: TrainSettings,
    examples: Vec<Example>,
    policy: Policy,
    /// What every step's KL is measured against.
    reference: Option<Model>,
    optimizer: Optimizer,
    order: Order,
    probes: Option<Probes>,
    /// What the reference says of the examples, where the objective asks for it.
    anchor: Option<Anchor>,
    records: Vec<StepRecord>,
    /// Whether steps are in parts, and who computes them with this process.
    together: Option<Together>,
    /// Tells this run from others, see [`checkpoint::digest`].
    run: String,
}

impl Trainer {
    /// Gets ready to train a model.
    ///
    /// KL is measured against `reference`, or against the model as it is now where the settings ask for KL and there is
    /// none; DPO is anchored in the same. Errs on settings and examples that cannot be trained with.
    pub fn new(
        model: &Files,
        reference: Option<&Files>,
        examples: Vec<Example>,
        settings: TrainSettings,
        device: &Device,
    ) -> Result<Self, LmError> {
        let config = Config::load(model)?;
        let mut weights = weights::load_in(DType::F32, model, &config, device)?;
        if let Some(adapters) = adapter::load(model, &config, device)? {
            adapter::merge(&mut weights, &adapters)?;
        }
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
        let form = settings.form();
        check::examples(&examples, form, &config)?;
        let run = checkpoint::digest(&settings, &config, &weights, reference.as_ref().map(Model::weights), &examples)?;
        if let Some(other) = reference.as_ref().map(Model::config) {
            if other.vocab_size != config.vocab_size {
                let what = format!("the vocabularies have {} and {} tokens", config.vocab_size, other.vocab_size);
                return Err(LmError::Mismatch { what });
            }
            check::examples(&examples, form, other)?;
        }
        let anchored = settings.objective.is_anchored();
        let other = reference.is_some();
        let each_step = (other && !anchored) || settings.kl_weight > 0.0 || settings.kl_budget.is_some();
        let reference = match reference {
            None if each_step || settings.probe_every.is_some() => {
                // With adapters the weights themselves stay as they are.
                Some(settings.compute.frozen(config.clone(), &weights, settings.lora.is_some())?)
            }
            Some(given) if settings.compute == Compute::Bf16 => {
                let rounded = settings.compute.frozen(given.config().clone(), given.weights(), true)?;
                Some(rounded.adapted(given.adapters().clone())?)
            }
            given => given,
        };
        let mut order = Order::new(examples.len(), settings.seed);
        let probes = match (&reference, settings.probes()) {
            (Some(reference), Some(every)) => {
                let first = order.batch(0, examples.len()).into_iter().map(|index| &examples[index]);
                Some(Probes::new(reference, first, form, every)?)
            }
            _ => None,
        };
        let policy = Policy::new(config, weights, &settings)?;
        let optimizer = Optimizer::new(settings.optimizer.clone(), &policy.parameters)?;
        let anchor =
            anchored.then(|| Anchor::new(reference.as_ref().filter(|_| other).cloned(), &mut order, &settings));
        Ok(Self {
            settings,
            examples,
            policy,
            reference: reference.filter(|_| each_step),
            optimizer,
            order,
            probes,
            anchor,
            records: Vec::new(),
            together: None,
            run,
        })
    }

    /// Steps done.
    pub fn step_count(&self) -> u64 {
        self.records.len() as u64
    }

    /// Whether all steps are done or the KL budget is spent.
    pub fn done(&self) -> bool {
        let spent = self.records.iter().rev().find_map(|record| record.probe_kl).zip(self.settings.kl_budget);
        self.step_count() >= self.settings.steps || spent.is_some_and(|(kl, budget)| kl > budget)
    }

    /// A record for each step done, those before a [`Trainer::resume`] too.
    pub fn records(&self) -> &[StepRecord] {
        &self.records
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.policy.model
    }

    /// Does one optimiser update, over `batch` examples.
    ///
    /// Errs if the loss or its gradient is not finite, with the weights as they were before; and if training is done.
    pub fn step(&mut self) -> Result<StepRecord, LmError> {
        if self.done() {
            return Err(LmError::Setting { field: "steps", what: "are all done".to_owned() });
        }
        while !self.prepare()? {}
        let mut together = self.together.take();
        let done = self.update(together.as_mut());
        self.together = together;
        done
    }

    fn update(&mut self, mut together: Option<&mut Together>) -> Result<StepRecord, LmError> {
        let step = self.step_count();
        let mut indices = self.order.batch(step, self.settings.batch);
        let Accumulation { parts, kept } = self.settings.accumulation;
        let parts = if kept == Kept::Last { parts } else { 1 };
        indices.drain(..indices.len() - indices.len() / parts);
        // Where a device pads the sequences of a pass, they should be of like length.
        indices.sort_by_key(|index| self.examples[*index].sequences.iter().map(|sequence| sequence.ids.len()).max());
        let examples: Vec<&Example> = indices.iter().map(|index| &self.examples[*index]).collect();
        let totals = Totals::of(examples.iter().copied(), self.settings.form());
        let ids = || examples.iter().map(|example| example.id.clone()).collect();
        let not_finite = |what| LmError::NotFinite { what, step: step + 1, examples: ids() };

        // Dropout is of the step, so that every pass over a sequence leaves out the same.
        let noisy = self.settings.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0);
        let noisy = noisy.then(|| self.policy.model.noisy(hash(self.settings.seed, step)));
        let policy = noisy.as_ref().unwrap_or(&self.policy.model);
        let work = Work { policy, indices: &indices, examples: &examples, totals, keep: self.keep(&examples) };
        let brought = match &mut together {
            Some(together) => together.pass(self, &work)?,
            None => match self.passes(&work, 0..examples.len())? {
                Some(mut gathered) => {
                    let gradients = std::mem::take(&mut gathered.gradients).finish(&self.policy.parameters)?;
                    Some((gathered, gradients))
                }
                None => None,
            },
        };
        let (gathered, gradients) = brought.ok_or_else(|| not_finite("the loss"))?;
        let (kl_sum, kl_tokens) = match self.settings.kl_over {
            KlOver::Cells => (gathered.kl, totals.responses),
            KlOver::Diagonal => (gathered.kl_diagonal, totals.diagonal_responses),
        };
        let loss = gathered.objective + self.settings.kl_weight * kl_sum / kl_tokens as f64;
        // That of a part is divided by the number of parts, as all of them would be.
        let mut norm = norm(&gradients)? / parts as f64;
        if let Some(together) = &mut together {
            // Where it is rounded otherwise elsewhere, weights would part.
            norm = together.number_of_first(norm)?;
        }
        if !loss.is_finite() {
            return Err(not_finite("the loss"));
        }
        if !norm.is_finite() {
            return Err(not_finite("the gradient"));
        }
        let rate = self.settings.optimizer.lr * self.factor(step);
        // As `torch.nn.utils.clip_grad_norm_` does it.
        let scale = if self.settings.clip > 0.0 { (self.settings.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.optimizer.step_with(&gradients, rate, scale / parts as f64, self.policy.copies())?;
        drop(gradients);
        if self.policy.copies().is_none() {
            self.policy.follow()?;
        }

        let mut record = StepRecord {
            step: step + 1,
            loss,
            learning_rate: rate,
            gradient_norm: norm,
            kl: self.reference.as_ref().map(|_| gathered.kl_diagonal / totals.diagonal_responses as f64),
            ..StepRecord::of(&gathered, totals)
        };
        record.probe_kl = match &mut self.probes {
            Some(probes) if probes.are_due(step + 1, self.settings.steps) => {
                let first = together.as_ref().is_none_or(|together| together.rank() == 0);
                let own = if first { probes.kl(&self.policy.model)? } else { 0.0 };
                Some(together.map_or(Ok(own), |together| together.number_of_first(own))?)
            }
            _ => None,
        };
        if record.probe_kl.is_some_and(|kl| !kl.is_finite()) {
            return Err(not_finite("KL on the probes"));
        }
        self.records.push(record.clone());
        Ok(record)
    }

    /// Computes some of what the reference says of the examples, where the objective asks for it. Returns whether nothing is
    /// left to compute, which a step sees to by itself.
    pub fn prepare(&mut self) -> Result<bool, LmError> {
        let team = self.together.as_mut().and_then(Together::team);
        match &mut self.anchor {
            Some(anchor) => anchor.advance(&self.policy.model, &self.examples, team),
            None => Ok(true),
        }
    }

    /// From here on computes the parts of each step together with other ranks, which call the same functions; or, without a
    /// team, alone, to the same bits on a CPU as any number of ranks.
    ///
    /// Errs if the ranks are not of the same run, at the same step, and on devices of the same class.
    ///
    /// On GPUs the ranks' gradients are added up by NCCL, if that is there; see [`Trainer::gradients_way`].
    pub fn join(&mut self, team: Option<Team>) -> Result<(), LmError> {
        let wanted = team.is_some() && self.policy.model.device().is_cuda();
        self.join_by(team, wanted.then(Nccl::wanted))
    }

    /// As [`Trainer::join`], by a library or the reason why there is none; `None`: through the hosts, where there is no question.
    fn join_by(&mut self, team: Option<Team>, nccl: Option<Result<Nccl, String>>) -> Result<(), LmError> {
        let mut together = Together::new(team);
        let device = match self.policy.model.device().location() {
            candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            _ => "cpu".to_owned(),
        };
        let class = super::device::class(&device)?;
        let (run, step) = (&self.run, self.step_count());
        together.agree(&format!("run {run}, step {step}, on {class}"))?;
        if let Some(nccl) = nccl {
            together.meet_on_devices(nccl, self.policy.model.device())?;
        }
        self.together = Some(together);
        Ok(())
    }

    /// Parts from the other ranks once training is done; goes on alone from here. Which rank this is is forgotten.
    pub fn part(&mut self) -> Result<(), LmError> {
        match self.together.replace(Together::new(None)) {
            Some(together) => together.part(),
            None => {
                self.together = None;
                Ok(())
            }
        }
    }

    /// How the ranks' gradients come together, in words; `None` where there is one way.
    pub fn gradients_way(&self) -> Option<&str> {
        self.together.as_ref().and_then(Together::way)
    }

    /// Number of this rank; 0 where there is one.
    pub fn rank(&self) -> usize {
        self.together.as_ref().map_or(0, Together::rank)
    }

    /// Bytes that this rank has sent to others.
    pub fn sent(&self) -> u64 {
        self.together.as_ref().map_or(0, Together::sent)
    }

    /// Whether training is to stop here: what rank 0 finds, whatever the others do. All ranks ask at the same points.
    pub fn is_to_stop(&mut self, stop: bool) -> Result<bool, LmError> {
        match &mut self.together {
            Some(together) => Ok(together.number_of_first(f64::from(u8::from(stop)))? > 0.0),
            None => Ok(stop),
        }
    }

    /// What the learning rate is multiplied by at a step, from 0.
    fn factor(&self, step: u64) -> f64 {
        let schedule = &self.settings.schedule;
        let epoch = (self.examples.len() / self.settings.batch) as u64;
        schedule.factor(step, schedule.span.map_or(self.settings.steps, |span| span.steps(epoch)))
    }

    fn room(&self) -> Room {
        Room::of(self.policy.model.config(), self.settings.micro_batch)
    }

    /// What a step's passes keep: all that the largest needs, where that fits the memory.
    fn keep(&self, examples: &[&Example]) -> Keep {
        let on_cpu = self.policy.model.device().is_cpu();
        let whole = self.settings.activation_checkpointing.map_or_else(
            || {
                let tokens = match self.room() {
                    Room::Tokens(tokens) => tokens,
                    Room::Sequences(most) => {
                        let all = examples.iter().flat_map(|example| &example.sequences);
                        most * all.map(|sequence| sequence.ids.len()).max().unwrap_or(0)
                    }
                };
                // Weights and moments fill a GPU's memory.
                on_cpu && settings::fits(self.policy.model.config(), tokens)
            },
            |wanted| !wanted,
        );
        if whole { Keep::Everything } else { Keep::Inputs }
    }

    /// Writes all that [`Trainer::resume`] needs into a directory that exists, in place of the checkpoint there.
    ///
    /// Whatever moment the machine stops at, the directory holds the old one or the new one.
    pub fn checkpoint(&self, directory: &Path) -> Result<(), LmError> {
        let weights = self
            .policy
            .parameters
            .iter()
            .map(|(name, weight)| (format!("weight.{name}"), Source::In(weight.as_tensor())));
        let moments = self.optimizer.state()?.into_iter().map(|(name, moment)| (name, Source::Here(moment)));
        let state = State {
            run: self.run.clone(),
            updates: self.optimizer.steps(),
            records: self.records.clone(),
            anchors: self.anchor.as_ref().map(|anchor| anchor.known().clone()).unwrap_or_default(),
            in_parts: self.together.is_some(),
        };
        checkpoint::write(directory, &state, &weights.chain(moments).collect::<Vec<_>>())
    }

    /// Goes on from the checkpoint in a directory, to the same bits as if nothing had come between. Where steps were in parts
    /// they go on in parts, whether or not there are other ranks now.
    ///
    /// Returns false, with nothing changed, if there is none, or it is torn, or of another run: other settings, examples,
    /// weights or reference.
    pub fn resume(&mut self, directory: &Path) -> Result<bool, LmError> {
        let Some((state, mut tensors)) = checkpoint::read(directory)? else { return Ok(false) };
        let mut weights = Vec::with_capacity(self.policy.parameters.len());
        for (name, parameter) in &self.policy.parameters {
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
        for (parameter, numbers) in self.policy.parameters.values().zip(weights) {
            parameter.set(&Tensor::from_vec(numbers, parameter.shape(), parameter.device())?)?;
        }
        self.policy.follow()?;
        self.records = state.records;
        if state.in_parts && self.together.is_none() {
            self.together = Some(Together::new(None));
        }
        if let Some(anchor) = &mut self.anchor {
            // What is not known yet would be computed by a policy that has moved.
            anchor.restore(state.anchors);
        }
        Ok(true)
    }

    /// Writes the model into a directory that exists: `config.json`, `generation_config.json`, `model.safetensors`.
    ///
    /// The weights are f32, as they are trained: a rounded copy would lose what small steps have changed. With LoRA they are
    /// those of the model at the start with the adapter merged into them.
    pub fn save(&self, directory: &Path) -> Result<(), LmError> {
        self.policy.save(directory, true)
    }

    /// Writes the model that an adapter is trained on top of, as [`Trainer::save`] does.
    pub fn save_base(&self, directory: &Path) -> Result<(), LmError> {
        self.policy.save(directory, false)
    }

    /// Writes the adapter into a directory that exists, in the form of `peft`. Returns false, with nothing written, without
    /// LoRA.
    pub fn save_adapter(&self, directory: &Path) -> Result<bool, LmError> {
        let Some(lora) = &self.settings.lora else { return Ok(false) };
        adapter::save(directory, lora, self.policy.model.adapters(), "")?;
        Ok(true)
    }

    /// The adapter in training; empty without LoRA.
    pub fn adapters(&self) -> &Adapters {
        self.policy.model.adapters()
    }
}
