//! `sami metrics`: the figures of a run for other programs, and for the eye.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Map, Value, json};

use super::context::Failure;
use super::figures::figure;
use super::table::Table;
use super::{CommandResult, Context, DONE, context, find};
use crate::diag::{Diagnostic, did_you_mean};
use crate::inspect::run::Account;
use crate::inspect::training::Training;
use crate::shell::quoted;
use crate::store::{RunNode, RunRecord, Selection, Store, StoreError};

/// Rows of the table; a run may have a hundred thousand.
const ROWS: usize = 1000;

/// Arguments of `metrics`.
#[derive(Debug, Clone, Args)]
pub struct MetricsArgs {
    /// Run id, or the beginning of one (default: the latest run)
    pub run: Option<String>,
    /// Only this node, with its iterations and cells (repeatable)
    #[arg(long, value_name = "NODE")]
    pub node: Vec<String>,
    /// Only metrics of this name, for all candidates (repeatable)
    #[arg(long, value_name = "NAME")]
    pub metric: Vec<String>,
    /// Those of each step of trainings instead of those that nodes ended with
    #[arg(long)]
    pub steps: bool,
    /// Comma-separated values, with a line of names
    #[arg(long, conflicts_with = "jsonl")]
    pub csv: bool,
    /// An object per line
    #[arg(long)]
    pub jsonl: bool,
}

/// A figure.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub(super) node: String,
    pub(super) kind: String,
    /// Of those of a step.
    pub(super) step: Option<u64>,
    pub(super) metric: String,
    pub(super) value: Value,
}

/// Lists figures of a run.
pub(super) fn run(context: &Context, args: &MetricsArgs) -> CommandResult {
    let store = Store::open_existing(&context.cache_directory(None)?)?;
    let record = find::run_or_latest(&store, args.run.as_deref())?;
    let made = nodes(&store, &record)?;
    let figures = figures(&store, &record, &made, args)?;
    let cells = |figure: &Figure| {
        let step = figure.step.map_or(Value::Null, Value::from);
        let Figure { node, kind, metric, value, .. } = figure;
        [json!(record.run), json!(record.pipeline), json!(node), json!(kind), step, json!(metric), value.clone()]
    };
    let names = ["run", "pipeline", "node", "kind", "step", "metric", "value"];
    let object = |figure: &Figure| {
        let fields = names.iter().map(|name| (*name).to_owned()).zip(cells(figure));
        Value::Object(fields.filter(|(name, value)| name != "step" || !value.is_null()).collect())
    };
    if context.json() {
        context::print_json(&figures.iter().map(object).collect::<Vec<_>>())?;
    } else if args.jsonl {
        context::write_out(|stdout| figures.iter().try_for_each(|figure| writeln!(stdout, "{}", object(figure))))?;
    } else if args.csv {
        context::write_out(|stdout| {
            let mut lines = csv::Writer::from_writer(stdout);
            lines.write_record(names)?;
            for figure in &figures {
                let text = |value: &Value| match value {
                    Value::Null => String::new(),
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                lines.write_record(cells(figure).iter().map(text))?;
            }
            lines.flush()
        })?;
    } else {
        context::print(&table(&figures, args))?;
    }
    Ok(DONE)
}

fn table(figures: &[Figure], args: &MetricsArgs) -> String {
    if figures.is_empty() {
        let what = if args.steps { "no node of it was trained" } else { "no node of it has metrics" };
        return format!("{what}\n");
    }
    let mut table = Table::new(["node", "step", "metric", "value"], &[1, 3]);
    for told in figures.iter().take(ROWS) {
        let step = told.step.map_or_else(String::new, |step| step.to_string());
        table.row([told.node.clone(), step, told.metric.clone(), figure(&told.value)]);
    }
    let more = figures.len().saturating_sub(ROWS);
    let more = if more > 0 { format!("{more} more; `--csv` and `--jsonl` have all\n") } else { String::new() };
    table.text() + &more
}

/// The nodes of a run: of its record or, while it goes on or after it was killed, those with results that it has told of.
pub(super) fn nodes(store: &Store, record: &RunRecord) -> Result<Vec<RunNode>, StoreError> {
    if !record.nodes.is_empty() {
        return Ok(record.nodes.clone());
    }
    let mut nodes = Account::with(store, record.clone())?.run.nodes;
    nodes.retain(|node| matches!(node.state.as_str(), "ran" | "hit"));
    Ok(nodes)
}

fn figures(store: &Store, record: &RunRecord, made: &[RunNode], args: &MetricsArgs) -> Result<Vec<Figure>, Failure> {
    for wanted in &args.node {
        if !made.iter().any(|made| Selection::is_of(&made.name, wanted)) {
            return Err(no_node(record, made, wanted));
        }
    }
    let wanted_metric = |metric: &str| {
        let stem = metric.split_once('.').map_or(metric, |(stem, _)| stem);
        args.metric.is_empty() || args.metric.iter().any(|wanted| wanted == metric || wanted == stem)
    };
    let mut figures = Vec::new();
    let mut add = |made: &RunNode, step: Option<u64>, metrics: &Map<String, Value>| {
        for (metric, value) in metrics.iter().filter(|(metric, _)| wanted_metric(metric)) {
            let (node, kind) = (made.name.clone(), made.kind.clone());
            figures.push(Figure { node, kind, step, metric: metric.clone(), value: value.clone() });
        }
    };
    for made in made
        .iter()
        .filter(|made| args.node.is_empty() || args.node.iter().any(|node| Selection::is_of(&made.name, node)))
    {
        if args.steps {
            let trained = made.artifact.and_then(|artifact| Training::of_artifact(store, &artifact));
            let mut steps: BTreeMap<u64, Map<String, Value>> = BTreeMap::new();
            for (name, points) in trained.iter().flat_map(|trained| &trained.figures) {
                for (step, value) in points {
                    // What is no number is null.
                    steps.entry(*step as u64).or_default().insert(name.clone(), Value::from(*value));
                }
            }
            steps.iter().for_each(|(step, metrics)| add(made, Some(*step), metrics));
        } else {
            add(made, None, &made.metrics);
        }
    }
    Ok(figures)
}

/// That a run has no such node, and which it may be.
pub(super) fn no_node(record: &RunRecord, made: &[RunNode], wanted: &str) -> Failure {
    let fault = Diagnostic::error("cli::unknown", format!("run {} has no results of a node `{wanted}`", record.run));
    let near = did_you_mean(wanted, made.iter().map(|made| made.name.as_str()));
    let help = match near {
        Some(near) => format!("perhaps `{near}` is meant; `sami show {}` lists them", record.run),
        None => format!("`sami show {}` lists them; `sami runs` lists other runs", quoted(&record.run)),
    };
    fault.help(help).into()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn nodes_are_meant_by_name_or_by_what_they_are_copies_of() {
        for (name, meant) in [("a@2", true), ("a[lr=1]", true), ("a", true), ("ab", false), ("b@a", false)] {
            assert_eq!(Selection::is_of(name, "a"), meant, "{name}");
        }
        assert!(Selection::is_of("a@2[lr=1]", "a@2") && !Selection::is_of("a@20", "a@2"));
    }

    #[test]
    fn figures_are_those_of_the_run_and_what_is_absent_is_told() {
        let (_folder, store, _) = sample::store();
        let record = find::run(&store, "20260102-000000-bbbb").unwrap();
        let made = nodes(&store, &record).unwrap();
        let args = MetricsArgs { run: None, node: vec![], metric: vec![], steps: false, csv: false, jsonl: false };
        let all = figures(&store, &record, &made, &args).unwrap();
        let metrics = made.iter().map(|made| made.metrics.len()).sum::<usize>();
        assert!(metrics > 0 && all.len() == metrics, "{all:?}");
        let one = MetricsArgs { metric: vec![all[0].metric.clone()], ..args.clone() };
        assert!(figures(&store, &record, &made, &one).unwrap().iter().all(|figure| figure.metric == all[0].metric));
        let none = MetricsArgs { node: vec!["nobody".to_owned()], ..args };
        assert_eq!(figures(&store, &record, &made, &none).unwrap_err().code, super::super::USAGE);
    }
}
