//! `sami worker JOB`: one attempt at a node, in a process of its own. `sami worker`: attempts at light nodes, one after
//! another, as the scheduler gives them.
//!
//! A worker writes files only: artifacts, row memos, scratch, its result. That an attempt succeeded becomes true when
//! the scheduler records it.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::ExecError;
use super::job::{Job, JobPart, JobResult, STOP, Word};
use super::local::die;
use super::ranks;
use crate::collective::{Launch, Team};
use crate::diag::Diagnostic;
use crate::endpoint::{Purse, Spent};
use crate::fs;
use crate::kinds::part::{Joined, Part, Report, Shard};
use crate::kinds::{self, Cx, InputArtifact, NodeError, Outputs, Progress};
use crate::store::{Store, Usage};

mod detached;
mod mouth;

pub use detached::{work_detached, work_probe};
use mouth::Mouth;

/// How long it may take until the reports of parts are seen where these are put together, and the time between two looks for them.
const LATE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
/// A disk on which less is free is full.
const FULL: u64 = 64 << 10;

/// Executes the attempt of a job file. Returns the process's exit code: 0 done, 1 failed, 130 interrupted.
///
/// Errs if the file is no job; whatever goes wrong after that is the attempt's result.
pub fn work(path: &Path) -> Result<u8, ExecError> {
    let job = Job::read(path)?;
    let cancel = heed_signals()?;
    let socket = lifeline(&cancel, None)?;
    // A scheduler starts one process, whatever it was started in itself.
    let launch = if socket.is_some() { ranks::local(&job) } else { ranks::launch(&job) };
    if let Ok(Launch::Task(task)) = &launch
        && task.rank > 0
    {
        return Ok(ranks::task(&job, path, task));
    }
    let mut mouth = Mouth::new(socket);
    let result = execute(&job, (path, launch), &mut None, &mut mouth, &cancel);
    // A disk that is full does not keep the scheduler from hearing of it.
    if let Err(error) = record(&job, &result) {
        tracing::warn!("the result cannot be written: {error}");
    }
    mouth.account();
    mouth.say(&Word::Used(used(&mouth.purse.spent())));
    mouth.say(&Word::Result(result.clone()));
    Ok(match result {
        JobResult::Done { .. } | JobResult::Computed { .. } => 0,
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
            Ok(()) => execute(&job, (Path::new(""), Ok(Launch::Alone)), &mut store, &mut mouth, &cancel),
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
pub(super) fn heed_signals() -> Result<Arc<AtomicBool>, ExecError> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&cancel))?;
    }
    Ok(cancel)
}

/// The file of a job, and who this process is in its attempt.
type Start<'a> = (&'a Path, Result<Launch, NodeError>);

/// Executes an attempt; `store` is the one that the last attempt used, if it may be used again.
fn execute(
    job: &Job,
    start: Start<'_>,
    store: &mut Option<Store>,
    mouth: &mut Mouth,
    cancel: &AtomicBool,
) -> JobResult {
    mouth.begin(job.allowance);
    let attempted = attempt(job, start, store, mouth, cancel);
    mouth.catch_up();
    if let Some(row) = attempted.as_ref().err().and_then(NodeError::is_out_of_memory) {
        mouth.say(&Word::Full { row });
    }
    let result = attempted.unwrap_or_else(|error| match error {
        NodeError::Interrupted => JobResult::Interrupted,
        NodeError::Failed { what, help } | NodeError::Full { what, help } => JobResult::Failed { what, help },
        NodeError::Store(error) => failed(error.diagnostic()),
        NodeError::Lm(error) => failed(error.diagnostic()),
        NodeError::Endpoint(error) => failed(error.diagnostic()),
        NodeError::Io(error) => JobResult::Failed { what: error.to_string(), help: None },
    });
    let result = match result {
        // Programs do not always say so, and what they said may not have got into the log.
        JobResult::Failed { what, help: None } if fs::free(&job.staging).is_some_and(|free| free < FULL) => {
            let help = "the disk of the cache is full: make room (`sami cache gc` removes what no recent run uses), then run the same command again";
            JobResult::Failed { what, help: Some(help.to_owned()) }
        }
        other => other,
    };
    let result = result.without_secrets();
    match &result {
        // A log that says nothing else is not worth its block on the disk.
        JobResult::Done { .. } if job.log.is_some() => {}
        JobResult::Done { artifact, .. } => tracing::info!("done: artifact {artifact}"),
        JobResult::Computed { .. } => tracing::info!("done: the rows of the part are remembered"),
        JobResult::Failed { what, .. } => tracing::error!("failed: {what}"),
        JobResult::Interrupted => tracing::info!("interrupted"),
    }
    result
}

fn attempt(
    job: &Job,
    (path, launch): Start<'_>,
    store: &mut Option<Store>,
    mouth: &mut Mouth,
    cancel: &AtomicBool,
) -> Result<JobResult, NodeError> {
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
    let (team, others) = ranks::lead(job, path, &launch?)?.unzip();
    let purse = Arc::clone(&mouth.purse);
    let computed = compute(job, store, team, &mut |progress| mouth.progress(progress), purse, cancel);
    let (outputs, part) = match others {
        Some(others) => others.end(computed),
        None => computed,
    }?;
    if let (Some(JobPart::Shard { report, .. }), Part::Shard(shard)) = (&job.part, &part) {
        fs::write_atomic(report, &serde_json::to_vec(&shard.report).map_err(std::io::Error::from)?)?;
        return Ok(JobResult::Computed { class: kinds::device_class(&job.device).ok() });
    }
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

/// Does the work of a job. What was done of a part is in the part.
pub(super) fn compute(
    job: &Job,
    store: &Store,
    team: Option<Team>,
    progress: &mut dyn FnMut(Progress),
    purse: Arc<Purse>,
    cancel: &AtomicBool,
) -> Result<(Outputs, Part), NodeError> {
    let entry = kinds::find(&job.kind).ok_or_else(|| NodeError::failed(format!("there is no kind `{}`", job.kind)))?;
    let inputs = job.inputs.iter().map(|(path, input)| {
        let (kind, files, skip, take) = (input.kind, input.files.clone(), input.skip, input.take);
        let calling = input.calling.clone();
        (path.clone(), InputArtifact { id: input.id, kind, files, skip, take, calling })
    });
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
        part: part(job)?,
        ranked: job.ranks.is_some(),
        team,
        progress,
        purse,
        cancel,
    };
    kinds::bound_gpu_memory(job.gpu_bytes);
    let outputs = entry.run(&job.fields, &mut cx)?;
    Ok((outputs, cx.part))
}

/// Which rows the attempt computes.
fn part(job: &Job) -> Result<Part, NodeError> {
    Ok(match &job.part {
        None => Part::Whole,
        Some(JobPart::Shard { number, of, .. }) => {
            Part::Shard(Shard { number: *number, of: *of, report: Report::default() })
        }
        Some(JobPart::Join { reports, class }) => {
            let began = Instant::now();
            // What another machine wrote may be seen late.
            while reports.iter().any(|report| !report.exists()) && began.elapsed() < LATE {
                std::thread::sleep(LOOK);
            }
            let read = |path| Ok(serde_json::from_slice(&fs_err::read(path)?)?);
            let reports = reports.iter().map(read).collect::<std::io::Result<_>>()?;
            Part::Joined(Joined::of(reports, class.clone()))
        }
    })
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
        gpu_peak_bytes: kinds::gpu_peak(),
        gpu_seconds: None,
        calls: (spent.calls > 0).then_some(spent.calls),
        dollars: (spent.dollars > 0.0).then_some(spent.dollars),
    }
}

/// The result of an attempt that ended in a finding of another layer.
fn failed(finding: Diagnostic) -> JobResult {
    JobResult::Failed { what: finding.title, help: finding.help.into_iter().next() }
}
