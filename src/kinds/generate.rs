//! Kind `generate`: responses of a model to queries, one under each of the constitutions drawn for a query.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::check::{input, require, sampling};
use super::contrast::Part;
use super::keep::{Candidate, Keep};
use super::policy::{Answer, Ask, Policy, Rows, TooLong, Work, response_seed};
use super::prompter::{Prompter, check_system};
use super::query::Query;
use super::speaker::{SPEAKERS, Say, SpeakSettings, Speaker};
use super::{Cx, NodeError, NodeKind, Outputs, query, rows, template};
use crate::lm::{Finish, SamplingSettings};
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};

/// The fields of kind `generate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    pub(super) model: Input,
    pub(super) queries: Input,
    pub(super) constitutions: Input,
    pub(super) prompt: String,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) chat: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) system: Option<String>,
    #[serde(default)]
    pub(super) combinations: Part,
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
    pub(super) seed: u64,
    #[serde(default = "once")]
    pub(super) samples: u64,
    #[serde(default)]
    pub(super) cut: Vec<String>,
    #[serde(default)]
    pub(super) keep: Keep,
    #[serde(default, skip_serializing_if = "TooLong::is_error")]
    pub(super) too_long: TooLong,
}

pub(super) fn max_new_tokens() -> usize {
    256
}

pub(super) fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
pub(super) fn is_false(flag: &bool) -> bool {
    !*flag
}

fn once() -> u64 {
    1
}

impl Spec for Generate {
    fn inputs(&self) -> Vec<InputField> {
        vec![
            input("model", &self.model, SPEAKERS),
            input("queries", &self.queries, &[ArtifactType::Dataset]),
            input("constitutions", &self.constitutions, &[ArtifactType::Constitutions]),
        ]
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Responses
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        template::check(&mut problems, "prompt", &self.prompt);
        check_system(&mut problems, self.system.as_deref(), self.chat);
        sampling(&mut problems, self.max_new_tokens, self.temperature, self.top_p, &self.stop);
        require(&mut problems, self.samples >= 1, "samples", "no samples", "give 1 or more");
        let varied = self.samples == 1 || self.temperature > 0.0;
        require(
            &mut problems,
            varied,
            "samples",
            "greedy samples would all be the same",
            "give `temperature` above 0 or `samples = 1`",
        );
        problems
    }
}

impl NodeKind for Generate {
    const NAME: &'static str = "generate";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"Responses of a model to queries: for each query one under each of the constitutions drawn for it.

Each response has its own random numbers, seeded by `seed`, the query's id and the constitution's place; batch size and
the other rows do not matter. Rows are memoised: a dataset that grew by 100 rows costs 100 rows.

| field | meaning | default |
|---|---|---|
| `model` | the model that answers; an endpoint (`openai:…`) is told `prompt` as what a user says, and `system` before it with `chat` | |
| `queries` | a dataset; its fields can be used in `prompt` | |
| `constitutions` | a `constitutions` node | |
| `prompt` | template: the query's fields, `constitution` (text), `principles` (list of `name`, `polarity`, `text`) | |
| `chat` | the prompt is what a user says: it is put into the model's chat template, for models that were trained on conversations | false |
| `system` | with `chat`: template of a system message before it | |
| `combinations` | constitutions are drawn from `"train"`, `"held-out"` or `"all"` combinations | `"train"` |
| `max_new_tokens` | tokens of a response at most | 256 |
| `temperature`, `top_k`, `top_p` | sampling; temperature 0 is greedy, `top_k` 0 and `top_p` 1 keep all tokens | 0, 0, 1 |
| `stop` | texts that end a response; not part of it | `[]` |
| `cut` | texts at which a finished response is cut off | `[]` |
| `samples` | rows made of each query, each with its own constitutions and random numbers | 1 |
| `seed` | seed of draws and samples | 0 |
| `too_long` | what happens to a prompt that is longer than the model's positions: `"error"` names the row, `"cut"` leaves out the prompt's first tokens, but for the one that begins every text | `"error"` |
| `keep` | what a query's responses must be like for its row to stay, see below | identical ones drop |

`keep`: `forbid` (texts that no response may contain), `ends_with` (a text, or a list of which one must end each response),
`distinct` (no two responses of a query alike, default true), `min_tokens` (1), `finished` (the model
ended each response by itself). What each dropped is counted in metrics `dropped.NAME`.

Makes `rows.jsonl`: `{id, …query fields, constitutions: [{text, format, principles}], responses: [{text, tokens, finish}]}`.
Responses are stripped of white space at both ends. Metrics: `rows`, `rows_reused`, `tokens`, `mean_length`, `dropped`, `dropped.*`;
of an endpoint also `calls`, `calls_reused`, `retries`, `prompt_tokens`, `completion_tokens` and, with `price`, `cost`.

```toml
[loop.nodes.generate]
kind = "generate"
model = "policy"
queries = { from = "queries", skip = "${100 * (iteration - 1)}", take = 100 }
constitutions = "constitutions"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
max_new_tokens = 40
temperature = 1.0
```
"#;

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let constitutions = query::read_constitutions(cx.input("constitutions")?)?;
        let queries = rows::read_input(cx.input("queries")?)?;
        let queries = query::pose(&queries, &constitutions, self.seed, self.combinations, self.samples)?;
        if cx.input("model")?.kind == ArtifactType::Endpoint {
            return self.run_spoken(cx, &queries, constitutions.per_query);
        }
        let mut prompter = Prompter::new("prompt", &self.prompt)?;
        if self.chat {
            prompter = prompter.in_chat(cx.input("model")?, self.system.as_deref())?;
        }
        let mut asks = Vec::with_capacity(queries.len() * constitutions.per_query);
        for query in &queries {
            for (place, constitution) in query.constitutions.iter().enumerate() {
                let prompt = prompter.fill(&query.id, &query.row, constitution)?;
                let seed = response_seed(self.seed, &query.id, place);
                asks.push(Ask { row: query.id.clone(), prompt, seed });
            }
        }
        let mut policy = Policy::new(cx, cx.input("model")?).with(self.too_long);
        let path = cx.staging.join("rows.jsonl");
        let answers = Work::new(cx, "responses", asks.len()).sample(&mut policy, &self.settings(), &asks)?;
        let (kept, metrics) = self.keep(&queries, &answers, constitutions.per_query)?;
        rows::write(&path, &kept)?;
        Ok(Outputs { files: [("rows.jsonl".to_owned(), path)].into(), metrics })
    }
}

impl Generate {
    /// The same with a model that can only be spoken to.
    fn run_spoken(&self, cx: &mut Cx<'_>, queries: &[Query], per_query: usize) -> Result<Outputs, NodeError> {
        if self.top_k != 0 {
            return Err(NodeError::with_help(
                "an endpoint is not asked for `top_k`",
                "leave `top_k` out, or give the server's own field with `extra = { top_k = … }` of the model",
            ));
        }
        let prompter = Prompter::new("prompt", &self.prompt)?;
        let system = self.system.as_ref().map(|text| Prompter::new("system", text)).transpose()?;
        let mut says = Vec::with_capacity(queries.len() * per_query);
        for query in queries {
            for (place, constitution) in query.constitutions.iter().enumerate() {
                let fill = |prompter: &Prompter| prompter.fill(&query.id, &query.row, constitution);
                let (user, system) = (fill(&prompter)?, system.as_ref().map(fill).transpose()?);
                let seed = response_seed(self.seed, &query.id, place);
                says.push(Say { row: query.id.clone(), system, user, seed });
            }
        }
        let (max_new_tokens, temperature, top_p) = (self.max_new_tokens, self.temperature, self.top_p);
        let settings = SpeakSettings { max_new_tokens, temperature, top_p, stop: self.stop.clone() };
        let mut speaker = Speaker::open(cx, "model")?;
        let path = cx.staging.join("rows.jsonl");
        let answers = Work::new(cx, "responses", says.len()).speak(&mut speaker, &settings, &says)?;
        let (kept, mut metrics) = self.keep(queries, &answers, per_query)?;
        metrics.extend(speaker.metrics(""));
        rows::write(&path, &kept)?;
        Ok(Outputs { files: [("rows.jsonl".to_owned(), path)].into(), metrics })
    }

    fn settings(&self) -> SamplingSettings {
        SamplingSettings {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            stop: self.stop.clone(),
        }
    }

    /// Puts queries and answers together to rows, drops what the filters drop, and counts.
    fn keep(
        &self,
        queries: &[Query],
        answers: &Rows<Answer>,
        size: usize,
    ) -> Result<(Vec<rows::Row>, Map<String, Value>), NodeError> {
        let mut counts = self.keep.counts();
        let (mut kept, mut sampled, mut length) = (Vec::new(), 0, 0);
        for (query, answers) in queries.iter().zip(answers.values.chunks(size)) {
            sampled += answers.iter().map(|answer| answer.tokens).sum::<usize>();
            let texts: Vec<String> = answers.iter().map(|answer| self.cut(&answer.text)).collect();
            let candidates: Vec<Candidate<'_>> = texts
                .iter()
                .zip(answers)
                .map(|(text, answer)| Candidate {
                    text,
                    tokens: answer.tokens,
                    finished: answer.finish != Finish::Length,
                })
                .collect();
            if let Some(filter) = self.keep.drops(&candidates) {
                *counts.entry(filter).or_default() += 1;
                continue;
            }
            length += answers.iter().map(|answer| answer.tokens).sum::<usize>();
            let responses: Vec<Value> = texts
                .iter()
                .zip(answers)
                .map(|(text, answer)| json!({"text": text, "tokens": answer.tokens, "finish": answer.finish}))
                .collect();
            let mut row = query.row.clone();
            row.insert("id".to_owned(), json!(query.id));
            row.insert("constitutions".to_owned(), json!(query.constitutions));
            row.insert("responses".to_owned(), json!(responses));
            kept.push(row);
        }
        if kept.is_empty() {
            let dropped: Vec<String> = counts
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(|(filter, count)| format!("`{filter}` dropped {count}"))
                .collect();
            return Err(NodeError::with_help(
                format!("no row is left of {}: {}", queries.len(), dropped.join(", ")),
                "loosen `keep`; with `distinct`, greedy responses that do not depend on the constitution all drop: \
                 sample with `temperature` above 0 or give a model that follows constitutions at least a little",
            ));
        }
        let dropped = queries.len() - kept.len();
        let mut metrics = Map::from_iter([
            ("rows".to_owned(), json!(kept.len())),
            ("rows_reused".to_owned(), json!(answers.groups_reused(size))),
            ("tokens".to_owned(), json!(sampled)),
            ("mean_length".to_owned(), json!(length as f64 / (kept.len() * size) as f64)),
            ("dropped".to_owned(), json!(dropped)),
        ]);
        metrics.extend(counts.into_iter().map(|(filter, count)| (format!("dropped.{filter}"), json!(count))));
        Ok((kept, metrics))
    }

    /// A response as it is kept: up to the first text of `cut`, without white space around it.
    fn cut(&self, text: &str) -> String {
        let end = self.cut.iter().filter(|cut| !cut.is_empty()).filter_map(|cut| text.find(cut.as_str())).min();
        text[..end.unwrap_or(text.len())].trim().to_owned()
    }
}
