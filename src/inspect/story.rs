//! What the events of a run tell of it so far: `events.jsonl`, which a run that goes on is still writing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::exec::Follower;
use crate::fs;
use crate::store::{Store, StoreError};

/// Where there are no locks, a run that said nothing for so many seconds, and none of whose nodes is worked at, is taken for
/// dead.
const SILENT: i64 = 20;
/// After so many it is taken for dead whatever a machine that cannot be seen from here claims.
const DAY: i64 = 24 * 3600;

/// A run so far.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Story {
    /// Nodes asked for.
    pub nodes: u64,
    /// Of these, fresh from the start.
    pub hits: u64,
    /// What was told of single nodes, by name.
    pub told: BTreeMap<String, Told>,
    /// Whether all went well, once it is over.
    pub ok: Option<bool>,
    /// Whether it goes on, as far as that can be seen from here.
    pub goes_on: bool,
}

/// A node in a run so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Told {
    /// `running`, `waiting`, `ran`, `hit`, `failed`, `skipped`, `stopped` or `refused`.
    pub state: &'static str,
    /// Number of the latest attempt.
    pub attempt: u32,
    /// Its kind.
    pub kind: String,
    /// Its key.
    pub key: Option<Digest>,
    /// Its artifact, once it is known.
    pub artifact: Option<Digest>,
    /// Why it runs, or why not.
    pub why: String,
    /// Where it runs.
    pub device: String,
    /// Units done, and in all; 0 until that is known.
    pub done: u64,
    /// See `done`.
    pub total: u64,
    /// `rows`, `steps`.
    pub unit: String,
    /// Wall seconds of the attempt.
    pub seconds: f64,
    /// What is wrong, of one that failed.
    pub error: String,
    /// What to do about it, if that is known.
    pub help: Option<String>,
    /// The last lines of its log.
    pub tail: Vec<String>,
    /// Its latest figures.
    pub metrics: Map<String, Value>,
}

impl Told {
    /// How much of it is done, from 0 to 1, of one that runs.
    pub fn share(&self) -> Option<f64> {
        (self.state == "running" && self.total > 0).then(|| (self.done as f64 / self.total as f64).min(1.0))
    }

    /// Seconds that are left at the rate so far.
    pub fn left(&self) -> Option<f64> {
        let share = self.share().filter(|share| *share > 0.0)?;
        Some(self.seconds * (1.0 - share) / share)
    }
}

/// What is read of an event. Fields that are not there are empty: events of other versions are read as far as they go.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    event: String,
    node: String,
    kind: String,
    key: Option<Digest>,
    artifact: Option<Digest>,
    attempt: u32,
    why: Option<String>,
    because: Option<String>,
    by: Option<String>,
    device: String,
    done: u64,
    total: u64,
    unit: String,
    seconds: f64,
    error: Option<String>,
    help: Option<String>,
    tail: Vec<String>,
    retry: bool,
    metrics: Map<String, Value>,
    nodes: Value,
    hits: u64,
    ok: Option<bool>,
}

impl Story {
    /// Reads what a run has told. A run without events has told nothing; a line that is being written, or is damaged, is
    /// passed over.
    ///
    /// Errs if the disk does.
    pub fn of(store: &Store, run: &str) -> Result<Self, StoreError> {
        let Some(mut follower) = fs::absent_is_none(Follower::of(store, run))? else { return Ok(Self::default()) };
        // Asked first: what was written before it ended is then read.
        let goes_on = follower.goes_on();
        let mut story = Self::default();
        follower.news(&mut |line| {
            if let Ok(event) = serde_json::from_slice::<Line>(line) {
                story.hear(event);
            }
        })?;
        let silent = follower.silent()?;
        let is_held =
            |told: &Told| told.key.and_then(|key| store.key_holder(&key)).is_some_and(|holder| holder.may_live());
        let seems = || silent < SILENT || (silent < DAY && story.running().any(|(_, told)| is_held(told)));
        story.goes_on = story.ok.is_none() && goes_on.unwrap_or_else(seems);
        Ok(story)
    }

    /// The nodes that run.
    pub fn running(&self) -> impl Iterator<Item = (&String, &Told)> {
        self.told.iter().filter(|(_, told)| told.state == "running")
    }

    /// Nodes that are done: fresh from the start, or told to be fresh or to have run.
    pub fn finished(&self) -> u64 {
        self.hits + self.told.values().filter(|told| matches!(told.state, "ran" | "hit")).count() as u64
    }

    fn hear(&mut self, line: Line) {
        match line.event.as_str() {
            "start" => {
                self.nodes = line.nodes.as_u64().unwrap_or_default();
                self.hits = line.hits;
            }
            "done" => self.ok = line.ok,
            _ if line.node.is_empty() => {}
            event => {
                let told = self.told.entry(line.node).or_default();
                told.key = line.key.or(told.key);
                told.artifact = line.artifact.or(told.artifact);
                match event {
                    "node-start" => {
                        let why = line.why.unwrap_or_default();
                        let (attempt, device, key) = (line.attempt, line.device, told.key);
                        *told =
                            Told { state: "running", kind: line.kind, attempt, key, why, device, ..Told::default() };
                    }
                    "node-progress" => {
                        (told.done, told.total, told.unit) = (line.done, line.total, line.unit);
                        (told.seconds, told.metrics) = (line.seconds, line.metrics);
                    }
                    "node-finish" => {
                        (told.state, told.seconds, told.metrics) = ("ran", line.seconds, line.metrics);
                    }
                    "node-hit" => told.state = "hit",
                    "node-wait" => {
                        told.state = "waiting";
                        told.why = line.by.map_or_else(String::new, |by| format!("{by} works at it"));
                    }
                    "node-fail" => {
                        told.state = if line.retry { "waiting" } else { "failed" };
                        told.error = line.error.unwrap_or_default();
                        (told.help, told.tail) = (line.help, line.tail);
                        told.attempt = told.attempt.max(line.attempt);
                    }
                    "node-stop" => (told.state, told.seconds) = ("stopped", line.seconds),
                    "node-skip" => {
                        told.state = "skipped";
                        told.why = line.because.map_or_else(String::new, |because| format!("{because} failed"));
                    }
                    "node-refuse" => (told.state, told.why) = ("refused", line.why.unwrap_or_default()),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_story_is_told_as_far_as_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(!Story::of(&store, "r").unwrap().goes_on);
        fs::create_directory(&store.run_dir("r")).unwrap();
        let path = store.run_dir("r").join("events.jsonl");
        let lines = r#"{"event":"start","run":"r","pipeline":"p","nodes":9,"hits":2,"threads":2}
{"event":"node-start","node":"a","kind":"score","attempt":1,"why":"never ran","device":"cpu"}
{"event":"node-start","node":"b","kind":"score","attempt":1,"why":"never ran","device":"cpu"}
{"event":"node-progress","node":"a","done":30,"total":120,"unit":"rows","metrics":{"loss":0.5},"seconds":2.0}
{"event":"node-fail","node":"b","attempt":1,"retry":false,"error":"<b>"}
{"event":"node-skip","node":"c","because":"b"}
{"event":"something-new","node":"d","nodes":[1]}
no event
{"event":"node-finish","node":"e","seconds":1.5,"metrics":{"rows":3}}
{"event":"node-prog"#;
        fs::write(&path, lines).unwrap();
        assert!(!Story::of(&store, "r").unwrap().goes_on, "its process is gone");
        let _held = sample::hold(&store, "r", lines);
        let story = Story::of(&store, "r").unwrap();
        assert_eq!((story.nodes, story.hits, story.finished(), story.ok, story.goes_on), (9, 2, 3, None, true));
        let state = |node: &str| story.told.get(node).map_or("", |told| told.state);
        assert_eq!(["a", "b", "c", "d", "e"].map(state), ["running", "failed", "skipped", "", "ran"]);
        let a = &story.told["a"];
        assert_eq!((a.share(), a.left(), a.unit.as_str()), (Some(0.25), Some(6.0), "rows"));
        assert_eq!((story.told["b"].error.as_str(), story.told["c"].why.as_str()), ("<b>", "b failed"));
        fs::write(&path, format!("{lines}\n{{\"event\":\"done\",\"ok\":false,\"nodes\":[]}}\n")).unwrap();
        let over = Story::of(&store, "r").unwrap();
        assert_eq!((over.ok, over.goes_on), (Some(false), false));
    }
}
