//! The language model: decoder, tokenizer, sampling, log-probabilities, losses and training on candle.

/// What can go wrong in the language model.
#[derive(Debug, thiserror::Error)]
pub enum LmError {
    /// candle said no.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
