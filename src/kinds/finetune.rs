//! Kind `finetune`: trains a model on scored responses (SAMI) or on texts.

mod validate;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::check::input;
use super::several::Several;
use super::{Cx, InputArtifact, NodeError, NodeKind, Outputs, Progress, examples};
use crate::lm::adapter::{self, LoraSettings};
use crate::lm::loss::{LengthNorm, Sides};
use crate::lm::optimizer::OptimizerSettings;
use crate::lm::schedule::Schedule;
use crate::lm::train::{self, Compute, Example, KlOver, StepRecord, TrainSettings, Trainer};
use crate::lm::{Tokenizer, gguf};
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Two-sided cross-entropy of the C×C log-probabilities to the identity.
    Sami,
    /// Negative log-likelihood of responses after their prompts.
    Sft,
    /// Negative log-likelihood of whole texts.
    Lm,
}

/// The fields of kind `finetune`.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    #[serde(default)]
    pub(super) kl_budget: Option<f64>,
    #[serde(default)]
    pub(super) probe_every: Option<u64>,
    #[serde(default)]
    pub(super) compute: Compute,
    #[serde(default)]
    pub(super) lora: Option<LoraSettings>,
    #[serde(default = "merge")]
    pub(super) merge: bool,
    #[serde(default)]
    pub(super) sides: Sides,
    #[serde(default)]
    pub(super) length_norm: LengthNorm,
    #[serde(default)]
    pub(super) score_eos: bool,
    #[serde(default)]
    pub(super) seed: u64,
    #[serde(default)]
    pub(super) text: Option<String>,
    #[serde(default)]
    pub(super) prompt: Option<String>,
    #[serde(default)]
    pub(super) response: Option<String>,
    #[serde(default = "checkpoint_every")]
    pub(super) checkpoint_every: u64,
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
        self.kl_weight > 0.0 || self.kl_budget.is_some() || self.probe_every.is_some()
    }
}

impl Spec for Finetune {
    fn inputs(&self) -> Vec<InputField> {
        let examples: &'static [ArtifactType] = match self.objective {
            Objective::Sami => &[ArtifactType::Scores],
            Objective::Sft => &[ArtifactType::Dataset, ArtifactType::Scores],
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
        json!(self)
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
| `"sft"` | negative log-likelihood of a response after its prompt | a dataset (templates `prompt`, `response`), or a `score` node (each response under its own constitution) |
| `"lm"` | negative log-likelihood of a text | a dataset (template `text`, default `{{ text }}`) |

| field | meaning | default |
|---|---|---|
| `examples` | see above; or several of one type by names, `{ a = "score-a", b = { from = "score-b", take = 1000 } }`, which are mixed | |
| `model` | where training starts; the method restarts from the base model in every iteration | |
| `batch_queries` | queries (or texts) in an optimiser step | 16 |
| `steps` or `epochs` | how long; examples are shuffled by `seed`, each used once before any is used again | |
| `optimizer` | `{ name = "adamw" \| "rmsprop", lr, beta1, beta2, alpha, eps, weight_decay, state_bits }` | `adamw`, .9, .999, .99, 1e-8, 0, 32 |
| `schedule` | `{ name = "constant" \| "linear" \| "cosine", warmup = steps, floor = share }` | constant |
| `clip` | largest norm of the gradient; 0 does not clip | 1 |
| `sides` | `"both"`, `"row"` (over responses), `"column"` (over constitutions) | `"both"` |
| `length_norm` | `"mean"` or `"sum"` of a response's token log-probabilities | `"mean"` |
| `score_eos` | whether the end-of-sequence token belongs to the response, where the model ended it; with `lm` a text always ends in it | false |
| `reference` | the model that KL is measured against | `model` |
| `kl_weight` | weight of KL(policy‖reference), nats a response token, added to the loss | 0 |
| `kl_budget` | training stops once KL on a fixed set of probes is above it, nats a token; the step that brought it there stays | none |
| `probe_every` | steps from one measurement of that KL to the next; the last step is measured too | 1 with `kl_budget`, else never |
| `compute` | `"f32"` or `"bf16"`: what the passes compute in; weights, moments and sums of gradients are f32 either way. `"bf16"` is for GPUs, the CPU does it slowly | `"f32"` |
| `lora` | `{ rank, alpha, dropout, targets = ["q_proj", …] \| "all-linear" }`: trains adapters of low rank instead of the weights | 16, 32, 0, `"all-linear"` |
| `merge` | with `lora`: whether the model that is made has the adapters in its weights, or beside them | true |
| `seed` | seed of the order of examples | 0 |
| `checkpoint_every` | steps between checkpoints, from which an interrupted attempt goes on to the same bits | 100 |

Makes a model directory in Hugging Face format, its weights in f32. `train.jsonl` in it has a line per step: loss, bound,
accuracies, KL, mean length, log-probability of the diagonal, norm of the gradient, learning rate. Metrics: `loss`,
`steps`, `mean_length`, with `sami` also `bound`, `bound_ceiling`, `gap`, `accuracy_row`, `accuracy_column`, and `kl` where a
reference is used; each is the mean over the last steps (at most ten). `probe_kl` is the last that was measured. The bound
keeps rising while text falls apart: watch `kl`, and give `kl_weight` or `kl_budget`.

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
is cut between constitutions. How it is cut changes results by rounding only.

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

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let model = cx.input("model")?.clone();
        let tokenizer = Tokenizer::load(&model.files)?;
        let mut examples = Vec::new();
        for (name, input) in self.examples.artifacts(cx, "examples")? {
            let mut some = self.examples(input, &tokenizer)?;
            if let Some(name) = name {
                // Rows of several inputs may have the same ids.
                some.iter_mut().for_each(|one| one.id = format!("{name}/{}", one.id));
            }
            examples.append(&mut some);
        }
        let reference = self.reference.is_some().then(|| cx.input("reference")).transpose()?;
        let reference = reference.map(|input| input.files.clone());
        let settings = self.settings(cx, examples.len());
        let steps = settings.steps;
        let constitutions = examples.first().map_or(0, |example| example.sequences.len().isqrt());
        let device = crate::lm::device(&cx.device)?;
        let mut trainer = Trainer::new(&model.files, reference.as_ref(), examples, settings, &device)?;
        let checkpoints = cx.scratch.join("checkpoint");
        crate::fs::create_directory(&checkpoints)?;
        if trainer.resume(&checkpoints)? {
            tracing::info!("goes on after step {}", trainer.step_count());
        }
        while !trainer.done() {
            if cx.check_interrupt().is_err() {
                trainer.checkpoint(&checkpoints)?;
                return Err(NodeError::Interrupted);
            }
            let record = trainer.step()?;
            (cx.progress)(Progress {
                done: record.step,
                total: steps,
                unit: "steps".to_owned(),
                metrics: watched(&record),
            });
            if record.step % self.checkpoint_every == 0 && !trainer.done() {
                trainer.checkpoint(&checkpoints)?;
                crate::fs::kill_point("checkpoint");
            }
        }
        let mut outputs = self.finish(cx, &model, &trainer)?;
        if self.objective == Objective::Sami {
            outputs.metrics.insert("bound_ceiling".to_owned(), json!((constitutions as f64).ln()));
        }
        Ok(outputs)
    }
}

impl Finetune {
    fn examples(&self, input: &InputArtifact, tokenizer: &Tokenizer) -> Result<Vec<Example>, NodeError> {
        match (self.objective, input.kind) {
            (Objective::Sami, _) => examples::contrasts(input, tokenizer, self.score_eos),
            (Objective::Sft, ArtifactType::Scores) => examples::own_responses(input, tokenizer, self.score_eos),
            (Objective::Sft, _) => {
                let (Some(prompt), Some(response)) = (&self.prompt, &self.response) else {
                    return Err(NodeError::with_help(
                        "a dataset has no prompts and responses of its own",
                        "give the templates `prompt` and `response`",
                    ));
                };
                examples::pairs(input, tokenizer, prompt, response, self.score_eos)
            }
            (Objective::Lm, _) => examples::texts(input, tokenizer, self.text.as_deref().unwrap_or("{{ text }}")),
        }
    }

    fn settings(&self, cx: &Cx<'_>, examples: usize) -> TrainSettings {
        let epochs = |epochs: f64| (epochs * examples as f64 / self.batch_queries as f64).ceil().max(1.0) as u64;
        let objective = match self.objective {
            Objective::Sami => train::Objective::Sami { sides: self.sides, length_norm: self.length_norm },
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
            kl_over: KlOver::Cells,
            seed: self.seed,
            probe_every: self.probe_every,
            micro_batch: cx.micro_batch,
            compute: self.compute,
            lora: self.lora.clone(),
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
            fs_err::create_dir_all(&folder)?;
            trainer.save_adapter(&folder)?;
        }
        let lines: Vec<String> = trainer.records().iter().map(|record| json!(record).to_string()).collect();
        fs_err::write(cx.staging.join("train.jsonl"), lines.join("\n") + "\n")?;
        // A GGUF file has the tokenizer in it; other programs want it in files.
        if model.files.contains_key(gguf::FILE) {
            Tokenizer::load(&model.files)?.save(&cx.staging)?;
        }
        for name in TOKENIZER_FILES {
            if let Some(path) = model.files.get(*name) {
                fs_err::copy(path, cx.staging.join(name))?;
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

/// What is worth a look while it trains.
fn watched(record: &StepRecord) -> Map<String, Value> {
    let all = [("loss", Some(record.loss)), ("bound", record.bound), ("kl", record.kl.or(record.probe_kl))];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))).collect()
}

/// Means over the last steps, at most ten.
fn metrics(records: &[StepRecord]) -> Map<String, Value> {
    let last = &records[records.len().saturating_sub(10)..];
    let mean = |figure: fn(&StepRecord) -> Option<f64>| {
        let values: Option<Vec<f64>> = last.iter().map(figure).collect();
        values.filter(|values| !values.is_empty()).map(|values| values.iter().sum::<f64>() / values.len() as f64)
    };
    let figures: [(&str, Option<f64>); 8] = [
        ("loss", mean(|record| Some(record.loss))),
        ("mean_length", mean(|record| Some(record.mean_length))),
        ("bound", mean(|record| record.bound)),
        ("gap", mean(|record| record.gap)),
        ("accuracy_row", mean(|record| record.accuracy_row)),
        ("accuracy_column", mean(|record| record.accuracy_column)),
        ("logprob_diagonal", mean(|record| record.logprob_diagonal)),
        ("kl", mean(|record| record.kl)),
    ];
    let mut metrics: Map<String, Value> =
        figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))).collect();
    if let Some(kl) = records.iter().rev().find_map(|record| record.probe_kl) {
        metrics.insert("probe_kl".to_owned(), json!(kl));
    }
    metrics.insert("steps".to_owned(), json!(records.len()));
    metrics
}

#[cfg(test)]
mod tests;
