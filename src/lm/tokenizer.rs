//! Text to tokens and back.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, ModelWrapper};

use super::gguf::{self, Gguf};
use super::{Config, Files, LmError, Sequence};
use crate::fs;

mod outline;

/// How a tokenizer that is trained here cuts text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    inner: Arc<tokenizers::Tokenizer>,
    /// `tokenizer.json` and `tokenizer_config.json`, as they were read or made.
    files: BTreeMap<&'static str, Vec<u8>>,
    bos: Option<u32>,
    eos: Vec<u32>,
    pad: Option<u32>,
}

const TOKENIZER: &str = "tokenizer.json";
/// The largest vocabularies that there are take a tenth of this.
const LARGEST: u64 = 512 << 20;
const SETTINGS: &str = "tokenizer_config.json";
/// The special tokens of a trained tokenizer; the place is the id.
const SPECIAL: [&str; 4] = ["<pad>", "<bos>", "<eos>", "<unk>"];

/// Errs on a token that the model's embedding has no row for.
fn check_size(inner: &tokenizers::Tokenizer, vocab_size: usize) -> Result<(), LmError> {
    let largest = inner.get_vocab(true).into_iter().max_by_key(|(_, token)| *token);
    match largest.filter(|(_, token)| *token as usize >= vocab_size) {
        Some((text, token)) => Err(LmError::Vocabulary { token, text, vocab_size }),
        None => Ok(()),
    }
}

fn failed(what: &str) -> impl FnOnce(tokenizers::Error) -> LmError {
    move |error| LmError::Tokenizer { what: format!("{what}: {error}") }
}

/// What stands between a prompt and its response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Join {
    /// A space, unless one of the two is empty or the prompt ends in white space.
    #[default]
    Space,
    /// Nothing.
    None,
}

impl Join {
    /// Whether it is the default, which stands in no key.
    pub fn is_space(&self) -> bool {
        *self == Self::Space
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json`, or makes one of what a GGUF file says.
    ///
    /// What begins a text is what its post-processor puts there; failing that, `bos_token` where
    /// `tokenizer_config.json` wants it added. What ends one comes from there and from the model's configuration.
    pub fn load(files: &Files) -> Result<Self, LmError> {
        let bytes = match (files.get(TOKENIZER), Gguf::of(files)?) {
            (Some(path), _) => fs::read(path, LARGEST)?,
            (None, Some(gguf)) => gguf.tokenizer()?.to_string().into_bytes(),
            (None, None) => {
                return Err(LmError::NoTokenizer { sentencepiece: files.contains_key("tokenizer.model") });
            }
        };
        let malformed =
            |error: tokenizers::Error| LmError::Malformed { file: TOKENIZER.to_owned(), what: error.to_string() };
        outline::check(&bytes).map_err(|what| malformed(what.into()))?;
        let mut inner = held(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(malformed)?;
        // Cutting off and filling up are the business of who makes a batch.
        inner.with_truncation(None).map_err(failed("cannot be set up"))?;
        inner.with_padding(None);
        let mut kept = BTreeMap::from([(TOKENIZER, bytes)]);
        let settings = settings(files)?;
        match files.get(SETTINGS) {
            Some(path) => _ = kept.insert(SETTINGS, fs::read(path, LARGEST)?),
            None if settings.is_null() => {}
            None => _ = kept.insert(SETTINGS, format!("{settings:#}\n").into_bytes()),
        }
        let has_config = files.contains_key("config.json") || files.contains_key(gguf::FILE);
        let config = has_config.then(|| Config::load(files)).transpose()?;
        if let Some(config) = &config {
            check_size(&inner, config.vocab_size)?;
        }
        Self::new(inner, kept, &settings, config.as_ref())
    }

    fn new(
        inner: tokenizers::Tokenizer,
        files: BTreeMap<&'static str, Vec<u8>>,
        settings: &Value,
        config: Option<&Config>,
    ) -> Result<Self, LmError> {
        // A special token is a string, or an object that has it as its content.
        let named = |field: &str| {
            let value = settings.get(field)?;
            inner.token_to_id(value.as_str().or_else(|| value.get("content")?.as_str())?)
        };
        let alone = held(|| inner.encode("", true)).map_err(failed("cannot encode"))?;
        let eos_token = named("eos_token");
        // A post-processor may end texts, too; that is asked for where it is wanted.
        let first = alone.get_ids().first().copied().filter(|id| Some(*id) != eos_token);
        let wanted = match settings.get("add_bos_token").and_then(Value::as_bool) {
            Some(true) => named("bos_token"),
            None if settings.is_null() => config.and_then(|config| config.bos_token_id),
            Some(false) | None => None,
        };
        let mut eos: Vec<u32> = eos_token.into_iter().collect();
        for token in config.map_or(&[][..], |config| &config.eos_token_ids) {
            if !eos.contains(token) {
                eos.push(*token);
            }
        }
        let pad = named("pad_token").or_else(|| config?.pad_token_id);
        Ok(Self { bos: first.or(wanted), eos, pad, inner: Arc::new(inner), files })
    }

    /// Trains one on texts: `<pad>`, `<bos>`, `<eos>`, `<unk>` (ids 0 to 3), then at most `vocab_size` tokens in all.
    ///
    /// Words come by how often they occur, then by their letters. Byte pairs have the 256 bytes as alphabet. Errs where
    /// there is no room for the special tokens (and the bytes), or no text.
    pub fn train<'a>(
        kind: TokenizerKind,
        texts: impl IntoIterator<Item = &'a str>,
        vocab_size: usize,
    ) -> Result<Self, LmError> {
        let least = match kind {
            TokenizerKind::Word => SPECIAL.len() + 1,
            TokenizerKind::Bpe => SPECIAL.len() + 256,
        };
        if vocab_size < least {
            let what = format!("is {vocab_size}; such a tokenizer has at least {least} tokens");
            return Err(LmError::Setting { field: "vocab_size", what });
        }
        let mut texts = texts.into_iter().filter(|text| !text.trim().is_empty()).peekable();
        if texts.peek().is_none() {
            return Err(LmError::Tokenizer { what: "cannot be trained: there is no text".to_owned() });
        }
        let mut inner = match kind {
            TokenizerKind::Word => words(texts, vocab_size)?,
            TokenizerKind::Bpe => byte_pairs(texts, vocab_size)?,
        };
        let special = SPECIAL.map(|token| AddedToken::from(token, true));
        inner.add_special_tokens(special).map_err(failed("cannot be trained"))?;
        let template = TemplateProcessing::builder()
            .try_single("<bos> $A")
            .and_then(|builder| builder.try_pair("<bos> $A <bos>:1 $B:1"))
            .map_err(|error| LmError::Tokenizer { what: format!("cannot be trained: {error}") })?
            .special_tokens(vec![("<bos>", 1)])
            .build()
            .map_err(|error| LmError::Tokenizer { what: format!("cannot be trained: {error}") })?;
        inner.with_post_processor(Some(template));
        let settings = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "add_bos_token": true,
            "add_eos_token": false,
            // It would take the space before a full stop away, and decoding would not give back what was encoded.
            "clean_up_tokenization_spaces": false,
            "model_max_length": 1_000_000_000,
        });
        let text = inner.to_string(true).map_err(failed("cannot be written"))?;
        let files = BTreeMap::from([
            (TOKENIZER, format!("{text}\n").into_bytes()),
            (SETTINGS, format!("{settings:#}\n").into_bytes()),
        ]);
        Self::new(inner, files, &settings, None)
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into a directory that exists; a loaded tokenizer's as they were.
    pub fn save(&self, directory: &Path) -> Result<(), LmError> {
        for (name, bytes) in &self.files {
            crate::fs::write(&directory.join(name), bytes)?;
        }
        Ok(())
    }

    fn encode(&self, text: &str) -> Result<tokenizers::Encoding, LmError> {
        held(|| self.inner.encode(text, false)).map_err(failed("cannot encode a text"))
    }

    /// The token that begins a text, if it is wanted and the text does not begin with it, as one that a chat template
    /// made does.
    fn beginning(&self, ids: &[u32]) -> Option<u32> {
        self.bos.filter(|bos| ids.first() != Some(bos))
    }

    /// The tokens of a prompt, after the token that begins a text if the model has one and the prompt does not name it.
    ///
    /// May be empty: an empty text and no such token.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, LmError> {
        let encoding = self.encode(text)?;
        let mut ids: Vec<u32> = self.beginning(encoding.get_ids()).into_iter().collect();
        ids.extend(encoding.get_ids());
        Ok(ids)
    }

    /// The tokens of a prompt and its response after a space, see [`Tokenizer::joined`].
    pub fn sequence(&self, prompt: &str, response: &str, with_eos: bool) -> Result<Sequence, LmError> {
        self.joined(prompt, response, Join::Space, with_eos)
    }

    /// The tokens of a prompt and its response, tokenised as one text.
    ///
    /// A token is the response's if it ends after the prompt's end, so that one with letters of both is. The first token of
    /// all is the prompt's in any case: nothing precedes it that it could be scored on. Errs where there is no token at all.
    pub fn joined(&self, prompt: &str, response: &str, join: Join, with_eos: bool) -> Result<Sequence, LmError> {
        let mut text = prompt.to_owned();
        let apart = text.is_empty() || response.is_empty() || text.ends_with(char::is_whitespace);
        if join == Join::Space && !apart {
            text.push(' ');
        }
        text.push_str(response);
        let encoding = self.encode(&text)?;
        let mut ids: Vec<u32> = self.beginning(encoding.get_ids()).into_iter().collect();
        let before = encoding.get_offsets().iter().take_while(|(_, end)| *end <= prompt.len()).count();
        let prompt = (ids.len() + before).max(1);
        ids.extend(encoding.get_ids());
        if with_eos {
            ids.extend(self.eos.first());
        }
        if ids.is_empty() {
            return Err(LmError::Tokenizer { what: "gives no token for an empty text".to_owned() });
        }
        Ok(Sequence { ids, prompt })
    }

    /// A whole text as response to nothing: everything after its first token is scored.
    pub fn text(&self, text: &str, with_eos: bool) -> Result<Sequence, LmError> {
        self.sequence("", text, with_eos)
    }

    /// The text of tokens, without special ones.
    pub fn decode(&self, ids: &[u32]) -> Result<String, LmError> {
        held(|| self.inner.decode(ids, true)).map_err(failed("cannot decode"))
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
        self.pad
    }

    /// Tokens, added ones too: one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        let ids = self.inner.get_vocab(true);
        ids.values().max().map_or(0, |largest| *largest as usize + 1)
    }
}

/// What the tokenizer library makes. It panics on some files that it reads, or later on what they say.
fn held<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("the tokenizer library gave up on it".into()))
}

/// `tokenizer_config.json`, or what a GGUF file says in its place; null without either.
pub(super) fn settings(files: &Files) -> Result<Value, LmError> {
    let Some(path) = files.get(SETTINGS) else {
        return Gguf::of(files)?.map_or(Ok(Value::Null), |gguf| gguf.settings());
    };
    let malformed =
        |error: serde_json::Error| LmError::Malformed { file: SETTINGS.to_owned(), what: error.to_string() };
    serde_json::from_slice(&fs::read(path, LARGEST)?).map_err(malformed)
}

fn words<'a>(texts: impl Iterator<Item = &'a str>, vocab_size: usize) -> Result<tokenizers::Tokenizer, LmError> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for word in texts.flat_map(str::split_whitespace).filter(|word| !SPECIAL.contains(word)) {
        *counts.entry(word).or_default() += 1;
    }
    let mut words: Vec<(&str, u64)> = counts.into_iter().collect();
    words.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let words = SPECIAL.into_iter().chain(words.into_iter().map(|(word, _)| word)).take(vocab_size);
    let model = WordLevel::builder()
        .vocab(words.zip(0..).map(|(word, id)| (word.to_owned(), id)).collect())
        .unk_token("<unk>".to_owned())
        .build()
        .map_err(failed("cannot be trained"))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    // No decoder: words are joined by spaces.
    tokenizer.with_pre_tokenizer(Some(WhitespaceSplit));
    Ok(tokenizer)
}

fn byte_pairs<'a>(texts: impl Iterator<Item = &'a str>, vocab_size: usize) -> Result<tokenizers::Tokenizer, LmError> {
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = tokenizers::Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    let bytes = ByteLevel::default().add_prefix_space(false);
    tokenizer.with_pre_tokenizer(Some(bytes));
    tokenizer.with_decoder(Some(bytes));
    // The trainer wants owned texts that threads may share.
    let texts: Vec<String> = texts.map(str::to_owned).collect();
    let mut trainer = tokenizers::models::TrainerWrapper::BpeTrainer(std::mem::take(&mut trainer));
    tokenizer.train(&mut trainer, texts.iter()).map_err(failed("cannot be trained"))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests;
