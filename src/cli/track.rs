//! `sami track`: a run that is over is told to trackers as it would have been while it went on.

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::context::project_of;
use super::{CommandResult, Context, DONE, FAILED, context, find, watch};
use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::exec::{Event, Told};
use crate::fs;
use crate::store::Store;
use crate::trackers::{About, Places, Trackers};

/// Arguments of `track`.
#[derive(Debug, Clone, Args)]
pub struct TrackArgs {
    /// Run id, or the beginning of one (default: the latest run)
    pub run: Option<String>,
}

/// Tells all that a run left of how it went. What a tracker has already is not told again.
pub(super) fn run(context: &Context, args: &TrackArgs) -> CommandResult {
    let settings = Context::settings(None)?;
    let store = Store::open_existing(&context.cache_directory(None)?)?;
    let record = find::run_or_latest(&store, args.run.as_deref())?;
    let places = Places::of(settings.tensorboard.as_ref(), settings.mlflow.as_ref(), store.root(), &project_of(None)?);
    if places.is_empty() {
        let fault = Diagnostic::error("cli::no-tracker", "`sami.toml` names no tracker");
        return Err(fault.help("write `tensorboard = true`, or `mlflow = \"URL\"`, into it").into());
    }
    let id = &record.run;
    let mut follower = watch::follow(&store, id)?;
    if record.finished.is_none() && follower.goes_on() == Some(true) {
        let fault = Diagnostic::error("cli::goes-on", format!("run {id} goes on"));
        return Err(fault
            .help("it is told of as it goes, where trackers are named; else track it when it is over")
            .into());
    }
    let about = About {
        cache: store.root().to_owned(),
        file: record.file.clone(),
        params: record.params.clone(),
        identity: Digest::of(id.as_bytes()),
        again: true,
    };
    let mut trackers = Trackers::start(&places, about);
    let began: Timestamp = record.started.parse().unwrap_or_else(|_| fs::now());
    let mut wrong = Vec::new();
    follower.news(&mut |line| {
        let Some(Told { at, mut event }) = Told::parse(line) else { return };
        if let Event::Done { nodes, .. } = &mut event {
            // They are in the record alone.
            nodes.clone_from(&record.nodes);
        }
        let since = at.and_then(|seconds| SignedDuration::try_from_secs_f64(seconds).ok()).unwrap_or_default();
        let at = began.checked_add(since).unwrap_or(began);
        wrong.extend(trackers.tell_at(at, &event));
    })?;
    let (more, places) = trackers.finish();
    wrong.extend(more);
    context::complain(&wrong);
    if context.json() {
        context::print_json(&json!({"run": id, "tracked": places}))?;
    } else {
        let lines: Vec<String> = places.iter().map(|place| format!("tracked: {place}\n")).collect();
        context::print(&lines.concat())?;
    }
    // One that was away for a while has got all.
    Ok(if wrong.iter().all(|fault| fault.id == "trackers::mlflow-away") { DONE } else { FAILED })
}
