//! Workers on this machine: a process group each, on a socket that is the worker's standard input.
//!
//! The socket carries words both ways and is the worker's lifeline: when the scheduler dies, however it dies, the
//! kernel closes it and the worker ends itself and all that it started.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use super::engine::Sight;
use super::job::{STOP, Word};
use crate::digest::Digest;
use crate::fs;
use crate::store::{NodeRecord, StoreError};

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
        /// Which worker, by the attempt that it is at or was at last.
        attempt: u64,
    },
    /// Something is seen of an attempt's job.
    Sight {
        /// Which attempt.
        attempt: u64,
        /// What.
        sight: Sight,
    },
    /// Attempts that succeeded are recorded, or could not be.
    Committed {
        /// Which.
        attempts: Vec<u64>,
        /// The records that hold, each with what the attempt made.
        done: Box<Result<Vec<(NodeRecord, Digest)>, StoreError>>,
    },
    /// The user wants the run to stop.
    Interrupt,
    /// Nodes were looked for in another cache; what it has of them is here now.
    Sought {
        /// Which.
        nodes: Vec<usize>,
    },
}

/// A worker process. It executes one attempt, or one after another if it is light or is left with weights.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    socket: UnixStream,
    /// The attempt that it is at, or was at last.
    at: Arc<AtomicU64>,
    /// Of a light one.
    slot: Option<Slot>,
}

/// The directories of a light worker, in the store's `tmp/`: each attempt finds them empty. They are the worker's until it has
/// ended; those of a scheduler that was killed are swept by another one, which then gets the lock.
#[derive(Debug)]
struct Slot {
    root: PathBuf,
    _lock: fs_err::File,
}

impl Slot {
    fn new(root: &Path) -> io::Result<Self> {
        loop {
            fs::create_directory(root)?;
            let lock = match fs_err::File::open(root) {
                // Another scheduler has swept it already.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            lock.file().lock()?;
            // Another scheduler may have swept it before it was locked.
            if root.is_dir() {
                fs::create_directory(&root.join("out"))?;
                fs::create_directory(&root.join("in"))?;
                return Ok(Self { root: root.to_owned(), _lock: lock });
            }
        }
    }
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
        let log = log.into_parts().0;
        let mut command = Command::new(program);
        command.arg("worker").arg(job).stdout(Stdio::from(log.try_clone()?)).stderr(Stdio::from(log));
        Self::spawn(command, threads, attempt, inbox)
    }

    /// Starts `program worker`, which is given its jobs by [`Worker::give`]; `slot` will be its directory.
    pub(super) fn light(program: &Path, store: &Path, slot: &Path, inbox: &Sender<Message>) -> io::Result<Self> {
        let slot = Slot::new(slot)?;
        let mut command = Command::new(program);
        // The jobs name the cache: this is for people who list processes. Until it has a job, it has no log.
        command.arg("worker").arg("--cache").arg(store).stdout(Stdio::null()).stderr(Stdio::inherit());
        let mut worker = Self::spawn(command, 1, 0, inbox)?;
        worker.slot = Some(slot);
        Ok(worker)
    }

    /// Of a light worker, the directories that its attempts have for scratch and for what they make.
    pub(super) fn directories(&self) -> Option<(PathBuf, PathBuf)> {
        self.slot.as_ref().map(|slot| (slot.root.join("in"), slot.root.join("out")))
    }

    fn spawn(mut command: Command, threads: usize, attempt: u64, inbox: &Sender<Message>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = command
            .env("RAYON_NUM_THREADS", threads.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .process_group(0)
            .spawn()?;
        // It holds the other end of the socket.
        drop(command);
        let (socket, inbox) = (ours.try_clone()?, inbox.clone());
        let at = Arc::new(AtomicU64::new(attempt));
        let worker = Self { child, socket, at: Arc::clone(&at), slot: None };
        let name = format!("worker {}", worker.child.id());
        std::thread::Builder::new().name(name).stack_size(1 << 18).spawn(move || {
            for line in BufReader::new(ours).lines() {
                let Ok(line) = line else { break };
                let attempt = at.load(Ordering::Acquire);
                match serde_json::from_str(&line) {
                    // The scheduler may be gone; then no one is left to tell.
                    Ok(word) => _ = inbox.send(Message::Word { attempt, word }),
                    Err(error) => tracing::warn!("a worker said what cannot be read ({error}): {line}"),
                }
            }
            let _ = inbox.send(Message::Gone { attempt: at.load(Ordering::Acquire) });
        })?;
        Ok(worker)
    }

    /// Gives a worker that has none its next job. Errs if it has died in the meantime.
    pub(super) fn give(&mut self, attempt: u64, job: &[u8]) -> io::Result<()> {
        // Before the job: whatever is heard from now on is of this attempt.
        self.at.store(attempt, Ordering::Release);
        self.socket.write_all(job)
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
        let status = self.child.wait()?;
        if let Some(slot) = self.slot.take() {
            fs::remove_directory(&slot.root)?;
        }
        Ok(status)
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
