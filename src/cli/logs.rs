//! `sami logs`: what an attempt at a node said.

use std::cmp::Reverse;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::context::Failure;
use super::{CommandResult, Context, DONE, context, find};
use crate::diag::Diagnostic;
use crate::fs;
use crate::store::Store;

/// An attempt that left a log, or whose parts did.
#[derive(Debug, PartialEq, Eq)]
struct Attempt {
    run: String,
    node: String,
    number: u32,
    /// Of a node in parts there is none until they are put together.
    log: Option<PathBuf>,
    /// In their order, of each the last attempt.
    shards: Vec<ShardLog>,
}

/// The log of an attempt at a part of a node.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ShardLog {
    /// From 1.
    shard: usize,
    attempt: u32,
    log: PathBuf,
}

impl ShardLog {
    /// Of a directory in that of an attempt: `shard-SHARD.ATTEMPT`.
    fn of(directory: &Path) -> Option<Self> {
        let (shard, attempt) = directory.file_name()?.to_str()?.strip_prefix("shard-")?.split_once('.')?;
        let log = directory.join("log.txt");
        Some(Self { shard: shard.parse().ok()?, attempt: attempt.parse().ok()?, log }).filter(|own| own.log.is_file())
    }

    /// What there is in the directory of an attempt.
    fn all(directory: &Path) -> io::Result<Vec<Self>> {
        let mut all: Vec<Self> = fs::list(directory)?.iter().filter_map(|path| Self::of(path)).collect();
        // The latest first, of which the others are left out.
        all.sort_by_key(|own| (own.shard, Reverse(own.attempt)));
        all.dedup_by_key(|own| own.shard);
        Ok(all)
    }
}

/// Prints the log of a node's latest attempt, in a run or at all: of a node in parts the logs of these, or of `shard`, and then its
/// own.
pub(super) fn run(context: &Context, node: &str, run: Option<&str>, shard: Option<usize>) -> CommandResult {
    let store = Store::open_existing(&context.cache_directory(None)?)?;
    let mut attempt = match run {
        Some(run) => in_run(&store, node, &find::run(&store, run)?.run)?,
        None => latest(&store, node)?,
    };
    if let Some(shard) = shard {
        let shards: Vec<String> = attempt.shards.iter().map(|own| own.shard.to_string()).collect();
        attempt.shards.retain(|own| own.shard == shard);
        if attempt.shards.is_empty() {
            return Err(no_shard(&attempt, shard, &shards));
        }
        attempt.log = None;
    }
    let read = |log: &PathBuf| fs_err::read(log).map(|text| String::from_utf8_lossy(&text).into_owned());
    if context.json() {
        let shards = attempt.shards.iter().map(|own| {
            Ok(json!({"shard": own.shard, "attempt": own.attempt, "path": own.log, "log": read(&own.log)?}))
        });
        let shards = shards.collect::<io::Result<Vec<_>>>()?;
        let mut told = json!({
            "node": attempt.node, "run": attempt.run, "attempt": attempt.number, "path": attempt.log,
            "log": attempt.log.as_ref().map(read).transpose()?,
        });
        if !shards.is_empty() {
            told["shards"] = json!(shards);
        }
        context::print_json(&told)?;
        return Ok(DONE);
    }
    let headed = attempt.shards.iter().map(|own| {
        let again = if own.attempt > 1 { format!(", attempt {}", own.attempt) } else { String::new() };
        (Some(format!("== shard {}{again}\n", own.shard)), &own.log)
    });
    let own = attempt.log.iter().map(|log| ((!attempt.shards.is_empty()).then(|| "== all shards\n".to_owned()), log));
    for (head, log) in headed.chain(own) {
        let mut log = fs_err::File::open(log)?;
        context::write_out(|stdout| {
            stdout.write_all(head.unwrap_or_default().as_bytes())?;
            io::copy(&mut log, stdout).map(drop)
        })?;
    }
    Ok(DONE)
}

/// The latest attempt at a node in any run.
fn latest(store: &Store, node: &str) -> Result<Attempt, Failure> {
    for run in store.run_ids()?.iter().rev() {
        if let Some(attempt) = choose(attempts(store, run)?, node)? {
            return Ok(attempt);
        }
    }
    let fault = Diagnostic::error("cli::no-log", format!("there is no log of a node `{node}`"));
    Err(find::similar(fault, store, node)?.into())
}

/// The last attempt at a node in a run; or which runs have one.
fn in_run(store: &Store, node: &str, run: &str) -> Result<Attempt, Failure> {
    if let Some(attempt) = choose(attempts(store, run)?, node)? {
        return Ok(attempt);
    }
    let fault = Diagnostic::error("cli::no-log", format!("run {run} has no log of a node `{node}`"));
    let record = store.run(run)?;
    let state = record.iter().flat_map(|record| &record.nodes).find(|known| known.name == node);
    let fault = match state {
        Some(known) if known.state == "hit" => fault.note("it was fresh then, so it did not run"),
        Some(known) => fault.note(format!("it was {} then", known.state)),
        None => fault,
    };
    Err(match latest(store, node) {
        Ok(attempt) => fault.help(format!("its latest log is of run {}: leave out `--run`", attempt.run)).into(),
        Err(_) => find::similar(fault, store, node)?.into(),
    })
}

/// An attempt has no such part; `shards` are those that left logs.
fn no_shard(attempt: &Attempt, shard: usize, shards: &[String]) -> Failure {
    let title = format!("attempt {} at `{}` in run {} has no shard {shard}", attempt.number, attempt.node, attempt.run);
    let fault = Diagnostic::error("cli::no-log", title);
    match shards.len() {
        0 => fault.help("it was not in parts: leave out `--shard`").into(),
        _ => fault.help(format!("there are logs of shards {}", shards.join(", "))).into(),
    }
}

/// The last attempt at the node called `node`, or at the last iteration of it.
fn choose(attempts: Vec<Attempt>, node: &str) -> Result<Option<Attempt>, Failure> {
    let names: Vec<&str> = attempts.iter().map(|attempt| attempt.node.as_str()).collect();
    let Some(chosen) = find::member(&names, node)?.map(str::to_owned) else { return Ok(None) };
    Ok(attempts.into_iter().filter(|attempt| attempt.node == chosen).max_by_key(|attempt| attempt.number))
}

/// The attempts of a run that left a log: `runs/RUN/NODE.ATTEMPT/log.txt`, `NODE.ATTEMPT.log`, or of parts
/// `NODE.ATTEMPT/shard-SHARD.ATTEMPT/log.txt`.
fn attempts(store: &Store, run: &str) -> Result<Vec<Attempt>, Failure> {
    let mut attempts = Vec::new();
    for directory in fs::list(&store.run_dir(run))? {
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (name, log, shards) = match name.strip_suffix(".log") {
            Some(name) => (name, directory, Vec::new()),
            None if directory.is_dir() => (name.as_str(), directory.join("log.txt"), ShardLog::all(&directory)?),
            None => continue,
        };
        let Some((node, number)) = name.rsplit_once('.').and_then(|(node, number)| Some((node, number.parse().ok()?)))
        else {
            continue;
        };
        let log = Some(log).filter(|log| log.is_file());
        if log.is_some() || !shards.is_empty() {
            attempts.push(Attempt { run: run.to_owned(), node: node.to_owned(), number, log, shards });
        }
    }
    Ok(attempts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_attempt_of_the_last_iteration_is_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for name in ["train@1.1", "train@2.1", "train@2.10", "train@2.9", "other.1"] {
            fs::create_directory(&store.run_dir("r").join(name)).unwrap();
            fs::write_atomic(&store.run_dir("r").join(name).join("log.txt"), name.as_bytes()).unwrap();
        }
        fs::write_atomic(&store.run_dir("r").join("flat.1.log"), b"").unwrap();
        fs::create_directory(&store.run_dir("r").join("other.2")).unwrap();
        let chosen = |node| {
            let attempt = choose(attempts(&store, "r").unwrap(), node).unwrap()?;
            Some((attempt.node, attempt.number))
        };
        assert_eq!(chosen("train"), Some(("train@2".to_owned(), 10)));
        assert_eq!(chosen("train@1"), Some(("train@1".to_owned(), 1)));
        assert_eq!(chosen("other"), Some(("other".to_owned(), 1)));
        assert_eq!(chosen("flat"), Some(("flat".to_owned(), 1)));
        assert_eq!(chosen("rain"), None);
        let fault = in_run(&store, "tarin", "r").unwrap_err();
        assert_eq!(fault.diagnostics[0].id, "cli::no-log");
    }
}
