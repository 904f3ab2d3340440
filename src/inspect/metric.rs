//! Metrics before and after, with their intervals where these are known.

use serde::Serialize;
use serde_json::{Map, Value};

/// A metric that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricChange {
    /// Its name.
    pub name: String,
    /// What it was, if it was there.
    pub before: Option<Value>,
    /// What it is, if it is there.
    pub after: Option<Value>,
    /// The interval that it was in.
    pub interval_before: Option<[f64; 2]>,
    /// The interval that it is in.
    pub interval_after: Option<[f64; 2]>,
}

/// The metrics that differ, those with intervals first, by name; ends of intervals stand beside what they are the ends of.
pub fn changes(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<MetricChange> {
    let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
    let mut changes: Vec<MetricChange> = names
        .filter(|name| before.get(*name) != after.get(*name))
        .filter(|name| !is_end(name))
        .map(|name| MetricChange {
            name: name.clone(),
            before: before.get(name).cloned(),
            after: after.get(name).cloned(),
            interval_before: interval(before, name),
            interval_after: interval(after, name),
        })
        .collect();
    // What has an interval is what was asked for; the rest says how it came about.
    let has_none = |change: &MetricChange| change.interval_before.or(change.interval_after).is_none();
    changes.sort_by(|one, other| (has_none(one), &one.name).cmp(&(has_none(other), &other.name)));
    changes
}

/// The interval of a metric: of `win_rate.sami` it is `win_rate_low.sami` to `win_rate_high.sami`.
pub fn interval(metrics: &Map<String, Value>, name: &str) -> Option<[f64; 2]> {
    let (stem, suffix) = match name.split_once('.') {
        Some((stem, suffix)) => (stem, format!(".{suffix}")),
        None => (name, String::new()),
    };
    let end = |end: &str| metrics.get(&format!("{stem}_{end}{suffix}"))?.as_f64();
    Some([end("low")?, end("high")?])
}

/// Whether a metric is an end of an interval.
pub fn is_end(metric: &str) -> bool {
    let stem = metric.split('.').next().unwrap_or(metric);
    stem.ends_with("_low") || stem.ends_with("_high")
}
