//! The language model against others: numbers that PyTorch and `transformers` gave, and real pretrained models.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use sami::lm::logprobs::{response_kl, response_logprobs, token_logprobs};
use sami::lm::sampling::sample;
use sami::lm::{Config, Family, Files, Model, Prompt, SamplingSettings, Sequence, Tokenizer};

use super::real::test_data;

pub(super) fn config(model_type: Family, kv_heads: usize, tie: bool, window: Option<usize>) -> Config {
    Config {
        model_type,
        vocab_size: 97,
        hidden_size: 48,
        intermediate_size: 80,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: kv_heads,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 64,
        tie_word_embeddings: tie,
        sliding_window: window,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: None,
        ..Config::default()
    }
}

/// Random weights with norms that are not all 1 and biases that are not 0, so that one in the wrong place shows.
pub(super) fn weights(config: &Config, seed: u64) -> BTreeMap<String, Tensor> {
    let model = Model::random(config.clone(), seed, &Device::Cpu).expect("a valid configuration");
    let mut weights = model.weights().clone();
    for (index, (name, tensor)) in weights.iter_mut().enumerate() {
        if tensor.rank() == 1 {
            let middle = if name.contains("norm") { 0.7 } else { -0.3 };
            let values = (0..tensor.elem_count()).map(|at| middle + 0.6 * ((at * 7 + index * 3) % 11) as f32 / 10.0);
            *tensor = Tensor::from_iter(values, &Device::Cpu).expect("a tensor");
        } else {
            // Larger than at the start of training, so that attention is not nearly uniform.
            *tensor = (&*tensor * 2.0).expect("a tensor");
        }
    }
    weights
}

pub(super) fn ids(length: usize, seed: usize) -> Vec<u32> {
    (0..length).map(|at| ((at * at * 31 + at * 17 + seed * 53 + 5) % 97) as u32).collect()
}

/// What `lm_golden.py` gives its models: numbers by a formula.
fn formula(config: &Config) -> BTreeMap<String, Tensor> {
    let shapes: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
    let tensor = |(index, (name, shape)): (usize, (String, Vec<usize>))| {
        let value = |at: usize| ((at * 7919 + index * 104_729) % 2003) as f64 / 1001.0 - 1.0;
        let scaled = |at| match shape.len() {
            _ if name.contains("norm") => 1.0 + 0.3 * value(at),
            1 => value(at) * 0.3,
            _ => value(at) * 0.4,
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|at| scaled(at) as f32).collect();
        (name, Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor"))
    };
    shapes.into_iter().enumerate().map(tensor).collect()
}

#[derive(serde::Deserialize)]
struct Golden {
    config: serde_json::Value,
    ids: Vec<u32>,
    last_logits: Vec<f32>,
    logprobs: Vec<f32>,
    gradient_norms: BTreeMap<String, f32>,
}

#[test]
fn logits_log_probabilities_and_gradients_equal_those_of_transformers() {
    let cases: Vec<Golden> = serde_json::from_str(include_str!("lm_golden.json")).expect("what lm_golden.py made");
    assert_eq!(cases.len(), 9);
    for golden in cases {
        let directory = tempfile::tempdir().expect("a directory");
        fs_err::write(directory.path().join("config.json"), golden.config.to_string()).expect("written");
        let config = Config::load(&files(directory.path())).expect("a configuration of transformers");
        let (model, variables) = Model::trainable(config.clone(), formula(&config)).expect("a model");
        let close = |ours: &[f32], theirs: &[f32]| {
            assert_eq!(ours.len(), theirs.len());
            let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{config:?}: {worst}");
        };
        close(&model.next_logits(&[&golden.ids]).expect("logits")[0], &golden.last_logits);
        let scores = token_logprobs(&model, &[sequence(&golden.ids, 1)]).expect("log-probabilities").logprobs;
        close(&scores.to_vec1::<f32>().expect("numbers"), &golden.logprobs);
        let loss = scores.mean_all().and_then(|mean| mean.neg()).expect("a mean");
        let gradients = loss.backward().expect("gradients");
        assert!(golden.gradient_norms.keys().eq(variables.keys()));
        for (name, theirs) in &golden.gradient_norms {
            let gradient = gradients.get(&variables[name]).expect("a gradient");
            let ours =
                gradient.sqr().and_then(|squares| squares.sum_all()?.sqrt()?.to_scalar::<f32>()).expect("a norm");
            assert!((ours - theirs).abs() < 1e-3 * theirs, "{name} of {config:?}: {ours}, not {theirs}");
        }
    }
}

pub(super) fn files(directory: &Path) -> Files {
    let entries = fs_err::read_dir(directory).expect("a directory");
    let path = |entry: std::io::Result<fs_err::DirEntry>| entry.expect("an entry").path();
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    entries.map(path).filter(|path| path.is_file()).map(|path| (name(&path), path)).collect()
}

fn sequence(ids: &[u32], prompt: usize) -> Sequence {
    Sequence { ids: ids.to_vec(), prompt }
}

#[test]
fn log_probabilities_of_a_batch_are_those_of_its_rows() {
    for (model_type, kv_heads, window) in [(Family::Llama, 6, None), (Family::Mistral, 2, Some(5))] {
        let config = config(model_type, kv_heads, true, window);
        let policy = Model::frozen(config.clone(), weights(&config, 5)).expect("a model");
        let reference = Model::frozen(config.clone(), weights(&config, 6)).expect("a model");
        let all: Vec<Sequence> = (0..16).map(|row| sequence(&ids(3 + 4 * row % 61, row / 2), 1 + row % 3)).collect();
        let together = response_logprobs(&policy, &all).expect("log-probabilities");
        let divergences = response_kl(&policy, &reference, &all).expect("divergences");
        for (row, one) in all.iter().enumerate() {
            let alone = response_logprobs(&policy, std::slice::from_ref(one)).expect("log-probabilities");
            assert_eq!(alone[0], together[row], "the same bits");
            assert_eq!(alone[0].len(), one.ids.len() - one.prompt);
            let alone = response_kl(&policy, &reference, std::slice::from_ref(one)).expect("divergences");
            assert_eq!(alone[0], divergences[row], "the same bits");
        }
        // A log-probability is that of the token in the distribution after the tokens before it.
        let last = &all[15];
        let (token, before) = last.ids.split_last().expect("tokens");
        let logits = policy.next_logits(&[before]).expect("logits").remove(0);
        let total = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        let wanted = f64::from(logits[*token as usize]) - total;
        let found = f64::from(*together[15].last().expect("a response"));
        assert!((found - wanted).abs() < 1e-4, "{found} {wanted}");
        let same = response_kl(&policy, &policy, &all).expect("divergences");
        assert!(same.iter().flatten().all(|kl| kl.abs() < 1e-5), "a model does not diverge from itself");
    }
}

#[test]
fn sequences_that_mean_nothing_are_errors() {
    let config = config(Family::Llama, 2, true, None);
    let model = Model::frozen(config.clone(), weights(&config, 5)).expect("a model");
    let error = |ids: &[u32], prompt| {
        response_logprobs(&model, &[sequence(&[1, 2], 1), sequence(ids, prompt)]).expect_err("no meaning").to_string()
    };
    assert_eq!(error(&[1, 2], 0), "row 1 has 2 tokens, 0 of them a prompt; a prompt has at least one");
    assert_eq!(error(&[1, 2], 3), "row 1 has 2 tokens, 3 of them a prompt; a prompt has at least one");
    assert_eq!(error(&[1, 97], 1), "row 1 has the token 97, the model has 97");
    assert_eq!(error(&[1; 65], 1), "row 1 has 65 tokens, the model has 64 positions");
    assert_eq!(response_logprobs(&model, &[]).expect("nothing"), Vec::<Vec<f32>>::new());
    assert_eq!(response_logprobs(&model, &[sequence(&[1, 2], 2)]).expect("no response"), [Vec::<f32>::new()]);
    let mut other = config.clone();
    other.vocab_size = 98;
    let other = Model::random(other, 0, &Device::Cpu).expect("a model");
    let error = response_kl(&model, &other, &[sequence(&[1, 2], 1)]).expect_err("other tokens").to_string();
    assert!(error.ends_with("the policy has 97 tokens, the reference has 98"), "{error}");
}

#[test]
fn a_saved_model_is_loaded_as_it_was() {
    let config = config(Family::Mistral, 2, false, Some(5));
    let (model, variables) = Model::trainable(config.clone(), weights(&config, 7)).expect("a model");
    let directory = tempfile::tempdir().expect("a directory");
    model.save(directory.path()).expect("saved");
    let files = files(directory.path());
    assert!(files.keys().eq(["config.json", "generation_config.json", "model.safetensors"]));
    let loaded = Model::load(&files, &Device::Cpu).expect("loaded");
    assert_eq!(loaded.config(), &config);
    let (row, frozen) = (ids(20, 1), Model::frozen(config, model.weights().clone()).expect("a model"));
    let before = model.next_logits(&[&row]).expect("logits");
    assert_eq!(loaded.next_logits(&[&row]).expect("logits"), before);
    // A frozen copy stays as it is when the model is trained on.
    let norm = &variables["model.norm.weight"];
    norm.set(&norm.affine(2.0, 0.0).expect("a tensor")).expect("the same shape");
    assert_eq!(frozen.next_logits(&[&row]).expect("logits"), before);
    assert_ne!(model.next_logits(&[&row]).expect("logits"), before);
}

#[test]
fn weights_of_another_model_are_an_error() {
    let config = config(Family::Llama, 2, true, None);
    let mut other = weights(&config, 1);
    let name = "model.layers.1.mlp.up_proj.weight";
    let tensor = other.remove(name).expect("a weight");
    let error =
        |weights: &BTreeMap<String, Tensor>| Model::frozen(config.clone(), weights.clone()).expect_err("no model");
    assert_eq!(error(&other).to_string(), format!("the weights have no tensor `{name}`"));
    other.insert(name.to_owned(), tensor.t().and_then(|turned| turned.contiguous()).expect("a tensor"));
    assert!(error(&other).to_string().contains("is [48, 80] of F32, `config.json` asks for [80, 48] of F32"));
}

#[test]
fn a_real_model_tells_a_story() {
    let Some(directory) = test_data("models/stories260K") else { return };
    let files = files(&directory);
    let model = Model::load(&files, &Device::Cpu).expect("a model");
    let tokenizer = Tokenizer::load(&files).expect("a tokenizer");
    let prompt = Prompt { ids: tokenizer.prompt("").expect("a prompt"), seed: 0 };
    assert_eq!(prompt.ids, [1]);
    let responses = sample(&model, &tokenizer, &[prompt], &SamplingSettings::greedy(60)).expect("a response");
    // The text that karpathy/llama2.c's `run` gives for this checkpoint at temperature 0.
    let story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.";
    assert!(responses[0].text.starts_with(story), "{:?}", responses[0]);
}

#[test]
fn a_real_model_expects_a_real_text() {
    let (Some(directory), Some(texts)) =
        (test_data("models/babyllama-105"), test_data("text/tinystories_v2_valid_esp32.jsonl"))
    else {
        return;
    };
    let files = files(&directory);
    let model = Model::load(&files, &Device::Cpu).expect("a model");
    let tokenizer = Tokenizer::load(&files).expect("a tokenizer");
    let texts = fs_err::read_to_string(texts).expect("a file of texts");
    let mut sequences = Vec::new();
    let rows = texts.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a row"));
    let texts = rows.map(|row| row["text"].as_str().expect("a text").to_owned());
    // This checkpoint has no token for a line break.
    for text in texts.filter(|text| !text.contains('\n')).take(60) {
        let mut sequence = tokenizer.text(&text, false).expect("tokens");
        sequence.ids.truncate(model.config().max_position_embeddings);
        sequences.push(sequence);
    }
    let logprobs = response_logprobs(&model, &sequences).expect("log-probabilities");
    let all: Vec<f64> = logprobs.into_iter().flatten().map(f64::from).collect();
    let mean = -all.iter().sum::<f64>() / all.len() as f64;
    // What llama2.c's own code gives for this checkpoint is 0.670 nats for each character.
    assert!((mean - 0.67).abs() < 0.03, "{mean} nats for each of {} characters", all.len());
}

#[test]
fn real_tokenizers_give_back_every_text() {
    for path in ["models/stories260K", "models/babyllama-105", "tokenizers/mistral-7b-v0.1"] {
        let Some(directory) = test_data(path) else { return };
        let tokenizer = Tokenizer::load(&files(&directory)).expect("a tokenizer");
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), &[2][..]), "{path}");
        for text in ["Once upon a time", "Lily said, \"Let's play!\"\nThe end."] {
            // A checkpoint of single characters has no token for a line break.
            let text = if path.ends_with("babyllama-105") { &text.replace('\n', " ") } else { text };
            let ids = tokenizer.prompt(text).expect("tokens");
            assert_eq!(tokenizer.decode(&ids).expect("a text"), text, "{path}");
            let sequence = tokenizer.sequence("Once upon", text, true).expect("tokens");
            let (prompt, response) = sequence.ids.split_at(sequence.prompt);
            assert_eq!(tokenizer.decode(prompt).expect("a text"), "Once upon");
            assert_eq!(tokenizer.decode(response).expect("a text"), text);
            assert_eq!(response.last(), Some(&2));
        }
    }
    // The tokens that Python's `transformers` gives.
    let Some(directory) = test_data("tokenizers/mistral-7b-v0.1") else { return };
    let tokenizer = Tokenizer::load(&files(&directory)).expect("a tokenizer");
    assert_eq!(tokenizer.prompt("Hello, world!").expect("tokens"), [1, 22557, 28725, 1526, 28808]);
}
