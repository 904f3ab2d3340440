//! What a model's `config.json` says about its form.

use serde_json::{Value, json};

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
    /// How many tokens a token sees, itself and those just before it; `None`: all.
    pub sliding_window: Option<usize>,
    /// The token that begins a text, if any.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills up a batch, if any; not used here, kept for `transformers`.
    pub pad_token_id: Option<u32>,
}

/// Above any model that exists; keeps products of sizes within 64 bits.
const LARGEST: u64 = 1 << 24;
/// Above any model that exists.
const MOST_LAYERS: u64 = 1 << 12;

/// `config.json`, read field by field.
struct Fields(Value);

impl Fields {
    fn of(files: &Files, name: &str) -> Result<Option<Self>, LmError> {
        let Some(path) = files.get(name) else { return Ok(None) };
        let text = fs_err::read(path)?;
        let malformed = |what: String| LmError::Malformed { file: name.to_owned(), what };
        let value: Value = serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        if !value.is_object() {
            return Err(malformed("it is no JSON object".to_owned()));
        }
        Ok(Some(Self(value)))
    }

    /// A field that is there and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn size(&self, field: &'static str, most: u64) -> Result<Option<usize>, LmError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if (1..=most).contains(&size) => Ok(Some(size as usize)),
            _ => Err(LmError::Config { field, what: format!("is {value}, not a whole number of 1 to {most}") }),
        }
    }

    fn required(&self, field: &'static str, most: u64) -> Result<usize, LmError> {
        self.size(field, most)?.ok_or_else(|| LmError::Config { field, what: "is missing".to_owned() })
    }

    fn number(&self, field: &'static str, default: f64) -> Result<f64, LmError> {
        match self.get(field).or_else(|| self.get("rope_parameters").and_then(|parameters| parameters.get(field))) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| number.is_finite() && *number > 0.0)
                .ok_or_else(|| LmError::Config { field, what: format!("is {value}, not a number above 0") }),
        }
    }

    fn flag(&self, field: &'static str) -> Result<bool, LmError> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => {
                value.as_bool().ok_or_else(|| LmError::Config { field, what: format!("is {value}, not true or false") })
            }
        }
    }

    /// One token or a list of them.
    fn tokens(&self, field: &'static str) -> Result<Vec<u32>, LmError> {
        let one = |value: &Value| {
            let token = value.as_u64().and_then(|token| u32::try_from(token).ok());
            token.ok_or_else(|| LmError::Config { field, what: format!("is {value}, not a token") })
        };
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    /// Errs where the model wants something that the decoder does not do.
    fn refuse_what_is_not_supported(&self) -> Result<(), LmError> {
        let unsupported = |what: String, supported| Err(LmError::Unsupported { what, supported });
        for field in ["attention_bias", "mlp_bias"] {
            if self.get(field).is_some_and(|value| value != &Value::Bool(false)) {
                return unsupported(format!("`{field}`"), "linear layers without bias");
            }
        }
        if let Some(activation) = self.get("hidden_act").filter(|value| *value != "silu" && *value != "swish") {
            return unsupported(format!("the activation {activation}"), "\"silu\"");
        }
        if self.get("quantization_config").is_some() {
            return unsupported("a quantised model".to_owned(), "weights in f32, f16 and bf16");
        }
        for field in ["rope_scaling", "rope_parameters"] {
            let Some(scaling) = self.get(field) else { continue };
            let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).unwrap_or(&Value::Null);
            if !kind.is_null() && kind != "default" {
                return unsupported(format!("`{field}` of type {kind}"), "rotary positions that are not scaled");
            }
        }
        Ok(())
    }

    fn model_type(&self) -> Result<&'static str, LmError> {
        let architecture = self.get("architectures").and_then(|list| list.get(0));
        let named = match (self.get("model_type"), architecture) {
            (Some(name), _) | (None, Some(name)) => name.as_str().unwrap_or_default(),
            (None, None) => {
                return Err(LmError::Config { field: "model_type", what: "is missing".to_owned() });
            }
        };
        match named {
            "llama" | "LlamaForCausalLM" => Ok("llama"),
            "mistral" | "MistralForCausalLM" => Ok("mistral"),
            _ => Err(LmError::Unsupported {
                what: format!("the architecture `{}`", named.chars().take(80).collect::<String>()),
                supported: "llama, mistral",
            }),
        }
    }
}

impl Config {
    /// Reads `config.json`, and the end tokens of `generation_config.json` where it is there.
    ///
    /// What is missing has the value that `transformers` gives it. Errs on other architectures than Llama's and
    /// Mistral's, and on values that cannot be.
    pub fn load(files: &Files) -> Result<Self, LmError> {
        let fields =
            Fields::of(files, "config.json")?.ok_or_else(|| LmError::MissingFile { name: "config.json".to_owned() })?;
        let model_type = fields.model_type()?;
        fields.refuse_what_is_not_supported()?;
        let mistral = model_type == "mistral";
        let vocab_size = fields.required("vocab_size", LARGEST)?;
        let hidden_size = fields.required("hidden_size", LARGEST)?;
        let heads = fields.required("num_attention_heads", LARGEST)?;
        let sliding_window = match fields.0.get("sliding_window") {
            _ if !mistral => None,
            None => Some(4096),
            Some(_) => fields.size("sliding_window", u64::MAX)?,
        };
        let mut eos_token_ids = fields.tokens("eos_token_id")?;
        if let Some(generation) = Fields::of(files, "generation_config.json")? {
            for token in generation.tokens("eos_token_id")? {
                if !eos_token_ids.contains(&token) {
                    eos_token_ids.push(token);
                }
            }
        }
        let config =
            Self {
                model_type: model_type.to_owned(),
                vocab_size,
                hidden_size,
                intermediate_size: fields.required("intermediate_size", LARGEST)?,
                num_hidden_layers: fields.required("num_hidden_layers", MOST_LAYERS)?,
                num_attention_heads: heads,
                num_key_value_heads: fields.size("num_key_value_heads", LARGEST)?.unwrap_or(if mistral {
                    8
                } else {
                    heads
                }),
                head_dim: fields.size("head_dim", LARGEST)?.unwrap_or(hidden_size / heads),
                rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
                rope_theta: fields.number("rope_theta", 1e4)?,
                max_position_embeddings: fields
                    .size("max_position_embeddings", u32::MAX.into())?
                    .unwrap_or(if mistral { 131_072 } else { 2048 }),
                tie_word_embeddings: fields.flag("tie_word_embeddings")?,
                sliding_window,
                bos_token_id: fields.tokens("bos_token_id")?.first().copied(),
                eos_token_ids,
                // Some models have -1 or a token past the end here, and nothing depends on it.
                pad_token_id: fields
                    .get("pad_token_id")
                    .and_then(Value::as_u64)
                    .filter(|token| (*token as usize) < vocab_size)
                    .map(|token| token as u32),
            };
        config.check()?;
        Ok(config)
    }

    /// Errs on sizes that do not go together.
    pub fn check(&self) -> Result<(), LmError> {
        let fail = |field, what: String| Err(LmError::Config { field, what });
        for (field, size, most) in [
            ("vocab_size", self.vocab_size, LARGEST),
            ("hidden_size", self.hidden_size, LARGEST),
            ("intermediate_size", self.intermediate_size, LARGEST),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, LARGEST),
            ("num_key_value_heads", self.num_key_value_heads, LARGEST),
            ("head_dim", self.head_dim, LARGEST),
            ("max_position_embeddings", self.max_position_embeddings, u32::MAX.into()),
        ] {
            if !(1..=most).contains(&(size as u64)) {
                return fail(field, format!("is {size}, not a whole number of 1 to {most}"));
            }
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            return fail("num_key_value_heads", format!("is {kv_heads}, which does not divide the {heads} heads"));
        }
        if !self.head_dim.is_multiple_of(2) || heads * self.head_dim > LARGEST as usize {
            return fail("head_dim", format!("is {}, which is odd or too large", self.head_dim));
        }
        if self.sliding_window == Some(0) {
            return fail("sliding_window", "is 0".to_owned());
        }
        let tokens = self.bos_token_id.iter().chain(&self.eos_token_ids).chain(&self.pad_token_id);
        match tokens.into_iter().find(|token| **token as usize >= self.vocab_size) {
            Some(token) => fail("vocab_size", format!("is {}, but there is a token {token}", self.vocab_size)),
            None => Ok(()),
        }
    }

    /// As `transformers` reads it.
    pub fn to_json(&self) -> Value {
        let class = if self.model_type == "mistral" { "MistralForCausalLM" } else { "LlamaForCausalLM" };
        let mut json = json!({
            "architectures": [class],
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "float32",
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        if self.model_type == "mistral" {
            json["sliding_window"] = json!(self.sliding_window);
        } else {
            json["attention_bias"] = json!(false);
            json["mlp_bias"] = json!(false);
        }
        json
    }

    /// `generation_config.json`, as `transformers` reads it.
    pub fn generation_json(&self) -> Value {
        json!({
            "_from_model_config": true,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "pad_token_id": self.pad_token_id,
        })
    }

    fn eos_json(&self) -> Value {
        match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [token] => json!(token),
            tokens => json!(tokens),
        }
    }

    /// Names and shapes of all weights, as `transformers` has them.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, width])];
        for layer in 0..self.num_hidden_layers {
            for (name, shape) in [
                ("input_layernorm", vec![width]),
                ("self_attn.q_proj", vec![queries, width]),
                ("self_attn.k_proj", vec![keys, width]),
                ("self_attn.v_proj", vec![keys, width]),
                ("self_attn.o_proj", vec![width, queries]),
                ("post_attention_layernorm", vec![width]),
                ("mlp.gate_proj", vec![inner, width]),
                ("mlp.up_proj", vec![inner, width]),
                ("mlp.down_proj", vec![width, inner]),
            ] {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![width]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, width]));
        }
        tensors
    }

    /// How many weights there are.
    pub fn parameters(&self) -> u64 {
        let count = |shape: &[usize]| shape.iter().map(|size| *size as u64).product::<u64>();
        self.tensors().iter().map(|(_, shape)| count(shape)).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests;
