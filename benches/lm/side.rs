//! A process that does a case's work whenever it is told to.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::Failure;
use crate::cases::THREADS;

/// One of those that are compared, at one case.
pub(crate) struct Side {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// What it says it is.
    pub(crate) version: String,
    /// What it computed to warm up.
    pub(crate) first: Value,
}

/// The work done once.
pub(crate) struct Round {
    pub(crate) seconds: f64,
    pub(crate) result: Value,
}

impl Side {
    /// Starts a program and waits until it has warmed up.
    pub(crate) fn start(program: &Path, arguments: &[&Path]) -> Result<Self, Failure> {
        let threads = THREADS.to_string();
        let mut child = Command::new(program)
            .args(arguments)
            .env("RAYON_NUM_THREADS", &threads)
            .env("OMP_NUM_THREADS", &threads)
            .env("TOKENIZERS_PARALLELISM", "false")
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{} does not start: {error}", program.display()))?;
        let (input, output) = (child.stdin.take(), child.stdout.take().ok_or("no output")?);
        let mut side =
            Self { child, input, output: BufReader::new(output), version: String::new(), first: Value::Null };
        let ready = side.line()?;
        ready["ready"].as_str().unwrap_or_default().clone_into(&mut side.version);
        side.first = ready["result"].clone();
        Ok(side)
    }

    fn line(&mut self) -> Result<Value, Failure> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            let mut said = String::new();
            if let Some(mut error) = self.child.stderr.take() {
                std::io::Read::read_to_string(&mut error, &mut said)?;
            }
            return Err(said.trim().to_owned().into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Has the work done once.
    pub(crate) fn round(&mut self) -> Result<Round, Failure> {
        if let Some(input) = &mut self.input {
            writeln!(input)?;
        }
        let line = self.line()?;
        let seconds = line["seconds"].as_f64().ok_or("a round without seconds")?;
        Ok(Round { seconds, result: line["result"].clone() })
    }

    /// Ends it; returns the peak of its memory, where the system says it.
    pub(crate) fn end(mut self) -> Result<Option<u64>, Failure> {
        self.input = None;
        let peak = self.line()?["peak_kib"].as_u64();
        self.child.wait()?;
        Ok(peak)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
