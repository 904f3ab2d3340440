//! Runs whose attempts are processes on hosts that `ssh` reaches: a real `sshd` on this machine's loopback.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::sandbox::{Output, Sandbox, free_port, skipped};

const SSHD: &str = "/usr/sbin/sshd";

/// A server and a client's configuration that knows it as `gpu1` and `gpu2`.
struct Sshd {
    server: Child,
    folder: tempfile::TempDir,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Sshd {
    fn start() -> Option<Self> {
        if !Path::new(SSHD).exists() || !rustix::process::getuid().is_root() {
            skipped("there is no `sshd` that can be started here (apt-get install openssh-server; as root)");
            return None;
        }
        let folder = tempfile::tempdir().expect("a directory");
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["host", "user"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path(name)]).status();
            assert!(made.expect("it starts").success());
        }
        fs_err::copy(path("user.pub"), path("authorized")).expect("copies");
        fs_err::create_dir_all("/run/sshd").expect("sshd's directory");
        let port = free_port();
        let server = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin yes\nStrictModes no\n",
            path("host"),
            path("authorized")
        );
        fs_err::write(path("sshd_config"), server).expect("writes");
        let client = format!(
            "Host gpu1 gpu2\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {}\n\
             \x20 StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n",
            path("user")
        );
        fs_err::write(path("ssh_config"), client).expect("writes");
        let server = Command::new(SSHD).args(["-D", "-e", "-f", &path("sshd_config")]).stderr(Stdio::null()).spawn();
        let sshd = Self { server: server.expect("it starts"), folder };
        let began = Instant::now();
        while !Command::new("ssh")
            .args(["-F", &sshd.client(), "gpu1", "true"])
            .stderr(Stdio::null())
            .status()
            .expect("it starts")
            .success()
        {
            assert!(began.elapsed() < Duration::from_secs(120), "sshd does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(sshd)
    }

    fn client(&self) -> String {
        self.folder.path().join("ssh_config").display().to_string()
    }

    fn profile(&self, hosts: &str) -> String {
        format!(
            "[profiles.lab]\nexecutor = \"ssh\"\nhosts = [{hosts}]\nssh = [\"ssh\", \"-F\", \"{}\"]\n\
             interval = \"300ms\"\nlag = \"2s\"\n",
            self.client()
        )
    }
}

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
    args = ["-c", "while [ ! -e {output}/../../../../go ] && [ ! -e {output}/../../../../../go ]; do sleep 0.05; done; tac {input.words}/out > out"]
    inputs = { words = "words" }
"#;

const RUN: [&str; 5] = ["run", "p.toml", "--json", "--profile", "lab"];

fn artifacts(output: Output) -> Vec<Option<String>> {
    output.exits(0).done().nodes.into_iter().map(|node| node.artifact).collect()
}

#[test]
#[ignore = "slow: starts a server"]
fn hosts_without_a_queue_make_what_is_made_here_and_jobs_outlive_their_scheduler() {
    let Some(sshd) = Sshd::start() else { return };
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.write("sami.toml", &sshd.profile("\"gpu1\", \"gpu2\""));
    sandbox.write("go", "");
    let expected = artifacts(sandbox.sami(&["run", "p.toml", "--json", "--cache", "local"]));
    assert_eq!(artifacts(sandbox.sami(&RUN)), expected);
    sandbox.verify();

    // Killed before it wrote down which process it is: the mark in its environment leads to it.
    for fault in ["", "kill:submitted:2"] {
        let sandbox = Sandbox::with(PIPELINE);
        sandbox.write("sami.toml", &format!("{}probe = false\n", sshd.profile("\"gpu1\"")));
        let mut command = sandbox.command(&RUN);
        let mut going =
            command.env("SAMI_FAULT", fault).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let began = Instant::now();
        while !sandbox.files("cache/runs").iter().any(|file| file.to_string_lossy().ends_with("hold.1/words.jsonl")) {
            assert!(began.elapsed() < Duration::from_secs(60), "no job");
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = going.kill();
        going.wait().expect("it ends");
        let again = sandbox.command(&["attach", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let again = again.expect("it starts");
        std::thread::sleep(Duration::from_secs(5));
        sandbox.write("go", "");
        let output: Output = again.wait_with_output().expect("it ends").into();
        assert!(output.stdout.contains("\"adopted\""), "{}", output.stdout);
        assert!(!output.stdout.contains("not known to the engine"), "{}", output.stdout);
        assert_eq!(artifacts(output), expected);
        sandbox.verify();
    }

    // A host that is not there is told of before any work.
    sandbox.write("sami.toml", &sshd.profile("\"no-such-host.invalid\""));
    sandbox.write("p.toml", &PIPELINE.replace("1 20", "1 30"));
    let output = sandbox.sami(&RUN).exits(2);
    assert!(output.stderr.contains("cluster::ssh"), "{}", output.stderr);
}
