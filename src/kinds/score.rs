//! Kind `score`: the log-probability of every response of a query under every constitution of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::check::input;
use super::estimate::{self, Estimate, Known};
use super::figures::ContrastFigures;
use super::generate::is_false;
use super::policy::{Pair, Policy, Sum, TooLong, Work, per_token};
use super::prompter::{Prompter, check_system};
use super::responses::{self, Answered, Scoring};
use super::{Cx, NodeError, NodeKind, Outputs, Setting, rows, template};
use crate::digest::Hasher;
use crate::lm::Join;
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};
use crate::store::{Reproduces, Tolerance};

/// The fields of kind `score`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the fields are named as the file names them")]
pub struct Score {
    pub(super) model: Input,
    pub(super) responses: Input,
    pub(super) prompt: String,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) chat: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) system: Option<String>,
    #[serde(default)]
    pub(super) reference: Option<Input>,
    #[serde(default)]
    pub(super) score_eos: bool,
    #[serde(default, skip_serializing_if = "Join::is_space")]
    pub(super) join: Join,
    #[serde(default = "yes")]
    pub(super) shuffle_principles: bool,
    #[serde(default)]
    pub(super) seed: u64,
    #[serde(default, skip_serializing_if = "TooLong::is_error")]
    pub(super) too_long: TooLong,
}

fn yes() -> bool {
    true
}

impl Spec for Score {
    fn inputs(&self) -> Vec<InputField> {
        let mut inputs = vec![
            input("model", &self.model, &[ArtifactType::Model]),
            input("responses", &self.responses, &[ArtifactType::Responses, ArtifactType::Dataset]),
        ];
        inputs.extend(self.reference.iter().map(|reference| input("reference", reference, &[ArtifactType::Model])));
        inputs
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Scores
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        template::check(&mut problems, "prompt", &self.prompt);
        check_system(&mut problems, self.system.as_deref(), self.chat);
        problems
    }
}

impl NodeKind for Score {
    const NAME: &'static str = "score";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"The log-probability of every response of a query under every constitution of it: the C×C matrix of SAMI.

| field | meaning | default |
|---|---|---|
| `model` | the model that scores | |
| `responses` | a `generate` node, or a dataset of responses made elsewhere, see below | |
| `prompt` | the *training* prompt, a template as in `generate`; kept in the rows, and what `finetune` trains on | |
| `chat`, `system` | as in `generate`; the prompts that are kept and trained on are whole conversations then | false |
| `reference` | a model; adds `kl` of `model` against it on the responses under their own constitutions | |
| `score_eos` | whether the end-of-sequence token is scored too | false |
| `join` | what stands between prompt and response where neither has white space there: `"space"`, or `"none"`, as in the authors' code | `"space"` |
| `shuffle_principles` | a new order of the principles in each constitution | true |
| `seed` | seed of that order | 0 |
| `too_long` | as in `generate`; responses are never cut | `"error"` |

A dataset has `constitutions` and `responses` in each row, two or more and as many of the one as of the other, each a text or as `generate`
makes them. The authors' training pairs (`{ID: [{prompt, response}, …]}`) are understood too: the whole prompt stands for the constitution, and
`prompt = "{{ constitution }}"` puts it back.

Makes `rows.jsonl`: the row of the responses with `prompts` (a text per constitution), `logprobs` (C×C sums in nats, rows
are constitutions, columns are responses; C×CM with M responses to each, constitution by constitution), `lengths` (tokens of each
response), and `prompts_join` where `join` is `"none"`: `finetune` trains with the same. Metrics: `bound` (InfoNCE lower bound on
the conditional mutual information from summed log-probs, nats), `bound_ceiling` (ln C), `gap` (the authors' mean log-ratio, without a ceiling),
`accuracy_row`, `accuracy_column`, `mean_length`, `kl` (with `reference`), `rows`, `rows_asked`, `rows_reused`, `tokens`.

```toml
[loop.nodes.score]
kind = "score"
model = "policy"
responses = "generate"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
```
"#;

    fn estimate(&self, known: &Known<'_>) -> Estimate {
        estimate::score(self, known)
    }

    const ROWS_OF: Option<&'static str> = Some("responses");

    fn reproduces(&self, given: &Setting<'_>) -> Reproduces {
        // Sums over a few hundred tokens, each within what `docs/gpu.md` holds bf16 to.
        given.computed(Tolerance { relative: 1e-2, absolute: 0.1 })
    }

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let all = cx.part.own(responses::read(cx.input("responses")?)?, |row| &row.row);
        if all.is_empty() && cx.part.is_shard() {
            return Ok(Outputs::default());
        }
        let (size, each) = all.first().map_or((0, 1), |row| (row.constitutions.len(), row.each()));
        let matrix = size * size * each;
        let mut pairs = Vec::with_capacity(all.len() * matrix);
        let mut prompts = Vec::with_capacity(all.len());
        let mut prompter = Prompter::new("prompt", &self.prompt)?;
        if self.chat {
            prompter = prompter.in_chat(cx.input("model")?, self.system.as_deref())?;
        }
        for row in &all {
            let own = self.prompts(&prompter, row)?;
            pairs.extend(row.cells(&own, Scoring { eos: self.score_eos, join: self.join }));
            prompts.push(own);
        }
        let diagonal: Vec<Pair> = responses::own(&pairs, size, each).cloned().collect();
        let mut policy = Policy::new(cx, cx.input("model")?).with(self.too_long);
        let mut reference =
            self.reference.is_some().then(|| cx.input("reference")).transpose()?.map(|input| Policy::new(cx, input));
        let path = cx.staging.join("rows.jsonl");
        let total = pairs.len() + if reference.is_some() { diagonal.len() } else { 0 };
        let mut work = Work::new(cx, "log-probs", total);
        let sums = work.logprobs(&mut policy, &pairs)?;
        let kl = reference.as_mut().map(|reference| work.kl(&mut policy, reference, &diagonal)).transpose()?;
        if cx.part.is_shard() {
            return Ok(Outputs::default());
        }

        let mut figures = ContrastFigures::default();
        let mut scored = Vec::with_capacity(all.len());
        for ((row, prompts), cells) in all.iter().zip(prompts).zip(sums.values.chunks(matrix)) {
            figures.add_of(cells, each)?;
            scored.push(self.row(row, prompts, cells));
        }
        rows::write(&path, &scored)?;
        let mut metrics = figures.metrics("");
        metrics.extend([
            ("rows".to_owned(), json!(scored.len())),
            ("tokens".to_owned(), json!(sums.values.iter().map(|sum| sum.tokens).sum::<usize>())),
        ]);
        metrics.extend(sums.reuse(matrix).metrics(""));
        if let Some(kl) = kl {
            metrics.insert("kl".to_owned(), json!(per_token(&kl.values)));
        }
        Ok(Outputs { files: [("rows.jsonl".to_owned(), path)].into(), metrics })
    }
}

impl Score {
    /// The training prompt under each constitution of a row.
    fn prompts(&self, prompter: &Prompter, row: &Answered) -> Result<Vec<String>, NodeError> {
        let shuffled = row.constitutions.iter().enumerate().map(|(place, constitution)| {
            if !self.shuffle_principles {
                return constitution.clone();
            }
            let mut hasher = Hasher::new();
            hasher.text("score").number(self.seed).text(&row.id).number(place as u64);
            constitution.shuffled(hasher.seed())
        });
        shuffled.map(|one| prompter.fill(&row.id, &row.row, &one)).collect()
    }

    /// The row with its scores.
    fn row(&self, row: &Answered, prompts: Vec<String>, cells: &[Sum]) -> Map<String, Value> {
        let (size, each) = (row.constitutions.len(), row.each());
        let logprobs: Vec<Vec<f64>> =
            cells.chunks(size * each).map(|cells| cells.iter().map(|cell| cell.nats).collect()).collect();
        let lengths: Vec<usize> = responses::own(cells, size, each).map(|cell| cell.tokens).collect();
        let mut scored = row.row.clone();
        scored.insert("prompts".to_owned(), json!(prompts));
        scored.insert("logprobs".to_owned(), json!(logprobs));
        scored.insert("lengths".to_owned(), json!(lengths));
        // What trains on the row joins it alike.
        match self.join {
            Join::Space => scored.remove("prompts_join"),
            Join::None => scored.insert("prompts_join".to_owned(), json!(self.join)),
        };
        scored
    }
}
