//! How a run goes, for programs that people already look with: event files for TensorBoard, and an MLflow server.
//!
//! A run neither waits for a tracker nor fails with one. Each has a thread and a queue of its own; a server that is slow is
//! told later and in larger batches, one that is away is tried again at growing intervals, and what never arrives costs a
//! warning. Only at its end a run waits, and no longer than it was told to. The numbers themselves are in the cache.
//!
//! Reading order: this file (threads and queues), `story` (what of a run's events is told), `tracked` (runs that go on where
//! another was stopped), `tensorboard` and `mlflow`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::exec::Event;
use crate::fs;
use crate::settings::{MlflowSettings, TensorboardSettings};

mod mlflow;
mod story;
mod tensorboard;
mod tracked;

use story::{Note, Story};
use tracked::Tracked;

/// How long whoever tells of a run that is over waits for a server that answers.
const AGAIN: Duration = Duration::from_secs(3600);
/// How long the disk may take at the end of a run for what is left to write.
const DISK: Duration = Duration::from_secs(5);

/// What trackers are told besides what happens.
#[derive(Debug, Clone)]
pub struct About {
    /// The cache.
    pub cache: PathBuf,
    /// The pipeline file as typed.
    pub file: String,
    /// Params after `--set`.
    pub params: BTreeMap<String, Value>,
    /// Stands for all that the pipeline asks for: a run that was stopped and the one that goes on with it have the same.
    pub identity: Digest,
    /// Whether it is told of after it was over, perhaps not for the first time: what a tracker has already stays as it is.
    pub again: bool,
}

/// Where trackers are.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The directory of event files.
    pub tensorboard: Option<PathBuf>,
    /// The server.
    pub mlflow: Option<MlflowSettings>,
}

impl Places {
    /// From settings; a directory that is relative is one of the project.
    pub fn of(
        tensorboard: Option<&TensorboardSettings>,
        mlflow: Option<&MlflowSettings>,
        cache: &std::path::Path,
        project: &std::path::Path,
    ) -> Self {
        let directory = |settings: &TensorboardSettings| match &settings.directory {
            Some(directory) => project.join(directory),
            None => cache.join("tensorboard"),
        };
        Self { tensorboard: tensorboard.map(directory), mlflow: mlflow.cloned() }
    }

    /// Whether no one is told.
    pub fn is_empty(&self) -> bool {
        self.tensorboard.is_none() && self.mlflow.is_none()
    }
}

/// A tracker, on its thread.
trait Tracker: Send {
    /// Takes what happened; quick.
    fn take(&mut self, note: Note);

    /// When there is something to do, if there is.
    fn due(&self) -> Option<Instant>;

    /// Does what there is to do. Returns what there is to say about it.
    fn act(&mut self) -> Option<Diagnostic>;

    /// Does what is left: the run is over. Returns what there is to say, and what was made of it, for people to look at.
    fn close(&mut self) -> (Option<Diagnostic>, Option<String>);
}

enum Message {
    Note(Note),
    Close,
}

/// A tracker as the run sees it.
struct Thread {
    inbox: Sender<Message>,
    ended: Receiver<(Option<Diagnostic>, Option<String>)>,
    /// How long it is waited for at the end.
    patience: Duration,
    /// What is said if that is not enough.
    late: Diagnostic,
}

/// All trackers of a run. Whoever drops it without [`Trackers::finish`] leaves them as a killed run would.
pub struct Trackers {
    story: Story,
    threads: Vec<Thread>,
    complaints: Receiver<Diagnostic>,
    tracked: Arc<Mutex<Tracked>>,
}

impl Trackers {
    /// Starts a thread for each. Nothing is written or sent before a node starts.
    pub fn start(places: &Places, about: About) -> Self {
        let tracked = Arc::new(Mutex::new(Tracked::new(&about)));
        let (complain, complaints) = channel();
        let mut threads = Vec::new();
        if let Some(directory) = &places.tensorboard {
            let late = Diagnostic::warning("trackers::tensorboard-late", "not all was written for TensorBoard")
                .note(format!("the disk of `{}` is slow", directory.display()));
            let tracker = tensorboard::Tensorboard::new(directory.clone(), &about);
            threads.push(Thread::start(Box::new(tracker), complain.clone(), DISK, late));
        }
        if let Some(settings) = &places.mlflow {
            let late = mlflow::late(settings);
            let tracker = mlflow::Mlflow::new(settings, &about, Arc::clone(&tracked));
            let patience = if about.again { AGAIN } else { settings.timeout };
            threads.push(Thread::start(Box::new(tracker), complain, patience, late));
        }
        Self { story: Story::new(about.again), threads, complaints, tracked }
    }

    /// Hands on what happened; returns what went wrong since the last time.
    pub fn tell(&mut self, event: &Event) -> Vec<Diagnostic> {
        self.tell_at(fs::now(), event)
    }

    /// As [`Trackers::tell`], of what happened at another time.
    pub fn tell_at(&mut self, at: Timestamp, event: &Event) -> Vec<Diagnostic> {
        for note in self.story.hear(at, event, &self.tracked) {
            for thread in &self.threads {
                // One that has ended has said why.
                let _ = thread.inbox.send(Message::Note(note.clone()));
            }
        }
        self.complaints.try_iter().collect()
    }

    /// Waits until all is told, as long as that may take. Returns what went wrong, and where people find what was told.
    pub fn finish(self) -> (Vec<Diagnostic>, Vec<String>) {
        let Some(ok) = self.story.outcome() else { return (Vec::new(), Vec::new()) };
        if let Some(note) = self.story.end() {
            self.threads.iter().for_each(|thread| _ = thread.inbox.send(Message::Note(note.clone())));
        }
        self.threads.iter().for_each(|thread| _ = thread.inbox.send(Message::Close));
        let began = Instant::now();
        let (mut wrong, mut places) = (Vec::new(), Vec::new());
        for thread in self.threads {
            match thread.ended.recv_timeout(thread.patience.saturating_sub(began.elapsed())) {
                Ok((last, place)) => {
                    wrong.extend(last);
                    places.extend(place);
                }
                Err(_) => wrong.push(thread.late),
            }
        }
        wrong.splice(..0, self.complaints.try_iter());
        if ok {
            held(&self.tracked).over();
        }
        (wrong, places)
    }
}

impl Thread {
    fn start(
        mut tracker: Box<dyn Tracker>,
        complain: Sender<Diagnostic>,
        patience: Duration,
        late: Diagnostic,
    ) -> Self {
        let (inbox, messages) = channel();
        let (end, ended) = channel();
        std::thread::spawn(move || {
            if serve(&mut *tracker, &messages, &complain) {
                // A run that no longer waits does not listen.
                let _ = end.send(tracker.close());
            }
        });
        Self { inbox, ended, patience, late }
    }
}

/// Serves a tracker until it is closed; returns whether it was.
fn serve(tracker: &mut dyn Tracker, messages: &Receiver<Message>, complain: &Sender<Diagnostic>) -> bool {
    loop {
        let message = match tracker.due() {
            None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => messages.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        let waiting = std::iter::from_fn(|| messages.try_recv().ok());
        let message = match message {
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => None,
            Ok(message) => Some(message),
        };
        for message in message.into_iter().chain(waiting) {
            match message {
                Message::Note(note) => tracker.take(note),
                Message::Close => return true,
            }
        }
        if tracker.due().is_some_and(|due| due <= Instant::now())
            && let Some(complaint) = tracker.act()
        {
            let _ = complain.send(complaint);
        }
    }
}

/// A param: a text without its quotes.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn held(tracked: &Mutex<Tracked>) -> MutexGuard<'_, Tracked> {
    tracked.lock().unwrap_or_else(PoisonError::into_inner)
}
