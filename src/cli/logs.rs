//! `sami logs`: what an attempt at a node said.

use std::io;
use std::path::PathBuf;

use serde_json::json;

use super::context::Failure;
use super::{CommandResult, Context, DONE, context, find};
use crate::diag::Diagnostic;
use crate::fs;
use crate::store::Store;

/// An attempt that left a log.
#[derive(Debug, PartialEq, Eq)]
struct Attempt {
    run: String,
    node: String,
    number: u32,
    log: PathBuf,
}

/// Prints the log of a node's latest attempt, in a run or at all.
pub(super) fn run(context: &Context, node: &str, run: Option<&str>) -> CommandResult {
    let store = Store::open_existing(&context.cache_directory(None)?)?;
    let attempt = match run {
        Some(run) => in_run(&store, node, &find::run(&store, run)?.run)?,
        None => latest(&store, node)?,
    };
    if context.json() {
        let log = fs_err::read(&attempt.log)?;
        context::print_json(&json!({
            "node": attempt.node, "run": attempt.run, "attempt": attempt.number, "path": attempt.log,
            "log": String::from_utf8_lossy(&log),
        }))?;
        return Ok(DONE);
    }
    let mut log = fs_err::File::open(&attempt.log)?;
    context::write_out(|stdout| io::copy(&mut log, stdout).map(drop))?;
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

/// The last attempt at the node called `node`, or at the last iteration of it.
fn choose(attempts: Vec<Attempt>, node: &str) -> Result<Option<Attempt>, Failure> {
    let names: Vec<&str> = attempts.iter().map(|attempt| attempt.node.as_str()).collect();
    let Some(chosen) = find::member(&names, node)?.map(str::to_owned) else { return Ok(None) };
    Ok(attempts.into_iter().filter(|attempt| attempt.node == chosen).max_by_key(|attempt| attempt.number))
}

/// The attempts of a run that left a log: `runs/RUN/NODE.ATTEMPT/log.txt`, or `NODE.ATTEMPT.log`.
fn attempts(store: &Store, run: &str) -> Result<Vec<Attempt>, Failure> {
    let mut attempts = Vec::new();
    for directory in fs::list(&store.run_dir(run))? {
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (name, log) = match name.strip_suffix(".log") {
            Some(name) => (name, directory),
            None => (name.as_str(), directory.join("log.txt")),
        };
        let Some((node, number)) = name.rsplit_once('.').and_then(|(node, number)| Some((node, number.parse().ok()?)))
        else {
            continue;
        };
        if log.is_file() {
            attempts.push(Attempt { run: run.to_owned(), node: node.to_owned(), number, log });
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
