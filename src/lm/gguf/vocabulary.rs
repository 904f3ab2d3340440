//! The tokenizer of a GGUF file, in the form of `tokenizer.json` and `tokenizer_config.json`.

use std::collections::HashMap;

use candle_core::quantized::gguf_file;
use serde_json::{Map, Value, json};

use super::{Gguf, fail, whole};
use crate::lm::LmError;

/// What a token is, by the numbers of `tokenizer.ggml.token_type`.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// How Llama 3 and Qwen 2 cut text before pairs are merged: all but how many digits stay together.
const WORDS: [&str; 2] =
    [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"];

impl Gguf {
    /// `tokenizer.json`.
    pub(in crate::lm) fn tokenizer(&self) -> Result<Value, LmError> {
        let tokens = self.tokens()?;
        let types = self.types(tokens.len());
        let kind = self.text("tokenizer.ggml.model").unwrap_or_default();
        let mut tokenizer = match kind {
            "gpt2" => self.byte_level(&tokens)?,
            "llama" => self.sentencepiece(&tokens, &types)?,
            other => {
                return fail(format!(
                    "has a tokenizer of the kind `{other}`; supported are `gpt2` and `llama`, or name a `tokenizer.json`"
                ));
            }
        };
        let added = tokens
            .iter()
            .zip(&types)
            .enumerate()
            .filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        let added: Vec<Value> = added
            .map(|(id, (content, kind))| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind != USER_DEFINED})
            })
            .collect();
        tokenizer["version"] = json!("1.0");
        tokenizer["added_tokens"] = json!(added);
        if self.adds_bos()
            && let Some((id, bos)) = self.special(&tokens, "bos")
        {
            let (start, text) = (
                json!({"SpecialToken": {"id": bos, "type_id": 0}}),
                |name, id| json!({"Sequence": {"id": name, "type_id": id}}),
            );
            tokenizer["post_processor"] = json!({
                "type": "TemplateProcessing",
                "single": [start, text("A", 0)],
                "pair": [start, text("A", 0), text("B", 1)],
                "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
            });
        }
        Ok(tokenizer)
    }

    /// `tokenizer_config.json`.
    pub(in crate::lm) fn settings(&self) -> Result<Value, LmError> {
        let tokens = self.tokens()?;
        let mut settings = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.adds_bos(),
            "add_eos_token": false,
            "clean_up_tokenization_spaces": false,
        });
        for (name, own) in
            [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
        {
            if let Some((_, text)) = self.special(&tokens, own) {
                settings[name] = json!(text);
            }
        }
        if let Some(template) = self.text("tokenizer.chat_template") {
            settings["chat_template"] = json!(template);
        }
        Ok(settings)
    }

    fn text(&self, name: &str) -> Option<&str> {
        match self.value(name) {
            Some(gguf_file::Value::String(text)) => Some(text),
            _ => None,
        }
    }

    fn list(&self, name: &str) -> Option<&[gguf_file::Value]> {
        match self.value(name) {
            Some(gguf_file::Value::Array(list)) => Some(list),
            _ => None,
        }
    }

    fn tokens(&self) -> Result<Vec<&str>, LmError> {
        let Some(list) = self.list("tokenizer.ggml.tokens") else {
            return fail("has no tokenizer in it; name a `tokenizer.json`");
        };
        let texts = list.iter().map(|value| match value {
            gguf_file::Value::String(text) => Some(text.as_str()),
            _ => None,
        });
        let tokens: Option<Vec<&str>> = texts.collect();
        tokens.map_or_else(|| fail("has tokens that are no texts"), Ok)
    }

    /// What each token is; ordinary ones where the file does not say.
    fn types(&self, tokens: usize) -> Vec<u64> {
        let mut types: Vec<u64> = self
            .list("tokenizer.ggml.token_type")
            .unwrap_or_default()
            .iter()
            .map(|kind| whole(kind).unwrap_or(1))
            .collect();
        types.resize(tokens, 1);
        types
    }

    fn special<'a>(&self, tokens: &[&'a str], name: &str) -> Option<(u64, &'a str)> {
        let id = self.value(&format!("tokenizer.ggml.{name}_token_id")).and_then(whole)?;
        Some((id, tokens.get(usize::try_from(id).ok()?)?))
    }

    fn adds_bos(&self) -> bool {
        match self.value("tokenizer.ggml.add_bos_token") {
            Some(gguf_file::Value::Bool(adds)) => *adds,
            _ => match self.text("tokenizer.ggml.model") {
                Some("llama") => true,
                _ => matches!(self.text("tokenizer.ggml.pre"), Some("llama3" | "llama-bpe")),
            },
        }
    }

    fn vocabulary(tokens: &[&str]) -> Map<String, Value> {
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect()
    }

    /// Pairs of bytes, as GPT-2's.
    fn byte_level(&self, tokens: &[&str]) -> Result<Value, LmError> {
        let merges = self.list("tokenizer.ggml.merges").unwrap_or_default().iter().filter_map(|merge| match merge {
            // A byte is written as a character that is no space.
            gguf_file::Value::String(pair) => pair.split_once(' '),
            _ => None,
        });
        let merges: Vec<[&str; 2]> = merges.map(|(left, right)| [left, right]).collect();
        let level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let cut = |digits: &str| {
            let regex = format!("{}{digits}{}", WORDS[0], WORDS[1]);
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
                level(false),
            ]})
        };
        let pre = self.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
        let (normalizer, pre_tokenizer, whole_words) = match pre {
            "llama3" | "llama-bpe" => (Value::Null, cut(r"\p{N}{1,3}"), true),
            "qwen2" => (json!({"type": "NFC"}), cut(r"\p{N}"), false),
            "gpt-2" | "gpt2" => (Value::Null, level(true), false),
            other => {
                return fail(format!(
                    "cuts text as `{other}`; supported are llama-bpe, qwen2 and gpt-2, or name the model's `tokenizer.json`"
                ));
            }
        };
        Ok(json!({
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "decoder": level(true),
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
                "vocab": Self::vocabulary(tokens), "merges": merges},
        }))
    }

    /// Pieces of SentencePiece that are merged by their scores.
    fn sentencepiece(&self, tokens: &[&str], types: &[u64]) -> Result<Value, LmError> {
        let score = |value: &gguf_file::Value| value.to_f32().unwrap_or(f32::NEG_INFINITY);
        let Some(scores) = self.list("tokenizer.ggml.scores") else { return fail("has no scores of its tokens") };
        let scores: Vec<f32> = scores.iter().map(score).collect();
        let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
        let mut merges: Vec<(f32, &str, &str)> = Vec::new();
        for (id, (token, score)) in tokens.iter().zip(&scores).enumerate() {
            if [UNKNOWN, CONTROL].contains(&types[id]) {
                continue;
            }
            let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            let mut pairs: Vec<(&str, &str)> =
                splits.filter(|(left, right)| ids.contains_key(left) && ids.contains_key(right)).collect();
            pairs.sort_by_key(|(left, right)| (ids[left], ids[right]));
            merges.extend(pairs.into_iter().map(|(left, right)| (*score, left, right)));
        }
        // As transformers makes the merges of such a model.
        let letters = |text: &str| text.chars().count();
        merges.sort_by(|a, b| {
            b.0.total_cmp(&a.0).then(letters(b.1).cmp(&letters(a.1))).then(letters(b.2).cmp(&letters(a.2)))
        });
        let merges: Vec<[&str; 2]> = merges.into_iter().map(|(_, left, right)| [left, right]).collect();
        let prefix = !matches!(self.value("tokenizer.ggml.add_space_prefix"), Some(gguf_file::Value::Bool(false)));
        let spaces = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let mut normalizers = vec![spaces(" ", "▁")];
        let mut decoders = vec![spaces("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = types.iter().position(|kind| *kind == UNKNOWN).map(|id| tokens[id]);
        Ok(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": Self::vocabulary(tokens), "merges": merges},
        }))
    }
}
