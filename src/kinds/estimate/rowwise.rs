//! Estimates of kinds that go row by row.

use super::facts::Asked;
use super::{Amount, Estimate, Facts, How, Known, Principles};
use crate::kinds::constitutions::ConstitutionsKind;
use crate::kinds::evaluate::{Compare, Evaluate};
use crate::kinds::generate::Generate;
use crate::kinds::probe::Probe;
use crate::kinds::score::Score;
use crate::lm::{Footprint, footprint};

/// What a conversation's form adds to what is said.
const CHAT_TOKENS: u64 = 24;
/// What is written of a row or a response besides its texts.
const ROW_BYTES: u64 = 120;
/// Bytes of a token.
const TOKEN_BYTES: u64 = 4;
/// A judge's question without what is judged, and its answer.
const QUESTION_TOKENS: u64 = 250;

fn largest(parts: impl IntoIterator<Item = Footprint>) -> Option<Footprint> {
    parts.into_iter().max_by_key(Footprint::total)
}

fn prompt(
    model: &Facts,
    template: &str,
    system: Option<&str>,
    chat: bool,
    queries: &Facts,
    principles: &Principles,
) -> Option<Amount> {
    let more = system.map_or(0, |system| model.tokens(system)) + if chat { CHAT_TOKENS } else { 0 };
    Some(model.prompt_tokens(template, &queries.some, Some(principles))? + Amount::about(more))
}

/// How constitutions will be. Those whose texts a model writes have texts of the usual length.
pub(in crate::kinds) fn constitutions(kind: &ConstitutionsKind, known: &Known<'_>) -> Estimate {
    let (principles, missing) = kind.foreseen();
    let bytes: usize = principles.texts.iter().map(|text| 2 * text.len() + 60).sum();
    let calls = (missing > 0).then(|| Amount::about(1));
    let writer = known.input("writer");
    Estimate {
        writer_calls: calls,
        endpoint_calls: calls.filter(|_| writer.endpoint.is_some()),
        disk: Some(Amount::about(bytes as u64)),
        unknown: known.why(&["writer"]),
        made: Facts { principles: Some(principles), ..Facts::default() },
        ..Estimate::default()
    }
}

/// Queries × constitutions prompts, a response to each.
pub(in crate::kinds) fn generate(kind: &Generate, known: &Known<'_>) -> Estimate {
    let (model, queries) = (known.input("model"), known.input("queries"));
    let unknown = known.why(&["model", "queries", "constitutions"]);
    let (Some(rows), Some(principles)) = (queries.rows, &known.input("constitutions").principles) else {
        return Estimate::unknown(unknown.unwrap_or_else(|| "until its queries are there".to_owned()));
    };
    let rows = rows * kind.samples;
    let asks = rows * principles.per_query * kind.responses_per_constitution;
    let response = Amount::at_most(kind.max_new_tokens as u64);
    let prompt = prompt(model, &kind.prompt, kind.system.as_deref(), kind.chat, queries, principles);
    let row_bytes = queries.row_bytes
        + principles.per_query * (principles.text().len() as u64 + ROW_BYTES)
        + principles.per_query * kind.responses_per_constitution * (TOKEN_BYTES * response.number + ROW_BYTES);
    let read = prompt.map(|prompt| asks * prompt);
    let written = asks * response;
    let calls = model.endpoint.map(|_| asks);
    let price = model.endpoint.and_then(|asked| asked.price);
    let memory = model.config().zip(prompt).map(|(config, prompt)| {
        footprint::sampling(config, known.place, asks.number, prompt.number + response.number, known.run.micro_batch)
    });
    Estimate {
        rows: Some(rows),
        tokens_read: read,
        tokens_written: Some(written),
        memory,
        disk: Some(rows * Amount::about(row_bytes) + asks * Amount::about(TOKEN_BYTES * response.number + ROW_BYTES)),
        endpoint_calls: calls,
        cost: price.zip(read).map(|(price, read)| price.of(read.number, written.number)),
        unknown,
        made: Facts {
            // Some may be dropped.
            rows: Some(Amount { how: rows.how.max(How::AtMost), ..rows }),
            some: queries.some.clone(),
            principles: Some(principles.clone()),
            responses_each: kind.responses_per_constitution,
            response: Some(response),
            row_bytes,
            ..Facts::default()
        },
        ..Estimate::default()
    }
}

/// Each principle for and against it: two prompts a query, a response to each, and each response under both.
pub(in crate::kinds) fn probe(kind: &Probe, known: &Known<'_>) -> Estimate {
    let (model, queries) = (known.input("model"), known.input("queries"));
    let unknown = known.why(&["model", "queries", "constitutions"]);
    let (Some(rows), Some(principles)) = (queries.rows, &known.input("constitutions").principles) else {
        return Estimate::unknown(unknown.unwrap_or_else(|| "until its queries are there".to_owned()));
    };
    let rows = rows * (kind.samples * kind.principles.as_ref().map_or(principles.all, |names| names.len() as u64));
    let asks = rows * 2;
    let response = Amount::at_most(kind.max_new_tokens as u64);
    let alone = Principles::new(2, 1, principles.texts.clone());
    let prompt = prompt(model, &kind.prompt, kind.system.as_deref(), kind.chat, queries, &alone);
    let memory = model.config().zip(prompt).map(|(config, prompt)| {
        let tokens = prompt.number + 2 * response.number;
        let sampling = footprint::sampling(config, known.place, asks.number, tokens, known.run.micro_batch);
        largest([sampling, footprint::scoring(config, known.place, tokens, 0)])
    });
    Estimate {
        rows: Some(rows),
        tokens_read: prompt.map(|prompt| asks * (prompt * 2 + response * 2)),
        tokens_written: Some(asks * response),
        memory: memory.flatten(),
        disk: Some(Amount::about(ROW_BYTES * principles.all)),
        unknown,
        made: Facts { principles: Some(principles.clone()), ..Facts::default() },
        ..Estimate::default()
    }
}

/// Every response under every constitution; a prompt is read once for all its responses.
pub(in crate::kinds) fn score(kind: &Score, known: &Known<'_>) -> Estimate {
    let (model, responses) = (known.input("model"), known.input("responses"));
    let unknown = known.why(&["model", "responses", "reference"]);
    let (Some(rows), Some(principles), Some(response)) = (responses.rows, &responses.principles, responses.response)
    else {
        return Estimate::unknown(unknown.unwrap_or_else(|| "until its responses are there".to_owned()));
    };
    let prompt = prompt(model, &kind.prompt, kind.system.as_deref(), kind.chat, responses, principles);
    let (prompts, each) = (principles.per_query, principles.per_query * responses.responses_each.max(1));
    let referenced = kind.reference.is_some();
    let read = prompt.map(|prompt| {
        let cells = rows * prompts * (prompt + response * each);
        let own = rows * each * (prompt + response) * 2;
        if referenced { cells + own } else { cells }
    });
    let row_bytes = responses.row_bytes + prompts * (prompt.map_or(0, |one| one.number) * TOKEN_BYTES + 20 * each);
    let memory = model.config().zip(prompt).map(|(config, prompt)| {
        footprint::scoring(config, known.place, prompt.number + each * response.number, u64::from(referenced))
    });
    Estimate {
        rows: Some(rows),
        tokens_read: read,
        memory,
        disk: Some(rows * Amount::about(row_bytes) + rows * prompts * each * Amount::about(ROW_BYTES)),
        unknown,
        made: Facts { prompt, row_bytes, ..responses.clone() },
        ..Estimate::default()
    }
}

/// As `generate` and `score` for each candidate with weights here, and a judge's questions.
pub(in crate::kinds) fn evaluate(kind: &Evaluate, known: &Known<'_>) -> Estimate {
    let queries = known.input("queries");
    let names: Vec<String> = kind.candidates.keys().map(|name| format!("candidates.{name}")).collect();
    let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
    all.extend(["queries", "constitutions", "judge"]);
    let unknown = known.why(&all);
    let (Some(rows), Some(principles)) = (queries.rows, &known.input("constitutions").principles) else {
        return Estimate::unknown(unknown.unwrap_or_else(|| "until its queries are there".to_owned()));
    };
    let per_query = principles.per_query;
    let asks = rows * per_query;
    let response = Amount::at_most(kind.max_new_tokens as u64);
    let mut estimate = Estimate { rows: Some(rows), unknown, ..Estimate::default() };
    let (mut read, mut written, mut memory) = (Vec::new(), Amount::exactly(0), Vec::new());
    for (name, path) in kind.candidates.keys().zip(&names) {
        let model = known.input(path);
        let chat = kind.chat.contains(name) || model.endpoint.is_some();
        let template = kind.chat_prompt.as_ref().filter(|_| chat).unwrap_or(&kind.prompt);
        let system = kind.system.as_deref().filter(|_| chat);
        let prompt = prompt(model, template, system, chat, queries, principles);
        if model.model.is_none() && model.endpoint.is_none() {
            // Responses that there are, or a model of which nothing is known.
            if model.unknown.is_some() {
                read.push(None);
                written = written + asks * response;
            }
            continue;
        }
        written = written + asks * response;
        if let Some(Asked { price }) = model.endpoint {
            read.push(prompt.map(|prompt| asks * prompt));
            estimate.endpoint_calls = Some(estimate.endpoint_calls.unwrap_or(Amount::exactly(0)) + asks);
            add_cost(
                &mut estimate,
                price.zip(prompt).map(|(price, prompt)| price.of((asks * prompt).number, (asks * response).number)),
            );
            continue;
        }
        let from_another = *name != kind.against;
        read.push(prompt.map(|prompt| {
            let cells = asks * (prompt + response * per_query);
            let kl = asks * (prompt + response) * if from_another { 2 } else { 0 };
            asks * prompt + cells + kl
        }));
        if let (Some(config), Some(prompt)) = (model.config(), prompt) {
            let tokens = prompt.number + response.number;
            memory.push(footprint::sampling(config, known.place, asks.number, tokens, known.run.micro_batch));
            memory.push(footprint::scoring(config, known.place, tokens, u64::from(from_another)));
        }
    }
    let compared = if kind.compare == Compare::All { per_query } else { 1 };
    let rivals = (kind.candidates.len() as u64).saturating_sub(1);
    if kind.judge.is_some() {
        let judge = known.input("judge");
        let calls = Amount::at_most(kind.judge_calls(rows.number, per_query));
        let texts = judge.tokens(&principles.text()) + queries.row_bytes.div_ceil(TOKEN_BYTES) + QUESTION_TOKENS;
        let question = Amount::about(texts) + response * 2;
        let answer = Amount::at_most(kind.judge_max_tokens as u64);
        estimate.judge_calls = Some(calls);
        read.push(Some(calls * question));
        if let Some(Asked { price }) = judge.endpoint {
            estimate.endpoint_calls = Some(estimate.endpoint_calls.unwrap_or(Amount::exactly(0)) + calls);
            add_cost(&mut estimate, price.map(|price| price.of((calls * question).number, (calls * answer).number)));
            written = written + calls * answer;
        }
        memory.extend(judge.config().map(|config| {
            let rows = calls.number.max(1);
            footprint::sampling(config, known.place, rows, question.number + answer.number, known.run.micro_batch)
        }));
    }
    estimate.tokens_read = read.into_iter().sum();
    estimate.tokens_written = Some(written);
    estimate.memory = largest(memory);
    let row = queries.row_bytes + compared * (1 + rivals) * (TOKEN_BYTES * response.number + ROW_BYTES);
    estimate.disk = Some(
        rows * Amount::about(row) + asks * (1 + rivals) * Amount::about(TOKEN_BYTES * response.number + 3 * ROW_BYTES),
    );
    estimate
}

/// Adds costs; of what is not known of a part, nothing is known of the whole.
fn add_cost(estimate: &mut Estimate, cost: Option<f64>) {
    if let Some(cost) = cost {
        estimate.cost = Some(estimate.cost.unwrap_or(0.0) + cost);
    }
}
