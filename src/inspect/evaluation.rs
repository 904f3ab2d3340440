//! What an evaluation found: every rate with its intervals, in all, by principle and by constitution.

use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::fs;

/// The file of an evaluation that holds it all.
pub const FILE: &str = "breakdown.json";
/// A longer one is not read.
const LONGEST: u64 = 64 << 20;

/// The figures of an evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evaluation {
    /// The candidate that the others are held against.
    pub against: String,
    /// The others.
    pub candidates: IndexMap<String, Rates>,
    /// Every two of them beside each other.
    pub paired: Vec<Pair>,
}

/// A candidate's rates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// How many queries it answered.
    pub queries: u64,
    /// Comparisons that nobody won.
    pub ties: u64,
    /// The plain win rate.
    pub raw: Option<Rate>,
    /// The mean of those where its response is longer and where it is not.
    pub balanced: Option<Rate>,
    /// The one at equal length.
    pub controlled: Option<Rate>,
    /// By principle, in each polarity.
    pub principles: Vec<Part>,
    /// By constitution.
    pub constitutions: Vec<Part>,
}

/// A rate and its 95% intervals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rate {
    /// The rate.
    pub value: Option<f64>,
    /// Wilson's interval.
    pub wilson: Option<[f64; 2]>,
    /// The interval of resampled queries.
    pub bootstrap: Option<[f64; 2]>,
}

impl Rate {
    /// The interval that is told: Wilson's where there is one.
    pub fn interval(&self) -> Option<[f64; 2]> {
        self.wilson.or(self.bootstrap)
    }
}

/// A part of a candidate's comparisons.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Part {
    /// The principle that responses were to follow.
    pub principle: Option<String>,
    /// Which way.
    pub polarity: Option<String>,
    /// The constitution.
    pub constitution: Option<String>,
    /// How many queries.
    pub queries: u64,
    /// The win rate in this part.
    pub win_rate: Option<f64>,
    /// The low end of its interval.
    pub low: Option<f64>,
    /// The high end of its interval.
    pub high: Option<f64>,
    /// Share of the principles that the candidate followed, with rules.
    pub adherence: Option<f64>,
    /// The same of the other.
    pub adherence_against: Option<f64>,
}

impl Part {
    /// What the part is of.
    pub fn name(&self) -> String {
        match (&self.constitution, &self.principle, self.polarity.as_deref()) {
            (Some(constitution), ..) => constitution.clone(),
            (None, Some(principle), Some("antithesis")) => format!("not {principle}"),
            (None, Some(principle), _) => principle.clone(),
            (None, None, _) => String::new(),
        }
    }

    /// Its interval.
    pub fn interval(&self) -> Option<[f64; 2]> {
        Some([self.low?, self.high?])
    }
}

/// Two candidates beside each other on the same queries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pair {
    /// The one.
    pub one: String,
    /// The other.
    pub other: String,
    /// Difference of their win rates.
    pub difference: Option<f64>,
    /// Its interval of resampled queries.
    pub bootstrap: Option<[f64; 2]>,
    /// Queries of which the one did better.
    pub better: u64,
    /// Queries of which it did worse.
    pub worse: u64,
    /// Exact two-sided sign test.
    pub p: Option<f64>,
}

impl Evaluation {
    /// Reads the file; none if it is not there or is none.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path, LONGEST).ok()?).ok()
    }
}
