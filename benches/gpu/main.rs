//! The language model on a GPU: its numbers against the CPU's, and its rates against what the GPU can do at most.
//!
//! `cargo bench --bench gpu -- [--device D] [--shape tiny|1b|7b] [--dtype bf16|f32] [--model DIR]` prints a table. Weights
//! are random and made on the device; `benches/gpu.sh` builds it, takes it to a machine with a GPU, and puts PyTorch with
//! transformers beside it. `--model` keeps the small model that the numbers are compared on, with what it gave, for that.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Tensor};
use sami::lm::logprobs::response_logprobs;
use sami::lm::optimizer::{OptimizerName, OptimizerSettings};
use sami::lm::sampling::sample;
use sami::lm::train::{Compute, Example, Objective, TrainSettings, Trainer};
use sami::lm::{
    Config, Device, Family, Model, Prompt, SamplingSettings, Sequence, Tokenizer, TokenizerKind, device, driver,
};
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

/// What is measured on a shape.
struct Case {
    config: Config,
    /// Rows, tokens of a prompt, new tokens.
    sample: (usize, usize, usize),
    /// Sequences, tokens of a prompt, tokens of a response.
    score: (usize, usize, usize),
    /// Texts in a step, tokens of each.
    train: (usize, usize),
}

fn config(width: usize, layers: usize, heads: usize, kv_heads: usize, inner: usize, vocabulary: usize) -> Config {
    Config {
        model_type: Family::Llama,
        vocab_size: vocabulary,
        hidden_size: width,
        intermediate_size: inner,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: width / heads,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 4096,
        eos_token_ids: Vec::new(),
        ..Config::default()
    }
}

/// Llama 3.2 1B's sizes with a smaller vocabulary, and Mistral 7B's.
fn case(shape: &str) -> Result<Case, Failure> {
    Ok(match shape {
        "tiny" => {
            Case { config: config(64, 2, 4, 2, 128, 512), sample: (4, 16, 8), score: (4, 16, 16), train: (2, 32) }
        }
        "1b" => Case {
            config: config(2048, 16, 32, 8, 8192, 32_000),
            sample: (128, 128, 64),
            score: (16, 1024, 1024),
            train: (8, 2048),
        },
        "7b" => Case {
            config: config(4096, 32, 32, 8, 14_336, 32_000),
            sample: (128, 128, 64),
            score: (16, 1024, 1024),
            train: (4, 2048),
        },
        other => return Err(format!("no shape `{other}`; shapes are tiny, 1b and 7b").into()),
    })
}

fn tokens(count: usize, seed: usize, vocabulary: usize) -> Vec<u32> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % vocabulary
    };
    (0..count).map(|_| next() as u32).collect()
}

fn sequences(count: usize, prompt: usize, response: usize, vocabulary: usize) -> Vec<Sequence> {
    (0..count).map(|row| Sequence { ids: tokens(prompt + response, row, vocabulary), prompt }).collect()
}

/// Random weights, made on the device: as a model would have them before training.
fn weights(config: &Config, device: &Device, dtype: DType) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let make = |(name, shape): (String, Vec<usize>)| {
        let tensor = match shape.as_slice() {
            [_, inputs] => {
                Tensor::randn(0f32, (*inputs as f32).sqrt().recip(), shape.as_slice(), device)?.to_dtype(dtype)?
            }
            _ => Tensor::ones(shape.as_slice(), dtype, device)?,
        };
        Ok((name, tensor))
    };
    config.tensors().into_iter().map(make).collect()
}

struct Bench {
    device: Device,
    dtype: DType,
    /// Bytes a second that a copy moves, both ways counted.
    bandwidth: f64,
    /// Operations a second of a large product in the type.
    rate: f64,
}

impl Bench {
    fn new(device: Device, dtype: DType) -> Result<Self, Failure> {
        let (size, side, times) = if device.is_cpu() { (1 << 24, 512, 2) } else { (1 << 30, 8192, 10) };
        let block = Tensor::zeros(size, DType::U8, &device)?;
        let seconds = timed(&device, times, || {
            block.copy()?;
            Ok(())
        })?;
        let a = Tensor::randn(0f32, 1.0, (side, side), &device)?.to_dtype(dtype)?;
        let product = timed(&device, times, || {
            a.matmul(&a)?;
            Ok(())
        })?;
        Ok(Self { bandwidth: 2.0 * size as f64 / seconds, rate: 2.0 * (side as f64).powi(3) / product, device, dtype })
    }

    /// A line of the table: what, tokens a second, seconds, the share of what the GPU could do at most.
    fn line(out: &mut impl Write, what: &str, tokens: usize, seconds: f64, least: f64) -> std::io::Result<()> {
        writeln!(out, "| {what} | {:.0} | {seconds:.3} | {:.1}% |", tokens as f64 / seconds, 100.0 * least / seconds)
    }

    fn sample(&self, case: &Case, out: &mut impl Write) -> Result<(), Failure> {
        let (config, (rows, prompt, new)) = (&case.config, case.sample);
        let model = Model::new(config.clone(), weights(config, &self.device, self.dtype)?)?;
        // As `load_to_use` does it.
        let model = if self.device.is_cpu() { model } else { model.joined()? };
        let tokenizer = Tokenizer::train(TokenizerKind::Word, ["one two three"], 16)?;
        let prompt_of = |row| Prompt { ids: tokens(prompt, row, config.vocab_size), seed: row as u64 };
        let prompts: Vec<Prompt> = (0..rows).map(prompt_of).collect();
        let once = |new: usize| {
            timed(&self.device, 1, || {
                sample(&model, &tokenizer, &prompts, &SamplingSettings::greedy(new))?;
                Ok(())
            })
        };
        once(2)?;
        // What the first token costs goes with the prompts.
        let seconds = (once(new + 1)? - once(1)?).max(1e-9);
        let bytes = self.dtype.size_in_bytes() as f64;
        let kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
        let step = config.parameters() as f64 * bytes + (rows * (prompt + new / 2) * kept) as f64 * bytes;
        let what = format!("sample {new} tokens, {rows} rows after {prompt}");
        Self::line(out, &what, rows * new, seconds, new as f64 * step / (self.bandwidth))?;
        let scored = sequences(case.score.0, case.score.1, case.score.2, config.vocab_size);
        let score = || {
            timed(&self.device, 1, || {
                response_logprobs(&model, &scored)?;
                Ok(())
            })
        };
        score()?;
        let count = case.score.0 * (case.score.1 + case.score.2);
        let least = 2.0 * config.parameters() as f64 * count as f64 / self.rate;
        let what = format!("score {} of {} + {} tokens", case.score.0, case.score.1, case.score.2);
        Self::line(out, &what, count, score()?, least)?;
        Ok(())
    }

    fn train(&self, case: &Case, out: &mut impl Write) -> Result<(), Failure> {
        let (config, (rows, length)) = (&case.config, case.train);
        let example = |row: usize| Example {
            id: row.to_string(),
            sequences: vec![Sequence { ids: tokens(length, row, config.vocab_size), prompt: 1 }],
        };
        let settings = TrainSettings {
            batch: rows,
            steps: 100,
            micro_batch: Some(rows),
            activation_checkpointing: Some(true),
            compute: if self.dtype == DType::BF16 { Compute::Bf16 } else { Compute::F32 },
            ..TrainSettings::new(Objective::Likelihood, OptimizerSettings::new(OptimizerName::AdamW, 1e-5))
        };
        // What the optimiser changes is f32; the passes compute in a copy.
        let weights = weights(config, &self.device, DType::F32)?;
        let examples = (0..rows).map(example).collect();
        let mut trainer = Trainer::of_weights(config.clone(), weights, None, examples, settings)?;
        let mut step = || {
            timed(&self.device, 1, || {
                trainer.step()?;
                Ok(())
            })
        };
        step()?;
        // Forward, forward again, and twice as much back.
        let least = 8.0 * config.parameters() as f64 * (rows * length) as f64 / self.rate;
        Self::line(out, &format!("train on {rows} × {length}, layers made again"), rows * length, step()?, least)?;
        Ok(())
    }
}

/// Seconds of one of several times, everything done at the end.
fn timed(device: &Device, times: usize, mut work: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    work()?;
    device.synchronize()?;
    let start = Instant::now();
    (0..times).try_for_each(|_| work())?;
    device.synchronize()?;
    Ok(start.elapsed().as_secs_f64() / times as f64)
}

/// Largest difference of log-probabilities, and relative ones of losses and gradients' norms, from the CPU's in f32.
fn check(device: &Device, keep: Option<&Path>, out: &mut impl Write) -> Result<(), Failure> {
    let config = config(64, 2, 4, 2, 128, 512);
    let here = Model::random(config.clone(), 1, &Device::Cpu)?;
    let moved: BTreeMap<String, Tensor> = here
        .weights()
        .iter()
        .map(|(name, weight)| Ok((name.clone(), weight.to_device(device)?)))
        .collect::<candle_core::Result<_>>()?;
    let there = Model::new(config.clone(), moved.clone())?;
    let scored = sequences(6, 20, 30, config.vocab_size);
    let (ours, theirs) = (response_logprobs(&here, &scored)?, response_logprobs(&there, &scored)?);
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    let apart = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let train = |weights: BTreeMap<String, Tensor>| -> Result<(f64, f64), Failure> {
        let examples = scored.iter().enumerate();
        let examples = examples.map(|(id, one)| Example { id: id.to_string(), sequences: vec![one.clone()] }).collect();
        let settings = TrainSettings {
            batch: 6,
            ..TrainSettings::new(Objective::Likelihood, OptimizerSettings::new(OptimizerName::AdamW, 1e-3))
        };
        let mut trainer = Trainer::of_weights(config.clone(), weights, None, examples, settings)?;
        trainer.step()?;
        let record = trainer.step()?;
        Ok((record.loss, record.gradient_norm))
    };
    let ((loss, norm), (their_loss, their_norm)) = (train(here.weights().clone())?, train(moved)?);
    writeln!(
        out,
        "numbers against the CPU's, f32: log-probabilities {apart:.1e} apart; after a step, loss {:.1e} and gradient {:.1e} (relative)",
        (their_loss - loss).abs() / loss.abs(),
        (their_norm - norm).abs() / norm.abs()
    )?;
    if let Some(directory) = keep {
        fs_err::create_dir_all(directory)?;
        here.save(directory)?;
        let rows: Vec<_> = scored.iter().map(|one| json!({"ids": one.ids, "prompt": one.prompt})).collect();
        fs_err::write(directory.join("scored.json"), json!({"rows": rows, "logprobs": theirs}).to_string())?;
    }
    Ok(())
}

/// How each of our kernels fared: one that is not used is what the rates below lack.
fn kernels(gpu: &str, out: &mut impl Write) -> Result<(), Failure> {
    for check in device::check_kernels(gpu)? {
        writeln!(out, "kernel {check}")?;
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut settings =
        BTreeMap::from([("--device", "cpu".to_owned()), ("--shape", "tiny".to_owned()), ("--dtype", "f32".to_owned())]);
    let mut keep: Option<PathBuf> = None;
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("`{name}` wants a value"))?;
        match settings.get_mut(name.as_str()) {
            Some(place) => *place = value,
            None if name == "--model" => keep = Some(value.into()),
            None => return Err(format!("no option `{name}`").into()),
        }
    }
    let dtype = match settings["--dtype"].as_str() {
        "bf16" => DType::BF16,
        "f32" => DType::F32,
        other => return Err(format!("no type `{other}`; types are bf16 and f32").into()),
    };
    let device = device::device(&settings["--device"])?;
    let mut out = std::io::stdout();
    for gpu in driver::probe().map(|driver| driver.gpus).unwrap_or_default() {
        writeln!(out, "{}: {}, {:.1} GiB", gpu.device, gpu.name, gpu.memory as f64 / f64::from(1 << 30))?;
    }
    if !device.is_cpu() {
        kernels(&settings["--device"], &mut out)?;
    }
    check(&device, keep.as_deref(), &mut out)?;
    let case = case(&settings["--shape"])?;
    let bench = Bench::new(device, dtype)?;
    writeln!(
        out,
        "at most, measured here: copies {:.2} TB/s, products in {} {:.1} TFLOP/s\n",
        bench.bandwidth / 1e12,
        settings["--dtype"],
        bench.rate / 1e12
    )?;
    writeln!(
        out,
        "| {}, {} | tokens/s | s | of the most |\n|---|---|---|---|",
        settings["--shape"], settings["--dtype"]
    )?;
    bench.sample(&case, &mut out)?;
    bench.train(&case, &mut out)?;
    if let Some(peak) =
        driver::probe().ok().and_then(|driver| driver.gpus.first()?.free.map(|free| driver.gpus[0].memory - free))
    {
        writeln!(out, "\nmemory held at the end: {:.1} GiB", peak as f64 / f64::from(1 << 30))?;
    }
    Ok(())
}
