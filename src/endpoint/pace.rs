//! How many calls and tokens a minute: buckets that fill evenly, and pauses that the server asked for.

use std::time::{Duration, Instant};

use super::Calling;

/// What may be called when.
#[derive(Debug)]
pub(super) struct Pace {
    calls: Option<Bucket>,
    tokens: Option<Bucket>,
    /// Nobody calls before.
    held: Option<Instant>,
}

/// A bucket that runs full again at an even rate. What is taken may be more than there is, once: then it takes so much
/// longer until anything can be taken again. So a call that is larger than the bucket is made, too.
#[derive(Debug)]
struct Bucket {
    level: f64,
    most: f64,
    per_second: f64,
    at: Instant,
}

impl Bucket {
    /// Of so much a minute; what a second or two bring may be taken at once.
    fn new(per_minute: f64, burst: f64, now: Instant) -> Self {
        let most = (per_minute / 60.0 * burst).max(1.0);
        Self { level: most, most, per_second: per_minute / 60.0, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + seconds * self.per_second).min(self.most);
        self.at = now;
    }

    /// How long until it holds something.
    fn wait(&self, least: f64) -> Duration {
        // A little more, so that rounding does not make it two waits.
        Duration::try_from_secs_f64((least - self.level).max(0.0) / self.per_second * 1.001).unwrap_or(Duration::MAX)
    }
}

impl Pace {
    pub(super) fn new(calling: &Calling, now: Instant) -> Self {
        let calls = calling.requests_per_minute.map(|calls| Bucket::new(f64::from(calls), 1.0, now));
        let tokens = calling.tokens_per_minute.map(|tokens| Bucket::new(tokens as f64, 10.0, now));
        Self { calls, tokens, held: None }
    }

    /// Takes a call of about so many tokens; or says how long to wait before asking again.
    pub(super) fn take(&mut self, tokens: u64, now: Instant) -> Option<Duration> {
        let mut wait = self.held.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        for bucket in [&mut self.calls, &mut self.tokens].into_iter().flatten() {
            bucket.fill(now);
            wait = wait.max(bucket.wait(1.0));
        }
        if !wait.is_zero() {
            return Some(wait);
        }
        self.calls.iter_mut().for_each(|bucket| bucket.level -= 1.0);
        self.tokens.iter_mut().for_each(|bucket| bucket.level -= tokens as f64);
        None
    }

    /// Puts right what a call took: it was `tokens` and not `expected`.
    pub(super) fn settle(&mut self, expected: u64, tokens: u64) {
        self.tokens.iter_mut().for_each(|bucket| bucket.level += expected as f64 - tokens as f64);
    }

    /// Lets nobody call before.
    pub(super) fn hold(&mut self, until: Instant) {
        self.held = Some(self.held.map_or(until, |held| held.max(until)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When each of some calls is made, in seconds, if each is asked for as soon as it may be.
    fn times(calling: &Calling, calls: usize, tokens: u64) -> Vec<f64> {
        let start = Instant::now();
        let (mut now, mut pace) = (start, Pace::new(calling, start));
        let one = |_| {
            while let Some(wait) = pace.take(tokens, now) {
                now += wait;
            }
            (now - start).as_secs_f64()
        };
        (0..calls).map(one).collect()
    }

    #[test]
    fn calls_come_evenly() {
        let calling = Calling { requests_per_minute: Some(30), ..Calling::default() };
        let times = times(&calling, 5, 100);
        for (at, time) in times.iter().enumerate() {
            assert!((time - 2.0 * at as f64).abs() < 0.05, "{times:?}");
        }
        assert!(super::tests::times(&Calling::default(), 100, 1 << 20).iter().all(|time| *time == 0.0));
    }

    #[test]
    fn no_minute_has_more_tokens_than_it_may() {
        let calling = Calling { tokens_per_minute: Some(6000), ..Calling::default() };
        let times = times(&calling, 200, 500);
        let spent = |from: f64| times.iter().filter(|time| (from..from + 60.0).contains(*time)).count() as f64 * 500.0;
        let most = times.iter().map(|from| spent(*from)).fold(0.0, f64::max);
        // What is in the bucket at the start, and one call that is begun with little in it.
        assert!(most <= 6000.0 + 1000.0 + 500.0, "{most}");
        let last = times.last().expect("some");
        assert!((last / (200.0 * 500.0 / 100.0) - 1.0).abs() < 0.05, "no time is wasted: {last}");
        // Larger than a minute holds: made, and paid for by a longer wait.
        let large = super::tests::times(&calling, 2, 60_000);
        assert!(large[0] == 0.0 && (large[1] - 590.0).abs() < 2.0, "{large:?}");
    }

    #[test]
    fn what_is_settled_counts() {
        let start = Instant::now();
        let calling = Calling { tokens_per_minute: Some(60), ..Calling::default() };
        let mut pace = Pace::new(&calling, start);
        assert_eq!(pace.take(100, start), None);
        assert!(pace.take(100, start).expect("waits") > Duration::from_secs(80));
        pace.settle(100, 5);
        assert_eq!(pace.take(1, start), None);
        pace.hold(start + Duration::from_secs(7));
        pace.hold(start + Duration::from_secs(5));
        assert_eq!(pace.take(1, start), Some(Duration::from_secs(7)));
        assert_eq!(pace.take(1, start + Duration::from_secs(8)), None);
    }
}
