//! `sami worker`: one attempt, or light ones one after another.

use std::path::Path;

use super::CommandResult;
use crate::exec;

/// Executes the attempt of a job file, or those that the scheduler on standard input asks for.
pub(crate) fn run(job: Option<&Path>, detached: bool, probe: bool) -> CommandResult {
    Ok(match job {
        Some(job) if probe => exec::work_probe(job)?,
        Some(job) if detached => exec::work_detached(job)?,
        Some(job) => exec::work(job)?,
        None => exec::serve()?,
    })
}
