//! The families of models, and what each has without its `config.json` saying so.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::lm::LmError;

/// A family of models: what `config.json` calls `model_type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 1 to 3, and the many that have its form.
    #[default]
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Mixtral: Mistral with experts in place of the feed-forward layer.
    Mixtral,
    /// Qwen 2 and 2.5: Llama with biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: Llama with norms on the heads of queries and keys.
    Qwen3,
    /// Qwen 3 with experts in every layer.
    Qwen3Moe,
}

/// What a family has where `config.json` says nothing, after `transformers`.
pub(super) struct Defaults {
    /// `None`: as many as query heads.
    pub(super) kv_heads: Option<usize>,
    /// `None`: the width shared out among the heads.
    pub(super) head_dim: Option<usize>,
    pub(super) positions: usize,
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) sliding_window: Option<usize>,
    pub(super) experts: usize,
    pub(super) experts_per_token: usize,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Llama, Self::Mistral, Self::Mixtral, Self::Qwen2, Self::Qwen3, Self::Qwen3Moe];
    /// Their names, for messages.
    pub const NAMES: &str = "llama, mistral, mixtral, qwen2, qwen3, qwen3_moe";

    /// By `model_type`, or by the first of `architectures`.
    pub fn of(name: &str) -> Result<Self, LmError> {
        let family = Self::ALL.into_iter().find(|family| family.model_type() == name || family.architecture() == name);
        family.ok_or_else(|| LmError::Unsupported {
            what: format!("the architecture `{}`", name.chars().take(80).collect::<String>()),
            supported: Self::NAMES,
        })
    }

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Mixtral => "mixtral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3_moe",
        }
    }

    /// `transformers`' class, as `architectures` in `config.json` names it.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Mixtral => "MixtralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Qwen3Moe => "Qwen3MoeForCausalLM",
        }
    }

    /// Whether the heads of queries and keys are normalised.
    pub fn normalises_heads(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Qwen3Moe)
    }

    /// Whether experts stand in place of the feed-forward layer.
    pub fn has_experts(self) -> bool {
        matches!(self, Self::Mixtral | Self::Qwen3Moe)
    }

    /// Whether `attention_bias` means something: biases on queries, keys, values and output.
    pub(super) fn may_have_attention_bias(self) -> bool {
        matches!(self, Self::Llama | Self::Qwen3 | Self::Qwen3Moe)
    }

    /// Whether the sliding window is off unless `use_sliding_window` says so.
    pub(super) fn asks_for_its_window(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Qwen3 | Self::Qwen3Moe)
    }

    /// Whether single layers may go without the sliding window.
    pub(super) fn mixes_windows(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Qwen3)
    }

    pub(super) fn defaults(self) -> Defaults {
        let llama = Defaults {
            kv_heads: None,
            head_dim: None,
            positions: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            sliding_window: None,
            experts: 0,
            experts_per_token: 0,
        };
        match self {
            Self::Llama => llama,
            Self::Mistral => Defaults { kv_heads: Some(8), positions: 131_072, sliding_window: Some(4096), ..llama },
            Self::Mixtral => Defaults {
                kv_heads: Some(8),
                positions: 131_072,
                rms_norm_eps: 1e-5,
                rope_theta: 1e6,
                experts: 8,
                experts_per_token: 2,
                ..llama
            },
            Self::Qwen2 => Defaults { kv_heads: Some(32), positions: 32_768, sliding_window: Some(4096), ..llama },
            Self::Qwen3 => Defaults { head_dim: Some(128), ..Self::Qwen2.defaults() },
            Self::Qwen3Moe => {
                Defaults { kv_heads: Some(4), experts: 128, experts_per_token: 8, ..Self::Qwen2.defaults() }
            }
        }
    }
}
