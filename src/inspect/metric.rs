//! Metrics: in the order in which people look for them, with their intervals, and what differs before and after.

use serde::Serialize;
use serde_json::{Map, Value};

/// Metrics that say how well it went, in the order in which they are told.
pub const OUTCOMES: [&str; 15] = [
    "win_rate",
    "win_rate_balanced",
    "win_rate_controlled",
    "bound",
    "kl",
    "probe_kl",
    "loss",
    "adherence",
    "well_formed",
    "accuracy_row",
    "accuracy_column",
    "gap",
    "logprob_diagonal",
    "reward_margin",
    "mean_length",
];

/// A metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// Its whole name, such as `win_rate.sami`.
    pub name: String,
    /// Its value; no number where it is none.
    pub value: Value,
    /// Its 95% interval, if it has one.
    pub interval: Option<[f64; 2]>,
}

impl Metric {
    /// The name without a candidate.
    pub fn stem(&self) -> &str {
        stem(&self.name)
    }

    /// The candidate that it is of; empty if it is of none.
    pub fn candidate(&self) -> &str {
        self.name.split_once('.').map_or("", |(_, candidate)| candidate)
    }

    /// Its value, which is no number where it was none.
    pub fn number(&self) -> f64 {
        self.value.as_f64().unwrap_or(f64::NAN)
    }

    /// Whether it is one of those that say how well it went.
    pub fn is_outcome(&self) -> bool {
        OUTCOMES.contains(&self.stem())
    }
}

/// All metrics in the order in which people look for them; ends of intervals stand with what they are the ends of.
pub fn all(metrics: &Map<String, Value>) -> Vec<Metric> {
    let own = metrics.iter().filter(|(name, _)| !is_end(name));
    let mut all: Vec<Metric> = own
        .map(|(name, value)| Metric { name: name.clone(), value: value.clone(), interval: interval(metrics, name) })
        .collect();
    all.sort_by(|one, other| order(&one.name).cmp(&order(&other.name)));
    all
}

/// As [`all`], but what a candidate has does not stand a second time without its name.
pub fn listed(metrics: &Map<String, Value>) -> Vec<Metric> {
    let named = |name: &str| metrics.keys().any(|other| is_of_candidate(other, name));
    all(metrics).into_iter().filter(|metric| metric.name.contains('.') || !named(&metric.name)).collect()
}

/// Whether a metric is what another one is of one candidate. The parts of `dropped` are of filters, and it is their sum.
pub fn is_of_candidate(name: &str, stem: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.')) && stem != "dropped"
}

/// Where a metric comes among others.
pub fn order(name: &str) -> (usize, bool, &str) {
    let known = OUTCOMES.iter().position(|known| *known == stem(name));
    // Of the others, totals before what they are made of.
    (known.unwrap_or(OUTCOMES.len()), known.is_none() && name.contains('.'), name)
}

fn stem(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

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
    let stem = stem(metric);
    stem.ends_with("_low") || stem.ends_with("_high")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_people_look_for_comes_first_and_nothing_twice() {
        let metrics = json!({"rows": 9, "bound.base": 0.1, "win_rate": 0.7, "win_rate.sami": 0.7, "win_rate_low.sami": 0.6,
            "win_rate_high.sami": 0.8, "win_rate_low": 0.6, "win_rate_high": 0.8, "kl.sami": null,
            "dropped": 3, "dropped.distinct": 3});
        let listed = listed(metrics.as_object().expect("an object"));
        let names: Vec<&str> = listed.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["win_rate.sami", "bound.base", "kl.sami", "dropped", "rows", "dropped.distinct"]);
        assert_eq!((listed[0].interval, listed[0].candidate()), (Some([0.6, 0.8]), "sami"));
        assert!(listed[2].number().is_nan() && listed[2].is_outcome() && !listed[3].is_outcome());
    }
}
