//! Two runs: params, nodes that came and went, keys that changed, metrics, what it took.

use std::collections::{BTreeSet, HashMap};

use super::super::figures::{clock, count, plural, seconds};
use super::super::screen::Screen;
use super::super::table::Table;
use super::metrics;
use crate::inspect::diff::{NodeDiff, RunDiff};
use crate::inspect::run;
use crate::store::RunNode;

/// Nodes that are shown of each kind of difference.
const NODES: usize = 30;
/// Changes of a node that are shown.
const CHANGES: usize = 6;
/// Metrics that are shown.
const METRICS: usize = 40;

/// Draws it.
pub(super) fn text(diff: &RunDiff, screen: Screen) -> String {
    let mut page = Vec::new();
    for (label, run) in ["before", "after"].iter().zip(&diff.runs) {
        let took = run::took(run).map_or_else(String::new, |took| format!(", took {}", seconds(took)));
        let line =
            format!("{label:<8}{}  of {}, {}{took}, {}", run.run, run.pipeline, clock(&run.started), run::state(run));
        page.push(screen.fit(&line));
    }
    let parts = [
        (diff.same, "the same"),
        (diff.changed.len(), "not the same"),
        (diff.added.len(), "added"),
        (diff.removed.len(), "removed"),
    ];
    let told = parts.iter().filter(|(number, _)| *number > 0);
    let told: Vec<String> = told.map(|(number, word)| format!("{} {word}", count(*number as u64))).collect();
    page.push(format!("nodes   {}", if told.is_empty() { "none".to_owned() } else { told.join(", ") }));
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            page.extend([String::new(), screen.bold(title)]);
            page.extend(lines);
        }
    };
    section("params", diff.params.iter().flat_map(|change| screen.change(change, 2)).collect());
    for (title, names) in [("added", &diff.added), ("removed", &diff.removed)] {
        section(title, some(names.iter().map(|name| vec![screen.fit(&format!("  {name}"))])));
    }
    let (first, follow): (Vec<_>, Vec<_>) = diff.changed.iter().partition(|node| node.first);
    section("changed first", some(first.iter().map(|node| node_lines(node, screen))));
    let named = if first.is_empty() { "changed" } else { "changed by what they take" };
    section(named, some(follow.iter().map(|node| node_lines(node, screen))));
    let told = diff.changed.iter().flat_map(|node| node.metrics.iter().map(|change| (node.node.as_str(), change)));
    section("metrics", metrics::table(told, METRICS).lines().map(|line| screen.fit(&format!("  {line}"))).collect());
    section("what it took", took(diff).lines().map(|line| screen.fit(&format!("  {line}"))).collect());
    page.join("\n") + "\n"
}

/// The first ones, and how many more there are.
fn some(parts: impl ExactSizeIterator<Item = Vec<String>>) -> Vec<String> {
    let more = parts.len().saturating_sub(NODES);
    let mut lines: Vec<String> = parts.take(NODES).flatten().collect();
    if more > 0 {
        lines.push(format!("  … {} more; `--json` has all", count(more as u64)));
    }
    lines
}

fn node_lines(node: &NodeDiff, screen: Screen) -> Vec<String> {
    let from: BTreeSet<&str> = node.from.values().map(String::as_str).collect();
    if !node.first && !from.is_empty() {
        let inputs: Vec<String> = node.from.iter().map(|(input, from)| format!("input {input} of {from}")).collect();
        return vec![screen.fit(&format!("  {}: {}", node.node, inputs.join(", ")))];
    }
    let what = match (&node.changes[..], node.before.key == node.after.key) {
        ([], true) if node.before.artifact == node.after.artifact => ": the same artifact, other metrics".to_owned(),
        ([], true) => ": another artifact from the same inputs and fields".to_owned(),
        ([], false) => {
            let [before, after] = [&node.before, &node.after].map(|of| &of.state);
            format!(": no record of both ({before}, then {after})")
        }
        _ => String::new(),
    };
    let mut lines = vec![screen.fit(&format!("  {}{what}", node.node))];
    lines.extend(node.changes.iter().take(CHANGES).flat_map(|change| screen.change(change, 4)));
    if node.changes.len() > CHANGES {
        lines.push(format!("    … {}", plural((node.changes.len() - CHANGES) as u64, "more change")));
    }
    lines
}

/// A line for each node that ran in one of the runs, or that ended in another state.
fn took(diff: &RunDiff) -> String {
    let [before, after] = &diff.runs;
    let old: HashMap<&str, &RunNode> = before.nodes.iter().map(|node| (node.name.as_str(), node)).collect();
    let mut table = Table::new(["node", "before", "took", "after", "took"], &[2, 4]);
    let mut more = 0;
    let told = |node: &RunNode| {
        if node.state == "ran" || node.state == "failed" { seconds(node.seconds) } else { String::new() }
    };
    let mut listed = 0;
    for node in &after.nodes {
        let Some(was) = old.get(node.name.as_str()) else { continue };
        if was.state == "hit" && node.state == "hit" {
            continue;
        }
        listed += 1;
        if listed > NODES {
            more += 1;
            continue;
        }
        table.row([node.name.clone(), was.state.clone(), told(was), node.state.clone(), told(node)]);
    }
    let told = if table.is_empty() { String::new() } else { table.text() };
    if more > 0 { format!("{told}… {} more\n", count(more)) } else { told }
}

#[cfg(test)]
mod tests {
    use super::super::super::sample;
    use super::*;
    use crate::inspect::diff;

    #[test]
    fn two_runs_are_told_from_what_changed_first() {
        let (_folder, store, _) = sample::store();
        let run = |id: &str| store.run(id).unwrap().unwrap();
        let diff = diff::runs(&store, run("20260101-000000-aaaa"), run("20260102-000000-bbbb")).unwrap();
        let shown = "\
before  20260101-000000-aaaa  of toy, 2026-01-01 00:00:00, took 2 m 05 s, ok
after   20260102-000000-bbbb  of toy, 2026-01-02 00:00:00, took 2 m 05 s, ok
nodes   4 not the same

params
  lr 5e-7 -> 1e-6

changed first
  generate@1: another artifact from the same inputs and fields
  train@1
    optimizer.lr 5e-7 -> 1e-6
    input examples 9d66907c7eda -> f113093658be
  train@2
    optimizer.lr 5e-7 -> 1e-6
    input examples ee28cb7155c3 -> 912c4df25f5a

changed by what they take
  generate@2: input model of train@1

metrics
  node     metric  before   after  change
  train@1  bound   0.1000  0.1000   +5e-7
  train@2  bound   0.2000  0.2000   +5e-7

what it took
  node        before    took  after    took
  generate@1  ran     1.25 s  hit
  train@1     ran     1.25 s  ran    1.25 s
  generate@2  ran     1.25 s  ran    1.25 s
  train@2     ran     1.25 s  ran    1.25 s
";
        assert_eq!(text(&diff, Screen::plain(100)), shown);
    }
}
