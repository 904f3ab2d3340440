//! Event files: `DIRECTORY/RUN/` has a file with the params and the metrics of nodes, by iteration, and
//! `DIRECTORY/RUN/NODE/` one an attempt with the figures of each step of training.
//!
//! What TensorBoard calls a run is a directory. An attempt that goes on from a checkpoint tells the steps before it again,
//! and its file says from where on it replaces what the files before it say: there is one curve, without a step twice.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde_json::Value;

use super::story::{Begin, Note, iteration};
use super::{About, Tracker, shown};
use crate::diag::Diagnostic;
use crate::exec::{attempt_directory, host};
use crate::fs;
use crate::shell::quoted;

mod event;

/// Writes event files.
#[derive(Debug)]
pub(super) struct Tensorboard {
    directory: PathBuf,
    params: BTreeMap<String, Value>,
    /// Where files of the run are, once it has begun; none after a file could not be written.
    run: Option<PathBuf>,
    /// Whether the run is told of after it was over.
    again: bool,
    /// Where its files are to be once all are there, of such a run.
    place: Option<PathBuf>,
    /// Whether it is there already: nothing is written.
    known: bool,
    /// Of the run itself under the empty name, else of nodes that train.
    files: BTreeMap<Arc<str>, File>,
    /// Files that this process has made.
    made: usize,
    /// The name of this machine, as far as it can be in a file's name.
    host: String,
    failed: bool,
}

/// A file, made once something is to be written.
#[derive(Debug, Default)]
struct File {
    writer: Option<fs::Writer>,
    waiting: Vec<u8>,
    /// Whether nothing more comes.
    ended: bool,
}

impl Tensorboard {
    pub(super) fn new(directory: PathBuf, about: &About) -> Self {
        let host = host().chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '-').collect();
        Self {
            directory,
            params: about.params.clone(),
            run: None,
            again: about.again,
            place: None,
            known: false,
            files: BTreeMap::new(),
            made: 0,
            host,
            failed: false,
        }
    }

    fn begin(&mut self, begin: &Begin) {
        let place = self.directory.join(&begin.name);
        if self.again {
            // What is half told, of an earlier time, is not seen.
            self.known = place.is_dir();
            self.run = Some(self.directory.join(format!("{}.unfinished", begin.name)));
            self.place = Some(place);
        } else {
            self.run = Some(place);
        }
        let at = seconds(begin.at);
        let cell = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
        let mut table = format!(
            "| | |\n|---|---|\n| pipeline | {} |\n| run | {} |\n",
            cell(&begin.pipeline),
            begin.runs.join(", ")
        );
        for (name, value) in &self.params {
            table.push_str(&format!("| {} | {} |\n", cell(name), cell(&shown(value))));
        }
        self.files.entry("".into()).or_default().waiting.extend(event::text(at, "run", &table));
    }

    fn write(&mut self) -> std::io::Result<()> {
        let Some(run) = &self.run else { return Ok(()) };
        if self.known {
            self.files.clear();
            return Ok(());
        }
        if self.again && self.made == 0 {
            fs::remove_directory(run)?;
        }
        for (node, file) in &mut self.files {
            if file.waiting.is_empty() {
                continue;
            }
            if file.writer.is_none() {
                let directory = run.join(directory(node));
                fs::create_directory(&directory)?;
                self.made += 1;
                let now = fs::now();
                // TensorBoard reads the files of a directory in the order of their names.
                let name = format!(
                    "events.out.tfevents.{:010}.{}.{}.{:05}",
                    now.as_second(),
                    self.host,
                    std::process::id(),
                    self.made
                );
                let mut writer = fs::writer(&directory.join(name))?;
                writer.write_all(&event::version(seconds(now)))?;
                file.writer = Some(writer);
            }
            if let Some(writer) = &mut file.writer {
                writer.write_all(&file.waiting)?;
                file.waiting.clear();
            }
        }
        self.files.retain(|_, file| !file.ended);
        Ok(())
    }

    /// All is written of a run that was over before.
    fn put(&mut self) -> std::io::Result<()> {
        self.write()?;
        let (Some(run), Some(place), false) = (&self.run, self.place.take(), self.known) else { return Ok(()) };
        self.files.clear();
        fs::rename(run, &place)
    }

    fn fail(&mut self, error: &std::io::Error) -> Diagnostic {
        self.failed = true;
        self.files.clear();
        Diagnostic::warning("trackers::tensorboard-unwritten", "event files for TensorBoard cannot be written")
            .note(error.to_string())
            .help("the run goes on without; all of it is in the cache")
    }
}

impl Tracker for Tensorboard {
    fn take(&mut self, note: Note) {
        if self.failed {
            return;
        }
        match note {
            Note::Begin(begin) => self.begin(&begin),
            // The next step begins a file.
            Note::Attempt { node } => _ = self.files.remove(&node),
            Note::Step { node, step, figures, at } => {
                let file = self.files.entry(node).or_default();
                let at = seconds(at);
                if file.writer.is_none() && file.waiting.is_empty() {
                    file.waiting.extend(event::start(at, step));
                }
                let tags: Vec<(String, f64)> =
                    figures.into_iter().map(|(name, value)| (format!("train/{name}"), value)).collect();
                file.waiting.extend(event::scalars(at, step, tags.iter().map(|(tag, value)| (tag.as_str(), *value))));
            }
            Note::Result { node, figures, at, .. } => {
                self.files.get_mut(&node).into_iter().for_each(|file| file.ended = true);
                let (stem, iteration) = iteration(&node);
                let tags: Vec<(String, f64)> =
                    figures.into_iter().map(|(name, value)| (format!("{stem}/{name}"), value)).collect();
                let values = tags.iter().map(|(tag, value)| (tag.as_str(), *value));
                let record = event::scalars(seconds(at), iteration, values);
                self.files.entry("".into()).or_default().waiting.extend(record);
            }
            Note::End(..) => {}
        }
    }

    fn due(&self) -> Option<Instant> {
        let waits = !self.failed && self.files.values().any(|file| !file.waiting.is_empty());
        waits.then(Instant::now)
    }

    fn act(&mut self) -> Option<Diagnostic> {
        let error = self.write().err()?;
        Some(self.fail(&error))
    }

    fn close(&mut self) -> (Option<Diagnostic>, Option<String>) {
        let error = if self.failed { None } else { self.put().err() };
        let wrong = error.map(|error| self.fail(&error));
        let written =
            (!self.failed && self.run.is_some()).then(|| format!("tensorboard --logdir {}", typed(&self.directory)));
        (wrong, written)
    }
}

/// The directory of a node within its run's.
fn directory(node: &str) -> String {
    if node.is_empty() {
        return String::new();
    }
    let name = attempt_directory(node, 0);
    name.strip_suffix(".0").unwrap_or(&name).to_owned()
}

/// A path as it is typed in a shell.
fn typed(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    quoted(&path.strip_prefix(here).unwrap_or(path).display().to_string())
}

fn seconds(at: Timestamp) -> f64 {
    at.as_nanosecond() as f64 / 1e9
}
