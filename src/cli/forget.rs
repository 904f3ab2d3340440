//! `sami cache forget`: records go by name, with what nothing else needs.

use clap::Args;
use serde_json::json;

use super::figures::{plural, some};
use super::gc::{confirm, summary, waiting};
use super::page::LISTED;
use super::selection::select;
use super::{CommandResult, Context, DONE, context};
use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::store::{Forgetting, Index, Store};

/// Arguments of `cache forget`.
#[derive(Debug, Clone, Args)]
pub struct ForgetArgs {
    /// Nodes (with all iterations and cells), `PIPELINE/NODE`, pipelines, or the beginnings of ids of runs, artifacts or keys
    #[arg(required = true)]
    pub what: Vec<String>,
    /// Say what would be removed, remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Remove it without asking
    #[arg(short, long)]
    pub yes: bool,
    /// Unpin and forget what is pinned, too
    #[arg(long)]
    pub pinned: bool,
}

/// Shows what would go, asks, and removes it.
pub(super) fn run(context: &Context, store: &Store, args: &ForgetArgs) -> CommandResult {
    let mut index = Index::open(store)?;
    index.catch_up(store)?;
    let selection = select(store, &index, &args.what)?;
    if args.dry_run {
        let forgetting = store.preview_forget(&mut index, &selection)?;
        if context.json() {
            context::print_json(&json!({"dry_run": true, "forgotten": forgetting}))?;
        } else {
            context::print(&told(&forgetting))?;
        }
        return Ok(DONE);
    }
    drop(index);
    let mut refused: Option<Box<Diagnostic>> = None;
    let mut reruns = Vec::new();
    let mut ask = |forgetting: &Forgetting| {
        reruns.clone_from(&forgetting.reruns);
        let is_pinned = !forgetting.pinned.is_empty();
        if is_pinned && !args.pinned {
            refused = Some(Box::new(pinned(&forgetting.pinned)));
            return false;
        }
        if args.yes || forgetting.plan.is_empty() && !is_pinned {
            return true;
        }
        match confirm(&told(forgetting), if is_pinned { "unpin and forget it?" } else { "forget it?" }) {
            Ok(yes) => yes,
            Err(fault) => {
                refused = Some(fault);
                false
            }
        }
    };
    let removed = store.forget(&selection, &mut ask, &mut waiting)?;
    match (removed, refused) {
        (_, Some(refused)) => Err((*refused).into()),
        (None, None) => Ok(DONE),
        (Some(garbage), None) => {
            if context.json() {
                context::print_json(&json!({"dry_run": false, "removed": garbage, "reruns": reruns}))?;
            } else {
                context::print(&summary("freed", &garbage))?;
            }
            Ok(DONE)
        }
    }
}

/// What would go, and what would run again.
fn told(forgetting: &Forgetting) -> String {
    let mut text = summary("would free", &forgetting.plan.garbage);
    if !forgetting.nodes.is_empty() {
        text.push_str(&format!("forgotten: {}\n", some(&forgetting.nodes, ", ", LISTED)));
    }
    if !forgetting.reruns.is_empty() {
        text.push_str(&format!("run again: {}\n", some(&forgetting.reruns, ", ", LISTED)));
    }
    if forgetting.in_use > 0 {
        text.push_str(&format!("{} in use by another `sami`, so not forgotten\n", plural(forgetting.in_use, "record")));
    }
    text
}

fn pinned(ids: &[Digest]) -> Diagnostic {
    let ids: Vec<String> = ids.iter().map(Digest::short).collect();
    Diagnostic::error("cli::pinned", format!("pinned: {}", some(&ids, ", ", LISTED)))
        .help("say `--pinned` to unpin and forget what is pinned, too, or `sami cache unpin` it")
}
