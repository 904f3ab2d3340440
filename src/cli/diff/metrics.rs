//! Metrics before and after, with their intervals where these are known.

use serde::Serialize;
use serde_json::{Map, Number, Value};

use super::super::breakdown;
use super::super::figures::figure;
use super::super::table::Table;

/// A metric that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct MetricChange {
    /// Its name.
    pub(super) name: String,
    /// What it was, if it was there.
    pub(super) before: Option<Value>,
    /// What it is, if it is there.
    pub(super) after: Option<Value>,
    /// The interval that it was in.
    pub(super) interval_before: Option<[f64; 2]>,
    /// The interval that it is in.
    pub(super) interval_after: Option<[f64; 2]>,
}

/// The metrics that differ, those with intervals first, by name; ends of intervals stand beside what they are the ends of.
pub(super) fn changes(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<MetricChange> {
    let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
    let mut changes: Vec<MetricChange> = names
        .filter(|name| before.get(*name) != after.get(*name))
        .filter(|name| !breakdown::is_end(name))
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
fn interval(metrics: &Map<String, Value>, name: &str) -> Option<[f64; 2]> {
    let (stem, suffix) = match name.split_once('.') {
        Some((stem, suffix)) => (stem, format!(".{suffix}")),
        None => (name, String::new()),
    };
    let end = |end: &str| metrics.get(&format!("{stem}_{end}{suffix}"))?.as_f64();
    Some([end("low")?, end("high")?])
}

/// A table of the first `most` of them, each after what stands in `lead`.
pub(super) fn table<'a>(changes: impl Iterator<Item = (&'a str, &'a MetricChange)>, most: usize) -> String {
    let mut table = Table::new(["node", "metric", "before", "95%", "after", "95%", "change"], &[2, 4, 6]);
    let mut more = 0;
    let interval = |interval: Option<[f64; 2]>| {
        interval.map(|[low, high]| format!("{} to {}", number(low), number(high))).unwrap_or_default()
    };
    for (at, (node, change)) in changes.enumerate() {
        if at >= most {
            more += 1;
            continue;
        }
        let MetricChange { name, before, after, interval_before, interval_after } = change;
        let shown = |value: &Option<Value>| value.as_ref().map_or_else(|| "-".to_owned(), figure);
        let both = before.as_ref().and_then(Value::as_f64).zip(after.as_ref().and_then(Value::as_f64));
        let grown = both.map(|(before, after)| after - before);
        table.row([
            node.to_owned(),
            name.clone(),
            shown(before),
            interval(*interval_before),
            shown(after),
            interval(*interval_after),
            grown.map(|grown| format!("{}{}", if grown > 0.0 { "+" } else { "" }, number(grown))).unwrap_or_default(),
        ]);
    }
    let told = if table.is_empty() { String::new() } else { table.text() };
    if more > 0 { format!("{told}… {more} more; `--json` has all\n") } else { told }
}

fn number(number: f64) -> String {
    let whole = number.fract() == 0.0 && number.abs() < 1e15;
    let value =
        if whole { Value::from(number as i64) } else { Number::from_f64(number).map_or(Value::Null, Value::Number) };
    figure(&value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn metrics_stand_beside_each_other_with_their_intervals() {
        let map = |value: Value| value.as_object().cloned().expect("an object");
        let before =
            map(json!({"win_rate.a": 0.5, "win_rate_low.a": 0.4, "win_rate_high.a": 0.6, "rows": 500, "same": 1}));
        let after = map(
            json!({"win_rate.a": 0.625, "win_rate_low.a": 0.55, "win_rate_high.a": 0.7, "rows": 480, "same": 1, "new": 2}),
        );
        let changes = changes(&before, &after);
        assert_eq!(
            changes.iter().map(|change| change.name.as_str()).collect::<Vec<_>>(),
            ["win_rate.a", "new", "rows"]
        );
        assert_eq!(changes[0].interval_after, Some([0.55, 0.7]));
        let shown = table(changes.iter().map(|change| ("", change)), 9);
        assert_eq!(
            shown,
            "metric      before  95%                after  95%                change\n".to_owned()
                + "win_rate.a  0.5000  0.4000 to 0.6000  0.6250  0.5500 to 0.7000  +0.1250\n"
                + "new              -                         2\n"
                + "rows           500                       480                        -20\n"
        );
        assert!(table(changes.iter().map(|change| ("", change)), 1).ends_with("… 2 more; `--json` has all\n"));
    }
}
