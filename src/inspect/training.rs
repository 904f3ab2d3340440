//! How a training run went, step by step: from `train.jsonl` of the model that it made or, as long as there is none, from what the
//! run's events told.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::exec::Follower;
use crate::fs;
use crate::store::Store;

/// The file of a model that has a line for each step.
pub const FILE: &str = "train.jsonl";
/// Bytes that are read of it, and of a run's events.
const MOST: u64 = 512 << 20;
/// What is longer is no step.
const LONGEST: usize = 16 << 20;

/// A figure of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// Its name in a line.
    pub name: &'static str,
    /// What it is called over a picture.
    pub title: &'static str,
    /// In what it is measured.
    pub unit: &'static str,
    /// Whether it is shown before others.
    pub first: bool,
}

const fn figure(name: &'static str, title: &'static str, unit: &'static str, first: bool) -> Figure {
    Figure { name, title, unit, first }
}

/// The figures that are shown, in order.
pub const FIGURES: [Figure; 16] = [
    figure("loss", "Loss", "nats, with the KL term", true),
    figure("bound", "Bound", "nats, InfoNCE", true),
    figure("kl", "KL from the reference", "nats a token", true),
    figure("probe_kl", "KL on the probes", "nats a token, after the update", true),
    figure("mean_length", "Length of responses", "tokens, mean", true),
    figure("gradient_norm", "Norm of the gradient", "before clipping", true),
    figure("logprob_diagonal", "Log-probability of own responses", "nats a token, the diagonal", true),
    figure("reward_margin", "Reward margin", "nats times beta", true),
    figure("logprob_off_diagonal", "Log-probability of others’ responses", "nats a token, off the diagonal", false),
    figure("accuracy_row", "Accuracy over responses", "share of rows", false),
    figure("accuracy_column", "Accuracy over constitutions", "share of columns", false),
    figure("gap", "Gap", "nats, the authors’ figure", false),
    figure("reward_chosen", "Reward of preferred responses", "nats times beta", false),
    figure("accuracy", "Accuracy of rewards", "share of preferences", false),
    figure("objective", "Objective", "nats, without the KL term", false),
    figure("learning_rate", "Learning rate", "", false),
];

/// The steps of a training run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Training {
    /// Of each figure its values by step; what was no number is not finite.
    pub figures: BTreeMap<String, Vec<(f64, f64)>>,
    /// The last step that is known.
    pub steps: u64,
    /// How many there will be, as long as it goes on.
    pub total: Option<u64>,
    /// Whether it is longer than what was read.
    pub cut: bool,
}

impl Training {
    /// Of the model that was made; none if no training made it, or it is not in the cache any more.
    pub fn of_artifact(store: &Store, artifact: &Digest) -> Option<Self> {
        let manifest = store.manifest(artifact).ok()?;
        if !manifest.files.contains_key(FILE) {
            return None;
        }
        let files = store.files(artifact).ok()?;
        Self::read(files.get(FILE)?).ok()
    }

    fn read(path: &Path) -> io::Result<Self> {
        let mut training = Self::default();
        let whole = fs::Lines::of(fs::open(path)?, LONGEST, MOST).news(&mut |line| {
            if let Ok(step) = serde_json::from_slice(line) {
                training.add(&step, None);
            }
        })?;
        training.cut = !whole;
        Ok(training)
    }

    /// Of a run's nodes by name, as far as its events tell.
    pub fn of_events(store: &Store, run: &str) -> BTreeMap<String, Self> {
        let mut nodes: BTreeMap<String, Self> = BTreeMap::new();
        let Ok(mut follower) = Follower::of_most(store, run, MOST) else { return nodes };
        let told = follower.news(&mut |line| {
            // Most of what a long run tells is something else.
            if !holds(line, b"\"node-progress\"") {
                return;
            }
            let Ok(Value::Object(event)) = serde_json::from_slice(line) else { return };
            let node = event.get("node").and_then(Value::as_str);
            let is_steps = event.get("unit").and_then(Value::as_str) == Some("steps");
            let (Some(node), true, Some("node-progress")) =
                (node, is_steps, event.get("event").and_then(Value::as_str))
            else {
                return;
            };
            let training = nodes.entry(node.to_owned()).or_default();
            training.total = event.get("total").and_then(Value::as_u64);
            match event.get("steps").and_then(Value::as_array) {
                Some(steps) => steps.iter().filter_map(Value::as_object).for_each(|step| training.add(step, None)),
                // Older versions told some of the figures of some of the steps.
                None => {
                    let metrics = event.get("metrics").and_then(Value::as_object);
                    metrics.into_iter().for_each(|metrics| {
                        training.add(metrics, event.get("done").and_then(Value::as_u64));
                    });
                }
            }
        });
        nodes.values_mut().for_each(|training| training.cut = matches!(told, Ok(false)));
        nodes
    }

    /// Adds a step. One that is not after all others, which an attempt tells that goes on from a checkpoint, takes their place.
    fn add(&mut self, figures: &Map<String, Value>, step: Option<u64>) {
        let Some(step) = step.or_else(|| figures.get("step").and_then(Value::as_u64)) else { return };
        if step <= self.steps {
            let at = step as f64;
            self.figures.values_mut().for_each(|points| points.truncate(points.partition_point(|point| point.0 < at)));
        }
        self.steps = step;
        for (name, value) in figures.iter().filter(|(name, _)| *name != "step") {
            let value = match value {
                Value::Null => f64::NAN,
                Value::Number(number) => number.as_f64().unwrap_or(f64::NAN),
                _ => continue,
            };
            match self.figures.get_mut(name) {
                Some(points) => points.push((step as f64, value)),
                None => _ = self.figures.insert(name.clone(), vec![(step as f64, value)]),
            }
        }
    }
}

fn holds(line: &[u8], what: &[u8]) -> bool {
    // The name of an event stands near its beginning.
    line[..line.len().min(256)].windows(what.len()).any(|part| part == what)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_training_run_is_read_from_what_it_made() {
        let (_folder, store, _) = sample::store();
        let lines = "{\"step\":1,\"loss\":0.7,\"kl\":null}\nno line\n{\"step\":2,\"loss\":0.5,\"kl\":0.25,\"note\":\"x\"}\n{\"step\":3";
        let model = sample::put(&store, "model", &[(FILE, lines.to_owned()), ("config.json", "{}".to_owned())]);
        let training = Training::of_artifact(&store, &model).expect("it was trained");
        assert_eq!(training.figures["loss"], [(1.0, 0.7), (2.0, 0.5)]);
        assert!(training.figures["kl"][0].1.is_nan() && training.steps == 2 && !training.cut);
        assert!(!training.figures.contains_key("note"));
        let other = sample::put(&store, "model", &[("config.json", "{}".to_owned())]);
        assert_eq!(Training::of_artifact(&store, &other), None);
        assert_eq!(Training::of_artifact(&store, &Digest::of(b"gone")), None);
    }

    #[test]
    fn one_that_goes_on_is_read_from_what_it_tells() {
        let (_folder, store, _) = sample::store();
        fs::create_directory(&store.run_dir("r")).expect("a directory");
        let told = [
            r#"{"event":"start","run":"r","pipeline":"p","nodes":2,"hits":0,"threads":2}"#,
            r#"{"event":"node-progress","node":"old","done":4,"total":9,"unit":"steps","metrics":{"loss":0.7},"seconds":1}"#,
            r#"{"at":1.5,"event":"node-progress","node":"a","done":2,"total":9,"unit":"steps","metrics":{"loss":9},"steps":[{"step":1,"loss":0.9},{"step":2,"loss":0.8}]}"#,
            r#"{"event":"node-progress","node":"a","done":3,"total":9,"unit":"steps","metrics":{},"steps":[{"step":2,"loss":0.6},{"step":3,"loss":0.5}]}"#,
            r#"{"event":"node-progress","node":"b","done":3,"total":9,"unit":"rows","metrics":{"loss":1}}"#,
            r#"{"event":"node-progress","node":"a","do"#,
        ];
        fs::write(&store.run_dir("r").join("events.jsonl"), told.join("\n")).expect("writes");
        let nodes = Training::of_events(&store, "r");
        assert_eq!(nodes.keys().collect::<Vec<_>>(), ["a", "old"]);
        assert_eq!(nodes["a"].figures["loss"], [(1.0, 0.9), (2.0, 0.6), (3.0, 0.5)], "the second try counts");
        assert_eq!((nodes["a"].steps, nodes["a"].total), (3, Some(9)));
        assert_eq!(nodes["old"].figures["loss"], [(4.0, 0.7)]);
        assert!(Training::of_events(&store, "none").is_empty());
    }
}
