//! The language model against `PyTorch` and transformers, both ways: our models there, their models here.
//!
//! `parity.py` beside this file is the other side. Needs a Python with both, which `SAMI_TEST_PYTHON` names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use sami::env;
use sami::lm::logprobs::{response_logprobs, token_logprobs};
use sami::lm::loss::preference::Directions;
use sami::lm::loss::{LengthNorm, Sides};
use sami::lm::optimizer::{OptimizerName, OptimizerSettings};
use sami::lm::sampling::sample;
use sami::lm::train::{Example, Objective, TrainSettings, Trainer};
use sami::lm::{Config, Files, Model, Prompt, SamplingSettings, Sequence, Tokenizer, TokenizerKind, weights};
use serde_json::{Value, json};

use super::sandbox::skipped;

/// The Python to compare with; without it, a printed reason for the skip.
fn python() -> Option<PathBuf> {
    let python = env::TEST_PYTHON.get().map(PathBuf::from);
    if python.is_none() {
        skipped(&format!("{} names no Python with torch and transformers", env::TEST_PYTHON.name));
    }
    python
}

fn run(python: &Path, what: &str, directories: &[PathBuf]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/parity.py");
    let mut command = Command::new(python);
    command.arg(script).arg(what).args(directories).env("HF_HUB_OFFLINE", "1").env("TOKENIZERS_PARALLELISM", "false");
    let output = command.output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(path).expect("Python wrote it")).expect("JSON")
}

fn files(directory: &Path) -> Files {
    let entries = fs_err::read_dir(directory).expect("a directory");
    let entries = entries.map(|entry| entry.expect("an entry"));
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect()
}

fn tensors(directory: &Path, config: &Config) -> BTreeMap<String, Tensor> {
    weights::load(&files(directory), config, &Device::Cpu).expect("a checkpoint")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number")).collect()
}

fn close(what: &str, ours: &[f32], theirs: &Value, within: f64) {
    let theirs = numbers(theirs);
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let worst = ours.iter().zip(&theirs).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(worst < within, "{what} differ by {worst}");
}

/// ‖a − b‖ over ‖b‖, the largest of all tensors.
fn apart(ours: &BTreeMap<String, Tensor>, theirs: &BTreeMap<String, Tensor>) -> (f64, String) {
    assert!(ours.keys().eq(theirs.keys()), "{:?} {:?}", ours.keys(), theirs.keys());
    let numbers =
        |tensor: &Tensor| -> Vec<f32> { tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32 numbers") };
    let norm = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>().sqrt();
    let mut worst = (0.0, String::new());
    for (name, ours) in ours {
        let (ours, theirs) = (numbers(ours), numbers(&theirs[name]));
        let size = norm(&mut theirs.iter().map(|x| f64::from(*x)));
        assert!(size > 0.0, "{name} is nothing");
        let far = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| f64::from(*a) - f64::from(*b))) / size;
        if far > worst.0 {
            worst = (far, name.clone());
        }
    }
    worst
}

/// Models of every family: `config.json` beyond what they share.
fn families() -> Vec<(&'static str, Value)> {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    });
    let linear = json!({"rope_type": "linear", "factor": 2.5});
    vec![
        ("llama", json!({"model_type": "llama", "num_key_value_heads": 6, "tie_word_embeddings": true})),
        ("llama-groups", json!({"model_type": "llama", "rope_scaling": linear, "head_dim": 12})),
        ("llama-biases", json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true})),
        ("llama3", json!({"model_type": "llama", "rope_theta": 500_000.0, "rope_scaling": llama3})),
        ("mistral", json!({"model_type": "mistral", "sliding_window": 5})),
        ("mixtral", json!({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2})),
        ("qwen2", json!({"model_type": "qwen2", "tie_word_embeddings": true})),
        ("qwen3", json!({"model_type": "qwen3", "head_dim": 12})),
        (
            "qwen3_moe",
            json!({
                "model_type": "qwen3_moe", "head_dim": 12, "num_experts": 4, "num_experts_per_tok": 2,
                "moe_intermediate_size": 40, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
            }),
        ),
    ]
}

fn config(directory: &Path, own: &Value) -> Config {
    let mut whole = json!({
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "bos_token_id": 1, "eos_token_id": 2,
    });
    let fields = own.as_object().expect("an object").clone();
    whole.as_object_mut().expect("an object").extend(fields);
    let path = directory.join("config.json");
    fs_err::write(&path, whole.to_string()).expect("a directory");
    Config::load(&Files::from([("config.json".to_owned(), path)])).expect("a supported form")
}

/// Random weights with norms that are not all 1 and biases that are not 0, so that one in the wrong place shows.
fn random(config: &Config, seed: u64) -> BTreeMap<String, Tensor> {
    let model = Model::random(config.clone(), seed, &Device::Cpu).expect("a model");
    let mut weights = model.weights().clone();
    for (index, tensor) in weights.values_mut().enumerate() {
        if tensor.rank() == 1 {
            let wave = |at| 0.3 * ((at * 7 + index * 3) % 11) as f64 / 10.0 - 0.15;
            let wave = Tensor::from_iter((0..tensor.elem_count()).map(|at| wave(at) as f32), &Device::Cpu);
            *tensor = (&*tensor + wave.expect("a tensor")).expect("the same shape");
        } else {
            // Larger than at the start of training, so that attention is not nearly uniform.
            *tensor = (&*tensor * 2.0).expect("a tensor");
        }
    }
    weights
}

fn ids(length: usize, seed: usize) -> Vec<u32> {
    (0..length).map(|at| ((at * at * 31 + at * 17 + seed * 53 + 5) % 97) as u32).collect()
}

/// Logits, log-probabilities and the likeliest tokens against `theirs.json`.
fn compare_forward(what: &str, model: &Model, sequence: &Sequence, theirs: &Value) {
    let logits = model.next_logits(&[&sequence.ids]).expect("logits").remove(0);
    close(&format!("{what}: logits"), &logits, &theirs["logits"], 2e-4);
    let logprobs = response_logprobs(model, std::slice::from_ref(sequence)).expect("log-probabilities").remove(0);
    close(&format!("{what}: log-probabilities"), &logprobs, &theirs["logprobs"], 1e-4);
    let new = theirs["greedy"].as_array().expect("tokens").len();
    // A tokenizer without an end in the model's vocabulary: responses go on to their length, as theirs do.
    let tokenizer = Tokenizer::train(TokenizerKind::Word, ["a b"], 8).expect("a tokenizer");
    let prompt = Prompt { ids: sequence.ids[..sequence.prompt].to_vec(), seed: 0 };
    let response = sample(model, &tokenizer, &[prompt], &SamplingSettings::greedy(new)).expect("a response").remove(0);
    let theirs: Vec<u32> =
        theirs["greedy"].as_array().expect("tokens").iter().map(|id| id.as_u64().expect("a token") as u32).collect();
    // They may not end before the last token, we may.
    assert!(!response.ids.is_empty() && theirs.starts_with(&response.ids), "{what}: {:?} {theirs:?}", response.ids);
}

/// Small numbers under the root, so that rounding in a gradient near zero is not all of the update.
fn optimizers() -> [(&'static str, OptimizerSettings); 2] {
    let settings = |name| OptimizerSettings { eps: 1e-3, weight_decay: 0.01, ..OptimizerSettings::new(name, 1e-2) };
    [("adamw", settings(OptimizerName::AdamW)), ("rmsprop", settings(OptimizerName::RmsProp))]
}

fn for_torch(settings: &OptimizerSettings) -> Value {
    let mut value = json!({"lr": settings.lr, "eps": settings.eps, "weight_decay": settings.weight_decay});
    match settings.name {
        OptimizerName::AdamW => {
            value["name"] = json!("adamw");
            value["betas"] = json!([settings.beta1, settings.beta2]);
        }
        OptimizerName::RmsProp => {
            value["name"] = json!("rmsprop");
            value["alpha"] = json!(settings.alpha);
        }
    }
    value
}

fn settings(objective: Objective, optimizer: OptimizerSettings, batch: usize) -> TrainSettings {
    TrainSettings { batch, clip: 0.0, ..TrainSettings::new(objective, optimizer) }
}

#[test]
#[ignore = "slow: PyTorch"]
fn pytorch_computes_the_same_for_our_models() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().expect("a directory");
    let sequence = Sequence { ids: ids(30, 3), prompt: 9 };
    let mut cases = Vec::new();
    for (index, (name, own)) in families().into_iter().enumerate() {
        let directory = root.path().join(name);
        fs_err::create_dir_all(directory.join("model")).expect("a directory");
        let config = config(&directory, &own);
        let start = random(&config, index as u64);
        let model = Model::frozen(config.clone(), start.clone()).expect("a model");
        model.save(&directory.join("model")).expect("saved");
        let optimizers: BTreeMap<&str, Value> =
            optimizers().iter().map(|(name, settings)| (*name, for_torch(settings))).collect();
        let case = json!({"ids": sequence.ids, "prompt": sequence.prompt, "new": 12, "optimizers": optimizers});
        fs_err::write(directory.join("case.json"), case.to_string()).expect("written");
        cases.push((name, directory, config, start, model));
    }
    let directories: Vec<PathBuf> = cases.iter().map(|(_, directory, ..)| directory.clone()).collect();
    run(&python, "numbers", &directories);
    for (name, directory, config, start, model) in cases {
        compare_forward(name, &model, &sequence, &json_of(&directory.join("theirs.json")));

        let (trainable, parameters) = Model::trainable(config.clone(), start.clone()).expect("a model");
        let tokens = token_logprobs(&trainable, std::slice::from_ref(&sequence)).expect("log-probabilities");
        let loss = tokens.logprobs.mean_all().and_then(|mean| mean.neg()).expect("a loss");
        let mut gradients = loss.backward().expect("gradients");
        let ours = parameters.iter().map(|(name, parameter)| {
            (name.clone(), gradients.remove(parameter).unwrap_or_else(|| panic!("{name} has no gradient")))
        });
        let (far, worst) = apart(&ours.collect(), &tensors(&directory.join("gradient"), &config));
        assert!(far < 1e-3, "{name}: the gradient to {worst} differs by {far} of its norm");

        for (optimizer, of) in optimizers() {
            let example = Example { id: "0".to_owned(), sequences: vec![sequence.clone()] };
            let settings = settings(Objective::Likelihood, of, 1);
            let mut trainer = Trainer::of_weights(config.clone(), start.clone(), None, vec![example], settings)
                .expect("settings that mean something");
            trainer.step().expect("a step");
            let theirs = tensors(&directory.join(optimizer), &config);
            let moved = |after: &BTreeMap<String, Tensor>| -> BTreeMap<String, Tensor> {
                let move_of =
                    |(name, after): (&String, &Tensor)| (name.clone(), (after - &start[name]).expect("the same shape"));
                after.iter().map(move_of).collect()
            };
            let (far, worst) = apart(&moved(trainer.model().weights()), &moved(&theirs));
            assert!(far < 2e-3, "{name}: {optimizer} moves {worst} otherwise, by {far} of the way");
        }
    }
}

#[test]
#[ignore = "slow: PyTorch"]
fn models_that_transformers_made_are_the_same_here() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().expect("a directory");
    run(&python, "make", &[root.path().to_owned()]);
    let mut count = 0;
    for (name, directory) in files(root.path()) {
        let theirs = json_of(&directory.join("theirs.json"));
        let ids =
            theirs["ids"].as_array().expect("tokens").iter().map(|id| id.as_u64().expect("a token") as u32).collect();
        let files = files(&directory.join("model"));
        assert_eq!(files.contains_key("model.safetensors.index.json"), name.ends_with("shards"), "{name}: {files:?}");
        let model = Model::load(&files, &Device::Cpu).unwrap_or_else(|error| panic!("{name}: {error}"));
        compare_forward(&name, &model, &Sequence { ids, prompt: 7 }, &theirs);
        count += 1;
    }
    assert!(count >= 18, "{count} models");
}

#[test]
#[ignore = "slow: PyTorch"]
fn training_goes_the_way_that_pytorch_goes() {
    let Some(python) = python() else { return };
    let root = tempfile::tempdir().expect("a directory");
    let clip = 0.01;
    let mut cases = Vec::new();
    let sami = Objective::Sami { sides: Sides::Both, length_norm: LengthNorm::Mean };
    let dpo =
        Objective::Dpo { beta: 0.3, label_smoothing: 0.0, length_norm: LengthNorm::Sum, directions: Directions::Both };
    let some = families().into_iter().filter(|(name, _)| ["llama", "mistral", "qwen3"].contains(name));
    let of_each = |(name, own): (&'static str, Value)| {
        [(name.to_owned(), own.clone(), sami, None), (format!("{name}-dpo"), own, dpo, Some(0.3))]
    };
    for (name, own, objective, beta) in some.flat_map(of_each) {
        let directory = root.path().join(&name);
        for part in ["model", "ours"] {
            fs_err::create_dir_all(directory.join(part)).expect("a directory");
        }
        let config = config(&directory, &own);
        let start = random(&config, 11);
        Model::frozen(config.clone(), start.clone())
            .and_then(|model| model.save(&directory.join("model")))
            .expect("saved");
        // Prompts and responses of different lengths.
        let sequence = |query: usize, row: usize, column: usize| {
            let prompt = ids(6 + 2 * row + query, 10 * query + row);
            let response = ids(4 + 3 * column, 10 * query + column + 5);
            Sequence { prompt: prompt.len(), ids: [prompt, response].concat() }
        };
        let examples: Vec<Example> = (0..3)
            .map(|query| Example {
                id: query.to_string(),
                sequences: (0..4).map(|cell| sequence(query, cell / 2, cell % 2)).collect(),
            })
            .collect();
        let (_, optimizer) = optimizers()[0].clone();
        let settings = TrainSettings { clip, ..settings(objective, optimizer.clone(), 3) };
        let mut trainer =
            Trainer::of_weights(config.clone(), start.clone(), None, examples.clone(), settings).expect("settings");
        // Every step has all queries: their order does not matter.
        let records: Vec<_> = (0..3).map(|_| trainer.step().expect("a step")).collect();
        trainer.save(&directory.join("ours")).expect("saved");
        let query = |example: &Example| -> Vec<Value> {
            example.sequences.iter().map(|one| json!({"ids": one.ids, "prompt": one.prompt})).collect()
        };
        let step: Vec<Vec<Value>> = examples.iter().map(query).collect();
        let case = json!({"optimizer": for_torch(&optimizer), "clip": clip, "beta": beta, "steps": [step, step, step]});
        fs_err::write(directory.join("case.json"), case.to_string()).expect("written");
        let first = examples[0].sequences[0].clone();
        cases.push((name, directory, config, start, trainer, records, first));
    }
    let directories: Vec<PathBuf> = cases.iter().map(|(_, directory, ..)| directory.clone()).collect();
    run(&python, "train", &directories);
    for (name, directory, config, start, trainer, records, first) in cases {
        let theirs = json_of(&directory.join("theirs.json"));
        for (record, (loss, norm)) in
            records.iter().zip(numbers(&theirs["losses"]).into_iter().zip(numbers(&theirs["norms"])))
        {
            assert!((record.loss - loss).abs() < 1e-4, "{name}, step {}: {} {loss}", record.step, record.loss);
            assert!((record.gradient_norm / norm - 1.0).abs() < 1e-3, "{name}: {} {norm}", record.gradient_norm);
            assert!(norm > clip, "{name}: nothing was clipped");
        }
        let moved = |after: &BTreeMap<String, Tensor>| -> BTreeMap<String, Tensor> {
            after.iter().map(|(name, after)| (name.clone(), (after - &start[name]).expect("the same shape"))).collect()
        };
        let (far, worst) =
            apart(&moved(trainer.model().weights()), &moved(&tensors(&directory.join("theirs"), &config)));
        assert!(far < 5e-3, "{name}: {worst} went elsewhere, by {far} of the way");
        compare_forward(&format!("{name}, opened in Python"), trainer.model(), &first, &theirs);
    }
}
