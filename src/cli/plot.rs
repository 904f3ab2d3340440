//! `sami plot`: figures as curves in the terminal.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::{Map, Value, json};

use super::context::Failure;
use super::metrics;
use super::screen::Screen;
use super::{CommandResult, Context, DONE, context, find, terminal};
use crate::diag::{Diagnostic, did_you_mean};
use crate::inspect::name::Name;
use crate::inspect::training::Training;
use crate::plot::text::{Canvas, Series, curves, told};
use crate::store::{RunNode, RunRecord, Selection, Store};

/// Rows of a curve.
const HEIGHT: usize = 12;
/// Widest that a curve is drawn; wider ones are hard to follow.
const WIDEST: usize = 120;
/// Runs that are looked through.
const RUNS: usize = 100;
/// Values that are told of a curve where it is not drawn.
const SAMPLES: usize = 10;
/// What is drawn if nothing is named: the first two of them that there are.
const FIRST: [&str; 8] =
    ["loss", "bound", "win_rate", "adherence", "gap", "accuracy_row", "well_formed", "mean_length"];

/// Arguments of `plot`.
#[derive(Debug, Clone, Args)]
pub struct PlotArgs {
    /// Node, with its iterations and cells
    pub node: String,
    /// Metrics, such as `loss`, `win_rate.sami`, or `win_rate` for all candidates (default: the first two of those people look for)
    #[arg(value_name = "METRIC")]
    pub metrics: Vec<String>,
    /// Run id, or the beginning of one (default: the latest run that has figures of the node)
    #[arg(long)]
    pub run: Option<String>,
    /// Rows of a curve
    #[arg(long, value_name = "N", default_value_t = HEIGHT, value_parser = height)]
    pub height: usize,
}

fn height(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|rows| (2..=200).contains(rows)).ok_or_else(|| "give a number from 2 to 200".to_owned())
}

/// Curves of a metric.
#[derive(Debug, Clone, PartialEq)]
struct Drawn {
    metric: String,
    /// What x counts: `step`, `iteration` or `run`.
    over: &'static str,
    series: Vec<Series>,
}

/// What a run has of a node.
#[derive(Debug, Default)]
struct Figures {
    /// Trainings by node.
    trained: Vec<(String, Training)>,
    /// Nodes with what they ended with.
    made: Vec<RunNode>,
    /// See [`Figures::earlier()`].
    earlier: OnceCell<Vec<Vec<RunNode>>>,
}

/// Draws figures of a node.
pub(super) fn run(context: &Context, args: &PlotArgs) -> CommandResult {
    let store = Store::open_existing(&context.cache_directory(None)?)?;
    let (record, figures) = find_figures(&store, args)?;
    let wanted = match &args.metrics[..] {
        [] => usual(&figures),
        metrics => metrics.to_vec(),
    };
    let mut drawn = Vec::new();
    for metric in &wanted {
        let of_metric = figures.drawn(&store, &record, &args.node, metric)?;
        drawn.push(of_metric.ok_or_else(|| no_metric(&figures, &args.node, metric))?);
    }
    if drawn.is_empty() {
        let fault = Diagnostic::error("cli::no-metric", format!("node `{}` has no figures to draw", args.node));
        return Err(fault.help(format!("`sami metrics {}` lists what the run has", record.run)).into());
    }
    if context.json() {
        context::print_json(&json!({"run": record.run, "curves": drawn.iter().map(as_json).collect::<Vec<_>>()}))?;
        return Ok(DONE);
    }
    context::print(&text(&record, &drawn, args.height, Screen::of_stdout()))?;
    Ok(DONE)
}

fn as_json(drawn: &Drawn) -> Value {
    let series = drawn.series.iter().map(|series| json!({"name": series.name, "points": series.points}));
    json!({"metric": drawn.metric, "over": drawn.over, "series": series.collect::<Vec<_>>()})
}

fn text(record: &RunRecord, drawn: &[Drawn], height: usize, screen: Screen) -> String {
    let mut text = String::new();
    for Drawn { metric, over, series } in drawn {
        let of = match &series[..] {
            [one] => format!(" of {}", one.name),
            _ => String::new(),
        };
        let run = if *over == "run" { "the latest runs".to_owned() } else { format!("run {}", record.run) };
        let title = format!("{metric}{of} by {over}, {run}");
        text.push_str(&format!("{}\n", screen.bold(&title)));
        if screen.plain {
            series.iter().flat_map(|series| told(series, SAMPLES)).for_each(|line| text.push_str(&format!("{line}\n")));
        } else {
            let width = screen.width.min(WIDEST);
            let canvas = Canvas { width, height, letters: terminal::letters() };
            let lines = curves(series, canvas);
            let none = vec!["no value of it is a number".to_owned()];
            (if lines.is_empty() { none } else { lines }).iter().for_each(|line| text.push_str(&format!("{line}\n")));
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

/// The latest run, or the one named, with figures of the node.
fn find_figures(store: &Store, args: &PlotArgs) -> Result<(RunRecord, Figures), Failure> {
    if let Some(run) = &args.run {
        let record = find::run(store, run)?;
        let figures = Figures::of(store, &record, &args.node)?;
        if figures.is_empty() {
            return Err(metrics::no_node(&record, &metrics::nodes(store, &record)?, &args.node));
        }
        return Ok((record, figures));
    }
    for id in store.run_ids()?.iter().rev().take(RUNS) {
        let Some(record) = store.run(id)? else { continue };
        let figures = Figures::of(store, &record, &args.node)?;
        if !figures.is_empty() {
            return Ok((record, figures));
        }
    }
    let fault = Diagnostic::error("cli::unknown", format!("no run has figures of a node `{}`", args.node));
    Err(find::similar(fault, store, &args.node)?.into())
}

impl Figures {
    fn of(store: &Store, record: &RunRecord, node: &str) -> Result<Self, Failure> {
        let mut made = metrics::nodes(store, record)?;
        made.retain(|made| Selection::is_of(&made.name, node));
        let of = |made: &RunNode| Some((made.name.clone(), Training::of_artifact(store, &made.artifact?)?));
        let mut trained: Vec<_> = made.iter().filter_map(of).collect();
        // Those that go on, or ended without a result, are drawn as far as they told.
        if record.finished.is_none() || made.is_empty() {
            let known: BTreeSet<String> = made.iter().map(|made| made.name.clone()).collect();
            let told = Training::of_events(store, &record.run).into_iter();
            trained.extend(told.filter(|(name, _)| Selection::is_of(name, node) && !known.contains(name)));
        }
        Ok(Self { trained, made, earlier: OnceCell::new() })
    }

    fn is_empty(&self) -> bool {
        self.trained.iter().all(|(_, trained)| trained.figures.is_empty())
            && self.made.iter().all(|made| made.metrics.is_empty())
    }

    /// The curves of a metric; `None` if it is not there.
    fn drawn(&self, store: &Store, record: &RunRecord, node: &str, metric: &str) -> Result<Option<Drawn>, Failure> {
        let of_steps = |(name, trained): &(String, Training)| {
            let points = trained.figures.get(metric)?.clone();
            Some(Series { name: name.clone(), points })
        };
        let series: Vec<Series> = self.trained.iter().filter_map(of_steps).collect();
        let drawn = |over, series| Some(Drawn { metric: metric.to_owned(), over, series });
        if !series.is_empty() {
            return Ok(drawn("step", series));
        }
        let iterations = self.made.iter().map(|made| (Name::of(&made.name).iteration, made));
        let series = by_cell(iterations.filter_map(|(at, made)| Some((at? as f64, made))), metric);
        if series.iter().any(|series| series.points.len() > 1) {
            return Ok(drawn("iteration", series));
        }
        if !self.made.iter().any(|made| !values(&made.metrics, metric).is_empty()) {
            return Ok(None);
        }
        // One value alone: those of earlier runs beside it.
        let has = |made: &&Vec<RunNode>| made.iter().any(|made| !values(&made.metrics, metric).is_empty());
        let earlier = self.earlier(store, record, node)?.iter().filter(has).enumerate();
        let runs = earlier.flat_map(|(at, made)| made.iter().map(move |made| (at as f64 + 1.0, made)));
        Ok(drawn("run", by_cell(runs, metric)))
    }

    /// What the latest runs of the pipeline, up to this one, have of the node; read when it is first asked for.
    fn earlier(&self, store: &Store, record: &RunRecord, node: &str) -> Result<&[Vec<RunNode>], Failure> {
        if let Some(earlier) = self.earlier.get() {
            return Ok(earlier);
        }
        let ids = store.run_ids()?;
        let until = ids.iter().position(|id| *id == record.run).map_or(ids.len(), |place| place + 1);
        let mut earlier = Vec::new();
        for id in &ids[until.saturating_sub(RUNS)..until] {
            let Some(run) = store.run(id)?.filter(|run| run.pipeline == record.pipeline) else { continue };
            let mut made = metrics::nodes(store, &run)?;
            made.retain(|made| Selection::is_of(&made.name, node));
            earlier.push(made);
        }
        Ok(self.earlier.get_or_init(|| earlier))
    }

    /// Names of all metrics.
    fn names(&self) -> BTreeSet<&str> {
        let of_steps = self.trained.iter().flat_map(|(_, trained)| trained.figures.keys());
        let of_nodes = self.made.iter().flat_map(|made| made.metrics.keys());
        of_steps.chain(of_nodes).map(String::as_str).collect()
    }
}

/// Values of a metric, of that name or of all candidates that have it, by what tells them apart.
fn values(metrics: &Map<String, Value>, metric: &str) -> Vec<(String, f64)> {
    if let Some(value) = metrics.get(metric) {
        return vec![(String::new(), number(value))];
    }
    let of_candidates = metrics.iter().filter_map(|(name, value)| {
        let candidate = name.strip_prefix(metric)?.strip_prefix('.')?;
        Some((candidate.to_owned(), number(value)))
    });
    of_candidates.collect()
}

/// Curves over what x is: one for each cell and candidate.
fn by_cell<'a>(made: impl Iterator<Item = (f64, &'a RunNode)>, metric: &str) -> Vec<Series> {
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (x, made) in made {
        let name = Name::of(&made.name).family();
        for (candidate, value) in values(&made.metrics, metric) {
            let name = if candidate.is_empty() { name.clone() } else { format!("{name}: {candidate}") };
            series.entry(name).or_default().push((x, value));
        }
    }
    let sorted = series.into_iter().map(|(name, mut points)| {
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        Series { name, points }
    });
    sorted.collect()
}

/// A value as a number; what is none leaves a gap.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// What people look for first.
fn usual(figures: &Figures) -> Vec<String> {
    let names = figures.names();
    let is_there = |wanted: &&str| {
        names.iter().any(|name| name == wanted || name.strip_prefix(*wanted).is_some_and(|rest| rest.starts_with('.')))
    };
    let mut usual: Vec<String> = FIRST.iter().copied().filter(is_there).take(2).map(ToOwned::to_owned).collect();
    if usual.is_empty() {
        usual.extend(names.iter().take(2).map(|name| (*name).to_owned()));
    }
    usual
}

fn no_metric(figures: &Figures, node: &str, metric: &str) -> Failure {
    let names = figures.names();
    let fault = Diagnostic::error("cli::no-metric", format!("node `{node}` has no metric `{metric}`"));
    let all = format!("there are {}", names.iter().copied().collect::<Vec<_>>().join(", "));
    let help = match did_you_mean(metric, names.iter().copied()) {
        Some(near) => format!("perhaps `{near}` is meant; {all}"),
        None => all,
    };
    fault.help(help).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str, metrics: Value) -> RunNode {
        let metrics = metrics.as_object().cloned().unwrap_or_default();
        let [name, kind, state] = [name, "k", "ran"].map(str::to_owned);
        RunNode { name, kind, state, key: None, artifact: None, seconds: 0.0, metrics }
    }

    #[test]
    fn iterations_are_one_curve_and_cells_and_candidates_are_several() {
        let all = [
            made("evaluate@2", json!({"win_rate.a": 0.75, "win_rate.b": "nan", "win_rate_low.a": 0.1})),
            made("evaluate@1", json!({"win_rate.a": 0.5})),
            made("evaluate@1[lr=1]", json!({"win_rate.a": 0.25})),
        ];
        let of = |made: &RunNode| Name::of(&made.name).iteration.unwrap_or(0) as f64;
        let series = by_cell(all.iter().map(|made| (of(made), made)), "win_rate");
        let told: Vec<(&str, usize)> =
            series.iter().map(|series| (series.name.as_str(), series.points.len())).collect();
        assert_eq!(told, [("evaluate: a", 2), ("evaluate: b", 1), ("evaluate[lr=1]: a", 1)]);
        assert_eq!(series[0].points, [(1.0, 0.5), (2.0, 0.75)]);
        assert!(series[1].points[0].1.is_nan());
        assert_eq!(by_cell(all.iter().map(|made| (of(made), made)), "win_rate.a").len(), 2);
    }

    #[test]
    fn what_people_look_for_is_drawn_first() {
        let usual = |metrics: Value| usual(&Figures { made: vec![made("a", metrics)], ..Figures::default() });
        assert_eq!(usual(json!({"win_rate.a": 0.5, "loss": 1, "rows": 3})), ["loss", "win_rate"]);
        assert_eq!(usual(json!({"rows": 3})), ["rows"]);
        assert!(usual(json!({})).is_empty());
        let figures = Figures { made: vec![made("a", json!({"loss": 1}))], ..Figures::default() };
        let fault = no_metric(&figures, "a", "los");
        assert_eq!(fault.diagnostics[0].help, ["perhaps `loss` is meant; there are loss"]);
    }
}
