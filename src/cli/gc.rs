//! `sami cache gc`: what would go, a question, and gone.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use serde_json::json;

use super::figures::{bytes, clock, count, plural, seconds};
use super::table::Table;
use super::{CommandResult, Context, DONE, amount, context};
use crate::diag::Diagnostic;
use crate::fs;
use crate::store::{Budget, By, Garbage, GcPlan, Index, Roots, Store};

/// Arguments of `cache gc`.
#[derive(Debug, Clone, Args)]
pub struct GcArgs {
    /// Say what would be removed, remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Remove it without asking
    #[arg(short, long)]
    pub yes: bool,
    /// Keep what the last N runs of each pipeline used
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub keep_runs: usize,
    /// Keep what was made within this time, such as 12h, 30d or 8w
    #[arg(long, value_name = "TIME", value_parser = amount::time)]
    pub younger: Option<jiff::SignedDuration>,
    /// Remove what a node had latest, too, if none of those runs had the node
    #[arg(long)]
    pub drop_latest: bool,
    /// Remove more, until the cache is no larger than this, such as 200GB; pins and what runs are using stay
    #[arg(long, value_name = "SIZE", value_parser = amount::size)]
    pub keep: Option<u64>,
    /// What goes first for --keep: price (what costs least to make again, for its size) or age (what was used longest ago)
    #[arg(long, value_name = "ORDER", value_parser = by, default_value = "price", requires = "keep")]
    pub by: crate::store::By,
}

/// Shows what nothing that is wanted needs, asks, and removes it.
pub(super) fn run(context: &Context, store: &Store, args: &GcArgs) -> CommandResult {
    let since = args.younger.map(|time| fs::now().checked_sub(time).unwrap_or(jiff::Timestamp::MIN));
    let budget = args.keep.map(|keep| Budget { keep, by: args.by });
    let roots = Roots { keep_runs: args.keep_runs, since, latest: !args.drop_latest, budget };
    if args.dry_run {
        return tell(context, &store.preview_gc(&mut Index::open(store)?, &roots)?);
    }
    let (mut refused, mut room) = (None, None);
    let mut ask = |plan: &GcPlan| {
        room.clone_from(&plan.room);
        if args.yes || plan.is_empty() {
            return true;
        }
        match confirm(&list(plan), "remove it?") {
            Ok(yes) => yes,
            Err(failure) => {
                refused = Some(failure);
                false
            }
        }
    };
    let removed = store.collect(&roots, &mut ask, &mut waiting)?;
    match (removed, refused) {
        (_, Some(refused)) => Err((*refused).into()),
        (None, None) => Ok(DONE),
        (Some(garbage), None) => {
            if context.json() {
                context::print_json(&json!({"dry_run": false, "removed": garbage, "room": room}))?;
            } else {
                context::print(&summary("freed", &garbage))?;
            }
            Ok(DONE)
        }
    }
}

fn tell(context: &Context, plan: &GcPlan) -> CommandResult {
    if context.json() {
        context::print_json(&json!({
            "dry_run": true, "removed": plan.garbage, "types": plan.types, "largest": plan.largest,
            "room": plan.room,
        }))?;
    } else {
        context::print(&list(plan))?;
    }
    Ok(DONE)
}

/// What would go, by type, with the largest of it.
fn list(plan: &GcPlan) -> String {
    let mut text = summary("would free", &plan.garbage);
    if let Some(room) = &plan.room {
        let (left, keep) = (bytes(room.left), bytes(room.keep));
        let (wanted, rows) = (plural(room.evicted, "wanted artifact"), bytes(room.rows));
        text.push_str(&if room.left > room.keep {
            let rest = format!("the rest is pinned, in use, or rows ({rows})");
            format!("{left} would stay, more than {keep}, though {wanted} would go: {rest}\n")
        } else {
            format!("{left} would stay of {keep}, without {wanted}\n")
        });
    }
    let mut table = Table::new(["type", "artifacts", "frees"], &[1, 2]);
    for class in &plan.types {
        table.row([class.kind.clone(), count(class.artifacts), bytes(class.bytes)]);
    }
    if !table.is_empty() {
        text.push_str(&table.text());
    }
    let mut table = Table::new(["largest", "type", "frees", "made by", "when", "took"], &[2]);
    for one in &plan.largest {
        let when = one.made.as_deref().map(clock).unwrap_or_default();
        let took = one.seconds.map_or_else(String::new, |took| seconds(f64::from(took)));
        let took = if one.gpu { took + " of GPU" } else { took };
        let node = one.node.clone().unwrap_or_default();
        table.row([one.artifact.short(), one.kind.clone(), bytes(one.bytes), node, when, took]);
    }
    if !table.is_empty() {
        text.push_str(&table.text());
    }
    text
}

pub(super) fn summary(done: &str, garbage: &Garbage) -> String {
    format!(
        "{done} {}: {} artifacts, {} objects, {} node records, {} runs, {} other files\n",
        bytes(garbage.bytes),
        garbage.artifacts,
        garbage.objects,
        garbage.nodes,
        garbage.runs,
        garbage.files
    )
}

/// An order in which artifacts go, as typed.
pub(super) fn by(text: &str) -> Result<By, String> {
    match text {
        "price" => Ok(By::Price),
        "age" => Ok(By::Age),
        _ => Err("it is `price` (cheapest first) or `age` (oldest first)".to_owned()),
    }
}

/// Tells people who wait why.
pub(super) fn waiting() {
    // That it cannot be told is no failure.
    let _ = writeln!(io::stderr(), "waiting for another `sami` that writes to the cache");
}

/// Shows what a command is about to do and asks for a yes. Errs where there is no one to ask.
pub(super) fn confirm(what: &str, question: &str) -> Result<bool, Box<Diagnostic>> {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(what.as_bytes());
    if !io::stdin().is_terminal() || !stderr.is_terminal() {
        let fault = Diagnostic::error("cli::not-confirmed", "there is no terminal to ask at, so nothing was done");
        return Err(Box::new(fault.help("say `--yes` to do it, or `--dry-run` to see what it would do")));
    }
    let _ = write!(stderr, "{question} [y/N] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
