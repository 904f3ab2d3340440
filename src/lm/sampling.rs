//! Sampling responses.

use serde::{Deserialize, Serialize};

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

/// Picks the next token of a row.
struct Picker<'a> {
    settings: &'a SamplingSettings,
    /// Probabilities, or candidates with theirs; kept between rows.
    candidates: Vec<(f32, u32)>,
}

impl Picker<'_> {
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

    fn pick(&mut self, logits: &[f32], stream: &mut Stream) -> u32 {
        if self.settings.temperature == 0.0 {
            return Self::likeliest(logits);
        }
        // A number for every token, so that a seed's numbers do not depend on the settings.
        let number = stream.uniform();
        let scale = (1.0 / self.settings.temperature).min(f64::from(f32::MAX)) as f32;
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.candidates.clear();
        let weigh = |logit: f32| exp((logit - largest) * scale);
        self.candidates.extend(logits.iter().zip(0..).map(|(logit, token)| (weigh(*logit), token)));
        self.narrow();
        let total: f64 = self.candidates.iter().map(|(weight, _)| f64::from(*weight)).sum();
        let mut left = number * total;
        for (weight, token) in &self.candidates {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *token;
            }
        }
        // Rounding may leave a rest; the last token that can be has it.
        let possible = self.candidates.iter().rev().find(|(weight, _)| *weight > 0.0);
        possible.map_or_else(|| Self::likeliest(logits), |(_, token)| *token)
    }

    /// Drops what `top_k` and `top_p` do not want. Of equally likely tokens the first stays.
    fn narrow(&mut self) {
        let (top_k, top_p) = (self.settings.top_k, self.settings.top_p);
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, order);
            self.candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            self.candidates.sort_unstable_by(order);
            let total: f64 = self.candidates.iter().map(|(weight, _)| f64::from(*weight)).sum();
            let mut sum = 0.0;
            let mut fits = |(weight, _): &&(f32, u32)| {
                let before = sum;
                sum += f64::from(*weight);
                before < top_p * total
            };
            let count = self.candidates.iter().take_while(&mut fits).count();
            self.candidates.truncate(count.max(1));
        }
        // The order of picking must not depend on how they were selected.
        self.candidates.sort_unstable_by_key(|(_, token)| *token);
    }
}

/// e^x by operations that are the same on every platform (Cephes' polynomial), within 2 units in the last place.
fn exp(x: f32) -> f32 {
    super::cpu::simd::exp(x)
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
    let config = model.config();
    let positions = config.max_position_embeddings;
    model.check_prompts(&prompts.iter().map(|prompt| prompt.ids.as_slice()).collect::<Vec<_>>())?;
    let nothing = || Response { ids: Vec::new(), text: String::new(), finish: Finish::Length };
    let mut responses: Vec<Response> = prompts.iter().map(|_| nothing()).collect();
    if prompts.is_empty() || settings.max_new_tokens == 0 {
        return Ok(responses);
    }
    let room = |prompt: &Prompt| settings.max_new_tokens.min(positions - prompt.ids.len());
    let mut rows: Vec<Row> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| Row {
            index,
            stream: Stream::new(prompt.seed, "sampling"),
            ids: Vec::new(),
            room: room(prompt),
        })
        .collect();
    let batch: Vec<(&[u32], usize)> = prompts.iter().map(|prompt| (prompt.ids.as_slice(), room(prompt))).collect();
    let mut logits = Vec::new();
    let mut decoding = Decoding::start(model, &batch, &mut logits)?;
    let ends = |token| config.eos_token_ids.contains(&token) || tokenizer.eos().contains(&token);
    let mut picker = Picker { settings, candidates: Vec::new() };
    while !rows.is_empty() {
        let mut kept = Vec::with_capacity(rows.len());
        let mut going = Vec::with_capacity(rows.len());
        for (place, mut row) in std::mem::take(&mut rows).into_iter().enumerate() {
            let token = picker.pick(&logits[place * config.vocab_size..][..config.vocab_size], &mut row.stream);
            let ended = ends(token);
            if !ended {
                row.ids.push(token);
            }
            let mut text = None;
            if !settings.stop.is_empty() && !ended {
                let so_far = tokenizer.decode(&row.ids)?;
                text = stop_at(&so_far, &settings.stop).map(|end| so_far[..end].to_owned());
            }
            let finish = match (ended, &text) {
                (true, _) => Finish::Eos,
                (false, Some(_)) => Finish::Stop,
                (false, None) if row.ids.len() >= row.room => Finish::Length,
                (false, None) => {
                    kept.push(place);
                    going.push(row);
                    continue;
                }
            };
            let text = text.map_or_else(|| tokenizer.decode(&row.ids), Ok)?;
            responses[row.index] = Response { ids: row.ids, text, finish };
        }
        rows = going;
        if !rows.is_empty() {
            let tokens: Vec<u32> =
                rows.iter().map(|row| *row.ids.last().expect("a row goes on after a token")).collect();
            decoding.step(model, &kept, &tokens, &mut logits)?;
        }
    }
    Ok(responses)
}
