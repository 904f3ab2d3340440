//! What a model's `config.json` says about its form.

use serde_json::Value;

use super::{Files, LmError};

/// The form of a decoder. Fields have the names that `config.json` gives them.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `llama` or `mistral`.
    pub model_type: String,
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// F.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// K; divides H.
    pub num_key_value_heads: usize,
    /// E; even.
    pub head_dim: usize,
    /// Keeps the root mean square from zero.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// How many tokens back a token sees, itself among them; `None`: all.
    pub sliding_window: Option<usize>,
    /// The token that begins a text, if any.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills up a batch, if any; not used here, kept for `transformers`.
    pub pad_token_id: Option<u32>,
}

impl Config {
    /// Reads `config.json`, and the end tokens of `generation_config.json` where it is there.
    ///
    /// Errs on other architectures than Llama's and Mistral's, and on values that cannot be.
    pub fn load(files: &Files) -> Result<Self, LmError> {
        let _ = files;
        Err(LmError::MissingFile { name: "config.json".to_owned() })
    }

    /// As `transformers` reads it.
    pub fn to_json(&self) -> Value {
        Value::Null
    }
}
