//! `sami worker JOB`: one attempt at a node, in a process of its own. `sami worker`: attempts at light nodes, one after
//! another, as the scheduler gives them.
//!
//! A worker writes files only: artifacts, row memos, scratch, its result. That an attempt succeeded becomes true when
//! the scheduler records it.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::ExecError;
use super::job::{Job, JobResult, STOP, Word};
use super::local::die;
use crate::diag::Diagnostic;
use crate::endpoint::{Allowance, Purse, Spent};
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
    let cancel = heed_signals()?;
    let mut mouth = Mouth::new(lifeline(&cancel, None)?);
    let result = execute(&job, &mut None, &mut mouth, &cancel);
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

/// Executes the attempts that the scheduler asks for, one after another, each with standard output and error going to its
/// own log. Does not return while the scheduler is there.
///
/// What an attempt started and left running becomes a child of this process. It is not waited for: the scheduler is told
/// that this worker takes no further job, and ends it with all that it started, as it ends others.
///
/// Errs if there is no scheduler, or if it says what is no job.
pub fn serve() -> Result<u8, ExecError> {
    let bad = |what: String| ExecError::BadJob { path: "standard input".into(), what };
    let cancel = heed_signals()?;
    let (given, jobs) = channel();
    let Some(socket) = lifeline(&cancel, Some(given))? else {
        return Err(bad("it is no socket to a scheduler; give a job file".to_owned()));
    };
    let adopts = rustix::process::set_child_subreaper(Some(rustix::process::getpid())).is_ok();
    let mut mouth = Mouth::new(Some(socket));
    let (mut store, mut before) = (None, 0.0);
    for line in jobs {
        let job: Job = serde_json::from_str(&line).map_err(|error| bad(error.to_string()))?;
        let result = match log_to(&job) {
            Ok(()) => execute(&job, &mut store, &mut mouth, &cancel),
            Err(error) => JobResult::Failed { what: format!("its log cannot be written: {error}"), help: None },
        };
        let cleared = clear(&job);
        if !adopts || has_children() || cleared.is_err() {
            mouth.say(&Word::Last);
        }
        mouth.account();
        // Of what is kept in memory nothing is an attempt's own, and what its program took no one measures.
        let so_far = cpu_seconds();
        let used = so_far.map(|so_far| so_far - std::mem::replace(&mut before, so_far));
        mouth.say(&Word::Used(Usage { cpu_seconds: used, ..spent(&mouth.purse.spent()) }));
        mouth.say(&Word::Result(result));
    }
    Ok(0)
}

/// Leaves the directories of a job empty for the next one, but for empty directories in its scratch.
fn clear(job: &Job) -> std::io::Result<()> {
    fs::empty_directory(&job.staging)?;
    (0..job.inputs.len()).try_for_each(|number| fs::empty_directory(&job.scratch.join(kinds::input_place(number))))
}

/// Lets standard output and error go to the log of a job.
fn log_to(job: &Job) -> std::io::Result<()> {
    let Some(log) = &job.log else { return Ok(()) };
    let log = fs::create(log)?;
    rustix::stdio::dup2_stdout(log.file())?;
    rustix::stdio::dup2_stderr(log.file())?;
    Ok(())
}

/// Whether this process has children.
fn has_children() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    // They are left as they are: only whether there are any is asked.
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, how), Err(rustix::io::Errno::CHILD))
}

/// What signals that ask this process to end set.
fn heed_signals() -> Result<Arc<AtomicBool>, ExecError> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&cancel))?;
    }
    Ok(cancel)
}

/// Executes an attempt; `store` is the one that the last attempt used, if it may be used again.
fn execute(job: &Job, store: &mut Option<Store>, mouth: &mut Mouth, cancel: &AtomicBool) -> JobResult {
    (mouth.last, mouth.purse, mouth.told) = (None, Arc::new(Purse::new(job.allowance)), Spent::default());
    let attempted = attempt(job, store, mouth, cancel);
    mouth.catch_up();
    let result = attempted.unwrap_or_else(|error| match error {
        NodeError::Interrupted => JobResult::Interrupted,
        NodeError::Failed { what, help } => JobResult::Failed { what, help },
        NodeError::Store(error) => failed(error.diagnostic()),
        NodeError::Lm(error) => failed(error.diagnostic()),
        NodeError::Endpoint(error) => failed(error.diagnostic()),
        NodeError::Io(error) => JobResult::Failed { what: error.to_string(), help: None },
    });
    let result = result.without_secrets();
    match &result {
        // A log that says nothing else is not worth its block on the disk.
        JobResult::Done { .. } if job.log.is_some() => {}
        JobResult::Done { artifact, .. } => tracing::info!("done: artifact {artifact}"),
        JobResult::Failed { what, .. } => tracing::error!("failed: {what}"),
        JobResult::Interrupted => tracing::info!("interrupted"),
    }
    result
}

fn attempt(
    job: &Job,
    store: &mut Option<Store>,
    mouth: &mut Mouth,
    cancel: &AtomicBool,
) -> Result<JobResult, NodeError> {
    let entry = kinds::find(&job.kind).ok_or_else(|| NodeError::failed(format!("there is no kind `{}`", job.kind)))?;
    let store = match store {
        Some(open) if open.root() == job.store => &*open,
        _ => store.insert(Store::open_existing(&job.store)?),
    };
    if let Some(live) = &job.live {
        store.join(live);
    }
    store.trust(job.trusted.iter().cloned());
    // The worker of a scheduler that was killed may need a moment to die; until then the scratch is its. The directories of
    // a worker that takes several jobs are its alone.
    let scratch = job.result.is_some().then(|| fs_err::File::open(&job.scratch)).transpose()?;
    scratch.iter().try_for_each(|scratch| scratch.file().lock())?;
    let inputs = job.inputs.iter().map(|(path, input)| {
        let (kind, files, skip, take) = (input.kind, input.files.clone(), input.skip, input.take);
        let calling = input.calling.clone();
        (path.clone(), InputArtifact { id: input.id, kind, files, skip, take, calling })
    });
    let purse = Arc::clone(&mouth.purse);
    let mut progress = |progress: Progress| mouth.progress(progress);
    let mut cx = Cx {
        store,
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
        if let Some(result) = &job.result {
            fs::write(&result.with_file_name("outputs.json"), files)?;
        }
        let artifact = Store::identity(job.output.name(), &outputs.files)?;
        return Ok(JobResult::Done { artifact, metrics: outputs.metrics, put: Vec::new(), unsettled: Vec::new() });
    }
    let put = || store.put_artifact(job.output.name(), &outputs.files);
    // The scheduler waits for the disk where attempts end faster than that can be waited for one by one.
    let (artifact, unsettled) = if job.log.is_some() { fs::deferred(put) } else { (put(), Vec::new()) };
    let artifact = artifact?;
    Ok(JobResult::Done { artifact, metrics: outputs.metrics, put: store.known(&artifact)?, unsettled })
}

fn record(job: &Job, result: &JobResult) -> std::io::Result<()> {
    let Some(path) = &job.result else { return Ok(()) };
    let unfinished = path.with_extension("tmp");
    fs::write(&unfinished, serde_json::to_vec(result)?)?;
    // Nothing rests on it once the machine has been off: it need not be on the disk, only whole.
    fs::rename_soon(&unfinished, path)
}

/// The socket to the scheduler, if there is one. Sets `cancel` when told to stop, hands jobs on, and ends this process's
/// group when the scheduler is gone.
fn lifeline(cancel: &Arc<AtomicBool>, jobs: Option<Sender<String>>) -> Result<Option<UnixStream>, ExecError> {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    // By hand, standard input is a terminal or a file.
    if socket.peer_addr().is_err() {
        return Ok(None);
    }
    let (ears, cancel) = (socket.try_clone()?, Arc::clone(cancel));
    std::thread::spawn(move || {
        for line in BufReader::new(ears).lines() {
            match (line, &jobs) {
                (Err(_), _) => break,
                (Ok(job), Some(jobs)) if job.as_bytes() != STOP.trim_ascii_end() => {
                    // A stop that comes after it is for this one.
                    cancel.store(false, Ordering::Relaxed);
                    // With no one to take it the process is ending.
                    let _ = jobs.send(job);
                }
                _ => cancel.store(true, Ordering::Relaxed),
            }
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
    Usage { cpu_seconds: cpu_seconds(), peak_bytes: peak.map(|kib| kib << 10), ..self::spent(spent) }
}

/// CPU seconds of this process and of those of its children that it waited for.
fn cpu_seconds() -> Option<f64> {
    // `PID (NAME) STATE …`: times of this process and of its children are fields 14 to 17, in ticks of a hundredth.
    let stat = fs_err::read_to_string("/proc/self/stat").ok()?;
    let times = stat.rsplit(')').next()?.split_whitespace().skip(11).take(4);
    Some(times.filter_map(|time| time.parse::<f64>().ok()).sum::<f64>() / 100.0)
}

/// What was spent on calls.
fn spent(spent: &Spent) -> Usage {
    Usage {
        cpu_seconds: None,
        peak_bytes: None,
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
    /// Progress that was too soon after the last to be said, with all steps since.
    held: Option<Progress>,
    purse: Arc<Purse>,
    /// What was said to be spent.
    told: Spent,
}

impl Mouth {
    fn new(socket: Option<UnixStream>) -> Self {
        let purse = Arc::new(Purse::new(Allowance::default()));
        Self { socket, last: None, held: None, purse, told: Spent::default() }
    }

    fn progress(&mut self, mut progress: Progress) {
        fs::kill_point("progress");
        if let Some(mut held) = self.held.take() {
            held.steps.append(&mut progress.steps);
            progress.steps = held.steps;
        }
        let due = self.last.is_none_or(|last| last.elapsed() >= BEAT);
        if due || progress.done >= progress.total {
            self.last = Some(Instant::now());
            self.account();
            self.say(&Word::Progress(progress));
        } else {
            self.held = Some(progress);
        }
    }

    /// Says what is held of steps: none is kept for itself.
    fn catch_up(&mut self) {
        if let Some(held) = self.held.take().filter(|held| !held.steps.is_empty()) {
            self.say(&Word::Progress(held));
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
