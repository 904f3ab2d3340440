//! Runs on a real Slurm: whatever happens to jobs, nodes, controller and scheduler, the artifacts are those of a run on this
//! machine.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::resume::PIPELINE as MODEL;
use super::sandbox::{Output, Sandbox, until};
use super::slurm_run::{COMMANDS, Going, PROFILE, RUN, artifacts, begun, job, locally, project};
use super::slurm_server::Slurm;

#[test]
#[ignore = "slow: starts a cluster"]
fn what_happens_to_jobs_and_schedulers_changes_no_artifact() {
    let Some(slurm) = Slurm::start() else { return };

    // All goes well; an admin sees what a job is.
    let sandbox = project(COMMANDS);
    sandbox.write("go", "");
    let expected = locally(&sandbox);
    assert_eq!(artifacts(slurm.sami(&sandbox, &RUN)), expected);
    let jobs = slurm.ask("squeue", &["-h", "-t", "all", "-o", "%j|%T|%k"]);
    assert_eq!(jobs.lines().count(), 3, "{jobs}");
    assert!(
        jobs.contains("sami:toy/sum|COMPLETED|") && jobs.contains("node sum (command) of pipeline toy, run "),
        "{jobs}"
    );
    assert_eq!(slurm.sami(&sandbox, &RUN).exits(0).done().hits, 3);
    sandbox.verify();

    // A job is cancelled by hand: that is said, and nothing is lost.
    let sandbox = project(COMMANDS);
    let going = Going::start(&slurm, &sandbox, &RUN);
    slurm.ask("scancel", &[&job(&begun(&sandbox, &[]))]);
    let output = going.end().exits(1);
    assert!(output.stderr.contains("its job was cancelled on n"), "{}", output.stderr);
    sandbox.write("go", "");
    assert_eq!(artifacts(slurm.sami(&sandbox, &RUN)), expected);

    // The scheduler is killed; another one finds the job and does not start it again.
    let sandbox = project(COMMANDS);
    let going = Going::start(&slurm, &sandbox, &RUN);
    let attempt = begun(&sandbox, &[]);
    let id = job(&attempt);
    drop(going);
    let going = Going::start(&slurm, &sandbox, &["attach", "--json"]);
    until("the second run", || {
        sandbox.files("cache/runs").iter().filter(|file| file.ends_with("events.jsonl")).nth(1).cloned()
    });
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(slurm.ask("squeue", &["-h", "-o", "%i"]).trim(), id);
    sandbox.write("go", "");
    let output = going.end();
    assert!(output.stdout.contains("\"state\":\"adopted\""), "{}", output.stdout);
    assert_eq!(artifacts(output), expected);
    assert!(attempt.join("result.json").exists());

    // It is killed between a job's submission and its id being written down: the mark leads to it.
    let sandbox = project(COMMANDS);
    let mut command = slurm.command(&sandbox, &RUN);
    command.env("SAMI_FAULT", "kill:submitted:2");
    Output::from(command.output().expect("it starts")).exits(128 + 6);
    begun(&sandbox, &[]);
    let going = Going::start(&slurm, &sandbox, &RUN);
    until("the job to be found", || {
        let found = |file: &PathBuf| file.ends_with("engine.json") && sandbox.read(file).contains("\"job\"");
        (sandbox.files("cache/runs").iter().filter(|file| found(file)).count() >= 2).then_some(())
    });
    assert_eq!(slurm.ask("squeue", &["-h", "-o", "%j"]).lines().count(), 1);
    sandbox.write("go", "");
    assert_eq!(artifacts(going.end()), expected);

    // The controller is restarted in the middle.
    let sandbox = project(COMMANDS);
    let going = Going::start(&slurm, &sandbox, &RUN);
    begun(&sandbox, &[]);
    let controller = fs_err::read_to_string(slurm.path("run/slurmctld.pid")).expect("its pid");
    // By SIGTERM: one that is killed forgets the jobs of its last seconds, and gives their numbers to others.
    Command::new("kill").arg(controller.trim()).status().expect("ends");
    until("the controller's end", || {
        let status = fs_err::read_to_string(format!("/proc/{}/status", controller.trim()));
        status.map_or(true, |status| status.contains("State:\tZ")).then_some(())
    });
    sandbox.write("go", "");
    std::thread::sleep(Duration::from_secs(1));
    assert!(slurm.program("slurmctld").status().expect("starts").success());
    assert_eq!(artifacts(going.end()), expected);
}

#[test]
#[ignore = "slow: starts a cluster"]
fn a_node_that_dies_and_an_interrupt_change_no_artifact() {
    let Some(slurm) = Slurm::start() else { return };
    let sandbox = project(COMMANDS);
    sandbox.write("go", "");
    let expected = locally(&sandbox);

    // Interrupted once: the job saves and ends. Left, as the profile says: it goes on, and is attached to.
    fs_err::remove_file(sandbox.path("go")).expect("removes");
    let going = Going::start(&slurm, &sandbox, &RUN);
    let first = begun(&sandbox, &[]);
    going.signal(rustix::process::Signal::INT);
    going.end().exits(130);
    assert!(fs_err::read_to_string(first.join("result.json")).expect("a record").contains("interrupted"));
    until("the queue to be empty", || slurm.ask("squeue", &["-h"]).is_empty().then_some(()));
    sandbox.write("sami.toml", &format!("{PROFILE}on_interrupt = \"leave\"\n"));
    let going = Going::start(&slurm, &sandbox, &RUN[..2].iter().chain(&RUN[3..]).copied().collect::<Vec<_>>());
    let second = begun(&sandbox, std::slice::from_ref(&first));
    going.signal(rustix::process::Signal::INT);
    let output = going.end().exits(130);
    assert!(output.stderr.contains("1 job goes on: sami attach "), "{}", output.stderr);
    assert_eq!(slurm.ask("squeue", &["-h"]).lines().count(), 1);

    // Its node dies under it: that is seen, and another one does the work. The process that was thought lost goes on, and
    // writes into no one's directories.
    let going = Going::start(&slurm, &sandbox, &["attach", "--json"]);
    std::thread::sleep(Duration::from_secs(1));
    let node = slurm.ask("squeue", &["-h", "-o", "%N"]);
    let daemon = fs_err::read_to_string(slurm.path(&format!("run/slurmd-{}.pid", node.trim()))).expect("its pid");
    Command::new("kill").args(["-9", daemon.trim()]).status().expect("kills");
    slurm.kill_step(&job(&second));
    let third = begun(&sandbox, &[first, second]);
    sandbox.write("go", "");
    let output = going.end();
    assert!(output.stdout.contains("its machine failed"), "{}", output.stdout);
    assert_eq!(artifacts(output), expected);
    assert!(third.join("result.json").exists());
    sandbox.verify();
}

#[test]
#[ignore = "slow: starts a cluster"]
fn a_model_is_trained_in_jobs_and_a_time_limit_is_no_end() {
    let Some(slurm) = Slurm::start() else { return };
    let sandbox = project(MODEL);
    let expected = locally(&sandbox);
    assert_eq!(artifacts(slurm.sami(&sandbox, &RUN)), expected);
    sandbox.verify();

    // What Slurm sends before a time limit reaches a training: it saves, and another job goes on from there.
    let base =
        MODEL.split("[nodes.constitutions]").next().expect("the first node").replace("steps = 30", "steps = 1500");
    let sandbox = project(&base);
    let expected = locally(&sandbox);
    let going = Going::start(&slurm, &sandbox, &RUN);
    let words = until("progress", || {
        let files = sandbox.files("cache/runs");
        let words =
            files.iter().find(|file| file.ends_with("words.jsonl") && file.to_string_lossy().contains("/base."))?;
        sandbox.read(words).contains("progress").then(|| words.clone())
    });
    slurm.ask("scancel", &["--batch", "--signal=USR1", &job(words.parent().expect("its attempt"))]);
    let output = going.end();
    assert!(output.stdout.contains("its time was up on "), "{}", output.stdout);
    assert_eq!(artifacts(output), expected);
    sandbox.verify();

    // A node that can never be done in its time is told of.
    let sandbox = project(COMMANDS);
    sandbox.write(
        "sami.toml",
        &format!("{PROFILE}time = \"1m\"\nextra = [\"--signal=B:USR1@50\"]\n[profiles.cluster.nodes.words]\nrun_on = \"here\"\n"),
    );
    let mut command = slurm.command(&sandbox, &RUN);
    let output: Output = command.output().expect("it starts").into();
    assert!(output.exits(1).stderr.contains("came no further than the attempt before"));
}

#[test]
#[ignore = "slow: starts a cluster"]
fn what_jobs_lack_is_said_before_any_work() {
    let Some(slurm) = Slurm::start() else { return };
    let sandbox = Sandbox::with(COMMANDS);
    sandbox.write("go", "");
    let with = |lines: &str| {
        sandbox.write("sami.toml", &format!("[profiles.cluster]\nexecutor = \"slurm\"\nmemory = \"300MB\"\ninterval = \"300ms\"\nlag = \"2s\"\n{lines}\n"));
        slurm.sami(&sandbox, &RUN)
    };
    let refused = |lines: &str, id: &str| {
        let output = with(lines).exits(2);
        assert!(output.stderr.contains(&format!("error[{id}]")), "{lines}: {}", output.stderr);
        assert!(!output.stdout.contains("node-start"), "{lines}: {}", output.stdout);
    };
    refused("partition = \"nowhere\"", "cluster::partition");
    refused("cpus = 900", "cluster::too-much");
    refused("extra = [\"--no-such-option\"]", "cluster::refused");
    refused("program = \"/nowhere/sami\"", "cluster::no-worker");
    refused("setup = [\"exit 3\"]", "cluster::probe");
    // A directory of the node's own in place of the cache.
    let cache = sandbox.path("cache").display().to_string();
    let hidden = format!(
        "container = [\"unshare\", \"-m\", \"sh\", \"-c\", \"mount -t tmpfs none {cache} && exec \\\"$@\\\"\", \"sh\"]"
    );
    refused(&hidden, "cluster::not-shared");
    // Another version there.
    sandbox.write("other", "#!/bin/sh\nsed 's/.*\"token\":\"\\([^\"]*\\)\".*/{\"token\":\"\\1\",\"version\":\"9.9.9\",\"host\":\"n1\",\"clock\":0}/' \"$2\" > \"$(dirname \"$2\")/found.json\"\n");
    Command::new("chmod").args(["+x", "other"]).current_dir(sandbox.path("")).status().expect("it is there");
    refused(&format!("program = \"{}\"", sandbox.path("other").display()), "cluster::version");
    // All well: it is remembered, and the next run sends no such job.
    with("").exits(0);
    let jobs =
        || slurm.ask("squeue", &["-h", "-t", "all", "-o", "%j"]).lines().filter(|name| *name == "sami:probe").count();
    let before = jobs();
    sandbox.write("p.toml", &COMMANDS.replace("1 200", "1 300"));
    with("").exits(0);
    assert_eq!(jobs(), before);
    // MUNGE does not answer.
    let munge = fs_err::read_to_string(slurm.path("munge/pid")).expect("its pid");
    Command::new("kill").args([munge.trim()]).status().expect("kills");
    std::thread::sleep(Duration::from_millis(500));
    sandbox.write("p.toml", &COMMANDS.replace("1 200", "1 400"));
    refused("", "cluster::munge");
}

#[test]
#[ignore = "takes minutes: the whole quickstart, on a cluster"]
fn the_quickstart_makes_what_it_makes_here() {
    let Some(slurm) = Slurm::start() else { return };
    let whole = fs_err::read_to_string(super::docs::root().join("pipelines/quickstart.toml")).expect("it is there");
    let sandbox = project(&whole);
    let output = slurm.sami(&sandbox, &RUN);
    let jobs = output.stdout.matches("\"state\":\"submitted\"").count();
    let there = figures(output);
    // The base model and four nodes of each iteration; the blank model and the constitutions are made here.
    assert_eq!((jobs, there.len()), (13, 15));
    assert_eq!(there, figures(super::quickstart::here()));
    sandbox.verify();
}

/// Every node's artifact and figures.
fn figures(output: Output) -> Vec<[serde_json::Value; 3]> {
    let done = output.exits(0).json();
    let of = |node: &serde_json::Value| ["name", "artifact", "metrics"].map(|field| node[field].clone());
    done["nodes"].as_array().expect("a list").iter().map(of).collect()
}
