//! Kind `evaluate`: holds models against each other on the same queries, constitutions and seeds.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::check::{input, problem, require, sampling};
use super::contest::Contest;
use super::contrast::Part;
use super::generate::{max_new_tokens, one};
use super::judge::rules::Rules;
use super::policy::TooLong;
use super::prompter::check_system;
use super::{Cx, NodeError, NodeKind, Outputs, figures, rows, template};
use crate::lm::Join;
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};

/// Under which of a query's constitutions responses are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// The first.
    #[default]
    First,
    /// Each of them.
    All,
}

/// The fields of kind `evaluate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    pub(super) judge: Option<String>,
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

impl Spec for Evaluate {
    fn inputs(&self) -> Vec<InputField> {
        let mut inputs: Vec<InputField> = self
            .candidates
            .iter()
            .map(|(name, candidate)| input(&format!("candidates.{name}"), candidate, &[ArtifactType::Model]))
            .collect();
        inputs.push(input("queries", &self.queries, &[ArtifactType::Dataset]));
        inputs.push(input("constitutions", &self.constitutions, &[ArtifactType::Constitutions]));
        inputs
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Evaluation
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        require(
            &mut problems,
            !self.candidates.is_empty(),
            "candidates",
            "no candidates",
            "give models by name: { base = \"base\", sami = \"finetune\" }",
        );
        if !self.candidates.contains_key(&self.against) {
            let names: Vec<_> = self.candidates.keys().map(|name| format!("`{name}`")).collect();
            problems.push(problem(
                "against",
                format!("`{}` is not among the candidates", self.against),
                format!("name one of {}", names.join(", ")),
            ));
        }
        template::check(&mut problems, "prompt", &self.prompt);
        for (field, text) in [("score_prompt", &self.score_prompt), ("chat_prompt", &self.chat_prompt)] {
            if let Some(text) = text {
                template::check(&mut problems, field, text);
            }
        }
        if let Some(name) = self.chat.iter().find(|name| !self.candidates.contains_key(*name)) {
            let names: Vec<_> = self.candidates.keys().map(|name| format!("`{name}`")).collect();
            let what = format!("`{name}` is not among the candidates");
            problems.push(problem("chat", what, format!("name some of {}", names.join(", "))));
        }
        check_system(&mut problems, self.system.as_deref(), !self.chat.is_empty());
        require(
            &mut problems,
            self.chat_prompt.is_none() || !self.chat.is_empty(),
            "chat_prompt",
            "`chat_prompt` without `chat`",
            "name the candidates that are asked with it: `chat = [\"NAME\"]`",
        );
        sampling(&mut problems, self.max_new_tokens, self.temperature, self.top_p, &self.stop);
        match (&self.judge, &self.rules) {
            (Some(_), _) => problems.push(problem(
                "judge",
                "a model cannot judge yet",
                "remove `judge` and give `rules = { … }` for principles that a program can check",
            )),
            (None, None) => problems.push(problem(
                "rules",
                "there is no judge",
                "give `rules = { principles = { NAME = { definition = { … }, antithesis = { … } } } }`",
            )),
            (None, Some(rules)) => problems.extend(rules.validate("rules")),
        }
        problems
    }
}

impl NodeKind for Evaluate {
    const NAME: &'static str = "evaluate";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"Holds models against each other: every candidate answers the same queries under the same constitutions, with
the same prompt, settings and seeds; a judge that does not know whose response is whose compares them.

| field | meaning | default |
|---|---|---|
| `candidates` | models by name | |
| `against` | the candidate that the others are compared with, and that KL is measured from | |
| `queries`, `constitutions`, `prompt`, sampling fields, `seed`, `too_long` | as in `generate` | |
| `score_prompt` | the training prompt, for `bound`, `gap`, the accuracies and `kl` | `prompt` |
| `score_eos`, `join` | as in `score` | |
| `chat` | candidates that were trained on conversations: each is asked through its own chat template | `[]` |
| `chat_prompt` | what the user says to those, instead of `prompt` and `score_prompt` | `prompt` |
| `system` | with `chat`: template of a system message before it | |
| `combinations` | `"train"`, `"held-out"` or `"all"` combinations of principles | `"all"` |
| `compare` | under the `"first"` constitution of a query, or under `"all"` | `"first"` |
| `rules` | a judge that needs no model, see below | |
| `judge` | a model that judges: not available yet | |

`rules.principles.NAME = { definition = CHECK, antithesis = CHECK }` says how a response shows that it follows the principle
`NAME` or its antithesis; `rules.well_formed = CHECK` what any response must be like. A CHECK is a table in which every
key must hold: `contains_any`, `contains_none`, `starts_with_any`, `ends_with_any` (lists; whole words, case
ignored), `min_words`, `max_words`, `min_sentences`, `max_sentences`, and `matches` (a regular expression for the whole
response; a template over the query's fields). A response's mark is the share of the constitution's principles that it
follows, less 1 if it is not well formed; the higher mark wins, equal marks are half a win each.

Makes `rows.jsonl`: a comparison per line. Metrics: `win_rate.NAME` with its 95% interval `win_rate_low.NAME`, `win_rate_high.NAME`
(Wilson's interval with a query as one trial and ties as half a win, which is never too narrow), and for each candidate `adherence.NAME`,
`well_formed.NAME`, `mean_length.NAME`, `bound.NAME`, `gap.NAME`, `accuracy_row.NAME`, `accuracy_column.NAME`, `kl.NAME` (of the
candidate from `against`, nats a token, on its own responses); `bound_ceiling`, `rows`, `rows_reused`, `tokens`. With exactly one candidate besides
`against`, its figures also stand without a name: `win_rate`, `win_rate_low`, `win_rate_high`. Where a candidate's
responses are more than 1.5 times as long as those of `against`, the node's log has a warning: length alone pleases many judges.

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

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let path = cx.staging.join("rows.jsonl");
        let contest = Contest::hold(self, cx)?;
        rows::write(&path, &contest.rows())?;
        let metrics = contest.metrics()?;
        for name in figures::longer(&metrics, &self.against) {
            tracing::warn!("the responses of `{name}` are more than 1.5 times as long as those of `{}`", self.against);
        }
        Ok(Outputs { files: [("rows.jsonl".to_owned(), path)].into(), metrics })
    }
}
