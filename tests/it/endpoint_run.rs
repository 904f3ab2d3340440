//! Pipelines that speak to endpoints: what is refused before any work, keys, interrupts, and calls that are never made twice.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sami::cli;
use serde_json::Value;

use super::endpoint_server::{Act, Server, questions};
use super::sandbox::{Output, Sandbox};

/// Twelve queries under two constitutions each; `model` is the table of the model that answers.
fn pipeline(model: &str) -> String {
    questions(model, 12) + "system = \"You answer.\"\ntemperature = 1.0\n"
}

const CALLS: usize = 24;
const DONE: i32 = cli::DONE as i32;
const INTERRUPTED: i32 = cli::INTERRUPTED as i32;
const USAGE: i32 = cli::USAGE as i32;

/// A server that repeats what it is told, each answer after a moment.
fn echo(millis: u64) -> Server {
    Server::start(move |call| Act::Late(Duration::from_millis(millis), format!("said {}", call.user())))
}

fn metrics(output: &Output) -> Value {
    let last = output.json();
    let nodes = last["nodes"].as_array().expect("a list");
    nodes.iter().find(|node| node["name"] == "generate").expect("it is there")["metrics"].clone()
}

/// Waits until the server was called so often.
#[track_caller]
fn wait_for(server: &Server, calls: usize) {
    let begin = Instant::now();
    while server.calls().len() < calls {
        assert!(begin.elapsed() < Duration::from_secs(120), "no calls come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Everything that was said to the server, which must all differ.
fn distinct(server: &Server) -> usize {
    let calls = server.calls();
    calls.iter().map(|call| call.body.to_string()).collect::<BTreeSet<_>>().len()
}

#[test]
fn every_call_is_made_once_and_counted() {
    let server = echo(0);
    let sandbox = Sandbox::with(&pipeline(&server.model("voice", "price = { input = 1e6, output = 2e6 }")));
    let output = sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE);
    let found = metrics(&output);
    assert_eq!((server.calls().len(), distinct(&server)), (CALLS, CALLS));
    assert_eq!((&found["calls"], &found["calls_reused"], &found["retries"]), (&24.into(), &0.into(), &0.into()));
    let answered: u64 = found["completion_tokens"].as_u64().expect("a number");
    assert_eq!(found["prompt_tokens"], 240);
    assert!((found["cost"].as_f64().expect("a number") - (240 + 2 * answered) as f64).abs() < 1e-6);
    let call = &server.calls()[0];
    assert_eq!(call.said("system"), Some("You answer."));
    assert!(call.user().contains("question") && call.user().contains("be "), "{}", call.user());
    // How it is called makes nothing stale; and what another node asks in the same words is not asked again.
    let changed = pipeline(&server.model("voice", "concurrency = 9\ntimeout = 7"));
    sandbox.write("p.toml", &changed);
    let done = sandbox.run(&[], DONE);
    assert_eq!((done.ran, server.calls().len()), (0, CALLS));
    sandbox.write("p.toml", &changed.replace("distinct = false", "distinct = false, min_tokens = 0"));
    let output = sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE);
    let found = metrics(&output);
    assert_eq!((&found["calls"], &found["calls_reused"], server.calls().len()), (&0.into(), &24.into(), CALLS));
    // What decides the answers does.
    sandbox.write("p.toml", &changed.replace("concurrency = 9", "extra = { top_k = 3 }"));
    sandbox.run(&[], DONE);
    assert_eq!((server.calls().len(), &server.calls()[CALLS].body["top_k"]), (2 * CALLS, &Value::from(3)));
    sandbox.verify();
}

#[test]
fn killed_at_any_call_and_run_again_makes_the_missing_calls_only() {
    let calm = echo(0);
    let undisturbed = Sandbox::with(&pipeline(&calm.model("voice", "")));
    undisturbed.run(&[], DONE);
    for kill in [1, 2, 7, 13, 23, CALLS] {
        let server = echo(0);
        let sandbox = Sandbox::with(&pipeline(&server.model("voice", "concurrency = 1")));
        // As by `kill -9`, right after an answer was kept.
        let mut command = sandbox.command(&["run", "p.toml", "--json"]);
        let output: Output = command.env("SAMI_FAULT", format!("kill:batch:{kill}")).output().expect("starts").into();
        assert_eq!(output.code, 1, "{}", output.stderr);
        let before = server.calls().len();
        assert_eq!(before, kill, "no call is begun before the answer of the last one is kept");
        let output = sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE);
        let found = metrics(&output);
        assert_eq!(found["calls_reused"], kill, "{found}");
        assert_eq!((server.calls().len(), distinct(&server)), (CALLS, CALLS), "exactly the missing calls");
        let rows = |sandbox: &Sandbox| sandbox.sami(&["cache", "cat", "generate"]).exits(DONE).stdout;
        assert_eq!(rows(&sandbox), rows(&undisturbed));
    }
}

#[test]
fn interrupted_at_any_call_and_run_again_no_call_is_repeated() {
    for (trial, concurrency) in [(3, 1), (5, 4), (11, 4), (17, 3)] {
        let server = echo(40);
        let sandbox = Sandbox::with(&pipeline(&server.model("voice", &format!("concurrency = {concurrency}"))));
        let mut command = sandbox.command(&["run", "p.toml", "--json"]);
        let child = command.stdout(Stdio::piped()).spawn().expect("starts");
        wait_for(&server, trial);
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("there is a `kill`");
        let output: Output = child.wait_with_output().expect("ends").into();
        let output = output.exits(INTERRUPTED);
        let before = server.calls().len();
        assert!(before < CALLS, "{output:?}");
        let output = sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE);
        assert_eq!(metrics(&output)["calls_reused"], before, "calls under way were kept");
        assert_eq!((server.calls().len(), distinct(&server)), (CALLS, CALLS));
    }
}

#[test]
fn killed_in_the_middle_of_calls_it_repeats_those_under_way_at_most() {
    const AT_ONCE: usize = 3;
    for calls in [2, 9, 16] {
        let server = echo(30);
        let sandbox = Sandbox::with(&pipeline(&server.model("voice", &format!("concurrency = {AT_ONCE}"))));
        let mut child = sandbox.command(&["run", "p.toml", "--json"]).stdout(Stdio::null()).spawn().expect("starts");
        wait_for(&server, calls);
        // The worker dies with the scheduler.
        child.kill().expect("it can be killed");
        child.wait().expect("ends");
        let output = sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE);
        let made = server.calls().len();
        assert!((CALLS..=CALLS + AT_ONCE).contains(&made), "{made} calls for {CALLS} answers");
        let reused = metrics(&output)["calls_reused"].as_u64().expect("a number") as usize;
        assert!(reused + AT_ONCE >= calls, "{reused} of {calls} were kept");
        assert_eq!(distinct(&server), CALLS);
    }
}

#[test]
fn a_node_fails_with_what_the_server_said_and_keeps_what_it_has() {
    let server = Server::start(|call| if call.number < 5 { Act::say("fine") } else { Act::error(401, "key expired") });
    let sandbox = Sandbox::with(&pipeline(&server.model("voice", "concurrency = 1")));
    let output = sandbox.sami(&["run", "p.toml"]).exits(1);
    assert!(output.stderr.contains("key expired") && output.stderr.contains("api_key_env"), "{}", output.stderr);
    assert_eq!(server.calls().len(), 6);
    let output = sandbox.sami(&["run", "p.toml"]).exits(1);
    assert_eq!(server.calls().len(), 7, "five answers are kept: {}", output.stderr);
}

#[test]
fn without_its_key_nothing_starts_and_the_key_is_in_no_file() {
    let server = echo(0);
    let sandbox = Sandbox::with(&pipeline(&server.model("voice", "api_key_env = \"ACME_KEY\"")));
    let run = |key: Option<&str>, args: &[&str]| -> Output {
        let mut command = sandbox.command(args);
        if let Some(key) = key {
            command.env("ACME_KEY", key);
        }
        command.output().expect("starts").into()
    };
    let output = run(None, &["run", "p.toml"]).exits(USAGE);
    let says = ["endpoint::no-key", "`ACME_KEY` is not set", "`voice`", "export ACME_KEY="];
    assert!(says.iter().all(|says| output.stderr.contains(says)), "{}", output.stderr);
    assert!(!sandbox.path("cache/runs").read_dir().is_ok_and(|mut runs| runs.next().is_some()), "no run began");
    run(Some("a\nb"), &["run", "p.toml"]).exits(USAGE);
    // Looking is free, with a word about it.
    for args in [["plan", "p.toml"], ["status", "p.toml"], ["check", "p.toml"]] {
        let output = run(None, &args).exits(DONE);
        assert!(output.stderr.contains("warning") && output.stderr.contains("ACME_KEY"), "{args:?} {}", output.stderr);
        assert!(!run(Some("k"), &args).stderr.contains("ACME_KEY"), "{args:?}");
    }
    let key = "sk-very-secret-123";
    let output = run(Some(key), &["run", "p.toml", "--json"]).exits(DONE);
    assert!(!output.stdout.contains(key) && !output.stderr.contains(key));
    let sent = format!("Bearer {key}");
    assert!(server.calls().iter().all(|call| call.header("authorization") == Some(&sent)));
    for file in sandbox.files("cache") {
        let bytes = fs_err::read(&file).expect("reads");
        assert!(!bytes.windows(key.len()).any(|window| window == key.as_bytes()), "{}", file.display());
    }
    // All is fresh: no one is spoken to.
    run(None, &["run", "p.toml"]).exits(DONE);
}

/// Runs `check` on a pipeline; it must refuse it with this id, at this place, in these words.
#[track_caller]
fn refused(text: &str, says: &[&str]) {
    let output = Sandbox::with(text).sami(&["run", "p.toml"]).exits(USAGE);
    for says in says {
        assert!(output.stderr.contains(says), "{says:?} is not in\n{}", output.stderr);
    }
}

#[test]
fn what_is_wrong_with_an_endpoint_is_told_when_the_file_is_read() {
    let with = |more: &str| pipeline(&format!("[models.voice]\nsource = \"openai:tiny\"\n{more}\n"));
    refused(&with("base_url = \"localhost:8080\""), &["pipeline::endpoint", "p.toml:3:12", "http://"]);
    refused(&with("base_url = \"https://me:pw@host/v1\""), &["pipeline::endpoint", "api_key_env"]);
    refused(&with("base_ulr = \"http://a/v1\""), &["pipeline::unknown-key", "endpoint `voice`", "`base_url`"]);
    refused(&with("dtype = \"bf16\""), &["pipeline::unknown-key", "`dtype`"]);
    refused(&with("concurrency = 0"), &["pipeline::endpoint", "1 to 256"]);
    refused(&with("timeout = -1"), &["pipeline::endpoint", "p.toml:3:11"]);
    refused(&with("requests_per_minute = 0"), &["pipeline::endpoint", "no calls at all"]);
    refused(&with("price = { input = -1, output = 1 }"), &["pipeline::endpoint", "per million"]);
    refused(&with("price = { input = 1 }"), &["pipeline::missing-key", "`output`"]);
    refused(&with("extra = { stream = true }"), &["pipeline::endpoint", "`stream`", "p.toml:3"]);
    refused(&with("omit = [\"messages\"]"), &["pipeline::endpoint", "`messages` cannot be left out"]);
    refused(&with("max_tokens_field = \"\""), &["pipeline::endpoint", "max_completion_tokens"]);
    let output = Sandbox::with(&with("api_key_env = \"sk-123-secret\"")).sami(&["check", "p.toml"]).exits(USAGE);
    assert!(output.stderr.contains("no name of a variable") && !output.stderr.contains("secret"), "{}", output.stderr);
    let both = with("base_url = \"http://a/v1\"\ninit = { layers = 1 }");
    refused(&both, &["pipeline::two-sources", "comes from outside"]);
    let local = pipeline("[models.voice]\nsource = \"weights\"\nbase_url = \"http://a/v1\"");
    refused(&local, &["pipeline::not-an-endpoint", "`base_url`", "p.toml:3:1"]);
}

#[test]
fn where_weights_are_needed_an_endpoint_is_refused() {
    let model = "[models.voice]\nsource = \"openai:tiny\"\nbase_url = \"http://127.0.0.1:9/v1\"\n";
    let nodes = "[nodes.score]\nkind = \"score\"\nmodel = \"voice\"\nresponses = \"generate\"\nprompt = \"x\"\n
        [nodes.train]\nkind = \"finetune\"\nobjective = \"sami\"\nmodel = \"voice\"\nexamples = \"score\"\nsteps = 1\n";
    let text = pipeline(model) + nodes;
    refused(
        &text,
        &[
            "graph::wrong-artifact",
            "input `model` of node `score` takes model, not endpoint",
            "input `model` of node `train`",
            "needs weights",
        ],
    );
}
