//! Kind `tally`: win rates of verdicts that were given elsewhere.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::check::{input, require};
use super::stats::{Trials, paired};
use super::versus::{Ties, Versus, paired_metrics, paired_report};
use super::{Cx, NodeError, NodeKind, Outputs, Setting, breakdown, rows};
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};
use crate::store::Reproduces;

/// The fields of kind `tally`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    verdicts: Input,
    #[serde(default)]
    ties: Ties,
    #[serde(default)]
    paired: Vec<(String, String)>,
    #[serde(default)]
    seed: u64,
}

impl Spec for Tally {
    fn inputs(&self) -> Vec<InputField> {
        vec![input("verdicts", &self.verdicts, &[ArtifactType::Dataset])]
    }

    fn output(&self) -> ArtifactType {
        ArtifactType::Evaluation
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let differ = self.paired.iter().all(|(one, other)| one != other);
        require(&mut problems, differ, "paired", "a candidate beside itself", "name two candidates in each pair");
        problems
    }
}

impl NodeKind for Tally {
    const NAME: &'static str = "tally";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"Win rates of verdicts that were given elsewhere, by the same code as those of `evaluate`.

| field | meaning | default |
|---|---|---|
| `verdicts` | a dataset of verdicts, see below | |
| `ties` | what a tie counts: `"half"` a win, or a `"loss"` | `"half"` |
| `paired` | pairs of candidates to be compared on the same queries, `[["a", "b"], …]` | `[]` |
| `seed` | seed of the bootstrap's resamples | 0 |

A row of verdicts is one comparison: `candidate` (whose win it is; one name for all without it), `win` (1, 0, or what lies between; or `"win"`,
`"loss"`, `"tie"`), `query` (the row's `id` without it) and, for the rates that take length out, `length` of the candidate's response and
`length_against` of the other. Or it is all comparisons of one candidate: `candidate` and `values`, a list of
`[win, length_against, length]` or of wins, query by query. A template gives a field the name that it needs:
`candidate = "{{ comparison }}"` in the dataset.

Makes `rows.jsonl`, a comparison per line, and `breakdown.json`. Metrics: `win_rate.NAME` and all that `evaluate` makes of comparisons,
`rows`, `candidates`. With one candidate its figures also stand without a name.

```toml
[datasets.judged]
source = "judged.jsonl"
candidate = "{{ comparison }}"

[nodes.tally]
kind = "tally"
verdicts = "judged"
ties = "loss"
```
"#;

    fn reproduces(&self, _: &Setting<'_>) -> Reproduces {
        Reproduces::BitExact
    }

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let given = rows::read_input(cx.input("verdicts")?)?;
        let mut candidates: IndexMap<String, Vec<Given>> = IndexMap::new();
        for row in &given {
            let (candidate, verdicts) = read(row)?;
            candidates.entry(candidate).or_default().extend(verdicts);
        }
        let mut figures: IndexMap<&String, Versus> = IndexMap::new();
        for (name, verdicts) in &candidates {
            if let Some(twice) = breakdown::doubled(verdicts.iter().map(|verdict| verdict.query.as_str())) {
                return Err(NodeError::with_help(
                    format!("candidate `{name}` has two verdicts on query `{twice}`"),
                    "give each comparison a `query` of its own, or each candidate a name of its own",
                ));
            }
            figures.insert(name, Versus::new(&trials(verdicts), self.ties, self.seed));
        }
        let mut metrics = Map::new();
        figures.iter().for_each(|(name, versus)| metrics.extend(versus.metrics(Some(name.as_str()))));
        if let [only] = &figures.values().collect::<Vec<_>>()[..] {
            metrics.extend(only.metrics(None));
        }
        let mut pairs = Vec::new();
        for (one, other) in &self.paired {
            let (own, others) = (won(&candidates, &figures, one)?, won(&candidates, &figures, other)?);
            let both: Vec<(f64, f64)> =
                own.iter().filter_map(|(query, win)| Some((*win, *others.get(query)?))).collect();
            if both.is_empty() {
                return Err(NodeError::failed(format!("`{one}` and `{other}` have no query in common")));
            }
            let (own, others): (Vec<f64>, Vec<f64>) = both.into_iter().unzip();
            let found = paired(&own, &others, self.seed);
            metrics.extend(paired_metrics(one, other, &found));
            pairs.push(paired_report(one, other, &found));
        }
        let rows: Vec<rows::Row> =
            candidates.iter().flat_map(|(name, given)| given.iter().map(|one| one.row(name))).collect();
        metrics.insert("rows".to_owned(), json!(rows.len()));
        metrics.insert("candidates".to_owned(), json!(candidates.len()));
        let report: Map<String, Value> =
            figures.iter().map(|(name, versus)| ((*name).clone(), versus.report())).collect();
        let report = json!({"candidates": report, "paired": pairs});
        let (path, report_path) = (cx.staging.join("rows.jsonl"), cx.staging.join(breakdown::FILE));
        rows::write(&path, &rows)?;
        breakdown::write(&report_path, &report)?;
        Ok(Outputs {
            files: [("rows.jsonl".to_owned(), path), (breakdown::FILE.to_owned(), report_path)].into(),
            metrics,
        })
    }
}

/// What a candidate won on each query, ties counted.
fn won<'a>(
    candidates: &'a IndexMap<String, Vec<Given>>,
    figures: &IndexMap<&String, Versus>,
    name: &String,
) -> Result<IndexMap<&'a str, f64>, NodeError> {
    let found = candidates.get(name).zip(figures.get(name)).ok_or_else(|| {
        let names: Vec<String> = candidates.keys().map(|name| format!("`{name}`")).collect();
        let what = format!("`paired` names `{name}`, and no verdict is of it");
        NodeError::with_help(what, format!("name two of {}", names.join(", ")))
    });
    let (given, versus) = found?;
    Ok(given.iter().map(|given| given.query.as_str()).zip(versus.trials.wins.iter().copied()).collect())
}

/// A verdict as it was given.
#[derive(Debug, Clone, PartialEq)]
struct Given {
    query: String,
    win: f64,
    /// Of the candidate's response, and of the other.
    lengths: Option<(f64, f64)>,
}

impl Given {
    fn row(&self, candidate: &str) -> rows::Row {
        let mut row = Map::from_iter([
            ("id".to_owned(), json!(format!("{candidate}/{}", self.query))),
            ("candidate".to_owned(), json!(candidate)),
            ("query".to_owned(), json!(self.query)),
            ("win".to_owned(), json!(self.win)),
        ]);
        if let Some((own, other)) = self.lengths {
            row.insert("length".to_owned(), json!(own));
            row.insert("length_against".to_owned(), json!(other));
        }
        row
    }
}

/// The comparisons of a candidate; lengths are used if all have them.
fn trials(given: &[Given]) -> Trials {
    Trials {
        wins: given.iter().map(|one| one.win).collect(),
        longer: given.iter().map(|one| one.lengths.map(|(own, other)| own - other)).collect(),
        per_query: 1,
    }
}

/// The candidate of a row, and its verdicts.
fn read(row: &rows::Row) -> Result<(String, Vec<Given>), NodeError> {
    let id = rows::id(row)?;
    let wrong = |what: String| {
        NodeError::with_help(
            format!("row `{id}` of the verdicts {what}"),
            "a row has `win` (0 to 1, or \"win\", \"loss\", \"tie\"), and `length` with `length_against` or neither; or `values`, a \
             list of [win, length_against, length]",
        )
    };
    let candidate = match row.get("candidate") {
        None => "candidate".to_owned(),
        Some(Value::String(name)) if !name.trim().is_empty() => name.clone(),
        Some(other) => return Err(wrong(format!("has the candidate {other}, which is no name"))),
    };
    let length = |value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match number(value).filter(|length| *length >= 0.0) {
            Some(length) => Ok(Some(length)),
            None => Err(wrong(format!("has the length {value}, which is no number from 0 up"))),
        },
    };
    let lengths = |own: Option<&Value>, other: Option<&Value>| match (length(own)?, length(other)?) {
        (Some(own), Some(other)) => Ok(Some((own, other))),
        (None, None) => Ok(None),
        _ => Err(wrong("has one of two lengths".to_owned())),
    };
    let win = |value: &Value| match (value.as_str().map(str::trim), number(value)) {
        (Some("win"), _) => Ok(1.0),
        (Some("tie"), _) => Ok(0.5),
        (Some("loss"), _) => Ok(0.0),
        (_, Some(win)) if (0.0..=1.0).contains(&win) => Ok(win),
        _ => Err(wrong(format!("says {value}, which is no verdict"))),
    };
    let Some(values) = row.get("values") else {
        let query = match row.get("query") {
            Some(Value::String(query)) => query.clone(),
            Some(Value::Number(query)) => query.to_string(),
            _ => id.to_owned(),
        };
        let given = row.get("win").ok_or_else(|| wrong("has neither `win` nor `values`".to_owned()))?;
        let lengths = lengths(row.get("length"), row.get("length_against"))?;
        return Ok((candidate, vec![Given { query, win: win(given)?, lengths }]));
    };
    let values = values.as_array().filter(|values| !values.is_empty());
    let values = values.ok_or_else(|| wrong("has `values` that are no list, or an empty one".to_owned()))?;
    let mut verdicts = Vec::with_capacity(values.len());
    for (at, value) in values.iter().enumerate() {
        let (win, lengths) = match value.as_array().map(Vec::as_slice) {
            None => (win(value)?, None),
            Some([given]) => (win(given)?, None),
            Some([given, other, own]) => (win(given)?, lengths(Some(own), Some(other))?),
            Some(_) => return Err(wrong(format!("has the value {value}"))),
        };
        verdicts.push(Given { query: at.to_string(), win, lengths });
    }
    Ok((candidate, verdicts))
}

/// A number, also where a table of text holds it.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(row: Value) -> Result<(String, Vec<Given>), String> {
        read(row.as_object().expect("an object")).map_err(|error| error.to_string())
    }

    #[test]
    fn verdicts_are_read_in_each_form() {
        let one = |query: &str, win, lengths| Given { query: query.to_owned(), win, lengths };
        let read = given(json!({"id": "7", "win": "tie", "length": "12", "length_against": 30}));
        assert_eq!(read, Ok(("candidate".to_owned(), vec![one("7", 0.5, Some((12.0, 30.0)))])));
        let read = given(json!({"id": "7", "query": 3, "candidate": "sami", "win": 1}));
        assert_eq!(read, Ok(("sami".to_owned(), vec![one("3", 1.0, None)])));
        let read = given(json!({"id": "7", "candidate": "sami", "values": [[0, 193, 18], [0.5], 1]}));
        let expected = vec![one("0", 0.0, Some((18.0, 193.0))), one("1", 0.5, None), one("2", 1.0, None)];
        assert_eq!(read, Ok(("sami".to_owned(), expected)));
    }

    #[test]
    fn what_is_no_verdict_is_named() {
        for (row, what) in [
            (json!({"id": "7"}), "neither"),
            (json!({"id": "7", "win": "both"}), "\"both\""),
            (json!({"id": "7", "win": 2}), "says 2"),
            (json!({"id": "7", "win": 1, "length": 3}), "one of two lengths"),
            (json!({"id": "7", "win": 1, "length": -3, "length_against": 2}), "length -3"),
            (json!({"id": "7", "values": []}), "no list"),
            (json!({"id": "7", "values": [[1, 2]]}), "[1,2]"),
            (json!({"id": "7", "candidate": 4, "win": 1}), "no name"),
        ] {
            let error = given(row).expect_err(what);
            assert!(error.contains("row `7`") && error.contains(what), "{error}");
        }
    }
}
