//! The parts of a node as tasks of a job array on a real Slurm.

use super::resume::PIPELINE;
use super::sandbox::{Sandbox, until};
use super::shards::{in_parts, told};
use super::slurm_run::{Going, PROFILE, RUN, artifacts, locally};
use super::slurm_server::Slurm;

/// Name, array, task and state of each job of a name that the cluster knows.
fn tasks(slurm: &Slurm, name: &str) -> Vec<(String, String, String)> {
    let all = slurm.ask("squeue", &["-h", "-r", "-t", "all", "-o", "%j|%F|%K|%T"]);
    let fields = |line: &str| {
        let fields: Vec<String> = line.split('|').map(str::to_owned).collect();
        (fields[0] == name).then(|| (fields[1].clone(), fields[2].clone(), fields[3].clone()))
    };
    let mut tasks: Vec<_> = all.lines().filter_map(fields).collect();
    tasks.sort();
    tasks
}

#[test]
#[ignore = "slow: starts a cluster"]
fn parts_are_tasks_of_an_array_and_one_that_dies_or_is_cancelled_is_made_again_alone() {
    let Some(slurm) = Slurm::start() else { return };
    let pipeline = format!("name = \"parts\"\n{PIPELINE}");
    let expected = locally(&Sandbox::with(&pipeline));
    let sandbox = Sandbox::with(&in_parts(&pipeline, "3, retries = 1", "2", "1"));
    // The worker at the second part of `generate` is killed when it has kept its first rows, as long as it is in the array; at
    // the second part of `score` none begins before it may.
    let (once, go) = (sandbox.path("once").display().to_string(), sandbox.path("go").display().to_string());
    sandbox.write(
        "sami.toml",
        &format!(
            r#"{PROFILE}
            [profiles.cluster.kinds.finetune]
            run_on = "here"
            [profiles.cluster.kinds.evaluate]
            run_on = "here"
            [profiles.cluster.nodes.generate]
            setup = ['case "$SLURM_ARRAY_TASK_ID" in 2) touch {once}; export SAMI_FAULT=kill:batch:1 ;; esac']
            [profiles.cluster.nodes.score]
            setup = ['case "$SLURM_ARRAY_TASK_ID" in 2) while [ ! -e {go} ]; do sleep 0.1; done ;; esac']
            "#
        ),
    );
    let going = Going::start(&slurm, &sandbox, &RUN);
    let array = until("the part that waits, and the other one's end", || {
        let tasks = tasks(&slurm, "sami:parts/score");
        let at = |task: &str, state: &str| tasks.iter().find(|(_, number, is)| number == task && is == state);
        at("1", "COMPLETED").and(at("2", "RUNNING")).map(|(array, ..)| array.clone())
    });
    // All parts in one call of `sbatch`; the one that died alone, in no array.
    let generated = tasks(&slurm, "sami:parts/generate");
    let in_array = |(_, task, _): &&(String, String, String)| task != "N/A";
    let arrays: Vec<_> = generated.iter().filter(in_array).collect();
    assert!(arrays.len() == 3 && arrays.iter().all(|(array, ..)| *array == arrays[0].0), "{generated:?}");
    let states: Vec<&str> = arrays.iter().map(|(.., state)| state.as_str()).collect();
    assert_eq!(states, ["COMPLETED", "FAILED", "COMPLETED"]);
    // On the CPU they are put together here.
    assert_eq!(generated.len(), 4, "{generated:?}");
    assert!(sandbox.path("once").exists());
    slurm.ask("scancel", &[&format!("{array}_2")]);
    let output = going.end().exits(1);
    assert!(output.stderr.contains("shard 2 of 2: its job was cancelled on n"), "{}", output.stderr);
    let shards = told(&output);
    let count = |node: &str, state: &str| shards.iter().filter(|(of, _, is)| of == node && is == state).count();
    assert_eq!((count("generate", "started"), count("generate", "again"), count("generate", "done")), (4, 1, 3));
    assert_eq!((count("score", "started"), count("score", "done"), count("score", "failed")), (2, 1, 1));

    sandbox.write("go", "");
    let output = slurm.sami(&sandbox, &RUN);
    assert_eq!(artifacts(output), expected);
    // The other part was done: what was left of it is taken, and no job is submitted for it.
    let scored = tasks(&slurm, "sami:parts/score");
    assert_eq!(scored.len(), 3, "{scored:?}");
    sandbox.verify();
}
