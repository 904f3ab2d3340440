//! A real Slurm for tests, started by `slurm.sh`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, TryLockError};

use super::docs::root;
use super::sandbox::{Output, Sandbox, free_ports, is_installed, skipped};

/// Waits until a cluster may be started.
fn turn(mode: &str) -> MutexGuard<'static, ()> {
    static TURNS: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];
    // Those that bound memory share names of the kernel's: one at a time.
    let turns = if mode == "memory" { &TURNS[..1] } else { &TURNS[..] };
    loop {
        for turn in turns {
            match turn.try_lock() {
                Ok(turn) => return turn,
                Err(TryLockError::Poisoned(turn)) => return turn.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// A cluster of a controller and three nodes; ended when dropped.
pub(crate) struct Slurm {
    /// Two at a time: they wait more than they work.
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
        Self::start_with("plain")
    }

    /// Starts one that bounds jobs' memory.
    pub(crate) fn start_with_memory() -> Option<Self> {
        Self::start_with("memory")
    }

    /// Starts one with accounting, whose controller forgets jobs soon.
    pub(crate) fn start_with_accounts() -> Option<Self> {
        for program in ["slurmdbd", "mariadbd", "mariadb-install-db"] {
            if !is_installed(program) {
                skipped(&format!("`{program}` is not installed (apt-get install slurmdbd mariadb-server)"));
                return None;
            }
        }
        Self::start_with("accounts")
    }

    fn start_with(mode: &str) -> Option<Self> {
        for program in ["slurmctld", "slurmd", "sbatch", "squeue", "munged"] {
            if !is_installed(program) {
                skipped(&format!("`{program}` is not installed (apt-get install slurm-wlm slurm-client munge)"));
                return None;
            }
        }
        if !rustix::process::getuid().is_root() {
            skipped("only root can start a Slurm of its own");
            return None;
        }
        let turn = turn(mode);
        let folder = tempfile::Builder::new().prefix("slurm").tempdir().expect("a directory");
        let mut script = Command::new(root().join("tests/it/slurm.sh"))
            .arg(folder.path())
            .arg(mode)
            .args(free_ports::<6>().map(|port| port.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the script starts");
        let mut line = String::new();
        BufReader::new(script.stdout.take().expect("it is piped")).read_line(&mut line).expect("reads");
        if let Some(why) = line.strip_prefix("skip ") {
            skipped(why.trim_end());
            drop(script.stdin.take());
            script.wait().expect("it ends");
            return None;
        }
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

    /// Kills one of its daemons.
    pub(crate) fn kill(&self, daemon: &str) {
        let process = fs_err::read_to_string(self.path(&format!("run/{daemon}.pid"))).expect("its pid");
        assert!(Command::new("kill").args(["-9", process.trim()]).status().expect("it starts").success());
    }

    /// Sets something in its configuration.
    pub(crate) fn set(&self, line: &str) {
        let before = fs_err::read_to_string(self.conf()).expect("a configuration");
        fs_err::write(self.conf(), format!("{before}{line}\n")).expect("writes");
        self.ask("scontrol", &["reconfigure"]);
    }

    /// Kills the process that stands between a node and its job, as a node's death does.
    pub(crate) fn kill_step(&self, job: &str) {
        self.kill_where(|line| line.starts_with(&format!("slurmstepd: [{job}.")));
    }

    /// Kills the shell of a job.
    pub(crate) fn kill_script(&self, job: &str) {
        self.kill_where(|line| line.contains(&format!("/job{job:0>5}/slurm_script")));
    }

    /// Kills processes of the cluster by their command lines.
    fn kill_where(&self, wanted: impl Fn(&str) -> bool) {
        let ours = format!("SLURM_CONF={}", self.conf().display());
        let processes = fs_err::read_dir("/proc").expect("a list").filter_map(|entry| Some(entry.ok()?.path()));
        for process in processes {
            let read = |name: &str| fs_err::read(process.join(name)).unwrap_or_default();
            let environment = read("environ");
            let is_ours = environment.split(|byte| *byte == 0).any(|variable| variable == ours.as_bytes());
            let named = wanted(&String::from_utf8_lossy(&read("cmdline")));
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
