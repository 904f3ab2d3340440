//! What nodes came to, in the figures that people look for first.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::figures::{count, figure, plural};
use super::table::Table;
use crate::inspect::metric::{interval, is_of_candidate};
use crate::store::RunNode;

/// Metrics on a node's last line.
const LISTED: usize = 7;
/// Rows of the table at the end; beyond that it is no overview.
const ROWS: usize = 40;

/// Metrics that people look for, in the order in which they are shown.
const METRICS: &[&str] = &[
    "no_contrast",
    "win_rate",
    "adherence",
    "well_formed",
    "loss",
    "bound",
    "gap",
    "accuracy_row",
    "accuracy_column",
    "kl",
    "mean_length",
    "rows",
    "rows_reused",
    "dropped",
    "tokens",
];
/// Those of them that say how well it went: the columns of the table at the end.
const OUTCOMES: &[&str] =
    &["bound", "gap", "accuracy_row", "accuracy_column", "kl", "win_rate", "adherence", "well_formed", "mean_length"];

/// The metrics that matter, each with its name; win rates with their intervals.
pub(super) fn headline(metrics: &Map<String, Value>) -> Vec<String> {
    let mut shown = Vec::new();
    let reused = reuse(metrics);
    for wanted in METRICS {
        for (name, value) in metrics {
            let (stem, candidate) = name.split_once('.').map_or((name.as_str(), ""), |(stem, rest)| (stem, rest));
            // Of a figure that candidates have, the one without a candidate is that of one of them.
            let twice = candidate.is_empty() && metrics.keys().any(|other| is_of_candidate(other, stem));
            let told = name == "rows_reused" && reused.is_some();
            if stem == *wanted && !twice && !told && (candidate.is_empty() || *wanted != "dropped") {
                shown.push(format!("{name} {}", with_interval(metrics, name, value)));
            }
        }
    }
    if shown.is_empty() {
        let is_told = |name: &str| reused.is_some() && (name.ends_with("rows_asked") || name.ends_with("rows_reused"));
        let left = metrics.iter().filter(|(name, _)| !is_told(name));
        shown.extend(left.map(|(name, value)| format!("{name} {}", figure(value))));
    }
    // How much was not computed is told whatever else there is.
    shown.truncate(LISTED - usize::from(reused.is_some()));
    shown.extend(reused);
    shown
}

/// `reused 2,400 of 2,500 rows`, where it is known how many rows were asked for and how many of these were remembered.
fn reuse(metrics: &Map<String, Value>) -> Option<String> {
    let (asked, reused) = (metrics.get("rows_asked")?.as_u64()?, metrics.get("rows_reused")?.as_u64()?);
    let mut told = format!("reused {} of {}", count(reused), plural(asked, "row"));
    if let Some((reused, asked)) = metrics.get("judge.rows_reused").zip(metrics.get("judge.rows_asked")) {
        told.push_str(&format!(" and {} of {}", figure(reused), plural(asked.as_u64()?, "ruling")));
    }
    Some(told)
}

/// A metric's value with its interval, if it has one.
pub(super) fn with_interval(metrics: &Map<String, Value>, name: &str, value: &Value) -> String {
    let Some(ends) = interval(metrics, name) else { return figure(value) };
    let [low, high] = ends.map(|end| figure(&Value::from(end)));
    format!("{} ({low} to {high})", figure(value))
}

/// A table of the metrics that say how well it went: a row per node that has any, and per candidate.
pub(super) fn outcomes(nodes: &[RunNode]) -> Option<Table> {
    let mut table = Table::new(["node"].iter().chain(OUTCOMES).copied(), &(1..=OUTCOMES.len()).collect::<Vec<_>>());
    let mut rows = 0;
    for node in nodes.iter().filter(|node| node.artifact.is_some()) {
        let mut groups: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
        for (name, value) in &node.metrics {
            let (stem, candidate) = name.split_once('.').map_or((name.as_str(), ""), |(stem, rest)| (stem, rest));
            if OUTCOMES.contains(&stem) {
                groups.entry(candidate).or_default().insert(stem, with_interval(&node.metrics, name, value));
            }
        }
        // An only candidate's win rate is told of the node, too.
        if groups.len() > 1 && groups.get("").is_some_and(|figures| figures.keys().all(|name| *name == "win_rate")) {
            groups.remove("");
        }
        for (candidate, figures) in groups {
            if figures.keys().all(|name| *name == "mean_length") {
                continue;
            }
            let name = if candidate.is_empty() { node.name.clone() } else { format!("{}: {candidate}", node.name) };
            let cells = OUTCOMES.iter().map(|name| figures.get(name).cloned().unwrap_or_default());
            table.row([name].into_iter().chain(cells));
            rows += 1;
        }
    }
    (1..=ROWS).contains(&rows).then_some(table)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::screen::Screen;
    use super::*;

    fn metrics(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn a_line_has_the_metrics_that_matter() {
        let score =
            json!({"rows": 100, "accuracy_row": 0.75, "bound": 0.345_678, "bound_ceiling": 0.75, "dropped.x": 1});
        assert_eq!(headline(&metrics(score)), ["bound 0.3457", "accuracy_row 0.7500", "rows 100"]);
        let evaluate =
            json!({"win_rate.sami": 0.7, "win_rate_low.sami": 0.61, "win_rate_high.sami": 0.78, "adherence.sami": 0.8});
        assert_eq!(headline(&metrics(evaluate)), ["win_rate.sami 0.7000 (0.6100 to 0.7800)", "adherence.sami 0.8000"]);
        assert_eq!(headline(&metrics(json!({"lines": 3}))), ["lines 3"]);
        let reused = json!({"rows": 2490, "rows_asked": 2500, "rows_reused": 2400});
        assert_eq!(headline(&metrics(reused)), ["rows 2,490", "reused 2,400 of 2,500 rows"]);
        let judged = json!({"rows_asked": 4, "rows_reused": 2, "judge.rows_asked": 1, "judge.rows_reused": 0});
        assert_eq!(headline(&metrics(judged)), ["reused 2 of 4 rows and 0 of 1 ruling"]);
        assert_eq!(headline(&metrics(json!({"rows_reused": 2}))), ["rows_reused 2"], "of an older record");
    }

    #[test]
    fn the_table_at_the_end_has_a_row_per_node_and_candidate() {
        let node = |name: &str, value: Value| RunNode {
            name: name.into(),
            kind: "k".into(),
            state: "hit".into(),
            key: None,
            artifact: Some(crate::digest::Digest::of(b"")),
            seconds: 1.0,
            metrics: metrics(value),
        };
        let nodes = [
            node("generate@1", json!({"mean_length": 9.5, "rows": 3})),
            node("score@1", json!({"bound": 0.5, "mean_length": 9.5})),
            node(
                "evaluate",
                json!({"win_rate": 0.5, "win_rate.a": 0.5, "win_rate_low.a": 0.25, "win_rate_high.a": 0.75, "adherence.b": 1}),
            ),
        ];
        assert_eq!(
            outcomes(&nodes).unwrap().on(Screen::piped()),
            "node          bound                   win_rate  adherence  mean_length\n\
             score@1      0.5000                                              9.500\n\
             evaluate: a          0.5000 (0.2500 to 0.7500)\n\
             evaluate: b                                             1\n"
        );
        assert_eq!(outcomes(&nodes[..1]), None);
    }
}
