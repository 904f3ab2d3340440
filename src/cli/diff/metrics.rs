//! Metrics before and after, in a table.

use serde_json::{Number, Value};

use super::super::figures::figure;
use super::super::table::Table;
use crate::inspect::metric::MetricChange;

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
    use serde_json::json;

    use super::*;
    use crate::inspect::metric::changes;

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
