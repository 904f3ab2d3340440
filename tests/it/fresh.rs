//! What was found fresh is told again without a look at anything but stamps, and never once one of them has changed.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::sandbox::{Output, Sandbox};

const PIPELINE: &str = r#"
[params]
word = "x"
[models.m]
source = "model"
[datasets.source]
source = "source.txt"
[nodes.a]
kind = "command"
program = "sh"
args = ["-c", "cat {input.source}/rows.jsonl {script} > out; echo ${word} >> out"]
inputs = { source = "source" }
script = { file = "script.txt" }
[nodes.b]
kind = "command"
program = "sh"
args = ["-c", "cat {input.a}/out > out; echo '{\"loss\": 0.5}' > metrics.json"]
inputs = { a = "a" }
"#;

fn project() -> Sandbox {
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.write("source.txt", "one\ntwo\n");
    sandbox.write("script.txt", "a script\n");
    sandbox.write("model/config.json", "{}");
    sandbox
}

/// Runs a command and returns what it said and whether it remembered that.
#[track_caller]
fn ask(mut command: Command) -> (Output, bool) {
    let output = command.env("SAMI_LOG", "sami=debug").output().expect("the binary starts");
    let output = Output::from(output).exits(0);
    let remembered = output.stderr.contains("the answer is remembered");
    (output, remembered)
}

#[track_caller]
fn remembers(sandbox: &Sandbox, args: &[&str]) -> bool {
    ask(sandbox.command(args)).1
}

/// Has the answer remembered: files are old enough by then.
#[track_caller]
fn settle(sandbox: &Sandbox, args: &[&str]) {
    std::thread::sleep(Duration::from_millis(60));
    ask(sandbox.command(args));
    assert!(remembers(sandbox, args), "{args:?} is not remembered");
}

/// The record of the latest run.
fn latest(sandbox: &Sandbox) -> Value {
    let records: Vec<PathBuf> =
        sandbox.files("cache/runs").into_iter().filter(|path| path.ends_with("run.json")).collect();
    serde_json::from_str(&sandbox.read(records.last().expect("a run"))).expect("JSON")
}

/// What node `a` made, in all versions.
fn objects(sandbox: &Sandbox) -> Vec<PathBuf> {
    let objects = sandbox.files("cache/objects").into_iter();
    objects.filter(|path| fs_err::read_to_string(path).is_ok_and(|text| text.contains("a script"))).collect()
}

#[test]
fn whatever_an_answer_rests_on_makes_it_void() {
    let sandbox = project();
    let run = ["run", "p.toml"];
    sandbox.sami(&run).exits(0);
    settle(&sandbox, &run);
    type Change = fn(&Sandbox);
    let changes: [(&str, Change); 13] = [
        ("touch the pipeline", |sandbox| sandbox.write("p.toml", PIPELINE)),
        ("edit the pipeline", |sandbox| sandbox.write("p.toml", &PIPELINE.replace("word = \"x\"", "word = \"y\""))),
        ("touch an included file", |sandbox| sandbox.write("script.txt", "a script\n")),
        ("edit an included file", |sandbox| sandbox.write("script.txt", "a script!\n")),
        ("edit a dataset", |sandbox| sandbox.write("source.txt", "one\nthree\n")),
        ("edit a model", |sandbox| sandbox.write("model/config.json", "{ }")),
        ("add to a model", |sandbox| sandbox.write("model/tokenizer.json", "{}")),
        ("lose an object", |sandbox| {
            objects(sandbox).iter().for_each(|path| fs_err::remove_file(path).expect("removes"));
        }),
        ("bit rot", |sandbox| {
            for path in objects(sandbox) {
                let (text, stamp) = (sandbox.read(&path), fs_err::metadata(&path).expect("there").modified());
                fs_err::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("sets");
                fs_err::write(&path, text.replace("a script", "A script")).expect("writes");
                let file = fs_err::OpenOptions::new().write(true).open(&path).expect("opens");
                file.file().set_modified(stamp.expect("a time")).expect("sets");
            }
        }),
        ("lose the index", |sandbox| fs_err::remove_file(sandbox.path("cache/index.sqlite")).expect("removes")),
        ("rebuild the index", |sandbox| drop(sandbox.sami(&["cache", "rebuild"]).exits(0))),
        ("lose what is remembered", |sandbox| fs_err::remove_dir_all(sandbox.path("cache/fresh")).expect("removes")),
        ("lose the manifests", |sandbox| fs_err::remove_dir_all(sandbox.path("cache/artifacts")).expect("removes")),
    ];
    for (what, change) in changes {
        change(&sandbox);
        assert!(!remembers(&sandbox, &run), "{what}: an answer was remembered");
        let ran = latest(&sandbox)["nodes"].to_string().matches("\"ran\"").count();
        let reruns = ["edit the pipeline", "edit an included file", "edit a dataset", "lose an object", "bit rot"];
        assert_eq!(ran > 0, reruns.contains(&what) || what == "lose the manifests", "{what}: {ran} nodes ran");
        settle(&sandbox, &run);
    }
}

#[test]
fn another_question_is_not_answered_by_it() {
    let sandbox = project();
    sandbox.sami(&["run", "p.toml"]).exits(0);
    settle(&sandbox, &["run", "p.toml"]);
    assert!(!remembers(&sandbox, &["run", "p.toml", "--force", "b"]));
    settle(&sandbox, &["run", "p.toml"]);
    for args in [
        &["run", "p.toml", "--set", "word=x"][..],
        &["run", "p.toml", "a"],
        &["run", "p.toml", "--device", "cpu"],
        &["run", "./p.toml"],
        &["status", "p.toml"],
        &["plan", "p.toml"],
        &["plan", "p.toml", "--estimate"],
        &["why", "p.toml", "b"],
        &["why", "p.toml", "a"],
    ] {
        assert!(!remembers(&sandbox, args), "{args:?}");
        settle(&sandbox, args);
    }
    assert!(!remembers(&sandbox, &["run", "p.toml", "--set", "word=y"]));
    assert!(!remembers(&sandbox, &["run", "p.toml", "--cache", "elsewhere"]));
    assert!(!remembers(&sandbox, &["run", "p.toml", "--json"]));
    // Another program, though it is called the same.
    let mut other = Command::new(sandbox.path("sami"));
    fs_err::copy(env!("CARGO_BIN_EXE_sami"), sandbox.path("sami")).expect("copies");
    other.args(["run", "p.toml"]).current_dir(sandbox.path(""));
    assert!(!ask(other).1);
}

#[test]
fn the_answer_is_the_one_that_was_given() {
    let sandbox = project();
    sandbox.sami(&["run", "p.toml"]).exits(0);
    let run = ["run", "p.toml"];
    let untimed = |text: &str| {
        let lines = text.lines().filter(|line| !line.contains("DEBUG") && !line.starts_with("run "));
        lines.map(|line| line.split(" in ").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    std::thread::sleep(Duration::from_millis(60));
    let first = sandbox.sami(&run).exits(0);
    let before = latest(&sandbox);
    let (second, remembered) = ask(sandbox.command(&run));
    let after = latest(&sandbox);
    assert!(remembered);
    assert_eq!(untimed(&first.stderr), untimed(&second.stderr));
    assert!(second.stderr.contains("2 fresh") && second.stderr.contains("2 nodes, 2 fresh"), "{}", second.stderr);
    assert_ne!(before["run"], after["run"]);
    for field in ["pipeline", "file", "params", "ok", "nodes"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    let id = after["run"].as_str().expect("an id");
    let events = sandbox.read(format!("cache/runs/{id}/events.jsonl"));
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((events.len(), &events[0]["hits"], &events[1]["hits"]), (2, &Value::from(2), &Value::from(2)));
    assert_eq!(sandbox.sami(&["runs", "--json"]).exits(0).json().as_array().map(Vec::len), Some(3));
    sandbox.sami(&["show", id]).exits(0);
    for args in [&["status", "p.toml"][..], &["plan", "p.toml"], &["why", "p.toml", "b"]] {
        let first = sandbox.sami(args).exits(0);
        let (second, remembered) = ask(sandbox.command(args));
        assert!(remembered && first.stdout == second.stdout, "{args:?}: {}{}", first.stdout, second.stdout);
    }
}

#[test]
fn what_warns_or_is_stale_is_not_remembered() {
    let sandbox = project();
    let plan = ["plan", "p.toml"];
    for _ in 0..2 {
        assert!(!remembers(&sandbox, &plan));
        std::thread::sleep(Duration::from_millis(60));
    }
    // A damaged answer is none, and leaves no run behind.
    let run = ["run", "p.toml"];
    sandbox.sami(&run).exits(0);
    settle(&sandbox, &run);
    let runs = || fs_err::read_dir(sandbox.path("cache/runs")).expect("there").count();
    let before = runs();
    for path in sandbox.files("cache/fresh") {
        let mut bytes = fs_err::read(&path).expect("reads");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs_err::write(&path, bytes).expect("writes");
    }
    sandbox.sami(&run).exits(0);
    assert_eq!(runs(), before + 1);
    assert_eq!(latest(&sandbox)["nodes"].as_array().map(Vec::len), Some(2));
}

/// A question makes no cache: neither the next one nor a run finds something half made.
#[test]
fn a_question_where_there_is_no_cache_leaves_nothing_behind() {
    let sandbox = project();
    for args in [["plan", "p.toml"], ["status", "p.toml"], ["plan", "p.toml"]] {
        sandbox.sami(&args).exits(0);
        assert!(!sandbox.path("cache").exists(), "{args:?} made a cache");
    }
    sandbox.sami(&["run", "p.toml"]).exits(0);
}
