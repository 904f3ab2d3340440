//! What of a run's events is told to trackers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::held;
use super::tracked::Tracked;
use crate::exec::Event;
use crate::fs;
use crate::inspect::name::Name;

/// Metrics of nodes that were fresh that are told in all; of larger runs the rest is left out.
const MOST_OLD: usize = 5_000;

/// What happened, in a tracker's words.
#[derive(Debug, Clone)]
pub(super) enum Note {
    /// The first node of the run starts.
    Begin(Arc<Begin>),
    /// A node starts, or starts again.
    Attempt {
        /// Its name.
        node: Arc<str>,
    },
    /// A step of training.
    Step {
        /// The node that trains.
        node: Arc<str>,
        /// From 1.
        step: u64,
        /// Figures by name, NaN among them.
        figures: Vec<(String, f64)>,
        /// When it was heard of.
        at: Timestamp,
    },
    /// A node has its artifact.
    Result {
        /// The node's name.
        node: Arc<str>,
        /// Whether the tracker may have been told of it: it was fresh, or the run was over before.
        old: bool,
        /// Its metrics.
        figures: Vec<(String, f64)>,
        /// When it was heard of.
        at: Timestamp,
    },
    /// The run is over.
    End(Outcome, Timestamp),
}

/// What is told of a run when it begins.
#[derive(Debug, Clone)]
pub(super) struct Begin {
    /// What it is called: its own id, or that of the first run that it goes on with.
    pub(super) name: String,
    /// Ids of all runs that went on with each other, its own last.
    pub(super) runs: Vec<String>,
    /// Pipeline name.
    pub(super) pipeline: String,
    /// When.
    pub(super) at: Timestamp,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All nodes have their artifacts.
    Finished,
    /// A node failed.
    Failed,
    /// It was interrupted, or stopped at its budget.
    Stopped,
}

/// Listens to a run.
#[derive(Debug)]
pub(super) struct Story {
    run: String,
    pipeline: String,
    begun: bool,
    told: HashSet<String>,
    outcome: Option<Outcome>,
    /// Whether the run was over before it is told of.
    again: bool,
    /// When the last thing happened.
    last: Timestamp,
}

impl Story {
    pub(super) fn new(again: bool) -> Self {
        Self {
            run: String::new(),
            pipeline: String::new(),
            begun: false,
            told: HashSet::new(),
            outcome: None,
            again,
            last: Timestamp::UNIX_EPOCH,
        }
    }

    fn begin(&mut self, at: Timestamp, tracked: &Mutex<Tracked>) -> Option<Note> {
        if std::mem::replace(&mut self.begun, true) {
            return None;
        }
        let (name, runs) = held(tracked).begin(&self.run);
        Some(Note::Begin(Arc::new(Begin { name, runs, pipeline: self.pipeline.clone(), at })))
    }

    /// Hears of an event. A run in which no node starts is not told of, unless someone asks for it when it is over.
    pub(super) fn hear(&mut self, at: Timestamp, event: &Event, tracked: &Mutex<Tracked>) -> Vec<Note> {
        self.last = at;
        match event {
            Event::Start { run, pipeline, .. } => {
                (self.run, self.pipeline) = (run.clone(), pipeline.clone());
                if self.again { Vec::from_iter(self.begin(at, tracked)) } else { Vec::new() }
            }
            Event::NodeStart { node, .. } => {
                let mut notes = Vec::from_iter(self.begin(at, tracked));
                notes.push(Note::Attempt { node: node.as_str().into() });
                notes
            }
            Event::NodeProgress { node, progress, .. } => {
                let node: Arc<str> = node.as_str().into();
                let step = |line: &Map<String, Value>| {
                    let step = line.get("step")?.as_u64()?;
                    let figures = figures(line).filter(|(name, _)| name != "step").collect();
                    Some(Note::Step { node: Arc::clone(&node), step, figures, at })
                };
                progress.steps.iter().filter_map(step).collect()
            }
            Event::NodeFinish { node, metrics, .. } => {
                self.told.insert(node.clone());
                let old = self.again;
                vec![Note::Result { node: node.as_str().into(), old, figures: figures(metrics).collect(), at }]
            }
            Event::Interrupt { .. } => {
                self.outcome = Some(Outcome::Stopped);
                Vec::new()
            }
            Event::Done { ok, failed, nodes, .. } => {
                self.outcome = Some(match (ok, failed) {
                    (true, _) => Outcome::Finished,
                    (false, 0) => Outcome::Stopped,
                    (false, _) => self.outcome.unwrap_or(Outcome::Failed),
                });
                let mut left = MOST_OLD;
                let old =
                    nodes.iter().filter(|node| self.begun && node.state == "hit" && !self.told.contains(&node.name));
                let notes = old.map_while(|node| {
                    let figures: Vec<_> = figures(&node.metrics).collect();
                    left = left.checked_sub(figures.len())?;
                    Some(Note::Result { node: node.name.as_str().into(), old: true, figures, at })
                });
                notes.collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether all went well; `None` of a run that was not told of.
    pub(super) fn outcome(&self) -> Option<bool> {
        self.begun.then_some(self.outcome == Some(Outcome::Finished))
    }

    /// That the run is over.
    pub(super) fn end(&self) -> Option<Note> {
        // Without a word at its end it could not go on; one that is told of later was killed.
        let (untold, at) = if self.again { (Outcome::Stopped, self.last) } else { (Outcome::Failed, fs::now()) };
        self.begun.then(|| Note::End(self.outcome.unwrap_or(untold), at))
    }
}

/// What is a number, and what should have been one and is null: JSON has no NaN.
fn figures(metrics: &Map<String, Value>) -> impl Iterator<Item = (String, f64)> {
    metrics.iter().filter_map(|(name, value)| {
        let value = if value.is_null() { f64::NAN } else { value.as_f64()? };
        Some((name.clone(), value))
    })
}

/// A node's name without its iteration, and that, 0 outside of the loop: `evaluate@2[seed=1]` is `evaluate[seed=1]` and 2.
pub(super) fn iteration(node: &str) -> (String, u64) {
    let name = Name::of(node);
    (name.family(), name.iteration.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_into_node_and_iteration() {
        let split = |name: &str| iteration(name);
        assert_eq!(split("evaluate@2"), ("evaluate".to_owned(), 2));
        assert_eq!(split("evaluate@12[seed=1]"), ("evaluate[seed=1]".to_owned(), 12));
        for plain in ["evaluate", "a[b=c@2]", "a@b"] {
            assert_eq!(split(plain), (plain.to_owned(), 0));
        }
    }

    #[test]
    fn what_should_be_a_number_and_is_none_is_nan() {
        let line = serde_json::json!({"loss": null, "bound": 0.5, "word": "x", "step": 3});
        let found: Vec<_> = figures(line.as_object().unwrap()).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().any(|(name, value)| name == "loss" && value.is_nan()));
    }
}
