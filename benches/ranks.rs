//! Training on several ranks against one with as many threads.
//!
//! `cargo bench --bench ranks -- [CORES]` (default 2): some steps of SAMI on a small random model, computed by one process
//! with so many threads, without ranks; the same in parts (`ranks = 1`); and by so many ranks with a thread each. For each:
//! seconds a step, CPU seconds a step of all ranks, and bytes that all ranks sent a step. The weights of the last two must be
//! the same to the bit, and are compared.
//!
//! `cargo bench --features cuda --bench ranks -- [GPUS] cuda`: one process on a GPU, and so many ranks with a GPU each, whose
//! gradients are added up by NCCL, or come through the hosts.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use sami::collective::{Meeting, Task, Team};
use sami::env;
use sami::lm::loss::{LengthNorm, Sides};
use sami::lm::optimizer::{OptimizerName, OptimizerSettings};
use sami::lm::train::{Example, Objective, TrainSettings, Trainer};
use sami::lm::{Config, Model, Sequence, device};
use serde_json::{Value, json};

#[path = "common/cpu.rs"]
mod cpu;

/// Queries of a step, of two constitutions each.
const QUERIES: usize = 32;
/// Steps that are measured, after one that is not.
const STEPS: u64 = 3;
/// Tokens of a prompt and of a response.
const TOKENS: (usize, usize) = (60, 40);

fn config() -> Config {
    Config {
        vocab_size: 4096,
        hidden_size: 256,
        intermediate_size: 688,
        num_hidden_layers: 6,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 32,
        max_position_embeddings: 256,
        ..Config::default()
    }
}

/// Numbers that look like chance, and are the same everywhere.
fn tokens(count: usize, seed: usize) -> impl Iterator<Item = u32> {
    (0..count).map(move |at| 3 + ((at * 7919 + seed * 104_729) % 4001) as u32)
}

fn examples() -> Vec<Example> {
    let query = |query: usize| {
        let (prompt, response) = TOKENS;
        let sequence = |cell: usize| {
            // Of four lengths, as responses are.
            let response = response - 8 * (query % 4);
            let ids = tokens(prompt, 2 * query + cell / 2).chain(tokens(response, 1000 + 2 * query + cell % 2));
            Sequence { ids: ids.collect(), prompt }
        };
        Example { id: format!("query {query}"), sequences: (0..4).map(sequence).collect() }
    };
    (0..QUERIES).map(query).collect()
}

/// Trains as a rank of a team, or alone, and says how that went.
fn train(team: Option<Team>, in_parts: bool, on: &str) -> Value {
    let model = Model::random(config(), 7, &device(on).expect("is there")).expect("makes");
    let objective = Objective::Sami { sides: Sides::Both, length_norm: LengthNorm::Mean };
    let optimizer = OptimizerSettings::new(OptimizerName::AdamW, 1e-4);
    let settings = TrainSettings { batch: QUERIES, steps: STEPS + 1, ..TrainSettings::new(objective, optimizer) };
    let weights: BTreeMap<_, _> = model.weights().clone();
    let mut trainer = Trainer::of_weights(config(), weights, None, examples(), settings).expect("gets ready");
    if in_parts {
        trainer.join(team).expect("joins");
    }
    let way = trainer.gradients_way().map(str::to_owned);
    trainer.step().expect("steps");
    let (began, before, sent) = (Instant::now(), cpu::seconds(libc::RUSAGE_SELF), trainer.sent());
    while !trainer.done() {
        trainer.step().expect("steps");
    }
    let (seconds, used) = (began.elapsed().as_secs_f64(), cpu::seconds(libc::RUSAGE_SELF) - before);
    let sent = trainer.sent() - sent;
    let folder = tempfile::tempdir().expect("a folder");
    trainer.save(folder.path()).expect("saves");
    let weights = fs_err::read(folder.path().join("model.safetensors")).expect("there");
    trainer.part().expect("all are done");
    json!({
        "seconds": seconds / STEPS as f64,
        "cpu": used / STEPS as f64,
        "sent": sent as f64 / STEPS as f64,
        "weights": blake3::hash(&weights).to_hex().to_string(),
        "loss": trainer.records().last().map(|record| record.loss),
        "way": way,
    })
}

/// Starts a process that trains on a device: as a rank of so many, who meet in a folder, or alone.
fn start(place: Option<(usize, usize, &Path)>, in_parts: bool, on: &str, threads: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("has a file"));
    command.args(["train", if in_parts { "in parts" } else { "at once" }, on]);
    if let Some((rank, ranks, folder)) = place {
        command.args([rank.to_string(), ranks.to_string()]).arg(folder);
    }
    command.env("RAYON_NUM_THREADS", threads.to_string()).stdout(Stdio::piped());
    command
}

/// What so many ranks come to, of which each is started by `start`.
fn together(ranks: usize, start: impl Fn((usize, usize, &Path)) -> Command) -> Vec<Value> {
    let folder = tempfile::tempdir().expect("a folder");
    let children = (0..ranks).map(|rank| start((rank, ranks, folder.path())).spawn().expect("it starts"));
    children.collect::<Vec<_>>().into_iter().map(result).collect()
}

fn result(child: Child) -> Value {
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "a rank failed");
    serde_json::from_slice(&output.stdout).expect("is JSON")
}

/// As a process that [`start`] started.
#[expect(clippy::print_stdout, reason = "this is what a benchmark is for")]
fn rank(arguments: &[String]) {
    let team = match arguments {
        [_, _, _, rank, ranks, folder] => {
            let number = |text: &String| text.parse().expect("a number");
            let task = Task { rank: number(rank), ranks: number(ranks), step: "bench".to_owned() };
            let meeting = Meeting::new(task.rank, task.ranks, "a benchmark".to_owned());
            Some(task.meet(Path::new(folder), &meeting).expect("meets"))
        }
        _ => None,
    };
    println!("{}", train(team, arguments[1] == "in parts", &arguments[2]));
}

#[expect(clippy::print_stdout, reason = "this is what a benchmark is for")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if arguments.first().is_some_and(|argument| argument == "train") {
        return rank(&arguments);
    }
    let cores: usize = arguments.first().map_or(2, |cores| cores.parse().expect("a number of cores"));
    let parameters = config().parameters();
    println!("{parameters} weights, {QUERIES} queries of 4 sequences a step, {cores} cores or GPUs");
    println!("{:24} {:>10} {:>12} {:>14}", "", "s a step", "CPU s a step", "bytes a step");
    let show = |what: &str, of: &[Value]| {
        let sum = |name: &str| of.iter().filter_map(|one| one[name].as_f64()).sum::<f64>();
        let seconds = of.iter().filter_map(|one| one["seconds"].as_f64()).fold(0.0, f64::max);
        println!("{what:24} {seconds:>10.3} {:>12.3} {:>14.0}", sum("cpu"), sum("sent"));
    };
    let alone = |in_parts, on: &str| result(start(None, in_parts, on, cores).spawn().expect("it starts"));
    if arguments.get(1).is_some_and(|on| on == "cuda") {
        show("1 process, 1 GPU", &[alone(false, "cuda:0")]);
        for (setting, words) in [("", "NCCL"), ("off", "hosts")] {
            let ranks = together(cores, |place| {
                let mut command = start(Some(place), true, &format!("cuda:{}", place.0), 1);
                command.env(env::RANKS_NCCL.name, setting);
                command
            });
            show(&format!("{cores} GPUs, {words}"), &ranks);
            println!("{}", ranks[0]["way"].as_str().unwrap_or("there is one way"));
        }
        return;
    }
    show(&format!("1 process, {cores} threads"), &[alone(false, "cpu")]);
    let parts = alone(true, "cpu");
    show("the same, in parts", std::slice::from_ref(&parts));
    let ranks = together(cores, |place| start(Some(place), true, "cpu", 1));
    show(&format!("{cores} ranks, a thread each"), &ranks);
    assert!(ranks.iter().all(|one| one["weights"] == parts["weights"]), "the weights differ: {ranks:?} {parts}");
    println!("the weights of the last two are the same to the bit");
}
