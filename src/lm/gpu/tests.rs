//! Held to `plain.rs`: on tensors of the CPU, in f32 and in bf16.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::kernels::emulation::{is_on, with_kernels};
use super::{Decoding, Scored};
use crate::lm::adapter::{Adapter, Adapters};
use crate::lm::config::Experts;
use crate::lm::cpu::Keep;
use crate::lm::cpu::tests::{self, difference, ids};
use crate::lm::decode::{Decoding as AnyDecoding, Entering, Plain};
use crate::lm::decoder::Engine;
use crate::lm::graph::scores_of;
use crate::lm::logprobs::plain_scores;
use crate::lm::prefixes::Prefixes;
use crate::lm::random::Stream;
use crate::lm::{Config, Family, Model, Sequence};

/// One small model of each family; odd sizes on purpose, and widths of heads of which our kernels of attention fit some.
fn configs() -> Vec<Config> {
    let config = |model_type, kv_heads, head_dim| Config {
        model_type,
        vocab_size: 61,
        hidden_size: 36,
        intermediate_size: 50,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: kv_heads,
        head_dim,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 512,
        ..Config::default()
    };
    let experts = |norm_topk_prob| Some(Experts { num_local_experts: 4, num_experts_per_tok: 2, norm_topk_prob });
    vec![
        Config { tie_word_embeddings: true, ..config(Family::Llama, 4, 8) },
        Config { sliding_window: Some(7), ..config(Family::Mistral, 1, 40) },
        Config { attention_bias: true, ..config(Family::Qwen2, 2, 16) },
        Config { tie_word_embeddings: true, ..config(Family::Qwen3, 2, 10) },
        Config { experts: experts(true), ..config(Family::Mixtral, 2, 10) },
        Config { experts: experts(false), ..config(Family::Qwen3Moe, 2, 10) },
    ]
}

/// Tests each family's model in candle's operations, and in our kernels where those can be emulated.
fn each(test: impl Fn(Config)) {
    configs().into_iter().for_each(&test);
    with_kernels(|| configs().into_iter().for_each(&test));
}

/// As [`each`], without mixtures.
fn some(test: impl Fn(Config)) {
    each(|config| {
        if config.experts.is_none() {
            test(config);
        }
    });
}

/// Random weights with norms that are not all 1, biases that are not 0, and attention that is not nearly uniform.
fn weights(config: &Config, seed: u64, dtype: DType) -> BTreeMap<String, Tensor> {
    let mut weights = Model::random(config.clone(), seed, &Device::Cpu).unwrap().weights().clone();
    for (name, tensor) in &mut weights {
        let mut stream = Stream::new(seed, name);
        let mut value = |old: f32| match tensor.rank() {
            1 if name.contains("norm") => 1.0 + 0.3 * stream.normal(),
            1 => 0.3 * stream.normal(),
            _ => old * 2.0,
        };
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values: Vec<f32> = values.into_iter().map(&mut value).collect();
        *tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    }
    weights
}

fn model(config: &Config, seed: u64, engine: Engine) -> Model {
    Model::computed_by(engine, config.clone(), weights(config, seed, DType::F32)).unwrap()
}

/// The sequences that the CPU's passes are tested on, and one more that shares their prompt.
fn sequences() -> Vec<Sequence> {
    let mut all = tests::sequences();
    all.push(Sequence { ids: [ids(9, 100), ids(1, 9)].concat(), prompt: 9 });
    all
}

fn row(ids: &[u32], room: usize) -> Entering<'_> {
    Entering { ids, prompt: 0, room }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn scores_equal_the_plain_ones() {
    each(|config| {
        let (policy, reference) = (model(&config, 1, Engine::Tensors), model(&config, 2, Engine::Tensors));
        let (ours, kl) = scores_of::<Scored>(&policy, Some(&reference), &sequences(), Keep::Nothing).unwrap();
        let (plain, plain_kl) = plain_scores(&policy, Some(&reference), &sequences()).unwrap();
        assert!(difference(&numbers(&ours), &numbers(&plain)) < 1e-4, "{config:?}");
        let (kl, plain_kl) = (numbers(&kl.unwrap()), numbers(&plain_kl.unwrap()));
        assert!(kl.iter().all(|kl| *kl > 0.01), "two random models differ: {kl:?}");
        assert!(difference(&kl, &plain_kl) < 1e-4, "{config:?}");
    });
}

#[test]
fn bf16_is_near_f32() {
    some(|config| {
        let exact = model(&config, 1, Engine::Plain);
        let rounded = Model::computed_by(Engine::Tensors, config.clone(), weights(&config, 1, DType::BF16)).unwrap();
        assert_eq!(rounded.dtype(), DType::BF16);
        let (ours, plain) = (
            scores_of::<Scored>(&rounded, None, &sequences(), Keep::Nothing),
            plain_scores(&exact, None, &sequences()),
        );
        let (ours, plain) = (numbers(&ours.unwrap().0), numbers(&plain.unwrap().0));
        let mean = ours.iter().zip(&plain).map(|(a, b)| (a - b).abs()).sum::<f32>() / ours.len() as f32;
        assert!(mean > 1e-4, "bf16 rounds: {mean}");
        assert!(mean < 0.08 && difference(&ours, &plain) < 0.6, "mean {mean} of {config:?}");
    });
}

/// Gradients of a loss that uses log-probabilities and divergences with different signs; `None`: the plain ones.
fn gradients(config: &Config, dtype: DType, keep: Option<Keep>) -> (f32, BTreeMap<String, Vec<f32>>) {
    let variables: BTreeMap<String, Var> = weights(config, 1, dtype)
        .into_iter()
        .map(|(name, weight)| (name, Var::from_tensor(&weight).unwrap()))
        .collect();
    let tensors = variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
    let policy = Model::computed_by(Engine::Tensors, config.clone(), tensors).unwrap();
    let reference = Model::computed_by(Engine::Tensors, config.clone(), weights(config, 2, dtype)).unwrap();
    let (logprobs, kl) = match keep {
        Some(keep) => scores_of::<Scored>(&policy, Some(&reference), &sequences(), keep).unwrap(),
        None => plain_scores(&policy, Some(&reference), &sequences()).unwrap(),
    };
    let mut stream = Stream::new(4, "loss");
    let factors: Vec<f32> = (0..logprobs.elem_count()).map(|_| stream.normal()).collect();
    let factors = Tensor::new(factors, &Device::Cpu).unwrap();
    let loss =
        ((logprobs * factors).unwrap().sum_all().unwrap() + (kl.unwrap() * 0.3).unwrap().sum_all().unwrap()).unwrap();
    let store = loss.backward().unwrap();
    let of =
        |name: &String, variable: &Var| numbers(store.get(variable).unwrap_or_else(|| panic!("no gradient: {name}")));
    let gradients = variables.iter().map(|(name, variable)| (name.clone(), of(name, variable))).collect();
    (loss.to_scalar().unwrap(), gradients)
}

#[test]
fn gradients_equal_the_plain_ones_whether_activations_are_kept_or_made_again() {
    each(|config| {
        let (plain_loss, plain) = gradients(&config, DType::F32, None);
        let (loss, ours) = gradients(&config, DType::F32, Some(Keep::Inputs));
        assert!((loss - plain_loss).abs() < 1e-3, "{loss} {plain_loss}");
        for (name, plain) in &plain {
            let norm = plain.iter().map(|x| x * x).sum::<f32>().sqrt();
            let error = ours[name].iter().zip(plain).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            assert!(norm > 1e-3 && error < 1e-4 * norm, "{name} of {config:?}: error {error}, norm {norm}");
        }
        assert!(gradients(&config, DType::F32, Some(Keep::Everything)) == (loss, ours), "{config:?}");
    });
}

#[test]
fn gradients_in_bf16_point_the_same_way() {
    some(|config| {
        let exact = gradients(&config, DType::F32, None).1;
        let rounded = gradients(&config, DType::BF16, Some(Keep::Inputs)).1;
        let (mut along, mut ours, mut theirs) = (0.0, 0.0, 0.0);
        for (name, exact) in exact {
            for (a, b) in rounded[&name].iter().zip(&exact) {
                along += f64::from(a * b);
                ours += f64::from(a * a);
                theirs += f64::from(b * b);
            }
        }
        let cosine = along / (ours * theirs).sqrt();
        assert!(cosine > 0.97 && (ours / theirs - 1.0f64).abs() < 0.15, "{cosine}, {ours} of {theirs}: {config:?}");
    });
}

#[test]
fn only_weights_that_want_a_gradient_get_one() {
    let config = &configs()[2];
    let mut weights = weights(config, 1, DType::F32);
    let name = "model.layers.1.mlp.up_proj.weight";
    let variable = Var::from_tensor(&weights[name]).unwrap();
    weights.insert(name.to_owned(), variable.as_tensor().clone());
    let policy = Model::computed_by(Engine::Tensors, config.clone(), weights.clone()).unwrap();
    let (scores, _) = scores_of::<Scored>(&policy, None, &sequences(), Keep::Everything).unwrap();
    let store = scores.sum_all().unwrap().backward().unwrap();
    let mine = numbers(store.get(&variable).unwrap());
    let others = policy.weights().iter().filter(|(other, weight)| *other != name && store.get(weight).is_some());
    assert_eq!(others.count(), 0);
    let (plain, _) = plain_scores(&policy, None, &sequences()).unwrap();
    let plain = numbers(plain.sum_all().unwrap().backward().unwrap().get(&variable).unwrap());
    let norm = plain.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!(difference(&mine, &plain) < 1e-4 * norm, "{norm}");
    assert!(!scores_of::<Scored>(&policy, None, &sequences(), Keep::Nothing).unwrap().0.track_op());
}

#[test]
fn token_by_token_equals_the_plain_way() {
    each(|config| {
        let model = model(&config, 3, Engine::Tensors);
        // Long enough for more room to be made.
        let end = if is_on() { 70 } else { 140 };
        let text = ids(end, 9);
        let (mut logits, mut plain) = (Vec::new(), Vec::new());
        let mut decoding = Decoding::new(1000);
        decoding.step(&model, &[], &[], &[row(&text[..1], 3)], &mut logits).unwrap();
        let mut plainly = Plain::start(&model, &[(&text[..1], end - 1)], &mut plain).unwrap();
        for at in 1..end {
            assert!(difference(&logits, &plain) < 1e-4, "token {at} of {config:?}");
            decoding.step(&model, &[0], &text[at..=at], &[], &mut logits).unwrap();
            plainly.step(&model, &[0], &text[at..=at], &mut plain).unwrap();
        }
    });
}

/// Rows come and go: the logits of each are those of its tokens so far, whoever else is there.
#[test]
fn rows_enter_and_leave() {
    each(|config| {
        let model = model(&config, 3, Engine::Tensors);
        let mut decoding = Decoding::new(1000);
        let mut stream = Stream::new(8, "rows");
        let mut rows: Vec<Vec<u32>> = Vec::new();
        let mut logits = Vec::new();
        for step in 0..14 {
            let kept: Vec<usize> = (0..rows.len()).filter(|_| stream.below(4) > 0).collect();
            let mut going: Vec<Vec<u32>> = kept.iter().map(|row| rows[*row].clone()).collect();
            let tokens: Vec<u32> = going.iter().map(|_| stream.below(61) as u32).collect();
            going.iter_mut().zip(&tokens).for_each(|(row, token)| row.push(*token));
            // Some share what they begin with, some are the same.
            let entering: Vec<Vec<u32>> =
                (0..stream.below(4)).map(|row| [ids(20, step % 2), ids(1 + 3 * (row / 2), step)].concat()).collect();
            let prompts: Vec<Entering<'_>> = entering.iter().map(|ids| row(ids, 2)).collect();
            decoding.step(&model, &kept, &tokens, &prompts, &mut logits).unwrap();
            going.extend(entering.iter().cloned());
            rows = going;
            assert_eq!(logits.len(), 61 * rows.len());
            for (row, logits) in rows.iter().zip(logits.chunks(61)) {
                let mut alone = Vec::new();
                Plain::start(&model, &[(row, 0)], &mut alone).unwrap();
                assert!(difference(logits, &alone) < 1e-4, "step {step} of {config:?}");
            }
        }
    });
}

#[test]
fn sampling_gives_the_tokens_of_the_cpus_passes() {
    let config = Config { eos_token_ids: Vec::new(), ..configs()[0].clone() };
    let greedy = |engine: Engine| {
        let model = model(&config, 5, engine);
        let mut rows: Vec<Vec<u32>> = (0..5).map(|row| ids(3 + 4 * row, row as u64)).collect();
        let mut logits = Vec::new();
        let ids: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let mut decoding = AnyDecoding::new(&model, &Arc::new(Prefixes::of(&ids)), 30).unwrap();
        let all: Vec<Vec<u32>> = rows.clone();
        let all: Vec<Entering<'_>> =
            all.iter().enumerate().map(|(prompt, ids)| Entering { ids, prompt, room: 20 }).collect();
        decoding.step(&model, &[], &[], &all, &mut logits).unwrap();
        for _ in 0..20 {
            let best = |logits: &[f32]| (0..61).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            let tokens: Vec<u32> = logits.chunks(61).map(best).collect();
            rows.iter_mut().zip(&tokens).for_each(|(row, token)| row.push(*token));
            decoding.step(&model, &[0, 1, 2, 3, 4], &tokens, &[], &mut logits).unwrap();
        }
        rows
    };
    assert_eq!(greedy(Engine::Tensors), greedy(Engine::Cpu));
}

/// Queries, keys and values in one product, gate and up in one: for use, without and with adapters on some of them.
#[test]
fn joined_weights_compute_the_same() {
    each(|config| {
        let random = |name: &str, shape: (usize, usize)| {
            let mut stream = Stream::new(6, name);
            let numbers: Vec<f32> = (0..shape.0 * shape.1).map(|_| 0.3 * stream.normal()).collect();
            Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
        };
        let model = model(&config, 3, Engine::Tensors);
        let mut adapters = Adapters::new();
        for name in ["self_attn.k_proj", "self_attn.o_proj"].map(|part| format!("model.layers.1.{part}")) {
            let (out, inner) = model.weights()[&format!("{name}.weight")].dims2().unwrap();
            let (a, b) = (random(&name, (3, inner)), random("b", (out, 3)));
            adapters.insert(name, Adapter { a, b, scale: 0.5, dropout: 0.0, noise: None });
        }
        for model in [model.clone(), model.adapted(adapters).unwrap()] {
            let (exact, _) = scores_of::<Scored>(&model, None, &sequences(), Keep::Nothing).unwrap();
            let joined = model.joined().unwrap();
            let key = &joined.weights()["model.layers.0.self_attn.k_proj.weight"];
            assert!(key.is_contiguous() && key.layout().start_offset() > 0, "part of one tensor");
            let (ours, _) = scores_of::<Scored>(&joined, None, &sequences(), Keep::Nothing).unwrap();
            assert!(difference(&numbers(&ours), &numbers(&exact)) < 1e-4, "{config:?}");
            let (mut logits, mut plain) = (Vec::new(), Vec::new());
            let text = ids(9, 4);
            let mut decoding = Decoding::new(1000);
            decoding.step(&joined, &[], &[], &[row(&text[..8], 3)], &mut logits).unwrap();
            decoding.step(&joined, &[0], &text[8..], &[], &mut logits).unwrap();
            Plain::start(&joined, &[(&text, 0)], &mut plain).unwrap();
            assert!(difference(&logits, &plain) < 1e-4, "{config:?}");
        }
    });
}
