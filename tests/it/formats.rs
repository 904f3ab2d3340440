//! Stores of every format version open, now and in times to come. `fixtures/store-v1` was made by the first version.

use std::path::Path;

use sami::store::Store;

use super::sandbox::{Done, Output, Sandbox};

/// A copy of the store of version 1, with its pipeline. Directories in which nothing was are not kept with the sources.
pub(crate) fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/store-v1");
    let copied = std::process::Command::new("cp").arg("-r").arg(fixture.join(".")).arg(sandbox.path("")).status();
    assert!(copied.expect("there is a `cp`").success());
    sandbox
}

fn fresh(done: &Done) {
    assert_eq!((done.ran, done.hits, done.nodes.len()), (0, 6, 6), "{:?}", done.names("ran"));
}

#[test]
fn a_store_of_version_1_is_whole_and_all_in_it_is_used() {
    let sandbox = project();
    sandbox.verify();
    let why = sandbox.sami(&["plan", "p.toml"]).exits(0);
    fresh(&sandbox.run(&[], 0));
    sandbox.verify();
    for args in [
        &["runs"][..],
        &["status", "p.toml"],
        &["cache", "ls"],
        &["cache", "show", "join"],
        &["logs", "base"],
        &["why", "p.toml", "generate"],
    ] {
        let output = sandbox.sami(args).exits(0);
        assert!(!output.stdout.is_empty(), "{args:?}: {why:?}");
    }
    assert_eq!(sandbox.sami(&["cache", "cat", "join", "empty"]).exits(0).stdout, "\n");
    // What is tidied away is tidied away, and the pin holds.
    sandbox.write(
        "other.toml",
        "[nodes.x]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo > {output}/x\"]\n",
    );
    sandbox.sami(&["run", "other.toml"]).exits(0);
    sandbox.sami(&["cache", "gc", "--keep-runs", "1", "--yes"]).exits(0);
    sandbox.verify();
    fresh(&sandbox.run(&[], 0));
}

/// Rows that were computed then are not computed again.
#[test]
fn rows_of_version_1_are_used() {
    let sandbox = project();
    let text = sandbox.read("p.toml");
    // A field that is in the node's key and in no row's.
    sandbox
        .write("p.toml", &text.replace("keep = { distinct = false }", "keep = { distinct = false, min_tokens = 2 }"));
    let output = sandbox.sami(&["run", "p.toml", "--json"]).exits(0);
    assert_eq!(output.done().names("ran"), ["generate"]);
    let nodes = output.json()["nodes"].clone();
    let generate = nodes.as_array().expect("a list").iter().find(|node| node["name"] == "generate").expect("it ran");
    assert_eq!(generate["metrics"]["rows_reused"], 4, "{generate}");
}

/// What the index answers is what the files say.
#[test]
fn the_index_is_made_again_and_answers_the_same() {
    let sandbox = project();
    fresh(&sandbox.run(&[], 0));
    let text = sandbox.read("p.toml");
    // A run that is killed has no list of its nodes.
    sandbox.write("p.toml", &text.replace("a-z A-Z", "a-m A-M"));
    let mut killed = sandbox.command(&["run", "p.toml"]);
    killed.env("SAMI_FAULT", "kill:finish:1").output().expect("it starts");
    let answers = || {
        let commands: &[&[&str]] = &[
            &["cache", "ls", "--json"],
            &["cache", "ls"],
            &["runs"],
            &["runs", "--json"],
            &["status", "p.toml", "--json"],
            &["plan", "p.toml", "--json"],
            &["why", "p.toml", "join", "--json"],
            &["why", "p.toml", "upper"],
            &["cache", "show", "join"],
            &["cache", "show", "generate", "--json"],
            &["show", "join"],
            &["show", "upper", "--json"],
            &["logs", "join"],
        ];
        let answer = |args: &&[&str]| {
            // Room on the disk is what it is.
            let mut command = sandbox.command(args);
            let output: Output = command.env("SAMI_FAULT", "room:1000000000").output().expect("it starts").into();
            (args.join(" "), output.code, output.stdout, output.stderr)
        };
        commands.iter().map(answer).collect::<Vec<_>>()
    };
    // The index was not told of what the killed run did.
    sandbox.sami(&["cache", "rebuild"]).exits(0);
    let before = answers();
    assert!(before.iter().all(|(_, code, ..)| *code == 0), "{before:?}");
    for way in ["delete", "rebuild"] {
        match way {
            "delete" => fs_err::remove_file(sandbox.path("cache/index.sqlite")).expect("it goes"),
            _ => _ = sandbox.sami(&["cache", "rebuild"]).exits(0),
        }
        for (before, after) in before.iter().zip(answers()) {
            assert_eq!(*before, after, "{way}");
        }
    }
}

#[test]
fn a_store_of_a_version_to_come_is_left_as_it_is() {
    let sandbox = project();
    fresh(&sandbox.run(&[], 0));
    sandbox.write("cache/VERSION", "2\n");
    let state = || -> Vec<_> {
        sandbox.files("cache").into_iter().map(|path| (fs_err::read(&path).expect("reads"), path)).collect()
    };
    let before = state();
    let id = "0".repeat(64);
    for args in [
        &["run", "p.toml"][..],
        &["plan", "p.toml"],
        &["status", "p.toml"],
        &["runs"],
        &["show", "join"],
        &["cache", "ls"],
        &["cache", "show", &id],
        &["cache", "du"],
        &["cache", "verify"],
        &["cache", "verify", "--repair"],
        &["cache", "gc"],
        &["cache", "rebuild"],
    ] {
        let output = sandbox.sami(args).exits(3);
        assert!(output.stderr.contains("format version 2") && output.stderr.contains("--cache DIR"), "{output:?}");
    }
    assert!(state() == before, "something was written");
    assert!(Store::open(&sandbox.path("cache")).is_err());
}
