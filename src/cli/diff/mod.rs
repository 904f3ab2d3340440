//! `sami diff`: two runs, or two artifacts of a type, beside each other.

use serde_json::json;

use super::figures::clock;
use super::find::{self, Thing};
use super::screen::Screen;
use super::{CommandResult, Context, DONE, DiffArgs, context};
use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::inspect::diff::{self, recipe};
use crate::shell::quoted;
use crate::store::{NodeRecord, RunRecord, Store};

pub(super) use artifacts::row_lines;

mod artifacts;
mod files;
mod metrics;
mod runs;

/// Compares what two names mean; of a node or a run alone, what it is with what it was before.
pub(super) fn run(context: &Context, args: &DiffArgs) -> CommandResult {
    let (store, index) = context.open_existing()?;
    let after = find::thing(&store, &index, args.after.as_deref().unwrap_or(&args.before))?;
    let before = match &args.after {
        Some(_) => find::thing(&store, &index, &args.before)?,
        None => earlier(&store, &after, &args.before)?,
    };
    let screen = Screen::of_stdout();
    match (before, after) {
        (Thing::Run(before), Thing::Run(after)) => {
            let diff = diff::runs(&store, *before, *after)?;
            if context.json() { context::print_json(&diff)? } else { context::print(&runs::text(&diff, screen))? }
        }
        (Thing::Artifact { id: before, record: old }, Thing::Artifact { id: after, record: new }) => {
            let sides = [Side::new(&store, before, old)?, Side::new(&store, after, new)?];
            let diff = artifacts::diff(&store, sides, args.rows)?;
            if context.json() {
                context::print_json(&diff)?;
            } else {
                context::print(&artifacts::text(&diff, &index, screen))?;
            }
        }
        (Thing::Run(run), Thing::Artifact { .. }) | (Thing::Artifact { .. }, Thing::Run(run)) => {
            let what = format!("run {} and an artifact have nothing to compare", run.run);
            let help = "give two runs, or two artifacts; `NODE@RUN` is what a node made or took in a run";
            return Err(Diagnostic::error("cli::diff-types", what).help(help).into());
        }
    }
    Ok(DONE)
}

/// What there was before it: the run of the pipeline before, or the node's result before.
fn earlier(store: &Store, after: &Thing, what: &str) -> Result<Thing, context::Failure> {
    let none = |of: &str| {
        let fault = Diagnostic::error("cli::diff-alone", format!("{of} has nothing before it to be compared with"));
        context::Failure::from(fault.help(format!("name both: `sami diff BEFORE {}`", quoted(what))))
    };
    let before = |run: &RunRecord, pipeline: &str, id: &str| run.pipeline == pipeline && run.run.as_str() < id;
    match after {
        Thing::Run(after) => {
            for id in store.run_ids()?.iter().rev().filter(|id| **id < after.run) {
                if let Some(run) = store.run(id)?.filter(|run| before(run, &after.pipeline, &after.run)) {
                    return Ok(Thing::Run(Box::new(run)));
                }
            }
            Err(none(&format!("run {}", after.run)))
        }
        Thing::Artifact { record: Some(record), .. } => {
            for id in store.run_ids()?.iter().rev() {
                let Some(run) = store.run(id)?.filter(|run| run.pipeline == record.pipeline) else { continue };
                let key = run.nodes.iter().find(|node| node.name == record.node).and_then(|node| node.key);
                if let Some(old) =
                    key.filter(|key| *key != record.key).map(|key| store.node(&key)).transpose()?.flatten()
                    && old.started < record.started
                {
                    return Ok(Thing::Artifact { id: old.artifact, record: Some(Box::new(old)) });
                }
            }
            Err(none(&format!("node `{}`", record.node)))
        }
        Thing::Artifact { id, record: None } => Err(none(&format!("artifact {}", id.short()))),
    }
}

/// An artifact, and the work that made it.
#[derive(Debug)]
struct Side {
    id: Digest,
    manifest: crate::store::Manifest,
    record: Option<NodeRecord>,
}

impl Side {
    fn new(store: &Store, id: Digest, record: Option<Box<NodeRecord>>) -> Result<Self, context::Failure> {
        Ok(Self { id, manifest: store.manifest(&id)?, record: record.map(|record| *record) })
    }

    /// What it is, on a line.
    fn line(&self) -> String {
        let made = match &self.record {
            Some(record) => format!("of {}, run {} ({})", record.node, record.run, clock(&record.started)),
            None => "from outside the pipeline".to_owned(),
        };
        format!("{}  {} {made}", self.id.short(), self.manifest.kind)
    }

    fn json(&self) -> serde_json::Value {
        let record = self.record.as_ref();
        json!({"artifact": self.id, "type": self.manifest.kind, "key": record.map(|record| record.key),
            "node": record.map(|record| &record.node), "pipeline": record.map(|record| &record.pipeline),
            "run": record.map(|record| &record.run)})
    }
}
