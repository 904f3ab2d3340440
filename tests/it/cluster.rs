//! Runs whose attempts are jobs of an engine: here of lines of shell that start processes, so that no cluster is needed.
//! `slurm` has the same on a real one.

use std::process::Stdio;
use std::time::Duration;

use super::sandbox::{Output, Sandbox, until};

/// Jobs are processes in sessions of their own, known by their numbers.
const PROFILE: &str = r#"
    [profiles.jobs]
    executor = "command"
    submit = "setsid sh {script} </dev/null >>{log} 2>&1 & echo $!; echo {mark} $! >> jobs"
    poll = "for p in {ids}; do if readlink /proc/$p/exe >/dev/null; then echo $p runs here; fi; done"
    cancel = "kill {ids} 2>/dev/null || true"
    find = "for m in {marks}; do grep \"^$m \" jobs || true; done"
    interval = "100ms"
    lag = "1s"
    probe = false
"#;

const PIPELINE: &str = r#"
    schema = 1
    name = "toy"
    [nodes.words]
    kind = "command"
    program = "sh"
    args = ["-c", "seq 1 20 > out; echo said"]
    [nodes.hold]
    kind = "command"
    program = "sh"
    args = ["-c", "while [ ! -e {output}/../../../../go ] && [ ! -e {output}/../../../../../go ]; do sleep 0.02; done; tac {input.words}/out > out"]
    inputs = { words = "words" }
"#;

const RUN: [&str; 5] = ["run", "p.toml", "--json", "--profile", "jobs"];

fn project() -> Sandbox {
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.write("sami.toml", PROFILE);
    sandbox
}

fn artifacts(output: Output) -> Vec<Option<String>> {
    output.exits(0).done().nodes.into_iter().map(|node| node.artifact).collect()
}

/// Waits for a file whose path ends so; returns its text.
#[track_caller]
fn said(sandbox: &Sandbox, end: &str, holds: &str) -> String {
    until(&format!("`{holds}` is in {end}"), || {
        let files = sandbox.files("cache/runs");
        let mut files = files.iter().filter(|file| file.to_string_lossy().ends_with(end));
        files.find_map(|file| fs_err::read_to_string(file).ok().filter(|text| text.contains(holds)))
    })
}

#[test]
fn a_pipeline_in_jobs_makes_what_it_makes_here() {
    let sandbox = project();
    sandbox.write("go", "");
    let expected = artifacts(sandbox.sami(&["run", "p.toml", "--json", "--cache", "local"]));
    let output = sandbox.sami(&RUN);
    assert!(output.stdout.contains("\"event\":\"node-job\""), "{}", output.stdout);
    assert_eq!(artifacts(output), expected);
    assert_eq!(sandbox.read("jobs").lines().count(), 2, "each node was a job");
    assert_eq!(sandbox.sami(&RUN).exits(0).done().hits, 2);
    assert!(sandbox.sami(&["logs", "words"]).exits(0).stdout.contains("said"));
    let left = sandbox.files("cache/partial").len() + sandbox.files("cache/tmp").len();
    assert_eq!(left, 0, "nothing is left over");
    sandbox.verify();

    // Kinds and nodes may stay here, and a probe sees that all is well.
    let sandbox = project();
    sandbox.write("go", "");
    let text = PROFILE.replace("probe = false", "[profiles.jobs.nodes.words]\nrun_on = \"here\"");
    sandbox.write("sami.toml", &text);
    assert_eq!(artifacts(sandbox.sami(&RUN)), expected);
    let jobs = sandbox.read("jobs");
    assert_eq!(jobs.lines().count(), 2, "a probe and a node: {jobs}");
    assert!(jobs.starts_with("probe/") && jobs.contains("/hold.1 "), "{jobs}");
}

#[test]
fn a_profile_that_is_not_there_and_a_failing_job_are_told_of() {
    let sandbox = project();
    let output = sandbox.sami(&["run", "p.toml", "--profile", "jbos"]).exits(2);
    assert!(output.stderr.contains("cli::unknown-profile") && output.stderr.contains("`jobs`"), "{}", output.stderr);
    sandbox.sami(&["attach"]).exits(2);
    // Here is no Slurm, as far as the path goes.
    sandbox.write("sami.toml", "[profiles.jobs]\nexecutor = \"slurm\"\n");
    let mut command = sandbox.command(&RUN);
    let output: Output = command.env("PATH", "/nowhere").output().expect("it starts").into();
    assert!(output.exits(2).stderr.contains("cluster::no-program"));
    // The worker's own failure, with its log; a job that cannot be submitted; one that dies without a word.
    sandbox.write("sami.toml", PROFILE);
    sandbox.write(
        "p.toml",
        "schema = 1\n[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo why; exit 3\"]\n",
    );
    let output = sandbox.sami(&RUN).exits(1);
    assert!(output.stderr.contains("exit") && output.stderr.contains("why"), "{}", output.stderr);
    sandbox.write("sami.toml", &PROFILE.replace("setsid sh {script}", "false; exit 4; true"));
    let output = sandbox.sami(&RUN).exits(1);
    assert!(output.stderr.contains("`submit` of the profile fails"), "{}", output.stderr);
    let dying =
        PROFILE.replace("setsid sh {script}", "setsid true").replace("lag = \"1s\"", "lag = \"200ms\"\nretries = 1");
    sandbox.write("sami.toml", &dying);
    let output = sandbox.sami(&RUN).exits(1);
    assert!(output.stderr.contains("not known to the engine any more, 2 times"), "{}", output.stderr);
}

#[test]
fn a_job_goes_on_when_its_scheduler_dies_and_another_one_finds_it() {
    let sandbox = project();
    sandbox.write("go", "");
    let expected = artifacts(sandbox.sami(&["run", "p.toml", "--json", "--cache", "local"]));
    // Killed while a job runs; killed when a job's number was not written down yet.
    for fault in ["", "kill:submitted:2"] {
        let sandbox = project();
        let mut command = sandbox.command(&RUN);
        let mut going =
            command.env("SAMI_FAULT", fault).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        said(&sandbox, "hold.1/words.jsonl", "began");
        let _ = going.kill();
        going.wait().expect("it ends");
        let again = sandbox.command(&["attach", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let again = again.expect("it starts");
        said(&sandbox, "events.jsonl", "\"state\":\"adopted\"");
        std::thread::sleep(Duration::from_millis(400));
        sandbox.write("go", "");
        let output: Output = again.wait_with_output().expect("it ends").into();
        assert_eq!(artifacts(output), expected, "{fault}");
        assert_eq!(sandbox.read("jobs").lines().count(), 2, "no job was started twice: {}", sandbox.read("jobs"));
        sandbox.verify();
    }
}

#[test]
fn an_interrupt_lets_jobs_save_or_leaves_them_as_the_profile_says() {
    let interrupt = |lines: &str| {
        let sandbox = project();
        sandbox.write("sami.toml", &format!("{PROFILE}{lines}\n"));
        let mut command = sandbox.command(&["run", "p.toml", "--profile", "jobs"]);
        let going = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        said(&sandbox, "hold.1/words.jsonl", "began");
        // The watcher is to have seen that it runs, not another one.
        until("the job is seen to run", || {
            let runs = |line: &str| line.contains("\"node\":\"hold\"") && line.contains("\"state\":\"runs\"");
            let events = sandbox.files("cache/runs").into_iter().find(|file| file.ends_with("events.jsonl"))?;
            sandbox.read(events).lines().any(runs).then_some(())
        });
        rustix::process::kill_process(rustix::process::Pid::from_child(&going), rustix::process::Signal::INT)
            .expect("it is there");
        let output: Output = going.wait_with_output().expect("it ends").into();
        (sandbox, output.exits(130))
    };
    let (sandbox, _) = interrupt("");
    assert!(said(&sandbox, "hold.1/result.json", "told").contains("\"file\""), "it was told to stop");
    let (sandbox, output) = interrupt("on_interrupt = \"leave\"");
    assert!(output.stderr.contains("1 job goes on: sami attach "), "{}", output.stderr);
    sandbox.write("go", "");
    said(&sandbox, "hold.1/result.json", "done");
    // What it made while no one was there is taken as it is.
    assert_eq!(sandbox.sami(&["attach", "--json"]).exits(0).done().ran, 1);
    assert_eq!(sandbox.read("jobs").lines().count(), 2);
    let (sandbox, _) = interrupt("on_interrupt = \"cancel\"");
    said(&sandbox, "hold.1/result.json", "interrupted");
    sandbox.write("go", "");
    assert_eq!(sandbox.sami(&RUN).exits(0).done().ran, 1);
}
