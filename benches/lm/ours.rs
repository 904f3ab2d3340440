//! Our side of a case: a process of its own, so that its memory can be measured.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use sami::lm::logprobs::response_logprobs;
use sami::lm::loss::{LengthNorm, Sides};
use sami::lm::optimizer::{OptimizerName, OptimizerSettings};
use sami::lm::sampling::sample;
use sami::lm::train::{Example, Objective, TrainSettings, Trainer};
use sami::lm::{Config, Device, Files, Model, Prompt, SamplingSettings, Sequence, Tokenizer, TokenizerKind};
use serde_json::{Value, json};

use crate::cases::{LEARNING_RATE, NEW_TOKENS, Shape};

type Failure = Box<dyn std::error::Error>;

/// Writes a model of random weights into a directory.
pub(crate) fn make_model(shape: Shape, directory: &Path) -> Result<(), Failure> {
    fs_err::create_dir_all(directory)?;
    fs_err::write(directory.join("config.json"), shape.config().to_string())?;
    let config = Config::load(&files(directory, &["config.json"]))?;
    Model::random(config, 1, &Device::Cpu)?.save(directory)?;
    Ok(())
}

fn files(directory: &Path, names: &[&str]) -> Files {
    names.iter().map(|name| ((*name).to_owned(), directory.join(name))).collect()
}

fn tokens(of: &Value) -> Vec<u32> {
    of.as_array().into_iter().flatten().filter_map(Value::as_u64).map(|token| token as u32).collect()
}

fn examples(work: &Value) -> Vec<Example> {
    let examples = work["examples"].as_array().into_iter().flatten();
    let sequence =
        |of: &Value| Sequence { ids: tokens(&of["ids"]), prompt: of["prompt"].as_u64().unwrap_or_default() as usize };
    let example = |(index, of): (usize, &Value)| Example {
        id: index.to_string(),
        sequences: of.as_array().into_iter().flatten().map(sequence).collect(),
    };
    examples.enumerate().map(example).collect()
}

/// Does the work of the file once for each line of standard input; prints seconds, results, and at the end the peak of memory.
pub(crate) fn measure(work: &Path) -> Result<(), Failure> {
    let work: Value = serde_json::from_slice(&fs_err::read(work)?)?;
    let model = Path::new(work["model"].as_str().unwrap_or_default());
    let files = files(model, &["config.json", "generation_config.json", "model.safetensors"]);
    let mut once = job(&work, &files)?;
    let mut out = std::io::stdout();
    let result = once()?;
    writeln!(out, "{}", json!({"ready": "sami", "result": result}))?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        let result = once()?;
        writeln!(out, "{}", json!({"seconds": start.elapsed().as_secs_f64(), "result": result}))?;
    }
    writeln!(out, "{}", json!({"peak_kib": peak_kib()}))?;
    Ok(())
}

/// The largest resident set of this process so far; `getrusage` would count the parent's.
fn peak_kib() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

type Job = Box<dyn FnMut() -> Result<Value, Failure>>;

fn job(work: &Value, files: &Files) -> Result<Job, Failure> {
    let examples = examples(work);
    match work["kind"].as_str() {
        Some("score") => {
            let model = Model::load(files, &Device::Cpu)?;
            let sequences: Vec<Sequence> = examples.into_iter().flat_map(|example| example.sequences).collect();
            Ok(Box::new(move || {
                let logprobs = response_logprobs(&model, &sequences)?;
                Ok(json!(logprobs.iter().flatten().map(|logprob| f64::from(*logprob)).sum::<f64>()))
            }))
        }
        Some("sample") => sampling(work, files),
        kind => {
            let objective = match kind {
                Some("text") => Objective::Likelihood,
                _ => Objective::Sami { sides: Sides::Both, length_norm: LengthNorm::Mean },
            };
            let optimizer = OptimizerSettings::new(OptimizerName::AdamW, LEARNING_RATE);
            let settings = TrainSettings {
                batch: examples.len(),
                steps: 1000,
                clip: 0.0,
                activation_checkpointing: Some(work["checkpointed"] == true),
                ..TrainSettings::new(objective, optimizer)
            };
            let mut trainer = Trainer::new(files, None, examples, settings, &Device::Cpu)?;
            Ok(Box::new(move || Ok(json!(trainer.step()?.loss))))
        }
    }
}

fn sampling(work: &Value, files: &Files) -> Result<Job, Failure> {
    let mut config = Config::load(files)?;
    // Random weights end a response anywhere; all are to be of one length.
    config.eos_token_ids.clear();
    let model = Model::frozen(config.clone(), sami::lm::weights::load(files, &config, &Device::Cpu)?)?;
    let tokenizer = Tokenizer::train(TokenizerKind::Word, ["one two three"], 16)?;
    let prefix = tokens(&work["prefix"]);
    let prompt = |(row, own): (usize, &Value)| Prompt { ids: [&prefix[..], &tokens(own)].concat(), seed: row as u64 };
    let prompts: Vec<Prompt> = work["prompts"].as_array().into_iter().flatten().enumerate().map(prompt).collect();
    Ok(Box::new(move || {
        let responses = sample(&model, &tokenizer, &prompts, &SamplingSettings::greedy(NEW_TOKENS))?;
        Ok(json!(responses.into_iter().map(|response| response.ids).collect::<Vec<_>>()))
    }))
}
