//! Sampling responses.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cpu::{exp_all, in_pool};
use super::decode::Decoding;
use super::random::Stream;
use super::{LmError, Model, Tokenizer};

/// How responses are sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingSettings {
    /// Tokens at most; fewer where the model has fewer positions left.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only the likeliest so many tokens; 0: all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability; 1: all.
    pub top_p: f64,
    /// Texts that end a response; they may span tokens, and are not part of it.
    pub stop: Vec<String>,
}

/// A prompt to sample a response to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens, at least one.
    pub ids: Vec<u32>,
    /// Of this row's random numbers: same model, prompt, settings and seed give the same response, whatever the batch.
    pub seed: u64,
}

/// Why a response ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended it.
    Eos,
    /// A stop text came.
    Stop,
    /// There was no more room.
    Length,
}

/// A sampled response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// All sampled tokens, those of a stop text too, without the end token.
    pub ids: Vec<u32>,
    /// Their text up to the stop text, not trimmed.
    pub text: String,
    /// Why it ends.
    pub finish: Finish,
}

impl SamplingSettings {
    /// The likeliest token at every place.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, temperature: 0.0, top_k: 0, top_p: 1.0, stop: Vec::new() }
    }

    fn check(&self) -> Result<(), LmError> {
        let fail = |field, what: String| Err(LmError::Setting { field, what });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return fail("temperature", format!("is {}, not a number of at least 0", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail("top_p", format!("is {}, not a number above 0 and at most 1", self.top_p));
        }
        if self.stop.iter().any(String::is_empty) {
            return fail("stop", "has an empty text, which would end everything".to_owned());
        }
        Ok(())
    }
}

/// The likeliest token; the first of several.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// Picks the next token of a row; `None` if a logit is not a number.
fn pick(settings: &SamplingSettings, logits: &[f32], stream: &mut Stream) -> Option<u32> {
    // One number for every token, whatever the settings.
    let number = stream.uniform();
    let mut weights = logits.to_vec();
    let scale = (1.0 / settings.temperature).min(f64::from(f32::MAX)) as f32;
    exp_all(&mut weights, if settings.temperature == 0.0 { 1.0 } else { scale });
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    if !total.is_finite() {
        return None;
    }
    if settings.temperature == 0.0 {
        return Some(likeliest(logits));
    }
    let total = narrow(settings, &mut weights).unwrap_or(total);
    let mut left = number * total;
    for (token, weight) in weights.iter().enumerate() {
        left -= f64::from(*weight);
        if left < 0.0 {
            return Some(token as u32);
        }
    }
    // Rounding may leave a rest; the last token that can be has it.
    weights.iter().rposition(|weight| *weight > 0.0).map(|token| token as u32)
}

/// Makes the weights zero that `top_k` and `top_p` do not want, and returns the sum of the others, if any did not want
/// some. Of equally likely tokens the first stays.
fn narrow(settings: &SamplingSettings, weights: &mut [f32]) -> Option<f64> {
    let all = weights.len();
    let few = settings.top_k > 0 && settings.top_k < all;
    if !few && settings.top_p >= 1.0 {
        return None;
    }
    let mut order: Vec<(f32, u32)> = weights.iter().copied().zip(0..).collect();
    let likelier = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let mut kept = all;
    if few {
        kept = settings.top_k;
        order.select_nth_unstable_by(kept - 1, likelier);
    }
    let sum = |weights: &[(f32, u32)]| -> f64 { weights.iter().map(|(weight, _)| f64::from(*weight)).sum() };
    if settings.top_p < 1.0 {
        order[..kept].sort_unstable_by(likelier);
        let enough = settings.top_p * sum(&order[..kept]);
        let mut before = 0.0;
        let wanted = order[..kept].iter().take_while(|(weight, _)| {
            let needed = before < enough;
            before += f64::from(*weight);
            needed
        });
        kept = wanted.count().max(1);
    }
    for (_, token) in &order[kept..] {
        weights[*token as usize] = 0.0;
    }
    Some(weights.iter().map(|weight| f64::from(*weight)).sum())
}

/// A row that is not finished.
struct Row {
    index: usize,
    stream: Stream,
    ids: Vec<u32>,
    room: usize,
}

/// Where the earliest stop text begins in a text.
fn stop_at(text: &str, stop: &[String]) -> Option<usize> {
    stop.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

impl Row {
    /// Takes a sampled token; returns the response if that ends it.
    fn take(
        &mut self,
        token: u32,
        ends: bool,
        tokenizer: &Tokenizer,
        stop: &[String],
    ) -> Result<Option<Response>, LmError> {
        if ends {
            return self.end(Finish::Eos, tokenizer.decode(&self.ids)?);
        }
        self.ids.push(token);
        if !stop.is_empty() {
            let mut text = tokenizer.decode(&self.ids)?;
            if let Some(end) = stop_at(&text, stop) {
                text.truncate(end);
                return self.end(Finish::Stop, text);
            }
        }
        if self.ids.len() < self.room {
            return Ok(None);
        }
        self.end(Finish::Length, tokenizer.decode(&self.ids)?)
    }

    fn end(&mut self, finish: Finish, text: String) -> Result<Option<Response>, LmError> {
        Ok(Some(Response { ids: std::mem::take(&mut self.ids), text, finish }))
    }
}

/// Samples a response to each prompt, as one batch.
///
/// A response to a prompt is the same whatever else is in the batch (CPU: to the bit). Errs on settings that mean
/// nothing, and on a prompt that is empty or leaves no position for a new token, with its index.
pub fn sample(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    settings: &SamplingSettings,
) -> Result<Vec<Response>, LmError> {
    settings.check()?;
    model.check_prompts(&prompts.iter().map(|prompt| prompt.ids.as_slice()).collect::<Vec<_>>())?;
    if prompts.is_empty() || settings.max_new_tokens == 0 {
        let nothing = |_| Response { ids: Vec::new(), text: String::new(), finish: Finish::Length };
        return Ok(prompts.iter().map(nothing).collect());
    }
    in_pool(|| sample_rows(model, tokenizer, prompts, settings))
}

fn sample_rows(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    settings: &SamplingSettings,
) -> Result<Vec<Response>, LmError> {
    let config = model.config();
    let vocabulary = config.vocab_size;
    let room = |prompt: &Prompt| settings.max_new_tokens.min(config.max_position_embeddings - prompt.ids.len());
    let row = |(index, prompt): (usize, &Prompt)| Row {
        index,
        stream: Stream::new(prompt.seed, "sampling"),
        ids: Vec::new(),
        room: room(prompt),
    };
    let mut rows: Vec<Row> = prompts.iter().enumerate().map(row).collect();
    let batch: Vec<(&[u32], usize)> = prompts.iter().map(|prompt| (prompt.ids.as_slice(), room(prompt))).collect();
    let mut logits = Vec::new();
    let mut decoding = Decoding::start(model, &batch, &mut logits)?;
    let ends = |token| config.eos_token_ids.contains(&token) || tokenizer.eos().contains(&token);
    let mut responses: Vec<Option<Response>> = prompts.iter().map(|_| None).collect();
    loop {
        let results: Vec<(u32, Option<Response>)> = rows
            .par_iter_mut()
            .zip(logits.par_chunks_exact(vocabulary))
            .map(|(row, logits)| {
                let token = pick(settings, logits, &mut row.stream).ok_or_else(|| LmError::Sequence {
                    row: row.index,
                    what: "has logits that are not numbers: the model is broken".to_owned(),
                })?;
                Ok((token, row.take(token, ends(token), tokenizer, &settings.stop)?))
            })
            .collect::<Result<_, LmError>>()?;
        let (mut kept, mut tokens, mut going) = (Vec::new(), Vec::new(), Vec::new());
        for (place, (row, (token, response))) in rows.into_iter().zip(results).enumerate() {
            match response {
                Some(response) => responses[row.index] = Some(response),
                None => {
                    kept.push(place);
                    tokens.push(token);
                    going.push(row);
                }
            }
        }
        rows = going;
        if rows.is_empty() {
            return Ok(responses.into_iter().map(|response| response.expect("every row has ended")).collect());
        }
        decoding.step(model, &kept, &tokens, &mut logits)?;
    }
}

#[cfg(test)]
mod tests;
