//! Every family of models: against candle-transformers, and through its own files.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, mixtral, qwen2, qwen3, qwen3_moe};
use sami::lm::logprobs::response_logprobs;
use sami::lm::{Config, Experts, Family, Model, RopeScaling, Sequence};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::lm_golden::{config, files, ids, weights};

/// One model of each family, and of what differs within one.
pub(super) fn all() -> Vec<Config> {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 32,
    };
    let experts = |num_local_experts, num_experts_per_tok, norm_topk_prob| {
        Some(Experts { num_local_experts, num_experts_per_tok, norm_topk_prob })
    };
    let with_bias = Config { attention_bias: true, mlp_bias: true, ..config(Family::Llama, 2, false, None) };
    let mixed = vec![false, true, true];
    vec![
        config(Family::Llama, 6, true, None),
        config(Family::Llama, 2, false, None),
        Config { rope_scaling: Some(llama3), ..config(Family::Llama, 1, true, None) },
        Config { rope_scaling: Some(RopeScaling::Linear { factor: 4.0 }), ..with_bias },
        config(Family::Mistral, 2, false, None),
        config(Family::Mistral, 2, true, Some(5)),
        Config { experts: experts(4, 2, true), ..config(Family::Mixtral, 2, false, Some(12)) },
        Config { experts: experts(8, 1, true), ..config(Family::Mixtral, 3, false, None) },
        config(Family::Qwen2, 2, true, Some(12)),
        Config { sliding_layers: Some(mixed), ..config(Family::Qwen2, 2, false, Some(5)) },
        Config { head_dim: 10, ..config(Family::Qwen3, 2, false, None) },
        Config { attention_bias: true, rope_scaling: Some(llama3), ..config(Family::Qwen3, 3, true, None) },
        Config { experts: experts(5, 3, true), head_dim: 10, ..config(Family::Qwen3Moe, 2, true, None) },
        Config { experts: experts(5, 2, false), attention_bias: true, ..config(Family::Qwen3Moe, 2, false, None) },
    ]
}

/// Logits after a prompt (1, T), by candle-transformers.
type Oracle = Box<dyn FnMut(&Tensor) -> candle_core::Result<Tensor>>;

/// candle-transformers' model of a configuration and its weights; `None` where it has no such model.
fn oracle(config: &Config, weights: &BTreeMap<String, Tensor>) -> Option<Oracle> {
    fn read<Form: DeserializeOwned>(mut json: Value, more: &Value) -> Form {
        json["use_flash_attn"] = json!(false);
        json.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        serde_json::from_value(json).expect("a configuration of candle-transformers")
    }
    let named: HashMap<String, Tensor> = weights.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    let builder = VarBuilder::from_tensors(named, DType::F32, &Device::Cpu);
    let json = config.to_json();
    let scaled = config.rope_scaling.is_some();
    // A window of w means w tokens in `transformers` and w + 1 in candle-transformers.
    let window = config.sliding_window.map(|window| window - 1);
    Some(match config.model_type {
        Family::Llama if matches!(config.rope_scaling, Some(RopeScaling::Linear { .. })) || config.attention_bias => {
            return None;
        }
        Family::Llama => {
            let theirs = read::<llama::LlamaConfig>(json, &json!({})).into_config(false);
            let decoder = llama::Llama::load(builder, &theirs).expect("a model");
            Box::new(move |ids| {
                let mut cache = llama::Cache::new(false, DType::F32, &theirs, &Device::Cpu)?;
                decoder.forward(ids, 0, &mut cache)
            })
        }
        Family::Mistral if config.tie_word_embeddings => return None,
        Family::Mistral => {
            let theirs = read(json, &json!({ "sliding_window": window }));
            let mut decoder = mistral::Model::new(&theirs, builder).expect("a model");
            Box::new(move |ids| {
                decoder.clear_kv_cache();
                decoder.forward(ids, 0)
            })
        }
        Family::Mixtral => {
            let theirs: mixtral::Config = read(json, &json!({ "sliding_window": window.unwrap_or(64) }));
            Box::new(move |ids| mixtral::Model::new(&theirs, builder.clone())?.forward(ids, 0))
        }
        Family::Qwen2 if config.sliding_layers.is_some() => return None,
        Family::Qwen2 => {
            let theirs = read(json, &json!({ "sliding_window": window.unwrap_or(64) }));
            let mut decoder = qwen2::ModelForCausalLM::new(&theirs, builder).expect("a model");
            Box::new(move |ids| {
                decoder.clear_kv_cache();
                decoder.forward(ids, 0)
            })
        }
        Family::Qwen3 | Family::Qwen3Moe if scaled => return None,
        Family::Qwen3 => {
            let mut decoder = qwen3::ModelForCausalLM::new(&read(json, &json!({})), builder).expect("a model");
            Box::new(move |ids| {
                decoder.clear_kv_cache();
                decoder.forward(ids, 0)
            })
        }
        Family::Qwen3Moe => {
            let more = json!({ "max_window_layers": 0 });
            let mut decoder = qwen3_moe::ModelForCausalLM::new(&read(json, &more), builder).expect("a model");
            Box::new(move |ids| {
                decoder.clear_kv_cache();
                decoder.forward(ids, 0)
            })
        }
    })
}

#[test]
fn logits_equal_those_of_candle_transformers() {
    let mut known = Vec::new();
    for config in all() {
        let weights = weights(&config, 3);
        let Some(mut oracle) = oracle(&config, &weights) else { continue };
        known.push(config.model_type);
        let model = Model::frozen(config.clone(), weights).expect("a model");
        for length in [1, 2, 7, 20, 33] {
            let ids = ids(length, length);
            let ours = model.next_logits(&[&ids]).expect("a short prompt").remove(0);
            let input = Tensor::new(ids.as_slice(), &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).expect("a tensor");
            let theirs = oracle(&input).and_then(|logits| logits.flatten_all()?.to_vec1::<f32>()).expect("logits");
            assert_eq!(ours.len(), theirs.len());
            assert!(theirs.iter().any(|logit| logit.abs() > 0.5), "logits of nothing: {theirs:?}");
            let difference = ours.iter().zip(&theirs).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(difference < 1e-4, "{length} tokens of {config:?}: {difference}");
        }
    }
    known.dedup();
    assert_eq!(known, Family::ALL, "every family has its oracle");
}

#[test]
fn a_saved_model_is_loaded_as_it_was() {
    for config in all() {
        let model = Model::frozen(config.clone(), weights(&config, 7)).expect("a model");
        let directory = tempfile::tempdir().expect("a directory");
        model.save(directory.path()).expect("saved");
        let loaded = Model::load(&files(directory.path()), &Device::Cpu).expect("loaded");
        assert_eq!(loaded.config(), &config);
        let row = ids(20, 1);
        assert_eq!(loaded.next_logits(&[&row]).expect("logits"), model.next_logits(&[&row]).expect("logits"));
    }
}

#[test]
fn a_batch_gives_the_bits_of_its_rows() {
    for config in all() {
        let model = Model::frozen(config.clone(), weights(&config, 5)).expect("a model");
        let sequence = |row: usize| Sequence { ids: ids(3 + 4 * row % 61, row / 2), prompt: 1 + row % 3 };
        let sequences: Vec<Sequence> = (0..16).map(sequence).collect();
        let together = response_logprobs(&model, &sequences).expect("log-probabilities");
        for (one, together) in sequences.iter().zip(together) {
            let alone = response_logprobs(&model, std::slice::from_ref(one)).expect("log-probabilities").remove(0);
            assert_eq!(alone, together, "{config:?}");
        }
        let prompts: Vec<Vec<u32>> = (0..16).map(|row| ids(1 + 3 * row, row)).collect();
        let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let together = model.next_logits(&rows).expect("logits");
        for (row, together) in rows.iter().zip(together) {
            assert_eq!(model.next_logits(&[row]).expect("logits")[0], together, "{config:?}");
        }
    }
}
