//! The thread that stands between a run and its engine: it submits in batches, listens to what workers say in their
//! files, and polls for all jobs in one call. What it finds out goes to the scheduler's inbox like the words of workers on
//! sockets.
//!
//! What decides that an attempt is over is its worker's record; the engine is asked only whether there is still someone
//! who may write one. A job that is over without a record gets the time that a file may take to be seen from here, and so does one
//! whose record is there before what it made.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::fate::Fate;
use super::{Engine, Refusal, Seen, Standing, Submission};
use crate::diag::Diagnostic;
use crate::exec::job::{JobResult, STOP_FILE, Word};
use crate::exec::local::Message;
use crate::fs;
use crate::store::Store;

mod tail;
mod watched;

use watched::Watched;

/// Between two looks at the files of few jobs. Of many, so many times as long as a look takes, or, where jobs are submitted meanwhile and
/// so may end, fewer.
const LOOK: Duration = Duration::from_millis(200);
const IDLE: u32 = 40;
const BUSY: u32 = 10;
/// What is ordered so soon after another part of a node goes to the engine together with it, and how long that is waited for in all.
const NEXT_PART: Duration = Duration::from_millis(10);
const ALL_PARTS: Duration = Duration::from_millis(200);
/// The wait until the second try to submit what the engine cannot take just now, if that is not longer than between two polls; each further one is
/// twice as long, up to the longest.
const WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Failures of the engine in a row after which that is told.
const TELL_AFTER: u32 = 3;

/// How often it looks, and how long it waits.
#[derive(Debug, Clone, Copy)]
pub(in crate::exec) struct Rhythm {
    /// Between two polls.
    pub(in crate::exec) interval: Duration,
    /// How long a file may take to be seen.
    pub(in crate::exec) lag: Duration,
}

impl Rhythm {
    /// How long what could not be submitted waits after so many tries before the last.
    fn wait(self, tries: u32) -> Duration {
        (WAIT.min(self.interval) * (1 << tries.min(6))).min(LONGEST_WAIT)
    }
}

/// What the scheduler wants of it. Attempts have the numbers that the scheduler knows them by.
#[derive(Debug)]
pub(in crate::exec) enum Order {
    /// Submit a job.
    Submit {
        /// Which attempt.
        attempt: u64,
        /// The job.
        submission: Box<Submission>,
        /// What the disk is to be waited for first.
        unsettled: Vec<PathBuf>,
    },
    /// Watch a job that an earlier scheduler submitted, perhaps.
    Adopt {
        /// Which attempt.
        attempt: u64,
        /// Its directory.
        directory: PathBuf,
        /// Its mark.
        mark: String,
        /// Its id, if that was written down.
        job: Option<String>,
    },
    /// Have it save and end; if it waits, it is cancelled.
    Stop {
        /// Which attempt.
        attempt: u64,
    },
    /// End it.
    Cancel {
        /// Which attempt.
        attempt: u64,
    },
}

/// What is seen of a job.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::exec) enum Sight {
    /// The engine has it.
    Submitted {
        /// The job's id.
        job: String,
        /// What a person types to see it.
        look: String,
    },
    /// It waits, for another reason than before, or runs on a machine.
    At(Seen),
    /// The engine is out of reach: nothing is known of its jobs.
    Blind {
        /// What it says.
        what: String,
    },
    /// It is over.
    Over(Box<Fate>),
}

/// The thread, as the scheduler has it. When this is dropped the thread ends; jobs go on.
#[derive(Debug)]
pub(in crate::exec) struct Watcher {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts it; what jobs make is to be seen in `cache`.
    pub(in crate::exec) fn start(
        engine: Arc<dyn Engine>,
        rhythm: Rhythm,
        inbox: Sender<Message>,
        cache: &Path,
    ) -> std::io::Result<Self> {
        let (orders, taken) = channel();
        let store = Store::open_existing(cache).ok();
        let watch = Watch { engine, rhythm, inbox, store, jobs: BTreeMap::new(), polled: None, failures: 0 };
        let thread = std::thread::Builder::new().name("watcher".to_owned()).spawn(move || watch.run(&taken))?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Gives an order.
    pub(in crate::exec) fn order(&self, order: Order) {
        // The thread lives as long as this.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watch {
    engine: Arc<dyn Engine>,
    rhythm: Rhythm,
    inbox: Sender<Message>,
    /// Where what jobs make is seen; `None` if no one looks.
    store: Option<Store>,
    jobs: BTreeMap<u64, Watched>,
    polled: Option<Instant>,
    failures: u32,
}

impl Watch {
    fn run(mut self, orders: &Receiver<Order>) {
        let (mut listened, mut took) = (Instant::now(), Duration::ZERO);
        loop {
            let look = LOOK.max(took * IDLE).min(self.rhythm.interval);
            let first = if self.jobs.is_empty() {
                orders.recv().map_err(RecvTimeoutError::from)
            } else {
                orders.recv_timeout(look.saturating_sub(listened.elapsed()))
            };
            match first {
                Ok(order) => {
                    let mut wait = wait_after(&order);
                    self.take(order);
                    // What was ordered in the meantime is done in the same calls, and parts of a node become one array.
                    let began = Instant::now();
                    while let Ok(order) = orders.recv_timeout(wait) {
                        wait = if began.elapsed() < ALL_PARTS { wait.max(wait_after(&order)) } else { Duration::ZERO };
                        self.take(order);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The scheduler is done.
                Err(RecvTimeoutError::Disconnected) => return self.submit(),
            }
            self.submit();
            // Not after each order where there are many jobs: the files of all of them are looked at.
            if listened.elapsed() >= look.min(took * BUSY) {
                let (begun, before) = (Instant::now(), self.jobs.len().max(1));
                self.listen();
                // As far as it was about jobs that are still there.
                took = begun.elapsed().mul_f64(self.jobs.len() as f64 / before as f64);
                listened = Instant::now();
            }
            if !self.jobs.is_empty() && self.polled.is_none_or(|polled| polled.elapsed() >= self.rhythm.interval) {
                self.poll();
                self.polled = Some(Instant::now());
                self.listen();
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Submit { attempt, submission, unsettled } => {
                let (directory, mark) = (submission.directory.clone(), submission.mark.clone());
                let waiting = Some((submission, 0, Instant::now()));
                self.jobs.insert(attempt, Watched { waiting, unsettled, ..Watched::new(directory, mark, None) });
            }
            Order::Adopt { attempt, directory, mark, job } => {
                self.jobs.insert(attempt, Watched::new(directory, mark, job));
                // Whether it is there at all is to be known soon.
                self.polled = None;
            }
            Order::Stop { attempt } => self.stop(attempt),
            Order::Cancel { attempt } => {
                self.write_stop(attempt);
                self.cancel(&[attempt]);
            }
        }
    }

    fn stop(&mut self, attempt: u64) {
        self.write_stop(attempt);
        let waits =
            |job: &Watched| !matches!(&job.seen, Some(Seen { state: Standing::Runs, .. })) && !job.words.heard();
        if self.jobs.get(&attempt).is_some_and(waits) {
            self.cancel(&[attempt]);
        }
    }

    /// Puts the file beside the job that makes its worker save and end.
    fn write_stop(&mut self, attempt: u64) {
        let Some(job) = self.jobs.get_mut(&attempt) else { return };
        if !std::mem::replace(&mut job.stopped, true)
            && let Err(error) = fs::write(&job.directory.join(STOP_FILE), "")
        {
            tracing::warn!("{} cannot be told to stop: {error}", job.mark);
        }
    }

    fn cancel(&mut self, attempts: &[u64]) {
        for attempt in attempts {
            let never = |job: &mut Watched| job.waiting.take().is_some();
            if self.jobs.get_mut(attempt).is_some_and(never) {
                self.end(*attempt, Fate::default());
            }
        }
        let jobs: Vec<&str> = attempts.iter().filter_map(|attempt| self.jobs.get(attempt)?.job.as_deref()).collect();
        if jobs.is_empty() {
            return;
        }
        if let Err(refusal) = self.engine.cancel(&jobs) {
            tracing::warn!("{} cannot be cancelled: {}", jobs.join(", "), refusal.line());
        }
        self.polled = None;
    }

    /// Submits what waits for it.
    fn submit(&mut self) {
        let now = Instant::now();
        let is_due = |job: &Watched| job.waiting.as_ref().is_some_and(|(_, _, due)| *due <= now);
        let due: Vec<u64> = self.jobs.iter().filter(|(_, job)| is_due(job)).map(|(attempt, _)| *attempt).collect();
        if due.is_empty() {
            return;
        }
        let due = self.unsubmitted(due);
        let due = self.settled(due);
        let submission = |attempt: &u64| Some((*self.jobs.get(attempt)?.waiting.as_ref()?.0).clone());
        let batch: Vec<Submission> = due.iter().filter_map(submission).collect();
        for (attempt, outcome) in due.into_iter().zip(self.engine.submit(&batch)) {
            let Some(job) = self.jobs.get_mut(&attempt) else { continue };
            let Some((submission, tries, _)) = job.waiting.take() else { continue };
            match outcome {
                Ok(id) => {
                    job.job = Some(id.clone());
                    let look = self.engine.look(&id);
                    self.tell(attempt, Sight::Submitted { job: id, look });
                }
                Err(refusal) if refusal.passing => {
                    job.waiting = Some((submission, tries + 1, now + self.rhythm.wait(tries)));
                    self.tell(attempt, Sight::Blind { what: refusal.line() });
                }
                Err(refusal) => self.end(attempt, Fate { refusal: Some(refusal), ..Fate::default() }),
            }
        }
    }

    /// Of jobs to submit, those of which all is on the disk: one wait for it is for all of them. Without a ticket that lasts a job
    /// would not be found again, so there is none.
    fn settled(&mut self, due: Vec<u64>) -> Vec<u64> {
        let mut unsettled = Vec::new();
        for attempt in &due {
            unsettled
                .extend(self.jobs.get_mut(attempt).map(|job| std::mem::take(&mut job.unsettled)).unwrap_or_default());
        }
        let Err(error) = fs::settle(&unsettled) else { return due };
        let finding =
            Diagnostic::error("cluster::no-ticket", format!("what is to be submitted cannot be written down: {error}"));
        let refusal = Refusal {
            finding: Box::new(finding.help("see to the disk of the cache, and run it again")),
            passing: false,
        };
        for attempt in due {
            self.end(attempt, Fate { refusal: Some(refusal.clone()), ..Fate::default() });
        }
        Vec::new()
    }

    /// Of jobs to submit, those that are not with the engine yet: what it did not answer in time it may have taken all the same.
    fn unsubmitted(&mut self, due: Vec<u64>) -> Vec<u64> {
        let tried = |attempt: &&u64| self.jobs.get(attempt).is_some_and(|job| matches!(job.waiting, Some((_, 1.., _))));
        let marks: Vec<&str> = due.iter().filter(tried).map(|attempt| self.jobs[attempt].mark.as_str()).collect();
        if marks.is_empty() {
            return due;
        }
        let Ok(found) = self.engine.find(&marks) else {
            // To submit one that was taken would have two jobs at one attempt.
            let (fresh, tried): (Vec<u64>, Vec<u64>) = due.into_iter().partition(|attempt| !tried(&attempt));
            for attempt in tried {
                if let Some((_, tries, due)) = self.jobs.get_mut(&attempt).and_then(|job| job.waiting.as_mut()) {
                    *due = Instant::now() + self.rhythm.wait(*tries);
                    *tries += 1;
                }
            }
            return fresh;
        };
        let (mut left, mut told) = (Vec::new(), Vec::new());
        for attempt in due {
            match self.jobs.get_mut(&attempt).and_then(|job| Some((found.get(&job.mark)?.clone(), job))) {
                Some((id, job)) => {
                    (job.waiting, job.job) = (None, Some(id.clone()));
                    told.push((attempt, id));
                }
                None => left.push(attempt),
            }
        }
        for (attempt, job) in told {
            let look = self.engine.look(&job);
            self.tell(attempt, Sight::Submitted { job, look });
        }
        left
    }

    /// Tells what workers have said, and ends the attempts of those that have ended.
    fn listen(&mut self) {
        let mut ended = Vec::new();
        for (attempt, job) in &mut self.jobs {
            if job.waiting.is_some() {
                continue;
            }
            for word in job.words.read() {
                let _ = self.inbox.send(Message::Word { attempt: *attempt, word });
            }
            let exit = job.exit();
            let unseen = match (&self.store, exit.as_ref().map(|exit| &exit.result)) {
                (Some(store), Some(JobResult::Done { artifact, .. })) => !store.is_there(artifact),
                _ => false,
            };
            let lagged = job.over.as_ref().is_some_and(|(since, _)| since.elapsed() >= self.rhythm.lag);
            match exit {
                Some(_) if unseen && job.left.get_or_insert_with(Instant::now).elapsed() < self.rhythm.lag => {}
                // Of one that was told to stop, or failed, it should be known what its job came to.
                Some(exit)
                    if (exit.told.is_some() || matches!(exit.result, JobResult::Failed { .. }))
                        && !job.stopped
                        && self.failures == 0
                        && job.over.is_none()
                        && job.left.get_or_insert_with(Instant::now).elapsed() < self.rhythm.lag => {}
                Some(exit) => {
                    for word in job.words.read() {
                        let _ = self.inbox.send(Message::Word { attempt: *attempt, word });
                    }
                    let seen = job.over.take().and_then(|(_, seen)| seen);
                    ended.push((*attempt, Fate { exit: Some(exit), seen, unseen, refusal: None }));
                }
                None if lagged => {
                    let seen = job.over.take().and_then(|(_, seen)| seen);
                    ended.push((*attempt, Fate { seen, ..Fate::default() }));
                }
                None => {}
            }
        }
        for (attempt, fate) in ended {
            self.end(attempt, fate);
        }
    }

    /// Asks the engine for all jobs.
    fn poll(&mut self) {
        let outcome = self.find().and_then(|()| {
            let jobs: Vec<&str> = self.jobs.values().filter_map(|job| job.job.as_deref()).collect();
            if jobs.is_empty() { Ok(HashMap::new()) } else { self.engine.poll(&jobs) }
        });
        let mut seen = match outcome {
            Ok(seen) => {
                self.failures = 0;
                seen
            }
            Err(refusal) => {
                self.failures += 1;
                tracing::debug!("{} cannot be asked: {}", self.engine.name(), refusal.line());
                if self.failures == TELL_AFTER {
                    let attempts: Vec<u64> = self.jobs.keys().copied().collect();
                    for attempt in attempts.into_iter().take(1) {
                        self.tell(attempt, Sight::Blind { what: refusal.line() });
                    }
                }
                return;
            }
        };
        let mut told = Vec::new();
        for (attempt, job) in &mut self.jobs {
            if job.waiting.is_some() {
                continue;
            }
            let now = job.job.as_deref().and_then(|id| seen.remove(id));
            match &now {
                Some(seen) if !seen.state.is_over() => {
                    job.over = None;
                    if job.seen.as_ref() != Some(seen) {
                        told.push((*attempt, Sight::At(seen.clone())));
                    }
                }
                over => _ = job.over.get_or_insert_with(|| (Instant::now(), over.clone())),
            }
            job.seen = now.or(job.seen.take());
        }
        for (attempt, sight) in told {
            self.tell(attempt, sight);
        }
    }

    /// Looks for the ids of jobs of which only the mark is known.
    fn find(&mut self) -> Result<(), Refusal> {
        let nameless = |job: &&Watched| job.job.is_none() && job.waiting.is_none() && job.over.is_none();
        let marks: Vec<&str> = self.jobs.values().filter(nameless).map(|job| job.mark.as_str()).collect();
        if marks.is_empty() {
            return Ok(());
        }
        let found = self.engine.find(&marks)?;
        let mut told = Vec::new();
        for (attempt, job) in &mut self.jobs {
            if let Some(id) = found.get(&job.mark).filter(|_| job.job.is_none()) {
                job.job = Some(id.clone());
                told.push((*attempt, Sight::Submitted { job: id.clone(), look: self.engine.look(id) }));
            }
        }
        for (attempt, sight) in told {
            self.tell(attempt, sight);
        }
        Ok(())
    }

    fn end(&mut self, attempt: u64, fate: Fate) {
        // It may go on where it was thought lost: then it is to end before another one has done the work.
        if fate.exit.is_none() && fate.refusal.is_none() {
            self.write_stop(attempt);
        }
        if let Some(job) = self.jobs.remove(&attempt) {
            self.engine.over(job.job.as_deref().as_slice());
            self.tell(attempt, Sight::Over(Box::new(fate)));
        }
    }

    fn tell(&self, attempt: u64, sight: Sight) {
        // Without a scheduler no one is left to tell.
        let _ = self.inbox.send(Message::Sight { attempt, sight });
    }
}

/// How long the next order is waited for, to be done together with this one.
fn wait_after(order: &Order) -> Duration {
    match order {
        Order::Submit { submission, .. } if submission.group.is_some() => NEXT_PART,
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests;
