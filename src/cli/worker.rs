//! `sami worker`: one attempt.

use std::path::Path;

use super::CommandResult;
use crate::diag::Diagnostic;

/// Executes the attempt of a job file.
pub(crate) fn run(_job: &Path) -> CommandResult {
    Err(Diagnostic::error("cli::not-built", "this build cannot run nodes").into())
}
