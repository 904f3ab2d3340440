//! Killed, interrupted, crashed, out of disk, or twice at once: a rerun just works and ends in the same artifacts.

use std::fmt::Write as _;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sami::digest::Digest;

use super::sandbox::{Done, Output, Sandbox, wait_until};

/// A source, a chain, a fan and a join; nodes take a moment, note that they end, and write in two goes, so that a torn
/// output would be seen.
fn pipeline(sandbox: &Sandbox) -> String {
    let mut text = String::from("[datasets.source]\nsource = \"source.txt\"\n");
    let notes = sandbox.path("notes").display().to_string();
    let mut node = |name: &str, inputs: &[&str]| {
        let reads = inputs.iter().fold(String::new(), |text, input| format!("{text}cat {{input.{input}}}/*; "));
        let inputs: Vec<String> = inputs.iter().map(|input| format!("{input} = \"{input}\"")).collect();
        let _ = writeln!(
            text,
            "[nodes.{name}]\nkind = \"command\"\nprogram = \"sh\"\ninputs = {{ {} }}\nargs = [\"-ec\", '''\
             echo first {name} > out; {reads} sleep 0.03; (echo second {name}; {reads}) >> out; echo {name} >> {notes}''']",
            inputs.join(", ")
        );
    };
    node("a", &["source"]);
    node("b", &["a"]);
    for name in ["c", "d", "e"] {
        node(name, &["b"]);
    }
    node("f", &["c", "d", "e"]);
    text
}

fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("source.txt", "one\ntwo\n");
    sandbox.write("p.toml", &pipeline(&sandbox));
    sandbox
}

pub(crate) fn start(sandbox: &Sandbox) -> Child {
    let mut command = sandbox.command(&["run", "p.toml", "--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

pub(crate) fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).stderr(Stdio::null()).status();
    sent.expect("there is a `kill`");
}

/// Processes that a process started, directly.
pub(crate) fn children(process: u32) -> Vec<u32> {
    let listed = fs_err::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// The most that anything here is waited for.
pub(crate) const MOST: Duration = Duration::from_secs(60);

/// Processes that have something of the sandbox on their command line.
pub(crate) fn left_over(sandbox: &Sandbox) -> Vec<String> {
    let path = sandbox.path("").display().to_string();
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").expect("there is a /proc").flatten() {
        let Ok(line) = fs_err::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&path) {
            found.push(line);
        }
    }
    found
}

/// The same numbers in every run of the tests.
fn random(seed: &str, below: u64) -> u64 {
    u64::from_le_bytes(Digest::of(seed.as_bytes()).as_bytes()[..8].try_into().expect("eight bytes")) % below
}

#[test]
fn kill_scheduler_or_worker_anywhere_and_the_rerun_ends_the_same() {
    let calm = project();
    let begin = Instant::now();
    let undisturbed = calm.run(&[], 0);
    let length = begin.elapsed().as_millis() as u64;
    for trial in 0..24 {
        let sandbox = project();
        let mut child = start(&sandbox);
        std::thread::sleep(Duration::from_millis(random(&format!("when {trial}"), length)));
        if trial % 3 == 0 {
            for worker in children(child.id()) {
                signal("KILL", worker);
            }
        } else {
            child.kill().expect("it can be killed");
        }
        let output: Output = child.wait_with_output().expect("it ends").into();
        assert!([0, 1, 128 + 9].contains(&output.code), "{output:?}");
        let done = sandbox.run(&[], 0);
        assert_eq!(artifacts(&done), artifacts(&undisturbed), "trial {trial}");
        sandbox.verify();
        // A file that was being written may stay for an hour; what attempts wrote may not.
        let left = fs_err::read_dir(sandbox.path("cache/tmp")).expect("there").flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
        assert!(left.iter().all(|name| name.starts_with('.')), "trial {trial} left {left:?} in tmp/");
    }
}

/// Artifacts by node. Keys differ from project to project, for their paths are in commands.
fn artifacts(done: &Done) -> Vec<(&str, &str)> {
    done.nodes.iter().map(|node| (node.name.as_str(), node.artifact.as_deref().unwrap_or_default())).collect()
}

#[test]
fn workers_and_what_they_started_die_with_the_scheduler() {
    let sandbox = Sandbox::new();
    let mark = sandbox.path("mark").display().to_string();
    sandbox.write(
        "p.toml",
        &format!("[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"touch {mark}; sleep 600 & sleep 600; : {mark}\"]\n"),
    );
    let mut child = start(&sandbox);
    wait_until("the node runs", MOST, || sandbox.path("mark").exists());
    assert!(left_over(&sandbox).len() >= 2);
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    wait_until("the workers are gone", MOST, || left_over(&sandbox).is_empty());
}

#[test]
fn interrupted_once_it_stops_and_the_rerun_goes_on() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("").display().to_string();
    sandbox.write(
        "p.toml",
        &format!(
            "[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo > out\"]\n
             [nodes.b]\nkind = \"command\"\nprogram = \"sh\"\ninputs = {{ a = \"a\" }}\nargs = [\"-c\", \
             \"touch {folder}/mark; test -e {folder}/quick || sleep 600; echo > out\"]\n"
        ),
    );
    let child = start(&sandbox);
    wait_until("the node runs", MOST, || sandbox.path("mark").exists());
    let begin = Instant::now();
    signal("INT", child.id());
    let output: Output = child.wait_with_output().expect("it ends").into();
    let output = output.exits(130);
    assert!(begin.elapsed() < Duration::from_secs(30));
    let done = output.done();
    assert_eq!((done.ok, done.names("ran"), done.names("skipped")), (false, vec!["a"], vec!["b"]));
    wait_until("the workers are gone", MOST, || left_over(&sandbox).is_empty());
    sandbox.write("quick", "");
    assert_eq!(sandbox.run(&[], 0).names("ran"), ["b"]);
}

#[test]
fn interrupted_twice_it_stops_at_once() {
    let sandbox = Sandbox::new();
    let mark = sandbox.path("mark").display().to_string();
    sandbox.write(
        "p.toml",
        &format!(
            "[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"touch {mark}; sleep 600; : {mark}\"]\n"
        ),
    );
    let mut child = start(&sandbox);
    wait_until("the node runs", MOST, || sandbox.path("mark").exists());
    // A worker that is stopped cannot hear the first one.
    for worker in children(child.id()) {
        signal("STOP", worker);
    }
    signal("INT", child.id());
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().expect("it can be waited for").is_none(), "it did not wait for its worker");
    signal("TERM", child.id());
    let output: Output = child.wait_with_output().expect("it ends").into();
    output.exits(130);
    wait_until("the workers are gone", MOST, || left_over(&sandbox).is_empty());
}

#[test]
fn a_worker_that_crashes_leaves_no_result() {
    let sandbox = Sandbox::new();
    let calm = sandbox.path("calm").display().to_string();
    sandbox.write(
        "p.toml",
        &format!("[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo half > out; test -e {calm} || kill -9 $PPID; sleep 0.2; echo whole > out\"]\n"),
    );
    let output = sandbox.sami(&["run", "p.toml"]).exits(1);
    assert!(output.stderr.contains("killed (signal 9)"), "{}", output.stderr);
    sandbox.write("calm", "");
    sandbox.run(&[], 0);
    assert_eq!(sandbox.sami(&["cache", "cat", "a"]).exits(0).stdout, "whole\n");
}

#[test]
fn two_runs_at_once_share_the_work() {
    let sandbox = project();
    let both = [start(&sandbox), start(&sandbox)];
    let both = both.map(|child| Output::from(child.wait_with_output().expect("it ends")).exits(0).done());
    assert_eq!(both[0].results(), both[1].results());
    let mut notes: Vec<String> = sandbox.read("notes").lines().map(str::to_owned).collect();
    notes.sort();
    assert_eq!(notes, ["a", "b", "c", "d", "e", "f"], "each node runs once");
    assert_eq!(both[0].ran + both[1].ran, 6);
    sandbox.verify();
}

#[test]
fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let calm = project();
    let undisturbed = calm.run(&[], 0);
    let sandbox = project();
    for operation in [1, 2, 3, 5, 8, 13, 20, 30, 40, 55, 70, 90, 120] {
        let mut command = sandbox.command(&["run", "p.toml"]);
        let output: Output =
            command.env("SAMI_FAULT", format!("store-op:{operation}")).output().expect("the binary starts").into();
        if output.code != 0 {
            assert!(output.code == 1 && output.stderr.contains("no space left"), "operation {operation}: {output:?}");
        }
        if sandbox.path("cache/VERSION").exists() {
            sandbox.verify();
        }
    }
    let done = sandbox.run(&[], 0);
    assert_eq!(artifacts(&done), artifacts(&undisturbed));
}

#[test]
fn a_clock_that_jumps_back_changes_nothing() {
    let sandbox = project();
    sandbox.run(&[], 0);
    sandbox.write("source.txt", "three\n");
    let mut command = sandbox.command(&["run", "p.toml", "--json"]);
    let output = command.env("SAMI_FAULT", "clock:-100000000").output().expect("the binary starts");
    let done = Output::from(output).exits(0).done();
    assert_eq!(done.ran, 6);
    assert_eq!(sandbox.run(&[], 0).hits, 6);
    let mut runs: Vec<String> = Vec::new();
    for path in sandbox.files("cache/runs").iter().filter(|path| path.ends_with("run.json")) {
        let mut text = String::new();
        fs_err::File::open(path).expect("opens").read_to_string(&mut text).expect("reads");
        runs.push(text);
    }
    let ran: Vec<usize> = runs.iter().map(|run| run.matches("\"state\": \"ran\"").count()).collect();
    assert_eq!(ran, [6, 6, 0], "runs are not in order");
}
