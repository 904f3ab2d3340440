//! Jobs that take more memory than they asked for, on a real Slurm that does not let them.

use super::sandbox::Sandbox;
use super::slurm_run::{PROFILE, RUN, artifacts, locally};
use super::slurm_server::Slurm;

/// A program that needs 150 MB.
const LARGE: &str = r#"
    schema = 1
    name = "toy"
    [nodes.large]
    kind = "command"
    program = "sh"
    args = ["-ec", "perl -e '$n = 150_000_000; $x = \"a\" x $n; print length $x' > out"]
"#;

#[test]
#[ignore = "slow: starts a cluster"]
fn a_job_that_runs_out_of_memory_has_more_the_next_time() {
    let Some(slurm) = Slurm::start_with_memory() else { return };
    let sandbox = Sandbox::with(LARGE);
    let expected = locally(&sandbox);
    let with = |lines: &str| {
        let profile = PROFILE.replace("300MB", "100MiB");
        sandbox.write("sami.toml", &format!("{profile}memory_growth = 2.5\n{lines}\n"));
        slurm.sami(&sandbox, &RUN)
    };
    // What there is of more is not enough, or may not be had.
    for (limit, jobs) in [("100MiB", 1), ("110MiB", 2)] {
        let output = with(&format!("memory_limit = \"{limit}\"")).exits(1);
        assert!(output.stderr.contains("its memory was not enough on m"), "{}", output.stderr);
        assert!(output.stderr.contains("give it more `memory` in the profile"), "{}", output.stderr);
        assert_eq!(output.stdout.matches("\"state\":\"submitted\"").count(), jobs, "{}", output.stdout);
    }
    let output = with("");
    assert!(output.stdout.contains("its memory was not enough on m"), "{}", output.stdout);
    assert_eq!(artifacts(output), expected);
    // The worker may be what is killed, too: then there is no record.
    sandbox.write("p.toml", &LARGE.replace("print length", "print 1 + length"));
    let expected = artifacts(sandbox.sami(&["run", "p.toml", "--json", "--cache", "other"]));
    let eats = "setup = [\"perl -e '$n = 150_000_000; $x = \\\"a\\\" x $n' || kill -9 $$\"]";
    let output = with(eats);
    assert!(output.stdout.contains("its memory was not enough on m"), "{}", output.stdout);
    assert_eq!(artifacts(output), expected);
    let jobs = slurm.ask("squeue", &["-h", "-t", "all", "-o", "%T %m"]);
    let told = |what: &str| jobs.lines().filter(|line| *line == what).count();
    assert_eq!((told("OUT_OF_MEMORY 100M"), told("OUT_OF_MEMORY 110M")), (4, 1), "{jobs}");
    assert_eq!(told("COMPLETED 250M"), 2, "{jobs}");
}
