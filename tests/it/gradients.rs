//! Every weight gets a gradient, and it is the slope of what is computed.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use sami::lm::logprobs::{token_kl, token_logprobs};
use sami::lm::{Config, Experts, Family, Model, RopeScaling, Sequence};

const VOCABULARY: usize = 11;

fn config(kv_heads: usize, tie: bool, window: Option<usize>) -> Config {
    Config {
        model_type: Family::Mistral,
        vocab_size: VOCABULARY,
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: kv_heads,
        head_dim: 4,
        rms_norm_eps: 1e-5,
        rope_theta: 100.0,
        max_position_embeddings: 32,
        tie_word_embeddings: tie,
        sliding_window: window,
        bos_token_id: None,
        eos_token_ids: vec![],
        pad_token_id: None,
        ..Config::default()
    }
}

/// Weights larger than at the start of training, so that no gradient is nearly zero.
fn weights(config: &Config, seed: u64) -> BTreeMap<String, Tensor> {
    let model = Model::random(config.clone(), seed, &Device::Cpu).expect("a valid configuration");
    let scale = |name: &str| if name.contains("embed") { 8.0 } else { 1.5 };
    let changed = |(name, tensor): (&String, &Tensor)| {
        if !name.contains("bias") {
            return (name.clone(), (tensor * scale(name)).expect("a tensor"));
        }
        let values = (0..tensor.elem_count()).map(|at| ((at * 5 + name.len()) % 7) as f32 / 10.0 - 0.25);
        (name.clone(), Tensor::from_iter(values, &Device::Cpu).expect("a tensor"))
    };
    model.weights().iter().map(changed).collect()
}

/// Every token of the vocabulary occurs as input, and two sequences share their prompt.
fn sequences() -> Vec<Sequence> {
    let ids = |start: u32, step: u32, length: u32| (0..length).map(|at| (start + at * step) % 11).collect::<Vec<_>>();
    vec![
        Sequence { ids: ids(0, 1, 13), prompt: 1 },
        Sequence { ids: [ids(3, 2, 5), ids(1, 3, 4)].concat(), prompt: 5 },
        Sequence { ids: [ids(3, 2, 5), ids(2, 5, 3)].concat(), prompt: 5 },
    ]
}

/// A sum over tokens, each with a factor of its own so that nothing cancels out by chance.
fn sum(values: &Tensor) -> (Tensor, f64) {
    let n = values.elem_count();
    let factors: Vec<f32> = (0..n).map(|at| 0.4 + ((at * 5) % 7) as f32 / 5.0).collect();
    let numbers = values.to_vec1::<f32>().expect("numbers");
    let exact = numbers.iter().zip(&factors).map(|(value, factor)| f64::from(*value) * f64::from(*factor)).sum();
    let factors = Tensor::new(factors, &Device::Cpu).expect("a tensor");
    ((values * factors).and_then(|product| product.sum_all()).expect("a sum"), exact)
}

/// Holds the gradient to each weight against the slope of `value` along each of its numbers.
fn check(name: &str, config: &Config, value: impl Fn(&Model) -> Tensor) {
    let (model, variables) = Model::trainable(config.clone(), weights(config, 1)).expect("a model");
    let (loss, _) = sum(&value(&model));
    let store = loss.backward().expect("gradients");
    let numbers = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
    for (weight, variable) in &variables {
        let gradient = numbers(store.get(variable).unwrap_or_else(|| panic!("{name}: `{weight}` has no gradient")));
        assert!(gradient.iter().all(|slope| slope.is_finite()), "{name}: `{weight}`");
        let zeros = gradient.iter().filter(|slope| **slope == 0.0).count();
        assert_eq!(zeros, 0, "{name}: {zeros} of the {} gradients to `{weight}` are zero", gradient.len());
        let slopes = slopes(&model, variable, &value);
        let error = slopes.iter().zip(&gradient).map(|(slope, found)| (slope - f64::from(*found)).powi(2)).sum::<f64>();
        let norm = slopes.iter().map(|slope| slope * slope).sum::<f64>();
        let relative = (error / norm).sqrt();
        assert!(relative < 1e-2, "{name}: the gradient to `{weight}` is off by {relative} of itself");
    }
}

/// The slope along each number of a weight, by differences at four places around it: their error is of fourth order.
fn slopes(model: &Model, variable: &Var, value: &impl Fn(&Model) -> Tensor) -> Vec<f64> {
    const STEP: f32 = 3e-3;
    let start = variable.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
    let at = |index: usize, by: f32| {
        let mut moved = start.clone();
        moved[index] += by;
        let moved = Tensor::from_vec(moved, variable.shape(), &Device::Cpu).expect("a tensor");
        variable.set(&moved).expect("the same shape");
        sum(&value(model)).1
    };
    let difference = |index, by: f32| at(index, by) - at(index, -by);
    let slope = |index| (8.0 * difference(index, STEP) - difference(index, 2.0 * STEP)) / (12.0 * f64::from(STEP));
    let slopes = (0..start.len()).map(slope).collect();
    at(0, 0.0);
    slopes
}

#[test]
fn of_log_probabilities() {
    for (kv_heads, tie, window) in [(2, true, None), (1, false, None), (1, true, Some(3)), (2, false, Some(3))] {
        let config = config(kv_heads, tie, window);
        let name = format!("{kv_heads} key/value heads, tied {tie}, window {window:?}");
        check(&name, &config, |model| token_logprobs(model, &sequences()).expect("log-probabilities").logprobs);
    }
}

#[test]
fn of_every_family() {
    let experts = |norm_topk_prob| Some(Experts { num_local_experts: 3, num_experts_per_tok: 2, norm_topk_prob });
    let llama3 = RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    let of = |model_type, window| Config { model_type, ..config(1, true, window) };
    let sliding_layers = Some(vec![false, true]);
    for config in [
        Config { attention_bias: true, mlp_bias: true, rope_scaling: Some(llama3), ..of(Family::Llama, None) },
        Config { sliding_layers, ..of(Family::Qwen2, Some(3)) },
        Config { attention_bias: true, ..of(Family::Qwen3, None) },
        Config { experts: experts(true), ..of(Family::Mixtral, None) },
        Config { experts: experts(false), ..of(Family::Qwen3Moe, None) },
    ] {
        let name = format!("{:?}", config.model_type);
        check(&name, &config, |model| token_logprobs(model, &sequences()).expect("log-probabilities").logprobs);
    }
}

#[test]
fn of_divergences() {
    for (kv_heads, tie, window) in [(1, true, None), (2, false, Some(3))] {
        let config = config(kv_heads, tie, window);
        let reference = Model::frozen(config.clone(), weights(&config, 2)).expect("a model");
        let name = format!("divergence, {kv_heads} key/value heads, tied {tie}, window {window:?}");
        check(&name, &config, |model| token_kl(model, &reference, &sequences()).expect("divergences"));
    }
}

#[test]
fn only_to_what_is_a_variable() {
    let config = config(1, true, None);
    let mut tensors = weights(&config, 1);
    let name = "model.layers.0.self_attn.k_proj.weight";
    let variable = Var::from_tensor(&tensors[name]).expect("a variable");
    tensors.insert(name.to_owned(), (variable.as_tensor() * 2.0).expect("a tensor computed from a variable"));
    let model = Model::new(config, tensors).expect("a model");
    let scores = token_logprobs(&model, &sequences()).expect("log-probabilities");
    let store = scores.logprobs.sum_all().and_then(|sum| sum.backward()).expect("gradients");
    let gradient = store.get(&variable).expect("what a weight is computed from has a gradient");
    assert!(gradient.abs().and_then(|abs| abs.sum_all()?.to_scalar::<f32>()).expect("a sum") > 0.0);
    assert!(store.get(&model.weights()["model.norm.weight"]).is_none(), "a constant has none");
}

#[test]
fn of_the_same_batch_are_the_same_and_a_pass_gives_them_once() {
    let config = config(1, true, None);
    let (model, variables) = Model::trainable(config.clone(), weights(&config, 1)).expect("a model");
    let twice = [0, 1].map(|_| {
        let scores = token_logprobs(&model, &sequences()).expect("log-probabilities");
        let loss = scores.logprobs.sum_all().expect("a sum");
        let store = loss.backward().expect("gradients");
        // What the pass kept is gone with them.
        let again = loss.backward().expect_err("one backward pass");
        assert!(again.to_string().contains("a pass has one backward pass"), "{again}");
        let numbers = |variable: &Var| store.get(variable)?.flatten_all().ok()?.to_vec1::<f32>().ok();
        variables.values().map(|variable| numbers(variable).expect("a gradient")).collect::<Vec<_>>()
    });
    assert_eq!(twice[0], twice[1]);
}
