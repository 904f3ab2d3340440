//! A project in a temporary directory, and the real binary run in it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sami::env;
use serde_json::Value;

/// A project: a directory with a `sami.toml`, so that its cache is `cache/`. It is removed when dropped.
pub(crate) struct Sandbox {
    folder: tempfile::TempDir,
}

/// How the binary ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// Exit code; 128 and the signal's number if one ended it, as shells have it.
    pub(crate) code: i32,
    /// All of standard output.
    pub(crate) stdout: String,
    /// All of standard error.
    pub(crate) stderr: String,
}

/// The last line of `sami run --json`.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Done {
    pub(crate) event: String,
    pub(crate) ok: bool,
    pub(crate) ran: usize,
    pub(crate) hits: usize,
    pub(crate) failed: usize,
    pub(crate) nodes: Vec<DoneNode>,
}

/// A node of that line.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct DoneNode {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) key: Option<String>,
    pub(crate) artifact: Option<String>,
}

/// Says why a test is left out, past the test harness's capture, so that it is seen. That it cannot be said is no failure.
pub(crate) fn skipped(why: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("skipped: {why}\n").as_bytes());
}

/// Whether the system has a program.
pub(crate) fn is_installed(program: &str) -> bool {
    let is_there = |directory: &str| Path::new(directory).join(program).exists();
    ["/usr/sbin", "/usr/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin"].into_iter().any(is_there)
}

/// Waits until something holds. It fails, saying in vain for what, once `most` has passed.
#[track_caller]
pub(crate) fn wait_until(what: &str, most: Duration, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < most, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Looks until something is found. It fails, saying in vain for what, after two minutes: machines of tests are slow at times.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    wait_until(what, Duration::from_secs(120), || {
        found = look();
        found.is_some()
    });
    found.expect("it was found")
}

/// A port of this machine that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let [port] = free_ports();
    port
}

/// So many of them.
pub(crate) fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    // All are held until all are known: none is given twice.
    let listeners: [TcpListener; COUNT] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.each_ref().map(|listener| listener.local_addr().expect("it has one").port())
}

/// Takes from a command's environment all that would steer `sami`.
pub(crate) fn unsteered(command: &mut Command) -> &mut Command {
    for variable in env::ALL {
        command.env_remove(variable.name);
    }
    command
}

impl Sandbox {
    /// An empty project.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let sandbox = Self { folder };
        sandbox.write("sami.toml", "");
        sandbox
    }

    /// A project with a pipeline at `p.toml`.
    pub(crate) fn with(pipeline: &str) -> Self {
        let sandbox = Self::new();
        sandbox.write("p.toml", pipeline);
        sandbox
    }

    /// The path of a file of the project.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the project, and the directories above it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().expect("it is in the project")).expect("a directory");
        fs_err::write(path, text).expect("writes");
    }

    /// Reads a file of the project.
    pub(crate) fn read(&self, name: impl AsRef<Path>) -> String {
        fs_err::read_to_string(self.path(name)).expect("a file")
    }

    /// The files under a directory of the project, in order.
    pub(crate) fn files(&self, directory: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.path(directory)];
        while let Some(directory) = open.pop() {
            for entry in fs_err::read_dir(directory).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                if path.is_dir() { open.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }

    /// The binary, ready to be started in the project; nothing of this process's environment steers it.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sami"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        unsteered(&mut command);
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn sami(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the binary starts").into()
    }

    /// `sami run p.toml … --json`, which must exit with `code`.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str], code: i32) -> Done {
        let args: Vec<&str> = ["run", "p.toml", "--json"].iter().chain(args).copied().collect();
        self.sami(&args).exits(code).done()
    }

    /// As [`Sandbox::verify`] of the cache of this name, without a process.
    #[track_caller]
    pub(crate) fn verify_here(&self, cache: &str) {
        let store = sami::store::Store::open_existing(&self.path(cache)).expect("it opens");
        let seen = store.verify(&mut |_, _| {}).expect("it can be read");
        assert!(seen.is_whole(), "{cache}: {:?}", seen.findings);
    }

    /// Asserts that every byte of the cache is what it should be.
    #[track_caller]
    pub(crate) fn verify(&self) {
        self.sami(&["cache", "verify"]).exits(0);
    }
}

impl From<std::process::Output> for Output {
    fn from(output: std::process::Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let text = |bytes| String::from_utf8(bytes).expect("the binary writes UTF-8");
        let status = output.status;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Output {
    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert!(
            self.code == code,
            "exit code {} instead of {code}\n-- stdout\n{}\n-- stderr\n{}",
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    /// The last line of standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("the last line is no JSON ({error}): {line}"))
    }

    /// The last line of `run --json`.
    #[track_caller]
    pub(crate) fn done(&self) -> Done {
        let done: Done = serde_json::from_value(self.json()).expect("the fields of the last line");
        assert_eq!(done.event, "done");
        let count = |state| done.nodes.iter().filter(|node| node.state == state).count();
        assert_eq!((done.ran, done.hits, done.failed), (count("ran"), count("hit"), count("failed")));
        done
    }
}

impl Done {
    /// Names of the nodes in a state, in the order of the pipeline.
    pub(crate) fn names(&self, state: &str) -> Vec<&str> {
        self.nodes.iter().filter(|node| node.state == state).map(|node| node.name.as_str()).collect()
    }

    /// Name, key and artifact of every node.
    pub(crate) fn results(&self) -> Vec<(&str, Option<&str>, Option<&str>)> {
        let mut results = Vec::new();
        for node in &self.nodes {
            results.push((node.name.as_str(), node.key.as_deref(), node.artifact.as_deref()));
        }
        results
    }
}
