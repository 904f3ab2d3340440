//! The Nth change to the disk goes wrong, for every N of a whole run and in every way: the cache is whole afterwards,
//! with the old or the new state in it, and the same command ends in the same artifacts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bad_input::no_bug;
use super::sandbox::{Done, Output, Sandbox};

/// Commands over a dataset and kinds that compute in no time, some beside each other. Each command notes that it ran.
const LIGHT: &str = r#"
[datasets.rows]
source = "rows.jsonl"

[nodes.constitutions]
kind = "constitutions"
contrast = "complement"
principles.brief = { definition = "be brief", antithesis = "be long" }

[nodes.upper]
kind = "command"
program = "sh"
inputs = { rows = { from = "rows", take = 3 } }
args = ["-ec", "(cd {output}/../../..; echo upper >> $PWD.notes); tr a-z A-Z < {input.rows}/rows.jsonl > {output}/rows.txt"]

[nodes.join]
kind = "command"
program = "sh"
inputs = { upper = "upper", constitutions = "constitutions" }
args = ["-ec", "(cd {output}/../../..; echo join >> $PWD.notes); cat {input.upper}/* {input.constitutions}/* > {output}/all; echo > {output}/empty"]
"#;

/// A project of its own.
pub(crate) fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", "{\"id\": \"a\"}\n{\"id\": \"b\"}\n{\"id\": \"c\"}\n{\"id\": \"d\"}\n");
    sandbox.write("p.toml", LIGHT);
    sandbox
}

/// Runs the pipeline with a cache of its own; each command adds its name to the file `CACHE.notes`.
fn run(sandbox: &Sandbox, cache: &str, fault: Option<String>) -> Output {
    let mut command = sandbox.command(&["run", "p.toml", "--json", "--cache", cache]);
    if let Some(fault) = fault {
        command.env("SAMI_FAULT", fault);
    }
    command.output().expect("the binary starts").into()
}

/// How often each command of a cache was executed.
pub(crate) fn executions(sandbox: &Sandbox, cache: &str) -> BTreeMap<String, u32> {
    let notes = fs_err::read_to_string(sandbox.path(format!("{cache}.notes"))).unwrap_or_default();
    let mut counts = BTreeMap::new();
    notes.lines().for_each(|name| *counts.entry(name.to_owned()).or_default() += 1);
    counts
}

/// What happened at the `n`th change to the disk of a whole run: whether there was one.
fn trial(sandbox: &Sandbox, kind: &str, n: u64, undisturbed: &Done) -> bool {
    let cache = format!("cache-{kind}-{n}");
    let count = sandbox.path(format!("count-{kind}-{n}"));
    let output = run(sandbox, &cache, Some(format!("store-op:{n}:{kind}:{}", count.display())));
    no_bug(&output);
    let reached = fs_err::metadata(&count).is_ok_and(|count| count.len() >= n);
    let what = || format!("operation {n}, {kind}: {output:?}");
    match kind {
        "eintr" | "short" => assert_eq!(output.code, 0, "{}", what()),
        "kill" => assert!([0, 1, 128 + 6].contains(&output.code), "{}", what()),
        _ => {
            assert!([0, 1].contains(&output.code), "{}", what());
            let says = if kind == "eio" { "Input/output error" } else { "no space left on device" };
            assert!(output.code == 0 || output.stderr.contains(says), "{}", what());
        }
    }
    if sandbox.path(&cache).join("VERSION").exists() {
        sandbox.verify_here(&cache);
    }
    let recorded = output.stdout.matches("\"event\":\"node-finish\"").count();
    let done = if output.code == 0 { output.done() } else { run(sandbox, &cache, None).exits(0).done() };
    assert_eq!(done.results(), undisturbed.results(), "{}", what());
    if output.code != 0 {
        assert!(done.hits >= recorded, "{}: {done:?}", what());
    }
    let executions = executions(sandbox, &cache);
    assert!(executions.values().all(|times| *times <= 2), "{}: {executions:?}", what());
    assert!(
        executions.values().filter(|times| **times > 1).count() <= 1 || kind != "kill",
        "{}: {executions:?}",
        what()
    );
    sandbox.verify_here(&cache);
    fs_err::remove_dir_all(sandbox.path(&cache)).expect("it goes");
    reached
}

/// Every `step`th change from `first` on, until a run has fewer. Returns how many were tried.
fn trials(sandbox: &Sandbox, kind: &str, first: u64, step: u64) -> u64 {
    let undisturbed = run(sandbox, "cache-calm", None).exits(0).done();
    let (next, tried) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while trial(sandbox, kind, first + step * next.fetch_add(1, Ordering::Relaxed), &undisturbed) {
                    tried.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    tried.into_inner()
}

/// The directories of the runs that a cache has.
fn run_directories(sandbox: &Sandbox) -> BTreeSet<PathBuf> {
    fs_err::read_dir(sandbox.path("cache/runs")).expect("it opens").map(|entry| entry.expect("reads").path()).collect()
}

/// A read that fails is an error and nothing else: that the disk is away for a moment makes nothing run.
fn reads() -> u64 {
    let sandbox = project();
    let undisturbed = run(&sandbox, "cache", None).exits(0).done();
    let runs = run_directories(&sandbox);
    let mut failed = 0;
    for n in 1_u64.. {
        // Without its index more is read; each run would add to what there is to index.
        fs_err::remove_file(sandbox.path("cache/index.sqlite")).expect("it goes");
        run_directories(&sandbox).difference(&runs).for_each(|later| fs_err::remove_dir_all(later).expect("it goes"));
        let count = sandbox.path(format!("count-{n}"));
        let output = run(&sandbox, "cache", Some(format!("read-op:{n}:eio:{}", count.display())));
        no_bug(&output);
        assert!(
            output.code == 0 || [1, 2].contains(&output.code) && output.stderr.contains("Input/output error"),
            "{n}: {output:?}"
        );
        failed += u64::from(output.code != 0);
        assert_eq!(run(&sandbox, "cache", None).exits(0).done().results(), undisturbed.results());
        if fs_err::metadata(&count).map_or(0, |count| count.len()) < n {
            break;
        }
    }
    assert!(executions(&sandbox, "cache").values().all(|times| *times == 1));
    sandbox.verify_here("cache");
    failed
}

#[test]
fn every_read_fails_once() {
    assert!(reads() >= 6);
}

#[test]
fn some_changes_to_the_disk_go_wrong() {
    for (kind, first) in [("enospc", 3), ("eio", 7), ("eintr", 11), ("short", 13), ("kill", 5)] {
        assert!(trials(&project(), kind, first, 29) >= 2, "{kind}");
    }
}

#[test]
#[ignore = "slow: a run for each of its changes to the disk and each way in which it can go wrong"]
fn every_change_to_the_disk_goes_wrong_once() {
    for kind in ["enospc", "eio", "eintr", "short", "kill"] {
        assert!(trials(&project(), kind, 1, 1) >= 50, "{kind}");
    }
}

#[test]
#[ignore = "slow: a training, sampled responses and rows, and the disk fails in the middle"]
fn the_disk_fails_under_a_language_model() {
    for (kind, first) in [("enospc", 2), ("eio", 4), ("eintr", 6), ("short", 8), ("kill", 10)] {
        let sandbox = super::formats::project();
        assert!(trials(&sandbox, kind, first, 17) >= 6, "{kind}");
    }
}
