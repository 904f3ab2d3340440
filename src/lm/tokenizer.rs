//! Text to tokens and back.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Files, LmError, Sequence};

/// How a tokenizer that is trained here cuts text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// Whole words between white space.
    #[default]
    Word,
    /// Byte-level byte-pair encoding.
    Bpe,
}

/// A tokenizer in the form of Hugging Face's `tokenizer.json`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    bos: Option<u32>,
    eos: Vec<u32>,
}

impl Tokenizer {
    /// Loads `tokenizer.json`; what begins and ends a text comes from `tokenizer_config.json`, `config.json` and
    /// `generation_config.json`, where they are there.
    pub fn load(files: &Files) -> Result<Self, LmError> {
        let _ = files;
        Err(LmError::NoTokenizer { sentencepiece: false })
    }

    /// Trains one on texts: `<pad>`, `<bos>`, `<eos>`, `<unk>` (ids 0 to 3), then at most `vocab_size` tokens in all.
    pub fn train<'a>(
        kind: TokenizerKind,
        texts: impl IntoIterator<Item = &'a str>,
        vocab_size: usize,
    ) -> Result<Self, LmError> {
        let _ = (kind, texts.into_iter().count(), vocab_size);
        Err(LmError::NoTokenizer { sentencepiece: false })
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into a directory that exists.
    pub fn save(&self, directory: &Path) -> Result<(), LmError> {
        let _ = directory;
        Err(LmError::NoTokenizer { sentencepiece: false })
    }

    /// The tokens of a prompt, after the token that begins a text if the model has one.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, LmError> {
        let _ = text;
        Err(LmError::NoTokenizer { sentencepiece: false })
    }

    /// The tokens of a prompt and its response, tokenised as one text.
    ///
    /// A space stands between the two unless the prompt is empty or ends in white space. A token is the response's if
    /// it ends after the prompt's end.
    pub fn sequence(&self, prompt: &str, response: &str, with_eos: bool) -> Result<Sequence, LmError> {
        let _ = (prompt, response, with_eos);
        Err(LmError::NoTokenizer { sentencepiece: false })
    }

    /// A whole text as response to nothing: everything after its begin token is scored.
    pub fn text(&self, text: &str, with_eos: bool) -> Result<Sequence, LmError> {
        let _ = (text, with_eos);
        Err(LmError::NoTokenizer { sentencepiece: false })
    }

    /// The text of tokens, without special ones.
    pub fn decode(&self, ids: &[u32]) -> Result<String, LmError> {
        let _ = ids;
        Err(LmError::NoTokenizer { sentencepiece: false })
    }

    /// The token that begins a text, if any.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a text; the first is the one that is written.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The token that fills up a batch, if any.
    pub fn pad(&self) -> Option<u32> {
        None
    }

    /// Tokens, added ones too: one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        0
    }
}
