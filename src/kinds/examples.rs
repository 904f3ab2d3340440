//! What `finetune` trains on, made of datasets and of scored responses.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::policy::response_tokens;
use super::responses::{self, Scoring, part};
use super::{InputArtifact, NodeError, query, rows, template};
use crate::lm::train::Example;
use crate::lm::{Join, Sequence, Tokenizer};

/// Whose responses of a query are trained on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Whose {
    /// Those of all constitutions.
    #[default]
    All,
    /// Those of the first constitution.
    First,
}

impl Whose {
    /// Whether it is the default, which stands in no key.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
    pub(super) fn is_all(&self) -> bool {
        *self == Self::All
    }
}

/// Examples of one form.
#[derive(Debug)]
pub(super) struct Examples {
    /// The examples.
    pub(super) all: Vec<Example>,
    /// Constitutions of a query; 1 where there are none.
    pub(super) constitutions: usize,
    /// Responses to each of them.
    pub(super) each: usize,
}

impl Examples {
    fn alone(all: Vec<Example>) -> Self {
        Self { all, constitutions: 1, each: 1 }
    }

    /// Those of several inputs, whose names go before their ids: rows of two inputs may have the same.
    pub(super) fn mixed(parts: Vec<(Option<&str>, Self)>) -> Result<Self, NodeError> {
        let mut mixed: Option<Self> = None;
        for (name, mut part) in parts {
            if let Some(name) = name {
                part.all.iter_mut().for_each(|one| one.id = format!("{name}/{}", one.id));
            }
            match &mut mixed {
                None => mixed = Some(part),
                Some(mixed) if (mixed.constitutions, mixed.each) == (part.constitutions, part.each) => {
                    mixed.all.append(&mut part.all);
                }
                Some(_) => {
                    return Err(NodeError::with_help(
                        "examples of several inputs differ in their constitutions for a query, or in the responses to each",
                        "give all the same `per_query` and `responses_per_constitution`, or train on one of them",
                    ));
                }
            }
        }
        mixed.ok_or_else(|| NodeError::failed("no examples"))
    }
}

/// The C×CM cells of each row of scores: constitution k's training prompt with response j, row by row.
pub(super) fn contrasts(input: &InputArtifact, tokenizer: &Tokenizer, score_eos: bool) -> Result<Examples, NodeError> {
    let mut examples = Examples::alone(Vec::new());
    for row in responses::read(input)? {
        let prompts: Vec<String> = part(&row.row, &row.id, "prompts")?;
        if prompts.len() != row.constitutions.len() {
            return Err(NodeError::failed(format!("row `{}` has not as many prompts as constitutions", row.id)));
        }
        (examples.constitutions, examples.each) = (row.constitutions.len(), row.each());
        let join: Option<Join> = part(&row.row, &row.id, "prompts_join")?;
        let scoring = Scoring { eos: score_eos, join: join.unwrap_or_default() };
        let cells = row.cells(&prompts, scoring);
        let sequences = cells
            .iter()
            .map(|cell| {
                sequence(&row.id, tokenizer, &cell.prompt, &cell.response, Scoring { eos: cell.eos, join: cell.join })
            })
            .collect::<Result<_, _>>()?;
        examples.all.push(Example { id: row.id, sequences });
    }
    Ok(examples)
}

/// The first constitution's row of those cells.
pub(super) fn first_rows(input: &InputArtifact, tokenizer: &Tokenizer, score_eos: bool) -> Result<Examples, NodeError> {
    let mut examples = contrasts(input, tokenizer, score_eos)?;
    for example in &mut examples.all {
        example.sequences.truncate(examples.constitutions * examples.each);
    }
    Ok(examples)
}

/// Each response of each row of scores after its own constitution's prompt.
pub(super) fn own_responses(
    input: &InputArtifact,
    tokenizer: &Tokenizer,
    score_eos: bool,
    whose: Whose,
) -> Result<Examples, NodeError> {
    let Examples { all, constitutions, each } = contrasts(input, tokenizer, score_eos)?;
    let most = if whose == Whose::First { each } else { constitutions * each };
    let mut examples = Vec::with_capacity(all.len() * most);
    for Example { id, sequences } in all {
        let own = responses::own(&sequences, constitutions, each).take(most).enumerate();
        examples.extend(own.map(|(at, one)| Example { id: format!("{id}/{}", at + 1), sequences: vec![one.clone()] }));
    }
    Ok(Examples::alone(examples))
}

/// A response after its prompt for each row of a dataset.
pub(super) fn pairs(
    input: &InputArtifact,
    tokenizer: &Tokenizer,
    prompt: &str,
    response: &str,
    scoring: Scoring,
) -> Result<Examples, NodeError> {
    after_prompts(input, tokenizer, prompt, &[("response", response)], scoring)
}

/// A response that is preferred, and one that is not, after their prompt for each row of a dataset.
pub(super) fn preferences(
    input: &InputArtifact,
    tokenizer: &Tokenizer,
    prompt: &str,
    chosen: &str,
    rejected: &str,
    scoring: Scoring,
) -> Result<Examples, NodeError> {
    after_prompts(input, tokenizer, prompt, &[("chosen", chosen), ("rejected", rejected)], scoring)
}

/// Responses by their templates after one prompt.
fn after_prompts(
    input: &InputArtifact,
    tokenizer: &Tokenizer,
    prompt: &str,
    responses: &[(&'static str, &str)],
    scoring: Scoring,
) -> Result<Examples, NodeError> {
    let prompt = template::parse("prompt", prompt)?;
    let responses = responses
        .iter()
        .map(|(field, text)| Ok((*field, template::parse(field, text)?)))
        .collect::<Result<Vec<_>, NodeError>>()?;
    each(input, |id, fields| {
        let prompt = prompt.render_row("prompt", id, fields)?;
        let response = |(field, response): &(&str, template::Template)| {
            sequence(id, tokenizer, &prompt, &response.render_row(field, id, fields)?, scoring)
        };
        responses.iter().map(response).collect()
    })
}

/// A whole text, and that it ends, for each row of a dataset.
pub(super) fn texts(input: &InputArtifact, tokenizer: &Tokenizer, text: &str) -> Result<Examples, NodeError> {
    let text = template::parse("text", text)?;
    each(input, |id, fields| {
        let sequence = tokenizer.text(&text.render_row("text", id, fields)?, true)?;
        Ok(vec![not_empty(id, sequence)?])
    })
}

fn each(
    input: &InputArtifact,
    mut make: impl FnMut(&str, &minijinja::Value) -> Result<Vec<Sequence>, NodeError>,
) -> Result<Examples, NodeError> {
    let rows = rows::read_input(input)?;
    if rows.is_empty() {
        return Err(NodeError::with_help("there are no examples", "lower `skip`, or raise `take`"));
    }
    let example = |row: &rows::Row| {
        let id = rows::id(row)?;
        Ok(Example { id: id.to_owned(), sequences: make(id, &query::fields(row))? })
    };
    Ok(Examples::alone(rows.iter().map(example).collect::<Result<_, NodeError>>()?))
}

fn sequence(
    id: &str,
    tokenizer: &Tokenizer,
    prompt: &str,
    response: &str,
    scoring: Scoring,
) -> Result<Sequence, NodeError> {
    not_empty(id, tokenizer.joined(prompt, response, scoring.join, scoring.eos)?)
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
