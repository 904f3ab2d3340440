//! Tells the events of a run: a live view on a terminal, lines elsewhere, JSON for scripts.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::figures::{bytes, count, cut, figure, plural, seconds};
use super::live::{self, Live};
use super::outcomes::{headline, outcomes};
use super::screen::Screen;
use super::table::Table;
use super::{context, render, terminal};
use crate::diag::Diagnostic;
use crate::exec::{Event, ShardState, Summary};
use crate::kinds::Progress;
use crate::secret;

/// Time between two lines that tell how far a node is, and with `--plain`, where each is listened to.
const BEAT: Duration = Duration::from_secs(10);
const CALM_BEAT: Duration = Duration::from_secs(60);
/// Widest explanation on a line.
const WIDTH: usize = 100;

/// Tells events.
pub(crate) struct Report {
    form: Form,
    names: usize,
}

enum Form {
    /// A line of JSON per event on standard output.
    Json,
    /// Lines on standard error; when each node last told how far it is.
    Lines(HashMap<String, Instant>),
    /// Lines on standard error, and below them what goes on.
    Live(Live),
}

impl Report {
    /// Tells whoever is there.
    pub(crate) fn new(json: bool) -> Self {
        Self::since(Instant::now(), json)
    }

    /// Of a run that began some time ago.
    pub(crate) fn since(zero: Instant, json: bool) -> Self {
        let form = match json {
            true => Form::Json,
            false if terminal::can_redraw() => Form::Live(Live::new(zero)),
            false => Form::Lines(HashMap::new()),
        };
        Self { form, names: 0 }
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

    /// Takes what happened `at` some seconds after the run began, before there was anyone to tell.
    pub(crate) fn recall(&mut self, event: &Event, at: f64) {
        if let Event::NodeStart { node, .. } = event {
            self.align(node);
        }
        if let Form::Live(live) = &self.form {
            live.change(|view, _| view.take(event, at));
        }
    }

    /// Tells an event.
    pub(crate) fn tell(&mut self, event: &Event) {
        if let Form::Json = self.form {
            // A reader that went away does not stop the run.
            let _ = context::write_out(|stdout| {
                serde_json::to_writer(&mut *stdout, event)?;
                stdout.write_all(b"\n")
            });
            // For whoever reads the log of what reads the events.
            if let Event::NodeFail { .. } = event {
                self.tell_failure(event);
            }
            return;
        }
        if let Form::Live(live) = &self.form {
            if let Event::Start { .. } = event {
                live.restart();
            }
            live.change(|view, now| view.take(event, now));
        }
        if let Event::NodeFail { .. } = event {
            self.tell_failure(event);
        }
        if let Event::NodeProgress { node, progress, .. } = event {
            for note in &progress.notes {
                let line = self.said("note", node, note);
                self.line(&line);
            }
        }
        if let Some(line) = self.far(event).or_else(|| self.words(event)) {
            self.line(&line);
        }
    }

    /// How far a node is, where that is told in lines and was not told just now.
    fn far(&mut self, event: &Event) -> Option<String> {
        let Form::Lines(told) = &mut self.form else { return None };
        let (name, far) = match event {
            Event::NodeProgress { node, progress, seconds: passed, .. } => (node, how_far(progress, *passed)),
            Event::Download { name, done, total, seconds: passed, finished: false } => {
                (name, downloaded(*done, *total, *passed))
            }
            _ => return None,
        };
        let last = told.entry(name.clone()).or_insert_with(Instant::now);
        let beat = if terminal::is_plain() { CALM_BEAT } else { BEAT };
        if last.elapsed() < beat {
            return None;
        }
        *last = Instant::now();
        Some(self.said("", name, &far))
    }

    fn align(&mut self, node: &str) {
        self.names = self.names.max(node.chars().count().min(32));
    }

    /// A line on a node.
    fn said(&mut self, word: &str, node: &str, rest: &str) -> String {
        if terminal::is_plain() {
            return format!("{word} {node}: {rest}").trim().to_owned();
        }
        self.align(node);
        format!("{word:<5} {node:<width$}  {rest}", width = self.names).trim_end().to_owned()
    }

    /// The line that an event is worth, if it is.
    fn words(&mut self, event: &Event) -> Option<String> {
        Some(match event {
            Event::Download { name, total, seconds: took, finished: true, .. } => {
                self.said("came", name, &format!("{} from the hub in {}", bytes(*total), seconds(*took)))
            }
            Event::Start { run, nodes, hits, .. } => {
                let hits = if *hits > 0 { format!(", {} fresh", count(*hits as u64)) } else { String::new() };
                format!("run {run}: {}{hits}", plural(*nodes as u64, "node"))
            }
            // What goes on stands below.
            Event::NodeStart { .. } if matches!(self.form, Form::Live(_)) => return None,
            Event::NodeStart { node, why, attempt, shards, .. } => {
                let again = if *attempt > 1 { format!("attempt {attempt}; ") } else { String::new() };
                let shards = shards.map_or_else(String::new, |shards| format!("{shards} shards; "));
                self.said("start", node, &cut(&format!("{again}{shards}{why}"), WIDTH))
            }
            Event::NodeShard { node, shard, of, state: ShardState::Again, error, .. } => {
                let error = error.as_deref().unwrap_or_default();
                let told = format!("shard {shard} of {of} is tried once more: {error}");
                self.said("again", node, &cut(&told, WIDTH))
            }
            Event::NodeJob { node, engine, job, state, host, why } => {
                let job = format!("{engine} {}", job.as_deref().unwrap_or("job"));
                let because = |job: &str| if why.is_empty() { job.to_owned() } else { format!("{job}: {why}") };
                match state.as_str() {
                    "runs" => self.said("runs", node, &format!("{job} on {}", host.as_deref().unwrap_or("a machine"))),
                    "waits" if why.is_empty() => return None,
                    "waits" => self.said("wait", node, &because(&job)),
                    "adopted" => self.said("found", node, &format!("{job}, which an earlier run began")),
                    "left" => self.said("left", node, &because(&format!("{job} goes on"))),
                    "unseen" => self.said("wait", node, why),
                    _ => self.said("queue", node, &because(&job)),
                }
            }
            Event::NodeHit { node, .. } => self.said("hit", node, "is there already"),
            Event::NodeWait { node, by, .. } => {
                self.said("wait", node, &format!("{} is at it", by.as_deref().unwrap_or("another process")))
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
                self.said("ran", node, &parts.join(" · "))
            }
            Event::NodeFail { node, retry: true, .. } => self.said("again", node, "it is tried once more"),
            Event::NodeStop { node, seconds: took } => self.said("stop", node, &format!("after {}", seconds(*took))),
            Event::NodeSkip { node, because } => self.said("skip", node, &format!("it needs {because}")),
            Event::NodeRefuse { node, why } => self.said("skip", node, why),
            Event::Budget { what } => format!("budget: {what}; what uses it stops after the batch in hand"),
            Event::Interrupt { again: false } => {
                "interrupted: finishing the batches in hand; once more to stop at once".to_owned()
            }
            Event::Interrupt { again: true } => {
                "interrupted again: stopping at once; once more not to wait for jobs elsewhere".to_owned()
            }
            Event::Download { .. }
            | Event::NodeShard { .. }
            | Event::NodeProgress { .. }
            | Event::NodeFail { .. }
            | Event::Done { .. } => {
                return None;
            }
        })
    }

    /// Tells why a node failed.
    pub(crate) fn tell_failure(&self, event: &Event) {
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

    /// What there is to say when the run is over; nothing is drawn any more.
    pub(crate) fn end(&mut self, summary: &Summary) {
        if matches!(self.form, Form::Json) {
            return;
        }
        self.form = Form::Lines(HashMap::new());
        self.tell_outcomes(outcomes(&summary.nodes).as_ref());
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
        if !summary.left.is_empty() {
            self.line(&format!("{} on: sami attach {}", plural_verb(summary.left.len()), summary.run));
        } else if summary.interrupted {
            self.line("the same command goes on from here");
        }
        let made = summary.nodes.iter().rev().find(|node| node.state == "ran" && node.artifact.is_some());
        if let Some(node) = made {
            self.line(&format!("look further: sami show {}, sami cache show '{}'", summary.run, node.name));
        }
    }

    /// As [`Report::end`], of a run in which all nodes were fresh.
    pub(crate) fn end_fresh(&self, nodes: usize, took: f64, table: Option<&Table>) {
        self.tell_outcomes(table);
        self.line(&format!("done in {}: {} fresh", seconds(took), count(nodes as u64)));
    }

    fn tell_outcomes(&self, table: Option<&Table>) {
        if let Some(table) = table {
            self.line(&format!("\n{}", table.on(Screen::of_stderr()).trim_end()));
        }
    }

    /// Writes lines to standard error, above what is drawn there.
    pub(crate) fn line(&self, text: &str) {
        match &self.form {
            Form::Live(live) => live.write(&format!("{text}\n")),
            _ => live::above(&format!("{text}\n")),
        }
    }
}

fn plural_verb(jobs: usize) -> String {
    if jobs == 1 { "1 job goes".to_owned() } else { format!("{} jobs go", count(jobs as u64)) }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_has_rate_and_time_left() {
        let loss = [("loss".to_owned(), json!(1.5))].into_iter().collect();
        let progress = Progress { done: 50, total: 200, unit: "rows".into(), metrics: loss, ..Progress::default() };
        assert_eq!(how_far(&progress, 10.0), "50/200 rows, 5.000/s, 30.0 s left · loss 1.500");
        let none = Progress { done: 0, ..progress };
        assert_eq!(how_far(&none, 10.0), "0/200 rows · loss 1.500");
    }
}
