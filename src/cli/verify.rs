//! `sami cache verify`: whether the store is whole, and what will run again if it is not.

use std::fmt::Write as _;

use serde_json::json;

use super::figures::{bytes, count, some};
use super::page::LISTED;
use super::{CommandResult, Context, DAMAGED, DONE, archive, context};
use crate::store::{State, Store};

/// Arguments of `cache verify`.
#[derive(Debug, Clone, clap::Args)]
pub struct VerifyArgs {
    /// Move what is damaged or does not belong there to `quarantine/`
    #[arg(long)]
    pub repair: bool,
}

pub(super) fn run(context: &Context, store: &Store, args: &VerifyArgs) -> CommandResult {
    let seen = store.verify(&mut archive::progress("verifying"));
    archive::clear();
    let seen = seen?;
    let moved = if args.repair && !seen.is_whole() {
        store.repair(&seen, &mut || tracing::warn!("waiting for another `sami` that is putting something"))?
    } else {
        Vec::new()
    };
    let code = if seen.is_whole() { DONE } else { DAMAGED };
    if context.json() {
        context::print_json(&json!({"ok": seen.is_whole(), "verification": seen, "moved": moved}))?;
        return Ok(code);
    }
    let mut text = String::new();
    for finding in &seen.findings {
        let _ =
            write!(text, "{} {}: {}\n  {}", finding.state.name(), finding.what, finding.path.display(), finding.how);
        if !finding.nodes.is_empty() {
            let _ = write!(text, "; will run again: {}", some(&finding.nodes, ", ", LISTED));
        }
        if !finding.takers.is_empty() {
            let _ = write!(text, "; was taken by {}", some(&finding.takers, ", ", LISTED));
        }
        text.push('\n');
    }
    let _ = write!(
        text,
        "{} objects ({}), {} artifacts, {} node records: ",
        count(seen.objects),
        bytes(seen.bytes),
        count(seen.artifacts),
        count(seen.nodes)
    );
    let foreign = seen.findings.iter().filter(|finding| finding.state == State::Foreign).count();
    text.push_str(&match (seen.findings.len(), moved.len()) {
        (0, _) => "all whole\n".to_owned(),
        (found, 0) if found == foreign => {
            format!("{found} files do not belong here and are not used; `sami cache verify --repair` moves them to `quarantine/`\n")
        }
        (found, 0) => format!(
            "{found} not as they should be; none of it is used, `sami run` makes it again; \
             `--repair` moves it to `quarantine/` now\n"
        ),
        (found, moved) => format!("{found} not as they should be; {moved} moved to `quarantine/`\n"),
    });
    context::print(&text)?;
    Ok(code)
}
