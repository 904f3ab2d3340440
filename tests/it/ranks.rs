//! Training on several ranks: the same artifact on any number of them, whatever becomes of a rank, and no process left behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::sandbox::{Output, Sandbox, until};

/// A small training; `RUN` is what its `run` has.
const PIPELINE: &str = r#"
[datasets.documents]
make = { rows = 32, seed = 1, template = '{"text": "is it a {{ choose(["saw", "cat", "pear"]) }} {{ choose(["yes .", "no , it is not ."]) }}"}' }

[models.blank]
init = { hidden_size = 16, layers = 1, heads = 2, max_positions = 32, tokenizer = { from = "documents" } }

[nodes.base]
kind = "finetune"
objective = "lm"
model = "blank"
examples = "documents"
steps = STEPS
batch_queries = 8
checkpoint_every = 2
optimizer = { lr = 0.03 }
run = { RUN }
"#;

fn pipeline(run: &str, steps: u64) -> String {
    PIPELINE.replace("RUN", run).replace("STEPS", &steps.to_string())
}

/// Runs with a fault.
fn faulty(sandbox: &Sandbox, fault: &str) -> Output {
    sandbox.command(&["run", "p.toml", "--json"]).env("SAMI_FAULT", fault).output().expect("it starts").into()
}

/// What `base` made.
fn made(done: &super::sandbox::Done) -> (Option<String>, Option<String>) {
    let node = done.nodes.iter().find(|node| node.name == "base").expect("it is there");
    (node.key.clone(), node.artifact.clone())
}

/// The log of the last attempt at `base`.
fn log(sandbox: &Sandbox) -> String {
    sandbox.sami(&["logs", "base"]).exits(0).stdout
}

#[test]
fn any_number_of_ranks_makes_the_same_artifact() {
    let sandbox = Sandbox::with(&pipeline("ranks = 1", 5));
    let alone = made(&sandbox.run(&[], 0));
    sandbox.write("p.toml", &pipeline("ranks = 2", 5));
    assert_eq!(sandbox.run(&[], 0).ran, 0, "it is in no key");
    assert_eq!(made(&sandbox.run(&["--force", "base"], 0)), alone);
    // More ranks than there are threads; an audit computes it in one process.
    sandbox.write("p.toml", &pipeline("ranks = 3, threads = 1", 5));
    assert_eq!(made(&sandbox.run(&["--force", "base"], 0)), alone);
    sandbox.sami(&["audit", "base"]).exits(0);
    sandbox.verify();

    let without = Sandbox::with(&pipeline("", 5));
    let (key, _) = made(&without.run(&[], 0));
    assert_eq!(key, alone.0);
}

#[test]
fn a_lost_rank_ends_the_attempt_which_goes_on_with_fewer() {
    let whole = made(&Sandbox::with(&pipeline("ranks = 2", 7)).run(&[], 0));
    let sandbox = Sandbox::with(&pipeline("ranks = 3", 7));
    let lost = faulty(&sandbox, "kill:rank 2 step:5");
    assert_eq!(lost.code, 1, "{}", lost.stderr);
    assert!(lost.stderr.contains("rank 2 of 3 is lost: it crashed (signal 6)"), "{}", lost.stderr);
    sandbox.write("p.toml", &pipeline("ranks = 2", 7));
    assert_eq!(made(&sandbox.run(&[], 0)), whole);
    assert!(log(&sandbox).contains("goes on after step 4"), "{}", log(&sandbox));

    // What ranks began, one process without any ends.
    let sandbox = Sandbox::with(&pipeline("ranks = 2", 7));
    assert_eq!(faulty(&sandbox, "kill:rank 1 step:4").code, 1);
    sandbox.write("p.toml", &pipeline("", 7));
    assert_eq!(made(&sandbox.run(&[], 0)), whole);
}

/// Processes that have all of some words in their command lines.
fn processes(words: &[&str]) -> Vec<i32> {
    let is_it = |pid: &i32| {
        let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        words.iter().all(|word| line.contains(word))
    };
    let all = fs_err::read_dir("/proc").expect("there is one");
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(is_it).collect()
}

fn kill(pid: i32) {
    let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().expect("it starts");
    assert!(status.success());
}

/// Starts a training that does not end, and waits until its second rank is at work.
fn endless(sandbox: &Sandbox) -> (Child, i32) {
    let child = sandbox.command(&["run", "p.toml", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let place = sandbox.path("").display().to_string();
    let rank = until("a rank", || processes(&["--rank 1", &place]).pop());
    until("a checkpoint", || {
        sandbox.files("cache").iter().find(|path| path.ends_with("checkpoint.safetensors")).cloned()
    });
    (child.expect("it starts"), rank)
}

#[test]
fn no_process_outlives_what_it_belongs_to() {
    let sandbox = Sandbox::with(&pipeline("ranks = 2, threads = 1", 1_000_000));
    let place = sandbox.path("").display().to_string();
    let gone = || until("all are gone", || processes(&["worker", &place]).is_empty().then_some(()));
    // A rank: the attempt ends, and says so.
    let (child, rank) = endless(&sandbox);
    kill(rank);
    let output: Output = child.wait_with_output().expect("it ends").into();
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stderr.contains("rank 1 of 2 is lost: it was killed (signal 9)"), "{}", output.stderr);
    gone();
    // Rank 0: what the others do is of no use.
    let (child, rank) = endless(&sandbox);
    let first = processes(&["worker", &place]).into_iter().find(|pid| *pid != rank).expect("there is one");
    kill(first);
    assert_eq!(child.wait_with_output().expect("it ends").status.code(), Some(1));
    gone();
    // The scheduler.
    let (mut child, _) = endless(&sandbox);
    child.kill().expect("it is there");
    child.wait().expect("it ends");
    gone();
    // An interrupt: a checkpoint, and an orderly end.
    let (child, _) = endless(&sandbox);
    let status = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(status.expect("it starts").success());
    let output: Output = child.wait_with_output().expect("it ends").into();
    assert_eq!(output.code, 130, "{}", output.stderr);
    gone();
}

/// Starts a task of a step of Slurm by hand.
fn task(job: &Path, rank: usize, tasks: usize) -> Child {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sami"));
    command.arg("worker").arg(job).stdin(Stdio::null()).stderr(Stdio::piped());
    for (name, value) in [("PROCID", rank), ("NTASKS", tasks), ("STEP_ID", 0), ("JOB_ID", 4711)] {
        command.env(format!("SLURM_{name}"), value.to_string());
    }
    command.spawn().expect("it starts")
}

#[test]
fn tasks_of_a_slurm_step_are_ranks() {
    let sandbox = Sandbox::with(&pipeline("ranks = 3", 7));
    let whole = made(&Sandbox::with(&pipeline("ranks = 2", 7)).run(&[], 0));
    assert_eq!(faulty(&sandbox, "kill:rank 1 step:1").code, 1);
    let files = sandbox.files("cache");
    let job = files.iter().find(|path| path.ends_with("job.json") && path.to_string_lossy().contains("base"));
    let job = sandbox.path("cache").join(job.expect("it was started"));
    let text = fs_err::read_to_string(&job).expect("reads");
    let told: Value = serde_json::from_str(&text).expect("is JSON");
    let place = |field: &str| Path::new(told[field].as_str().expect("a path")).to_owned();
    fs_err::create_dir_all(place("staging")).expect("makes");
    fs_err::create_dir_all(place("scratch")).expect("makes");

    let refused = task(&job, 1, 2).wait_with_output().expect("ends");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("this is task 1 of 2 of the Slurm step, and `run.ranks` is 3"), "{said}");

    // By hand no rank is started: rank 0 does that.
    let mut alone = std::process::Command::new(env!("CARGO_BIN_EXE_sami"));
    let alone = alone.args(["worker", "--rank", "1"]).arg(&job).stdin(Stdio::null()).output().expect("starts");
    assert_eq!(alone.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&alone.stderr).contains("does not say where rank 0 is"), "{alone:?}");

    let tasks: Vec<Child> = [1, 2, 0].into_iter().map(|rank| task(&job, rank, 3)).collect();
    for task in tasks {
        let output = task.wait_with_output().expect("ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let result: BTreeMap<String, Value> =
        serde_json::from_slice(&fs_err::read(place("result")).expect("rank 0 wrote it")).expect("is JSON");
    assert_eq!((&result["state"], &result["artifact"]), (&json!("done"), &json!(whole.1)));
    let left = fs_err::read_dir(job.parent().expect("a directory")).expect("there");
    let left: Vec<_> = left.map(|entry| entry.expect("there").file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("ranks")), "{left:?}");
}

/// Jobs are processes in sessions of their own; what they ask for is in `asked`.
const PROFILE: &str = r#"
[profiles.jobs]
executor = "command"
submit = "echo {cpus} >> asked; setsid sh {script} </dev/null >>{log} 2>&1 & echo $!"
poll = "for p in {ids}; do if readlink /proc/$p/exe >/dev/null; then echo $p runs; fi; done"
cancel = "kill {ids} 2>/dev/null || true"
interval = "100ms"
lag = "1s"
probe = false
"#;

/// A step of three tasks, each of which is what its arguments say.
const STEP: &str = "for rank in 1 2 0; do\n\
    SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=3 SLURM_JOB_ID=7 SLURM_PROCID=$rank \"$@\" &\n\
    done\nwait\n";

#[test]
fn a_job_has_all_its_ranks_or_is_one_of_several_tasks() {
    let whole = made(&Sandbox::with(&pipeline("ranks = 2", 5)).run(&[], 0));
    let sandbox = Sandbox::with(&pipeline("ranks = 3", 5));
    let text_of = |end: &str| {
        let files = sandbox.files("cache");
        let file = files.iter().rfind(|path| path.ends_with(end) && path.to_string_lossy().contains("base"));
        fs_err::read_to_string(file.expect("it is there")).expect("reads")
    };
    let run = |more: &[&str], profile: &str| -> Output {
        sandbox.write("sami.toml", profile);
        let mut command = sandbox.command(&["run", "p.toml", "--json", "--profile", "jobs", "--force", "base"]);
        // A step of one task is no team.
        for (name, value) in [("PROCID", "0"), ("NTASKS", "1"), ("STEP_ID", "0"), ("JOB_ID", "4711")] {
            command.env(format!("SLURM_{name}"), value);
        }
        command.args(more).output().expect("it starts").into()
    };
    // What a profile asks for is for all ranks, and at least a thread for each.
    assert_eq!(made(&run(&[], &format!("{PROFILE}cpus = 8\n")).exits(0).done()), whole);
    assert!(text_of("job.sh").contains("RAYON_NUM_THREADS=2\n"), "{}", text_of("job.sh"));
    assert_eq!(made(&run(&[], PROFILE).exits(0).done()), whole);
    assert!(sandbox.read("asked").ends_with("\n3\n"), "{}", sandbox.read("asked"));

    sandbox.write("step", STEP);
    let tasks = format!("{PROFILE}kinds.finetune.container = [\"sh\", \"step\"]\n");
    assert_eq!(made(&run(&[], &tasks).exits(0).done()), whole);
    let words = text_of("words.jsonl");
    assert_eq!(words.lines().filter(|word| word.contains("\"began\"")).count(), 1, "rank 0 speaks: {words}");
    sandbox.verify();

    let refused = run(&[], &format!("{PROFILE}gres = \"gpu:2\"\n")).exits(2).stderr;
    assert!(refused.contains("exec::too-many-ranks") && refused.contains("there is room for 2"), "{refused}");
}

#[test]
fn ranks_that_cannot_be_are_refused_before_any_work() {
    let refused = |pipeline: &str, title: &str, help: &str| {
        let sandbox = Sandbox::with(pipeline);
        let said = sandbox.sami(&["check", "p.toml"]).exits(2).stderr;
        assert!(said.contains("pipeline::bad-run") && said.contains(title) && said.contains(help), "{said}");
    };
    refused(&pipeline("ranks = 0", 5), "`ranks` in `run` of node `base` does not fit", "give 1 or more");
    refused(&pipeline("ranks = 9", 5), "`ranks` in `run` of node `base` is 9", "give 8 or fewer");
    let last = pipeline("ranks = 5", 5)
        .replace("batch_queries = 8", "batch_queries = 8\naccumulation = { parts = 2, kept = \"last\" }");
    refused(&last, "`ranks` in `run` of node `base` is 5", "give 4 or fewer");
    let many = pipeline("ranks = 17", 5).replace("batch_queries = 8", "batch_queries = 32");
    refused(&many, "`ranks` in `run` of node `base` is 17", "give 16 or fewer");
    let other = "[nodes.a]\nkind = \"command\"\nprogram = \"true\"\nrun = { ranks = 2 }\n";
    refused(other, "`ranks` in `run` of node `a` is 2", "leave it out: only a `finetune`");
}
