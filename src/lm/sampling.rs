//! Sampling responses.

use serde::{Deserialize, Serialize};

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

/// Samples a response to each prompt, as one batch.
///
/// Errs on a prompt that is empty or leaves no position for a new token, with its index.
pub fn sample(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    settings: &SamplingSettings,
) -> Result<Vec<Response>, LmError> {
    let _ = (model, tokenizer, prompts, settings);
    Err(LmError::Mismatch { what: "not built".to_owned() })
}
