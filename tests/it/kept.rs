//! Weights that stay in a worker's memory for the next node of the run: loaded once, and what comes out is what fresh workers make.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use sami::env;
use serde_json::Value;

use super::kill::{MOST, children, left_over, signal, start};
use super::resume::PIPELINE;
use super::sandbox::{Done, Output, Sandbox, wait_until};

/// Runs with workers that keep nothing.
fn run_fresh(sandbox: &Sandbox, args: &[&str]) -> Output {
    let mut command = sandbox.command(&[&["run", "p.toml", "--json"], args].concat());
    Output::from(command.env(env::KEEP_WEIGHTS.name, "off").output().expect("it starts")).exits(0)
}

fn run(sandbox: &Sandbox, args: &[&str], code: i32) -> Output {
    sandbox.sami(&[&["run", "p.toml", "--json"], args].concat()).exits(code)
}

/// What a node's attempt used, as its record says.
fn usage(sandbox: &Sandbox, node: &str) -> Value {
    sandbox.sami(&["show", node, "--json"]).exits(0).json()["record"]["usage"].clone()
}

/// How often a node's attempt read weights, and how often they were there.
fn weights(sandbox: &Sandbox, node: &str) -> (u64, u64) {
    let usage = usage(sandbox, node);
    let count = |name: &str| usage[name].as_u64().unwrap_or(0);
    (count("weights_loaded"), count("weights_kept"))
}

/// How often nodes used weights that were there, as events tell it.
fn told(output: &Output) -> BTreeMap<String, u64> {
    let lines = output.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let kept = |line: Value| Some((line["node"].as_str()?.to_owned(), line["weights_kept"].as_u64()?));
    lines.filter(|line| line["event"] == "node-finish").filter_map(kept).collect()
}

/// Name, artifact and metrics of every node.
fn made(output: &Output) -> Vec<(Value, Value, Value)> {
    let done = output.json();
    let nodes = done["nodes"].as_array().expect("a list");
    nodes.iter().map(|node| (node["name"].clone(), node["artifact"].clone(), node["metrics"].clone())).collect()
}

#[test]
fn weights_are_loaded_once_and_nothing_else_changes() {
    for pipeline in [PIPELINE.to_owned(), PIPELINE.replace("temperature = 1.0", "temperature = 0.0")] {
        let (fresh, kept) = (Sandbox::with(&pipeline), Sandbox::with(&pipeline));
        let expected = run_fresh(&fresh, &["-j", "1"]);
        assert_eq!(["generate", "score", "evaluate"].map(|node| weights(&fresh, node)), [(1, 0), (1, 0), (2, 0)]);
        assert!(told(&expected).is_empty());
        let output = run(&kept, &["-j", "1"], 0);
        assert_eq!(made(&output), made(&expected));
        // The base model's are kept beside the training, and evaluated with.
        assert_eq!(["generate", "score", "evaluate"].map(|node| weights(&kept, node)), [(1, 0), (0, 1), (1, 1)]);
        assert_eq!(told(&output), BTreeMap::from([("score".to_owned(), 1), ("evaluate".to_owned(), 1)]));
        // Each attempt's log is its own.
        let log = |node: &str| kept.sami(&["logs", node]).exits(0).stdout;
        let note = "are there from the node before";
        assert_eq!(log("score").matches(note).count(), 1, "{}", log("score"));
        assert!(log("score").contains("done: artifact") && !log("generate").contains(note), "{}", log("generate"));
        assert_eq!(log("generate").matches("done: artifact").count(), 1, "{}", log("generate"));
        assert!(kept.sami(&["show", "score"]).exits(0).stdout.contains("in memory from the node before"));
        // What was used is the attempt's own: nobody computed for as long as both.
        let seconds = |node: &str| usage(&kept, node)["cpu_seconds"].as_f64().expect("measured");
        assert!(seconds("score") >= 0.0 && seconds("score") < seconds("generate") + seconds("score") + 1e-9);
        kept.verify();
        assert!(kept.files("cache/partial").is_empty() && kept.files("cache/tmp").is_empty());
    }
}

#[test]
fn weights_make_way_for_a_node_whose_need_is_not_known() {
    let sandbox = Sandbox::with(PIPELINE);
    let (summary, _) = super::gpus::run(&sandbox, Vec::new(), &BTreeMap::new(), None).expect("it runs");
    assert!(summary.ok());
    // They are given to the next node, but not kept beside the training.
    assert_eq!(["generate", "score", "evaluate"].map(|node| weights(&sandbox, node)), [(1, 0), (0, 1), (2, 0)]);
}

#[test]
fn threads_and_parts_are_those_of_each_attempt() {
    let expected = run(&Sandbox::with(PIPELINE), &["-j", "1"], 0);
    let pipeline = PIPELINE
        .replace("micro_batch = 6", "micro_batch = 6, threads = 2, shards = 3")
        .replace("micro_batch = 20", "micro_batch = 20, threads = 1");
    let sandbox = Sandbox::with(&pipeline);
    let output = run(&sandbox, &["-j", "1"], 0);
    assert_eq!(made(&output), made(&expected));
    assert_eq!(weights(&sandbox, "generate"), (1, 2), "each part goes on with the weights of the one before");
    assert_eq!(weights(&sandbox, "score"), (0, 1));
    sandbox.verify();
}

/// Two nodes that use the model of a directory, and a program between them.
const AROUND: &str = r#"
[datasets.questions]
make = { rows = 8, seed = 2, template = '{"query": "q {{ row }}", "text": "rules : be brief . q {{ row }} a : yes no"}' }
[models.m]
MODEL
[nodes.constitutions]
kind = "constitutions"
principles.brief = { definition = "be brief .", antithesis = "be long ." }
[nodes.first]
kind = "generate"
model = "m"
queries = "questions"
constitutions = "constitutions"
prompt = "rules : {{ constitution }} {{ query }} a :"
max_new_tokens = 12
temperature = 1.0
[nodes.between]
kind = "command"
program = "sh"
inputs = { first = "first", rows = "questions" }
output = "dataset"
args = ["-ec", '''PROGRAM
cp {input.rows}/rows.jsonl rows.jsonl''']
[nodes.second]
kind = "generate"
model = "m"
queries = "between"
constitutions = "constitutions"
prompt = "rules : {{ constitution }} {{ query }} a :"
max_new_tokens = 12
temperature = 0.5
"#;
const INIT: &str = "init = { hidden_size = 16, layers = 1, heads = 2, max_positions = 64, seed = 1, tokenizer = { from = \"questions\" } }";

/// A project with that model in `model/`. `{folder}` in the program is the project's directory.
fn around(program: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("make.toml", &AROUND.replace("MODEL", INIT).replace("PROGRAM", "echo"));
    sandbox.sami(&["run", "make.toml", "models.m"]).exits(0);
    sandbox.sami(&["cache", "checkout", "models.m", "model", "--link", "copy"]).exits(0);
    // What is in the cache would be read there.
    fs_err::remove_dir_all(sandbox.path("cache")).expect("is removed");
    let program = program.replace("{folder}", sandbox.path("").display().to_string().trim_end_matches('/'));
    sandbox.write("p.toml", &AROUND.replace("MODEL", "source = \"model\"").replace("PROGRAM", &program));
    // Files that were made just now are not yet relied on.
    std::thread::sleep(Duration::from_millis(50));
    sandbox
}

fn artifact(output: &Output, node: &str) -> String {
    let done = output.done();
    done.nodes.iter().find(|made| made.name == node).and_then(|node| node.artifact.clone()).expect("it ran")
}

#[test]
fn weights_whose_files_were_touched_are_read_again() {
    let calm = around("echo");
    let expected = run(&calm, &["-j", "1"], 0);
    assert_eq!((weights(&calm, "first"), weights(&calm, "second")), ((1, 0), (0, 1)));
    let touched =
        around("cd {folder}/model; cp model.safetensors copy; cat copy > model.safetensors; rm copy; cd - > /dev/null");
    let output = run(&touched, &["-j", "1"], 0);
    assert_eq!((weights(&touched, "first"), weights(&touched, "second")), ((1, 0), (1, 0)));
    assert_eq!(artifact(&output, "second"), artifact(&expected, "second"));
}

#[test]
fn weights_whose_files_hold_something_else_are_an_error_as_ever() {
    let damage =
        "printf '\\377\\377' | dd of={folder}/model/model.safetensors conv=notrunc bs=1 count=2 seek=3000 2>/dev/null";
    for off in ["off", "on"] {
        let sandbox = around(damage);
        let mut command = sandbox.command(&["run", "p.toml", "--json", "-j", "1"]);
        let output = Output::from(command.env(env::KEEP_WEIGHTS.name, off).output().expect("it starts")).exits(1);
        let done = output.done();
        assert_eq!(done.names("failed"), ["second"], "{}", output.stderr);
        assert!(output.stderr.contains("changed"), "{}", output.stderr);
    }
}

/// Starts a run and waits until its worker has nothing to do but to keep weights.
fn idling(sandbox: &Sandbox) -> std::process::Child {
    let child = start(sandbox);
    wait_until("the program between runs", MOST, || sandbox.path("mark").exists());
    wait_until("a worker waits with weights", MOST, || workers(sandbox) == 1);
    child
}

/// Workers that are left with weights, or at such a node.
fn workers(sandbox: &Sandbox) -> usize {
    left_over(sandbox).iter().filter(|line| line.contains("job.json")).count()
}

/// A pipeline that waits between two uses of a model until there is a file `quick`.
fn waiting() -> Sandbox {
    around("touch {folder}/mark; for i in $(seq 1200); do test -e {folder}/quick && break; sleep 0.05; done")
}

#[test]
fn an_idle_worker_dies_with_its_scheduler() {
    let sandbox = waiting();
    let mut child = idling(&sandbox);
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    wait_until("the workers are gone", MOST, || left_over(&sandbox).is_empty());
    // What it was kept for is done by a fresh one.
    sandbox.write("quick", "");
    assert_eq!(sandbox.run(&["-j", "1"], 0).names("ran"), ["between", "second"]);
    assert_eq!(weights(&sandbox, "second"), (1, 0));
    sandbox.verify();
}

#[test]
fn an_idle_worker_is_ended_on_an_interrupt() {
    let sandbox = waiting();
    let child = idling(&sandbox);
    signal("INT", child.id());
    let output: Output = child.wait_with_output().expect("it ends").into();
    let done = output.exits(130).done();
    assert_eq!((done.names("ran"), done.names("skipped")), (vec!["constitutions", "first"], vec!["between", "second"]));
    wait_until("the workers are gone", MOST, || left_over(&sandbox).is_empty());
}

#[test]
fn an_idle_worker_that_someone_kills_is_no_loss() {
    let sandbox = waiting();
    let child = idling(&sandbox);
    let keeps = |process: &&u32| {
        let line = fs_err::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("job.json")
    };
    let workers_of = children(child.id());
    signal("KILL", *workers_of.iter().find(keeps).expect("it idles"));
    // One that is dead and not waited for has no command line.
    wait_until("it is dead", MOST, || workers(&sandbox) == 0);
    sandbox.write("quick", "");
    let output = Output::from(child.wait_with_output().expect("it ends")).exits(0);
    assert_eq!(output.done().ran, 4);
    assert_eq!(weights(&sandbox, "second"), (1, 0));
}

#[test]
fn after_a_failure_there_is_a_fresh_worker() {
    let sandbox = around("echo");
    let text = sandbox.read("p.toml");
    let (begin, _) = text.split_once("[nodes.between]").expect("it has one");
    let (_, second) = text.split_once("[nodes.second]").expect("it has one");
    let second = second.replace("queries = \"between\"", "queries = \"questions\"");
    // No row of it fits the model's positions.
    let long = second.replace("prompt = \"", &format!("prompt = \"{}", "be brief . ".repeat(60)));
    sandbox.write("p.toml", &format!("{begin}[nodes.long]{long}[nodes.third]{second}"));
    let output = run(&sandbox, &["-j", "1", "--keep-going"], 1);
    assert_eq!(output.done().names("failed"), ["long"], "{}", output.stderr);
    assert_eq!((weights(&sandbox, "first"), weights(&sandbox, "third")), ((1, 0), (1, 0)));
}

#[test]
fn a_worker_that_is_killed_in_its_second_attempt_costs_that_one_alone() {
    let expected = run(&Sandbox::with(PIPELINE), &[], 0);
    let sandbox = Sandbox::with(&PIPELINE.replace("micro_batch = 20", "micro_batch = 2, retries = 9"));
    // `generate` keeps rows eight times, `score` then more often than twice.
    let mut command = sandbox.command(&["run", "p.toml", "score", "--json", "-j", "1"]);
    command.stdout(Stdio::piped()).env("SAMI_FAULT", "kill:batch:10");
    let output = Output::from(command.output().expect("it starts")).exits(0);
    let again = output.stdout.lines().filter(|line| line.contains("\"node-fail\"")).count();
    assert!(again > 0, "nothing was killed: {}", output.stdout);
    assert_eq!(weights(&sandbox, "score"), (1, 0), "the next attempt has a fresh worker");
    let done: Done = sandbox.run(&[], 0);
    assert_eq!(done.results(), expected.done().results());
    sandbox.verify();
}
