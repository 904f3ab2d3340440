//! `sami run`.

use super::{CommandResult, Context, RunArgs};
use crate::diag::Diagnostic;

/// Brings nodes up to date.
pub(crate) fn run(context: &Context, args: &RunArgs) -> CommandResult {
    context.load(&args.pipeline)?;
    Err(Diagnostic::error("cli::not-built", "this build cannot run nodes").into())
}
