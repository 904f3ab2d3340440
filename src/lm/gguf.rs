//! GGUF files: what llama.cpp's programs read. Form, weights and tokenizer in one file.
//!
//! The weights are read as f32 into the decoder that all models have, so that whatever works with a model works with one
//! from a GGUF file: batches, log-probabilities, training. A model of 4 bits a weight takes eight times its file that way.
//!
//! The names and their meanings: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Shape, Tensor};
use fs_err::File;
use serde_json::json;

use super::weights::check_numbers;
use super::{Config, Files, LmError};
use crate::fs;

pub(super) mod vocabulary;

/// What a GGUF model's one file is called among [`Files`].
pub const FILE: &str = "model.gguf";
const SUPPORTED: &str = "llama (Mistral and Mixtral too), qwen2, qwen3, qwen3moe";

/// An open file, its head read.
pub(super) struct Gguf {
    file: BufReader<File>,
    content: Content,
    architecture: String,
    /// Tensors of several experts, read for the first of them: those of one layer.
    stacked: BTreeMap<String, Tensor>,
}

fn fail<T>(what: impl Into<String>) -> Result<T, LmError> {
    Err(LmError::Gguf { what: what.into() })
}

impl Gguf {
    /// Opens the file, if the model is one.
    pub(super) fn of(files: &Files) -> Result<Option<Self>, LmError> {
        files.get(FILE).map(|path| Self::open(path)).transpose()
    }

    fn open(path: &Path) -> Result<Self, LmError> {
        let mut file = BufReader::new(fs::open(path)?);
        let content = match Content::read(&mut file) {
            Ok(content) => content,
            Err(error) => return fail(format!("cannot be read: {error}")),
        };
        // A number takes a bit at least; what shapes multiply to may not even be a number.
        let most = file.get_ref().metadata()?.len().saturating_mul(8);
        let count = |shape: &Shape| shape.dims().iter().try_fold(1_u64, |count, dim| count.checked_mul(*dim as u64));
        let is_odd = |shape: &Shape| count(shape).is_none_or(|count| count > most);
        if let Some((name, info)) =
            content.tensor_infos.iter().filter(|(_, info)| is_odd(&info.shape)).min_by_key(|(name, _)| *name)
        {
            return fail(format!("gives `{name}` the shape {:?}, for which the file is too small", info.shape.dims()));
        }
        let architecture = match content.metadata.get("general.architecture") {
            Some(Value::String(name)) => name.clone(),
            _ => return fail("does not say what architecture it has"),
        };
        Ok(Self { file, content, architecture, stacked: BTreeMap::new() })
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.content.metadata.get(name)
    }

    /// A number of the architecture, such as `block_count`.
    fn own(&self, name: &str) -> Option<&Value> {
        self.value(&format!("{}.{name}", self.architecture))
    }

    fn size(&self, name: &str) -> Option<u64> {
        self.own(name).and_then(whole)
    }

    fn has(&self, tensor: &str) -> bool {
        self.content.tensor_infos.contains_key(tensor)
    }

    /// What `config.json` would say.
    pub(super) fn config(&mut self) -> Result<serde_json::Value, LmError> {
        let experts = self.size("expert_count").filter(|count| *count > 0);
        let family = match (self.architecture.as_str(), experts) {
            ("llama", None) => "llama",
            ("llama", Some(_)) => "mixtral",
            ("qwen2", None) => "qwen2",
            ("qwen3", None) => "qwen3",
            ("qwen3moe", Some(_)) => "qwen3_moe",
            (other, _) => {
                return fail(format!(
                    "has the architecture `{other}`, which is not supported; supported are {SUPPORTED}"
                ));
            }
        };
        let required = |name: &str| {
            self.size(name)
                .ok_or_else(|| LmError::Gguf { what: format!("does not say its `{}.{name}`", self.architecture) })
        };
        let vocabulary =
            self.content.tensor_infos.get("token_embd.weight").and_then(|info| info.shape.dims().first().copied());
        let Some(vocabulary) = vocabulary else { return fail("has no `token_embd.weight`") };
        let heads = required("attention.head_count")?;
        let token = |name: &str| self.value(&format!("tokenizer.ggml.{name}_token_id")).and_then(whole);
        let mut ends: Vec<u64> = ["eos", "eot", "eom"].iter().filter_map(|name| token(name)).collect();
        ends.dedup();
        let mut config = json!({
            "model_type": family,
            "vocab_size": vocabulary,
            "hidden_size": required("embedding_length")?,
            "intermediate_size": required("feed_forward_length")?,
            "num_hidden_layers": required("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.size("attention.head_count_kv").unwrap_or(heads),
            "rms_norm_eps": self.own("attention.layer_norm_rms_epsilon").and_then(real),
            "rope_theta": self.own("rope.freq_base").and_then(real).unwrap_or(1e4),
            "max_position_embeddings": required("context_length")?,
            "tie_word_embeddings": !self.has("output.weight"),
            "attention_bias": family == "llama" && self.has("blk.0.attn_q.bias"),
            "mlp_bias": family == "llama" && self.has("blk.0.ffn_up.bias"),
            "bos_token_id": token("bos"),
            "eos_token_id": ends,
            "pad_token_id": token("padding"),
        });
        if let Some(width) = self.size("attention.key_length").or_else(|| self.size("rope.dimension_count")) {
            config["head_dim"] = json!(width);
        }
        if family == "mixtral" || family == "mistral" {
            config["sliding_window"] = json!(null);
        }
        if let Some(experts) = experts {
            config["num_local_experts"] = json!(experts);
            config["num_experts_per_tok"] = json!(required("expert_used_count")?);
            config["norm_topk_prob"] = json!(true);
            if let Some(inner) = self.size("expert_feed_forward_length") {
                config["moe_intermediate_size"] = json!(inner);
            }
        }
        match self.own("rope.scaling.type") {
            None => {}
            Some(Value::String(kind)) if kind == "none" => {}
            Some(Value::String(kind)) if kind == "linear" => {
                let factor = self.own("rope.scaling.factor").and_then(real);
                config["rope_scaling"] = json!({"rope_type": "linear", "factor": factor});
            }
            Some(other) => {
                return fail(format!(
                    "scales its positions as {other:?}, which is not supported; supported is `linear`"
                ));
            }
        }
        if self.has("rope_freqs.weight") {
            let factors: Vec<f32> = self.read("rope_freqs.weight", &Device::Cpu)?.flatten_all()?.to_vec1()?;
            config["rope_scaling"] = llama3_scaling(&factors, config["rope_theta"].as_f64().unwrap_or(1e4))?;
        }
        Ok(config)
    }

    /// All tensors of a model of this form, as f32, under the names that `transformers` gives them.
    pub(super) fn tensors(mut self, config: &Config, device: &Device) -> Result<BTreeMap<String, Tensor>, LmError> {
        let turned = self.architecture == "llama";
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.tensors() {
            let missing = || LmError::MissingTensor { name: name.clone() };
            let own = Name::of(&name).ok_or_else(missing)?;
            let tensor = match own.expert {
                _ if self.has(&own.text) => self.read(&own.text, device)?,
                Some(expert) if self.has(&own.stack) => self.expert(&own.stack, expert, device)?,
                _ => return Err(missing()),
            };
            if tensor.dims() != shape.as_slice() {
                let (found, expected) = (format!("{:?}", tensor.dims()), format!("{shape:?}"));
                return Err(LmError::TensorForm { name, found, expected });
            }
            let tensor = match own.heads {
                Some(Heads::Query) if turned => turn_back(&tensor, config.num_attention_heads)?,
                Some(Heads::Key) if turned => turn_back(&tensor, config.num_key_value_heads)?,
                _ => tensor,
            };
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }

    fn read(&mut self, name: &str, device: &Device) -> Result<Tensor, LmError> {
        let damaged = |what: String| LmError::Weights { file: FILE.to_owned(), what: format!("`{name}`: {what}") };
        // What candle reads of nothing lies nowhere, which it may not look at.
        if self.content.tensor_infos.get(name).is_some_and(|info| info.shape.elem_count() == 0) {
            return Err(damaged("it has no numbers".to_owned()));
        }
        let read = self.content.tensor(&mut self.file, name, &Device::Cpu);
        let tensor = read.map_err(|error| damaged(error.to_string()))?;
        let tensor = tensor.dequantize(&Device::Cpu)?;
        check_numbers(name, &tensor)?;
        Ok(tensor.to_device(device)?)
    }

    /// One expert's part of a tensor (X, out, in).
    fn expert(&mut self, stack: &str, expert: usize, device: &Device) -> Result<Tensor, LmError> {
        if !self.stacked.contains_key(stack) {
            let layer =
                stack.rsplit_once('.').and_then(|(rest, _)| rest.rsplit_once('.')).map_or("", |(layer, _)| layer);
            self.stacked.retain(|other, _| other.starts_with(&format!("{layer}.")));
            let tensor = self.read(stack, device)?;
            self.stacked.insert(stack.to_owned(), tensor);
        }
        let stacked = &self.stacked[stack];
        if stacked.rank() != 3 || stacked.dim(0)? <= expert {
            return Err(LmError::MissingTensor { name: format!("{stack}, expert {expert}") });
        }
        Ok(stacked.get(expert)?.contiguous()?)
    }
}

fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::U8(number) => Some((*number).into()),
        Value::U16(number) => Some((*number).into()),
        Value::U32(number) => Some((*number).into()),
        Value::U64(number) => Some(*number),
        Value::I8(number) => u64::try_from(*number).ok(),
        Value::I16(number) => u64::try_from(*number).ok(),
        Value::I32(number) => u64::try_from(*number).ok(),
        Value::I64(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// A number; of one in f32 the decimal that it was written as.
fn real(value: &Value) -> Option<f64> {
    match value {
        Value::F32(number) => number.to_string().parse().ok(),
        Value::F64(number) => Some(*number),
        other => whole(other).map(|number| number as f64),
    }
}

#[derive(Clone, Copy)]
enum Heads {
    Query,
    Key,
}

/// A tensor's name here.
struct Name {
    text: String,
    /// The name of the tensor that has all experts.
    stack: String,
    expert: Option<usize>,
    heads: Option<Heads>,
}

impl Name {
    /// From the name that `transformers` has.
    fn of(name: &str) -> Option<Self> {
        let plain = |text: &str| Self { text: text.to_owned(), stack: String::new(), expert: None, heads: None };
        let Some(rest) = name.strip_prefix("model.layers.") else {
            return Some(plain(match name {
                "model.embed_tokens.weight" => "token_embd.weight",
                "model.norm.weight" => "output_norm.weight",
                "lm_head.weight" => "output.weight",
                _ => return None,
            }));
        };
        let (layer, rest) = rest.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        if let Some((_, expert)) = part.split_once(".experts.") {
            let (expert, part) = expert.split_once('.')?;
            let part = match part {
                "w1" | "gate_proj" => "ffn_gate",
                "w2" | "down_proj" => "ffn_down",
                "w3" | "up_proj" => "ffn_up",
                _ => return None,
            };
            return Some(Self {
                text: format!("blk.{layer}.{part}.{expert}.{kind}"),
                stack: format!("blk.{layer}.{part}_exps.{kind}"),
                expert: Some(expert.parse().ok()?),
                heads: None,
            });
        }
        let (own, heads) = match part {
            "input_layernorm" => ("attn_norm", None),
            "post_attention_layernorm" => ("ffn_norm", None),
            "self_attn.q_proj" => ("attn_q", Some(Heads::Query)),
            "self_attn.k_proj" => ("attn_k", Some(Heads::Key)),
            "self_attn.v_proj" => ("attn_v", None),
            "self_attn.o_proj" => ("attn_output", None),
            "self_attn.q_norm" => ("attn_q_norm", None),
            "self_attn.k_norm" => ("attn_k_norm", None),
            "mlp.gate_proj" => ("ffn_gate", None),
            "mlp.up_proj" => ("ffn_up", None),
            "mlp.down_proj" => ("ffn_down", None),
            "mlp.gate" | "block_sparse_moe.gate" => ("ffn_gate_inp", None),
            _ => return None,
        };
        Some(Self { heads, ..plain(&format!("blk.{layer}.{own}.{kind}")) })
    }
}

/// llama.cpp turns neighbouring numbers of a head with each other where `transformers` turns the first half with the second;
/// for Llama's architecture its files have the rows of queries and keys reordered accordingly.
fn turn_back(tensor: &Tensor, heads: usize) -> Result<Tensor, LmError> {
    let dims = tensor.dims().to_vec();
    let (rows, rest) = (dims[0], dims[1..].iter().product::<usize>());
    let split = tensor.reshape((heads, rows / heads / 2, 2, rest))?;
    Ok(split.transpose(1, 2)?.contiguous()?.reshape(dims)?)
}

/// The scaling of Llama 3.1 and later, of which files have only what each frequency is divided by.
fn llama3_scaling(factors: &[f32], theta: f64) -> Result<serde_json::Value, LmError> {
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let fits = factors.iter().enumerate().all(|(pair, found)| {
        let frequency = 1.0 / theta.powf(pair as f64 / factors.len() as f64);
        let fast = ((original * frequency / std::f64::consts::TAU - low) / (high - low)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - fast) / factor + fast);
        (f64::from(*found) - expected).abs() < 1e-3 * expected
    });
    if !fits {
        return fail("scales its positions in another way than Llama 3, which is not supported");
    }
    Ok(json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original as u64}))
}

#[cfg(test)]
mod tests;
