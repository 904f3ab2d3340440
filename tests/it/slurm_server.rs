//! A real Slurm for tests, started by `slurm.sh`.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::docs::root;
use super::sandbox::{Output, Sandbox, skipped};

/// A cluster of a controller and three nodes; ended when dropped.
pub(crate) struct Slurm {
    /// One at a time: each has the machine's processors to itself, more or less.
    _turn: MutexGuard<'static, ()>,
    script: Child,
    folder: tempfile::TempDir,
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // It ends all of it when its standard input is closed.
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

impl Slurm {
    /// Starts one; says why not where that cannot be.
    pub(crate) fn start() -> Option<Self> {
        for program in ["slurmctld", "slurmd", "sbatch", "squeue", "munged"] {
            let is_there = |directory: &str| Path::new(directory).join(program).exists();
            if !["/usr/sbin", "/usr/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin"].into_iter().any(is_there) {
                skipped(&format!("`{program}` is not installed (apt-get install slurm-wlm slurm-client munge)"));
                return None;
            }
        }
        if !rustix::process::getuid().is_root() {
            skipped("only root can start a Slurm of its own");
            return None;
        }
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("slurm").tempdir().expect("a directory");
        let listeners: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let ports = listeners.iter().map(|listener| listener.local_addr().expect("it has one").port().to_string());
        let ports: Vec<String> = ports.collect();
        drop(listeners);
        let mut script = Command::new(root().join("tests/it/slurm.sh"))
            .arg(folder.path())
            .args(ports)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the script starts");
        let mut line = String::new();
        BufReader::new(script.stdout.take().expect("it is piped")).read_line(&mut line).expect("reads");
        assert_eq!(line, "ready\n", "Slurm did not start");
        Some(Self { _turn: turn, script, folder })
    }

    /// `SLURM_CONF`.
    pub(crate) fn conf(&self) -> PathBuf {
        self.folder.path().join("slurm.conf")
    }

    /// A file of the cluster.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program, ready to be started on the cluster.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.env("SLURM_CONF", self.conf());
        command
    }

    /// What a program answers.
    #[track_caller]
    pub(crate) fn ask(&self, name: &str, args: &[&str]) -> String {
        let output: Output = self.program(name).args(args).output().expect("it starts").into();
        output.exits(0).stdout
    }

    /// Kills the process that stands between a node and its job, as a node's death does.
    pub(crate) fn kill_step(&self, job: &str) {
        let ours = format!("SLURM_CONF={}", self.conf().display());
        let processes = fs_err::read_dir("/proc").expect("a list").filter_map(|entry| Some(entry.ok()?.path()));
        for process in processes {
            let read = |name: &str| fs_err::read(process.join(name)).unwrap_or_default();
            let environment = read("environ");
            let is_ours = environment.split(|byte| *byte == 0).any(|variable| variable == ours.as_bytes());
            let named = String::from_utf8_lossy(&read("cmdline")).starts_with(&format!("slurmstepd: [{job}."));
            if let (true, true, Some(number)) = (is_ours, named, process.file_name()) {
                Command::new("kill").arg("-9").arg(number).status().expect("kills");
            }
        }
    }

    /// `sami`, ready to be started in a project on the cluster.
    pub(crate) fn command(&self, sandbox: &Sandbox, args: &[&str]) -> Command {
        let mut command = sandbox.command(args);
        command.env("SLURM_CONF", self.conf());
        command
    }

    /// `sami` in a project on the cluster, to its end.
    pub(crate) fn sami(&self, sandbox: &Sandbox, args: &[&str]) -> Output {
        self.command(sandbox, args).output().expect("the binary starts").into()
    }
}
