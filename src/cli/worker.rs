//! `sami worker`: one attempt.

use std::path::Path;

use super::CommandResult;
use crate::exec;

/// Executes the attempt of a job file.
pub(crate) fn run(job: &Path) -> CommandResult {
    Ok(exec::work(job)?)
}
