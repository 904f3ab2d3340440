//! Programs of an engine, called and waited for.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Refusal;
use crate::diag::Diagnostic;

/// How long a program may take: controllers with much to do answer late.
const PATIENCE: Duration = Duration::from_secs(90);
/// What of an answer to a person is shown.
const MOST_SHOWN: usize = 400;

/// What a program answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// Whether it says that it did what it was asked to.
    pub(super) ok: bool,
    /// Standard output.
    pub(super) out: String,
    /// Standard error.
    pub(super) err: String,
}

impl Answer {
    /// What it says is wrong, in a line.
    pub(super) fn complaint(&self) -> String {
        let said = if self.err.trim().is_empty() { &self.out } else { &self.err };
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let line: String = lines.join("; ").chars().take(MOST_SHOWN).collect();
        if line.is_empty() { "it says nothing".to_owned() } else { line }
    }
}

/// Calls a program that is told nothing; see [`ask_with`].
pub(super) fn ask(command: Command) -> Result<Answer, Refusal> {
    ask_with(command, &[])
}

/// Calls a program, tells it `input` and waits for its answer. It is in a process group of its own: an interrupt at the terminal is not for
/// it. Errs if it cannot be called or gives no answer in time.
pub(super) fn ask_with(mut command: Command, input: &[u8]) -> Result<Answer, Refusal> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Within a job, what is said of that job is not meant for those that are submitted from it.
    for (variable, _) in std::env::vars_os() {
        let text = variable.to_string_lossy();
        if text.starts_with("SLURM_") && text != "SLURM_CONF" {
            command.env_remove(&variable);
        }
    }
    let spawned = command
        .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = spawned.map_err(|error| absent(&name, &error))?;
    // What is told is less than a pipe holds, or it is read at once; who does not read it says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    let text = |reader: std::thread::JoinHandle<String>| reader.join().unwrap_or_default();
    match status {
        Some(status) => Ok(Answer { ok: status.success(), out: text(out), err: text(err) }),
        None => {
            let what = format!("`{name}` gives no answer");
            let finding = Diagnostic::error("cluster::no-answer", what)
                .note(format!("it was waited for {} s", PATIENCE.as_secs()))
                .help("see whether it answers in a terminal; jobs go on, `sami attach` finds them again");
            Err(Refusal { finding: Box::new(finding), passing: true })
        }
    }
}

fn absent(name: &str, error: &std::io::Error) -> Refusal {
    let what = if error.kind() == ErrorKind::NotFound {
        format!("there is no program `{name}` here")
    } else {
        format!("`{name}` cannot be started: {error}")
    };
    let help = "run `sami` on a machine from which jobs are submitted, such as a login node, or use another profile";
    let finding = Diagnostic::error("cluster::no-program", what).help(help);
    Refusal { finding: Box::new(finding), passing: false }
}

fn reader(from: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.map(|mut from| from.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
