//! `sami worker JOB`: one attempt at a node, in a process of its own, and then such as use weights that it is left with. `sami worker`:
//! attempts at light nodes, one after another, as the scheduler gives them.
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

use rayon::{ThreadPool, ThreadPoolBuilder};
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
use crate::kinds::{self, Cx, InputArtifact, NodeError, Outputs, Progress, Shelf};
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

/// Bytes of the stack of a thread that an attempt runs on, as much as the first thread of a process has.
const STACK: usize = 8 << 20;

/// What a worker has from one attempt to the next.
#[derive(Default)]
struct Bench {
    /// The store that the last attempt used, if it may be used again.
    store: Option<Store>,
    /// Weights that stay in memory.
    shelf: Arc<Shelf>,
    /// Threads to compute with, where they are not as many as the process was started for.
    threads: Option<ThreadPool>,
}

/// Executes the attempt of a job file, and then those that the scheduler has for a worker that is left with their models' weights. Returns
/// the process's exit code, that of its last attempt: 0 done, 1 failed, 130 interrupted.
///
/// Errs if the file is no job; whatever goes wrong after that is the attempt's result.
pub fn work(path: &Path) -> Result<u8, ExecError> {
    let mut job = Job::read(path)?;
    let cancel = heed_signals()?;
    let (given, paths) = channel();
    let socket = lifeline(&cancel, Some(given))?;
    // A scheduler starts one process, whatever it was started in itself.
    let mut launch = if socket.is_some() { ranks::local(&job) } else { ranks::launch(&job) };
    if let Ok(Launch::Task(task)) = &launch
        && task.rank > 0
    {
        return Ok(ranks::task(&job, path, task));
    }
    let (mut path, started_for, mut before) = (path.to_owned(), job.threads, 0.0);
    let (mut mouth, mut bench) = (Mouth::new(socket), Bench::default());
    loop {
        bench.shelf.begin(|id| job.inputs.values().any(|input| input.id == *id), &job.keep);
        let result = execute(&job, (&path, launch), &mut bench, &mut mouth, &cancel);
        // A disk that is full does not keep the scheduler from hearing of it.
        if let Err(error) = record(&job, &result) {
            tracing::warn!("the result cannot be written: {error}");
        }
        mouth.account();
        let used = used(&mouth.purse.spent(), &bench.shelf);
        mouth.say(&Word::Used(Usage { cpu_seconds: used.cpu_seconds.map(|so_far| so_far - before), ..used }));
        let models = bench.shelf.end();
        // After an attempt that failed nothing is relied on that it touched.
        let waits = !models.is_empty() && result.is_done() && !has_children();
        if waits {
            // Nothing else is left of the attempt.
            (bench.store, before) = (None, cpu_seconds().unwrap_or(0.0));
            kinds::begin_peaks(&job.device);
            mouth.say(&Word::Kept { models });
        }
        mouth.say(&Word::Result(result.clone()));
        let Some(next) = waits.then(|| paths.recv().ok()).flatten() else {
            return Ok(result.code());
        };
        path = serde_json::from_str(&next)
            .map_err(|error| ExecError::BadJob { path: "standard input".into(), what: error.to_string() })?;
        job = Job::read(&path)?;
        launch = Ok(Launch::Alone);
        // The scheduler has made it.
        speak_to(&fs_err::OpenOptions::new().append(true).open(path.with_file_name("log.txt"))?)?;
        let threads = ThreadPoolBuilder::new().num_threads(job.threads).stack_size(STACK);
        bench.threads = if job.threads == started_for { None } else { threads.build().ok() };
    }
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
    let (mut bench, mut before) = (Bench::default(), 0.0);
    for line in jobs {
        let job: Job = serde_json::from_str(&line).map_err(|error| bad(error.to_string()))?;
        let result = match log_to(&job) {
            Ok(()) => execute(&job, (Path::new(""), Ok(Launch::Alone)), &mut bench, &mut mouth, &cancel),
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
    speak_to(&fs::create(log)?)
}

/// Lets standard output and error go to a file.
fn speak_to(log: &fs_err::File) -> std::io::Result<()> {
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

/// Executes an attempt.
fn execute(job: &Job, start: Start<'_>, bench: &mut Bench, mouth: &mut Mouth, cancel: &AtomicBool) -> JobResult {
    mouth.begin(job.allowance);
    let attempted = attempt(job, start, bench, mouth, cancel);
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
    Bench { store, shelf, threads }: &mut Bench,
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
    let (purse, shelf) = (Arc::clone(&mouth.purse), Arc::clone(shelf));
    let work = || compute(job, store, team, &mut |progress| mouth.progress(progress), (purse, shelf), cancel);
    let computed = match threads {
        Some(threads) => threads.install(work),
        None => work(),
    };
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
    (purse, shelf): (Arc<Purse>, Arc<Shelf>),
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
        shelf,
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
fn used(spent: &Spent, shelf: &Shelf) -> Usage {
    let some = |count: u32| Some(count).filter(|count| *count > 0);
    let uses = shelf.uses();
    Usage {
        cpu_seconds: cpu_seconds(),
        peak_bytes: kinds::peak(),
        weights_loaded: some(uses.loaded),
        weights_kept: some(uses.kept),
        ..self::spent(spent)
    }
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
        gpu_peak_bytes: kinds::gpu_peak(),
        calls: (spent.calls > 0).then_some(spent.calls),
        dollars: (spent.dollars > 0.0).then_some(spent.dollars),
        ..Usage::default()
    }
}

/// The result of an attempt that ended in a finding of another layer.
fn failed(finding: Diagnostic) -> JobResult {
    JobResult::Failed { what: finding.title, help: finding.help.into_iter().next() }
}
