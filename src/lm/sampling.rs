//! Sampling responses.

use serde::{Deserialize, Serialize};

use super::{LmError, Model, Tokenizer};

mod batch;
mod pick;

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

/// How many rows are sampled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Rows at most; else as many as fit the memory and are worth it.
    pub rows: Option<usize>,
}

/// Samples a response to each prompt.
///
/// A response to a prompt is the same whatever the other prompts are (CPU: to the bit). Errs on settings that mean
/// nothing, and on a prompt that is empty or leaves no position for a new token, with its index, before anything is
/// sampled.
pub fn sample(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    settings: &SamplingSettings,
) -> Result<Vec<Response>, LmError> {
    let mut responses: Vec<Option<Response>> = prompts.iter().map(|_| None).collect();
    sample_each(model, tokenizer, prompts, settings, Limits::default(), |finished| {
        for (index, response) in finished {
            responses[index] = Some(response);
        }
        Ok::<_, LmError>(())
    })?;
    Ok(responses.into_iter().map(|response| response.expect("every prompt has a response")).collect())
}

/// As [`sample`], for any number of prompts: responses are handed over as they are finished, with their prompts' indices.
///
/// A bounded number of rows is in work at a time: finished ones leave, waiting ones enter. What prompts begin with in
/// common is read once (CPU). Where the memory is full, fewer rows go on together, and nothing changes but the time.
///
/// `each` is called after every token, also if no row is finished then; its error ends the work.
pub fn sample_each<E: From<LmError>>(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    settings: &SamplingSettings,
    limits: Limits,
    mut each: impl FnMut(Vec<(usize, Response)>) -> Result<(), E>,
) -> Result<(), E> {
    settings.check()?;
    model.check_prompts(&prompts.iter().map(|prompt| prompt.ids.as_slice()).collect::<Vec<_>>())?;
    if settings.max_new_tokens == 0 {
        let nothing = |index| (index, Response { ids: Vec::new(), text: String::new(), finish: Finish::Length });
        return each((0..prompts.len()).map(nothing).collect());
    }
    if prompts.is_empty() {
        return Ok(());
    }
    batch::Batch::new(model, tokenizer, prompts, settings, limits).run(&mut each)
}

#[cfg(test)]
mod tests;
