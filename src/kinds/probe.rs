//! Kind `probe`: whether a model tells each principle from its antithesis, before anything is trained on the difference.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::check::{input, require, sampling};
use super::contrast::Constitutions;
use super::estimate::{self, Estimate, Known};
use super::figures::ContrastFigures;
use super::generate::{is_false, one};
use super::policy::{Answer, Policy, Sum, TooLong, Work};
use super::prompter::{Prompter, check_shape, check_system};
use super::query::Query;
use super::responses::Scoring;
use super::shape::{Shape, Shaped};
use super::{Cx, NodeError, NodeKind, Outputs, query, responses, rows, template};
use crate::lm::{Join, SamplingSettings};
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};

/// The fields of kind `probe`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    model: Input,
    queries: Input,
    constitutions: Input,
    pub(super) prompt: String,
    #[serde(default)]
    score_prompt: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) chat: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) system: Option<String>,
    /// Principles that are probed; all without it.
    #[serde(default)]
    pub(super) principles: Option<Vec<String>>,
    /// The least bound that each must have, nats.
    #[serde(default)]
    require: Option<f64>,
    #[serde(default = "few_tokens")]
    pub(super) max_new_tokens: usize,
    #[serde(default = "one")]
    temperature: f64,
    #[serde(default)]
    top_k: usize,
    #[serde(default = "one")]
    top_p: f64,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default)]
    cut: Vec<String>,
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    until: Vec<String>,
    #[serde(default = "once")]
    pub(super) samples: u64,
    #[serde(default)]
    score_eos: bool,
    #[serde(default)]
    join: Join,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    too_long: TooLong,
}

fn few_tokens() -> usize {
    128
}

fn once() -> u64 {
    1
}

impl Spec for Probe {
    fn inputs(&self) -> Vec<InputField> {
        vec![
            input("model", &self.model, &[ArtifactType::Model]),
            input("queries", &self.queries, &[ArtifactType::Dataset]),
            input("constitutions", &self.constitutions, &[ArtifactType::Constitutions]),
        ]
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Constitutions
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        template::check(&mut problems, "prompt", &self.prompt);
        self.score_prompt.iter().for_each(|text| template::check(&mut problems, "score_prompt", text));
        check_system(&mut problems, self.system.as_deref(), self.chat);
        check_shape(&mut problems, self.prefix.as_deref(), self.after.as_deref());
        sampling(&mut problems, self.max_new_tokens, self.temperature, self.top_p, &self.stop);
        require(&mut problems, self.samples >= 1, "samples", "no samples", "give 1 or more");
        let ceiling = 2f64.ln();
        require(
            &mut problems,
            self.require.is_none_or(|bound| (0.0..ceiling).contains(&bound)),
            "require",
            "`require` is not in [0, 0.693)",
            "a principle against its antithesis has a bound of ln 2 nats at most; 0.02 asks for a little",
        );
        require(
            &mut problems,
            self.principles.as_ref().is_none_or(|names| !names.is_empty()),
            "principles",
            "no principle is probed",
            "name some, or leave `principles` away",
        );
        problems
    }
}

impl NodeKind for Probe {
    const NAME: &'static str = "probe";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"Finds out whether a model tells each principle from its antithesis, before anything is trained on the difference.

SAMI strengthens a link between principles and responses that the model has already: where it has none, there is nothing to
strengthen. Each principle is taken by itself, its definition against its antithesis: the model answers the queries under both, and
each answer's log-probability is taken under both, as `generate` and `score` do it.

| field | meaning | default |
|---|---|---|
| `model`, `queries`, `constitutions`, `prompt`, `chat`, `system`, sampling fields, `prefix`, `after`, `until`, `cut`, `seed`, `too_long` | as in `generate`; some twenty queries will do | `max_new_tokens` 128, `temperature` 1 |
| `score_prompt` | the training prompt, as in `score` | `prompt` |
| `principles` | names of those that are probed | all |
| `samples` | pairs of responses to each query | 1 |
| `score_eos`, `join` | as in `score` | false, `"space"` |
| `require` | nats: the node fails, and with it all that takes its output, if a principle's bound is below | never fails |

Makes `constitutions.json`, the same that it was given. What should not run unless the probe is passed takes its constitutions from
the probe: `constitutions = "probe"` in `generate`. Since content counts in keys, nothing becomes stale by that.

The log has a response of each kind to the first query, and a table; it says of each principle whose bound is not surely above 0 that
the model does not tell it from its antithesis. More queries or `samples` make that surer. Metrics: `bound.PRINCIPLE` (InfoNCE lower bound, nats, at most `bound_ceiling` = ln 2) with its 95% interval over queries,
`bound_low.PRINCIPLE` and `bound_high.PRINCIPLE`, `gap.PRINCIPLE`, `accuracy_row.PRINCIPLE`, `accuracy_column.PRINCIPLE`,
`mean_length.PRINCIPLE`, `identical.PRINCIPLE` (share of pairs of one text), `no_contrast` (principles that are not told apart),
`rows`, `rows_asked`, `rows_reused`, `tokens`.

```toml
[nodes.probe]
kind = "probe"
model = "base"
queries = { from = "posts", take = 24 }
constitutions = "constitutions"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
require = 0.02
```
"#;

    fn estimate(&self, known: &Known<'_>) -> Estimate {
        estimate::probe(self, known)
    }

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let constitutions = query::read_constitutions(cx.input("constitutions")?)?;
        let names = self.names(&constitutions)?;
        let posed = rows::read_input(cx.input("queries")?)?;
        if posed.is_empty() {
            return Err(NodeError::with_help("there are no queries", "lower `skip`, or raise `take`"));
        }
        let queries = self.pose(&constitutions, &names, &posed)?;
        let prompter = |field, text| {
            let prompter = Prompter::new(field, text)?.beginning(self.prefix.as_deref())?;
            if self.chat { prompter.in_chat(cx.input("model")?, self.system.as_deref()) } else { Ok(prompter) }
        };
        let asking = prompter("prompt", &self.prompt)?;
        let scoring = self.score_prompt.as_ref().map(|text| prompter("score_prompt", text)).transpose()?;
        let asked = asking.ask(&queries, self.seed, 1)?;
        let mut policy = Policy::new(cx, cx.input("model")?).with(self.too_long);
        let source = cx.input("constitutions")?.file("constitutions.json")?.to_owned();
        let path = cx.staging.join("constitutions.json");

        let mut work = Work::new(cx, "responses and log-probs", 3 * asked.asks.len());
        let answers = work.sample(&mut policy, &self.settings(), &asked.asks)?;
        let shape = Shape { after: self.after.as_deref(), until: &self.until, cut: &self.cut };
        let shaped: Vec<Shaped> =
            asked.prefixes.iter().zip(&answers.values).map(|(prefix, answer)| shape.of(prefix, answer)).collect();
        let mut pairs = Vec::with_capacity(2 * shaped.len());
        let scored = Scoring { eos: self.score_eos, join: self.join };
        for (query, both) in queries.iter().zip(shaped.chunks(2)) {
            let prompter = scoring.as_ref().unwrap_or(&asking);
            let prompt = |one| prompter.fill(&query.id, &query.row, one);
            let prompts = query.constitutions.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
            let both: Vec<_> = both.iter().map(|shaped| (shaped.text.as_str(), shaped.finish)).collect();
            pairs.extend(responses::cells(&query.id, &prompts, &both, scored));
        }
        let cells = work.logprobs(&mut policy, &pairs)?.values;

        let per_principle = posed.len() * self.samples as usize;
        let mut found = Vec::with_capacity(names.len());
        for ((name, cells), shaped) in
            names.iter().zip(cells.chunks(4 * per_principle)).zip(shaped.chunks(2 * per_principle))
        {
            found.push(Found::new(name, cells, shaped, self.samples as usize)?);
        }
        tell(&found, &queries, &shaped, per_principle);
        self.judge(&found)?;
        crate::fs::copy(&source, &path)?;
        let mut metrics = metrics(&found);
        metrics.insert("rows".to_owned(), json!(queries.len()));
        metrics.extend(answers.reuse(2).metrics(""));
        let tokens: usize = answers.values.iter().map(|answer: &Answer| answer.tokens).sum();
        metrics.insert("tokens".to_owned(), json!(tokens));
        Ok(Outputs { files: [("constitutions.json".to_owned(), path)].into(), metrics })
    }
}

impl Probe {
    fn settings(&self) -> SamplingSettings {
        SamplingSettings {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            stop: self.stop.clone(),
        }
    }

    /// The principles that are probed.
    fn names(&self, constitutions: &Constitutions) -> Result<Vec<String>, NodeError> {
        let Some(names) = &self.principles else { return Ok(constitutions.principles.keys().cloned().collect()) };
        if let Some(name) = names.iter().find(|name| !constitutions.principles.contains_key(*name)) {
            let known: Vec<_> = constitutions.principles.keys().map(|name| format!("`{name}`")).collect();
            let help = format!("name some of {}", known.join(", "));
            return Err(NodeError::with_help(format!("there is no principle `{name}`"), help));
        }
        Ok(names.clone())
    }

    /// Each principle alone for each query, principle by principle; the samples of a query stand beside each other.
    fn pose(
        &self,
        constitutions: &Constitutions,
        names: &[String],
        rows: &[rows::Row],
    ) -> Result<Vec<Query>, NodeError> {
        let mut queries = Vec::with_capacity(names.len() * rows.len() * self.samples as usize);
        for name in names {
            let alone = constitutions.alone(name).ok_or_else(|| NodeError::failed(format!("`{name}` is gone")))?;
            for row in rows {
                for sample in 1..=self.samples {
                    let id = format!("{}#{sample} {name}", rows::id(row)?);
                    queries.push(Query { id, row: row.clone(), constitutions: alone.to_vec() });
                }
            }
        }
        Ok(queries)
    }

    /// Errs if a principle has less contrast than is required.
    fn judge(&self, found: &[Found]) -> Result<(), NodeError> {
        let Some(least) = self.require else { return Ok(()) };
        let weak: Vec<String> = found
            .iter()
            .filter(|found| found.bound < least)
            .map(|found| format!("`{}` (bound {:.4})", found.name, found.bound))
            .collect();
        if weak.is_empty() {
            return Ok(());
        }
        let which = if weak.len() == 1 {
            "this principle from its antithesis"
        } else {
            "these principles from their antitheses"
        };
        Err(NodeError::with_help(
            format!(
                "the model hardly tells {which}, below the {least} nats that `require` asks for: {}",
                weak.join(", ")
            ),
            "write them so that the model follows them at least a little (look at its responses in the node's log), change \
             `prompt`, start from another model, leave them out, or lower `require`",
        ))
    }
}

/// What was found out about a principle.
#[derive(Debug)]
struct Found {
    name: String,
    /// Mean over queries, nats.
    bound: f64,
    /// Its 95% interval; one query gives none.
    interval: Option<(f64, f64)>,
    /// Share of pairs of one text.
    identical: f64,
    figures: Map<String, Value>,
}

impl Found {
    /// `cells` 2×2 for each pair of responses; the pairs of a query stand beside each other.
    fn new(name: &str, cells: &[Sum], shaped: &[Shaped], samples: usize) -> Result<Self, NodeError> {
        let mut figures = ContrastFigures::default();
        cells.chunks(4).try_for_each(|cells| figures.add(cells))?;
        let identical = shaped.chunks(2).filter(|pair| pair[0].text == pair[1].text).count();
        let (bound, interval) = figures.bound_of_groups(samples);
        Ok(Self {
            name: name.to_owned(),
            bound,
            interval,
            identical: identical as f64 / (shaped.len() / 2).max(1) as f64,
            figures: figures.metrics(&format!(".{name}")),
        })
    }

    /// Whether the bound is surely above 0.
    fn is_told(&self) -> bool {
        self.interval.is_some_and(|(low, _)| low > 0.0)
    }

    /// The bound as it is told.
    fn told_bound(&self) -> String {
        match self.interval {
            Some((low, high)) => format!("{:.4} ({low:.4} to {high:.4})", self.bound),
            None => format!("{:.4} (one query only)", self.bound),
        }
    }

    fn figure(&self, name: &str) -> f64 {
        self.figures.get(&format!("{name}.{}", self.name)).and_then(Value::as_f64).unwrap_or(f64::NAN)
    }
}

fn metrics(found: &[Found]) -> Map<String, Value> {
    let mut metrics = Map::new();
    for one in found {
        metrics.extend(one.figures.clone());
        metrics.insert(format!("identical.{}", one.name), json!(one.identical));
        if let Some((low, high)) = one.interval {
            metrics.insert(format!("bound_low.{}", one.name), json!(low));
            metrics.insert(format!("bound_high.{}", one.name), json!(high));
        }
    }
    metrics.insert("no_contrast".to_owned(), json!(found.iter().filter(|one| !one.is_told()).count()));
    metrics
}

/// The table of what was found, a line for each principle.
fn table(found: &[Found]) -> String {
    let wide = found.iter().map(|one| one.name.chars().count()).max().unwrap_or(0).max("principle".len());
    let mut text = format!(
        "{:wide$}  {:>26}  {:>8}  {:>5}  {:>6}  {:>9}\n",
        "principle", "bound (95%)", "gap", "row", "column", "identical"
    );
    for one in found {
        text.push_str(&format!(
            "{:wide$}  {:>26}  {:>8.3}  {:>5.2}  {:>6.2}  {:>9.2}  {}\n",
            one.name,
            one.told_bound(),
            one.figure("gap"),
            one.figure("accuracy_row"),
            one.figure("accuracy_column"),
            one.identical,
            if one.is_told() { "told apart" } else { "NOT told apart" }
        ));
    }
    text
}

/// Tells the log what was found: the responses to the first query as an example, the table last, where it is seen first.
fn tell(found: &[Found], queries: &[Query], shaped: &[Shaped], per_principle: usize) {
    for at in 0..found.len() {
        let place = at * per_principle;
        let (Some(query), Some(both)) = (queries.get(place), shaped.chunks(2).nth(place)) else { continue };
        for (constitution, response) in query.constitutions.iter().zip(both) {
            let begin: String = response.text.chars().take(240).collect();
            tracing::info!("{} | {:?} -> {begin:?}", query.id, constitution.text);
        }
    }
    for one in found.iter().filter(|one| !one.is_told()) {
        tracing::warn!("the model does not tell `{}` from its antithesis: bound {}", one.name, one.told_bound());
    }
    tracing::info!("of at most {:.4} nats:\n{}", 2f64.ln(), table(found));
}
