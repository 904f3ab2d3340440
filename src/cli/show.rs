//! `sami show`: a run with its nodes, or a node's latest record beside its earlier ones.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::figures::{bytes, clock, cut, figure, plural, seconds, some};
use super::find::{self, Found};
use super::page::Page;
use super::table::Table;
use super::{CommandResult, Context, DONE, breakdown, context, outcomes};
use crate::digest::Digest;
use crate::graph::key;
use crate::inspect::metric::is_end;
use crate::inspect::run;
use crate::shell::quoted;
use crate::store::{Index, NodeRecord, RunRecord, Store, StoreError, preview};

/// Results that stand side by side.
const SIDE_BY_SIDE: usize = 4;
/// Runs of the pipeline that are looked through for results of earlier runs.
const LOOKED_THROUGH: usize = 20;
/// Metrics of a node in a run's table.
const METRICS: usize = 4;
/// Widest value in the table of results.
const VALUE: usize = 24;

/// Shows a run or a node.
pub(super) fn run(context: &Context, what: &str) -> CommandResult {
    let (store, index) = context.open_existing()?;
    match find::run_or_node(&store, &index, what)? {
        Found::Run(record) => show_run(context, &record),
        Found::Node(record) => show_node(context, &store, &index, &record),
    }
}

fn show_run(context: &Context, run: &RunRecord) -> CommandResult {
    if context.json() {
        context::print_json(&json!({"run": run, "state": run::state(run), "seconds": run::took(run)}))?;
    } else {
        context::print(&run_page(run))?;
    }
    Ok(DONE)
}

fn run_page(run: &RunRecord) -> String {
    let mut page = Page::default();
    page.line("run", &format!("{}  of pipeline {} ({})", run.run, run.pipeline, run.file));
    let took = run::took(run).map_or_else(String::new, |took| format!(", took {}", seconds(took)));
    page.line("started", &format!("{}{took}, {}", clock(&run.started), run::state(run)));
    let params: Vec<_> = run.params.iter().map(|(name, value)| cut(&format!("{name} = {value}"), 60)).collect();
    page.flow("params", &params, " · ");
    if run.nodes.is_empty() {
        page.line("nodes", "told when a run ends; this one goes on still, or it was killed");
        return page.into_text();
    }
    let counts = run::counts(run).into_iter().zip(run::STATES).filter(|(count, _)| *count > 0);
    page.line("nodes", &counts.map(|(count, state)| format!("{count} {state}")).collect::<Vec<_>>().join(", "));
    page.append("\n");
    let mut table = Table::new(["node", "kind", "state", "seconds", "artifact", "metrics"], &[3]);
    for node in &run.nodes {
        let metrics = outcomes::headline(&node.metrics);
        // What did not run took no time in this run.
        let ran = node.state == "ran" || node.state == "failed";
        let took = if ran { format!("{:.2}", node.seconds) } else { String::new() };
        let artifact = node.artifact.map_or_else(String::new, |id| id.short());
        table.row([
            node.name.clone(),
            node.kind.clone(),
            node.state.clone(),
            took,
            artifact,
            some(&metrics, " · ", METRICS),
        ]);
    }
    page.append(&table.text());
    page.into_text()
}

fn show_node(context: &Context, store: &Store, index: &Index, record: &NodeRecord) -> CommandResult {
    let history = history(store, index, record)?;
    if context.json() {
        context::print_json(&json!({"record": record, "earlier": history.earlier}))?;
    } else {
        context::print(&node_page(store, index, record, &history)?)?;
    }
    Ok(DONE)
}

fn node_page(store: &Store, index: &Index, record: &NodeRecord, history: &History) -> Result<String, StoreError> {
    let mut page = Page::default();
    let files = store.files(&record.artifact).unwrap_or_default();
    let tables = files.get(breakdown::FILE).map(|path| breakdown::tables(path)).unwrap_or_default();
    page.record(store, index, record, !tables.is_empty());
    match store.manifest(&record.artifact) {
        Ok(manifest) => {
            let rows = preview(store, &record.artifact, 0)?.rows;
            let rows = rows.map_or_else(String::new, |rows| format!(", {}", plural(rows, "row")));
            let size = bytes(manifest.size());
            page.lines("artifact", [record.artifact.to_string(), format!("{}, {size}{rows}", manifest.kind)]);
        }
        Err(_) => page.line("artifact", &format!("{}  is not in the cache any more", record.artifact)),
    }
    let node = quoted(&record.node);
    if let Some(run) = &history.failed_in {
        page.line("since", &format!("failed in run {run}"));
    }
    page.line("more", &format!("sami cache show {} · sami logs {node}", record.artifact.short()));
    page.append(&tables);
    if history.earlier.is_empty() {
        page.line("earlier", "no other results");
    } else {
        page.append("\n");
        page.append(&side_by_side(record, &history.earlier));
    }
    Ok(page.into_text())
}

/// What a node has been through besides its latest result.
struct History {
    /// Records that it had under other keys, those of later runs first.
    earlier: Vec<NodeRecord>,
    /// The latest run that had it, if it failed there.
    failed_in: Option<String>,
}

fn history(store: &Store, index: &Index, latest: &NodeRecord) -> Result<History, context::Failure> {
    let runs = index.runs_of(&latest.pipeline, LOOKED_THROUGH);
    // Records of runs are large where there are many nodes: each is read once.
    let found = store.node_in_runs(&runs, &latest.node)?;
    let last = runs.iter().zip(&found).find_map(|(run, found)| found.as_ref().map(|(_, state)| (run, state)));
    let failed_in = last.filter(|(_, state)| *state == "failed").map(|(run, _)| run.clone());
    let used = found.into_iter().flatten().filter_map(|(key, _)| key);
    let mut seen: BTreeSet<Digest> = [latest.key].into();
    let mut records = Vec::new();
    for key in used.chain(index.keys_of_node(&latest.pipeline, &latest.node, LOOKED_THROUGH)) {
        if seen.insert(key) {
            records.extend(store.node(&key)?);
        }
    }
    Ok(History { earlier: records, failed_in })
}

/// A column per result, newest first: the fields and inputs that differ between them, and their metrics.
fn side_by_side(latest: &NodeRecord, earlier: &[NodeRecord]) -> String {
    let results: Vec<&NodeRecord> = std::iter::once(latest).chain(earlier).take(SIDE_BY_SIDE).collect();
    let headers = ["result".to_owned()].into_iter().chain(results.iter().map(|result| result.key.short()));
    let mut table = Table::new(headers, &(1..=results.len()).collect::<Vec<_>>());
    let mut row = |label: &str, value: &dyn Fn(&NodeRecord) -> String| {
        let cells: Vec<String> = results.iter().map(|result| value(result)).collect();
        table.row(std::iter::once(label.to_owned()).chain(fitted(&cells)));
    };
    row("run", &|result| result.run.clone());
    row("seconds", &|result| format!("{:.2}", result.seconds));
    row("artifact", &|result| result.artifact.short());
    let changes = earlier.iter().take(SIDE_BY_SIDE - 1).flat_map(|old| key::diff(&old.preimage, &latest.preimage));
    let paths: BTreeSet<String> = changes.map(|change| change.path).collect();
    for path in &paths {
        row(path, &|result| value_at(result, path));
    }
    let names = results.iter().flat_map(|result| result.metrics.keys());
    let names: BTreeSet<&String> = names.filter(|name| !is_end(name)).collect();
    for name in names {
        row(name, &|result| result.metrics.get(name).map_or_else(|| "-".to_owned(), figure));
    }
    let more = earlier.len() + 1 - results.len();
    let more = if more > 0 { format!("{more} more; `--json` has all\n") } else { String::new() };
    table.text() + &more
}

/// The part of a record's preimage that a change's path names.
fn value_at(record: &NodeRecord, path: &str) -> String {
    if let Some(field) = path.strip_prefix("input ") {
        return record.inputs.get(field).map_or_else(|| "-".to_owned(), Digest::short);
    }
    let nothing = Value::Null;
    let fields = record.preimage.get("fields").unwrap_or(&nothing);
    let value = if path == "version" || path == "kind" { record.preimage.get(path) } else { within(fields, path) };
    value.filter(|value| !value.is_null()).map_or_else(|| "-".to_owned(), Value::to_string)
}

/// The value at a path of names and `[places]`; names may hold dots themselves.
fn within<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    if path.is_empty() {
        return Some(value);
    }
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let rest = path.strip_prefix(name.as_str())?;
            within(value, rest.strip_prefix('.').unwrap_or(rest))
        }),
        Value::Array(items) => {
            let (place, rest) = path.strip_prefix('[')?.split_once(']')?;
            within(items.get(place.parse::<usize>().ok()?)?, rest.strip_prefix('.').unwrap_or(rest))
        }
        _ => None,
    }
}

/// Values that stand side by side, cut to what fits: long ones from a little before where they part.
fn fitted(values: &[String]) -> Vec<String> {
    let long = values.iter().any(|value| value.chars().count() > VALUE);
    let first = values.first().map(String::as_str).unwrap_or_default();
    let shared = |value: &String| first.chars().zip(value.chars()).take_while(|(a, b)| a == b).count();
    let start = values.iter().filter(|value| *value != "-").map(shared).min().unwrap_or(0).saturating_sub(VALUE / 4);
    let fit = |value: &String| match value.as_str() {
        value if long && start > 0 && value != "-" => {
            cut(&format!("…{}", value.chars().skip(start).collect::<String>()), VALUE)
        }
        value => cut(value, VALUE),
    };
    values.iter().map(fit).collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_run_is_a_table_of_its_nodes() {
        let (_folder, store, _) = sample::store();
        let run = store.run("20260102-000000-bbbb").unwrap().unwrap();
        let shown = "\
run       20260102-000000-bbbb  of pipeline toy (pipelines/toy.toml)
started   2026-01-02 00:00:00, took 2 m 05 s, ok
params    lr = 1e-6 · name = \"x\"
nodes     3 ran, 1 hit

node        kind      state  seconds  artifact      metrics
generate@1  generate  hit             f113093658be  rows 7 · tokens 12,345
train@1     finetune  ran       1.25  b55d84d05365  bound 0.1000 · kl 0.01000
generate@2  generate  ran       1.25  912c4df25f5a  rows 7 · tokens 24,690
train@2     finetune  ran       1.25  e381ca5c1018  bound 0.2000 · kl 0.01000
";
        assert_eq!(run_page(&run), shown);
        let killed = RunRecord { finished: None, ok: None, nodes: Vec::new(), ..run };
        assert!(run_page(&killed).contains("started   2026-01-02 00:00:00, unfinished\n"));
    }

    #[test]
    fn a_node_stands_beside_its_earlier_results() {
        let (_folder, store, index) = sample::store();
        let Found::Node(record) = find::run_or_node(&store, &index, "train").unwrap() else { panic!("no node") };
        let page = node_page(&store, &index, &record, &history(&store, &index, &record).unwrap()).unwrap();
        let shown = "\
node      train@2  of pipeline toy, kind finetune
key       47ba4569a19642e438b0f7f4fa2a3523204d662c873ad51b23ab968860077b86
made      2026-01-02 00:00:01 in 1.25 s on here (cpu), sami 0.1.0
again     bit-exact on cpu
run       20260102-000000-bbbb attempt 1
inputs    examples = 912c4df25f5a  responses of generate@2
recipe    optimizer = {\"lr\":1e-6,\"name\":\"adamw\"}
          steps = 4
metrics   bound 0.2000 · kl 0.01000
artifact  e381ca5c1018bb7df4b259119791df06bdc4da7f8468ba39a0b8b315e23b3b58
          model, 26 B
more      sami cache show e381ca5c1018 · sami logs train@2

result                  47ba4569a196          811748f4b418
run             20260102-000000-bbbb  20260101-000000-aaaa
seconds                         1.25                  1.25
artifact                e381ca5c1018          ecd6b8d59004
input examples          912c4df25f5a          ee28cb7155c3
optimizer.lr                    1e-6                  5e-7
bound                         0.2000                0.2000
kl                           0.01000               0.01000
";
        assert_eq!(page, shown);
    }

    #[test]
    fn long_values_are_shown_where_they_part() {
        let value = |end: &str| format!("\"{}{end}\"", "word ".repeat(40));
        assert_eq!(fitted(&[value("one"), "-".to_owned(), value("two")]), ["… word one\"", "-", "… word two\""]);
        assert_eq!(fitted(&["x".repeat(30), "y".to_owned()]), [format!("{}…", "x".repeat(23)), "y".to_owned()]);
        let fields = json!({"a.b": {"c": [1, {"d": 2}]}, "a": 3});
        let at = |path| within(&fields, path).map(Value::to_string);
        assert_eq!(
            [at("a.b.c[1].d"), at("a"), at("a.b.c[0]"), at("x"), at("a.b.c[9]")].map(Option::unwrap_or_default),
            ["2", "3", "1", "", ""]
        );
    }
}
