//! The language model: decoder, tokenizer, sampling, log-probabilities, losses and training.
//!
//! # Layout
//! - [`config`], [`weights`], [`tokenizer`], [`chat`]: files in the form of Hugging Face's `transformers`, in and out.
//!   [`gguf`]: the same out of llama.cpp's.
//! - [`decoder`]: the model, differentiable. [`adapter`]: changes of low rank to it.
//! - [`logprobs`], [`sampling`]: what one does with a model. [`loss`], [`optimizer`], [`schedule`], [`train`]: making one better.
//!
//! # Letters
//! Shapes in this module are written with: N tokens of a batch without padding, B rows, T tokens of a row, V vocabulary,
//! D width, F width of the feed-forward layer, H query heads, K key/value heads, E head width.

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use candle_core::{Device, Tensor, Var};

pub mod adapter;
pub mod chat;
pub mod config;
mod cpu;
mod decode;
pub mod decoder;
pub mod device;
pub mod driver;
pub mod error;
pub mod footprint;
pub mod gguf;
mod gpu;
mod graph;
mod layout;
pub mod logprobs;
pub mod loss;
pub mod memory;
mod nccl;
pub mod optimizer;
pub mod peaks;
mod plain;
mod prefixes;
pub(crate) mod random;
pub mod sampling;
pub mod schedule;
pub mod tokenizer;
pub mod train;
pub mod weights;

pub use chat::{ChatTemplate, Message};
pub use config::{Config, Experts, Family, RopeScaling};
pub use decoder::Model;
pub use device::device;
pub use error::LmError;
pub use footprint::{Footprint, Place};
pub use logprobs::{Sequence, Tokens};
pub use sampling::{Finish, Prompt, Response, SamplingSettings};
pub use tokenizer::{Join, Tokenizer, TokenizerKind};

/// The files of a model: the names that Hugging Face gives them, to where they lie.
///
/// The paths may be blobs named by their digest, so nothing is ever looked for beside one of them.
pub type Files = BTreeMap<String, PathBuf>;
