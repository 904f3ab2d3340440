//! What the readers say of a small project: `runs`, `show`, `logs`, `cache`, `help`; for people and as JSON.

use std::io::Read;
use std::process::Stdio;

use regex::Regex;
use sami::cli::{DAMAGED, DONE, USAGE};
use serde_json::Value;

use super::sandbox::{Output, Sandbox};

const PIPELINE: &str = r#"
name = "small"
[params]
word = "hello"
[datasets.posts]
source = "posts.jsonl"
[nodes.upper]
kind = "command"
program = "sh"
args = ["-c", "tr a-z A-Z < {input.rows}/rows.jsonl > upper.txt; echo '{\"lines\": 3, \"share\": 0.25}' > metrics.json; echo making it"]
inputs = { rows = "posts" }
[loop]
times = 2
carry.text = { first = "upper", next = "next" }
[loop.nodes.next]
kind = "command"
program = "sh"
args = ["-c", "cat {input.text}/*.txt > text.txt; echo ${word} >> text.txt; echo iteration ${iteration}"]
inputs = { text = "text" }
"#;

/// The project after three runs: all, nothing, and both iterations with another word.
fn project() -> Sandbox {
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.write("posts.jsonl", "{\"id\": 1}\n{\"id\": 2}\n{\"id\": 3}\n");
    assert_eq!(sandbox.run(&[], 0).ran, 3);
    assert_eq!(sandbox.run(&[], 0).hits, 3);
    assert_eq!(sandbox.run(&["--set", "word=bye"], 0).names("ran"), ["next@1", "next@2"]);
    sandbox
}

#[test]
fn who_looks_before_the_first_run_leaves_nothing() {
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.write("posts.jsonl", "{\"id\": 1}\n");
    for args in [["check", "p.toml"], ["plan", "p.toml"], ["status", "p.toml"], ["dag", "p.toml"]] {
        sandbox.sami(&args).exits(0);
    }
    sandbox.sami(&["why", "p.toml", "upper"]).exits(0);
    assert!(!sandbox.path("cache").exists(), "{:?}", sandbox.files("cache"));
    assert_eq!(sandbox.run(&[], 0).ran, 3);
}

/// Text without what differs from run to run: ids, times, durations, the host; blanks run together.
fn plain(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, word) in [
        (r"[0-9a-f]{64}", "ID"),
        (r"\d{8}-\d{6}-[0-9a-f]{4}", "RUN"),
        (r"\b[0-9a-f]{12}\b", "id"),
        (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
        (r"\d+ ms|\d+\.\d\d s\b", "TOOK"),
        (r"(?m)^(seconds .*?)\d+\.\d\d( +\d+\.\d\d)*$", "${1}SECONDS"),
        (r" ran +\d+\.\d\d ", " ran SECONDS "),
        (r" on \S+ \(cpu\), sami \S+", " on HOST"),
        (r" +", " "),
    ] {
        text = Regex::new(pattern).expect("a pattern").replace_all(&text, word).into_owned();
    }
    text
}

#[track_caller]
fn says(sandbox: &Sandbox, args: &[&str], expected: &str) {
    let output = sandbox.sami(args).exits(DONE.into());
    let said = plain(&output.stdout);
    assert!(said == expected, "`sami {}` says\n{said}\ninstead of\n{expected}", args.join(" "));
    assert_eq!(output.stderr, "");
}

fn run_ids(sandbox: &Sandbox) -> Vec<String> {
    let runs = sandbox.sami(&["runs", "--json"]).json();
    runs.as_array().expect("runs").iter().map(|run| run["run"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn runs_and_nodes_are_shown() {
    let sandbox = project();
    let runs = "\
run pipeline started took state ran hit failed skipped
RUN small TIME TOOK ok 2 1 0 0
RUN small TIME TOOK ok 0 3 0 0
RUN small TIME TOOK ok 3 0 0 0
";
    says(&sandbox, &["runs"], runs);
    let ids = run_ids(&sandbox);
    let run = "\
run RUN of pipeline small (p.toml)
started TIME, took TOOK, ok
params word = \"bye\"
nodes 2 ran, 1 hit

node kind state seconds artifact metrics
upper command hit id lines 3 · share 0.2500
next@1 command ran SECONDS id
next@2 command ran SECONDS id
";
    says(&sandbox, &["show", &ids[0]], run);
    let node = "\
node next@2 of pipeline small, kind command
key ID
made TIME in TOOK on HOST
again not reproducible: a program, of which `run.reproducible` does not say that it is
run RUN attempt 1
inputs inputs.text = id files of next@1
recipe args = [\"-c\",\"cat {input.text}/*.txt > text.txt; echo bye >> text.txt; echo iteration 2\"]
 output = \"files\"
 program = \"sh\"
artifact ID
 files, 41 B
more sami cache show id · sami logs next@2

result id id
run RUN RUN
seconds SECONDS
artifact id id
args[1] … echo bye >> text.txt;… … echo hello >> text.tx…
input inputs.text id id
";
    says(&sandbox, &["show", "next"], node);
    says(&sandbox, &["show", "next@2"], node);
    says(&sandbox, &["show", "small/next@2"], node);
    says(&sandbox, &["logs", "next@1", "--run", &ids[2]], "iteration 1\n");
    says(&sandbox, &["logs", "upper"], "making it\n");
    let fault = sandbox.sami(&["logs", "upper", "--run", &ids[0]]).exits(USAGE.into());
    assert!(fault.stderr.contains("it was fresh then, so it did not run"), "{}", fault.stderr);
    assert!(fault.stderr.contains(&format!("its latest log is of run {}", ids[2])), "{}", fault.stderr);
}

#[test]
fn artifacts_are_listed_shown_printed_and_put_where_one_wants_them() {
    let sandbox = project();
    let list = "\
artifact type size files made by when
id files 41 B 1 small/next@2 TIME
id files 37 B 1 small/next@1 TIME
id files 45 B 1 small/next@2 TIME
id files 39 B 1 small/next@1 TIME
id files 61 B 2 small/upper TIME
id dataset 33 B 1 (source of small/upper)
";
    says(&sandbox, &["cache", "ls"], list);
    let only: Vec<&str> = list.lines().take(3).collect();
    says(&sandbox, &["cache", "ls", "--last", "2"], &(only.join("\n") + "\n4 more; `--last 6` lists all\n"));
    let shown = "\
artifact ID
 files, 61 B
node upper of pipeline small, kind command
key ID
made TIME in TOOK on HOST
again not reproducible: a program, of which `run.reproducible` does not say that it is
run RUN attempt 1
inputs inputs.rows = id dataset
recipe args = [\"-c\",\"tr a-z A-Z < {input.rows}/rows.jsonl > upper.txt; echo '{\\\"lines\\\": 3, \\\"sh…
 output = \"files\"
 program = \"sh\"
metrics lines 3 · share 0.2500
used by small/next@1 as inputs.text
files metrics.json (28 B), upper.txt (33 B)
text {\"ID\":\"1\"}
 {\"ID\":\"2\"}
 {\"ID\":\"3\"}
";
    says(&sandbox, &["cache", "show", "upper"], shown);
    let id = sandbox.sami(&["cache", "show", "upper", "--json"]).json()["artifact"].as_str().expect("an id").to_owned();
    says(&sandbox, &["cache", "show", &id[..8]], shown);
    let text = "{\"ID\":\"1\"}\n{\"ID\":\"2\"}\n{\"ID\":\"3\"}\n";
    assert_eq!(sandbox.sami(&["cache", "cat", "upper", "upper.txt"]).exits(0).stdout, text);
    assert_eq!(sandbox.sami(&["cache", "cat", "next@1"]).exits(0).stdout, format!("{text}bye\n"));
    assert_eq!(sandbox.sami(&["cache", "cat", "upper"]).exits(0).stdout, text);
    let two = "[nodes.two]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"touch a.txt b.txt\"]\n";
    sandbox.write("two.toml", two);
    sandbox.sami(&["run", "two.toml"]).exits(DONE.into());
    let which = sandbox.sami(&["cache", "cat", "two"]).exits(USAGE.into());
    assert!(which.stderr.contains("error[cli::which-file]") && which.stderr.contains("a.txt, b.txt"));
    let near = sandbox.sami(&["cache", "cat", "upper", "uper.txt"]).exits(USAGE.into());
    assert!(near.stderr.contains("a file with a similar name exists: `upper.txt`"), "{}", near.stderr);

    says(
        &sandbox,
        &["cache", "checkout", "upper", "out/there", "--link", "copy"],
        "out/there: metrics.json, upper.txt (copied)\n",
    );
    assert_eq!(sandbox.read("out/there/upper.txt"), text);
    // They are one's own now.
    sandbox.write("out/there/upper.txt", "mine");
    let refused = sandbox.sami(&["cache", "checkout", "upper", "out/there"]).exits(USAGE.into());
    assert!(refused.stderr.contains("error[cli::not-empty]"), "{}", refused.stderr);
    assert_eq!(sandbox.read("out/there/upper.txt"), "mine");
    sandbox.verify();
    // What is damaged is not put anywhere, nor is half of it.
    let object = sandbox.sami(&["cache", "show", "upper", "--json"]).json()["paths"]["upper.txt"].clone();
    let object = object.as_str().expect("a path");
    fs_err::remove_file(object).expect("removes");
    fs_err::write(object, text.replace('1', "7")).expect("writes");
    let damaged = sandbox.sami(&["cache", "checkout", "upper", "else"]).exits(DAMAGED.into());
    assert!(damaged.stderr.contains("error[store::damaged]") && !sandbox.path("else").exists());
    let found = sandbox.sami(&["cache", "verify"]).exits(DAMAGED.into());
    assert!(
        found.stdout.contains("damaged object") && found.stdout.contains("will run again: upper; was taken by next@1"),
        "{}",
        found.stdout
    );
    assert_eq!(sandbox.run(&["--set", "word=bye"], 0).names("ran"), ["upper"]);
    sandbox.verify();
}

#[test]
fn gc_removes_what_no_recent_run_used() {
    let sandbox = project();
    let planned = sandbox.sami(&["cache", "gc", "--keep-runs", "1", "--dry-run"]).exits(0).stdout;
    assert!(planned.contains(": 2 artifacts, 2 objects, 2 node records, 2 runs,"), "{planned}");
    assert!(planned.contains("small/next@1"), "{planned}");
    assert!(planned.lines().any(|line| line.split_whitespace().take(2).eq(["files", "2"])), "{planned}");
    // Without a terminal nobody can be asked.
    let refused = sandbox.sami(&["cache", "gc", "--keep-runs", "1"]).exits(USAGE.into());
    assert!(refused.stderr.contains("error[cli::not-confirmed]") && refused.stderr.contains(&planned), "{refused:?}");
    let done = sandbox.sami(&["cache", "gc", "--keep-runs", "1", "--yes"]).exits(0).stdout;
    assert_eq!(done, planned.lines().next().expect("a line").replace("would free", "freed") + "\n");
    assert_eq!(run_ids(&sandbox).len(), 1);
    sandbox.verify();
    assert_eq!(sandbox.run(&["--set", "word=bye"], 0).hits, 3);
    says(&sandbox, &["cache", "rebuild"], "index made again from 3 node records and 2 runs\n");
    assert_eq!(sandbox.run(&["--set", "word=bye"], 0).hits, 3);
    let du = sandbox.sami(&["cache", "du"]).exits(0).stdout;
    assert!(du.contains("objects: files") && du.contains("total"), "{du}");
}

/// The keys of a JSON object, in order.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn json_has_the_shapes_that_scripts_know() {
    let sandbox = project();
    let json = |args: &[&str]| sandbox.sami(&[args, &["--json"]].concat()).exits(DONE.into()).json();
    let ids = run_ids(&sandbox);
    let run_keys = [
        "failed", "file", "finished", "hits", "ok", "params", "pipeline", "ran", "run", "seconds", "skipped",
        "started", "state",
    ];
    assert_eq!(keys(&json(&["runs"])[0]), run_keys);
    let run = json(&["show", &ids[0]]);
    assert_eq!(keys(&run), ["run", "seconds", "state"]);
    let node_keys = ["artifact", "key", "kind", "metrics", "name", "seconds", "state"];
    assert_eq!(keys(&run["run"]["nodes"][1]), node_keys);
    let node = json(&["show", "next"]);
    assert_eq!(keys(&node), ["earlier", "record"]);
    assert_eq!(node["earlier"].as_array().map(Vec::len), Some(1));
    assert_eq!(node["record"]["preimage"]["fields"]["program"], "sh");
    let log = json(&["logs", "upper"]);
    assert_eq!(keys(&log), ["attempt", "log", "node", "path", "run"]);
    assert!(log["log"].as_str().expect("text").starts_with("making it\n"));
    let list = json(&["cache", "ls"]);
    let line_keys = ["artifact", "class", "files", "key", "node", "pipeline", "run", "size", "started", "type"];
    assert_eq!((list.as_array().map(Vec::len), keys(&list[0])), (Some(6), line_keys.to_vec()));
    assert_eq!(list[5]["node"], Value::Null);
    let shown = json(&["cache", "show", "upper"]);
    let shown_keys =
        ["artifact", "external", "files", "made_by", "paths", "preview", "record", "size", "type", "used_by"];
    assert_eq!(keys(&shown), shown_keys);
    assert_eq!(shown["used_by"][0]["node"], "next@1");
    assert_eq!(keys(&json(&["cache", "du"])), ["bytes", "kinds", "parts", "pipelines"]);
    let frees = json(&["cache", "du", "upper"]);
    assert_eq!(keys(&frees), ["bytes", "frees", "largest", "nodes", "pinned", "types", "what"]);
    assert_eq!(keys(&json(&["cache", "gc", "--dry-run"])["removed"])[..2], ["artifacts", "bytes"]);
    assert_eq!(json(&["cache", "verify"])["ok"], true);
    assert_eq!(json(&["cache", "gc", "--dry-run"])["dry_run"], true);
    assert_eq!(json(&["cache", "checkout", "upper", "out"])["files"][1], "upper.txt");
    assert_eq!(json(&["check", "p.toml"])["rows"]["posts"], 3);
    assert_eq!(json(&["dag", "p.toml"])["edges"][0]["from"], "posts");
    assert!(json(&["help", "command"])["page"].as_str().expect("text").contains("{input.NAME}"));
    assert_eq!(json(&["help"])["commands"][0]["name"], "check");
}

#[test]
fn documents_stay_as_they_are_in_words() {
    let sandbox = project();
    for (args, sign) in [
        (&["schema"][..], '…'),
        (&["dag", "p.toml", "--format", "dot"], '·'),
        (&["dag", "p.toml", "--format", "svg"], '·'),
    ] {
        let document = sandbox.sami(args).exits(0).stdout;
        assert!(document.contains(sign), "{document}");
        assert_eq!(sandbox.sami(&[args, &["--plain"]].concat()).exits(0).stdout, document, "{args:?}");
    }
}

#[test]
fn ids_may_be_cut_short_while_they_are_one() {
    let sandbox = project();
    let ids = run_ids(&sandbox);
    // The last letter of an id is as good as never needed.
    let short = &ids[1][..ids[1].len() - 1];
    assert!(sandbox.sami(&["show", short]).exits(0).stdout.contains(&ids[1]));
    let several = sandbox.sami(&["show", &ids[0][..4]]).exits(USAGE.into());
    assert!(several.stderr.contains("error[cli::ambiguous]"), "{}", several.stderr);
    assert!(ids.iter().all(|id| several.stderr.contains(id)), "{}", several.stderr);
    let several = sandbox.sami(&["logs", "upper", "--run", &ids[0][..4]]).exits(USAGE.into());
    assert!(several.stderr.contains("error[cli::ambiguous]"), "{}", several.stderr);
    let key = sandbox.sami(&["show", "upper", "--json"]).json()["record"]["key"].as_str().expect("a key").to_owned();
    assert!(sandbox.sami(&["show", &key[..10]]).exits(0).stdout.contains(&key));
    for (args, says) in [
        (&["show", "uper"][..], "a node with a similar name exists: `upper`"),
        (&["logs", "nxt@1"], "a node with a similar name exists: `next@1`"),
        (&["cache", "show", "upper2"], "a node with a similar name exists: `upper`"),
        (&["help", "comand"], "a topic with a similar name exists: `command`"),
        (&["logs", "upper", "--run", "x"], "`sami runs` lists them"),
    ] {
        let fault = sandbox.sami(args).exits(USAGE.into());
        assert!(fault.stderr.contains(says) && fault.stdout.is_empty(), "{args:?}: {}", fault.stderr);
    }
}

#[test]
fn a_node_that_failed_is_told_of() {
    let sandbox = Sandbox::with(&PIPELINE.replace("echo making it", "echo cannot; exit 7"));
    sandbox.write("posts.jsonl", "{\"id\": 1}\n");
    let done = sandbox.run(&[], 1);
    assert_eq!((done.names("failed"), done.names("skipped")), (vec!["upper"], vec!["next@1", "next@2"]));
    let fault = sandbox.sami(&["show", "upper"]).exits(USAGE.into()).stderr;
    assert!(fault.contains("node `upper` has no result: it failed in run") && fault.contains("`sami logs upper`"));
    let fault = sandbox.sami(&["cache", "show", "next"]).exits(USAGE.into()).stderr;
    assert!(fault.contains("node `next@2` has no result: it was skipped in run"), "{fault}");
    assert!(sandbox.sami(&["logs", "upper"]).exits(0).stdout.starts_with("cannot\n"));
    assert!(plain(&sandbox.sami(&["runs"]).exits(0).stdout).ends_with("RUN small TIME TOOK failed 0 0 1 2\n"));
    // Made once, then broken: the result stands, and what came after it is told.
    sandbox.write("p.toml", PIPELINE);
    sandbox.run(&[], 0);
    sandbox.write("p.toml", &PIPELINE.replace("echo making it", "exit 7"));
    sandbox.run(&[], 1);
    let shown = plain(&sandbox.sami(&["show", "upper"]).exits(0).stdout);
    assert!(shown.contains("\nsince failed in run RUN\n"), "{shown}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let sandbox = project();
    sandbox.write("big.toml", "[datasets.a]\nmake = { rows = 200000, seed = 1, template = '{\"n\": {{ row }}}' }\n[nodes.b]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"cp {input.a}/rows.jsonl .\"]\ninputs = { a = \"a\" }\n");
    sandbox.sami(&["run", "big.toml"]).exits(DONE.into());
    for args in [&["cache", "cat", "b"][..], &["cache", "ls"], &["show", "b", "--json"], &["help", "command"]] {
        let mut child = sandbox.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut first = [0; 1];
        let mut stdout = child.stdout.take().expect("piped");
        stdout.read_exact(&mut first).expect("a byte");
        drop(stdout);
        let output = Output::from(child.wait_with_output().expect("it ends"));
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{args:?}");
    }
    // A disk that is full is one.
    if let Ok(full) = fs_err::OpenOptions::new().write(true).open("/dev/full") {
        let mut command = sandbox.command(&["runs"]);
        let output = Output::from(command.stdout(full.into_parts().0).output().expect("it starts"));
        assert!(output.code == 1 && output.stderr.contains("error[cli::io]"), "{output:?}");
    }
}

#[test]
fn nothing_is_said_by_colour_alone() {
    let sandbox = Sandbox::with("nam = 1\n");
    let told = |name: &str, value: &str| {
        let mut command = sandbox.command(&["check", "p.toml"]);
        command.env("CLICOLOR_FORCE", "1").env(name, value);
        Output::from(command.output().expect("it starts")).exits(USAGE.into()).stderr
    };
    let (coloured, bare) = (told("TERM", "xterm"), told("NO_COLOR", "1"));
    assert!(coloured.contains('\u{1b}') && !bare.contains('\u{1b}'), "{bare}");
    let codes = Regex::new("\u{1b}\\[[0-9;]*m").expect("a pattern");
    assert_eq!(codes.replace_all(&coloured, ""), bare);
}

#[test]
fn help_tells_of_kinds_and_commands() {
    let sandbox = Sandbox::new();
    let all = sandbox.sami(&["help"]).exits(0).stdout;
    assert!(all.contains("  generate      ") && all.contains("  cache         "), "{all}");
    assert!(sandbox.sami(&["help", "generate"]).exits(0).stdout.starts_with("generate\n\nResponses"));
    assert!(sandbox.sami(&["help", "cache", "gc"]).exits(0).stdout.contains("--keep-runs"));
    assert!(sandbox.sami(&["cache", "gc", "--help"]).exits(0).stdout.contains("--keep-runs"));
    let typo = sandbox.sami(&["cache", "verfy"]).exits(USAGE.into());
    assert!(typo.stderr.contains("verify"), "{}", typo.stderr);
    assert_eq!(sandbox.files("cache").len(), 0);
    // Readers make no cache.
    for args in [&["runs"][..], &["cache", "ls"], &["show", "x"], &["logs", "x"]] {
        assert!(sandbox.sami(args).exits(USAGE.into()).stderr.contains("error[store::absent]"));
    }
    assert!(!sandbox.path("cache").exists());
}
