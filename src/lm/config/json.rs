//! A configuration as `transformers` reads it.

use candle_core::DType;
use serde_json::{Value, json};

use super::{Config, Family};

impl Config {
    /// `config.json`, as `transformers` reads it.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "architectures": [self.model_type.architecture()],
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_json(),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.model_type.model_type(),
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": match self.dtype {
                DType::BF16 => "bfloat16",
                DType::F16 => "float16",
                _ => "float32",
            },
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        if let Some(scaling) = self.rope_scaling {
            json["rope_scaling"] = scaling.to_json();
        }
        if self.model_type.may_have_attention_bias() {
            json["attention_bias"] = json!(self.attention_bias);
        }
        match self.model_type {
            Family::Llama => json["mlp_bias"] = json!(self.mlp_bias),
            Family::Mistral | Family::Mixtral => json["sliding_window"] = json!(self.sliding_window),
            Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => {
                json["sliding_window"] = json!(self.sliding_window);
                json["use_sliding_window"] = json!(self.sliding_window.is_some());
            }
        }
        if self.model_type.mixes_windows() {
            let windows = || (0..self.num_hidden_layers).map(|layer| self.window(layer).is_some());
            let name = |slides| if slides { "sliding_attention" } else { "full_attention" };
            json["layer_types"] = json!(windows().map(name).collect::<Vec<_>>());
            json["max_window_layers"] = json!(windows().take_while(|slides| !slides).count());
        }
        if let Some(experts) = self.experts {
            json["num_experts_per_tok"] = json!(experts.num_experts_per_tok);
            match self.model_type {
                Family::Qwen3Moe => {
                    json["num_experts"] = json!(experts.num_local_experts);
                    json["norm_topk_prob"] = json!(experts.norm_topk_prob);
                    json["moe_intermediate_size"] = json!(self.intermediate_size);
                    json["decoder_sparse_step"] = json!(1);
                    json["mlp_only_layers"] = json!([]);
                }
                _ => json["num_local_experts"] = json!(experts.num_local_experts),
            }
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
}
