//! `run --budget`: what would pass it does not start, what reaches it stops, and no call is made beyond it.

use std::time::Duration;

use sami::cli;

use super::endpoint_server::{Act, Server, questions};
use super::sandbox::Sandbox;

const DONE: i32 = cli::DONE as i32;
const BUDGET: i32 = cli::BUDGET as i32;
const USAGE: i32 = cli::USAGE as i32;
const CALLS: usize = 24;

/// Twelve queries under two constitutions each, answered over HTTP.
fn pipeline(model: &str) -> String {
    questions(model, 12)
        + r#"temperature = 1.0
[nodes.after]
kind = "command"
program = "sh"
args = ["-c", "wc -l < {input.rows}/rows.jsonl > out"]
inputs = { rows = "generate" }
[nodes.apart]
kind = "command"
program = "sh"
args = ["-c", "echo > out"]
"#
}

fn echo() -> Server {
    Server::start(|call| Act::Late(Duration::ZERO, format!("said {}", call.user())))
}

#[test]
fn a_node_that_would_make_too_many_calls_makes_none() {
    let server = echo();
    let sandbox = Sandbox::with(&pipeline(&server.model("voice", "concurrency = 4")));
    let output = sandbox.sami(&["run", "p.toml", "--budget", "calls=23", "--json"]).exits(BUDGET);
    let done = output.done();
    // What needs no calls is done.
    assert_eq!(done.names("ran"), ["constitutions", "apart"]);
    assert_eq!((done.names("skipped"), server.calls().len()), (vec!["generate", "after"], 0));
    assert!(output.stderr.contains("error[cli::over-budget]"), "{}", output.stderr);
    let told = "generate did not start: it needs about 24 calls, and 23 of 23 calls are left";
    assert!(output.stderr.contains(told), "{}", output.stderr);
    let done = sandbox.run(&["--budget", "calls=24, hours=1"], DONE);
    assert_eq!((done.ran, server.calls().len()), (2, CALLS));
    sandbox.verify();
}

#[test]
fn no_call_is_made_beyond_the_budget_and_the_next_run_makes_the_rest() {
    // Every other request fails once, so that the calls are more than was estimated.
    let server = Server::start(|call| {
        if call.number % 2 == 0 {
            Act::error(503, "busy")
        } else {
            Act::Late(Duration::ZERO, format!("said {}", call.user()))
        }
    });
    let sandbox = Sandbox::with(&pipeline(&server.model("voice", "concurrency = 4")));
    let output = sandbox.sami(&["run", "p.toml", "--budget", "calls=30", "--json"]).exits(BUDGET);
    assert_eq!(server.calls().len(), 30, "{}", output.stderr);
    assert!(output.stderr.contains("30 of 30 calls are used"), "{}", output.stderr);
    assert_eq!(output.done().names("skipped"), ["generate", "after"]);
    // What was answered is remembered: fewer are needed now than the node has questions.
    let done = sandbox.run(&["--budget", "calls=60"], DONE);
    assert_eq!(done.names("ran"), ["generate", "after"]);
    let answered: usize = server.calls().iter().filter(|call| call.number % 2 == 1).count();
    assert_eq!(answered, CALLS);
}

#[test]
fn an_attempt_stops_when_its_time_is_up() {
    let sandbox = Sandbox::with(
        r#"
        [nodes.long]
        kind = "command"
        program = "sh"
        args = ["-c", "sleep 60; echo > out"]
        [nodes.next]
        kind = "command"
        program = "sh"
        args = ["-c", "echo > out"]
        inputs = { long = "long" }
        "#,
    );
    let began = std::time::Instant::now();
    // A second and a half.
    let output = sandbox.sami(&["run", "p.toml", "--budget", "cpu-hours=0.000417"]).exits(BUDGET);
    assert!(began.elapsed() < Duration::from_secs(30) && began.elapsed() > Duration::from_millis(1400));
    assert!(output.stderr.contains("cpu-hours are used"), "{}", output.stderr);
    sandbox.sami(&["run", "p.toml", "--budget", "hours=0"]).exits(BUDGET);
    sandbox.verify();
}

#[test]
fn what_is_typed_wrong_stops_before_anything_starts() {
    let sandbox = Sandbox::with("[nodes.a]\nkind = \"command\"\nprogram = \"true\"\n");
    for (typed, told) in [
        ("gpu-hour=4", "perhaps `gpu-hours` is meant"),
        ("disk=200", "give a size with its unit"),
        ("calls=few", "give a whole number"),
    ] {
        let output = sandbox.sami(&["run", "p.toml", "--budget", typed]).exits(USAGE);
        assert!(output.stderr.contains(told) && output.stderr.contains("exec::bad-budget"), "{}", output.stderr);
    }
    assert!(!sandbox.path("cache").exists());
}
