//! Row-wise nodes in parts: what comes out is what one attempt makes, and a part that fails costs no other.

use std::collections::BTreeSet;
use std::time::Duration;

use sami::cli;
use serde_json::Value;

use super::endpoint_server::{Act, Server, questions};
use super::resume::PIPELINE;
use super::sandbox::{Output, Sandbox};

/// The pipeline with the rows of each node in so many parts.
pub(crate) fn in_parts(pipeline: &str, generate: &str, score: &str, evaluate: &str) -> String {
    pipeline
        .replace("micro_batch = 6", &format!("micro_batch = 6, shards = {generate}"))
        .replace("micro_batch = 20", &format!("micro_batch = 20, shards = {score}"))
        .replace("micro_batch = 5", &format!("micro_batch = 5, shards = {evaluate}"))
}

fn run(sandbox: &Sandbox, args: &[&str], code: i32) -> Output {
    sandbox.sami(&[&["run", "p.toml", "--json"], args].concat()).exits(code)
}

/// What a run told of parts: node, number of the part, what happened.
pub(crate) fn told(output: &Output) -> Vec<(String, u64, String)> {
    let lines = output.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    lines
        .filter(|line| line["event"] == "node-shard")
        .map(|line| (text(&line["node"]), line["shard"].as_u64().unwrap_or(0), text(&line["state"])))
        .collect()
}

/// Name, artifact and metrics of every node.
fn made(output: &Output) -> Vec<(Value, Value, Value)> {
    let done = output.json();
    let nodes = done["nodes"].as_array().expect("a list");
    nodes.iter().map(|node| (node["name"].clone(), node["artifact"].clone(), node["metrics"].clone())).collect()
}

#[test]
fn parts_make_what_one_attempt_makes() {
    for pipeline in [PIPELINE.to_owned(), PIPELINE.replace("temperature = 1.0", "temperature = 0.0")] {
        let one = run(&Sandbox::with(&pipeline), &[], 0);
        let sandbox = Sandbox::with(&in_parts(&pipeline, "3", "2", "4"));
        let output = run(&sandbox, &["-j", "2"], 0);
        assert_eq!(made(&output), made(&one));
        let done: BTreeSet<_> = told(&output).into_iter().filter(|(.., state)| state == "done").collect();
        let count = |node: &str| done.iter().filter(|(name, ..)| name == node).count();
        assert_eq!((count("generate"), count("score"), count("evaluate")), (3, 2, 4));
        sandbox.verify();
        // Into how many parts a node is split makes nothing stale.
        sandbox.write("p.toml", &pipeline);
        assert_eq!(sandbox.run(&[], 0).ran, 0);
        assert!(sandbox.files("cache/partial").is_empty() && sandbox.files("cache/tmp").is_empty());
    }
}

#[test]
fn a_part_that_dies_is_made_again_alone() {
    let whole = run(&Sandbox::with(PIPELINE), &[], 0);
    let split = in_parts(PIPELINE, "3, retries = 4", "1", "1");
    let sandbox = Sandbox::with(&split);
    sandbox.sami(&["run", "p.toml", "base", "constitutions"]).exits(0);
    // Each worker is killed when it has kept twice what it finished; what it kept is not computed again.
    let mut command = sandbox.command(&["run", "p.toml", "generate", "--json", "-j", "1"]);
    let output = Output::from(command.env("SAMI_FAULT", "kill:batch:2").output().expect("it starts")).exits(0);
    let told = told(&output);
    let count = |state: &str| told.iter().filter(|(.., told)| told == state).count();
    assert!(count("again") >= 3, "{told:?}");
    assert_eq!((count("done"), count("started")), (3, 3 + count("again")));
    let log = sandbox.sami(&["logs", "generate"]).exits(0).stdout;
    assert!(log.contains("== shard 3, attempt") && log.contains("== all shards"), "{log}");
    let one = sandbox.sami(&["logs", "generate", "--shard", "2"]).exits(0).stdout;
    assert!(one.contains("== shard 2") && !one.contains("== shard 1") && !one.contains("== all"), "{one}");
    let none = sandbox.sami(&["logs", "generate", "--shard", "4"]).exits(2).stderr;
    assert!(none.contains("there are logs of shards 1, 2, 3"), "{none}");
    let done = run(&sandbox, &[], 0);
    assert_eq!(done.done().results(), whole.done().results());
    sandbox.verify();
}

#[test]
fn rows_that_are_done_stay_done_whatever_the_number_of_parts() {
    let one = run(&Sandbox::with(PIPELINE), &[], 0);
    let sandbox = Sandbox::with(&in_parts(PIPELINE, "3", "1", "1"));
    sandbox.sami(&["run", "p.toml", "base", "constitutions"]).exits(0);
    let mut command = sandbox.command(&["run", "p.toml", "--json", "-j", "1"]);
    let output = Output::from(command.env("SAMI_FAULT", "kill:batch:2").output().expect("it starts")).exits(1);
    let failed = told(&output);
    assert_eq!(failed.last().map(|(_, _, state)| state.as_str()), Some("failed"), "{failed:?}");
    assert!(output.stderr.contains("shard 1 of 3: the worker crashed"), "{}", output.stderr);
    sandbox.write("p.toml", &in_parts(PIPELINE, "2", "1", "1"));
    let output = run(&sandbox, &[], 0);
    assert_eq!(output.done().results(), one.done().results());
    let metrics = &made(&output).into_iter().find(|(name, ..)| name == "generate").expect("a node").2;
    assert!(metrics["rows_reused"].as_u64().is_some_and(|rows| rows > 0), "{metrics}");
}

#[test]
fn what_cannot_be_is_refused_before_anything_starts_and_what_is_too_much_is_cut() {
    for (shards, line, what) in [
        ("0", "micro_batch = 6", "give 1 or more, or \"auto\""),
        ("\"many\"", "micro_batch = 6", "a number, or \"auto\""),
        ("-1", "micro_batch = 6", "a number, or \"auto\""),
    ] {
        let sandbox = Sandbox::with(&PIPELINE.replace(line, &format!("{line}, shards = {shards}")));
        let output = sandbox.sami(&["run", "p.toml"]).exits(i32::from(cli::USAGE));
        assert!(output.stderr.contains(what), "{}", output.stderr);
        assert!(!sandbox.path("cache").exists());
    }
    let training = PIPELINE.replace("steps = 9", "steps = 9\nrun = { shards = 2 }");
    let output = Sandbox::with(&training).sami(&["run", "p.toml"]).exits(i32::from(cli::USAGE));
    assert!(output.stderr.contains("of this kind there are no rows to share out"), "{}", output.stderr);

    let server = Server::start(|call| Act::Late(Duration::ZERO, format!("said {}", call.user())));
    let pipeline = questions(&server.model("voice", ""), 3) + "temperature = 1.0\nrun = { shards = 64 }\n";
    let sandbox = Sandbox::with(&pipeline);
    let output = run(&sandbox, &[], 0);
    assert!(
        output.stderr.contains("`shards = 64` is more than there are rows: 3 rows are 3 shards"),
        "{}",
        output.stderr
    );
    assert_eq!(told(&output).iter().filter(|(.., state)| state == "done").count(), 3);
    // Alone on this machine, and no longer than a moment: one worker does.
    sandbox.write("p.toml", &pipeline.replace("shards = 64", "shards = \"auto\"").replace("1.0", "0.5"));
    assert!(told(&run(&sandbox, &[], 0)).is_empty());
}

#[test]
fn parts_make_no_call_twice_and_none_beyond_the_budget() {
    let server = Server::start(|call| Act::Late(Duration::from_millis(5), format!("said {}", call.user())));
    let pipeline = |shards: usize| {
        let model = server.model("voice", "concurrency = 2\nprice = { input = 1e6, output = 2e6 }");
        questions(&model, 12) + &format!("temperature = 1.0\nrun = {{ shards = {shards} }}\n")
    };
    let one = run(&Sandbox::with(&pipeline(1)), &[], 0);
    let calls = server.calls().len();
    let sandbox = Sandbox::with(&pipeline(3));
    let output = run(&sandbox, &["-j", "3"], 0);
    assert_eq!(made(&output), made(&one), "calls, tokens and cost, too");
    assert_eq!(server.calls().len(), 2 * calls);

    // Every other request fails once, so that the calls are more than was estimated.
    let busy = Server::start(|call| match call.number % 2 {
        0 => Act::error(503, "busy"),
        _ => Act::Late(Duration::ZERO, format!("said {}", call.user())),
    });
    let text = questions(&busy.model("voice", "concurrency = 4"), 12) + "temperature = 1.0\nrun = { shards = 3 }\n";
    let sandbox = Sandbox::with(&text);
    let output = run(&sandbox, &["-j", "3", "--budget", "calls=30"], i32::from(cli::BUDGET));
    assert!(busy.calls().len() <= 30, "{}: {}", busy.calls().len(), output.stderr);
    assert!(busy.calls().len() >= 28, "what a part leaves others have: {}", busy.calls().len());
    assert!(output.stderr.contains("of 30 calls are used"), "{}", output.stderr);
    assert_eq!(output.done().names("skipped"), ["generate"]);
    let done = sandbox.run(&["-j", "3", "--budget", "calls=60"], 0);
    assert_eq!(done.names("ran"), ["generate"]);
    sandbox.verify();
}
