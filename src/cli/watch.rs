//! `sami watch`: a run that another process is at, told as that one tells it.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;

use super::context::Failure;
use super::figures::{clock, seconds};
use super::progress::Report;
use super::{BUDGET, CommandResult, Context, DONE, FAILED, INTERRUPTED, find};
use crate::diag::Diagnostic;
use crate::exec::{self, Event, Follower, Summary, Told};
use crate::fs;
use crate::inspect::run;
use crate::shell::quoted;
use crate::store::{RunRecord, Store, StoreError};

/// Between two looks at what was written.
const LOOK: Duration = Duration::from_millis(200);
/// Between two looks at the run's record, where there are no locks to tell whether it goes on.
const LOOK_AT_RECORD: Duration = Duration::from_secs(2);
/// Latest runs among which one that goes on is looked for.
const LATEST: usize = 200;
/// Failures from before it was watched that are told.
const FAILURES: usize = 3;

/// Arguments of `watch`.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// Run id, or the beginning of one (default: the latest run that goes on)
    pub run: Option<String>,
}

/// What has been seen of a run.
#[derive(Debug, Default)]
struct Seen {
    done: Option<bool>,
    interrupted: bool,
    /// Bounds of the budget that were reached.
    budget: Vec<String>,
    nodes: usize,
    ended: usize,
    failures: Vec<Event>,
}

impl Seen {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Start { nodes, hits, .. } => (self.nodes, self.ended) = (*nodes, *hits),
            Event::NodeFinish { .. } | Event::NodeHit { .. } => self.ended += 1,
            Event::NodeFail { retry: false, .. } => self.failures.push(event.clone()),
            Event::Interrupt { .. } => self.interrupted = true,
            Event::Budget { what: told } | Event::NodeRefuse { why: told, .. } => self.budget.push(told.clone()),
            Event::Done { ok, .. } => self.done = Some(*ok),
            _ => {}
        }
    }
}

/// Watches a run until it ends.
pub(super) fn run(context: &Context, args: &WatchArgs) -> CommandResult {
    let store = Store::open_existing(&context.cache_directory(None)?)?;
    let record = match &args.run {
        Some(run) => find::run(&store, run)?,
        None => latest(&store)?,
    };
    let mut follower = follow(&store, &record.run)?;
    if context.json() {
        return pass_on(&store, record, &mut follower);
    }
    let goes_on = record.finished.is_none() && follower.goes_on() != Some(false);
    let zero = Instant::now().checked_sub(Duration::from_secs_f64(age(&record))).unwrap_or_else(Instant::now);
    let mut seen = Seen::default();
    if !goes_on {
        follower.news(&mut |line| {
            if let Some(told) = Told::parse(line) {
                seen.take(&told.event);
            }
        })?;
        return Ok(tell_of_ended(&record, &seen));
    }
    let mut report = Report::since(zero, false);
    // What was there before it was watched is not told again, but for what failed.
    follower.news(&mut |line| {
        if let Some(Told { at, event }) = Told::parse(line) {
            seen.take(&event);
            report.recall(&event, at.unwrap_or_else(|| age(&record)));
        }
    })?;
    report.line(&format!(
        "watching run {} of pipeline {}, which began {} ago: {} of {} nodes done",
        record.run,
        record.pipeline,
        seconds(age(&record).floor()),
        seen.ended,
        seen.nodes
    ));
    for failure in seen.failures.iter().rev().take(FAILURES).rev() {
        report.tell_failure(failure);
    }
    until_over(&store, &record, &mut follower, &mut |follower| {
        follower.news(&mut |line| {
            if let Some(Told { event, .. }) = Told::parse(line) {
                seen.take(&event);
                report.tell(&event);
            }
        })?;
        Ok(seen.done.is_some())
    })?;
    let record = store.run(&record.run)?.unwrap_or(record);
    if seen.done.is_none() && record.finished.is_none() {
        drop(report);
        return Ok(tell_of_ended(&record, &seen));
    }
    let took = run::took(&record).unwrap_or_else(|| age(&record));
    let interrupted = seen.interrupted && seen.done != Some(true);
    let (id, nodes, budget) = (record.run.clone(), record.nodes.clone(), seen.budget.clone());
    report.end(&Summary { run: id, interrupted, seconds: took, budget, left: Vec::new(), nodes });
    Ok(code(&record, &seen))
}

/// The events of a run. Errs if it left none.
pub(super) fn follow(store: &Store, run: &str) -> Result<Follower, Failure> {
    fs::absent_is_none(Follower::of(store, run))?.ok_or_else(|| {
        let fault = Diagnostic::error("cli::no-events", format!("run {run} left no events"));
        fault.help(format!("what is known of it: `sami show {run}`")).into()
    })
}

/// The latest run that goes on or, for want of one, the latest.
fn latest(store: &Store) -> Result<RunRecord, Failure> {
    let ids = store.run_ids()?;
    for id in ids.iter().rev().take(LATEST) {
        if exec::goes_on(store, id) == Some(true)
            && let Some(record) = store.run(id)?
            && record.finished.is_none()
        {
            return Ok(record);
        }
    }
    find::run_or_latest(store, None)
}

/// Seconds since a run began.
fn age(record: &RunRecord) -> f64 {
    let began = record.started.parse::<jiff::Timestamp>();
    began.map_or(0.0, |began| (fs::now() - began).as_secs_f64().max(0.0))
}

/// Says of a run that it goes on no more, and how it ended.
fn tell_of_ended(record: &RunRecord, seen: &Seen) -> u8 {
    let report = Report::since(Instant::now(), false);
    let (id, pipeline) = (&record.run, &record.pipeline);
    if record.finished.is_none() && seen.done.is_none() {
        let (ended, nodes) = (seen.ended, seen.nodes);
        report.line(&format!(
            "run {id} of pipeline {pipeline} was killed: {ended} of {nodes} nodes were done, and are kept"
        ));
        report.line(&format!("`sami run {}` goes on from there", quoted(&record.file)));
        return FAILED;
    }
    let took = run::took(record).map_or_else(String::new, |took| format!(", took {}", seconds(took)));
    report.line(&format!(
        "run {id} of pipeline {pipeline} is over: {}, ended {}{took}",
        run::state(record),
        clock(record.finished.as_deref().unwrap_or(&record.started)),
    ));
    report.line(&format!("look further: sami show {id}"));
    code(record, seen)
}

/// The exit code of the run.
fn code(record: &RunRecord, seen: &Seen) -> u8 {
    let failed = record.nodes.iter().any(|node| node.state == "failed");
    match record.ok.or(seen.done) {
        Some(true) => DONE,
        _ if seen.interrupted => INTERRUPTED,
        _ if !failed && !seen.budget.is_empty() => BUDGET,
        _ => FAILED,
    }
}

/// Passes the run's events on to standard output as they stand there, until it ends or no one reads.
fn pass_on(store: &Store, record: RunRecord, follower: &mut Follower) -> CommandResult {
    let mut seen = Seen::default();
    let mut is_read = true;
    until_over(store, &record, follower, &mut |follower| {
        let mut text = Vec::new();
        follower.news(&mut |line| {
            if let Some(told) = Told::parse(line) {
                seen.take(&told.event);
            }
            text.extend(line);
            text.push(b'\n');
        })?;
        let mut stdout = io::stdout().lock();
        match stdout.write_all(&text).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => is_read = false,
            written => written?,
        }
        Ok(seen.done.is_some() || !is_read)
    })?;
    if !is_read {
        return Ok(DONE);
    }
    let record = store.run(&record.run)?.unwrap_or(record);
    Ok(code(&record, &seen))
}

/// Has `read` take the news of a run again and again, until that has seen the end or the run is over.
fn until_over(
    store: &Store,
    record: &RunRecord,
    follower: &mut Follower,
    read: &mut dyn FnMut(&mut Follower) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut looked = Instant::now();
    loop {
        // Asked first: what was written before it ended is then read.
        let over = record.finished.is_some() || is_over(store, &record.run, follower.goes_on(), &mut looked)?;
        if read(follower)? || over {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether a run is over, by whether it goes on; where there are no locks to tell, by its record, which is looked at now and then.
fn is_over(store: &Store, run: &str, goes_on: Option<bool>, looked: &mut Instant) -> Result<bool, StoreError> {
    if goes_on.is_some() || looked.elapsed() < LOOK_AT_RECORD {
        return Ok(goes_on == Some(false));
    }
    *looked = Instant::now();
    Ok(store.run(run)?.is_none_or(|record| record.finished.is_some()))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_record_tells_the_end_where_there_are_no_locks() {
        let (_folder, store, _) = sample::store();
        let mut run = store.run("20260102-000000-bbbb").unwrap().unwrap();
        run.finished = None;
        store.put_run(&run).unwrap();
        let long_ago = Instant::now().checked_sub(2 * LOOK_AT_RECORD).unwrap();
        let mut looked = long_ago;
        assert!(!is_over(&store, &run.run, None, &mut looked).unwrap(), "it has not ended");
        run.finished = Some("2026-01-02T00:02:05Z".to_owned());
        store.put_run(&run).unwrap();
        assert!(!is_over(&store, &run.run, None, &mut looked).unwrap(), "its record was read just now");
        looked = long_ago;
        assert!(!is_over(&store, &run.run, Some(true), &mut looked).unwrap());
        assert!(is_over(&store, &run.run, Some(false), &mut looked).unwrap());
        assert!(is_over(&store, &run.run, None, &mut looked).unwrap());
    }
}
