//! Jobs that have to go for others, on a real Slurm with a partition of higher priority: at once, or after they had time to save.

use super::resume::PIPELINE;
use super::sandbox::{Output, Sandbox, until};
use super::shards::{in_parts, told};
use super::slurm_run::{COMMANDS, Going, PROFILE, RUN, artifacts, begun, job, locally, project};
use super::slurm_server::Slurm;

/// Takes whole nodes for a moment, whoever is there.
fn urgent(slurm: &Slurm, nodes: &str) {
    let asked = ["--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", nodes, "--wrap", "sleep 1"];
    slurm.ask("sbatch", &asked);
}

/// A run whose `hold` has to go for another job once, and the state of the job that had to.
fn pushed(slurm: &Slurm, lines: &str) -> (Output, Sandbox, String) {
    let sandbox = project(COMMANDS);
    sandbox.write("sami.toml", &format!("{PROFILE}{lines}\n"));
    let going = Going::start(slurm, &sandbox, &RUN);
    let first = begun(&sandbox, &[]);
    let id = job(&first);
    let node = slurm.ask("squeue", &["-h", "-j", &id, "-o", "%N"]);
    urgent(slurm, &format!("--nodelist={}", node.trim()));
    let second = begun(&sandbox, std::slice::from_ref(&first));
    sandbox.write("go", "");
    let output = going.end();
    assert!(second.join("result.json").exists());
    let state = slurm.ask("squeue", &["-h", "-t", "all", "-j", &id, "-o", "%T"]);
    (output, sandbox, state.trim().to_owned())
}

#[test]
#[ignore = "slow: starts a cluster"]
fn what_has_to_go_for_others_is_done_again_to_the_same_artifacts() {
    let Some(slurm) = Slurm::start() else { return };
    let sandbox = project(COMMANDS);
    sandbox.write("go", "");
    let expected = locally(&sandbox);

    // At once: Slurm would requeue it, and is told not to.
    let (output, sandbox, state) = pushed(&slurm, "");
    assert!(output.stdout.contains("its job was preempted on n"), "{}", output.stdout);
    assert_eq!((artifacts(output), state.as_str()), (expected.clone(), "PREEMPTED"));
    sandbox.verify();

    // With time to save, of which the steps of a job are told by SIGTERM: it ends by itself, so that for Slurm it failed.
    let (output, _, state) = pushed(&slurm, "partition = \"graceful\"\ncontainer = [\"srun\", \"--quiet\"]");
    assert!(output.stdout.contains("its worker was ended by a signal on n"), "{}", output.stdout);
    assert_eq!((artifacts(output), state.as_str()), (expected.clone(), "FAILED"));

    // Of which it is told as of its time limit: that is hours away, so that it is none.
    slurm.set("SlurmctldParameters=preempt_send_user_signal");
    let (output, _, state) = pushed(&slurm, "partition = \"graceful\"\ntime = \"2h\"\nretries = 1");
    assert!(output.stdout.contains("was told to save on n"), "{}", output.stdout);
    assert_eq!((artifacts(output), state.as_str()), (expected, "FAILED"));
}

#[test]
#[ignore = "slow: starts a cluster"]
fn parts_that_all_have_to_go_at_once_have_their_retries_each() {
    let Some(slurm) = Slurm::start() else { return };
    let expected = artifacts(Sandbox::with(PIPELINE).sami(&["run", "p.toml", "generate", "--json"]));
    let sandbox = Sandbox::with(&in_parts(PIPELINE, "3", "1", "1"));
    let go = sandbox.path("go").display().to_string();
    sandbox.write(
        "sami.toml",
        &format!(
            r#"{PROFILE}
            retries = 1
            [profiles.cluster.kinds.finetune]
            run_on = "here"
            [profiles.cluster.nodes.generate]
            setup = ['while [ ! -e {go} ]; do sleep 0.1; done']
            "#
        ),
    );
    let going = Going::start(&slurm, &sandbox, &["run", "p.toml", "generate", "--json", "--profile", "cluster"]);
    let run = |not: &[String]| {
        until("all parts", || {
            let jobs = slurm.ask("squeue", &["-h", "-r", "-t", "running", "-p", "main", "-o", "%i"]);
            let jobs: Vec<String> = jobs.lines().map(str::to_owned).filter(|job| !not.contains(job)).collect();
            (jobs.len() == 3).then_some(jobs)
        })
    };
    let first = run(&[]);
    urgent(&slurm, "--nodes=3");
    run(&first);
    sandbox.write("go", "");
    let output = going.end();
    let again = told(&output).iter().filter(|(.., state)| state == "again").count();
    assert_eq!(again, 3, "{}", output.stdout);
    assert!(output.stdout.contains("its job was preempted on n"), "{}", output.stdout);
    assert_eq!(artifacts(output), expected);
}
