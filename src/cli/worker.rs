//! `sami worker`: one attempt, or light ones one after another.

use std::path::Path;

use super::CommandResult;
use crate::exec;

/// Executes the attempt of a job file, or those that the scheduler on standard input asks for.
pub(crate) fn run(job: Option<&Path>, detached: bool, probe: bool, rank: Option<usize>) -> CommandResult {
    Ok(match (job, rank) {
        (Some(job), Some(rank)) => exec::rank(job, rank)?,
        (Some(job), None) if probe => exec::work_probe(job)?,
        (Some(job), None) if detached => exec::work_detached(job)?,
        (Some(job), None) => exec::work(job)?,
        (None, _) => exec::serve()?,
    })
}
