//! `sami report`: a run in one HTML file.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::context::Failure;
use super::figures::bytes;
use super::find;
use super::{CommandResult, Context, DONE, FAILED, context};
use crate::diag::Diagnostic;
use crate::fs;
use crate::inspect::run::Account;
use crate::store::{Store, StoreError};
use crate::ui::report;
use crate::exec::{Event, Summary};
use crate::kinds::Progress;
use crate::secret;
use crate::store::RunNode;

/// Arguments of `report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Run id or the beginning of one (default: the latest run)
    pub run: Option<String>,
    /// File to write; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
    /// Queries to show with what the models said
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub samples: usize,
}

/// Writes the report of a run.
pub(super) fn run(context: &Context, args: &ReportArgs) -> CommandResult {
    let store = Store::open_existing(&context.cache_directory(None)?)?;
    let run = match &args.run {
        Some(named) => find::run(&store, named)?,
        None => find::latest_run(&store, |_| true)?.ok_or_else(|| {
            Diagnostic::error("report::no-run", "the cache has no run to report on")
                .help("run a pipeline first: `sami run FILE`")
        })?,
    };
    let gone = || StoreError::Damaged { what: format!("the record of run {}", run.run) };
    let account = Account::of(&store, &run.run)?.ok_or_else(gone)?;
    let page = report::draw(&store, &account, args.samples)?;
    if args.output == Path::new("-") {
        context::write_out(|stdout| stdout.write_all(page.as_bytes()))?;
        return Ok(DONE);
    }
    fs::write_atomic(&args.output, page.as_bytes()).map_err(|error| unwritten(&args.output, &error))?;
    if context.json() {
        context::print_json(&json!({"file": args.output, "run": run.run, "bytes": page.len()}))?;
    } else {
        let size = bytes(page.len() as u64);
        context::print(&format!("{}: run {} of {}, {size}\n", args.output.display(), run.run, run.pipeline))?;
    }
    Ok(DONE)
}

fn unwritten(file: &Path, error: &io::Error) -> Failure {
    let fault =
        Diagnostic::error("report::output", format!("the report cannot be written to `{}`: {error}", file.display()));
    Failure { code: FAILED, diagnostics: vec![fault.help("name a file in a directory that is there: `-o FILE`")] }
impl Report {
    /// Draws for whoever is there.
    pub(crate) fn new(json: bool) -> Self {
        let form = if json {
            Form::Json
        } else if io::stderr().is_terminal() {
            Form::Bars(MultiProgress::new(), HashMap::new())
        } else {
            Form::Lines(HashMap::new())
        };
        Self { form, names: 0 }
    }

    /// Draws an event.
    pub(crate) fn tell(&mut self, event: &Event) {
        if let Event::NodeFail { .. } = event {
            self.draw_failure(event);
        }
        match &mut self.form {
            Form::Json => {
                // A reader that went away does not stop the run.
                let _ = context::write_out(|stdout| {
                    serde_json::to_writer(&mut *stdout, event)?;
                    stdout.write_all(b"\n")
                });
            }
            Form::Lines(told) => {
                let (name, far) = match event {
                    Event::NodeProgress { node, progress, seconds: passed } => (node, how_far(progress, *passed)),
                    Event::Download { name, done, total, seconds: passed, finished: false } => {
                        (name, downloaded(*done, *total, *passed))
                    }
                    _ => return self.tell_in_words(event),
                };
                let last = told.entry(name.clone()).or_insert_with(Instant::now);
                if last.elapsed() >= BEAT {
                    *last = Instant::now();
                    self.line(format!("      {name:<width$}  {far}", width = self.names).trim_end());
                }
            }
            Form::Bars(all, bars) => {
                match event {
                    Event::Download { name, finished: true, .. } => {
                        if let Some(bar) = bars.remove(name) {
                            bar.finish_and_clear();
                        }
                    }
                    Event::Download { name, done, total, .. } => {
                        let bar = bars.entry(name.clone()).or_insert_with(|| {
                            let bar = all.add(ProgressBar::new(*total).with_prefix(name.clone()));
                            bar.set_style(
                                style("{spinner} {prefix}  [{bar:24}] {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}, {eta} left")
                                    .progress_chars("=> "),
                            );
                            bar
                        });
                        bar.set_length(*total);
                        bar.set_position(*done);
                    }
                    Event::NodeStart { node, why, .. } => {
                        let bar = all.add(ProgressBar::new_spinner().with_prefix(node.clone()));
                        bar.set_style(style("{spinner} {prefix}  {elapsed}  {wide_msg}"));
                        bar.set_message(cut(why, WIDTH));
                        bar.enable_steady_tick(Duration::from_millis(120));
                        bars.insert(node.clone(), bar);
                    }
                    Event::NodeProgress { node, progress, .. } => {
                        if let Some(bar) = bars.get(node) {
                            move_bar(bar, progress);
                        }
                    }
                    Event::NodeFinish { node, .. } | Event::NodeFail { node, .. } | Event::NodeStop { node, .. } => {
                        if let Some(bar) = bars.remove(node) {
                            bar.finish_and_clear();
                        }
                    }
                    _ => {}
                }
                self.tell_in_words(event);
            }
        }
    }

    fn tell_in_words(&mut self, event: &Event) {
        let bars = matches!(self.form, Form::Bars(..));
        let mut say = |word: &str, node: &str, rest: &str| {
            self.names = self.names.max(node.chars().count().min(32));
            let line = format!("{word:<5} {node:<width$}  {rest}", width = self.names);
            self.line(line.trim_end());
        };
        match event {
            Event::Download { name, total, seconds: took, finished: true, .. } => {
                say("came", name, &format!("{} from the hub in {}", bytes(*total), seconds(*took)));
            }
            Event::Start { run, nodes, hits, .. } => {
                let hits = if *hits > 0 { format!(", {} fresh", count(*hits as u64)) } else { String::new() };
                self.line(&format!("run {run}: {}{hits}", plural(*nodes as u64, "node")));
            }
            // The bar says it already.
            Event::NodeStart { .. } if bars => {}
            Event::NodeStart { node, why, attempt, .. } => {
                let again = if *attempt > 1 { format!("attempt {attempt}; ") } else { String::new() };
                say("start", node, &cut(&format!("{again}{why}"), WIDTH));
            }
            Event::NodeHit { node, .. } => say("hit", node, "is there already"),
            Event::NodeWait { node, by, .. } => {
                say("wait", node, &format!("{} is at it", by.as_deref().unwrap_or("another process")));
            }
            Event::NodeFinish { node, seconds: took, metrics, other, equal_to_within, .. } => {
                let mut parts = vec![seconds(*took)];
                parts.extend(headline(metrics));
                if let Some(other) = other {
                    parts.push(format!("made {}, but what it made first stays", other.short()));
                }
                if let Some(equal) = equal_to_within {
                    let (artifact, worst) = (equal.artifact.short(), &equal.worst);
                    parts.push(format!("counts as {artifact} within its tolerance: {worst}"));
                }
                say("ran", node, &parts.join(" · "));
            }
            Event::NodeFail { node, retry: true, .. } => say("again", node, "it is tried once more"),
            Event::NodeStop { node, seconds: took } => say("stop", node, &format!("after {}", seconds(*took))),
            Event::NodeSkip { node, because } => say("skip", node, &format!("it needs {because}")),
            Event::NodeRefuse { node, why } => say("skip", node, why),
            Event::Budget { what } => self.line(&format!("budget: {what}; what uses it stops after the batch in hand")),
            Event::Interrupt { again: false } => {
                self.line("interrupted: finishing the batches in hand; once more to stop at once");
            }
            Event::Interrupt { again: true } => self.line("interrupted again: stopping at once"),
            Event::Download { .. } | Event::NodeProgress { .. } | Event::NodeFail { .. } | Event::Done { .. } => {}
        }
    }

    fn draw_failure(&self, event: &Event) {
        let Event::NodeFail { node, error, help, tail, log, .. } = event else { return };
        let mut finding = Diagnostic::error("exec::node-failed", format!("node `{node}` failed: {error}"));
        if !tail.is_empty() {
            finding = finding.note(format!("the last lines of its log:\n{}", tail.join("\n")));
        }
        // The help below says where the log is.
        finding.help.extend(help.clone().filter(|help| !help.contains("sami logs")));
        if log.is_some() {
            finding = finding.help(format!("the whole log: `sami logs '{node}'`"));
        }
        self.line(render::render(&[finding]).trim_end());
    }

    /// What there is to say when the run is over.
    pub(crate) fn end(&self, summary: &Summary) {
        if matches!(self.form, Form::Json) {
            return;
        }
        if let Some(table) = outcomes(&summary.nodes) {
            self.line(&format!("\n{}", table.trim_end()));
        }
        let states = [("ran", "ran"), ("hit", "fresh"), ("failed", "failed"), ("skipped", "skipped")];
        let parts = states.iter().filter_map(|(state, word)| match summary.count(state) {
            0 => None,
            number => Some(format!("{} {word}", count(number as u64))),
        });
        let parts: Vec<String> = parts.collect();
        let word = match (summary.interrupted, summary.ok()) {
            (true, _) => "interrupted",
            (_, true) => "done",
            (_, false) => "failed",
        };
        self.line(&format!("{word} in {}: {}", seconds(summary.seconds), parts.join(", ")));
        if summary.interrupted {
            self.line("the same command goes on from here");
        }
        let made = summary.nodes.iter().rev().find(|node| node.state == "ran" && node.artifact.is_some());
        if let Some(node) = made {
            self.line(&format!("look further: sami show {}, sami cache show '{}'", summary.run, node.name));
        }
    }

    /// As [`Report::end`], of a run in which all nodes were fresh.
    pub(crate) fn end_fresh(&self, nodes: usize, took: f64, table: Option<&str>) {
        if let Some(table) = table {
            self.line(&format!("\n{}", table.trim_end()));
        }
        self.line(&format!("done in {}: {} fresh", seconds(took), count(nodes as u64)));
    }

    /// Draws findings that come up while the run goes on.
    pub(crate) fn complain(&self, findings: &[Diagnostic]) {
        if !findings.is_empty() {
            self.line(secret::redact(&render::render(findings)).trim_end());
        }
    }

    /// Where a run that is over can be looked at elsewhere.
    pub(crate) fn shown_at(&self, places: &[String]) {
        if !matches!(self.form, Form::Json) {
            places.iter().for_each(|place| self.line(&format!("tracked: {place}")));
        }
    }

    /// Writes lines to standard error, above the bars if there are any. Where that cannot be written no one reads.
    fn line(&self, text: &str) {
        match &self.form {
            Form::Bars(all, _) => all.suspend(|| _ = writeln!(io::stderr(), "{text}")),
            _ => _ = writeln!(io::stderr(), "{text}"),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is a constant that was tried")
}

fn move_bar(bar: &ProgressBar, progress: &Progress) {
    if bar.length() != Some(progress.total) {
        bar.set_length(progress.total);
        bar.set_style(
            style("{spinner} {prefix}  [{bar:24}] {pos}/{len} {msg}  {rate}, {eta} left")
                .with_key("rate", |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                    // Writing to a string does not fail.
                    let _ = write!(text, "{}/s", figure(&Value::from(state.per_sec())));
                })
                .progress_chars("=> "),
        );
    }
    bar.set_position(progress.done);
    let metrics: Vec<String> = headline(&progress.metrics);
    bar.set_message([vec![progress.unit.clone()], metrics].concat().join(" · "));
}

/// `1.2 GiB of 14.0 GiB, 80.0 MiB/s`
fn downloaded(done: u64, total: u64, passed: f64) -> String {
    let rate = if passed > 0.0 { format!(", {}/s", bytes((done as f64 / passed) as u64)) } else { String::new() };
    format!("{} of {}{rate}", bytes(done), bytes(total))
}

/// `120/500 rows, 4.1/s, 1 m 33 s left · loss 0.5`
fn how_far(progress: &Progress, passed: f64) -> String {
    let Progress { done, total, unit, metrics, .. } = progress;
    let mut text = format!("{}/{} {unit}", count(*done), count(*total));
    if *done > 0 && passed > 0.0 {
        let rate = *done as f64 / passed;
        let left = total.saturating_sub(*done) as f64 / rate;
        text.push_str(&format!(", {}/s, {} left", figure(&Value::from(rate)), seconds(left)));
    }
    [vec![text], headline(metrics)].concat().join(" · ")
}

/// The metrics that matter, each with its name; win rates with their intervals.
pub(super) fn headline(metrics: &Map<String, Value>) -> Vec<String> {
    let mut shown = Vec::new();
    let reused = reuse(metrics);
    for wanted in METRICS {
        for (name, value) in metrics {
            let (stem, candidate) = name.split_once('.').map_or((name.as_str(), ""), |(stem, rest)| (stem, rest));
            // Of a figure that candidates have, the one without a candidate is that of one of them.
            let twice = candidate.is_empty() && metrics.keys().any(|other| of_candidate(other, stem));
            let told = name == "rows_reused" && reused.is_some();
            if stem == *wanted && !twice && !told && (candidate.is_empty() || *wanted != "dropped") {
                shown.push(format!("{name} {}", with_interval(metrics, stem, candidate, value)));
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

fn of_candidate(name: &str, stem: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.')) && stem != "dropped"
}

fn with_interval(metrics: &Map<String, Value>, stem: &str, candidate: &str, value: &Value) -> String {
    let name =
        |end: &str| if candidate.is_empty() { format!("{stem}_{end}") } else { format!("{stem}_{end}.{candidate}") };
    match (metrics.get(&name("low")), metrics.get(&name("high"))) {
        (Some(low), Some(high)) => format!("{} ({} to {})", figure(value), figure(low), figure(high)),
        _ => figure(value),
    }
}

/// A table of the metrics that say how well it went: a row per node that has any, and per candidate.
pub(super) fn outcomes(nodes: &[RunNode]) -> Option<String> {
    let mut table = Table::new(["node"].iter().chain(OUTCOMES).copied(), &(1..=OUTCOMES.len()).collect::<Vec<_>>());
    let mut rows = 0;
    for node in nodes.iter().filter(|node| node.artifact.is_some()) {
        let mut groups: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
        for (name, value) in &node.metrics {
            let (stem, candidate) = name.split_once('.').map_or((name.as_str(), ""), |(stem, rest)| (stem, rest));
            if OUTCOMES.contains(&stem) {
                groups.entry(candidate).or_default().insert(stem, with_interval(&node.metrics, stem, candidate, value));
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
    (1..=ROWS).contains(&rows).then(|| table.text())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
    fn progress_has_rate_and_time_left() {
        let loss = metrics(json!({"loss": 1.5}));
        let progress = Progress { done: 50, total: 200, unit: "rows".into(), metrics: loss, ..Progress::default() };
        assert_eq!(how_far(&progress, 10.0), "50/200 rows, 5.000/s, 30.0 s left · loss 1.500");
        let none = Progress { done: 0, ..progress };
        assert_eq!(how_far(&none, 10.0), "0/200 rows · loss 1.500");
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
            outcomes(&nodes).unwrap(),
            "node          bound                   win_rate  adherence  mean_length\n\
             score@1      0.5000                                              9.500\n\
             evaluate: a          0.5000 (0.2500 to 0.7500)\n\
             evaluate: b                                             1\n"
        );
        assert_eq!(outcomes(&nodes[..1]), None);
    }
}
