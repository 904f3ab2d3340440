//! Making room: `cache du`, `forget`, `pin`, `gc --keep`, `ls` with what it can be asked for.

use sami::cli::USAGE;
use serde_json::Value;

use super::sandbox::Sandbox;

/// `both` stands on `left` and `right`; `same` makes the bytes of `left` under another name.
const PIPELINE: &str = r#"
name = "room"
[params]
word = "one"
[nodes.left]
kind = "command"
program = "sh"
args = ["-c", "yes left | head -c 20000 > out"]
[nodes.right]
kind = "command"
program = "sh"
args = ["-c", "yes right | head -c 30000 > out; echo ${word} >> out"]
[nodes.same]
kind = "command"
program = "sh"
args = ["-c", "yes left | head -c 20000 > else"]
[nodes.both]
kind = "command"
program = "sh"
inputs = { left = "left", right = "right" }
args = ["-c", "cat {input.left}/* {input.right}/* > out"]
"#;

fn project() -> Sandbox {
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.run(&[], 0);
    sandbox
}

fn json(sandbox: &Sandbox, args: &[&str]) -> Value {
    sandbox.sami(&[&["cache"], args, &["--json"]].concat()).exits(0).json()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|line| line["node"].as_str().unwrap_or("-")).collect()
}

#[test]
fn du_says_what_a_deletion_frees() {
    let sandbox = project();
    let all = json(&sandbox, &["du"]);
    let objects = all["parts"].as_array().expect("a list").iter().find(|part| part["part"] == "objects: files");
    // `left` and `same` share an object.
    assert_eq!(objects.expect("a part")["bytes"], 20_000 + 30_004 + 50_004);
    assert_eq!(all["pipelines"][0]["part"], "room");
    assert_eq!(all["kinds"][0]["files"], 4);
    let of = |what: &str| json(&sandbox, &["du", what]);
    // `both` keeps its inputs, and `same` stands on what `left` stands on.
    for (what, takes, objects) in [("left", 20_000, 0), ("same", 20_000, 0), ("right", 30_004, 0), ("both", 50_004, 1)]
    {
        let told = of(what);
        assert_eq!((&told["bytes"], &told["frees"]["objects"]), (&takes.into(), &objects.into()), "{what}: {told}");
    }
    let together = json(&sandbox, &["du", "both", "right"]);
    assert_eq!(together["frees"]["objects"], 2);
    assert!(together["frees"]["bytes"].as_u64().expect("a count") > 80_008);
    let all = of("room");
    assert_eq!((&all["frees"]["objects"], &all["frees"]["runs"]), (&3.into(), &1.into()));
    let text = sandbox.sami(&["cache", "du", "left"]).exits(0).stdout;
    assert!(text.contains("takes     19.5 KiB") && text.contains("needed by others"), "{text}");
    let text = sandbox.sami(&["cache", "du"]).exits(0).stdout;
    assert!(text.contains("objects: files") && text.contains("total"), "{text}");
    let unknown = sandbox.sami(&["cache", "du", "rihgt"]).exits(USAGE.into());
    assert!(unknown.stderr.contains("a similar name exists: `right`"), "{unknown:?}");
}

#[test]
fn forget_removes_by_name_what_nothing_else_needs() {
    let sandbox = project();
    let planned = sandbox.sami(&["cache", "forget", "both", "right", "--dry-run"]).exits(0).stdout;
    assert!(planned.contains("run again: room/both, room/right"), "{planned}");
    let refused = sandbox.sami(&["cache", "forget", "both", "right"]).exits(USAGE.into());
    assert!(refused.stderr.contains("error[cli::not-confirmed]"), "{refused:?}");
    let done = sandbox.sami(&["cache", "forget", "both", "right", "--yes"]).exits(0).stdout;
    assert_eq!(done, planned.lines().next().expect("a line").replace("would free", "freed") + "\n");
    sandbox.verify();
    let again = sandbox.run(&[], 0);
    assert_eq!(again.names("ran"), ["right", "both"]);

    // By run: what it made, and the run; what an earlier run made stays.
    let runs = sandbox.sami(&["runs", "--json"]).exits(0).json();
    let latest = runs[0]["run"].as_str().expect("an id").to_owned();
    let gone = json(&sandbox, &["forget", &latest, "--yes"]);
    assert_eq!((&gone["removed"]["nodes"], &gone["removed"]["runs"]), (&2.into(), &1.into()));
    assert_eq!(sandbox.run(&[], 0).names("ran"), ["right", "both"]);
    // By the id of an artifact, and by pipeline.
    let id = json(&sandbox, &["show", "both"])["artifact"].as_str().expect("an id").to_owned();
    assert_eq!(json(&sandbox, &["forget", &id[..12], "--yes"])["reruns"][0], "room/both");
    json(&sandbox, &["forget", "room/", "--yes"]);
    assert!(sandbox.files("cache/objects").is_empty() && sandbox.files("cache/runs").is_empty());
    sandbox.verify();
    assert_eq!(sandbox.run(&[], 0).ran, 4);
}

#[test]
fn what_is_pinned_stays_until_it_is_unpinned() {
    let sandbox = project();
    let says = |args: &[&str]| sandbox.sami(&[&["cache"], args].concat()).exits(0).stdout;
    assert_eq!(says(&["pins"]), "nothing is pinned\n");
    assert!(says(&["pin", "both"]).contains("pinned: gc keeps it"));
    assert!(says(&["pin", "both"]).contains("pinned already"));
    assert!(says(&["pins"]).contains("room/both"));
    let refused = sandbox.sami(&["cache", "forget", "both", "--yes"]).exits(USAGE.into());
    assert!(refused.stderr.contains("error[cli::pinned]") && refused.stderr.contains("--pinned"), "{refused:?}");
    // Of the three others one is the inputs' of the pin.
    json(&sandbox, &["gc", "--yes", "--keep-runs", "0", "--drop-latest"]);
    assert_eq!(sandbox.run(&[], 0).names("ran"), ["left", "right", "same"]);
    assert_eq!(json(&sandbox, &["forget", "both", "--yes", "--pinned"])["removed"]["nodes"], 1);
    assert_eq!(says(&["pins"]), "nothing is pinned\n");
    let unknown = sandbox.sami(&["cache", "pin", "nothing"]).exits(USAGE.into());
    assert!(unknown.stderr.contains("error[cli::unknown]"), "{unknown:?}");
}

#[test]
fn gc_keeps_a_cache_below_a_size() {
    let sandbox = project();
    let told = json(&sandbox, &["gc", "--dry-run", "--keep", "1GB"]);
    assert_eq!((&told["removed"]["bytes"], &told["room"]["evicted"]), (&0.into(), &0.into()), "{told}");
    let left = told["room"]["left"].as_u64().expect("bytes");
    // Event files stay, and count. The index counts, too, and notes when it looked: what it takes is taken off.
    let index = || fs_err::metadata(sandbox.path("cache/index.sqlite")).expect("an index").len();
    let without_index = left - index();
    sandbox.write("cache/tensorboard/run/events", &"x".repeat(5000));
    let with = json(&sandbox, &["gc", "--dry-run", "--keep", "1GB"]);
    assert_eq!(with["room"]["left"].as_u64(), Some(without_index + 5000 + index()), "{with}");
    fs_err::remove_dir_all(sandbox.path("cache/tensorboard")).expect("removes");
    let keep = format!("{}B", left - 60_000);
    let text = sandbox.sami(&["cache", "gc", "--dry-run", "--keep", &keep]).exits(0).stdout;
    assert!(text.contains(" would stay of ") && text.contains(" wanted artifact"), "{text}");
    let told = json(&sandbox, &["gc", "--yes", "--keep", &keep]);
    assert!(told["removed"]["bytes"].as_u64().expect("bytes") >= 60_000, "{told}");
    sandbox.verify();
    let text = sandbox.sami(&["cache", "gc", "--dry-run", "--keep", "0"]).exits(0).stdout;
    assert!(text.contains("more than 0 B"), "{text}");
    for args in [["--keep", "much"], ["--younger", "soon"], ["--by", "age"]] {
        sandbox.sami(&["cache", "gc", "--dry-run", args[0], args[1]]).exits(USAGE.into());
    }
    assert_eq!(sandbox.run(&[], 0).failed, 0);
}

#[test]
fn ls_lists_what_it_is_asked_for() {
    let sandbox = project();
    sandbox.run(&["--set", "word=two"], 0);
    let of = |args: &[&str]| json(&sandbox, &[&["ls"], args].concat());
    assert_eq!(names(&of(&["--sort", "size", "--last", "2"])), ["both", "both"]);
    assert_eq!(of(&["--sort", "size"]).as_array().expect("a list").len(), 6);
    assert_eq!(names(&of(&["--node", "right"])), ["right", "right"]);
    assert_eq!(
        of(&["--pipeline", "room", "--larger", "25kB", "--smaller", "40kB"]).as_array().expect("a list").len(),
        2
    );
    assert_eq!(of(&["--pipeline", "other"]), Value::Array(Vec::new()));
    assert_eq!(of(&["--older", "1h"]), Value::Array(Vec::new()));
    assert_eq!(of(&["--younger", "1h", "--skip", "4"]).as_array().expect("a list").len(), 2);
    let text = sandbox.sami(&["cache", "ls", "--last", "4"]).exits(0).stdout;
    assert!(text.ends_with("2 more; `--last 6` lists all\n"), "{text}");
    // What was copied in, or deleted by hand, is seen.
    let other = project();
    fs_err::remove_dir_all(other.path("cache/artifacts")).expect("removes");
    assert_eq!(json(&other, &["ls"]), Value::Array(Vec::new()));
}
