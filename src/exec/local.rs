//! Workers on this machine: a process group each, on a socket that is the worker's standard input.
//!
//! The socket carries words both ways and is the worker's lifeline: when the scheduler dies, however it dies, the
//! kernel closes it and the worker ends itself and all that it started.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;

use super::job::{STOP, Word};

/// What reaches the scheduler.
#[derive(Debug)]
pub(super) enum Message {
    /// A worker says something; `attempt` is the number that it was started with.
    Word {
        /// Which worker.
        attempt: u64,
        /// What it says.
        word: Word,
    },
    /// A worker's end of the socket is closed: it is ending.
    Gone {
        /// Which worker.
        attempt: u64,
    },
    /// The user wants the run to stop.
    Interrupt,
    /// Nodes were looked for in another cache; what it has of them is here now.
    Sought {
        /// Which.
        nodes: Vec<usize>,
    },
}

/// A worker process.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    socket: UnixStream,
}

impl Worker {
    /// Starts `program worker JOB`; what it prints goes to `log`, what it says to `inbox`.
    pub(super) fn start(
        program: &Path,
        job: &Path,
        log: fs_err::File,
        threads: usize,
        attempt: u64,
        inbox: &Sender<Message>,
    ) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let log = log.into_parts().0;
        let child = Command::new(program)
            .arg("worker")
            .arg(job)
            .env("RAYON_NUM_THREADS", threads.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .process_group(0)
            .spawn()?;
        let (socket, inbox) = (ours.try_clone()?, inbox.clone());
        let worker = Self { child, socket };
        std::thread::Builder::new().name(format!("attempt {attempt}")).stack_size(1 << 18).spawn(move || {
            for line in BufReader::new(ours).lines() {
                let Ok(line) = line else { break };
                match serde_json::from_str(&line) {
                    // The scheduler may be gone; then no one is left to tell.
                    Ok(word) => _ = inbox.send(Message::Word { attempt, word }),
                    Err(error) => tracing::warn!("a worker said what cannot be read ({error}): {line}"),
                }
            }
            let _ = inbox.send(Message::Gone { attempt });
        })?;
        Ok(worker)
    }

    /// Tells it to finish the batch, save and end.
    pub(super) fn stop(&mut self) {
        // If it cannot be told it is ending already.
        let _ = self.socket.write_all(STOP);
    }

    /// Ends it and all that it started, at once.
    pub(super) fn kill(&mut self) {
        kill_group(self.child.id().cast_signed());
    }

    /// Waits for one that is ending; what it started and left running is ended.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        // Before the wait: until then no other group can have its number.
        self.kill();
        self.child.wait()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// Ends this process at once, and all that it started if it leads its process group, as workers of a scheduler do.
pub(super) fn die() -> ! {
    // `PID (NAME) STATE PARENT GROUP …`; the name may hold anything.
    let status = fs_err::read_to_string("/proc/self/stat").unwrap_or_default();
    let group = status.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(2)?.parse::<u32>().ok());
    if group == Some(std::process::id()) {
        kill_group(0);
    }
    std::process::abort()
}

/// Kills a process group at once; 0 is the caller's own.
fn kill_group(group: i32) {
    #[expect(unsafe_code, reason = "std can signal a process, but no process group")]
    // SAFETY: takes and gives plain numbers and touches no memory.
    unsafe {
        libc::killpg(group, libc::SIGKILL);
    }
}
