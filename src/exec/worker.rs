//! `sami worker JOB`: one attempt at a node, in a process of its own.
//!
//! A worker writes files only: artifacts, row memos, scratch, its result. That an attempt succeeded becomes true when
//! the scheduler records it.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::ExecError;
use super::job::{Job, JobResult, Word};
use super::local::die;
use crate::diag::Diagnostic;
use crate::endpoint::{Purse, Spent};
use crate::fs;
use crate::kinds::{self, Cx, InputArtifact, NodeError, Progress};
use crate::store::{Store, Usage};

/// The least time between two words of progress.
const BEAT: Duration = Duration::from_millis(100);

/// Executes the attempt of a job file. Returns the process's exit code: 0 done, 1 failed, 130 interrupted.
///
/// Errs if the file is no job; whatever goes wrong after that is the attempt's result.
pub fn work(path: &Path) -> Result<u8, ExecError> {
    let bad = |what: String| ExecError::BadJob { path: path.to_owned(), what };
    let bytes = fs_err::read(path).map_err(|error| bad(error.to_string()))?;
    let job: Job = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&cancel))?;
    }
    let purse = Arc::new(Purse::new(job.allowance));
    let mut mouth = Mouth { socket: lifeline(&cancel)?, last: None, purse, told: Spent::default() };
    let result = attempt(&job, &mut mouth, &cancel).unwrap_or_else(|error| match error {
        NodeError::Interrupted => JobResult::Interrupted,
        NodeError::Failed { what, help } => JobResult::Failed { what, help },
        NodeError::Store(error) => failed(error.diagnostic()),
        NodeError::Lm(error) => failed(error.diagnostic()),
        NodeError::Endpoint(error) => failed(error.diagnostic()),
        NodeError::Io(error) => JobResult::Failed { what: error.to_string(), help: None },
    });
    let result = result.without_secrets();
    match &result {
        JobResult::Done { artifact, .. } => tracing::info!("done: artifact {artifact}"),
        JobResult::Failed { what, .. } => tracing::error!("failed: {what}"),
        JobResult::Interrupted => tracing::info!("interrupted"),
    }
    // A disk that is full does not keep the scheduler from hearing of it.
    if let Err(error) = record(&job, &result) {
        tracing::warn!("the result cannot be written: {error}");
    }
    mouth.account();
    mouth.say(&Word::Used(used(&mouth.purse.spent())));
    mouth.say(&Word::Result(result.clone()));
    Ok(match result {
        JobResult::Done { .. } => 0,
        JobResult::Failed { .. } => 1,
        JobResult::Interrupted => 130,
    })
}

fn attempt(job: &Job, mouth: &mut Mouth, cancel: &AtomicBool) -> Result<JobResult, NodeError> {
    let entry = kinds::find(&job.kind).ok_or_else(|| NodeError::failed(format!("there is no kind `{}`", job.kind)))?;
    let store = Store::open_existing(&job.store)?;
    if let Some(live) = &job.live {
        store.join(live);
    }
    store.trust(job.trusted.iter().cloned());
    // The worker of a scheduler that was killed may need a moment to die; until then the scratch is its.
    let scratch = fs_err::File::open(&job.scratch)?;
    scratch.file().lock()?;
    let inputs = job.inputs.iter().map(|(path, input)| {
        let (kind, files, skip, take) = (input.kind, input.files.clone(), input.skip, input.take);
        let calling = input.calling.clone();
        (path.clone(), InputArtifact { id: input.id, kind, files, skip, take, calling })
    });
    let purse = Arc::clone(&mouth.purse);
    let mut progress = |progress: Progress| mouth.progress(progress);
    let mut cx = Cx {
        store: &store,
        inputs: inputs.collect(),
        node: job.node.clone(),
        key: job.key,
        scratch: job.scratch.clone(),
        staging: job.staging.clone(),
        device: job.device.clone(),
        threads: job.threads,
        micro_batch: job.micro_batch,
        activation_checkpointing: job.activation_checkpointing,
        afresh: job.afresh,
        progress: &mut progress,
        purse,
        cancel,
    };
    let outputs = entry.run(&job.fields, &mut cx)?;
    if job.afresh {
        // An audit looks at the files where they are.
        let files = serde_json::to_vec(&outputs.files).map_err(std::io::Error::from)?;
        fs::create(&job.result.with_file_name("outputs.json"))?.write_all(&files)?;
        let artifact = Store::identity(job.output.name(), &outputs.files)?;
        return Ok(JobResult::Done { artifact, metrics: outputs.metrics, put: Vec::new() });
    }
    let artifact = store.put_artifact(job.output.name(), &outputs.files)?;
    Ok(JobResult::Done { artifact, metrics: outputs.metrics, put: store.known(&artifact)? })
}

fn record(job: &Job, result: &JobResult) -> std::io::Result<()> {
    let unfinished = job.result.with_extension("tmp");
    fs::write(&unfinished, serde_json::to_vec(result)?)?;
    // Nothing rests on it once the machine has been off: it need not be on the disk, only whole.
    fs::rename_soon(&unfinished, &job.result)
}

/// The socket to the scheduler, if there is one. Sets `cancel` when told to stop, and ends this process's group when
/// the scheduler is gone.
fn lifeline(cancel: &Arc<AtomicBool>) -> Result<Option<UnixStream>, ExecError> {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    // By hand, standard input is a terminal or a file.
    if socket.peer_addr().is_err() {
        return Ok(None);
    }
    let (ears, cancel) = (socket.try_clone()?, Arc::clone(cancel));
    std::thread::spawn(move || {
        for line in BufReader::new(ears).lines() {
            if line.is_err() {
                break;
            }
            cancel.store(true, Ordering::Relaxed);
        }
        die()
    });
    Ok(Some(socket))
}

/// What this process and what it started have used.
fn used(spent: &Spent) -> Usage {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    // `PID (NAME) STATE …`: times of this process and of its children are fields 14 to 17, in ticks of a hundredth.
    let stat = fs_err::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat
        .rsplit(')')
        .next()
        .map(|rest| rest.split_whitespace().skip(11).take(4).filter_map(|time| time.parse::<f64>().ok()).sum::<f64>());
    Usage {
        cpu_seconds: ticks.map(|ticks| ticks / 100.0),
        peak_bytes: peak.map(|kib| kib << 10),
        gpu_seconds: None,
        calls: (spent.calls > 0).then_some(spent.calls),
        dollars: (spent.dollars > 0.0).then_some(spent.dollars),
    }
}

/// The result of an attempt that ended in a finding of another layer.
fn failed(finding: Diagnostic) -> JobResult {
    JobResult::Failed { what: finding.title, help: finding.help.into_iter().next() }
}

/// What the worker says.
struct Mouth {
    socket: Option<UnixStream>,
    last: Option<Instant>,
    purse: Arc<Purse>,
    /// What was said to be spent.
    told: Spent,
}

impl Mouth {
    fn progress(&mut self, progress: Progress) {
        fs::kill_point("progress");
        let due = self.last.is_none_or(|last| last.elapsed() >= BEAT);
        if due || progress.done >= progress.total {
            self.last = Some(Instant::now());
            self.account();
            self.say(&Word::Progress(progress));
        }
    }

    /// Says what was spent since it was said last.
    fn account(&mut self) {
        let spent = self.purse.spent();
        if spent != self.told {
            self.told = spent;
            self.say(&Word::Spent(spent));
        }
    }

    /// Says a word. If the scheduler is gone no one listens, and the lifeline ends this process.
    fn say(&mut self, word: &Word) {
        if let (Some(socket), Ok(mut line)) = (&mut self.socket, serde_json::to_vec(word)) {
            line.push(b'\n');
            let _ = socket.write_all(&line);
        }
    }
}
