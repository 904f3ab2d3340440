//! What a node is likely to take, from what earlier attempts of its kind took.
//!
//! Approach: of each attempt that is like the node (see [`Likeness`]) the seconds, tokens and calls for a unit of work (a row, a
//! step) are taken; their logarithms are held to be normal. From the mean and the spread of n of them follows an interval in
//! which the next attempt lies nine times of ten: Student's prediction interval, wide where there are few.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::kinds::estimate::{Estimate, Facts, Place};
use crate::pipeline::Node;
use crate::store::{Index, NodeRecord, Store};

/// Attempts of a kind that are looked at, the latest ones.
const LATEST: usize = 32;
/// By what factor the only attempt there is may be wrong.
const ALONE: f64 = 2.0;
/// How much two models may differ in their parameters and still count as of one size.
const SIZE: f64 = 0.1;

/// Whose attempts something was learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Likeness {
    /// Of the node itself, on this machine and device.
    Node,
    /// Of its kind, with models of this size, on this machine and device.
    Kind,
    /// Of its kind, with models of this size, on such a device of another machine.
    Elsewhere,
}

/// A number that is likely: in nine of ten cases between `low` and `high`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Likely {
    /// What one case in twenty is below.
    pub low: f64,
    /// The middle.
    pub middle: f64,
    /// What one case in twenty is above.
    pub high: f64,
}

/// What earlier attempts make likely of a node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Past {
    /// How many attempts it is from.
    pub attempts: usize,
    /// How they are like it.
    pub likeness: Likeness,
    /// Wall seconds.
    pub seconds: Likely,
    /// Tokens that are written or scored, as the kind counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Likely>,
    /// Questions to endpoints, those among them whose answers are remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<Likely>,
    /// Memory of the worker at its peak, in bytes: the most of any of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
    /// Of a GPU's memory, the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_peak: Option<u64>,
}

/// What is known of a node that is to be likened.
pub(super) struct Subject<'a> {
    pub(super) node: &'a Node,
    pub(super) pipeline: &'a str,
    pub(super) estimate: &'a Estimate,
    /// Parameters of all its models.
    pub(super) parameters: u64,
    pub(super) place: Place,
    pub(super) host: &'a str,
}

/// What is read of earlier attempts, by kind, and sizes of models by artifact.
#[derive(Default)]
pub(super) struct History {
    kinds: HashMap<&'static str, Vec<(NodeRecord, u64)>>,
    sizes: HashMap<Digest, u64>,
}

impl History {
    /// What is likely of a node; nothing if no attempt was like it.
    pub(super) fn of(&mut self, store: &Store, index: &Index, subject: &Subject<'_>) -> Option<Past> {
        let kind = subject.node.kind.name;
        if !self.kinds.contains_key(kind) {
            let keys = index.keys_of_kind(kind, LATEST);
            let records = keys.iter().filter_map(|key| store.node(key).ok().flatten());
            let records: Vec<NodeRecord> = records.collect();
            let sized = records.into_iter().map(|record| (self.parameters(store, &record), record));
            let sized = sized.map(|(size, record)| (record, size)).collect();
            self.kinds.insert(kind, sized);
        }
        let records = self.kinds.get(kind)?;
        let work = unit(kind).of_estimate(subject.estimate)?;
        for likeness in [Likeness::Node, Likeness::Kind, Likeness::Elsewhere] {
            let like: Vec<&NodeRecord> = records
                .iter()
                .filter(|(record, size)| is_like(record, *size, subject, likeness))
                .map(|(record, _)| record)
                .collect();
            if let Some(past) = learned(kind, &like, work, likeness) {
                return Some(past);
            }
        }
        None
    }

    /// Parameters of all models that an attempt took.
    fn parameters(&mut self, store: &Store, record: &NodeRecord) -> u64 {
        let mut sum = 0;
        for id in record.inputs.values() {
            sum += *self.sizes.entry(*id).or_insert_with(|| {
                let files = store.files(id).unwrap_or_default();
                if files.contains_key("config.json") { Facts::of_model(&files).parameters() } else { 0 }
            });
        }
        sum
    }
}

/// What work is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Rows,
    Steps,
    /// Each attempt is one: only those of the node itself are like it.
    Attempts,
}

fn unit(kind: &str) -> Unit {
    match kind {
        "generate" | "score" | "evaluate" => Unit::Rows,
        "finetune" => Unit::Steps,
        _ => Unit::Attempts,
    }
}

impl Unit {
    fn of_estimate(self, estimate: &Estimate) -> Option<f64> {
        match self {
            Self::Rows => estimate.rows.map(|rows| rows.number as f64),
            Self::Steps => estimate.steps.map(|steps| steps.number as f64),
            Self::Attempts => Some(1.0),
        }
    }

    /// The work that an attempt did: rows that it computed, not those that were remembered.
    fn of_metrics(self, metrics: &Map<String, Value>) -> Option<f64> {
        let number = |name: &str| metrics.get(name).and_then(Value::as_f64);
        let work = match self {
            Self::Rows => {
                let (rows, reused) = (number("rows")? + number("dropped").unwrap_or(0.0), number("rows_reused"));
                // Records of before rows were counted as asked for say how many of the rows themselves were remembered.
                rows * (1.0 - reused.unwrap_or(0.0) / number("rows_asked").unwrap_or(rows).max(1.0))
            }
            Self::Steps => number("steps")?,
            Self::Attempts => 1.0,
        };
        (work > 0.0).then_some(work)
    }
}

fn is_like(record: &NodeRecord, size: u64, subject: &Subject<'_>, likeness: Likeness) -> bool {
    let gpu = record.device != "cpu";
    let same_size = (size as f64 - subject.parameters as f64).abs() <= SIZE * subject.parameters as f64;
    // Iterations of the loop are one node.
    let stem = |name: &str| name.split('@').next().unwrap_or_default().to_owned();
    let own = record.pipeline == subject.pipeline && stem(&record.node) == stem(&subject.node.name);
    let whose = match likeness {
        Likeness::Node => own && record.host == subject.host,
        Likeness::Kind => unit(&record.kind) != Unit::Attempts && record.host == subject.host,
        Likeness::Elsewhere => unit(&record.kind) != Unit::Attempts || own,
    };
    whose && same_size && gpu == (subject.place == Place::Gpu)
}

fn learned(kind: &str, like: &[&NodeRecord], work: f64, likeness: Likeness) -> Option<Past> {
    let done: Vec<(f64, &NodeRecord)> =
        like.iter().filter_map(|record| Some((unit(kind).of_metrics(&record.metrics)?, *record))).collect();
    let per_unit = |amount: &dyn Fn(&NodeRecord) -> Option<f64>| -> Vec<f64> {
        let ratios = done.iter().filter_map(|(work, record)| Some(amount(record)? / work));
        ratios.filter(|ratio| *ratio > 0.0 && ratio.is_finite()).collect()
    };
    let scaled =
        |likely: Likely| Likely { low: likely.low * work, middle: likely.middle * work, high: likely.high * work };
    let seconds = likely(&per_unit(&|record| Some(record.seconds)))?;
    let number = |record: &NodeRecord, name: &str| record.metrics.get(name).and_then(Value::as_f64);
    // Tokens of remembered rows are counted among an attempt's; work is without them.
    let tokens =
        per_unit(&|record| number(record, "tokens").filter(|_| number(record, "rows_reused").unwrap_or(0.0) == 0.0));
    let calls = per_unit(&|record| {
        let asked = record.metrics.iter().filter(|(name, _)| {
            let last = name.rsplit('.').next().unwrap_or(name);
            last == "calls" || last == "calls_reused"
        });
        asked.filter_map(|(_, value)| value.as_f64()).reduce(|one, other| one + other)
    });
    Some(Past {
        attempts: done.len(),
        likeness,
        seconds: scaled(seconds),
        tokens: likely(&tokens).map(scaled),
        calls: likely(&calls).map(scaled),
        peak: done.iter().filter_map(|(_, record)| record.usage.as_ref()?.peak_bytes).max(),
        gpu_peak: done.iter().filter_map(|(_, record)| record.usage.as_ref()?.gpu_peak_bytes).max(),
    })
}

/// In which interval the next of some positive numbers lies in nine of ten cases, if their logarithms are normal.
fn likely(numbers: &[f64]) -> Option<Likely> {
    let count = numbers.len() as f64;
    let logs: Vec<f64> = numbers.iter().map(|number| number.ln()).collect();
    let mean = logs.iter().sum::<f64>() / count;
    let reach = match numbers.len() {
        0 => return None,
        1 => ALONE.ln(),
        _ => {
            let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
            student(numbers.len() - 1) * (variance * (1.0 + 1.0 / count)).sqrt()
        }
    };
    Some(Likely { low: (mean - reach).exp(), middle: mean.exp(), high: (mean + reach).exp() })
}

/// What Student's t with so many degrees of freedom exceeds in one case of twenty.
fn student(freedom: usize) -> f64 {
    const FIRST: [f64; 10] = [6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812];
    match freedom {
        0 => f64::INFINITY,
        1..=10 => FIRST[freedom - 1],
        // Cornish and Fisher's expansion; off by less than 0.001 from here on.
        _ => {
            let (z, n) = (1.644_854_f64, freedom as f64);
            z + (z.powi(3) + z) / (4.0 * n) + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n)
        }
    }
}

/// Several nodes one after another: as likely as if each were apart from the others.
pub fn sum(parts: impl Iterator<Item = Likely>) -> Option<Likely> {
    let mut all: Option<(f64, f64, f64)> = None;
    for Likely { low, middle, high } in parts {
        let (below, above, so_far) = all.unwrap_or((0.0, 0.0, 0.0));
        all = Some((below + (middle - low).powi(2), above + (high - middle).powi(2), so_far + middle));
    }
    all.map(|(below, above, middle)| Likely {
        low: (middle - below.sqrt()).max(0.0),
        middle,
        high: middle + above.sqrt(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Hasher;

    /// Normal numbers, the same ones each time.
    struct Normal(u64);

    impl Normal {
        fn uniform(&mut self) -> f64 {
            self.0 += 1;
            let mut hasher = Hasher::new();
            ((hasher.text("normal").number(self.0).seed() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        }

        fn next(&mut self) -> f64 {
            let (one, other) = (self.uniform(), self.uniform());
            (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos()
        }
    }

    #[test]
    fn nine_of_ten_attempts_lie_in_the_interval_that_was_told() {
        let mut normal = Normal(0);
        for (spread, count) in [(0.05, 2), (0.05, 12), (0.3, 3), (0.3, 6), (0.8, 25)] {
            let mut attempt = || (1.0 + spread * normal.next()).exp();
            let trials = 4000;
            let mut inside = 0;
            for _ in 0..trials {
                let earlier: Vec<f64> = (0..count).map(|_| attempt()).collect();
                let Likely { low, high, .. } = likely(&earlier).expect("some");
                inside += usize::from((low..=high).contains(&attempt()));
            }
            let share = inside as f64 / f64::from(trials);
            assert!((share - 0.9).abs() < 0.02, "{share} with a spread of {spread} and {count} attempts");
        }
    }

    #[test]
    fn few_attempts_say_little_and_one_says_that_it_is_alone() {
        assert_eq!(likely(&[]), None);
        let one = likely(&[10.0]).expect("one");
        assert!((one.low - 5.0).abs() < 1e-9 && (one.high - 20.0).abs() < 1e-9);
        let width = |numbers: &[f64]| likely(numbers).map(|likely| likely.high / likely.low).expect("some");
        assert!(width(&[10.0, 11.0]) > width(&[10.0, 11.0, 10.0, 11.0]));
        assert!(
            (student(11) - 1.796).abs() < 2e-3
                && (student(30) - 1.697).abs() < 2e-3
                && (student(1000) - 1.646).abs() < 2e-3
        );
        let all = sum([one, one].into_iter()).expect("two");
        assert!((all.middle - 20.0).abs() < 1e-9 && all.high < 40.0 && all.low > 10.0);
    }

    #[test]
    fn remembered_rows_are_no_work() {
        let metrics = |value: Value| value.as_object().cloned().expect("an object");
        let done = metrics(serde_json::json!({"rows": 90, "dropped": 10, "rows_reused": 40}));
        assert_eq!(Unit::Rows.of_metrics(&done), Some(60.0));
        assert_eq!(Unit::Rows.of_metrics(&metrics(serde_json::json!({"rows": 9, "rows_reused": 9}))), None);
        let two_candidates = metrics(serde_json::json!({"rows": 100, "rows_asked": 200, "rows_reused": 150}));
        assert_eq!(Unit::Rows.of_metrics(&two_candidates), Some(25.0));
        assert_eq!(Unit::Steps.of_metrics(&metrics(serde_json::json!({"steps": 30}))), Some(30.0));
    }
}
