//! Kind `finetune`: trains a model on scored responses (SAMI) or on texts.

mod figures;
mod validate;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::figures::{Watch, line, metrics, watched};
use super::check::input;
use super::estimate::{self, Estimate, Known};
use super::examples::{self, Examples, Whose};
use super::responses::Scoring;
use super::several::Several;
use super::{Cx, InputArtifact, NodeError, NodeKind, Outputs, Progress};
use crate::collective::MOST_RANKS;
use crate::lm::adapter::{self, LoraSettings};
use crate::lm::loss::preference::Directions;
use crate::lm::loss::{LengthNorm, Sides};
use crate::lm::optimizer::OptimizerSettings;
use crate::lm::schedule::Schedule;
use crate::lm::train::{self, Accumulation, Compute, Kept, KlOver, TrainSettings, Trainer, Weights};
use crate::lm::{Join, Tokenizer, gguf};
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Two-sided cross-entropy of the C×C log-probabilities to the identity.
    Sami,
    /// Each constitution's own responses are preferred to the others.
    Dpo,
    /// Negative log-likelihood of responses after their prompts.
    Sft,
    /// Negative log-likelihood of whole texts.
    Lm,
}

/// The fields of kind `finetune`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Finetune {
    pub(super) model: Input,
    pub(super) examples: Several,
    pub(super) objective: Objective,
    #[serde(default)]
    pub(super) reference: Option<Input>,
    #[serde(default = "batch_queries")]
    pub(super) batch_queries: usize,
    #[serde(default)]
    pub(super) steps: Option<u64>,
    #[serde(default)]
    pub(super) epochs: Option<f64>,
    pub(super) optimizer: OptimizerSettings,
    #[serde(default)]
    pub(super) schedule: Schedule,
    #[serde(default = "clip")]
    pub(super) clip: f64,
    #[serde(default)]
    pub(super) kl_weight: f64,
    #[serde(default, skip_serializing_if = "is_cells")]
    pub(super) kl_over: KlOver,
    #[serde(default)]
    pub(super) kl_budget: Option<f64>,
    #[serde(default)]
    pub(super) probe_every: Option<u64>,
    #[serde(default, skip_serializing_if = "Accumulation::is_default")]
    pub(super) accumulation: Accumulation,
    #[serde(default, skip_serializing_if = "Weights::is_default")]
    pub(super) weights: Weights,
    #[serde(default)]
    pub(super) compute: Compute,
    #[serde(default)]
    pub(super) lora: Option<LoraSettings>,
    #[serde(default = "merge")]
    pub(super) merge: bool,
    #[serde(default)]
    pub(super) sides: Sides,
    /// Written as what it comes to, see [`Finetune::length_norm`].
    #[serde(default)]
    pub(super) length_norm: Option<LengthNorm>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) beta: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) label_smoothing: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) directions: Option<Directions>,
    #[serde(default, skip_serializing_if = "Whose::is_all")]
    pub(super) responses: Whose,
    #[serde(default)]
    pub(super) score_eos: bool,
    #[serde(default, skip_serializing_if = "Join::is_space")]
    pub(super) join: Join,
    #[serde(default)]
    pub(super) seed: u64,
    /// With `lm`: template of the text; `{{ text }}` without it.
    #[serde(default)]
    pub(super) text: Option<String>,
    /// With `sft` or `dpo` on a dataset: template of the prompt.
    #[serde(default)]
    pub(super) prompt: Option<String>,
    /// With `sft` on a dataset: template of the response.
    #[serde(default)]
    pub(super) response: Option<String>,
    /// With `dpo` on a dataset: template of the response that is preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chosen: Option<String>,
    /// With `dpo` on a dataset: template of the other response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rejected: Option<String>,
    #[serde(default = "checkpoint_every")]
    pub(super) checkpoint_every: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_cells(over: &KlOver) -> bool {
    *over == KlOver::Cells
}

fn batch_queries() -> usize {
    16
}

fn merge() -> bool {
    true
}

fn clip() -> f64 {
    1.0
}

fn checkpoint_every() -> u64 {
    100
}

impl Finetune {
    /// Whether a frozen model is needed beside the one that trains.
    pub(super) fn wants_reference(&self) -> bool {
        self.kl_weight > 0.0
            || self.kl_budget.is_some()
            || self.probe_every.is_some()
            || self.objective == Objective::Dpo
    }

    /// A mean is what the method has, a sum is what preferences have.
    fn length_norm(&self) -> LengthNorm {
        let usual = if self.objective == Objective::Dpo { LengthNorm::Sum } else { LengthNorm::Mean };
        self.length_norm.unwrap_or(usual)
    }
}

impl Spec for Finetune {
    fn inputs(&self) -> Vec<InputField> {
        let examples: &'static [ArtifactType] = match self.objective {
            Objective::Sami => &[ArtifactType::Scores],
            Objective::Sft | Objective::Dpo => &[ArtifactType::Dataset, ArtifactType::Scores],
            Objective::Lm => &[ArtifactType::Dataset],
        };
        let mut inputs = vec![input("model", &self.model, &[ArtifactType::Model])];
        inputs.extend(self.examples.fields("examples", examples));
        inputs.extend(self.reference.iter().map(|reference| input("reference", reference, &[ArtifactType::Model])));
        inputs
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Model
    }

    fn fields(&self) -> Value {
        let mut fields = json!(self);
        fields["length_norm"] = json!(self.length_norm());
        fields
    }

    fn ranks(&self) -> usize {
        let parts = if self.accumulation.kept == Kept::Last { self.accumulation.parts.max(1) } else { 1 };
        (self.batch_queries / parts).min(MOST_RANKS)
    }

    fn validate(&self) -> Vec<Problem> {
        validate::validate(self)
    }
}

impl NodeKind for Finetune {
    const NAME: &'static str = "finetune";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"Trains a model and makes a new one.

| objective | minimises | `examples` |
|---|---|---|
| `"sami"` | cross-entropy of the C×C log-probabilities to the identity, over responses and over constitutions | a `score` node |
| `"dpo"` | direct preference optimisation: under each constitution its own response is preferred to the others | a `score` node, or a dataset (templates `prompt`, `chosen`, `rejected`) |
| `"sft"` | negative log-likelihood of a response after its prompt | a dataset (templates `prompt`, `response`), or a `score` node (each response under its own constitution) |
| `"lm"` | negative log-likelihood of a text | a dataset (template `text`, default `{{ text }}`) |

| field | meaning | default |
|---|---|---|
| `examples` | see above; or several of one type by names, `{ a = "score-a", b = { from = "score-b", take = 1000 } }`, which are mixed | |
| `model` | where training starts; the method restarts from the base model in every iteration | |
| `batch_queries` | queries (or texts) in an optimiser step | 16 |
| `steps` or `epochs` | how long; examples are shuffled by `seed`, each used once before any is used again | |
| `optimizer` | `{ name = "adamw" \| "rmsprop", lr, beta1, beta2, alpha, eps, weight_decay, state_bits }` | `adamw`, .9, .999, .99, 1e-8, 0, 32 |
| `schedule` | `{ name = "constant" \| "linear" \| "cosine", warmup = steps, floor = share, from_zero, span = steps \| "epoch" }`, or `"authors-2024"`, see below | constant |
| `clip` | largest norm of the gradient; 0 does not clip | 1 |
| `sides` | with `sami`: `"both"`, `"row"` (over responses), `"column"` (over constitutions) | `"both"` |
| `length_norm` | `"mean"` or `"sum"` of a response's token log-probabilities | `"mean"`; `"sum"` with `dpo` |
| `beta` | with `dpo`: what log-ratios to the reference are multiplied by | 0.1 |
| `label_smoothing` | with `dpo`: the chance that a preference is the wrong way round | 0 |
| `directions` | with `dpo` on scores: preferences under `"both"` (all) constitutions, or only the `"first"` | `"both"` |
| `responses` | with `sft` on scores: those of `"all"` constitutions, or only of the `"first"` | `"all"` |
| `score_eos` | whether the end-of-sequence token belongs to the response, where the model ended it; with `lm` a text always ends in it | false |
| `join` | with a dataset: as in `score`; scores are trained on as they were made | `"space"` |
| `reference` | the model that KL is measured against, and that `dpo` starts from | `model` |
| `kl_weight` | weight of KL(policy‖reference), nats a response token, added to the loss | 0 |
| `kl_over` | the response tokens that this is a mean over: those of all `"cells"`, or of the `"diagonal"` (responses under their own constitutions) | `"cells"` |
| `kl_budget` | training stops once KL on a fixed set of probes is above it, nats a token; the step that brought it there stays | none |
| `probe_every` | steps from one measurement of that KL to the next; the last step is measured too | 1 with `kl_budget`, else never |
| `accumulation` | `{ parts, kept = "all" \| "last" }`: a step's queries in so many parts, in their order, and those whose gradients (each divided by `parts`) move the weights | 1, `"all"` |
| `compute` | `"f32"` or `"bf16"`: what the passes compute in; weights, moments and sums of gradients are f32 either way. `"bf16"` is for GPUs, the CPU does it slowly | `"f32"` |
| `weights` | `"bf16"`: weights are rounded to it at the start and after each update, so that what moves one by less than half of its last place is lost; moments stay f32 | `"f32"` |
| `lora` | `{ rank, alpha, dropout, targets = ["q_proj", …] \| "all-linear" }`: trains adapters of low rank instead of the weights | 16, 32, 0, `"all-linear"` |
| `merge` | with `lora`: whether the model that is made has the adapters in its weights, or beside them | true |
| `seed` | seed of the order of examples | 0 |
| `checkpoint_every` | steps between checkpoints, from which an interrupted attempt goes on to the same bits | 100 |

Makes a model directory in Hugging Face format, its weights in f32. `train.jsonl` in it has a line per step: loss, bound,
accuracies, KL, mean length, log-probability of the diagonal, norm of the gradient, learning rate. Metrics: `loss`,
`steps`, `mean_length`, with `sami` and `dpo` in both directions also `bound`, `bound_ceiling`, `gap`, `accuracy_row`, `accuracy_column`,
with `dpo` `reward_margin`, `reward_chosen` and `accuracy` (share of preferences that the rewards agree with), and `kl` where a
reference is used; each is the mean over the last steps (at most ten). `probe_kl` is the last that was measured. The bound
keeps rising while text falls apart: watch `kl`, and give `kl_weight` or `kl_budget`. `logprob_diagonal_change` is by how much the
responses that are trained on have become likelier under their own constitutions, nats a token, from the first ten steps to the
last ten; where it falls below -0.25 the node's log has a warning (`sami logs`).

**Losses.** With ℓ the matrix of log-probabilities, rows constitutions, `sami` is ½(row + column): row −mean log softmax of each row at its own
response, column the same of each column. With M responses to a constitution (`responses_per_constitution` in `generate`), each row has M of
its own: the row side is the mean of their −log softmax less ln M, so that ln C is what a matrix costs that tells nothing, whatever M is.
`dpo` is the mean over preferences of −log σ(margin), the margin `beta` times what the preferred response's log-ratio to the
reference is above the other's. The reference's part is computed once for each query before the first step; memory then holds one model.
Responses of one query that are the same text have no row side and no preference; the column side draws their constitutions together, so
`generate` drops them unless told otherwise.

**As the authors' runs were.** `schedule = "authors-2024"` is `{ name = "linear", warmup = 1, from_zero = true, span = "epoch" }`: the rate is multiplied by
0, 1, 13/14, 12/14, … where an epoch has 15 steps, so that the first step does nothing. `accumulation = { parts = 16, kept = "last" }` with
`batch_queries = 128` moves the weights by a sixteenth of the gradient of the last eight queries, as where gradients are set to zero before
each part. By their code and logs the published models were made so; the paper does not say it.

**Adapters.** `targets` are the last parts of layers' names; `"all-linear"` is every linear layer but the head. A starts
uniform in ±1/√inputs, B at 0, as in Python's `peft`, which opens the adapter: it lies in `merged-adapter/` beside weights
that it is part of, or with `merge = false` in `adapter/` beside the weights of `model`, which are the same files and take
no space twice. Either goes wherever a model goes. Dropout falls on the inputs of the adapters, by `seed`, step and the
token's place in its text, not by the batch.

**Memory.** `state_bits = 8` keeps the optimiser's moments in a byte a number (blocks of 256 with a scale, small
floating-point numbers in them, rounded at random so that slow means still move): 2 bytes a weight instead of 8. With
`run = { activation_checkpointing = true }` a pass keeps only each layer's input and makes the rest again for the
gradient: less memory, a third more work, the same bits; by default where memory is short. A pass takes 1,792 to 4,096 tokens by the
size of the model, a prompt counted once for all its responses, or `run = { micro_batch = N }` sequences; a query of more
is cut between constitutions. How it is cut changes results by rounding only. `run = { ranks = N }` lets several processes
compute each step together (`docs/data-parallel.md`).

```toml
[loop.nodes.finetune]
kind = "finetune"
objective = "sami"
model = "base"
examples = "score"
batch_queries = 128
steps = "${2 * iteration}"
optimizer = { name = "adamw", lr = 5e-7 }
```
"#;

    fn estimate(&self, known: &Known<'_>) -> Estimate {
        estimate::finetune(self, known)
    }

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let model = cx.input("model")?.clone();
        let tokenizer = Tokenizer::load(&model.files)?;
        let inputs = self.examples.artifacts(cx, "examples")?.into_iter();
        let inputs = inputs.map(|(name, input)| Ok((name, self.examples(input, &tokenizer)?)));
        let examples = Examples::mixed(inputs.collect::<Result<_, NodeError>>()?)?;
        let reference = self.reference.is_some().then(|| cx.input("reference")).transpose()?;
        let reference = reference.map(|input| input.files.clone());
        let settings = self.settings(cx, &examples);
        let steps = settings.steps;
        let Examples { all: examples, constitutions, .. } = examples;
        let device = crate::lm::device(&cx.device)?;
        let mut trainer = Trainer::new(&model.files, reference.as_ref(), examples, settings, &device)?;
        let checkpoints = cx.scratch.join("checkpoint");
        crate::fs::create_lasting_directory(&checkpoints)?;
        // Nor did who made the scratch directory wait until the disk had its name.
        cx.scratch.parent().map_or(Ok(()), crate::fs::sync_directory)?;
        if trainer.resume(&checkpoints)? {
            tracing::info!("goes on after step {}", trainer.step_count());
        }
        if cx.ranked {
            trainer.join(cx.team.take())?;
        }
        let leads = trainer.rank() == 0;
        let mut notes: Vec<String> = trainer.gradients_way().map(str::to_owned).into_iter().collect();
        // Nothing is lost that would have to be kept: the weights are those of the start.
        while !trainer.prepare()? {
            if trainer.is_to_stop(cx.check_interrupt().is_err())? {
                return Err(NodeError::Interrupted);
            }
        }
        let mut watch = Watch::default();
        let mut told: Vec<_> = trainer.records().iter().map(line).collect();
        while !trainer.done() {
            if trainer.is_to_stop(cx.check_interrupt().is_err())? {
                if leads {
                    trainer.checkpoint(&checkpoints)?;
                }
                return Err(NodeError::Interrupted);
            }
            let record = trainer.step()?;
            if !leads {
                crate::fs::kill_point(&format!("rank {} step", trainer.rank()));
                continue;
            }
            watch.look(trainer.records());
            told.push(line(&record));
            (cx.progress)(Progress {
                done: record.step,
                total: steps,
                unit: "steps".to_owned(),
                metrics: watched(&record),
                steps: std::mem::take(&mut told),
                notes: std::mem::take(&mut notes),
            });
            if record.step % self.checkpoint_every == 0 && !trainer.done() {
                trainer.checkpoint(&checkpoints)?;
                crate::fs::kill_point("checkpoint");
            }
        }
        trainer.part()?;
        if !leads {
            return Ok(Outputs::default());
        }
        let mut outputs = self.finish(cx, &model, &trainer)?;
        if outputs.metrics.contains_key("bound") {
            outputs.metrics.insert("bound_ceiling".to_owned(), json!((constitutions as f64).ln()));
        }
        Ok(outputs)
    }
}

impl Finetune {
    fn examples(&self, input: &InputArtifact, tokenizer: &Tokenizer) -> Result<Examples, NodeError> {
        let of_scores = input.kind == ArtifactType::Scores;
        let eos = self.score_eos;
        let scoring = Scoring { eos, join: self.join };
        let missing = |fields| {
            let what = "a dataset has no prompts and responses of its own";
            NodeError::with_help(what, format!("give the templates {fields}"))
        };
        match self.objective {
            Objective::Sami => examples::contrasts(input, tokenizer, eos),
            Objective::Dpo if of_scores && self.directions() == Directions::First => {
                examples::first_rows(input, tokenizer, eos)
            }
            Objective::Dpo if of_scores => examples::contrasts(input, tokenizer, eos),
            Objective::Dpo => {
                let (Some(prompt), Some(chosen), Some(rejected)) = (&self.prompt, &self.chosen, &self.rejected) else {
                    return Err(missing("`prompt`, `chosen` and `rejected`"));
                };
                examples::preferences(input, tokenizer, prompt, chosen, rejected, scoring)
            }
            Objective::Sft if of_scores => examples::own_responses(input, tokenizer, eos, self.responses),
            Objective::Sft => {
                let (Some(prompt), Some(response)) = (&self.prompt, &self.response) else {
                    return Err(missing("`prompt` and `response`"));
                };
                examples::pairs(input, tokenizer, prompt, response, scoring)
            }
            Objective::Lm => examples::texts(input, tokenizer, self.text.as_deref().unwrap_or("{{ text }}")),
        }
    }

    /// Which rows of scores have preferences; a dataset has those of its rows.
    fn directions(&self) -> Directions {
        if self.chosen.is_some() { Directions::First } else { self.directions.unwrap_or_default() }
    }

    fn settings(&self, cx: &Cx<'_>, examples: &Examples) -> TrainSettings {
        let count = examples.all.len() as f64;
        let epochs = |epochs: f64| (epochs * count / self.batch_queries as f64).ceil().max(1.0) as u64;
        let objective = match self.objective {
            Objective::Sami => train::Objective::Sami { sides: self.sides, length_norm: self.length_norm() },
            Objective::Dpo => train::Objective::Dpo {
                beta: self.beta.unwrap_or(0.1),
                label_smoothing: self.label_smoothing.unwrap_or(0.0),
                length_norm: self.length_norm(),
                directions: self.directions(),
            },
            Objective::Sft | Objective::Lm => train::Objective::Likelihood,
        };
        TrainSettings {
            objective,
            batch: self.batch_queries,
            steps: self.steps.unwrap_or_else(|| epochs(self.epochs.unwrap_or(1.0))),
            optimizer: self.optimizer.clone(),
            schedule: self.schedule.clone(),
            clip: self.clip,
            kl_weight: self.kl_weight,
            kl_budget: self.kl_budget,
            kl_over: self.kl_over,
            seed: self.seed,
            probe_every: self.probe_every,
            micro_batch: cx.micro_batch,
            compute: self.compute,
            lora: self.lora.clone(),
            responses_each: examples.each,
            accumulation: self.accumulation,
            weights: self.weights,
            activation_checkpointing: cx.activation_checkpointing,
        }
    }
}

impl Finetune {
    /// Writes the model, its tokenizer and the record of its steps.
    fn finish(&self, cx: &Cx<'_>, model: &InputArtifact, trainer: &Trainer) -> Result<Outputs, NodeError> {
        let mut files = BTreeMap::new();
        if self.lora.is_none() || self.merge {
            trainer.save(&cx.staging)?;
        } else if model.files.keys().any(|name| name.starts_with(&format!("{}/", adapter::FOLDER))) {
            trainer.save_base(&cx.staging)?;
        } else {
            // The very files: the store has them already.
            let is_weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
            let kept = |name: &str| {
                !name.contains('/')
                    && (is_weights(name) || ["config.json", "generation_config.json", gguf::FILE].contains(&name))
            };
            files.extend(
                model.files.iter().filter(|(name, _)| kept(name)).map(|(name, path)| (name.clone(), path.clone())),
            );
        }
        if self.lora.is_some() {
            let folder = cx.staging.join(if self.merge { adapter::MERGED } else { adapter::FOLDER });
            crate::fs::create_directory(&folder)?;
            trainer.save_adapter(&folder)?;
        }
        let lines: Vec<String> = trainer.records().iter().map(|record| json!(record).to_string()).collect();
        crate::fs::write(&cx.staging.join("train.jsonl"), lines.join("\n") + "\n")?;
        // A GGUF file has the tokenizer in it; other programs want it in files.
        if model.files.contains_key(gguf::FILE) {
            Tokenizer::load(&model.files)?.save(&cx.staging)?;
        }
        for name in TOKENIZER_FILES {
            if let Some(path) = model.files.get(*name) {
                crate::fs::copy(path, &cx.staging.join(name))?;
            }
        }
        files.extend(super::command::collect(&cx.staging)?);
        Ok(Outputs { files, metrics: metrics(trainer.records()) })
    }
}

/// What a tokenizer may consist of, besides what the model's own files say.
const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
];

#[cfg(test)]
mod tests;
