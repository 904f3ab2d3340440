//! `sami worker JOB --detached`: an attempt that no scheduler holds on a socket. Another machine may execute it, and the
//! scheduler may be gone when it ends.
//!
//! All goes through files beside the job: what it says is appended to `words.jsonl`, a file `stop` tells it to save and
//! end, and `result.json` is the last thing that it writes, whole or not at all. SIGUSR1 says that its time is nearly
//! up, SIGTERM that someone ends it; both are heeded like `stop`, and the record says which it was.
//!
//! No lock is relied on to keep writers apart: what it makes goes into a directory that has the name of this very
//! process. A job that is started twice (requeued, or its host was thought lost and was not) therefore writes to two
//! places, and what is published from there is published by renames.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

use super::mouth::Mouth;
use super::{Bench, execute, used};
use crate::collective::Launch;
use crate::digest::Digest;
use crate::exec::engine::NO_ROOM;
use crate::exec::job::{Exit, Job, JobResult, RESULT, STOP_FILE, ToldBy, WORDS, Word};
use crate::exec::{ExecError, host, ranks};
use crate::fs;
use crate::store::{KeyLock, Store};

/// Between two looks for the file that says stop.
const LOOK: Duration = Duration::from_millis(500);
/// How long there may be no room for the record.
const ROOM: Duration = Duration::from_secs(4);
/// How long another worker at the same key may take to save and end, or to be taken for dead.
const PATIENCE: Duration = Duration::from_secs(120);

/// Executes the attempt of a job file. Returns the process's exit code: 0 done, 1 failed, 130 interrupted.
///
/// Errs if the file is no job; whatever goes wrong after that is the attempt's result.
pub fn work_detached(path: &Path) -> Result<u8, ExecError> {
    let began = Instant::now();
    let path = fs_err::canonicalize(path)?;
    let bad = |what: &str| ExecError::BadJob { path: path.clone(), what: what.to_owned() };
    let directory = path.parent().ok_or_else(|| bad("it is in no directory"))?;
    let told = Told::heed(directory)?;
    if ranks::is_follower() {
        return follow(&path);
    }
    let mut mouth = Mouth::file(directory.join(WORDS));
    mouth.say(&Word::Began { host: host() });
    let mut bench = Bench::default();
    let result = match version(&path)? {
        Some(theirs) if theirs != env!("CARGO_PKG_VERSION") => other_version(&theirs),
        _ => {
            let mut job = Job::read(&path)?;
            job.staging = directory.join(format!("staging-{}-{}", host(), std::process::id()));
            let mut done = prepared(&mut job, &path, &mut bench, &mut mouth, &told);
            // Whoever ends a job ends all of its processes: that those of a node died of it is no fault of the node. They may
            // be the first that are told.
            if matches!(done, JobResult::Failed { .. }) && told.by_soon() == Some(ToldBy::Signal) {
                done = JobResult::Interrupted;
            }
            if let Err(error) = fs::remove_directory(&job.staging) {
                tracing::warn!("{} is left over: {error}", job.staging.display());
            }
            done
        }
    };
    mouth.account();
    let spent = mouth.purse.spent();
    let seconds = began.elapsed().as_secs_f64();
    let code = result.code();
    let exit = Exit { result, told: told.by(), host: host(), seconds, usage: used(&spent, &bench.shelf), spent };
    Ok(if leave(directory, &exit)? { code } else { NO_ROOM })
}

/// Does what there is to do for a task of a step that is not the first: it writes nothing that others read.
fn follow(path: &Path) -> Result<u8, ExecError> {
    let job = Job::read(path)?;
    Ok(match ranks::launch(&job) {
        Ok(Launch::Task(task)) => ranks::task(&job, path, &task),
        Ok(_) => {
            tracing::warn!("a task of a step has nothing to do: {} has no ranks", job.node);
            0
        }
        // The first task says so, too.
        Err(error) => {
            tracing::error!("{error}");
            1
        }
    })
}

/// Executes a probe: a job that says where it is and what it sees there.
pub fn work_probe(path: &Path) -> Result<u8, ExecError> {
    crate::exec::engine::probe(path)
}

/// Writes the record that an attempt ended. It is on the disk when this returns: a scheduler that comes later goes by it. Returns
/// whether there was room for it, which is waited for.
fn leave(directory: &Path, exit: &Exit) -> Result<bool, ExecError> {
    let bytes = serde_json::to_vec(exit).map_err(crate::store::StoreError::from)?;
    let began = Instant::now();
    loop {
        match fs::write_atomic(&directory.join(RESULT), &bytes) {
            Ok(()) => return Ok(true),
            Err(error) if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                return Err(error.into());
            }
            Err(error) if began.elapsed() > ROOM => {
                tracing::error!("there is no room for the record: {error}");
                return Ok(false);
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// The version of the scheduler that wrote a job; read by itself, for another version's job may not be readable.
fn version(path: &Path) -> Result<Option<String>, ExecError> {
    let bad = |what: String| ExecError::BadJob { path: path.to_owned(), what };
    let bytes = fs_err::read(path).map_err(|error| bad(error.to_string()))?;
    let job: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    Ok(job.get("version").and_then(serde_json::Value::as_str).map(str::to_owned))
}

fn other_version(theirs: &str) -> JobResult {
    let (host, ours) = (host(), env!("CARGO_PKG_VERSION"));
    let program = std::env::current_exe().unwrap_or_default();
    JobResult::Failed {
        what: format!("`sami` on {host} is {ours} and the scheduler's is {theirs}"),
        help: Some(format!(
            "install {theirs} at {} there, or name another `program` in the profile",
            program.display()
        )),
    }
}

/// Executes an attempt when what it stands on is there and no one else writes to its scratch.
fn prepared(job: &mut Job, path: &Path, bench: &mut Bench, mouth: &mut Mouth, told: &Told) -> JobResult {
    let store = match Store::open_existing(&job.store) {
        Ok(store) => store,
        Err(error) => {
            return JobResult::Failed {
                what: format!("the cache cannot be opened on {}: {error}", host()),
                help: Some("the cache must be in a directory that all hosts share".to_owned()),
            };
        }
    };
    let alone = match alone(&store, &job.key, &told.stop) {
        Ok(Some(lock)) => Some(lock),
        Ok(None) if told.stop.load(Ordering::Relaxed) => return JobResult::Interrupted,
        // Whoever holds it does not end. What it began is left to it.
        Ok(None) => {
            job.scratch = job.staging.with_extension("scratch");
            None
        }
        Err(error) => return JobResult::Failed { what: format!("the key cannot be locked: {error}"), help: None },
    };
    let made = [&job.staging, &job.scratch].into_iter().try_for_each(|directory| fs::create_directory(directory));
    if let Err(error) = made {
        return JobResult::Failed { what: format!("no directory for the attempt: {error}"), help: None };
    }
    // This process's own names, which live as long as it does: the scheduler may end before it.
    (job.live, job.result) = (None, None);
    let inputs = job.inputs.values().map(|input| input.id).collect::<Vec<_>>();
    let needed = store.sharing().and_then(|_section| store.need_artifacts(inputs));
    if let Err(error) = needed {
        tracing::warn!("gc cannot be told of the inputs: {error}");
    }
    bench.store = Some(store);
    let result = execute(job, (path, ranks::launch(job)), bench, mouth, &told.stop);
    // The scheduler that records it may not be there for days, and no process needs it until then.
    if let (JobResult::Done { artifact, .. }, Some(store)) = (&result, &bench.store)
        && let Err(error) = store.promise(&job.key, artifact)
    {
        tracing::warn!("gc cannot be told of what was made: {error}");
    }
    if alone.is_none() {
        let _ = fs::remove_directory(&job.scratch);
    }
    drop(alone);
    result
}

/// Waits until no other worker writes to the scratch of a key. `None` if one goes on for too long, or on a stop.
fn alone(store: &Store, key: &Digest, stop: &AtomicBool) -> Result<Option<KeyLock>, crate::store::StoreError> {
    let began = Instant::now();
    loop {
        // A lock of its own: the scheduler holds the key's.
        if let Some(lock) = store.try_lock_key(&Digest::of(format!("worker at {key}").as_bytes()))? {
            return Ok(Some(lock));
        }
        if stop.load(Ordering::Relaxed) || began.elapsed() > PATIENCE {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether this worker was told to stop, and by whom first.
struct Told {
    stop: Arc<AtomicBool>,
    time: Arc<AtomicBool>,
    signal: Arc<AtomicBool>,
}

impl Told {
    /// Begins to heed signals, and the file in `directory`.
    fn heed(directory: &Path) -> Result<Self, ExecError> {
        let told = Self { stop: Arc::default(), time: Arc::default(), signal: Arc::default() };
        for (signal, flag) in [(SIGUSR1, &told.time), (SIGTERM, &told.signal), (SIGINT, &told.signal)] {
            signal_hook::flag::register(signal, Arc::clone(flag))?;
            signal_hook::flag::register(signal, Arc::clone(&told.stop))?;
        }
        let (stop, directory) = (Arc::clone(&told.stop), directory.to_owned());
        std::thread::Builder::new().name("stop".to_owned()).stack_size(1 << 17).spawn(move || {
            // Listed, not looked up: NFS remembers for a while that a name was not there.
            let is_there =
                || fs::list(&directory).is_ok_and(|files| files.iter().any(|file| file.ends_with(STOP_FILE)));
            while !is_there() {
                std::thread::sleep(LOOK);
            }
            stop.store(true, Ordering::Relaxed);
        })?;
        Ok(told)
    }

    /// Who said so, or does in a moment.
    fn by_soon(&self) -> Option<ToldBy> {
        let began = Instant::now();
        while self.by().is_none() && began.elapsed() < LOOK {
            std::thread::sleep(LOOK / 50);
        }
        self.by()
    }

    /// Who said so.
    fn by(&self) -> Option<ToldBy> {
        let is_set = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        match (is_set(&self.time), is_set(&self.signal), is_set(&self.stop)) {
            (true, ..) => Some(ToldBy::TimeLimit),
            (_, true, _) => Some(ToldBy::Signal),
            (_, _, true) => Some(ToldBy::File),
            _ => None,
        }
    }
}
