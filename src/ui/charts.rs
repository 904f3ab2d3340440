//! Which pictures tell how runs went: win rates, figures over iterations, curves of training. Run page, comparison and report show
//! the same ones.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use minijinja::Value;
use serde_json::Value as Json;

use crate::inspect::evaluation::{Evaluation, FILE, Part, Rate};
use crate::inspect::metric::{self, Metric};
use crate::inspect::name::Name;
use crate::inspect::training::{FIGURES, Training};
use crate::plot::bars::{Bar, Bars, Group};
use crate::plot::curve::{Curves, Level, Point, Series};
use crate::plot::svg::swatch;
use crate::store::{RunNode, RunRecord, Store};

/// Series of a picture at most; nodes of a family beyond that are told by name only.
const SERIES: usize = 16;
/// Parts of an evaluation that a picture shows.
const PARTS: usize = 16;

/// A run and what it is called in pictures.
#[derive(Debug, Clone, Copy)]
pub(super) struct Labelled<'a> {
    /// Empty where it is the only one.
    pub(super) label: &'a str,
    /// The run, its nodes as far as they are known.
    pub(super) run: &'a RunRecord,
}

/// A picture for a template.
pub(super) fn safe(svg: String) -> Value {
    Value::from_safe_string(svg)
}

/// A name in a legend: its line, and itself.
pub(super) fn legend<'a>(names: impl Iterator<Item = (usize, &'a str)>) -> Value {
    let entry = |(look, name): (usize, &str)| minijinja::context! { swatch => safe(swatch(look)), name };
    names.map(entry).collect()
}

/// The rates of every candidate of every evaluation, with their intervals; none where nothing was judged.
pub(super) fn win_rates(runs: &[Labelled<'_>]) -> Option<Bars> {
    let mut groups: IndexMap<String, Vec<Bar>> = IndexMap::new();
    for (at, labelled) in runs.iter().enumerate() {
        for node in &labelled.run.nodes {
            let rates = metric::listed(&node.metrics).into_iter().filter(|metric| metric.stem() == "win_rate");
            for rate in rates {
                let (group, label, look) = match (labelled.label, rate.candidate()) {
                    ("", candidate) => (node.name.clone(), candidate.to_owned(), 0),
                    (run, "") => (node.name.clone(), run.to_owned(), at),
                    (run, candidate) => (format!("{}: {candidate}", node.name), run.to_owned(), at),
                };
                let label = if label.is_empty() { "win rate".to_owned() } else { label };
                let bar = Bar { label, value: rate.number(), interval: rate.interval, look };
                groups.entry(group).or_default().push(bar);
            }
        }
    }
    let groups: Vec<Group> = groups.into_iter().map(|(name, bars)| Group { name, bars }).collect();
    rates("Win rate, with 95% intervals", groups)
}

fn rates(title: &str, groups: Vec<Group>) -> Option<Bars> {
    let groups: Vec<Group> = groups.into_iter().filter(|group| !group.bars.is_empty()).collect();
    let reference = Some(("as good as the other".to_owned(), 0.5));
    (!groups.is_empty()).then(|| Bars { title: title.to_owned(), reference, groups })
}

/// The last evaluation of a run whose figures are still in the cache, and the node that made it.
pub(super) fn last_evaluation<'a>(store: &Store, run: &'a RunRecord) -> Option<(&'a RunNode, Evaluation)> {
    run.nodes.iter().rev().filter(|node| node.kind == "evaluate").find_map(|node| {
        let files = store.files(node.artifact.as_ref()?).ok()?;
        Some((node, Evaluation::read(files.get(FILE)?)?))
    })
}

/// What else an evaluation found: rates with length taken out, and rates by principle.
pub(super) fn evaluation(node: &str, found: &Evaluation) -> Vec<Bars> {
    let bar = |label: &str, rate: Option<Rate>, look: usize| {
        let rate = rate?;
        Some(Bar { label: label.to_owned(), value: rate.value.unwrap_or(f64::NAN), interval: rate.interval(), look })
    };
    let lengths = found.candidates.iter().map(|(name, rates)| Group {
        name: name.clone(),
        bars: [
            ("all", rates.raw, 0),
            ("longer and shorter alike", rates.balanced, 1),
            ("at equal length", rates.controlled, 2),
        ]
        .into_iter()
        .filter_map(|(label, rate, look)| bar(label, rate, look))
        .collect(),
    });
    let part = |part: &Part| {
        let value = part.win_rate.unwrap_or(f64::NAN);
        let label = format!("{} ({})", part.name(), part.queries);
        Bar {
            label,
            value,
            interval: part.interval(),
            look: usize::from(part.polarity.as_deref() == Some("antithesis")),
        }
    };
    let principles = found.candidates.iter().map(|(name, rates)| Group {
        name: name.clone(),
        bars: rates.principles.iter().take(PARTS).map(part).collect(),
    });
    [
        rates(&format!("{node}: win rate and length"), lengths.collect()),
        rates(&format!("{node}: win rate by principle (queries)"), principles.collect()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Figures over iterations: one picture for each that says how well it went; none if the run has no two iterations.
pub(super) fn iterations(run: &RunRecord) -> Vec<Curves> {
    let mut figures: BTreeMap<String, IndexMap<String, Vec<Point>>> = BTreeMap::new();
    let mut ceiling = None;
    for node in &run.nodes {
        let name = Name::of(&node.name);
        let Some(iteration) = name.iteration else { continue };
        ceiling = ceiling.or_else(|| node.metrics.get("bound_ceiling").and_then(Json::as_f64));
        for metric in metric::listed(&node.metrics).into_iter().filter(Metric::is_outcome) {
            let series = match metric.candidate() {
                "" => name.family(),
                candidate => format!("{}: {candidate}", name.family()),
            };
            let point = Point { x: iteration as f64, y: metric.number(), interval: metric.interval };
            figures.entry(metric.stem().to_owned()).or_default().entry(series).or_default().push(point);
        }
    }
    let mut stems: Vec<String> = figures.keys().cloned().collect();
    stems.sort_by(|one, other| metric::order(one).cmp(&metric::order(other)));
    let picture = |stem: String| {
        let all = figures.remove(&stem)?;
        let named = all.into_iter().filter(|(_, points)| points.len() > 1).take(SERIES).enumerate();
        let series: Vec<Series> = named.map(|(look, (name, points))| Series { name, points, look }).collect();
        let levels = match (stem.as_str(), ceiling) {
            ("bound", Some(value)) => vec![Level { name: "ln C, the most there is".to_owned(), value }],
            ("win_rate" | "win_rate_balanced" | "win_rate_controlled", _) => {
                vec![Level { name: "as good as the other".to_owned(), value: 0.5 }]
            }
            _ => Vec::new(),
        };
        let (title, unit) = words(&stem);
        let x = "iteration".to_owned();
        (!series.is_empty()).then(|| Curves { title, x, unit, series, levels, legend: true })
    };
    stems.into_iter().filter_map(picture).collect()
}

/// What a metric is called over a picture, and in what it is measured.
fn words(stem: &str) -> (String, String) {
    let (title, unit) = match stem {
        "win_rate" => ("Win rate", "share, with 95% intervals"),
        "win_rate_balanced" => ("Win rate, longer and shorter alike", "share, with 95% intervals"),
        "win_rate_controlled" => ("Win rate at equal length", "share, with 95% intervals"),
        "adherence" => ("Principles followed", "share"),
        "well_formed" => ("Well formed", "share"),
        "mean_length" => ("Length of responses", "tokens, mean"),
        "probe_kl" => ("KL on the probes", "nats a token"),
        other => match FIGURES.iter().find(|figure| figure.name == other) {
            Some(figure) => (figure.title, figure.unit),
            None => (other, ""),
        },
    };
    (title.to_owned(), unit.to_owned())
}

/// A training run and what its line is called.
#[derive(Debug)]
pub(super) struct Line {
    /// The node, or the run.
    pub(super) name: String,
    /// The look of its lines.
    pub(super) look: usize,
    /// Its steps.
    pub(super) training: Training,
    /// What the bound cannot exceed, if that is known.
    pub(super) ceiling: Option<f64>,
}

/// Pictures of training runs, those to look at first and the others. A figure that none has, has no picture.
pub(super) fn training(lines: &[Line]) -> (Vec<Curves>, Vec<Curves>) {
    let mut pictures = (Vec::new(), Vec::new());
    for figure in FIGURES {
        let has = |line: &&Line| line.training.figures.contains_key(figure.name);
        let series: Vec<Series> = lines
            .iter()
            .filter(has)
            .map(|line| Series {
                name: line.name.clone(),
                points: line.training.figures[figure.name].iter().map(|point| Point::from(*point)).collect(),
                look: line.look,
            })
            .collect();
        if series.is_empty() {
            continue;
        }
        let ceiling = lines.iter().filter(has).find_map(|line| line.ceiling).filter(|_| figure.name == "bound");
        let levels =
            ceiling.map(|value| Level { name: "ln C, the most there is".to_owned(), value }).into_iter().collect();
        let (title, unit, x) = (figure.title.to_owned(), figure.unit.to_owned(), "step".to_owned());
        let picture = Curves { title, x, unit, series, levels, legend: false };
        if figure.first { pictures.0.push(picture) } else { pictures.1.push(picture) }
    }
    pictures
}

/// The training runs of a run by family: the iterations of a node of the loop are lines of the same pictures. What the run's events
/// tell counts where no model was made.
pub(super) fn families(store: &Store, run: &RunRecord) -> IndexMap<String, Vec<Line>> {
    let mut families: IndexMap<String, Vec<Line>> = IndexMap::new();
    let trained = |node: &&RunNode| node.kind == "finetune";
    let untold = run.nodes.iter().filter(trained).any(|node| node.artifact.is_none());
    let mut events =
        if untold || run.nodes.is_empty() { Training::of_events(store, &run.run) } else { BTreeMap::new() };
    for node in run.nodes.iter().filter(trained) {
        let made = node.artifact.and_then(|artifact| Training::of_artifact(store, &artifact));
        let Some(training) = made.or_else(|| events.remove(&node.name)) else { continue };
        let name = Name::of(&node.name);
        let lines = families.entry(name.base.to_owned()).or_default();
        if lines.len() < SERIES {
            let ceiling = node.metrics.get("bound_ceiling").and_then(Json::as_f64);
            lines.push(Line { name: node.name.clone(), look: lines.len(), training, ceiling });
        }
    }
    families
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inspect::sample;

    fn node(name: &str, kind: &str, metrics: Json) -> RunNode {
        RunNode {
            name: name.into(),
            kind: kind.into(),
            state: "ran".into(),
            key: None,
            artifact: None,
            seconds: 1.0,
            metrics: metrics.as_object().cloned().expect("an object"),
        }
    }

    fn run() -> RunRecord {
        let (_folder, store, _) = sample::store();
        let mut run = store.runs().expect("runs").remove(0);
        run.nodes = vec![
            node("base", "finetune", json!({"loss": 0.5})),
            node("finetune@1", "finetune", json!({"bound": 0.1, "bound_ceiling": 0.7})),
            node(
                "evaluate@1",
                "evaluate",
                json!({"win_rate.sami": 0.5, "win_rate_low.sami": 0.4, "win_rate_high.sami": 0.6}),
            ),
            node("finetune@2", "finetune", json!({"bound": null})),
            node("evaluate@2", "evaluate", json!({"win_rate.sami": 0.7, "win_rate": 0.7})),
        ];
        run
    }

    #[test]
    fn rates_stand_under_each_other_by_evaluation_or_by_run() {
        let run = run();
        let one = win_rates(&[Labelled { label: "", run: &run }]).expect("rates");
        let told: Vec<(&str, &str)> =
            one.groups.iter().map(|group| (group.name.as_str(), group.bars[0].label.as_str())).collect();
        assert_eq!(told, [("evaluate@1", "sami"), ("evaluate@2", "sami")]);
        assert_eq!(one.groups[0].bars[0].interval, Some([0.4, 0.6]));
        let two = win_rates(&[Labelled { label: "A", run: &run }, Labelled { label: "B", run: &run }]).expect("rates");
        let looks: Vec<(&str, usize)> = two.groups[0].bars.iter().map(|bar| (bar.label.as_str(), bar.look)).collect();
        assert_eq!((two.groups[0].name.as_str(), looks), ("evaluate@1: sami", vec![("A", 0), ("B", 1)]));
        let none = RunRecord { nodes: Vec::new(), ..run };
        assert_eq!(win_rates(&[Labelled { label: "", run: &none }]), None);
    }

    #[test]
    fn figures_go_over_iterations_with_their_ceiling() {
        let pictures = iterations(&run());
        let titles: Vec<&str> = pictures.iter().map(|picture| picture.title.as_str()).collect();
        assert_eq!(titles, ["Win rate", "Bound"]);
        assert_eq!(pictures[1].levels[0].value, 0.7);
        assert!(pictures[1].series[0].points[1].y.is_nan());
        assert!(
            iterations(&RunRecord { nodes: vec![node("base", "finetune", json!({"loss": 1}))], ..run() }).is_empty()
        );
    }

    #[test]
    fn curves_are_of_what_was_measured() {
        let figures = BTreeMap::from([("loss".to_owned(), vec![(1.0, 0.5)]), ("gap".to_owned(), vec![(1.0, 2.0)])]);
        let line = |name: &str, look| Line {
            name: name.to_owned(),
            look,
            training: Training { figures: figures.clone(), ..Training::default() },
            ceiling: None,
        };
        let (first, more) = training(&[line("finetune@1", 0), line("finetune@2", 1)]);
        assert_eq!((first.len(), more.len()), (1, 1));
        assert_eq!((first[0].title.as_str(), first[0].series[1].look), ("Loss", 1));
    }
}
