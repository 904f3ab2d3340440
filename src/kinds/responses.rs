//! Rows of responses, and of scored responses, as the kinds read them.

use serde::Deserialize;
use serde_json::Value;

use super::contrast::Constitution;
use super::policy::Pair;
use super::rows::Row;
use super::{InputArtifact, NodeError, imported, rows};
use crate::lm::Finish;
use crate::pipeline::ArtifactType;

/// A row of responses: one to each constitution of a query.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    /// The row's id.
    pub(super) id: String,
    /// The whole row.
    pub(super) row: Row,
    /// Its constitutions.
    pub(super) constitutions: Vec<Constitution>,
    /// A response to each.
    pub(super) responses: Vec<Response>,
}

/// A response as it was kept.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Response {
    /// Its text.
    pub(super) text: String,
    /// Why it ended; a response made elsewhere ended by itself.
    #[serde(default = "ended")]
    pub(super) finish: Finish,
}

fn ended() -> Finish {
    Finish::Eos
}

impl Answered {
    /// The C×C cells of the row, see [`cells`].
    pub(super) fn cells(&self, prompts: &[String], score_eos: bool) -> Vec<Pair> {
        let responses: Vec<_> =
            self.responses.iter().map(|response| (response.text.as_str(), response.finish)).collect();
        cells(&self.id, prompts, &responses, score_eos)
    }
}

/// The C×C cells of a query: constitution k's prompt with response j, row by row. With `score_eos` the end of a response
/// is scored too, if the model ended it.
pub(super) fn cells(row: &str, prompts: &[String], responses: &[(&str, Finish)], score_eos: bool) -> Vec<Pair> {
    let cell = |prompt: &String, (text, finish): &(&str, Finish)| Pair {
        row: row.to_owned(),
        prompt: prompt.clone(),
        response: (*text).to_owned(),
        eos: score_eos && *finish == Finish::Eos,
    };
    prompts.iter().flat_map(|prompt| responses.iter().map(move |response| cell(prompt, response))).collect()
}

/// Of the cells of queries with `size` constitutions, each response under its own one.
pub(super) fn diagonal(cells: &[Pair], size: usize) -> Vec<Pair> {
    cells.chunks(size * size).flat_map(|cells| cells.iter().step_by(size + 1).cloned()).collect()
}

/// Reads the responses of an input. Each row has as many responses as constitutions, and all rows as many.
pub(super) fn read(input: &InputArtifact) -> Result<Vec<Answered>, NodeError> {
    let rows = rows::read_input(input)?;
    if rows.is_empty() {
        return Err(NodeError::with_help("there are no responses", "lower `skip`, or raise `take`"));
    }
    let mut all: Vec<Answered> = Vec::with_capacity(rows.len());
    for row in rows {
        let row = if input.kind == ArtifactType::Dataset { imported::canonical(row) } else { row };
        let id = rows::id(&row)?.to_owned();
        let constitutions: Vec<Constitution> = part(&row, &id, "constitutions")?;
        let responses: Vec<Response> = part(&row, &id, "responses")?;
        let wanted = all.first().map_or(constitutions.len(), |first| first.responses.len());
        if constitutions.len() != responses.len() || responses.len() != wanted || wanted < 2 {
            return Err(NodeError::failed(format!(
                "row `{id}` has {} constitutions and {} responses, and {} of each were expected",
                constitutions.len(),
                responses.len(),
                wanted.max(2)
            )));
        }
        all.push(Answered { id, row, constitutions, responses });
    }
    Ok(all)
}

/// A field of a row, typed.
pub(super) fn part<T: serde::de::DeserializeOwned>(row: &Row, id: &str, field: &str) -> Result<T, NodeError> {
    let value = row.get(field).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value)
        .map_err(|error| NodeError::failed(format!("field `{field}` of row `{id}` is not what it should be: {error}")))
}
