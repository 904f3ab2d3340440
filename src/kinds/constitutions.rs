//! Kind `constitutions`: principles with their antitheses, and how constitutions are drawn from them.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::alike::{self, Alike};
use super::check::{problem, require};
use super::contrast::{Constitutions, Contrast, Format, HoldOut, Principle, Size};
use super::estimate::{self, Estimate, Known};
use super::hold_out::Rule;
use super::principles::Principles;
use super::{Cx, NodeError, NodeKind, Outputs};
use crate::pipeline::{ArtifactType, InputField, Problem, Spec};

/// The fields of kind `constitutions`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConstitutionsKind {
    /// What the principles are for.
    #[serde(default)]
    task: Option<String>,
    /// The model that would write principles; a slot for now.
    #[serde(default)]
    writer: Option<String>,
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

impl ConstitutionsKind {
    fn constitutions(&self) -> Constitutions {
        let principles: IndexMap<String, Principle> = self
            .principles
            .0
            .iter()
            .map(|(name, draft)| {
                let definition = draft.definition.clone().unwrap_or_default();
                let antithesis = draft.written_antithesis().unwrap_or_default().to_owned();
                (name.clone(), Principle { definition, antithesis })
            })
            .collect();
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
        (estimate::Principles::new(self.per_query as u64, most, texts), 2 * all - written)
    }
}

impl Spec for ConstitutionsKind {
    fn inputs(&self) -> Vec<InputField> {
        Vec::new()
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Constitutions
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.writer.is_some() {
            problems.push(problem(
                "writer",
                "principles cannot be written by a model yet",
                "remove `writer` and write each principle out: name = { definition = \"…\", antithesis = \"…\" }",
            ));
        }
        let all = self.principles.0.len();
        if all == 0 {
            problems.push(problem(
                "principles",
                "no principles",
                "give at least one: name = { definition = \"…\", antithesis = \"…\" }",
            ));
            return problems;
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
                format!("write it out: {name} = {{ definition = \"…\", antithesis = \"…\" }}"),
            ));
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
        let constitutions = self.constitutions();
        if let Err((path, what, help)) = constitutions.drawer() {
            problems.push(problem(path, what, help));
        }
        for (name, principle) in &constitutions.principles {
            require(
                &mut problems,
                !alike::same(&principle.definition, &principle.antithesis),
                &format!("principles.{name}"),
                &format!("the antithesis of `{name}` says the same as its definition"),
                "write what a response is like that goes against the principle",
            );
        }
        for equal in alike::alike(&constitutions.principles).iter().filter(|alike| alike.is_double()) {
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
| `hold_out` | what is kept out of training, and asked for by `evaluate` with `combinations = "held-out"`: a share of the combinations of principles (`0.25`), or whole principles, by name or the last so many (`{ principles = ["a", "b"] }`, `{ principles = 5 }`) | 0 |
| `must_flip` | with `"positive-vs-antithesis"`: principles that are in every constitution, and flipped in each but the first | `[]` |
| `format` | `"numbered"` (`1. …` lines), `"lines"`, or `"plain"` (joined by a space) | `"numbered"` |
| `task` | what the principles are for; kept with them | |
| `seed` | seed of the draws | 0 |
| `writer` | the model that would write the principles: not available yet, write them out | |

With two constitutions per query a combination is a choice of principles and their polarities (a constitution and
its complement count as one); with more, it is the choice of principles. With whole principles held out, training draws
from the others only and `"held-out"` constitutions from those only; `principles_per_constitution` must fit either.

Files of the authors are read as they are: a table of `definition` and `antithesis` (or `paraphrases_antithesis`, of which the
first counts; or `weak`, `strong`, `antithesis`), pairs of whole constitutions with `identifiers`, a list of texts (named `1`, `2`, …).

Two principles with one definition are an error, and so is an antithesis that says what its definition says. Principles that
share 60% of their words or more are told of in the log and in metrics `similar.ONE+OTHER`: such principles pull one way.

```toml
[nodes.constitutions]
kind = "constitutions"
contrast = "complement"
[nodes.constitutions.principles]
brief = { definition = "Be brief.", antithesis = "Be detailed." }
formal = { definition = "Be formal.", antithesis = "Be casual." }
```

Makes `constitutions.json`. Metrics: `principles`, `combinations`, `combinations_held_out` (where they can be
counted), `similar.ONE+OTHER`.
"#;

    fn estimate(&self, known: &Known<'_>) -> Estimate {
        estimate::constitutions(self, known)
    }

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let constitutions = self.constitutions();
        let drawer = constitutions.drawer().map_err(|(_, what, help)| NodeError::with_help(what, help))?;
        let mut metrics = Map::new();
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
        fs_err::write(&path, text)?;
        Ok(Outputs { files: [("constitutions.json".to_owned(), path)].into(), metrics })
    }
}
