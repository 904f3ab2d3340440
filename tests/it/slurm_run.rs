//! Runs on a cluster: a project with a profile for it, a run in the background, what its jobs leave.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::sandbox::{Output, Sandbox, until};
use super::slurm_server::Slurm;

/// Jobs that need little, and that are looked at often.
pub(crate) const PROFILE: &str = r#"
    [profiles.cluster]
    executor = "slurm"
    memory = "300MB"
    interval = "300ms"
    lag = "2s"
    probe = false
"#;

/// Commands in a row and beside each other; `hold` waits for a file of the project, which lies above what it makes: here and
/// in a job not at the same height.
pub(crate) const COMMANDS: &str = r#"
    schema = 1
    name = "toy"
    [nodes.words]
    kind = "command"
    program = "sh"
    args = ["-c", "seq 1 200 > out"]
    [nodes.hold]
    kind = "command"
    program = "sh"
    args = ["-c", "while [ ! -e {output}/../../../../go ] && [ ! -e {output}/../../../../../go ]; do sleep 0.05; done; tac {input.words}/out > out"]
    inputs = { words = "words" }
    [nodes.sum]
    kind = "command"
    program = "sh"
    args = ["-c", "cat {input.hold}/out {input.words}/out | sort -n | uniq -c > out"]
    inputs = { hold = "hold", words = "words" }
"#;

/// A project with a pipeline and the profile.
pub(crate) fn project(pipeline: &str) -> Sandbox {
    let sandbox = Sandbox::with(pipeline);
    sandbox.write("sami.toml", PROFILE);
    sandbox
}

/// Artifacts by node, of a run that went well.
pub(crate) fn artifacts(output: Output) -> Vec<(String, Option<String>)> {
    output.exits(0).done().nodes.into_iter().map(|node| (node.name, node.artifact)).collect()
}

/// The same of a run on this machine, in a cache of its own.
pub(crate) fn locally(sandbox: &Sandbox) -> Vec<(String, Option<String>)> {
    artifacts(sandbox.sami(&["run", "p.toml", "--json", "--cache", "local"]))
}

/// A run on the cluster.
pub(crate) const RUN: [&str; 5] = ["run", "p.toml", "--json", "--profile", "cluster"];

/// A run in the background.
pub(crate) struct Going(Option<Child>);

impl Drop for Going {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Going {
    /// Starts it.
    pub(crate) fn start(slurm: &Slurm, sandbox: &Sandbox, args: &[&str]) -> Self {
        Self::of(slurm.command(sandbox, args))
    }

    /// Starts what a command says.
    pub(crate) fn of(mut command: Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().expect("it starts")))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let child = self.0.as_ref().expect("it goes on");
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).expect("it is there");
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Output {
        self.0.take().expect("it goes on").wait_with_output().expect("it ends").into()
    }
}

/// The directory of the first attempt at `hold` whose worker has begun, other than those in `not`.
pub(crate) fn begun(sandbox: &Sandbox, not: &[PathBuf]) -> PathBuf {
    begun_at(sandbox, "hold", not)
}

/// The same of another node.
pub(crate) fn begun_at(sandbox: &Sandbox, node: &str, not: &[PathBuf]) -> PathBuf {
    let node = format!("/{node}.");
    until("an attempt", || {
        let words = sandbox.files("cache/runs").into_iter().filter(|file| file.ends_with("words.jsonl"));
        let attempts = words.filter_map(|file| Some(file.parent()?.to_owned()));
        attempts.into_iter().find(|attempt| attempt.to_string_lossy().contains(&node) && !not.contains(attempt))
    })
}

/// The job's id of an attempt.
pub(crate) fn job(attempt: &Path) -> String {
    until("a ticket", || {
        let text = fs_err::read_to_string(attempt.join("engine.json")).ok()?;
        let ticket: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(ticket["job"].as_str()?.to_owned())
    })
}
