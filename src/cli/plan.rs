//! `sami plan`, `status` and `why`.

use super::{CommandResult, Context, PipelineArgs, PlanArgs};
use crate::diag::Diagnostic;

fn not_built() -> CommandResult {
    Err(Diagnostic::error("cli::not-built", "this build cannot plan").into())
}

/// Shows what would run and why.
pub(crate) fn plan(context: &Context, args: &PlanArgs) -> CommandResult {
    context.load(&args.pipeline)?;
    not_built()
}

/// Shows the state of each node.
pub(crate) fn status(context: &Context, args: &PlanArgs) -> CommandResult {
    plan(context, args)
}

/// Explains why a node is stale.
pub(crate) fn why(context: &Context, args: &PipelineArgs, _node: &str) -> CommandResult {
    context.load(args)?;
    not_built()
}
