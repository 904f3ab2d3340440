//! What `finetune` trains on, made of datasets and of scored responses.

use super::policy::response_tokens;
use super::responses::{self, part};
use super::{InputArtifact, NodeError, query, rows, template};
use crate::lm::train::Example;
use crate::lm::{Sequence, Tokenizer};

/// The C×C cells of each row of scores: constitution k's training prompt with response j, row by row.
pub(super) fn contrasts(
    input: &InputArtifact,
    tokenizer: &Tokenizer,
    score_eos: bool,
) -> Result<Vec<Example>, NodeError> {
    let mut examples = Vec::new();
    for row in responses::read(input)? {
        let prompts: Vec<String> = part(&row.row, &row.id, "prompts")?;
        if prompts.len() != row.responses.len() {
            return Err(NodeError::failed(format!("row `{}` has not as many prompts as responses", row.id)));
        }
        let cells = row.cells(&prompts, score_eos);
        let sequences = cells
            .iter()
            .map(|cell| sequence(&row.id, tokenizer, &cell.prompt, &cell.response, cell.eos))
            .collect::<Result<_, _>>()?;
        examples.push(Example { id: row.id, sequences });
    }
    Ok(examples)
}

/// Each response of each row of scores after its own constitution's prompt.
pub(super) fn own_responses(
    input: &InputArtifact,
    tokenizer: &Tokenizer,
    score_eos: bool,
) -> Result<Vec<Example>, NodeError> {
    let mut examples = Vec::new();
    for Example { id, sequences } in contrasts(input, tokenizer, score_eos)? {
        let diagonal = sequences.len().isqrt() + 1;
        let own = sequences.into_iter().step_by(diagonal).enumerate();
        examples
            .extend(own.map(|(at, sequence)| Example { id: format!("{id}/{}", at + 1), sequences: vec![sequence] }));
    }
    Ok(examples)
}

/// A response after its prompt for each row of a dataset.
pub(super) fn pairs(
    input: &InputArtifact,
    tokenizer: &Tokenizer,
    prompt: &str,
    response: &str,
    score_eos: bool,
) -> Result<Vec<Example>, NodeError> {
    let (prompt, response) = (template::parse("prompt", prompt)?, template::parse("response", response)?);
    each(input, |id, fields| {
        let prompt = prompt.render_row("prompt", id, fields)?;
        let response = response.render_row("response", id, fields)?;
        sequence(id, tokenizer, &prompt, &response, score_eos)
    })
}

/// A whole text, and that it ends, for each row of a dataset.
pub(super) fn texts(input: &InputArtifact, tokenizer: &Tokenizer, text: &str) -> Result<Vec<Example>, NodeError> {
    let text = template::parse("text", text)?;
    each(input, |id, fields| {
        let sequence = tokenizer.text(&text.render_row("text", id, fields)?, true)?;
        not_empty(id, sequence)
    })
}

fn each(
    input: &InputArtifact,
    mut make: impl FnMut(&str, &minijinja::Value) -> Result<Sequence, NodeError>,
) -> Result<Vec<Example>, NodeError> {
    let rows = rows::read_input(input)?;
    if rows.is_empty() {
        return Err(NodeError::with_help("there are no examples", "lower `skip`, or raise `take`"));
    }
    let example = |row: &rows::Row| {
        let id = rows::id(row)?;
        Ok(Example { id: id.to_owned(), sequences: vec![make(id, &query::fields(row))?] })
    };
    rows.iter().map(example).collect()
}

fn sequence(id: &str, tokenizer: &Tokenizer, prompt: &str, response: &str, eos: bool) -> Result<Sequence, NodeError> {
    not_empty(id, tokenizer.sequence(prompt, response, eos)?)
}

fn not_empty(id: &str, sequence: Sequence) -> Result<Sequence, NodeError> {
    if response_tokens(&sequence) > 0 {
        return Ok(sequence);
    }
    Err(NodeError::with_help(
        format!("row `{id}` has nothing to train on: its text is empty"),
        "leave such rows out of the dataset, or give `score_eos = true`",
    ))
}
