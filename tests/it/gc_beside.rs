//! Garbage collection beside runs: nothing that a run needs goes, whatever the order of events.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use super::sandbox::{Output, Sandbox};

/// A chain and a fan whose results depend on a param, but for the first node and for what says the same for each value: runs with
/// other params find hits, early cutoffs and artifacts that were garbage a moment ago.
const PIPELINE: &str = r#"
[params]
word = "a"

[datasets.source]
source = "source.txt"

[nodes.first]
kind = "command"
program = "sh"
inputs = { source = "source" }
args = ["-c", "cat {input.source}/* > out"]

[nodes.word]
kind = "command"
program = "sh"
inputs = { first = "first" }
args = ["-c", "cat {input.first}/* > out; echo ${word} >> out"]

[nodes.same]
kind = "command"
program = "sh"
inputs = { word = "word" }
args = ["-c", "cat {input.word}/* > /dev/null; echo same > out"]

[nodes.below]
kind = "command"
program = "sh"
inputs = { same = "same", first = "first" }
args = ["-c", "cat {input.same}/* {input.first}/* > out"]

[nodes.both]
kind = "command"
program = "sh"
inputs = { below = "below", word = "word" }
args = ["-c", "cat {input.below}/* {input.word}/* > out"]
"#;

fn project() -> Sandbox {
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.write("source.txt", "one\ntwo\n");
    sandbox
}

fn start(sandbox: &Sandbox, args: &[&str]) -> Child {
    let mut command = sandbox.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

fn end(child: Child) -> Output {
    child.wait_with_output().expect("it ends").into()
}

/// Several runs and a gc without pause, `rounds` times: every run succeeds, with the same results each time, and nothing is lost.
fn beside(rounds: usize) {
    let sandbox = project();
    let word = |n: usize| ["a", "b", "c"][n % 3];
    let mut expected = Vec::new();
    for n in 0..3 {
        let done = sandbox.run(&["--set", &format!("word={}", word(n))], 0);
        expected.push(done.nodes.into_iter().map(|node| node.artifact).collect::<Vec<_>>());
    }
    let over = AtomicBool::new(false);
    let collected = std::thread::scope(|scope| {
        let gc = scope.spawn(|| {
            let mut collected = 0;
            while !over.load(Ordering::Relaxed) {
                let args = ["cache", "gc", "--yes", "--keep-runs", "0", "--drop-latest", "--json"];
                let removed = sandbox.sami(&args).exits(0).json();
                collected += removed["removed"]["nodes"].as_u64().expect("a count");
            }
            collected
        });
        let runs = std::panic::catch_unwind(|| {
            for round in 0..rounds {
                let set = |n: usize| format!("word={}", word(round + n));
                let runs: Vec<(usize, Child)> = (0..3)
                    .map(|n| ((round + n) % 3, start(&sandbox, &["run", "p.toml", "--json", "--set", &set(n % 2)])))
                    .collect();
                for (n, run) in runs.into_iter().enumerate() {
                    let done = end(run.1).exits(0).done();
                    let made: Vec<_> = done.nodes.into_iter().map(|node| node.artifact).collect();
                    assert_eq!(made, expected[(round + n % 2) % 3], "round {round}");
                }
            }
        });
        over.store(true, Ordering::Relaxed);
        let collected = gc.join().expect("gc succeeds");
        runs.expect("all runs succeed");
        collected
    });
    assert!(collected > 0, "no gc found anything, so nothing was tried");
    sandbox.verify();
    // What is there after the last gc is what the index says, and nothing of a dead process is left.
    sandbox.sami(&["cache", "gc", "--yes"]).exits(0);
    assert!(sandbox.files("cache/live").is_empty() && !sandbox.path("cache/trash").exists());
    sandbox.run(&[], 0);
    sandbox.verify();
}

#[test]
fn runs_and_gcs_at_once_lose_nothing() {
    beside(6);
}

#[test]
#[ignore = "slow: as above, for a minute"]
fn runs_and_gcs_at_once_lose_nothing_for_long() {
    beside(150);
}

#[test]
fn a_gc_that_is_killed_at_any_step_leaves_a_whole_cache() {
    let sandbox = project();
    for (place, count) in [("gc-step", 1), ("gc-delete", 1), ("gc-delete", 2), ("gc-delete", 3), ("gc-delete", 5)] {
        for word in ["a", "b"] {
            sandbox.run(&["--set", &format!("word={word}")], 0);
        }
        let mut gc = sandbox.command(&["cache", "gc", "--yes", "--keep-runs", "0", "--drop-latest"]);
        gc.env("SAMI_FAULT", format!("kill:{place}:{count}"));
        assert_eq!(gc.output().expect("it starts").status.code(), None, "it was killed at {place} {count}");
        sandbox.verify();
        // With other roots the next one keeps what the first had begun to move; a run finds what it needs or makes it.
        if count % 2 == 0 {
            sandbox.sami(&["cache", "gc", "--yes"]).exits(0);
            sandbox.verify();
        }
        assert_eq!(sandbox.run(&[], 0).failed, 0);
        sandbox.verify();
    }
    sandbox.sami(&["cache", "gc", "--yes", "--keep-runs", "0", "--drop-latest"]).exits(0);
    assert!(sandbox.files("cache/objects").is_empty() && !sandbox.path("cache/trash").exists());
}
