//! Kind `constitutions`: principles with their antitheses, and how constitutions are drawn from them.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::alike::{self, Alike};
use super::check::{input, problem, require};
use super::contrast::{Constitutions, Contrast, Format, HoldOut, Principle, Size};
use super::estimate::{self, Estimate, Known};
use super::hold_out::{Rule, Which};
use super::principles::{Draft, Principles};
use super::speaker::{SPEAKERS, SpeakSettings};
use super::writer::{self, Writer};
use super::{Cx, NodeError, NodeKind, Outputs, template};
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};

/// The fields of kind `constitutions`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConstitutionsKind {
    /// What the principles are for.
    #[serde(default)]
    task: Option<String>,
    /// The model that writes the texts that principles lack.
    #[serde(default)]
    writer: Option<Input>,
    /// Template of what it is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writer_prompt: Option<String>,
    /// Template of a system message before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writer_system: Option<String>,
    /// Questions at most, should its answers be of no use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writer_attempts: Option<usize>,
    /// Tokens of an answer at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writer_max_new_tokens: Option<usize>,
    /// How it is sampled; 0 is greedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writer_temperature: Option<f64>,
    /// Principles by name.
    principles: Principles,
    /// Which constitutions are held against each other.
    #[serde(default)]
    contrast: Contrast,
    /// Constitutions drawn for a query.
    #[serde(default = "two")]
    per_query: usize,
    /// Principles in a constitution; all without it.
    #[serde(default)]
    principles_per_constitution: Option<Size>,
    /// Combinations of principles, or whole principles, that training never sees.
    #[serde(default)]
    hold_out: Rule,
    /// Principles that every constitution but the first goes against.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    must_flip: Vec<String>,
    /// How principles are put together to a text.
    #[serde(default)]
    format: Format,
    /// Seed of all draws.
    #[serde(default)]
    seed: u64,
}

fn two() -> usize {
    2
}

/// Questions to a writer, without a word of the user's.
const ATTEMPTS: usize = 3;
/// Tokens of its answers.
const ANSWER_TOKENS: usize = 4096;

impl ConstitutionsKind {
    /// The principles as they are given, a text that is missing being empty.
    fn given(&self) -> IndexMap<String, Principle> {
        self.principles.0.iter().map(|(name, draft)| (name.clone(), draft.principle())).collect()
    }

    fn constitutions(&self, principles: IndexMap<String, Principle>) -> Constitutions {
        let all = principles.len();
        Constitutions {
            task: self.task.clone(),
            contrast: self.contrast,
            per_query: self.per_query,
            size: self.principles_per_constitution.unwrap_or(Size { min: all, max: all }),
            hold_out: match &self.hold_out {
                Rule::Share(share) => HoldOut { share: *share, principles: Vec::new() },
                Rule::Principles(which) => HoldOut { share: 0.0, principles: which.names(principles.keys()) },
            },
            must_flip: self.must_flip.clone(),
            format: self.format,
            seed: self.seed,
            principles,
            provenance: None,
        }
    }

    fn writer(&self) -> Writer<'_> {
        Writer {
            task: self.task.as_deref(),
            prompt: self.writer_prompt.as_deref().unwrap_or(writer::PROMPT),
            system: self.writer_system.as_deref(),
            attempts: self.writer_attempts.unwrap_or(ATTEMPTS),
            settings: SpeakSettings {
                max_new_tokens: self.writer_max_new_tokens.unwrap_or(ANSWER_TOKENS),
                temperature: self.writer_temperature.unwrap_or(0.0),
                top_p: 1.0,
                stop: Vec::new(),
            },
            seed: self.seed,
        }
    }

    /// Adds what is wrong with how principles are to be written, and with those that nobody writes.
    fn check_writer(&self, problems: &mut Vec<Problem>) {
        let whole = self.principles.0.values().all(Draft::is_whole);
        if self.writer.is_some() {
            let help = "remove `writer`, or take out the texts that it should write: name = {}";
            require(
                problems,
                !whole,
                "writer",
                "there is nothing to write: every principle has both of its texts",
                help,
            );
            for (field, text) in [("writer_prompt", &self.writer_prompt), ("writer_system", &self.writer_system)] {
                if let Some(text) = text {
                    template::check(problems, field, text);
                }
            }
            require(
                problems,
                self.writer_attempts != Some(0),
                "writer_attempts",
                "the writer is never asked",
                "give 1 or more",
            );
            let settings = self.writer().settings;
            require(
                problems,
                settings.max_new_tokens >= 1,
                "writer_max_new_tokens",
                "an answer of no tokens",
                "give at least some hundred a principle",
            );
            require(
                problems,
                settings.temperature.is_finite() && settings.temperature >= 0.0,
                "writer_temperature",
                "the temperature is not a number from 0 up",
                "0 is greedy, 1 samples from the model",
            );
            return;
        }
        for (field, given) in [
            ("writer_prompt", self.writer_prompt.is_some()),
            ("writer_system", self.writer_system.is_some()),
            ("writer_attempts", self.writer_attempts.is_some()),
            ("writer_max_new_tokens", self.writer_max_new_tokens.is_some()),
            ("writer_temperature", self.writer_temperature.is_some()),
        ] {
            let what = format!("`{field}` without `writer`");
            require(problems, !given, field, &what, "name the model that writes: `writer = \"MODEL\"`");
        }
        for (name, draft) in &self.principles.0 {
            let missing = match (&draft.definition, draft.written_antithesis()) {
                (None, _) => "definition",
                (_, None) => "antithesis",
                _ => continue,
            };
            problems.push(problem(
                &format!("principles.{name}"),
                format!("the principle `{name}` has no {missing}, and there is no writer to write one"),
                format!(
                    "write it out: {name} = {{ definition = \"…\", antithesis = \"…\" }}, or name a model that writes it: \
                     `writer = \"MODEL\"`"
                ),
            ));
        }
    }
}

impl ConstitutionsKind {
    /// How constitutions will be, and how many texts of principles are to be written first.
    pub(super) fn foreseen(&self) -> (estimate::Principles, usize) {
        let all = self.principles.0.len();
        let most = self.principles_per_constitution.map_or(all, |size| size.max);
        let drafts = || self.principles.0.values();
        let texts: Vec<String> = drafts().filter_map(|draft| draft.definition.clone()).collect();
        let written = texts.len() + drafts().filter(|draft| draft.written_antithesis().is_some()).count();
        let principles = estimate::Principles::new(self.per_query as u64, most, texts);
        (estimate::Principles { all: all as u64, ..principles }, 2 * all - written)
    }
}

impl Spec for ConstitutionsKind {
    fn inputs(&self) -> Vec<InputField> {
        self.writer.iter().map(|writer| input("writer", writer, SPEAKERS)).collect()
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Constitutions
    }

    fn fields(&self) -> Value {
        // The order of principles is lost in JSON, and with it which are the last.
        let mut named = self.clone();
        if let Rule::Principles(which) = &self.hold_out {
            named.hold_out = Rule::Principles(Which::Named(which.names(self.principles.0.keys())));
        }
        json!(named)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let all = self.principles.0.len();
        if all == 0 {
            problems.push(problem(
                "principles",
                "no principles",
                "give at least one: name = { definition = \"…\", antithesis = \"…\" }",
            ));
            return problems;
        }
        self.check_writer(&mut problems);
        for (name, draft) in &self.principles.0 {
            if name.trim().is_empty() {
                problems.push(problem(
                    "principles",
                    format!("{name:?} is no name of a principle"),
                    "name it in letters",
                ));
            }
            for (field, text) in
                [("definition", draft.definition.as_deref()), ("antithesis", draft.written_antithesis())]
            {
                let help = format!("write it out, or leave `{field}` away and name a `writer`");
                let holds = text.is_none_or(|text| !text.trim().is_empty());
                require(
                    &mut problems,
                    holds,
                    &format!("principles.{name}"),
                    &format!("the {field} of `{name}` is empty"),
                    &help,
                );
            }
        }
        require(
            &mut problems,
            self.per_query >= 2,
            "per_query",
            "fewer than two constitutions per query leave nothing to contrast",
            "give 2 or more",
        );
        match &self.hold_out {
            Rule::Share(share) => require(
                &mut problems,
                (0.0..1.0).contains(share),
                "hold_out",
                "`hold_out` is not in [0, 1)",
                "0.25 keeps a quarter of the combinations out of training",
            ),
            Rule::Principles(which) => require(
                &mut problems,
                !which.names(self.principles.0.keys()).is_empty(),
                "hold_out",
                "no principle is held out",
                "name some, or leave `hold_out` away",
            ),
        }
        if let Some(size) = self.principles_per_constitution {
            let fits = size.min >= 1 && size.min <= size.max && size.max <= all;
            let help = format!("give a number, or [min, max], between 1 and {all}");
            require(
                &mut problems,
                fits,
                "principles_per_constitution",
                "no constitution has that many principles",
                &help,
            );
        }
        if !problems.is_empty() {
            return problems;
        }
        let constitutions = self.constitutions(self.given());
        if let Err((path, what, help)) = constitutions.drawer() {
            problems.push(problem(path, what, help));
        }
        let mut whole = constitutions.principles;
        whole.retain(|name, _| self.principles.0[name].is_whole());
        for (name, principle) in &whole {
            require(
                &mut problems,
                !alike::same(&principle.definition, &principle.antithesis),
                &format!("principles.{name}"),
                &format!("the antithesis of `{name}` says the same as its definition"),
                "write what a response is like that goes against the principle",
            );
        }
        for equal in alike::alike(&whole).iter().filter(|alike| alike.is_double()) {
            let help = "leave one of them away: they would be flipped apart from each other";
            problems.push(problem(&format!("principles.{}", equal.other.0), equal.to_string(), help));
        }
        problems
    }
}

impl NodeKind for ConstitutionsKind {
    const NAME: &'static str = "constitutions";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"Principles with their antitheses, and the rule by which constitutions are drawn for each query.

A constitution is a list of principles, each in its *definition* or its *antithesis*. For every query
`per_query` constitutions are drawn that hold the same principles in different polarity; the order of the
principles is shuffled for each. Draws depend on the seed and the query's id only.

| field | meaning | default |
|---|---|---|
| `principles` | `name = { definition = "…", antithesis = "…" }`, or `{ file = "x.json" }` in that schema or in the authors' pair schema (`[{positive, negative, identifiers}]`) | |
| `contrast` | `"positive-vs-antithesis"`: the first constitution is all positive, the others have an antithesis in them; `"complement"`: pairs in which every principle is flipped; `"uniform"`: any distinct polarities | `"positive-vs-antithesis"` |
| `per_query` | constitutions for a query, C ≥ 2 | 2 |
| `principles_per_constitution` | a number or `[min, max]` | all |
| `hold_out` | what is kept out of training, and asked for by `evaluate` with `combinations = "held-out"`: a share of the combinations of principles (`0.25`), or whole principles, by name or the last so many as they stand (`{ principles = ["a", "b"] }`, `{ principles = 5 }`) | 0 |
| `must_flip` | with `"positive-vs-antithesis"`: principles that are in every constitution, and flipped in each but the first | `[]` |
| `format` | `"numbered"` (`1. …` lines), `"lines"`, or `"plain"` (joined by a space) | `"numbered"` |
| `task` | what the principles are for; kept with them | |
| `seed` | seed of the draws | 0 |
| `writer` | a model that writes the texts that principles lack, `name = {}` being a principle without any: a model with weights here, or an [endpoint](pipelines.md#endpoints) | |
| `writer_prompt` | template of what it is asked: `task`, `asked` (list of `name`, `definition`, `antithesis`, empty where they are missing), `given` (the principles that are whole), `form` (the JSON object that is wanted) | see below |
| `writer_system` | template of a system message before it | |
| `writer_attempts` | questions at most | 3 |
| `writer_max_new_tokens`, `writer_temperature` | how its answers are sampled | 4096, 0 |

With two constitutions per query a combination is a choice of principles and their polarities (a constitution and
its complement count as one); with more, it is the choice of principles. With whole principles held out, training draws
from the others only and `"held-out"` constitutions from those only; `principles_per_constitution` must fit either.

Files of the authors are read as they are: a table of `definition` and `antithesis` (or `paraphrases_antithesis`, of which the
first counts; or `weak`, `strong`, `antithesis`), pairs of whole constitutions with `identifiers`, a list of texts (named `1`, `2`, …).

Two principles with one definition are an error, and so is an antithesis that says what its definition says. Principles that
share 60% of their words or more are told of in the log and in metrics `similar.ONE+OTHER`: such principles pull one way.

**The writer** is asked for all missing texts at once, what a person wrote is kept. It is to answer with one JSON object, `{ name =
{ definition, antithesis } }`; a fence or prose around that does not matter. A principle too few or too many, an empty text, a
placeholder, a refusal, an antithesis that says what its definition says, two principles with one definition are told to it in the
next question, with its answer; after `writer_attempts` the node fails and shows the last one. Answers are remembered: another run,
or another node that asks the same, asks no one. Whose each text is stands in the artifact under `provenance`, with the model, the
digests of the questions, the answers and their seeds; without `provenance` all is given. Read what was written
(`sami cache cat NODE constitutions.json`) before you train on it; a `probe` says whether the model tells it apart.

```toml
[nodes.written]
kind = "constitutions"
writer = "writer"
task = "summarize a Reddit post"
principles = { concise = {}, comprehensive = {}, kind = { definition = "Summaries are kind to the poster." } }
```

```toml
[nodes.constitutions]
kind = "constitutions"
contrast = "complement"
[nodes.constitutions.principles]
brief = { definition = "Be brief.", antithesis = "Be detailed." }
formal = { definition = "Be formal.", antithesis = "Be casual." }
```

Makes `constitutions.json`. Metrics: `principles`, `combinations`, `combinations_held_out` (where they can be
counted), `similar.ONE+OTHER`; with a writer `written` (principles), `tries`, `tokens`.
"#;

    fn estimate(&self, known: &Known<'_>) -> Estimate {
        estimate::constitutions(self, known)
    }

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let (principles, provenance, mut metrics) = if self.writer.is_some() {
            let (principles, provenance, metrics) = self.writer().write(cx, &self.principles.0)?;
            (principles, Some(provenance), metrics)
        } else {
            (self.given(), None, Map::new())
        };
        let constitutions = Constitutions { provenance, ..self.constitutions(principles) };
        let drawer = constitutions.drawer().map_err(|(_, what, help)| NodeError::with_help(what, help))?;
        metrics.insert("principles".to_owned(), json!(constitutions.principles.len()));
        if let Some((all, held_out)) = drawer.combinations() {
            metrics.insert("combinations".to_owned(), json!(all));
            metrics.insert("combinations_held_out".to_owned(), json!(held_out));
        }
        for Alike { one, other, share } in alike::told(&constitutions.principles) {
            metrics.insert(format!("similar.{}+{}", one.0, other.0), json!(share));
        }
        let path = cx.staging.join("constitutions.json");
        let mut text =
            serde_json::to_string_pretty(&constitutions).map_err(|error| NodeError::failed(error.to_string()))?;
        text.push('\n');
        crate::fs::write(&path, text)?;
        Ok(Outputs { files: [("constitutions.json".to_owned(), path)].into(), metrics })
    }
}
