//! The CPU's passes against `plain.rs`, and their two rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::{Keep, Scored};
use crate::lm::decode::{Decoding, Entering, Plain};
use crate::lm::graph::scores_of;
use crate::lm::logprobs::{plain_scores, response_kl, response_logprobs};
use crate::lm::prefixes::Prefixes;
use crate::lm::random::Stream;
use crate::lm::{Config, Experts, Family, Files, LmError, Model, RopeScaling, Sequence};

/// Odd sizes on purpose: heads narrower than a tile, a vocabulary and an inner width that are no multiples of anything.
fn config(kv_heads: usize, head_dim: usize, tie: bool, window: Option<usize>) -> Config {
    Config {
        model_type: Family::Mistral,
        vocab_size: 61,
        hidden_size: 36,
        intermediate_size: 50,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: kv_heads,
        head_dim,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 512,
        tie_word_embeddings: tie,
        sliding_window: window,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: None,
        ..Config::default()
    }
}

fn configs() -> Vec<Config> {
    vec![
        config(4, 8, true, None),
        config(2, 10, false, None),
        config(1, 34, true, Some(7)),
        config(2, 16, false, Some(40)),
        Config { attention_bias: true, mlp_bias: true, model_type: Family::Llama, ..config(2, 8, false, None) },
        Config {
            model_type: Family::Qwen2,
            sliding_layers: Some(vec![false, true]),
            rope_scaling: Some(RopeScaling::Linear { factor: 4.0 }),
            ..config(2, 8, true, Some(9))
        },
        Config {
            model_type: Family::Qwen3,
            attention_bias: true,
            rope_scaling: Some(RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 64,
            }),
            ..config(2, 10, false, None)
        },
        mixtral(),
        Config {
            model_type: Family::Qwen3Moe,
            experts: Some(Experts { num_local_experts: 3, num_experts_per_tok: 2, norm_topk_prob: false }),
            ..config(1, 8, true, None)
        },
    ]
}

fn mixtral() -> Config {
    Config {
        model_type: Family::Mixtral,
        experts: Some(Experts { num_local_experts: 5, num_experts_per_tok: 2, norm_topk_prob: true }),
        ..config(2, 16, false, Some(40))
    }
}

/// Random weights with norms that are not all 1, and attention that is not nearly uniform.
fn weights(config: &Config, seed: u64) -> BTreeMap<String, Tensor> {
    let mut weights = Model::random(config.clone(), seed, &Device::Cpu).unwrap().weights().clone();
    for (name, tensor) in &mut weights {
        let mut stream = Stream::new(seed, name);
        let mut value = |old: f32| match name {
            _ if name.contains("norm") => 1.0 + 0.3 * stream.normal(),
            _ if name.contains("bias") => 0.3 * stream.normal(),
            _ => old * 2.0,
        };
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values: Vec<f32> = values.into_iter().map(&mut value).collect();
        *tensor = Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap();
    }
    weights
}

fn model(config: &Config, seed: u64) -> Model {
    Model::frozen(config.clone(), weights(config, seed)).unwrap()
}

pub(in crate::lm) fn ids(length: usize, seed: u64) -> Vec<u32> {
    let mut stream = Stream::new(seed, "ids");
    (0..length).map(|_| stream.below(61) as u32).collect()
}

/// Sequences of different lengths; some share a prompt, some have no response, one is long.
pub(in crate::lm) fn sequences() -> Vec<Sequence> {
    let shared = ids(9, 100);
    let mut all: Vec<Sequence> = (0..3)
        .map(|seed| Sequence { ids: [shared.clone(), ids(3 + 5 * seed, seed as u64)].concat(), prompt: 9 })
        .collect();
    all.push(Sequence { ids: ids(1, 5), prompt: 1 });
    all.push(Sequence { ids: ids(2, 6), prompt: 1 });
    all.push(Sequence { ids: ids(140, 7), prompt: 3 });
    all.push(Sequence { ids: ids(12, 8), prompt: 11 });
    all.push(Sequence { ids: shared, prompt: 9 });
    all
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(in crate::lm) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn scores_equal_the_plain_ones() {
    for config in configs() {
        let (policy, reference) = (model(&config, 1), model(&config, 2));
        let (ours, kl) = scores_of::<Scored>(&policy, Some(&reference), &sequences(), Keep::Nothing).unwrap();
        let (plain, plain_kl) = plain_scores(&policy, Some(&reference), &sequences()).unwrap();
        assert!(difference(&numbers(&ours), &numbers(&plain)) < 1e-4, "{config:?}");
        let (kl, plain_kl) = (numbers(&kl.unwrap()), numbers(&plain_kl.unwrap()));
        assert!(kl.iter().all(|kl| *kl > 0.01), "two random models differ: {kl:?}");
        assert!(difference(&kl, &plain_kl) < 1e-4, "{config:?}");
        let alone = scores_of::<Scored>(&policy, None, &sequences(), Keep::Nothing).unwrap().0;
        assert_eq!(numbers(&alone), numbers(&ours), "a reference changes nothing");
    }
}

#[test]
fn a_batch_gives_the_bits_of_its_rows() {
    for config in configs() {
        let (policy, reference) = (model(&config, 1), model(&config, 2));
        let (together, kl) = scores_of::<Scored>(&policy, Some(&reference), &sequences(), Keep::Nothing).unwrap();
        let (mut alone, mut kl_alone) = (Vec::new(), Vec::new());
        for sequence in sequences() {
            let (one, kl) = scores_of::<Scored>(&policy, Some(&reference), &[sequence], Keep::Nothing).unwrap();
            alone.extend(numbers(&one));
            kl_alone.extend(numbers(&kl.unwrap()));
        }
        assert_eq!(numbers(&together), alone);
        assert_eq!(numbers(&kl.unwrap()), kl_alone);
    }
}

/// Begins to decode; the logits after each prompt.
fn start(model: &Model, prompts: &[&[u32]], room: usize, pass: usize) -> (Decoding, Vec<f32>) {
    let mut decoding = Decoding::new(model, &Arc::new(Prefixes::of(prompts)), pass).unwrap();
    let entering: Vec<_> = prompts.iter().enumerate().map(|(prompt, ids)| Entering { ids, prompt, room }).collect();
    let mut logits = Vec::new();
    decoding.step(model, &[], &[], &entering, &mut logits).unwrap();
    (decoding, logits)
}

#[test]
fn token_by_token_gives_the_bits_of_all_at_once() {
    for config in configs() {
        let model = model(&config, 3);
        // Long enough for more angles.
        let text = ids(400, 9);
        let mut plain = Vec::new();
        let (mut decoding, mut logits) = start(&model, &[&text[..1]], 399, 2048);
        let mut plainly = Plain::start(&model, &[(&text[..1], 399)], &mut plain).unwrap();
        for at in 1..400 {
            if at < 70 || at % 31 == 0 {
                for pass in [2048, 7] {
                    assert_eq!(logits, start(&model, &[&text[..at]], 0, pass).1, "token {at} of {config:?}");
                }
            }
            assert!(difference(&logits, &plain) < 1e-4, "token {at} of {config:?}");
            decoding.step(&model, &[0], &text[at..=at], &[], &mut logits).unwrap();
            plainly.step(&model, &[0], &text[at..=at], &mut plain).unwrap();
        }
    }
}

/// Prompts of which some share one or two beginnings, of lengths that are no multiples of anything.
fn prompts() -> Vec<Vec<u32>> {
    let prompt = |row: usize| match row % 4 {
        0 => ids(1 + row % 13, row as u64 / 2),
        1 => [ids(45, 1), ids(1 + row % 5, row as u64)].concat(),
        2 => [ids(45, 1), ids(23, 2), ids(1 + row % 9, row as u64)].concat(),
        _ => [ids(45, 1), ids(23, 2)].concat(),
    };
    (0..40).map(prompt).collect()
}

#[test]
fn decoding_a_batch_gives_the_bits_of_its_rows() {
    for config in configs() {
        let model = model(&config, 3);
        let prompts = prompts();
        let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let prefixes = Arc::new(Prefixes::of(&all));
        assert!(prefixes.runs.len() >= 2, "some is shared");
        let alone: Vec<_> = all
            .iter()
            .map(|prompt| {
                let (mut decoding, first) = start(&model, &[prompt], 5, 2048);
                let mut second = Vec::new();
                decoding.step(&model, &[0], &[7], &[], &mut second).unwrap();
                (first, second)
            })
            .collect();
        for pass in [2048, 50] {
            let mut batch = Decoding::new(&model, &prefixes, pass).unwrap();
            let (mut logits, mut kept, mut going) = (Vec::new(), Vec::new(), Vec::new());
            // Six rows enter with every token; every third leaves after its first, the others after their second.
            for entering in prefixes.order.chunks(6) {
                let rows: Vec<_> =
                    entering.iter().map(|row| Entering { ids: all[*row], prompt: *row, room: 5 }).collect();
                batch.step(&model, &kept, &vec![7; going.len()], &rows, &mut logits).unwrap();
                let wanted =
                    going.iter().map(|row: &usize| &alone[*row].1).chain(entering.iter().map(|row| &alone[*row].0));
                for (found, wanted) in logits.chunks(61).zip(wanted) {
                    assert_eq!(found, wanted);
                }
                assert_eq!(logits.len(), (going.len() + entering.len()) * 61);
                kept = (going.len()..going.len() + entering.len()).filter(|place| place % 3 != 0).collect();
                going = kept.iter().map(|place| entering[place - going.len()]).collect();
            }
        }
    }
}

#[test]
fn weights_that_are_held_once_give_the_same_bits() {
    for config in configs() {
        let folder = tempfile::tempdir().unwrap();
        let whole = model(&config, 3);
        whole.save(folder.path()).unwrap();
        let names = ["config.json", "generation_config.json", "model.safetensors"];
        let files: Files = names.iter().map(|name| ((*name).to_owned(), folder.path().join(name))).collect();
        let used = Model::load_to_use(&files, &Device::Cpu).unwrap();
        let prompts = prompts();
        let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        assert_eq!(used.next_logits(&all).unwrap(), whole.next_logits(&all).unwrap(), "{config:?}");
        let scored = |model: &Model| response_logprobs(model, &sequences()).unwrap();
        assert_eq!(scored(&used), scored(&whole), "{config:?}");
        let kl = |model: &Model| response_kl(&whole, model, &sequences()).unwrap();
        assert_eq!(kl(&used), kl(&whole), "{config:?}");
        assert!(matches!(used.save(folder.path()), Err(LmError::MissingTensor { .. })), "it is not all there");
        let bytes = fs_err::read(&files["model.safetensors"]).unwrap();
        fs_err::write(&files["model.safetensors"], &bytes[..bytes.len() - 4]).unwrap();
        assert!(matches!(Model::load_to_use(&files, &Device::Cpu), Err(LmError::Weights { .. })));
    }
}

/// Sequences of one model in memory that is ever less: passes are halved, and no bit changes.
#[test]
fn a_full_memory_halves_the_passes_and_changes_nothing() {
    let config = configs().remove(0);
    let model = model(&config, 1);
    let whole = response_logprobs(&model, &sequences()).unwrap();
    let (mut all, mut none) = (0, 0);
    for kib in (4..1000).step_by(12) {
        model.limit_buffers(Some(kib << 10));
        match response_logprobs(&model, &sequences()) {
            Ok(found) => {
                assert_eq!(found, whole, "{kib} KiB");
                all += 1;
            }
            Err(LmError::RowOutOfMemory { .. }) => none += 1,
            Err(error) => panic!("{kib} KiB: {error}"),
        }
    }
    assert!(all > 10 && none > 0, "{all} limits were enough, {none} were not");
}

/// Gradients of a loss that uses log-probabilities and divergences with different signs.
fn gradients(config: &Config, cpu: bool) -> (f32, BTreeMap<String, Vec<f32>>) {
    let (policy, variables): (Model, BTreeMap<String, Var>) =
        Model::trainable(config.clone(), weights(config, 1)).unwrap();
    let reference = model(config, 2);
    let (logprobs, kl) = if cpu {
        scores_of::<Scored>(&policy, Some(&reference), &sequences(), Keep::Everything).unwrap()
    } else {
        plain_scores(&policy, Some(&reference), &sequences()).unwrap()
    };
    let mut stream = Stream::new(4, "loss");
    let factors: Vec<f32> = (0..logprobs.elem_count()).map(|_| stream.normal()).collect();
    let factors = Tensor::new(factors, &Device::Cpu).unwrap();
    let loss =
        ((logprobs * factors).unwrap().sum_all().unwrap() + (kl.unwrap() * 0.3).unwrap().sum_all().unwrap()).unwrap();
    let store = loss.backward().unwrap();
    let of = |variable: &Var| numbers(store.get(variable).expect("every weight has a gradient"));
    let gradients = variables.iter().map(|(name, variable)| (name.clone(), of(variable))).collect();
    (loss.to_scalar().unwrap(), gradients)
}

#[test]
fn gradients_equal_the_plain_ones() {
    for config in configs() {
        let ((loss, ours), (plain_loss, plain)) = (gradients(&config, true), gradients(&config, false));
        assert!((loss - plain_loss).abs() < 1e-3, "{loss} {plain_loss}");
        for (name, plain) in plain {
            let norm = plain.iter().map(|x| x * x).sum::<f32>().sqrt();
            let error = ours[&name].iter().zip(&plain).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            assert!(norm > 1e-3 && error < 1e-4 * norm, "{name} of {config:?}: error {error}, norm {norm}");
        }
    }
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    let qwen = Config { model_type: Family::Qwen3, attention_bias: true, ..config(2, 10, true, None) };
    for config in [config(2, 10, true, Some(40)), mixtral(), qwen] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let model = model(&config, 3);
                let prompts = prompts();
                let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
                (start(&model, &all, 0, 2048).1, start(&model, &all[..1], 0, 2048).1, gradients(&config, true))
            })
        };
        let one = run(1);
        for threads in [2, 3, 8] {
            assert!(run(threads) == one, "{threads} threads, {config:?}");
        }
    }
}
