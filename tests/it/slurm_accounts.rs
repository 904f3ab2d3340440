//! Jobs that ended while no one was there, and that the controller of a real Slurm has forgotten: accounting may know them.

use std::time::Duration;

use super::sandbox::{Sandbox, until, wait_until};
use super::slurm_run::{Going, PROFILE, RUN, artifacts, begun_at, job, locally};
use super::slurm_server::Slurm;

/// Nodes beside each other.
const BESIDE: &str = r#"
    schema = 1
    name = "toy"
    [nodes.done]
    kind = "command"
    program = "sh"
    args = ["-c", "seq 1 200 > out"]
    [nodes.killed]
    kind = "command"
    program = "sh"
    args = ["-c", "seq 1 300 > out"]
    [nodes.cancelled]
    kind = "command"
    program = "sh"
    args = ["-c", "seq 1 400 > out"]
"#;

/// A project whose jobs wait before their workers start, its scheduler killed, with the jobs' ids by node.
fn left(slurm: &Slurm) -> (Sandbox, impl Fn(&str) -> String) {
    let sandbox = Sandbox::with(BESIDE);
    let wait =
        "setup = ['while [ ! -e GO ]; do sleep 0.1; done']".replace("GO", &sandbox.path("go").display().to_string());
    sandbox.write("sami.toml", &format!("{PROFILE}{wait}\n"));
    let going = Going::start(slurm, &sandbox, &[&RUN[..], &["--keep-going"]].concat());
    let run = until("a run", || {
        let files = sandbox.files("cache/runs");
        let events = files.iter().find(|file| file.ends_with("events.jsonl"))?;
        Some(events.parent()?.to_owned())
    });
    let id = move |node: &str| job(&run.join(format!("{node}.1")));
    let ids = ["done", "killed", "cancelled"].map(&id);
    until("all jobs", || {
        let running = slurm.ask("squeue", &["-h", "-t", "running", "-o", "%i"]);
        ids.iter().all(|id| running.lines().any(|line| line == id)).then_some(())
    });
    drop(going);
    (sandbox, id)
}

#[test]
#[ignore = "slow: starts a cluster with a database"]
fn jobs_that_the_controller_has_forgotten_have_the_fate_that_accounting_knows() {
    let Some(slurm) = Slurm::start_with_accounts() else { return };
    let (known, id) = left(&slurm);
    let (unknown, other) = left(&slurm);
    let expected = locally(&known);
    // One is cancelled, one dies without a record, one is done.
    for id in [&id("cancelled"), &other("cancelled")] {
        slurm.ask("scancel", &[id]);
    }
    for id in [&id("killed"), &other("killed")] {
        slurm.kill_script(id);
    }
    for sandbox in [&known, &unknown] {
        sandbox.write("go", "");
        let result = begun_at(sandbox, "done", &[]).join("result.json");
        until("a record", || result.exists().then_some(()));
    }
    wait_until("the controller forgets the jobs", Duration::from_secs(90), || {
        slurm.ask("squeue", &["-h", "-t", "all"]).is_empty()
    });
    let ids = ["done", "killed", "cancelled"].map(&id).join(",");
    let states = slurm.ask("sacct", &["-n", "-X", "-P", "-o", "jobid,state", "-j", &ids]);
    for (node, state) in [("done", "COMPLETED"), ("killed", "FAILED"), ("cancelled", "CANCELLED by 0")] {
        assert!(states.lines().any(|line| line == format!("{}|{state}", id(node))), "{states}");
    }

    // What it says ends them, and the next run does them again.
    let output = slurm.sami(&known, &["attach", "--json"]).exits(1);
    let done = output.done();
    assert_eq!(
        (done.names("ran"), done.names("failed")),
        (vec!["done"], vec!["killed", "cancelled"]),
        "{}",
        output.stdout
    );
    assert!(output.stderr.contains("its job was cancelled"), "{}", output.stderr);
    assert!(output.stderr.contains("the worker ended without a result"), "{}", output.stderr);
    let output = slurm.sami(&known, &RUN);
    assert_eq!(output.done().hits, 1);
    assert_eq!(artifacts(output), expected);

    // Where accounting does not answer, no one knows them: they are made again.
    slurm.kill("slurmdbd");
    let sacct = slurm.program("sacct").args(["-n", "-j", &other("killed")]).output().expect("it starts");
    assert!(!sacct.status.success(), "{sacct:?}");
    let output = slurm.sami(&unknown, &["attach", "--json"]);
    assert_eq!(output.stdout.matches("its job is not known to the engine any more").count(), 2, "{}", output.stdout);
    assert_eq!(output.done().ran, 3);
    assert_eq!(artifacts(output), expected);
}
