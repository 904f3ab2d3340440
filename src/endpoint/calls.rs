//! Many calls to one endpoint: a few at once, tried again with growing pauses, stopped when the run is.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Calling, Client, Conversation, EndpointError, Fault, Reply, Settings};

/// The pause before the second try, at most; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause of one's own accord.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause that a server may ask for.
const LONGEST_WISH: Duration = Duration::from_secs(600);
/// How often a server is asked at most that has never answered: its address may be wrong.
const STRANGER: u32 = 3;
/// How soon a pause ends when the run is stopped.
const BEAT: Duration = Duration::from_millis(50);
/// How long a run that is stopped waits for the calls that are under way, so that they are not paid for in vain.
const GRACE: Duration = Duration::from_secs(10);

/// What calls came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Calls that were answered.
    pub calls: u64,
    /// Tries beyond the first of a call.
    pub retries: u64,
    /// Tokens of prompts, as the server counts.
    pub prompt_tokens: u64,
    /// Tokens of answers, as the server counts.
    pub completion_tokens: u64,
}

impl Tally {
    /// Of these calls and those.
    pub fn and(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            retries: self.retries + other.retries,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            completion_tokens: self.completion_tokens + other.completion_tokens,
        }
    }
}

/// How a number of calls ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// All were answered.
    Done,
    /// They were stopped before.
    Stopped,
    /// One was not answered.
    Failed {
        /// Its place.
        at: usize,
        /// Why.
        error: EndpointError,
    },
}

/// What the threads share.
struct Shared {
    client: Client,
    settings: Settings,
    retries: u32,
    said: Vec<Conversation>,
    next: AtomicUsize,
    retried: AtomicU64,
    /// Whether the server has answered anything yet.
    reached: AtomicBool,
    stop: AtomicBool,
}

/// What a thread hands over.
struct Handed {
    at: usize,
    reply: Result<Reply, EndpointError>,
    /// Hung up once the answer is taken care of.
    taken: SyncSender<()>,
}

/// Makes a call for each conversation, and hands over each answer with its place as soon as it is there, on the caller's
/// thread. Stops when `cancel` is set, when `take` returns false, or with the first call that fails for good; answers of calls that
/// were under way are still handed over, if they come soon.
pub fn ask_all(
    client: &Client,
    calling: &Calling,
    said: Vec<Conversation>,
    settings: &Settings,
    cancel: &AtomicBool,
    take: &mut dyn FnMut(usize, Reply) -> bool,
) -> (Tally, End) {
    let threads = calling.concurrency.clamp(1, said.len().max(1));
    let shared = Arc::new(Shared {
        client: client.clone(),
        settings: settings.clone(),
        retries: calling.retries,
        said,
        next: AtomicUsize::new(0),
        retried: AtomicU64::new(0),
        reached: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    });
    let (sender, answers) = channel();
    for _ in 0..threads {
        let (shared, sender) = (Arc::clone(&shared), sender.clone());
        // Not joined: one that waits for a server that hangs is left to itself when the run is stopped.
        std::thread::spawn(move || shared.work(&sender));
    }
    drop(sender);
    let (mut tally, mut end) = (Tally::default(), End::Done);
    let mut stopping: Option<Instant> = None;
    loop {
        match answers.recv_timeout(BEAT) {
            Ok(Handed { at, reply: Ok(reply), taken }) => {
                tally.calls += 1;
                tally.prompt_tokens += reply.prompt_tokens;
                tally.completion_tokens += reply.completion_tokens;
                if !take(at, reply) && end == End::Done {
                    end = End::Stopped;
                }
                if end != End::Done {
                    shared.stop.store(true, Ordering::Relaxed);
                }
                drop(taken);
            }
            Ok(Handed { at, reply: Err(error), .. }) => {
                if !matches!(end, End::Failed { .. }) {
                    end = End::Failed { at, error };
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if end == End::Done && cancel.load(Ordering::Relaxed) {
            end = End::Stopped;
        }
        if end != End::Done {
            shared.stop.store(true, Ordering::Relaxed);
            if stopping.get_or_insert_with(Instant::now).elapsed() >= GRACE {
                tracing::warn!("calls that are under way are given up");
                break;
            }
        }
    }
    // Between the last answer and the end nothing may be left undone.
    if end == End::Done && tally.calls < shared.said.len() as u64 {
        end = End::Stopped;
    }
    tally.retries = shared.retried.load(Ordering::Relaxed);
    (tally, end)
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Makes calls until there are no more.
    fn work(&self, answers: &Sender<Handed>) {
        while !self.stopped() {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(said) = self.said.get(at) else { break };
            let Some(reply) = self.answer(said) else { break };
            if reply.is_err() {
                self.stop.store(true, Ordering::Relaxed);
            }
            let (taken, done) = sync_channel(1);
            // Who does not listen any more has given the calls up.
            if answers.send(Handed { at, reply, taken }).is_err() {
                break;
            }
            // The next call is begun when this answer is kept: so a kill costs the calls that are under way and no more.
            let _ = done.recv();
        }
    }

    /// One answer; `None` if stopped before.
    fn answer(&self, said: &Conversation) -> Option<Result<Reply, EndpointError>> {
        let expected = said.tokens() + self.settings.max_new_tokens as u64;
        let mut pause = FIRST_PAUSE;
        for number in 1.. {
            while let Some(wait) = self.client.pace(|pace| pace.take(expected, Instant::now())) {
                self.sleep(wait)?;
            }
            if self.stopped() {
                return None;
            }
            let (what, after) = match self.client.call(said, &self.settings) {
                Ok(reply) => {
                    let tokens = reply.prompt_tokens + reply.completion_tokens;
                    self.client.pace(|pace| pace.settle(expected, tokens));
                    self.reached.store(true, Ordering::Relaxed);
                    return Some(Ok(reply));
                }
                Err(Fault::Never(error)) => return Some(Err(error)),
                // What is under way is waited for; nothing more is begun.
                Err(Fault::Unpaid) => {
                    self.stop.store(true, Ordering::Relaxed);
                    return None;
                }
                Err(Fault::Again { what, after, reached }) => {
                    self.reached.fetch_or(reached, Ordering::Relaxed);
                    (what, after.map(|after| after.min(LONGEST_WISH)))
                }
            };
            let stranger = number >= STRANGER && !self.reached.load(Ordering::Relaxed);
            if number > self.retries || stranger {
                let (model, url) = (self.client.model().to_owned(), self.client.url().to_owned());
                return Some(Err(EndpointError::GaveUp { model, tries: number, what, url }));
            }
            tracing::warn!("try {number} of a call: {what}");
            if let Some(after) = after {
                self.client.pace(|pace| pace.hold(Instant::now() + after));
            }
            self.retried.fetch_add(1, Ordering::Relaxed);
            self.sleep(pause.mul_f64(0.5 + 0.5 * chance()).max(after.unwrap_or_default()))?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        None
    }

    /// Sleeps; `None` if stopped before.
    fn sleep(&self, pause: Duration) -> Option<()> {
        let until = Instant::now() + pause.min(LONGEST_WISH);
        loop {
            if self.stopped() {
                return None;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(());
            }
            std::thread::sleep(left.min(BEAT));
        }
    }
}

/// A number from 0 to 1, another one each time: so that callers that failed together do not try again together. Nothing
/// that is computed depends on it.
fn chance() -> f64 {
    (RandomState::new().hash_one(0_u8) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_differ_and_lie_between_0_and_1() {
        let chances: Vec<f64> = (0..100).map(|_| chance()).collect();
        assert!(chances.iter().all(|chance| (0.0..1.0).contains(chance)));
        let mean = chances.iter().sum::<f64>() / 100.0;
        assert!((0.3..0.7).contains(&mean), "{mean}");
    }
}
