//! Kind `evaluate`: holds models against each other on the same queries, constitutions and seeds.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::check::input;
use super::contest::Contest;
use super::contrast::Part;
use super::estimate::{self, Estimate, Known};
use super::generate::{max_new_tokens, one};
use super::judge::rules::Rules;
use super::policy::TooLong;
use super::shape::Shape;
use super::speaker::SPEAKERS;
use super::versus::Ties;
use super::{Cx, NodeError, NodeKind, Outputs, breakdown, figures, rows};
use crate::lm::Join;
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};

mod validate;

/// Under which of a query's constitutions responses are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// The first.
    #[default]
    First,
    /// Each of them.
    All,
}

/// What a verdict of a model is read off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum By {
    /// The log-probabilities of the two labels.
    Labels,
    /// What it says.
    Words,
}

/// In which orders the two responses are shown to a model that judges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Orders {
    /// Both, one after the other.
    #[default]
    Both,
    /// One, drawn for each query.
    One,
}

impl Orders {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
    fn is_both(&self) -> bool {
        *self == Self::Both
    }
}

/// The fields of kind `evaluate`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    pub(super) candidates: IndexMap<String, Input>,
    pub(super) against: String,
    pub(super) queries: Input,
    pub(super) constitutions: Input,
    pub(super) prompt: String,
    #[serde(default)]
    pub(super) score_prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) chat: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chat_prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) system: Option<String>,
    #[serde(default = "all")]
    pub(super) combinations: Part,
    #[serde(default)]
    pub(super) compare: Compare,
    #[serde(default)]
    pub(super) rules: Option<Rules>,
    #[serde(default)]
    pub(super) judge: Option<Input>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) judge_prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) judge_system: Option<String>,
    #[serde(default = "labels", skip_serializing_if = "are_usual")]
    pub(super) judge_labels: [String; 2],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) judge_by: Option<By>,
    #[serde(default, skip_serializing_if = "Orders::is_both")]
    pub(super) judge_orders: Orders,
    #[serde(default = "retries", skip_serializing_if = "is_retries")]
    pub(super) judge_retries: usize,
    #[serde(default = "judge_tokens", skip_serializing_if = "is_judge_tokens")]
    pub(super) judge_max_tokens: usize,
    #[serde(default, skip_serializing_if = "Ties::is_half")]
    pub(super) ties: Ties,
    #[serde(default = "max_new_tokens")]
    pub(super) max_new_tokens: usize,
    #[serde(default)]
    pub(super) temperature: f64,
    #[serde(default)]
    pub(super) top_k: usize,
    #[serde(default = "one")]
    pub(super) top_p: f64,
    #[serde(default)]
    pub(super) stop: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) until: Vec<String>,
    #[serde(default)]
    pub(super) score_eos: bool,
    #[serde(default, skip_serializing_if = "Join::is_space")]
    pub(super) join: Join,
    #[serde(default)]
    pub(super) seed: u64,
    #[serde(default, skip_serializing_if = "TooLong::is_error")]
    pub(super) too_long: TooLong,
}

fn all() -> Part {
    Part::All
}

fn labels() -> [String; 2] {
    ["A", "B"].map(str::to_owned)
}

fn are_usual(given: &[String; 2]) -> bool {
    *given == labels()
}

fn retries() -> usize {
    2
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_retries(given: &usize) -> bool {
    *given == retries()
}

fn judge_tokens() -> usize {
    512
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_judge_tokens(given: &usize) -> bool {
    *given == judge_tokens()
}

/// What can be a candidate: a model, or responses that there are already.
const CANDIDATES: &[ArtifactType] =
    &[ArtifactType::Model, ArtifactType::Endpoint, ArtifactType::Dataset, ArtifactType::Responses];

impl Spec for Evaluate {
    fn inputs(&self) -> Vec<InputField> {
        let candidate =
            |(name, candidate): (&String, &Input)| input(&format!("candidates.{name}"), candidate, CANDIDATES);
        let mut inputs: Vec<InputField> = self.candidates.iter().map(candidate).collect();
        inputs.push(input("queries", &self.queries, &[ArtifactType::Dataset]));
        inputs.push(input("constitutions", &self.constitutions, &[ArtifactType::Constitutions]));
        inputs.extend(self.judge.iter().map(|judge| input("judge", judge, SPEAKERS)));
        inputs
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Evaluation
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn validate(&self) -> Vec<Problem> {
        validate::validate(self)
    }
}

impl Evaluate {
    /// What becomes of the answer to a question: one in a conversation is a response as it is.
    pub(super) fn shape(&self, in_chat: bool) -> Shape<'_> {
        if in_chat {
            return Shape { after: None, until: &[], cut: &[] };
        }
        Shape { after: self.after.as_deref(), until: &self.until, cut: &[] }
    }

    /// How often a model that judges is asked at most about so many queries, each with so many constitutions, not counting
    /// questions that are asked again. Identical responses are not asked about.
    pub fn judge_calls(&self, queries: u64, per_query: u64) -> u64 {
        if self.judge.is_none() {
            return 0;
        }
        let compared = if self.compare == Compare::All { per_query } else { 1 };
        let orders = if self.judge_orders == Orders::Both { 2 } else { 1 };
        (self.candidates.len() as u64).saturating_sub(1) * queries * compared * orders
    }
}

impl NodeKind for Evaluate {
    const NAME: &'static str = "evaluate";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"Holds models against each other: every candidate answers the same queries under the same constitutions, with
the same prompt, settings and seeds; a judge that does not know whose response is whose compares them.

| field | meaning | default |
|---|---|---|
| `candidates` | models by name; or responses that there are already, see below | |
| `against` | the candidate that the others are compared with, and that KL is measured from | |
| `queries`, `constitutions`, `prompt`, sampling fields, `seed`, `too_long` | as in `generate` | |
| `prefix`, `after`, `until` | as in `generate`, for all that are not asked in a conversation; a response without the text that it should follow is empty | |
| `score_prompt` | the training prompt, for `bound`, `gap`, the accuracies and `kl` | `prompt` |
| `score_eos`, `join` | as in `score` | |
| `chat` | candidates that were trained on conversations: each is asked through its own chat template; endpoints always are | `[]` |
| `chat_prompt` | what the user says to those, instead of `prompt` and `score_prompt` | `prompt` |
| `system` | with `chat`: template of a system message before it | |
| `combinations` | `"train"`, `"held-out"` or `"all"` combinations of principles | `"all"` |
| `compare` | under the `"first"` constitution of a query, or under `"all"` | `"first"` |
| `ties` | what a comparison counts that nobody won: `"half"` a win, or a `"loss"` (only more than half a win counts then) | `"half"` |
| `rules` | a judge that needs no model, see below | |
| `judge` | a model that judges, with weights here or an endpoint, see below | |

**Candidates** are models, endpoints, or responses: a dataset, or a `generate` node with the same `constitutions`, `combinations` and `seed`.
Each query takes the row with its id: `response`, a text, or `responses`, a text for each of its constitutions. A query without one is an
error. What has no weights here has no `bound`, `gap`, accuracies or `kl`.

**Rules.** `rules.principles.NAME = { definition = CHECK, antithesis = CHECK }` says how a response shows that it follows the principle
`NAME` or its antithesis; `rules.well_formed = CHECK` what any response must be like. A CHECK is a table in which every
key must hold: `contains_any`, `contains_none`, `starts_with_any`, `ends_with_any` (lists; whole words, case
ignored), `min_words`, `max_words`, `min_sentences`, `max_sentences`, and `matches` (a regular expression for the whole
response; a template over the query's fields). A response's mark is the share of the constitution's principles that it
follows, less 1 if it is not well formed; the higher mark wins, equal marks are half a win each. With a `judge` too the rules decide nothing and
give `adherence` and `well_formed`.

**Judge.** It sees the constitution (its principles in an order drawn by `seed`), the request and two responses, and never whose
they are. Every comparison is judged in both orders. Identical responses are a tie and are not sent. Each answer is remembered as soon as it
comes and no question is asked twice, in no later run either.

| field | meaning | default |
|---|---|---|
| `judge_by` | `"labels"`: the log-probabilities of the two labels after the question, added up over both orders; `"words"`: what it says | labels with weights here, words of an endpoint |
| `judge_prompt` | template of the question: the query's fields, `constitution`, `principles`, `a`, `b`, `labels` (`labels[0]` is that of `a`), `asked` (`query`; without that field, all texts of the row) | one that shows all of it |
| `judge_system` | template of a system message; an empty one leaves it out | a short one |
| `judge_labels` | what the two responses are called | `["A", "B"]` |
| `judge_orders` | `"both"`, or `"one"` drawn for each query, as in the paper: half the calls, and no correction for a judge that likes one place | `"both"` |
| `judge_retries` | how often it is asked again after an answer without a verdict | 2 |
| `judge_max_tokens` | tokens of an answer at most | 512 |

In words the verdict is the last line that begins with `Verdict:` (or the line below, if nothing comes after that), or a last line that is nothing
but a label; it must hold exactly one of the two labels, as a whole word in its spelling. Everything else, such as `Both`, is
no verdict: it is asked again with a reminder, and counts as a tie in `judge.unparsed` when retries are used up. The two orders
count half each; labels go by the sum of both differences.

Makes `rows.jsonl`: a query per line, with responses, marks, verdicts and the judge's words; and `breakdown.json`: all rates with
all intervals, by principle and by constitution (`sami show`).

| metric | of each candidate but `against` |
|---|---|
| `win_rate.NAME` | mean over queries; `win_rate_low`, `win_rate_high`: 95%, Wilson's interval with a query as one trial and ties as half a win, which is never too narrow; `win_rate_bootstrap_low`, `_high`: percentiles over 2,000 resamples of the queries |
| `win_rate_balanced.NAME` | mean of the rate where the candidate's response is longer and where it is not, in characters; `_low`, `_high` by bootstrap. Absent if there is no comparison of one sort |
| `win_rate_controlled.NAME` | at equal length: σ(a) of a logistic regression `win ~ σ(a + b tanh(Δ/std Δ))`, its slope penalised as cross-validation says; `_low`, `_high` by bootstrap |
| `ties.NAME` | share of the comparisons that nobody won |
| `paired.ONE.OTHER` | difference of two candidates' win rates on the same queries; `paired_low`, `paired_high` by bootstrap; `paired_p`: exact two-sided sign test (McNemar's, without ties) |

Of each candidate also `adherence.NAME`, `well_formed.NAME` (with rules), `mean_length.NAME` (tokens), `mean_characters.NAME`, `bound.NAME`,
`gap.NAME`, `accuracy_row.NAME`, `accuracy_column.NAME`, `kl.NAME` (of the candidate from `against`, nats a token, on its own responses). Of the
judge: `judge.rulings` (orders judged), `judge.identical` (comparisons it was not asked about), `judge.asked_again`, `judge.unparsed`, `judge.split`
(comparisons of which the orders came to different results), `judge.for_first` (verdicts for the response shown first). Of endpoints what their calls came to, as in `generate`: `judge.calls`, `calls.NAME`, …. And
`bound_ceiling`, `rows`, `rows_asked` and `rows_reused` (answers of all candidates to a query), `judge.rows_asked` and `judge.rows_reused` (rulings), `tokens`. With exactly one candidate besides `against`, its win rates and `ties` also stand without a name.
Where a candidate's responses are more than 1.5 times as long as those of `against`, the node's log has a warning: length alone pleases many
judges.

```toml
[nodes.evaluate]
kind = "evaluate"
candidates = { base = "base", sami = "finetune" }
against = "base"
queries = "held_out"
constitutions = "constitutions"
combinations = "held-out"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
temperature = 1.0
rules.principles.brief = { definition = { max_sentences = 2 }, antithesis = { min_sentences = 4 } }
```
"#;

    fn estimate(&self, known: &Known<'_>) -> Estimate {
        estimate::evaluate(self, known)
    }

    const ROWS_OF: Option<&'static str> = Some("queries");

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let (path, report) = (cx.staging.join("rows.jsonl"), cx.staging.join(breakdown::FILE));
        let Some(contest) = Contest::hold(self, cx)? else { return Ok(Outputs::default()) };
        rows::write(&path, &contest.rows())?;
        breakdown::write(&report, &contest.report())?;
        let files = [("rows.jsonl".to_owned(), path), (breakdown::FILE.to_owned(), report)];
        let metrics = contest.metrics()?;
        for name in figures::longer(&metrics, &self.against) {
            tracing::warn!("the responses of `{name}` are more than 1.5 times as long as those of `{}`", self.against);
        }
        Ok(Outputs { files: files.into(), metrics })
    }
}
