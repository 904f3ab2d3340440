//! Adapters against Python's `peft`, both ways: ours opened there, theirs opened here.
//!
//! `adapters.py` beside this file is the other side. Needs a Python with torch, transformers and peft, which
//! `SAMI_TEST_PYTHON` names.

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::Device;
use sami::env;
use sami::lm::adapter::{LoraSettings, Targets};
use sami::lm::optimizer::{OptimizerName, OptimizerSettings};
use sami::lm::train::{Example, Objective, TrainSettings, Trainer};
use sami::lm::{Config, Files, Model, Sequence, adapter};
use serde_json::{Value, json};

use super::sandbox::skipped;

/// Runs the other side; false, with a printed reason, where it cannot.
fn run(what: &str, directory: &Path) -> bool {
    let Some(python) = env::TEST_PYTHON.get() else {
        skipped(&format!("{} names no Python with torch, transformers and peft", env::TEST_PYTHON.name));
        return false;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/adapters.py");
    let mut command = Command::new(python);
    command.arg(script).arg(what).arg(directory).env("HF_HUB_OFFLINE", "1").env("TOKENIZERS_PARALLELISM", "false");
    let output = command.output().expect("Python starts");
    if output.status.code() == Some(77) {
        skipped("this Python has no peft");
        return false;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

fn files(directory: &Path) -> Files {
    let mut files = Files::new();
    let mut open = vec![directory.to_owned()];
    while let Some(place) = open.pop() {
        for entry in fs_err::read_dir(&place).expect("a directory") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(directory).expect("below it").to_string_lossy().into_owned();
                files.insert(name, path);
            }
        }
    }
    files
}

fn theirs(directory: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(directory.join("theirs.json")).expect("Python wrote it")).expect("JSON")
}

fn apart(ours: &[f32], theirs: &Value) -> f64 {
    let theirs = theirs.as_array().expect("numbers");
    assert_eq!(ours.len(), theirs.len());
    let off = |(ours, theirs): (&f32, &Value)| (f64::from(*ours) - theirs.as_f64().expect("a number")).abs();
    ours.iter().zip(theirs).map(off).fold(0.0, f64::max)
}

fn ids(length: usize, seed: usize) -> Vec<u32> {
    (0..length).map(|at| ((at * at * 31 + at * 17 + seed * 53 + 5) % 97) as u32).collect()
}

#[test]
#[ignore = "slow: PyTorch"]
fn peft_opens_what_was_trained_here() {
    let root = tempfile::tempdir().expect("a directory");
    let path = root.path().join("config.json");
    let form = json!({
        "model_type": "llama", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    });
    fs_err::write(&path, form.to_string()).expect("written");
    let config = Config::load(&Files::from([("config.json".to_owned(), path)])).expect("a supported form");
    let weights = Model::random(config.clone(), 5, &Device::Cpu).expect("a model").weights().clone();
    let examples: Vec<Example> = (0..4)
        .map(|at| Example { id: at.to_string(), sequences: vec![Sequence { ids: ids(20 + at, at), prompt: 5 }] })
        .collect();
    let optimizer = OptimizerSettings::new(OptimizerName::AdamW, 2e-2);
    let targets = Targets::Named(["q_proj", "o_proj", "up_proj"].map(str::to_owned).into());
    let settings = TrainSettings {
        batch: 4,
        steps: 10,
        lora: Some(LoraSettings { rank: 4, alpha: 6.0, targets, ..LoraSettings::default() }),
        ..TrainSettings::new(Objective::Likelihood, optimizer)
    };
    let mut trainer = Trainer::of_weights(config, weights, None, examples, settings).expect("settings");
    while !trainer.done() {
        trainer.step().expect("a step");
    }
    let (beside, merged) = (root.path().join("beside"), root.path().join("merged"));
    let folder = beside.join(adapter::FOLDER);
    for directory in [&folder, &merged] {
        fs_err::create_dir_all(directory).expect("a directory");
    }
    trainer.save(&merged).expect("saved");
    trainer.save_base(&beside).expect("saved");
    trainer.save_adapter(&folder).expect("saved");
    let ids = ids(30, 9);
    fs_err::write(root.path().join("case.json"), json!({ "ids": ids }).to_string()).expect("written");
    if !run("open", root.path()) {
        return;
    }
    let theirs = theirs(root.path());
    let logits = |model: &Model| model.next_logits(&[&ids]).expect("logits").remove(0);
    let trained = logits(trainer.model());
    assert!(apart(&trained, &theirs["base"]) > 0.1, "the adapter does something");
    for how in ["adapted", "unloaded", "merged"] {
        let off = apart(&trained, &theirs[how]);
        assert!(off < 2e-4, "{how}: {off}");
    }
    for directory in [&beside, &merged] {
        let off = apart(&logits(&Model::load(&files(directory), &Device::Cpu).expect("loads")), &theirs["adapted"]);
        assert!(off < 2e-4, "{}: {off}", directory.display());
    }
    assert_eq!((&theirs["rank"], &theirs["targets"]), (&json!(4), &json!(["o_proj", "q_proj", "up_proj"])));
}

#[test]
#[ignore = "slow: PyTorch"]
fn what_peft_wrote_is_opened_here() {
    let root = tempfile::tempdir().expect("a directory");
    if !run("make", root.path()) {
        return;
    }
    let theirs = theirs(root.path());
    let ids: Vec<u32> =
        theirs["ids"].as_array().expect("tokens").iter().map(|id| id.as_u64().expect("a token") as u32).collect();
    let model = Model::load(&files(&root.path().join("model")), &Device::Cpu).expect("loads");
    assert_eq!(model.adapters().len(), 4);
    let off = apart(&model.next_logits(&[&ids]).expect("logits").remove(0), &theirs["adapted"]);
    assert!(off < 2e-4, "{off}");
}
