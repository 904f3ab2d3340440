//! `sami worker`: one attempt, or light ones one after another.

use std::path::Path;

use super::CommandResult;
use crate::exec;

/// Executes the attempt of a job file, or those that the scheduler on standard input asks for.
pub(crate) fn run(job: Option<&Path>, rank: Option<usize>) -> CommandResult {
    Ok(match (job, rank) {
        (Some(job), Some(rank)) => exec::rank(job, rank)?,
        (Some(job), None) => exec::work(job)?,
        (None, _) => exec::serve()?,
    })
}
