//! `sami attach`: goes on with a run whose jobs went on without it.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::context::Failure;
use super::run::{self, RunArgs};
use super::{CommandResult, Context, find, watch};
use crate::diag::Diagnostic;
use crate::exec;
use crate::store::{RunRecord, Store};

/// Latest runs among which one is looked for.
const LATEST: usize = 200;

/// Arguments of `attach`.
#[derive(Debug, Clone, Args)]
pub struct AttachArgs {
    /// Run id, or the beginning of one (default: the latest run with jobs that no one listens to)
    pub run: Option<String>,
}

/// How a run was asked for.
#[derive(Debug, Serialize, Deserialize)]
struct Invocation {
    directory: PathBuf,
    args: RunArgs,
}

/// What is kept of how a run was asked for.
pub(super) fn invocation(args: &RunArgs) -> Result<serde_json::Value, Failure> {
    let mut args = args.clone();
    // What was forced has run, or runs.
    args.force.clear();
    let invocation = Invocation { directory: std::env::current_dir()?, args };
    Ok(serde_json::to_value(invocation).map_err(std::io::Error::from)?)
}

/// Goes on with a run; where its own process is there, watches it.
pub(super) fn run(context: &Context, args: &AttachArgs) -> CommandResult {
    let store = Store::open_existing(&context.cache_directory(None)?)?;
    let record = match &args.run {
        Some(run) => find::run(&store, run)?,
        None => latest(&store)?,
    };
    if exec::goes_on(&store, &record.run) == Some(true) {
        return watch::run(context, &watch::WatchArgs { run: Some(record.run) });
    }
    let Some(Invocation { directory, args }) = kept(&store, &record) else {
        let fault = Diagnostic::error(
            "cli::not-attachable",
            format!("run {} had no jobs that go on by themselves", record.run),
        );
        return Err(fault.help(format!("run its pipeline again: `sami run {}`", record.file)).into());
    };
    // Paths in it are from there.
    std::env::set_current_dir(&directory)?;
    run::run(&context.at(store.root()), &args)
}

fn kept(store: &Store, record: &RunRecord) -> Option<Invocation> {
    let bytes = fs_err::read(store.run_dir(&record.run).join(exec::INVOCATION)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn latest(store: &Store) -> Result<RunRecord, Failure> {
    for id in store.run_ids()?.iter().rev().take(LATEST) {
        if let Some(record) = store.run(id)?
            && record.ok != Some(true)
            && kept(store, &record).is_some()
        {
            return Ok(record);
        }
    }
    let fault = Diagnostic::error("cli::not-attachable", "no run in this cache has jobs that no one listens to");
    Err(fault.help("`sami runs` lists runs; `sami run PIPELINE --profile NAME` makes one with jobs").into())
}
