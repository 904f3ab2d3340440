//! Two machines work on copies of one cache, which are then made one again by plain copying of files: nothing is lost,
//! and all that either did is a hit.

use std::path::Path;
use std::process::Command;

use sami::store::Store;

use super::sandbox::{Done, Sandbox};
use super::store_faults::project;

/// Copies what is in one directory into another; what is there already is replaced, or stays.
fn merge(from: &Path, to: &Path, replace: bool) {
    let mut command = Command::new("cp");
    command.arg(if replace { "-a" } else { "-an" }).arg(from.join(".")).arg(to);
    assert!(command.status().expect("there is a `cp`").success());
}

/// As [`merge`], by `rsync`; `false` where there is none.
fn rsync(from: &Path, to: &Path) -> bool {
    let from = format!("{}/", from.display());
    Command::new("rsync").args(["-a", &from]).arg(to).status().is_ok_and(|status| status.success())
}

fn run(sandbox: &Sandbox, file: &str, cache: &str) -> Done {
    sandbox.sami(&["run", file, "--json", "--cache", cache]).exits(0).done()
}

/// One project, two caches that had one beginning and went apart.
fn apart() -> (Sandbox, Done, Done) {
    let sandbox = project();
    let text = sandbox.read("p.toml");
    run(&sandbox, "p.toml", "here");
    fs_err::create_dir(sandbox.path("there")).expect("a directory");
    merge(&sandbox.path("here"), &sandbox.path("there"), true);
    sandbox.write("a.toml", &text.replace("take = 3", "take = 2"));
    sandbox.write("b.toml", &text.replace("be brief", "be terse"));
    let (a, b) = (run(&sandbox, "a.toml", "here"), run(&sandbox, "b.toml", "there"));
    assert_eq!((a.ran, b.ran), (2, 2));
    (sandbox, a, b)
}

#[track_caller]
fn all_is_there(sandbox: &Sandbox, a: &Done, b: &Done) {
    sandbox.verify_here("here");
    for (file, before) in [("p.toml", None), ("a.toml", Some(a)), ("b.toml", Some(b))] {
        let done = run(sandbox, file, "here");
        assert_eq!((done.ran, done.hits), (0, 3), "{file}");
        if let Some(before) = before {
            assert_eq!(done.results(), before.results());
        }
    }
}

#[test]
fn what_two_machines_did_is_one_cache_after_plain_copying() {
    for way in ["replace", "keep", "rsync"] {
        let (sandbox, a, b) = apart();
        let (here, there) = (sandbox.path("here"), sandbox.path("there"));
        match way {
            "rsync" if !rsync(&there, &here) => continue,
            "rsync" => {}
            _ => merge(&there, &here, way == "replace"),
        }
        // Whichever index is there now, it knows half of it.
        all_is_there(&sandbox, &a, &b);
        let runs = |sandbox: &Sandbox| sandbox.sami(&["runs", "--json", "--cache", "here"]).exits(0).json();
        sandbox.sami(&["cache", "rebuild", "--cache", "here"]).exits(0);
        // One at first, one of each, and three that found all fresh.
        assert_eq!(runs(&sandbox).as_array().expect("a list").len(), 6);
        all_is_there(&sandbox, &a, &b);
    }
}

/// What processes of the other machine had open or in the making when it was copied.
#[test]
fn scratch_and_locks_of_the_other_machine_do_no_harm() {
    let (sandbox, a, b) = apart();
    let key = a.nodes[1].key.clone().expect("a key");
    for name in [
        format!("there/locks/{key}"),
        format!("there/tmp/{key}/20260101-000000-aaaa.1/half"),
        "there/tmp/.1-0".to_owned(),
        format!("there/partial/{key}/checkpoint/half"),
        format!("there/live/{}-1", "0".repeat(8)),
        "there/index.sqlite-journal".to_owned(),
    ] {
        sandbox.write(&name, "half of somethi");
    }
    merge(&sandbox.path("there"), &sandbox.path("here"), true);
    all_is_there(&sandbox, &a, &b);
}

/// A command that never does the same twice ran on both, and so did what takes its output.
#[test]
fn of_two_results_under_one_key_one_is_used_and_both_remain() {
    for replace in [true, false] {
        let sandbox = Sandbox::with(
            "[nodes.random]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"head -c 9 /dev/urandom > {output}/x\"]\n
             [nodes.taker]\nkind = \"command\"\nprogram = \"sh\"\ninputs = { x = \"random\" }\n\
             args = [\"-c\", \"cat {input.x}/x {input.x}/x > {output}/y\"]\n",
        );
        let (a, b) = (run(&sandbox, "p.toml", "here"), run(&sandbox, "p.toml", "there"));
        assert_eq!(a.nodes[0].key, b.nodes[0].key);
        assert_ne!(a.nodes[0].artifact, b.nodes[0].artifact);
        merge(&sandbox.path("there"), &sandbox.path("here"), replace);
        sandbox.verify_here("here");
        sandbox.sami(&["cache", "rebuild", "--cache", "here"]).exits(0);
        let done = run(&sandbox, "p.toml", "here");
        assert_eq!(done.results(), if replace { &b } else { &a }.results());
        assert_eq!(done.hits, 2);
        let store = Store::open_existing(&sandbox.path("here")).expect("it opens");
        for side in [&a, &b] {
            let artifact = |n: usize| side.nodes[n].artifact.as_deref().expect("it ran").parse().expect("a digest");
            store.files(&artifact(0)).expect("both are there");
            // Whoever took it is recorded under a key of its own.
            let key = side.nodes[1].key.as_deref().expect("it ran").parse().expect("a digest");
            let record = store.node(&key).expect("reads").expect("it is there");
            assert_eq!((record.artifact, record.inputs["inputs.x"]), (artifact(1), artifact(0)));
        }
        drop(store);
        sandbox.verify_here("here");
    }
}
