//! Rows of responses, and of scored responses, as the kinds read them.

use serde::Deserialize;
use serde_json::Value;

use super::contrast::Constitution;
use super::policy::Pair;
use super::rows::Row;
use super::{InputArtifact, NodeError, imported, rows};
use crate::lm::{Finish, Join};
use crate::pipeline::ArtifactType;

/// A row of responses: as many to each constitution of a query.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    /// The row's id.
    pub(super) id: String,
    /// The whole row.
    pub(super) row: Row,
    /// Its constitutions.
    pub(super) constitutions: Vec<Constitution>,
    /// The responses to the first, those to the second, and so on.
    pub(super) responses: Vec<Response>,
}

/// What of a text is scored.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scoring {
    /// The end of a response, if the model ended it.
    pub(super) eos: bool,
    /// What stands before it.
    pub(super) join: Join,
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
    /// Responses to each constitution.
    pub(super) fn each(&self) -> usize {
        self.responses.len() / self.constitutions.len()
    }

    /// The C×CM cells of the row, see [`cells`].
    pub(super) fn cells(&self, prompts: &[String], scoring: Scoring) -> Vec<Pair> {
        let responses: Vec<_> =
            self.responses.iter().map(|response| (response.text.as_str(), response.finish)).collect();
        cells(&self.id, prompts, &responses, scoring)
    }
}

/// The cells of a query: constitution k's prompt with response j, row by row.
pub(super) fn cells(row: &str, prompts: &[String], responses: &[(&str, Finish)], scoring: Scoring) -> Vec<Pair> {
    let cell = |prompt: &String, (text, finish): &(&str, Finish)| Pair {
        row: row.to_owned(),
        prompt: prompt.clone(),
        response: (*text).to_owned(),
        join: scoring.join,
        eos: scoring.eos && *finish == Finish::Eos,
    };
    prompts.iter().flat_map(|prompt| responses.iter().map(move |response| cell(prompt, response))).collect()
}

/// Of the cells of queries with `size` constitutions, each response under its own one.
pub(super) fn diagonal(cells: &[Pair], size: usize) -> Vec<Pair> {
    own(cells, size, 1).cloned().collect()
}

/// Of the cells of queries with `size` constitutions and `each` responses to each, those of a response under its own one.
pub(super) fn own<T>(cells: &[T], size: usize, each: usize) -> impl Iterator<Item = &T> {
    cells.chunks(size * size * each).flat_map(move |cells| {
        let rows = cells.chunks(size * each).enumerate();
        rows.flat_map(move |(k, row)| &row[k * each..(k + 1) * each])
    })
}

/// Reads the responses of an input. Each row has as many responses to each constitution, and all rows as many.
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
        let found = (constitutions.len(), responses.len());
        let wanted = all.first().map_or_else(
            || (found.0.max(2), found.1.next_multiple_of(found.0.max(2)).max(2)),
            |first| (first.constitutions.len(), first.responses.len()),
        );
        if found != wanted {
            return Err(NodeError::failed(format!(
                "row `{id}` has {} constitutions and {} responses, and {} and {} were expected",
                found.0, found.1, wanted.0, wanted.1
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cells_of_one_and_of_several_responses() {
        let cells: Vec<usize> = (0..8).collect();
        assert_eq!(own(&cells, 2, 1).copied().collect::<Vec<_>>(), [0, 3, 4, 7], "two queries");
        assert_eq!(own(&cells, 2, 2).copied().collect::<Vec<_>>(), [0, 1, 6, 7], "one query");
    }
}
