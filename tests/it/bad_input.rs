//! Bad pipelines and bad data over the real binary: always a clear error with its place, nothing started, nothing lost.

use std::path::PathBuf;

use sami::cli::{DONE, USAGE};

use super::sandbox::{Output, Sandbox};

/// A sound pipeline of two nodes over a dataset of three rows.
pub(crate) const SOUND: &str = r#"
[datasets.posts]
source = "posts.jsonl"
[nodes.upper]
kind = "command"
program = "sh"
args = ["-c", "tr a-z A-Z < {input.rows}/rows.jsonl > {output}/upper.txt"]
inputs = { rows = "posts" }
[nodes.count]
kind = "command"
program = "sh"
args = ["-c", "wc -l < {input.text}/upper.txt > {output}/count.txt"]
inputs = { text = "upper" }
"#;
pub(crate) const ROWS: &str = "{\"id\": 1}\n{\"id\": 2}\n{\"id\": 3}\n";

/// A project in which the sound pipeline, `good.toml`, has run.
pub(crate) fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("good.toml", SOUND);
    sandbox.write("posts.jsonl", ROWS);
    sandbox.sami(&["run", "good.toml"]).exits(DONE.into());
    sandbox
}

/// The files of the cache that hold results and runs.
fn kept(sandbox: &Sandbox) -> Vec<PathBuf> {
    ["artifacts", "nodes", "objects", "rows", "runs"]
        .iter()
        .flat_map(|part| sandbox.files(&format!("cache/{part}")))
        .collect()
}

/// Asserts that `check` and `run` refuse `bad.toml` with this error at this place and that nothing came of it: no
/// run, no artifact, and what was in the cache before is whole and used.
#[track_caller]
fn refused(sandbox: &Sandbox, id: &str, place: &str, says: &[&str]) {
    let before = kept(sandbox);
    for command in ["check", "run"] {
        let output = sandbox.sami(&[command, "bad.toml"]).exits(USAGE.into());
        told(&output, id, place, says);
        assert!(output.stdout.is_empty(), "{}", output.stdout);
    }
    assert_eq!(kept(sandbox), before);
    sandbox.verify();
    let done = sandbox.sami(&["run", "good.toml", "--json"]).exits(DONE.into()).done();
    assert_eq!((done.ran, done.hits), (0, 2));
}

/// Asserts that standard error tells of an error, its place, and more.
#[track_caller]
pub(crate) fn told(output: &Output, id: &str, place: &str, says: &[&str]) {
    let stderr = &output.stderr;
    assert!(stderr.contains(&format!("error[{id}]")), "no {id} in\n{stderr}");
    for part in says.iter().chain([&place]) {
        assert!(stderr.contains(part), "no `{part}` in\n{stderr}");
    }
    no_bug(output);
}

#[track_caller]
pub(crate) fn no_bug(output: &Output) {
    assert!(!["panicked", "is a bug"].iter().any(|word| output.stderr.contains(word)), "{}", output.stderr);
}

fn command(name: &str, rest: &str) -> String {
    format!("[nodes.{name}]\nkind = \"command\"\nprogram = \"sh\"\n{rest}\n")
}

#[test]
fn a_file_that_is_not_utf8() {
    let sandbox = project();
    fs_err::write(sandbox.path("bad.toml"), b"schema = 1\nname = \"\xff\"\n").expect("writes");
    refused(&sandbox, "pipeline::not-utf8", "bad.toml:2:9", &["byte 0xff at line 2", "save the file as UTF-8"]);
}

#[test]
fn a_file_of_50_mb() {
    let sandbox = project();
    sandbox.write("bad.toml", &"# nothing\n".repeat(5 << 20));
    refused(&sandbox, "pipeline::too-large", "`bad.toml`", &["larger than 16 MiB", "[datasets.NAME] source"]);
}

#[test]
fn a_file_that_is_no_toml_tells_every_fault() {
    let sandbox = project();
    sandbox.write("bad.toml", "schema = 1\nname = \n[nodes.a]\nkind = 'command\n");
    refused(&sandbox, "pipeline::syntax", "bad.toml:2:8", &["bad.toml:4:16", "2 errors"]);
}

#[test]
fn a_node_that_would_leave_the_cache() {
    let sandbox = project();
    sandbox.write("bad.toml", &command("\"../x\"", ""));
    refused(&sandbox, "pipeline::bad-name", "bad.toml:1:8", &["`../x` cannot be a name", "letters, digits"]);
    assert!(!sandbox.path("cache/runs/x").exists() && !sandbox.path("x").exists());
}

#[test]
fn an_unknown_key() {
    let sandbox = project();
    sandbox.write("bad.toml", &command("a", "arsg = []"));
    let says = ["node `a` (kind `command`) has no key `arsg`", "a key with a similar name exists: `args`"];
    refused(&sandbox, "pipeline::unknown-key", "bad.toml:4:1", &says);
}

#[test]
fn a_value_of_the_wrong_type() {
    let sandbox = project();
    sandbox.write("bad.toml", &command("a", "args = \"-c\""));
    refused(&sandbox, "pipeline::wrong-type", "bad.toml:4:8", &["expected an array, found the string \"-c\""]);
}

#[test]
fn a_misspelt_reference() {
    let sandbox = project();
    sandbox.write("bad.toml", &(command("first", "") + &command("second", "inputs = { x = \"frist\" }")));
    let says = ["node `second` refers to `frist`, which is not declared", "a similar name is declared: `first`"];
    refused(&sandbox, "pipeline::unknown-reference", "bad.toml:8:16", &says);
}

#[test]
fn a_cycle_shows_all_its_members() {
    let sandbox = project();
    let needs = |name, other| command(name, &format!("inputs = {{ x = \"{other}\" }}"));
    sandbox.write("bad.toml", &[needs("a", "c"), needs("b", "a"), needs("c", "b"), needs("d", "a")].concat());
    let says = ["in a cycle: a -> c -> b -> a", "`a` needs `c`", "`c` needs `b`", "`b` needs `a`"];
    refused(&sandbox, "graph::cycle", "bad.toml:4:16", &says);
}

#[test]
fn an_artifact_of_the_wrong_type() {
    let sandbox = project();
    let score = "[nodes.score]\nkind = \"score\"\nmodel = \"posts\"\nresponses = \"files\"\nprompt = \"\"\n";
    let posts = "[datasets.posts]\nsource = \"posts.jsonl\"\n";
    sandbox.write("bad.toml", &[score, posts, &command("files", "")].concat());
    let says = [
        "input `model` of node `score` takes model, not dataset",
        "input `responses` of node `score` takes responses or dataset, not files",
        "bad.toml:4:13",
    ];
    refused(&sandbox, "graph::wrong-artifact", "bad.toml:3:9", &says);
}

#[test]
fn a_bad_expression() {
    let sandbox = project();
    sandbox.write("bad.toml", &command("a", "args = [\"${1 +}\", \"${stesp}\"]"));
    refused(&sandbox, "pipeline::bad-expression", "bad.toml:4:12", &["`1 +` cannot be evaluated", "bad.toml:4:22"]);
}

#[test]
fn a_file_that_is_missing() {
    let sandbox = project();
    let pipeline =
        "[datasets.posts]\nsource = \"psots.jsonl\"\n".to_owned() + &command("a", "inputs = { x = \"posts\" }");
    sandbox.write("bad.toml", &pipeline);
    refused(&sandbox, "dataset::unreadable", "bad.toml:1:11", &["a file with a similar name exists: `posts.jsonl`"]);
    sandbox.write("bad.toml", &command("a", "args = { file = \"gone.json\" }"));
    refused(&sandbox, "pipeline::file", "bad.toml:4:17", &["there is no such file"]);
    fs_err::remove_file(sandbox.path("bad.toml")).expect("removes");
    refused(&sandbox, "pipeline::unreadable", "`bad.toml`", &["No such file"]);
}

#[test]
fn a_broken_row_in_the_middle_of_a_dataset() {
    let sandbox = project();
    let mut rows: Vec<String> = (0..1000).map(|id| format!("{{\"id\": {id}}}\n")).collect();
    rows[499] = "{\"id\": 499,}\n".to_owned();
    rows[700] = "[1]\n".to_owned();
    sandbox.write("rows.jsonl", &rows.concat());
    let pipeline = "[datasets.rows]\nsource = \"rows.jsonl\"\n".to_owned() + &command("a", "inputs = { x = \"rows\" }");
    sandbox.write("bad.toml", &pipeline);
    let says = ["row 500 of `rows.jsonl` is malformed", "500 | {\"id\": 499,}", "rows.jsonl:701", "bad.toml:1:11"];
    refused(&sandbox, "dataset::bad-row", "rows.jsonl:500:", &says);
}

#[test]
fn an_id_given_twice_and_a_dataset_without_rows() {
    let sandbox = project();
    let pipeline = "[datasets.rows]\nsource = \"rows.jsonl\"\n".to_owned() + &command("a", "inputs = { x = \"rows\" }");
    sandbox.write("bad.toml", &pipeline);
    sandbox.write("rows.jsonl", "{\"id\": \"x\"}\n{\"id\": \"y\"}\n{\"id\": \"x\"}\n");
    refused(&sandbox, "dataset::duplicate-id", "bad.toml:1:11", &["rows 1 and 3", "the same id `x`", "unique = true"]);
    sandbox.write("rows.jsonl", "");
    refused(&sandbox, "dataset::empty", "bad.toml:1:11", &["`rows.jsonl`"]);
}

#[test]
fn a_model_directory_without_a_tokenizer() {
    let sandbox = project();
    sandbox.write("model/config.json", "{}");
    sandbox.write("model/model.safetensors", "");
    let pipeline = "[models.base]\nsource = \"model\"\n".to_owned() + &command("a", "inputs = { x = \"base\" }");
    sandbox.write("bad.toml", &pipeline);
    refused(&sandbox, "pipeline::model-directory", "bad.toml:2:10", &["it has no tokenizer.json"]);
}

#[test]
fn all_errors_of_a_file_at_once() {
    let sandbox = project();
    let pipeline = [
        "name = 3\n[datasets.posts]\nsource = \"broken.jsonl\"\n",
        &command("\"../x\"", ""),
        &command("a", "arsg = []\nargs = [\"${lr}\"]\ninputs = { x = \"pots\" }"),
        "[nodes.b]\nkind = \"comand\"\n",
        &command("c", "inputs = { x = \"d\" }"),
        &command("d", "inputs = { x = \"c\" }"),
        "[nodes.e]\nkind = \"score\"\nmodel = \"posts\"\nresponses = \"posts\"\n",
    ];
    sandbox.write("bad.toml", &pipeline.concat());
    sandbox.write("broken.jsonl", "{\"id\": 1}\n{oops\n");
    let output = sandbox.sami(&["check", "bad.toml"]).exits(USAGE.into());
    let ids: Vec<&str> = output.stderr.split("error[").skip(1).filter_map(|rest| rest.split(']').next()).collect();
    for id in [
        "pipeline::wrong-type",
        "pipeline::bad-name",
        "pipeline::unknown-key",
        "pipeline::unknown-name",
        "pipeline::unknown-reference",
        "pipeline::unknown-kind",
        "pipeline::missing-key",
        "graph::cycle",
        "graph::wrong-artifact",
        "dataset::bad-row",
    ] {
        assert!(ids.contains(&id), "no {id} among {ids:?}");
    }
    assert!(output.stderr.ends_with(&format!("{} errors\n", ids.len())), "{}", output.stderr);
    let json = sandbox.sami(&["check", "bad.toml", "--json"]).exits(USAGE.into()).json();
    assert_eq!(json["ok"], false);
    let findings = json["findings"].as_array().expect("findings");
    assert_eq!(findings.iter().map(|finding| finding["id"].as_str().expect("an id")).collect::<Vec<_>>(), ids);
    let key = findings.iter().find(|finding| finding["id"] == "pipeline::unknown-key").expect("told above");
    assert_eq!((&key["labels"][0]["line"], &key["labels"][0]["column"]), (&11.into(), &1.into()));
}
