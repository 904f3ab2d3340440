//! A row of scored responses, as `score`, `evaluate` or something else left it.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::lm::loss::Contrast;

/// A row with matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Its id.
    pub id: String,
    /// What was asked.
    pub query: String,
    /// Texts of its constitutions.
    pub constitutions: Vec<String>,
    /// What each model made of it: one without a name in a row of `score`.
    pub candidates: Vec<Candidate>,
}

/// What a model made of a query.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its name among the candidates of an evaluation; empty in a row of `score`.
    pub name: String,
    /// The responses that were scored.
    pub responses: Vec<Response>,
    /// Summed log-probabilities, nats: C rows of CM.
    pub cells: Vec<Vec<Option<f64>>>,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Response {
    /// Its text.
    pub text: String,
    /// Scored tokens.
    pub tokens: Option<u64>,
    /// Why it ended, such as `eos` or `length`.
    pub finish: Option<String>,
}

/// Reads a row; `None` of what is no object.
pub fn read(text: &str) -> Option<Scored> {
    let Ok(Value::Object(row)) = serde_json::from_str(text) else { return None };
    let candidates = match row.get("candidates").and_then(Value::as_object) {
        Some(candidates) => candidates.iter().filter_map(|(name, part)| candidate(name, part.as_object()?)).collect(),
        None => candidate("", &row).into_iter().collect(),
    };
    let constitutions = row.get("constitutions").and_then(Value::as_array);
    Some(Scored {
        id: id(&row),
        query: query(&row),
        constitutions: constitutions.into_iter().flatten().map(text_of).collect(),
        candidates,
    })
}

/// A row's id as a text.
pub(super) fn id(row: &Map<String, Value>) -> String {
    match row.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// What a row asks: the field of that name, or the longest text of those that are no response.
pub(super) fn query(row: &Map<String, Value>) -> String {
    let text = |name: &str| row.get(name).and_then(Value::as_str);
    let usual = ["query", "question", "instruction", "post", "text"].into_iter().find_map(text);
    let others = row.iter().filter(|(name, _)| !["id", "response"].contains(&name.as_str()));
    usual
        .or_else(|| others.filter_map(|(_, value)| value.as_str()).max_by_key(|text| text.len()))
        .unwrap_or_default()
        .to_owned()
}

fn candidate(name: &str, part: &Map<String, Value>) -> Option<Candidate> {
    let list = |name: &str| part.get(name).and_then(Value::as_array);
    let lengths: Vec<Option<u64>> = list("lengths").into_iter().flatten().map(Value::as_u64).collect();
    let response = |(at, value): (usize, &Value)| Response {
        text: text_of(value),
        // What was scored may have an end-of-sequence token more than what was said.
        tokens: lengths.get(at).copied().flatten().or_else(|| value.get("tokens").and_then(Value::as_u64)),
        finish: value.get("finish").and_then(Value::as_str).map(str::to_owned),
    };
    let responses: Vec<Response> = list("responses").into_iter().flatten().enumerate().map(response).collect();
    let row = |row: &Value| -> Vec<Option<f64>> {
        row.as_array().into_iter().flatten().map(|cell| cell.as_f64().filter(|nats| nats.is_finite())).collect()
    };
    let cells: Vec<_> = list("logprobs").into_iter().flatten().map(row).collect();
    (!cells.is_empty() || !responses.is_empty()).then(|| Candidate { name: name.to_owned(), responses, cells })
}

/// A text that is one, or that has one in it.
fn text_of(value: &Value) -> String {
    let text = value.as_str().or_else(|| value.get("text").and_then(Value::as_str));
    text.map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

impl Candidate {
    /// The figures of the matrix, or why it has none.
    pub fn figures(&self) -> Result<Contrast, String> {
        figures(&self.cells)
    }
}

/// The figures of a matrix of summed log-probabilities, or why it has none.
pub(super) fn figures(cells: &[Vec<Option<f64>>]) -> Result<Contrast, String> {
    let width = cells.first().map_or(0, Vec::len);
    if cells.is_empty() || width == 0 {
        return Err("nothing was scored".to_owned());
    }
    if cells.iter().any(|row| row.len() != width) {
        return Err("its rows are not equally long".to_owned());
    }
    let missing = cells.iter().flatten().filter(|cell| cell.is_none()).count();
    if missing > 0 {
        return Err(format!("{missing} of {} cells are no finite number", cells.len() * width));
    }
    let sums: Vec<f64> = cells.iter().flatten().copied().flatten().collect();
    Contrast::with(&sums, &sums, width / cells.len()).map_err(|error| error.to_string())
}
