//! `sami plan`, `status` and `why`.

use super::{CommandResult, Context, PipelineArgs, PlanArgs};
use crate::diag::Diagnostic;
use crate::exec::State;
use crate::pipeline::Pipeline;

/// A state in a word (`hit`, `run`, `unknown`; empty for a node that was not asked for), and why.
pub(crate) fn describe(_pipeline: &Pipeline, state: &State) -> (&'static str, String) {
    match state {
        State::Outside => ("", String::new()),
        State::Hit { .. } => ("hit", String::new()),
        State::Run { .. } => ("run", String::new()),
        State::Unknown { .. } => ("unknown", String::new()),
    }
}

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
