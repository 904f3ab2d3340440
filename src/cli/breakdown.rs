//! What `sami show` tells of an evaluation beyond its metrics: rates by candidate, by principle and by constitution.

use std::path::Path;

use serde_json::Value;

use super::figures::{count, cut};
use super::table::Table;

/// The file of an evaluation that holds it all.
pub(super) const FILE: &str = "breakdown.json";

/// Rows of a table; the file has all.
const ROWS: usize = 24;
/// Widest name of a constitution.
const NAME: usize = 56;

/// Whether a metric is one that the tables tell with more beside it.
pub(super) fn tells(metric: &str) -> bool {
    let stem = metric.split('.').next().unwrap_or(metric);
    stem == "ties" || stem.starts_with("win_rate") || stem.starts_with("paired")
}

/// The tables, each after an empty line; nothing if the file cannot be read.
pub(super) fn tables(path: &Path) -> String {
    let read = || serde_json::from_slice::<Value>(&fs_err::read(path).ok()?).ok();
    read().map_or_else(String::new, |report| rates(&report) + &parts(&report) + &pairs(&report))
}

/// Every candidate's rates.
fn rates(report: &Value) -> String {
    let mut table = Table::new(
        ["candidate", "queries", "ties", "win rate", "95%", "balanced", "95%", "controlled", "95%"],
        &[1, 2, 3, 5, 7],
    );
    for (name, own) in report["candidates"].as_object().into_iter().flatten() {
        let rate = |figure: &str| percent(&own[figure]["value"]);
        let number = |figure: &str| own[figure].as_u64().map_or_else(String::new, count);
        table.row([
            cut(name, NAME),
            number("queries"),
            number("ties"),
            rate("raw"),
            interval(&own["raw"]["wilson"]),
            rate("balanced"),
            interval(&own["balanced"]["bootstrap"]),
            rate("controlled"),
            interval(&own["controlled"]["bootstrap"]),
        ]);
    }
    told(table)
}

/// Rates by principle, and by constitution.
fn parts(report: &Value) -> String {
    let mut text = String::new();
    for (list, name) in [("principles", "principle"), ("constitutions", "constitution")] {
        let headers = ["candidate", name, "polarity", "queries", "win rate", "95%", "adherence", "against"];
        let mut table = Table::new(headers, &[3, 4, 6, 7]);
        let (mut shown, mut more) = (0, 0);
        for (candidate, own) in report["candidates"].as_object().into_iter().flatten() {
            for part in own[list].as_array().into_iter().flatten() {
                if shown == ROWS {
                    more += 1;
                    continue;
                }
                shown += 1;
                table.row([
                    cut(candidate, NAME),
                    cut(part[name].as_str().unwrap_or_default(), NAME),
                    part["polarity"].as_str().unwrap_or_default().to_owned(),
                    part["queries"].as_u64().map_or_else(String::new, count),
                    percent(&part["win_rate"]),
                    interval(&Value::Array(vec![part["low"].clone(), part["high"].clone()])),
                    percent(&part["adherence"]),
                    percent(&part["adherence_against"]),
                ]);
            }
        }
        text += &told(table);
        if more > 0 {
            text += &format!("… {} more in {FILE}\n", count(more));
        }
    }
    text
}

/// Candidates beside each other.
fn pairs(report: &Value) -> String {
    let mut table = Table::new(["candidate", "beside", "difference", "95%", "better", "worse", "p"], &[2, 4, 5, 6]);
    for pair in report["paired"].as_array().into_iter().flatten() {
        let name = |field: &str| cut(pair[field].as_str().unwrap_or_default(), NAME);
        let number = |field: &str| pair[field].as_u64().map_or_else(String::new, count);
        let p = pair["p"]
            .as_f64()
            .map_or_else(String::new, |p| if p < 1e-4 { "<.0001".to_owned() } else { format!("{p:.4}") });
        table.row([
            name("one"),
            name("other"),
            percent(&pair["difference"]),
            interval(&pair["bootstrap"]),
            number("better"),
            number("worse"),
            p,
        ]);
    }
    told(table)
}

fn told(table: Table) -> String {
    if table.is_empty() { String::new() } else { format!("\n{}", table.text()) }
}

/// A rate in percent; nothing if there is none.
fn percent(rate: &Value) -> String {
    rate.as_f64().map_or_else(String::new, |rate| format!("{:.1}", 100.0 * rate))
}

fn interval(ends: &Value) -> String {
    match (percent(&ends[0]), percent(&ends[1])) {
        (low, high) if low.is_empty() || high.is_empty() => String::new(),
        (low, high) => format!("[{low}, {high}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_evaluation_is_told_in_tables() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let part = |name: &str, key: &str| {
            json!({key: name, "polarity": "definition", "queries": 120, "win_rate": 0.7, "low": 0.6, "high": 0.78,
                "adherence": 0.8, "adherence_against": 0.55})
        };
        let report = json!({"candidates": {"sami": {"queries": 1250, "comparisons": 1250, "ties": 30,
            "raw": {"value": 0.68, "wilson": [0.62, 0.735], "bootstrap": [0.62, 0.73]}, "balanced": null,
            "controlled": {"value": 0.61, "bootstrap": [0.55, 0.67]},
            "principles": [part("brief", "principle")], "constitutions": []}},
            "paired": [{"one": "sami", "other": "sft", "difference": 0.12, "bootstrap": [0.02, 0.21], "better": 40, "worse": 20, "p": 0.0135}]});
        fs_err::write(&path, report.to_string()).unwrap();
        let shown = "
candidate  queries  ties  win rate  95%           controlled  95%
sami         1,250    30      68.0  [62.0, 73.5]        61.0  [55.0, 67.0]

candidate  principle  polarity    queries  win rate  95%           adherence  against
sami       brief      definition      120      70.0  [60.0, 78.0]       80.0     55.0

candidate  beside  difference  95%          better  worse       p
sami       sft           12.0  [2.0, 21.0]      40     20  0.0135
";
        assert_eq!(tables(&path), shown);
        assert_eq!(tables(&folder.path().join("gone")), "");
    }
}
