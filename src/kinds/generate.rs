//! Kind `generate`: responses of a model to queries, one under each of the constitutions drawn for a query.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::check::{input, require, sampling};
use super::contrast::Part;
use super::estimate::{self, Estimate, Known};
use super::keep::{Candidate, Keep};
use super::policy::{Answer, Policy, Rows, TooLong, Work};
use super::prompter::{Prompter, check_shape, check_system};
use super::query::Query;
use super::shape::{Shape, Shaped};
use super::speaker::{SPEAKERS, Say, SpeakSettings, Speaker};
use super::{Cx, NodeError, NodeKind, Outputs, markers, query, rows, template};
use crate::lm::{Finish, SamplingSettings};
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};

/// The fields of kind `generate`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
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
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub(super) responses_per_constitution: u64,
    #[serde(default)]
    pub(super) cut: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) until: Vec<String>,
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_once(number: &u64) -> bool {
    *number == 1
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
        check_shape(&mut problems, self.prefix.as_deref(), self.after.as_deref());
        self.keep.validate(&mut problems);
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
        let each = self.responses_per_constitution;
        require(&mut problems, each >= 1, "responses_per_constitution", "no responses", "give 1 or more");
        require(
            &mut problems,
            each <= 1 || self.temperature > 0.0,
            "responses_per_constitution",
            "greedy responses to one constitution would all be the same",
            "give `temperature` above 0 or `responses_per_constitution = 1`",
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
| `prefix` | template of a text that the model is made to begin with, such as `" The post"`: it stands after the prompt (in a conversation, after the model's turn has begun) and stays at the start of the response | |
| `after` | the response is what follows the first of this text, such as `"Summary:"` after a reasoning; rows in which a response has none drop, counted as `dropped.after` | |
| `until` | texts that end the response, looked for after `after` and the white space there; unlike `stop`, they do not end the reasoning | `[]` |
| `samples` | rows made of each query, each with its own constitutions and random numbers | 1 |
| `responses_per_constitution` | responses to each constitution of a row, M, with random numbers of their own; `score` and `finetune` then have C×CM matrices | 1 |
| `seed` | seed of draws and samples | 0 |
| `too_long` | what happens to a prompt that is longer than the model's positions: `"error"` names the row, `"cut"` leaves out the prompt's first tokens, but for the one that begins every text | `"error"` |
| `keep` | what a query's responses must be like for its row to stay, see below | identical ones drop |

`keep`; what each filter dropped is counted in metrics `dropped.NAME`:

| filter | a query's row stays if | default |
|---|---|---|
| `forbid` | no response contains one of these texts (case counts) | `[]` |
| `starts_with_none` | no response starts with one of these, such as `"I'm sorry"` | `[]` |
| `ends_with` | one of these ends each response; a text or a list | any end |
| `min_tokens` | each response has so many tokens; empty ones never stay | 1 |
| `first`, `others` | `{ forbid, starts_with_none, ends_with, min_tokens }` for the responses under the first constitution, or for all but those | |
| `finished` | the model ended each response by itself, or at a text of `stop` or `until` | false |
| `distinct` | no two responses to different constitutions are equal: those of one text pull the constitutions together instead of apart | true |
| `min_distance` | each two responses to different constitutions differ in this share of their words (edit distance over the longer one's words) | 0 |
| `forbid_in_query` | the query brings none of these texts into the prompt; it is not asked otherwise | `[]` |

If no row is left, the node stops with these counts. Queries that bring into the prompt what tells its parts apart (its headings
such as `### Main Task`, its labels such as `Human:`, texts of `stop`, `cut`, `until` and `after`, the special texts of a
conversation) are told of in the log and counted in metric `marked`: list those texts in `forbid_in_query` to leave such queries out,
or take them out where the dataset's field is made, as in `query = "{{ post | replace('Human:', 'Human') }}"`. A text that most queries
have, such as a label that they begin with, is taken to be meant.

Makes `rows.jsonl`: `{id, …query fields, constitutions: [{text, format, principles}], responses: [{text, tokens, finish}]}`.
Responses are stripped of white space at both ends, and stand constitution by constitution; `tokens` are those that were sampled, a
reasoning's too. With `after` a response also has `raw`, the text with what was taken off. Metrics: `rows`, `rows_asked`, `rows_reused`, `tokens`,
`mean_length`, `dropped`, `dropped.*`; of an endpoint also `calls`, `calls_reused`, `retries`, `prompt_tokens`, `completion_tokens`
and, with `price`, `cost`.

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

    fn estimate(&self, known: &Known<'_>) -> Estimate {
        estimate::generate(self, known)
    }

    const ROWS_OF: Option<&'static str> = Some("queries");

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let constitutions = query::read_constitutions(cx.input("constitutions")?)?;
        let queries = rows::read_input(cx.input("queries")?)?;
        let queries = query::pose(&queries, &constitutions, self.seed, self.combinations, self.samples)?;
        let called = cx.input("model")?.kind == ArtifactType::Endpoint;
        let mut prompter = Prompter::new("prompt", &self.prompt)?.beginning(self.prefix.as_deref())?;
        if self.chat && !called {
            prompter = prompter.in_chat(cx.input("model")?, self.system.as_deref())?;
        }
        let posed = queries.len();
        let (queries, marked) = self.screen(queries, &prompter)?;
        let queries = cx.part.own(queries, |query| &query.row);
        let path = cx.staging.join("rows.jsonl");
        let sampled = if called { self.call(cx, &queries, &prompter)? } else { self.sample(cx, &queries, &prompter)? };
        if cx.part.is_shard() {
            return Ok(Outputs::default());
        }
        let size = constitutions.per_query * self.responses_per_constitution as usize;
        let (kept, mut metrics) = self.keep(posed, &queries, &sampled, size)?;
        metrics.extend(sampled.metrics);
        if marked > 0 {
            metrics.insert("marked".to_owned(), json!(marked));
        }
        rows::write(&path, &kept)?;
        Ok(Outputs { files: [("rows.jsonl".to_owned(), path)].into(), metrics })
    }
}

/// What a model said to each query under each of its constitutions.
struct Sampled {
    answers: Rows<Answer>,
    /// What each was made to begin with.
    prefixes: Vec<String>,
    /// Of an endpoint's calls.
    metrics: Map<String, Value>,
}

impl Generate {
    fn sample(&self, cx: &mut Cx<'_>, queries: &[Query], prompter: &Prompter) -> Result<Sampled, NodeError> {
        let asked = prompter.ask(queries, self.seed, self.responses_per_constitution as usize)?;
        let mut policy = Policy::new(cx, cx.input("model")?).with(self.too_long);
        let mut work = Work::new(cx, "responses", asked.asks.len());
        let answers = work.sample(&mut policy, &self.settings(), &asked.asks)?;
        Ok(Sampled { answers, prefixes: asked.prefixes, metrics: Map::new() })
    }

    /// The same with an endpoint, which can only be spoken to.
    fn call(&self, cx: &mut Cx<'_>, queries: &[Query], prompter: &Prompter) -> Result<Sampled, NodeError> {
        if let Some(field) =
            [(self.top_k != 0, "top_k"), (self.prefix.is_some(), "prefix")].iter().find(|(given, _)| *given)
        {
            return Err(NodeError::with_help(
                format!("`model` is an endpoint, which takes no `{}`", field.1),
                "leave it out; what the server has of its own can be given with `extra = { … }` of the model",
            ));
        }
        let system = self.system.as_ref().map(|text| Prompter::new("system", text)).transpose()?;
        let mut says = Vec::new();
        for query in queries {
            for (place, constitution) in query.constitutions.iter().enumerate() {
                let said = |prompter: &Prompter| prompter.said(&query.id, &query.row, constitution);
                let (user, system) = (said(prompter)?, system.as_ref().map(said).transpose()?);
                for seed in query.seeds(self.seed, place, self.responses_per_constitution as usize) {
                    says.push(Say { row: query.id.clone(), system: system.clone(), user: user.clone(), seed });
                }
            }
        }
        let (max_new_tokens, temperature, top_p) = (self.max_new_tokens, self.temperature, self.top_p);
        let settings = SpeakSettings { max_new_tokens, temperature, top_p, stop: self.stop.clone() };
        let mut speaker = Speaker::open(cx, "model")?;
        let answers = Work::new(cx, "responses", says.len()).speak(&mut speaker, &settings, &says)?;
        Ok(Sampled { answers, prefixes: vec![String::new(); says.len()], metrics: speaker.metrics("") })
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

    /// Leaves out the queries that bring a forbidden text into their prompts, and tells of those that bring in what tells its
    /// parts apart; returns how many do.
    fn screen(&self, queries: Vec<Query>, prompter: &Prompter) -> Result<(Vec<Query>, usize), NodeError> {
        let forbidden = &self.keep.forbid_in_query;
        let ends = self.stop.iter().chain(&self.cut).chain(&self.until).chain(&self.after).cloned();
        let mut markers = markers::distinct(ends.chain(prompter.markers()));
        markers.retain(|marker| !forbidden.contains(marker));
        let mut screened = Vec::with_capacity(queries.len());
        let mut holders: Vec<Vec<String>> = vec![Vec::new(); markers.len()];
        for query in queries {
            let Some(constitution) = query.constitutions.first() else { continue };
            let brought = |of| markers::brought(of, prompter, &query.id, &query.row, constitution);
            if !brought(forbidden)?.is_empty() {
                continue;
            }
            for marker in brought(&markers)? {
                if let Some(at) = markers.iter().position(|other| other == marker) {
                    holders[at].push(query.id.clone());
                }
            }
            screened.push(query);
        }
        let mut marked = BTreeSet::new();
        for (marker, ids) in markers.iter().zip(holders) {
            // What most queries have is part of their form.
            if ids.is_empty() || 2 * ids.len() > screened.len() {
                continue;
            }
            tracing::warn!(
                "{} of {} queries have {marker:?} in them, which tells the prompt's parts apart (the first: row `{}`); \
                 `keep.forbid_in_query` leaves them out",
                ids.len(),
                screened.len(),
                ids[0]
            );
            marked.extend(ids);
        }
        Ok((screened, marked.len()))
    }

    /// Puts queries and answers together to rows, drops what the filters drop, and counts.
    fn keep(
        &self,
        posed: usize,
        queries: &[Query],
        sampled: &Sampled,
        size: usize,
    ) -> Result<(Vec<rows::Row>, Map<String, Value>), NodeError> {
        let Sampled { answers, prefixes, .. } = sampled;
        let shape = Shape { after: self.after.as_deref(), until: &self.until, cut: &self.cut };
        let mut counts = self.keep.counts();
        counts.extend(self.after.iter().map(|_| ("after".to_owned(), 0)));
        counts.entry("forbid_in_query".to_owned()).and_modify(|count| *count = (posed - queries.len()) as u64);
        let (mut kept, mut tokens_in_all, mut length) = (Vec::new(), 0, 0);
        for ((query, prefixes), answers) in queries.iter().zip(prefixes.chunks(size)).zip(answers.values.chunks(size)) {
            let tokens = answers.iter().map(|answer| answer.tokens).sum::<usize>();
            tokens_in_all += tokens;
            let shaped: Vec<Shaped> =
                prefixes.iter().zip(answers).map(|(prefix, answer)| shape.of(prefix, answer)).collect();
            let candidates: Vec<Candidate<'_>> = shaped
                .iter()
                .zip(answers)
                .enumerate()
                .map(|(at, (shaped, answer))| Candidate {
                    place: at / self.responses_per_constitution as usize,
                    text: &shaped.text,
                    tokens: answer.tokens,
                    finished: shaped.finish != Finish::Length,
                })
                .collect();
            let lost = shaped.iter().any(|shaped| !shaped.found).then(|| "after".to_owned());
            if let Some(filter) = lost.or_else(|| self.keep.drops(&candidates)) {
                *counts.entry(filter).or_default() += 1;
                continue;
            }
            length += tokens;
            let mut row = query.row.clone();
            row.insert("id".to_owned(), json!(query.id));
            row.insert("constitutions".to_owned(), json!(query.constitutions));
            row.insert("responses".to_owned(), shaped.into_iter().zip(answers).map(response).collect());
            kept.push(row);
        }
        if kept.is_empty() {
            let dropped: Vec<String> = counts
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(|(filter, count)| format!("`{filter}` dropped {count}"))
                .collect();
            let what = format!("no row is left of {posed}: {}", dropped.join(", "));
            return Err(NodeError::with_help(what, Keep::advice(&counts)));
        }
        let mut metrics = Map::from_iter([
            ("rows".to_owned(), json!(kept.len())),
            ("tokens".to_owned(), json!(tokens_in_all)),
            ("mean_length".to_owned(), json!(length as f64 / (kept.len() * size) as f64)),
            ("dropped".to_owned(), json!(posed - kept.len())),
        ]);
        metrics.extend(answers.reuse(size).metrics(""));
        metrics.extend(counts.into_iter().map(|(filter, count)| (format!("dropped.{filter}"), json!(count))));
        Ok((kept, metrics))
    }
}

/// A response as a row has it.
fn response((shaped, answer): (Shaped, &Answer)) -> Value {
    let Shaped { text, raw, finish, .. } = shaped;
    let mut response = json!({"text": text, "tokens": answer.tokens, "finish": finish});
    if let Some(raw) = raw {
        response["raw"] = json!(raw);
    }
    response
}
