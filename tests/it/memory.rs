//! What a training step takes of memory.

use std::process::Command;

use candle_core::Device;
use sami::lm::loss::{LengthNorm, Sides};
use sami::lm::optimizer::{OptimizerName, OptimizerSettings};
use sami::lm::train::{Example, Objective, TrainSettings, Trainer};
use sami::lm::{Config, Files, Model, Sequence};
use serde_json::json;

/// Two steps on a query of `side` constitutions, prompts of 200 tokens and responses of 60, of a model of 15 M parameters.
/// Prints the largest resident set of the process, in KiB.
fn steps(side: usize, activation_checkpointing: bool) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.json");
    let form = json!({
        "model_type": "llama", "vocab_size": 32_000, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6,
        "num_attention_heads": 6, "max_position_embeddings": 512, "tie_word_embeddings": true,
    });
    fs_err::write(&path, form.to_string()).expect("written");
    let config = Config::load(&Files::from([("config.json".to_owned(), path)])).expect("a supported form");
    let weights = Model::random(config.clone(), 5, &Device::Cpu).expect("a model").weights().clone();
    let ids = |length: usize, seed: usize| (0..length).map(move |at| ((at * 31 + seed * 997 + 5) % 32_000) as u32);
    let sequence =
        |cell: usize| Sequence { ids: ids(200, cell / side).chain(ids(60, 100 + cell % side)).collect(), prompt: 200 };
    let example = Example { id: "one".to_owned(), sequences: (0..side * side).map(sequence).collect() };
    let settings = TrainSettings {
        activation_checkpointing: Some(activation_checkpointing),
        ..TrainSettings::new(
            Objective::Sami { sides: Sides::Both, length_norm: LengthNorm::Mean },
            OptimizerSettings::new(OptimizerName::AdamW, 1e-4),
        )
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    pool.install(|| {
        let mut trainer =
            Trainer::of_weights(config, weights, None, vec![example], settings).expect("settings that mean something");
        for _ in 0..2 {
            trainer.step().expect("a step");
        }
    });
    let status = fs_err::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("\npeak:{peak}\n").as_bytes());
}

/// Runs a test of this program in a process of its own; MiB.
fn peak_of(test: &str) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program).args([test, "--exact", "--ignored", "--nocapture"]).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let peak = text.lines().find_map(|line| line.strip_prefix("peak:")).unwrap_or_else(|| panic!("{text}"));
    peak.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
}

#[test]
#[ignore = "a part of the test of the memory of a step"]
fn two_constitutions() {
    steps(2, true);
}

#[test]
#[ignore = "a part of the test of the memory of a step"]
fn eight_constitutions() {
    steps(8, true);
}

#[test]
#[ignore = "a part of the test of the memory of a step"]
fn two_constitutions_kept() {
    steps(2, false);
}

#[test]
#[ignore = "a part of the test of the memory of a step"]
fn eight_constitutions_kept() {
    steps(8, false);
}

#[test]
#[ignore = "slow: steps of a model of 15 M parameters"]
fn more_constitutions_take_little_more_memory() {
    let [two, eight, two_kept, eight_kept] =
        ["two_constitutions", "eight_constitutions", "two_constitutions_kept", "eight_constitutions_kept"]
            .map(|test| peak_of(&format!("memory::{test}")));
    let told =
        format!("peak of a step, MiB: C = 2 {two:.0}, C = 8 {eight:.0}; all kept {two_kept:.0}, {eight_kept:.0}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes());
    assert!(eight < 1.15 * two && two <= two_kept, "{told}");
}
