//! An MLflow server: one run there for a run here and those that went on with it, with the params, the metrics of nodes by
//! iteration, and the figures of each step of training.
//!
//! What happens waits here and is sent in batches, at most one a second. What cannot be sent is tried again, after a
//! second, two, four, up to a minute. When a run goes on, the server says which steps it has.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::story::{Begin, Note, Outcome, iteration};
use super::tracked::{Remote, Tracked};
use super::{About, Tracker, held, shown};
use crate::diag::Diagnostic;
use crate::exec::host;
use crate::settings::MlflowSettings;

mod client;

use client::{Client, Fault};

/// Between two batches.
const BEAT: Duration = Duration::from_secs(1);
/// Longest time between two tries.
const LONGEST: Duration = Duration::from_secs(60);
/// Tries at the end of a run, and the time between them.
const LAST_TRIES: (usize, Duration) = (3, Duration::from_millis(300));
/// Metrics in a batch, and params; both are the API's limits.
const MOST_METRICS: usize = 1_000;
const MOST_PARAMS: usize = 100;
/// Letters of a param's value, and of a name; the API's limits.
const LONGEST_VALUE: usize = 6_000;
const LONGEST_NAME: usize = 250;
/// Metrics that wait for a server that is away; beyond that the oldest are dropped.
const MOST_WAITING: usize = 200_000;
/// Metrics of a run that is over that wait.
const MOST_TOLD_AGAIN: usize = 20_000;

/// Tells an MLflow server.
pub(super) struct Mlflow {
    client: Client,
    url: String,
    experiment: Option<String>,
    about: About,
    tracked: Arc<Mutex<Tracked>>,
    begin: Option<Arc<Begin>>,
    /// The run on the server, once it is known, and its experiment's id.
    run: Option<(String, String)>,
    params: VecDeque<(String, String)>,
    metrics: VecDeque<Metric>,
    /// The last step of each metric that the server has or will be told.
    steps: HashMap<String, u64>,
    /// What the server itself said that it has.
    there: HashMap<String, u64>,
    /// Whether another run went on with this one there: how that ended counts.
    later: bool,
    end: Option<(Outcome, i64)>,
    next: Instant,
    /// Tries that failed since the last that did not.
    failures: u32,
    /// Metrics that were not told.
    lost: usize,
    /// What the server said of the first batch that it did not take.
    disliked: Option<String>,
    /// The server refused the run for good: nothing more is sent.
    refused: bool,
    /// What is to be said of that, if it came while things were taken.
    refusal: Option<Diagnostic>,
}

#[derive(Debug, Clone, PartialEq)]
struct Metric {
    key: String,
    value: f64,
    step: u64,
    /// Milliseconds since 1970.
    at: i64,
}

impl Mlflow {
    pub(super) fn new(settings: &MlflowSettings, about: &About, tracked: Arc<Mutex<Tracked>>) -> Self {
        Self {
            client: Client::new(&settings.url, settings.timeout),
            url: settings.url.clone(),
            experiment: settings.experiment.clone(),
            about: about.clone(),
            tracked,
            begin: None,
            run: None,
            params: VecDeque::new(),
            metrics: VecDeque::new(),
            steps: HashMap::new(),
            there: HashMap::new(),
            later: false,
            end: None,
            next: Instant::now(),
            failures: 0,
            lost: 0,
            disliked: None,
            refused: false,
            refusal: None,
        }
    }

    /// Sends what waits. Errs with what went wrong; what was not sent waits on.
    fn send(&mut self) -> Result<(), Fault> {
        let Some(begin) = self.begin.clone() else { return Ok(()) };
        let run = match &self.run {
            Some((run, _)) => run.clone(),
            None => self.open(&begin)?,
        };
        while !self.params.is_empty() {
            let batch = self.params.len().min(MOST_PARAMS);
            let params: Vec<Value> =
                self.params.iter().take(batch).map(|(key, value)| json!({"key": key, "value": value})).collect();
            let told = self.client.post("runs/log-batch", &json!({"run_id": run, "params": params}));
            self.pass_over(told, 0)?;
            self.params.drain(..batch);
        }
        while !self.metrics.is_empty() {
            let batch = self.metrics.len().min(MOST_METRICS);
            let metrics: Vec<Value> = self.metrics.iter().take(batch).map(Metric::json).collect();
            let told = self.client.post("runs/log-batch", &json!({"run_id": run, "metrics": metrics}));
            self.pass_over(told, batch)?;
            self.metrics.drain(..batch);
        }
        if self.later {
            self.end = None;
        }
        if let Some((outcome, at)) = self.end {
            let status = match outcome {
                Outcome::Finished => "FINISHED",
                Outcome::Failed => "FAILED",
                Outcome::Stopped => "KILLED",
            };
            self.client.post("runs/update", &json!({"run_id": run, "status": status, "end_time": at}))?;
            self.end = None;
        }
        Ok(())
    }

    /// A batch that the server does not like is left out; the next one may be better.
    fn pass_over(&mut self, told: Result<Value, Fault>, metrics: usize) -> Result<(), Fault> {
        match told {
            Err(Fault::Never { status: 400, said, .. }) => {
                self.lost += metrics;
                self.disliked.get_or_insert(said);
                Ok(())
            }
            told => told.map(drop),
        }
    }

    /// Makes the run on the server, or takes up that of the run that this one goes on with.
    fn open(&mut self, begin: &Begin) -> Result<String, Fault> {
        let experiment = self.experiment.clone().unwrap_or_else(|| begin.pipeline.clone());
        let before = held(&self.tracked).mlflow().cloned();
        let before = before.filter(|before| before.url == self.url && before.experiment == experiment);
        let before = match before {
            Some(before) => Some(before.run),
            None if self.about.again => self.find(&experiment, begin)?,
            None => None,
        };
        let (run, experiment_id) = match before.map(|before| self.take_up(&before, begin)).transpose()?.flatten() {
            Some(found) => found,
            None => self.create(&experiment, begin)?,
        };
        held(&self.tracked).set_mlflow(Remote { url: self.url.clone(), experiment, run: run.clone() });
        self.run = Some((run.clone(), experiment_id));
        let have = |metric: &Metric| self.there.get(&metric.key).is_none_or(|last| metric.step > *last);
        self.metrics.retain(have);
        Ok(run)
    }

    /// The run there that has told of this one, alone or with others that it went on with.
    fn find(&self, experiment: &str, begin: &Begin) -> Result<Option<String>, Fault> {
        let found = match self.client.get("experiments/get-by-name", &[("experiment_name", experiment)]) {
            Err(Fault::Never { code, .. }) if code == "RESOURCE_DOES_NOT_EXIST" => return Ok(None),
            found => found?,
        };
        let Some(id) = found["experiment"]["experiment_id"].as_str() else { return Ok(None) };
        let filter = format!("tags.`sami.runs` LIKE '%{}%'", begin.name);
        let asked = json!({"experiment_ids": [id], "filter": filter, "max_results": 1});
        let found = self.client.post("runs/search", &asked)?;
        Ok(found["runs"][0]["info"]["run_id"].as_str().map(str::to_owned))
    }

    /// Takes up a run that is there; `None` if it is not, or was deleted.
    fn take_up(&mut self, run: &str, begin: &Begin) -> Result<Option<(String, String)>, Fault> {
        let found = match self.client.get("runs/get", &[("run_id", run)]) {
            Err(Fault::Never { code, .. }) if code == "RESOURCE_DOES_NOT_EXIST" => return Ok(None),
            found => found?,
        };
        let info = &found["run"]["info"];
        let Some(experiment) = info["experiment_id"].as_str().filter(|_| info["lifecycle_stage"] != "deleted") else {
            return Ok(None);
        };
        for metric in found["run"]["data"]["metrics"].as_array().into_iter().flatten() {
            // Protocol buffers write large numbers as texts.
            let step = metric["step"].as_u64().or_else(|| metric["step"].as_str()?.parse().ok()).unwrap_or(0);
            self.there.extend(metric["key"].as_str().map(|key| (key.to_owned(), step)));
        }
        if self.about.again {
            let tags = found["run"]["data"]["tags"].as_array();
            let runs = tags.into_iter().flatten().find(|tag| tag["key"] == "sami.runs");
            let last = runs.and_then(|tag| tag["value"].as_str()?.split(' ').next_back());
            self.later = last.is_some_and(|last| last != begin.name);
            return Ok(Some((run.to_owned(), experiment.to_owned())));
        }
        self.client.post("runs/update", &json!({"run_id": run, "status": "RUNNING"}))?;
        let tag = json!({"run_id": run, "key": "sami.runs", "value": begin.runs.join(" ")});
        self.client.post("runs/set-tag", &tag)?;
        Ok(Some((run.to_owned(), experiment.to_owned())))
    }

    fn create(&self, experiment: &str, begin: &Begin) -> Result<(String, String), Fault> {
        let experiment = self.experiment(experiment)?;
        let tags = [
            ("mlflow.source.name", self.about.file.clone()),
            ("mlflow.source.type", "LOCAL".to_owned()),
            ("sami.runs", begin.runs.join(" ")),
            ("sami.pipeline", begin.pipeline.clone()),
            ("sami.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("sami.host", host()),
        ];
        let tags: Vec<Value> = tags.into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        let asked = json!({
            "experiment_id": experiment,
            "run_name": begin.name,
            "start_time": begin.at.as_millisecond(),
            "tags": tags,
        });
        let made = self.client.post("runs/create", &asked)?;
        let run = made["run"]["info"]["run_id"].as_str().ok_or_else(no_server)?;
        Ok((run.to_owned(), experiment))
    }

    /// The id of an experiment, which is made if it is not there.
    fn experiment(&self, name: &str) -> Result<String, Fault> {
        let find = || self.client.get("experiments/get-by-name", &[("experiment_name", name)]);
        let found = match find() {
            Err(Fault::Never { code, .. }) if code == "RESOURCE_DOES_NOT_EXIST" => {
                match self.client.post("experiments/create", &json!({"name": name})) {
                    Ok(made) => return made["experiment_id"].as_str().map(str::to_owned).ok_or_else(no_server),
                    // Another run has made it just now.
                    Err(Fault::Never { code, .. }) if code == "RESOURCE_ALREADY_EXISTS" => find()?,
                    Err(fault) => return Err(fault),
                }
            }
            found => found?,
        };
        let experiment = &found["experiment"];
        if experiment["lifecycle_stage"] == "deleted" {
            let said =
                format!("the experiment `{name}` was deleted there; restore it, or name another one with `experiment`");
            return Err(Fault::Never { status: 404, code: String::new(), said });
        }
        experiment["experiment_id"].as_str().map(str::to_owned).ok_or_else(no_server)
    }

    fn push(&mut self, metric: Metric) {
        if self.refused {
            self.lost += 1;
            return;
        }
        let may_send = self.failures == 0 || self.next <= Instant::now();
        if self.about.again && self.metrics.len() >= MOST_TOLD_AGAIN && may_send {
            // All comes at once, and there is no run to hold up; what does not arrive is told at the end.
            let said = self.act();
            if self.refused {
                self.refusal = said;
                self.lost += 1;
                return;
            }
        }
        if self.metrics.len() >= MOST_WAITING {
            self.metrics.pop_front();
            self.lost += 1;
        }
        self.metrics.push_back(metric);
    }

    /// Takes a fault into account; returns what there is to say about it: once, not at each try.
    fn fail(&mut self, fault: Fault) -> Option<Diagnostic> {
        match fault {
            Fault::Again(what) => {
                self.failures += 1;
                self.next = Instant::now() + LONGEST.min(BEAT * 2u32.saturating_pow(self.failures - 1));
                tracing::debug!("the MLflow server could not be told, {} times in a row: {what}", self.failures);
                (self.failures == 1).then(|| {
                    Diagnostic::warning(
                        "trackers::mlflow-away",
                        format!("the MLflow server at {} cannot be told of the run", self.url),
                    )
                    .note(what)
                    .help(
                        "the run goes on, and the server is tried again; nothing is lost, the metrics are in the cache",
                    )
                })
            }
            Fault::Never { status, said, .. } => {
                self.refused = true;
                self.lost += self.metrics.len();
                self.metrics.clear();
                let status = if status == 0 { String::new() } else { format!(" ({status})") };
                let fault = Diagnostic::warning(
                    "trackers::mlflow-refused",
                    format!("the MLflow server at {} does not take the run{status}", self.url),
                );
                let fault = if said.is_empty() { fault } else { fault.note(said) };
                Some(match status.as_str() {
                    " (401)" | " (403)" => fault.help(
                        "set `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, to what the server knows",
                    ),
                    _ => fault.help("check `mlflow` in `sami.toml`: it is the address that a browser shows MLflow at"),
                })
            }
        }
    }
}

impl Tracker for Mlflow {
    fn take(&mut self, note: Note) {
        match note {
            Note::Begin(begin) => {
                let cut = |text: String| text.chars().take(LONGEST_VALUE).collect();
                let params = self.about.params.iter().map(|(name, value)| (key(name), cut(shown(value))));
                self.params = params.collect();
                self.begin = Some(begin);
                self.next = Instant::now();
            }
            Note::Attempt { .. } => {}
            Note::Step { node, step, figures, at } => {
                let folder = format!("train/{node}");
                for (name, value) in figures {
                    let key = key(&format!("{folder}/{name}"));
                    // An attempt that goes on from a checkpoint tells the steps before it again.
                    let known = self.steps.get(&key).max(self.there.get(&key));
                    if known.is_none_or(|known| step > *known) {
                        self.steps.insert(key.clone(), step);
                        self.push(Metric { key, value, step, at: at.as_millisecond() });
                    }
                }
            }
            Note::Result { node, figures, at, old } => {
                let (stem, step) = iteration(&node);
                for (name, value) in figures {
                    let key = key(&format!("{stem}/{name}"));
                    if !(old && self.there.get(&key).is_some_and(|last| step <= *last)) {
                        self.push(Metric { key, value, step, at: at.as_millisecond() });
                    }
                }
            }
            Note::End(outcome, at) => self.end = Some((outcome, at.as_millisecond())),
        }
    }

    fn due(&self) -> Option<Instant> {
        let waits = self.begin.is_some() && self.run.is_none() || !self.metrics.is_empty() || !self.params.is_empty();
        (waits && !self.refused).then_some(self.next)
    }

    fn act(&mut self) -> Option<Diagnostic> {
        match self.send() {
            Ok(()) => {
                self.failures = 0;
                self.next = Instant::now() + BEAT;
                None
            }
            Err(fault) => self.fail(fault),
        }
    }

    fn close(&mut self) -> (Option<Diagnostic>, Option<String>) {
        let (tries, pause) = LAST_TRIES;
        let mut wrong = None;
        for attempt in 0..tries {
            if self.refused {
                break;
            }
            match self.send() {
                Ok(()) => {
                    wrong = None;
                    break;
                }
                Err(fault @ Fault::Never { .. }) => return (self.fail(fault), self.place()),
                Err(Fault::Again(what)) => wrong = Some(what),
            }
            if attempt + 1 < tries {
                std::thread::sleep(pause);
            }
        }
        let lost = self.lost + self.metrics.len();
        let incomplete = |fault: Diagnostic| {
            let fault = if lost > 0 { fault.note(format!("{lost} metrics did not arrive")) } else { fault };
            fault.help("all of it is in the cache: `sami show RUN`, and `train.jsonl` in models")
        };
        let wrong = match wrong.or(self.disliked.take()) {
            Some(what) => Some(incomplete(unreached(&self.url).note(what))),
            None if self.lost > 0 && !self.refused => Some(incomplete(unreached(&self.url))),
            None => None,
        };
        (self.refusal.take().or(wrong), self.place())
    }
}

impl Mlflow {
    /// Where the run is shown.
    fn place(&self) -> Option<String> {
        let (run, experiment) = self.run.as_ref()?;
        Some(format!("{}/#/experiments/{experiment}/runs/{run}", self.url))
    }
}

impl Metric {
    /// As the API takes it; JSON has no number that is none.
    fn json(&self) -> Value {
        let value = if self.value.is_finite() {
            json!(self.value)
        } else if self.value.is_nan() {
            json!("NaN")
        } else {
            json!(if self.value > 0.0 { "Infinity" } else { "-Infinity" })
        };
        json!({"key": self.key, "value": value, "step": self.step, "timestamp": self.at})
    }
}

/// What is said if the server is slower than a run waits at its end.
pub(super) fn late(settings: &MlflowSettings) -> Diagnostic {
    unreached(&settings.url)
        .note(format!("it was waited for {} seconds", settings.timeout.as_secs()))
        .help("give it longer with `timeout` in `[mlflow]`; all of it is in the cache")
}

fn unreached(url: &str) -> Diagnostic {
    Diagnostic::warning(
        "trackers::mlflow-incomplete",
        format!("the MLflow server at {url} was not told of all of the run"),
    )
}

fn no_server() -> Fault {
    Fault::Never { status: 0, code: String::new(), said: "what answers is no MLflow server".to_owned() }
}

/// A name as MLflow takes it: `evaluate[seed=1]@2/win_rate` is `evaluate.seed-1.2/win_rate`.
fn key(name: &str) -> String {
    let letter = |letter: char| match letter {
        letter if letter.is_ascii_alphanumeric() || "_-. /".contains(letter) => Some(letter),
        '@' | '[' | ',' | '#' => Some('.'),
        '=' | ':' => Some('-'),
        ']' => None,
        _ => Some('_'),
    };
    name.chars().filter_map(letter).take(LONGEST_NAME).collect()
}

#[cfg(test)]
mod tests;
