//! A run: how it ended, how long it took.

use serde::Serialize;

use super::metric;
use super::story::{Story, Told};
use crate::exec;
use crate::store::{RunNode, RunRecord, Store, StoreError};

/// The states that a run's nodes end in.
pub const STATES: [&str; 4] = ["ran", "hit", "failed", "skipped"];

/// How a run ended, in a word.
pub fn state(run: &RunRecord) -> &'static str {
    match (run.ok, &run.finished) {
        (Some(true), _) => "ok",
        (Some(false), _) if run.nodes.iter().any(|node| node.state == "failed") => "failed",
        (Some(false), _) | (None, Some(_)) => "interrupted",
        (None, None) => "unfinished",
    }
}

/// As [`state`], but `running` of a run that goes on, as far as that can be seen from here.
pub fn state_now(store: &Store, run: &RunRecord) -> &'static str {
    let goes_on = || Story::of(store, &run.run).is_ok_and(|story| story.goes_on);
    match state(run) {
        "unfinished" if exec::goes_on(store, &run.run).unwrap_or_else(goes_on) => "running",
        state => state,
    }
}

/// Wall seconds of a run that has ended.
pub fn took(run: &RunRecord) -> Option<f64> {
    let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
    Some((time(run.finished.as_deref()?)? - time(&run.started)?).as_secs_f64().max(0.0))
}

/// Nodes by state, in the order of [`STATES`].
pub fn counts(run: &RunRecord) -> [usize; 4] {
    STATES.map(|state| run.nodes.iter().filter(|node| node.state == state).count())
}

/// How its last evaluation came out, as in `73.4% (69.4 to 77.1)`.
pub fn win_rate(run: &RunRecord) -> Option<String> {
    run.nodes.iter().rev().find_map(|node| {
        let rate = metric::listed(&node.metrics).into_iter().find(|metric| metric.stem() == "win_rate")?;
        if rate.number().is_nan() {
            return Some("not a number".to_owned());
        }
        let interval = rate.interval.map(|[low, high]| format!(" ({:.1} to {:.1})", 100.0 * low, 100.0 * high));
        Some(format!("{:.1}%{}", 100.0 * rate.number(), interval.unwrap_or_default()))
    })
}

/// A run and what its events tell, so that one that goes on, or was killed, has nodes, too.
#[derive(Debug, Clone, Serialize)]
pub struct Account {
    /// The record; of a run that has not ended its nodes are those that were told of, in the order of their names.
    pub run: RunRecord,
    /// What was told.
    pub story: Story,
}

impl Account {
    /// Of a run; none if there is no such run, or only a directory without a record.
    ///
    /// Errs if the disk does.
    pub fn of(store: &Store, run: &str) -> Result<Option<Self>, StoreError> {
        store.run(run)?.map(|run| Self::with(store, run)).transpose()
    }

    /// Of a run whose record has been read.
    ///
    /// Errs if the disk does.
    pub fn with(store: &Store, mut run: RunRecord) -> Result<Self, StoreError> {
        let story = Story::of(store, &run.run)?;
        if run.nodes.is_empty() {
            let mut nodes =
                story.told.iter().map(|(name, told)| node(store, name, told)).collect::<Result<Vec<_>, _>>()?;
            nodes.sort_by_key(|node| natural(&node.name));
            run.nodes = nodes;
        }
        Ok(Self { run, story })
    }

    /// How it ended, or that it goes on, in a word.
    pub fn state(&self) -> &'static str {
        match state(&self.run) {
            "unfinished" if self.story.goes_on => "running",
            state => state,
        }
    }
}

/// A name with its numbers as numbers: the tenth iteration comes after the second.
fn natural(name: &str) -> (String, u64, String) {
    let name = super::name::Name::of(name);
    (name.base.to_owned(), name.iteration.unwrap_or_default(), name.cell.to_owned())
}

fn node(store: &Store, name: &str, told: &Told) -> Result<RunNode, StoreError> {
    // What was fresh is told of without its figures.
    let hit = told.key.filter(|_| told.state == "hit").map(|key| store.node(&key)).transpose()?.flatten();
    let (kind, metrics, seconds) = match hit {
        Some(record) => (record.kind, record.metrics, record.seconds),
        None => (told.kind.clone(), told.metrics.clone(), told.seconds),
    };
    let (name, state) = (name.to_owned(), told.state.to_owned());
    Ok(RunNode { name, kind, state, key: told.key, artifact: told.artifact, seconds, metrics })
}

/// The run that an id, or the beginning of one, means; nothing if none or several are meant.
pub fn named(store: &Store, what: &str) -> Result<Option<String>, StoreError> {
    let ids = store.run_ids()?;
    if let Some(exact) = ids.iter().find(|id| *id == what) {
        return Ok(Some(exact.clone()));
    }
    let mut beginning = ids.into_iter().filter(|id| !what.is_empty() && id.starts_with(what));
    Ok(beginning.next().filter(|_| beginning.next().is_none()))
}

/// The run of the same pipeline before this one, if its record is there.
pub fn before(store: &Store, run: &RunRecord) -> Result<Option<RunRecord>, StoreError> {
    /// Runs that are looked through.
    const MOST: usize = 200;
    for id in store.run_ids()?.iter().rev().filter(|id| **id < run.run).take(MOST) {
        if let Some(before) = store.run(id)?.filter(|before| before.pipeline == run.pipeline) {
            return Ok(Some(before));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn how_a_run_ended_shows_in_its_record() {
        let (_folder, store, _) = sample::store();
        let run = store.run("20260102-000000-bbbb").unwrap().unwrap();
        assert_eq!((state(&run), took(&run), counts(&run)), ("ok", Some(125.0), [3, 1, 0, 0]));
        let stopped = RunRecord { ok: Some(false), ..run };
        assert_eq!(state(&stopped), "interrupted");
        let mut failed = stopped.clone();
        failed.nodes[1].state = "failed".to_owned();
        assert_eq!((state(&failed), counts(&failed)), ("failed", [2, 1, 1, 0]));
        let killed = RunRecord { ok: None, finished: None, ..failed };
        assert_eq!((state(&killed), took(&killed)), ("unfinished", None));
        let backwards = RunRecord { finished: Some("2025-01-01T00:00:00Z".to_owned()), ..killed };
        assert_eq!(took(&backwards), Some(0.0));
    }

    #[test]
    fn a_run_that_has_not_ended_has_the_nodes_that_it_told_of() {
        let (_folder, store, _) = sample::store();
        let mut run = store.run("20260102-000000-bbbb").unwrap().unwrap();
        let key = run.nodes[0].key.unwrap();
        (run.finished, run.ok, run.nodes) = (None, None, Vec::new());
        run.run = "20260103-000000-cccc".to_owned();
        crate::fs::create_directory(&store.run_dir(&run.run)).unwrap();
        store.put_run(&run).unwrap();
        let told = [
            r#"{"event":"node-start","node":"train@10","kind":"finetune","attempt":1,"why":"never ran","device":"cpu"}"#.to_owned(),
            format!(r#"{{"event":"node-hit","node":"generate@2","key":"{key}","artifact":"{key}"}}"#),
            r#"{"event":"node-fail","node":"train@2","attempt":1,"error":"no room","help":"make some","tail":["a","b"]}"#.to_owned(),
        ];
        let _held = sample::hold(&store, &run.run, &(told.join("\n") + "\n"));
        let account = Account::of(&store, &run.run).unwrap().unwrap();
        let nodes: Vec<(&str, &str)> =
            account.run.nodes.iter().map(|node| (node.name.as_str(), node.state.as_str())).collect();
        assert_eq!(nodes, [("generate@2", "hit"), ("train@2", "failed"), ("train@10", "running")]);
        assert_eq!((account.run.nodes[0].metrics["rows"].as_u64(), account.state()), (Some(7), "running"));
        assert_eq!(account.story.told["train@2"].tail, ["a", "b"]);
        assert_eq!((state(&run), state_now(&store, &run)), ("unfinished", "running"));
        assert!(Account::of(&store, "none").unwrap().is_none());
        assert_eq!(named(&store, "20260103").unwrap(), Some(run.run.clone()));
        assert_eq!((named(&store, "2026").unwrap(), named(&store, "").unwrap()), (None, None));
        assert_eq!(before(&store, &run).unwrap().unwrap().run, "20260102-000000-bbbb");
    }
}
