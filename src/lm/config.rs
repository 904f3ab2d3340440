//! What a model's `config.json` says about its form.

use candle_core::DType;
use serde_json::Value;

use self::fields::Fields;
use super::{Files, LmError};

mod family;
mod fields;
mod json;
mod rope;
mod shapes;

pub use family::Family;
pub use rope::RopeScaling;
pub use shapes::LINEAR_NAMES;

/// The form of a decoder. Fields have the names that `config.json` gives them.
///
/// The default is what `transformers` takes for a Llama: its 7B.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family, which says what the other fields do not.
    pub model_type: Family,
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// F; of one expert, where there are experts.
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
    /// How the rotary frequencies are changed, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// The longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether queries, keys, values and the output of attention have biases. Qwen 2 has the first three without it.
    pub attention_bias: bool,
    /// Whether the feed-forward layer has biases.
    pub mlp_bias: bool,
    /// How many tokens a token sees, itself and those just before it; `None`: all.
    pub sliding_window: Option<usize>,
    /// Which layers have the sliding window; `None`: all. Has one entry for each layer.
    pub sliding_layers: Option<Vec<bool>>,
    /// The experts of each layer; `None`: a feed-forward layer.
    pub experts: Option<Experts>,
    /// The type that it is made to be computed in, whatever its weights are stored in. A CPU computes in f32.
    pub dtype: DType,
    /// The token that begins a text, if any.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills up a batch, if any; not used here, kept for `transformers`.
    pub pad_token_id: Option<u32>,
}

/// Feed-forward layers of which each token uses some. Fields have the names that `config.json` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// X.
    pub num_local_experts: usize,
    /// How many a token uses; at most X.
    pub num_experts_per_tok: usize,
    /// Whether the weights of those a token uses are made to add up to 1. Always so in Mixtral.
    pub norm_topk_prob: bool,
}

/// What a pipeline says of a model instead of its own files: `{"dtype": "bf16"}`.
const OWN: &str = "sami.json";

/// A type as pipelines name it.
pub fn dtype_named(name: &str) -> Option<DType> {
    match name {
        "f32" => Some(DType::F32),
        "bf16" => Some(DType::BF16),
        "f16" => Some(DType::F16),
        _ => None,
    }
}

/// Above any model that exists; keeps products of sizes within 64 bits.
const LARGEST: u64 = 1 << 24;
/// Above any model that exists.
const MOST_LAYERS: u64 = 1 << 12;
/// Above any model that exists.
const MOST_EXPERTS: u64 = 1 << 10;
/// Above any model that exists; each has weights with names of their own.
const MOST_EXPERTS_IN_ALL: usize = 1 << 17;

impl Default for Config {
    fn default() -> Self {
        Self {
            model_type: Family::Llama,
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            rope_scaling: None,
            max_position_embeddings: 2048,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: None,
            sliding_layers: None,
            experts: None,
            dtype: DType::F32,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            pad_token_id: None,
        }
    }
}

/// Errs where the model wants something that the decoder does not do.
fn refuse_what_is_not_supported(fields: &Fields, family: Family) -> Result<(), LmError> {
    let unsupported = |what: String, supported| Err(LmError::Unsupported { what, supported });
    for (field, means_nothing) in
        [("attention_bias", matches!(family, Family::Mistral | Family::Mixtral)), ("mlp_bias", family != Family::Llama)]
    {
        if means_nothing && fields.get(field).is_some_and(|value| value != &Value::Bool(false)) {
            return unsupported(format!("`{field}`"), "linear layers without bias in this family");
        }
    }
    if let Some(activation) = fields.get("hidden_act").filter(|value| *value != "silu" && *value != "swish") {
        return unsupported(format!("the activation {activation}"), "\"silu\"");
    }
    if fields.get("quantization_config").is_some() {
        return unsupported("a quantised model".to_owned(), "weights in f32, f16 and bf16");
    }
    let all_sparse = |field, value: Value| fields.get(field).is_none_or(|found| *found == value);
    if family == Family::Qwen3Moe
        && !(all_sparse("mlp_only_layers", serde_json::json!([]))
            && all_sparse("decoder_sparse_step", serde_json::json!(1)))
    {
        return unsupported("layers without experts among others".to_owned(), "experts in every layer");
    }
    Ok(())
}

fn family(fields: &Fields) -> Result<Family, LmError> {
    let architecture = fields.get("architectures").and_then(|list| list.get(0));
    match (fields.get("model_type"), architecture) {
        (Some(name), _) | (None, Some(name)) => Family::of(name.as_str().unwrap_or_default()),
        (None, None) => Err(LmError::Config { field: "model_type", what: "is missing".to_owned() }),
    }
}

/// The sliding window, and which layers have it.
fn windows(fields: &Fields, family: Family, layers: usize) -> Result<(Option<usize>, Option<Vec<bool>>), LmError> {
    let window = match fields.size("sliding_window", u64::MAX)? {
        _ if family == Family::Llama => None,
        _ if family.asks_for_its_window() && !fields.flag("use_sliding_window")? => None,
        None if !fields.is_null("sliding_window") => family.defaults().sliding_window,
        window => window,
    };
    if window.is_none() || !family.mixes_windows() {
        return Ok((window, None));
    }
    let slides: Vec<bool> = match fields.get("layer_types") {
        None => {
            let full = match fields.get("max_window_layers").map(Value::as_u64) {
                None => 28,
                Some(Some(full)) => usize::try_from(full).unwrap_or(usize::MAX),
                Some(None) => {
                    return Err(LmError::Config { field: "max_window_layers", what: "is no number".to_owned() });
                }
            };
            (0..layers).map(|layer| layer >= full).collect()
        }
        Some(types) => {
            let fail = |what: String| LmError::Config { field: "layer_types", what };
            let types = types.as_array().filter(|types| types.len() == layers);
            let types = types.ok_or_else(|| fail(format!("is no list of {layers} names")))?;
            let slides = |kind: &Value| match kind.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(fail(format!("has {kind}; supported are `full_attention` and `sliding_attention`"))),
            };
            types.iter().map(slides).collect::<Result<_, _>>()?
        }
    };
    Ok(match (slides.contains(&true), slides.contains(&false)) {
        (false, _) => (None, None),
        (true, false) => (window, None),
        (true, true) => (window, Some(slides)),
    })
}

fn experts(fields: &Fields, family: Family) -> Result<Option<Experts>, LmError> {
    if !family.has_experts() {
        return Ok(None);
    }
    let defaults = family.defaults();
    // `transformers` writes either name.
    let count = match fields.size("num_local_experts", MOST_EXPERTS)? {
        Some(count) => count,
        None => fields.size("num_experts", MOST_EXPERTS)?.unwrap_or(defaults.experts),
    };
    Ok(Some(Experts {
        num_local_experts: count,
        num_experts_per_tok: fields.size("num_experts_per_tok", MOST_EXPERTS)?.unwrap_or(defaults.experts_per_token),
        norm_topk_prob: family == Family::Mixtral || fields.flag("norm_topk_prob")?,
    }))
}

impl Config {
    /// Reads `config.json`, the end tokens of `generation_config.json` where it is there, and the type that `sami.json` says
    /// instead, where a pipeline says one.
    ///
    /// What is missing has the value that `transformers` gives it. Errs on families that the decoder is not made for,
    /// and on values that cannot be.
    pub fn load(files: &Files) -> Result<Self, LmError> {
        let fields =
            Fields::of(files, "config.json")?.ok_or_else(|| LmError::MissingFile { name: "config.json".to_owned() })?;
        let config = Self::read(&fields, Fields::of(files, "generation_config.json")?.as_ref())?;
        let own = Fields::of(files, OWN)?;
        let dtype = own.as_ref().and_then(|own| own.get("dtype")).and_then(Value::as_str).and_then(dtype_named);
        Ok(Self { dtype: dtype.unwrap_or(config.dtype), ..config })
    }

    /// What a `config.json` says that lies in no file.
    pub fn of_json(config: Value) -> Result<Self, LmError> {
        Self::read(&Fields::new(config), None)
    }

    fn read(fields: &Fields, generation: Option<&Fields>) -> Result<Self, LmError> {
        let family = family(fields)?;
        refuse_what_is_not_supported(fields, family)?;
        let defaults = family.defaults();
        let vocab_size = fields.required("vocab_size", LARGEST)?;
        let hidden_size = fields.required("hidden_size", LARGEST)?;
        let layers = fields.required("num_hidden_layers", MOST_LAYERS)?;
        let heads = fields.required("num_attention_heads", LARGEST)?;
        let kv_heads = match fields.size("num_key_value_heads", LARGEST)? {
            None if fields.is_null("num_key_value_heads") => heads,
            kv_heads => kv_heads.or(defaults.kv_heads).unwrap_or(heads),
        };
        let inner = if family == Family::Qwen3Moe { "moe_intermediate_size" } else { "intermediate_size" };
        let positions = fields.size("max_position_embeddings", u32::MAX.into())?.unwrap_or(defaults.positions);
        let (rope_theta, rope_scaling) = RopeScaling::read(fields, defaults.rope_theta, positions)?;
        let (sliding_window, sliding_layers) = windows(fields, family, layers)?;
        let mut eos_token_ids = fields.tokens("eos_token_id")?;
        if let Some(generation) = generation {
            for token in generation.tokens("eos_token_id")? {
                if !eos_token_ids.contains(&token) {
                    eos_token_ids.push(token);
                }
            }
        }
        let config = Self {
            model_type: family,
            vocab_size,
            hidden_size,
            intermediate_size: fields.required(inner, LARGEST)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: fields.size("head_dim", LARGEST)?.or(defaults.head_dim).unwrap_or(hidden_size / heads),
            rms_norm_eps: fields.number("rms_norm_eps", defaults.rms_norm_eps)?,
            rope_theta,
            rope_scaling,
            max_position_embeddings: positions,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: family.may_have_attention_bias() && fields.flag("attention_bias")?,
            mlp_bias: family == Family::Llama && fields.flag("mlp_bias")?,
            sliding_window,
            sliding_layers,
            experts: experts(fields, family)?,
            dtype: match fields.get("dtype").or_else(|| fields.get("torch_dtype")).and_then(Value::as_str) {
                Some("bfloat16") => DType::BF16,
                Some("float16") => DType::F16,
                _ => DType::F32,
            },
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

    /// How many tokens a token sees in a layer, itself and those just before it; `None`: all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let slides = self.sliding_layers.as_ref().is_none_or(|slides| slides[layer]);
        self.sliding_window.filter(|_| slides)
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
        if let Some(slides) = self.sliding_layers.as_ref().filter(|slides| slides.len() != self.num_hidden_layers) {
            return fail("layer_types", format!("has {} layers of {}", slides.len(), self.num_hidden_layers));
        }
        if let Some(scaling) = &self.rope_scaling {
            scaling.check()?;
        }
        if self.experts.is_some() != self.model_type.has_experts() {
            return fail("model_type", format!("is {}, with or without experts", self.model_type.model_type()));
        }
        if let Some(Experts { num_local_experts: experts, num_experts_per_tok: used, .. }) = self.experts
            && (experts as u64 > MOST_EXPERTS || !(1..=experts).contains(&used))
        {
            return fail("num_experts_per_tok", format!("is {used} of {experts} experts"));
        }
        let experts = self.experts.map_or(0, |experts| experts.num_local_experts) * self.num_hidden_layers;
        if experts > MOST_EXPERTS_IN_ALL {
            return fail("num_local_experts", format!("makes {experts} in all layers, at most {MOST_EXPERTS_IN_ALL}"));
        }
        let tokens = self.bos_token_id.iter().chain(&self.eos_token_ids).chain(&self.pad_token_id);
        match tokens.into_iter().find(|token| **token as usize >= self.vocab_size) {
            Some(token) => fail("vocab_size", format!("is {}, but there is a token {token}", self.vocab_size)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
