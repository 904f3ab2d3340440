//! What a run has come to, held against its budget.
//!
//! Approach: the ledger is asked before a node starts ([`Ledger::admit`]), hears what workers say, and tells which bounds are
//! reached. Calls and money are bounded strictly: one node at a time makes calls, is told all that is left, and begins none
//! beyond it. Time, tokens and disk are bounded by stopping: workers finish the batch and save.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::budget::{Budget, Item, Needs};
use crate::endpoint::{Allowance, Spent};

/// What is known of a node that asks to be started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking {
    pub(super) node: usize,
    /// GPUs that it will be on.
    pub(super) gpus: usize,
    pub(super) threads: usize,
    /// Whether it may call endpoints.
    pub(super) calls: bool,
    /// Whether an endpoint is its judge.
    pub(super) judge: bool,
    /// Calls that earlier attempts at its key have made: their answers are remembered.
    pub(super) made: u64,
    /// How much of the node it is about.
    pub(super) portion: Portion,
}

/// How much of a node an attempt is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portion {
    /// Parts that the node is in; none if the attempt finds all done.
    pub(super) of: usize,
    /// Parts that have not begun, this one among them: what is left of calls and money is for all of them.
    pub(super) open: usize,
}

impl Portion {
    /// All of it.
    pub(super) const WHOLE: Self = Self { of: 1, open: 1 };
    /// Nothing any more.
    pub(super) const NOTHING: Self = Self { of: 0, open: 1 };
}

/// Whether a node may start.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// It may, and may spend so much.
    Start(Allowance),
    /// Not before another one has ended.
    Wait,
    /// It may not; why.
    Refuse(String),
}

#[derive(Debug)]
struct Running {
    asking: Asking,
    began: Instant,
    allowance: Allowance,
    spent: Spent,
    /// How far it is, from 0 to 1.
    share: f64,
    /// Whether it was told to stop.
    told: bool,
}

impl Running {
    /// What it may spend, and has not.
    fn promised(&self, item: Item) -> f64 {
        let (allowance, spent) = (&self.allowance, &self.spent);
        let left = match item {
            Item::Calls => allowance.calls.map(|calls| calls.saturating_sub(spent.calls) as f64),
            Item::JudgeCalls => allowance.judge_calls.map(|calls| calls.saturating_sub(spent.judge_calls) as f64),
            Item::Dollars => allowance.dollars.map(|dollars| (dollars - spent.dollars).max(0.0)),
            _ => None,
        };
        left.unwrap_or(0.0)
    }
}

/// What a run has come to.
#[derive(Debug)]
pub(super) struct Ledger {
    budget: Budget,
    needs: HashMap<usize, Needs>,
    used: BTreeMap<Item, f64>,
    running: BTreeMap<u64, Running>,
    began: Instant,
    reached: BTreeSet<Item>,
    /// What is to be told at the end: bounds that were reached, and nodes that did not start.
    pub(super) told: Vec<String>,
    /// Nodes that wait for others to end.
    pub(super) waiting: Vec<usize>,
}

impl Ledger {
    /// Nothing used yet.
    pub(super) fn new(budget: Budget, needs: HashMap<usize, Needs>) -> Self {
        let (used, running, reached) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let began = Instant::now();
        Self { budget, needs, used, running, began, reached, told: Vec::new(), waiting: Vec::new() }
    }

    /// Whether there is nothing to keep to.
    pub(super) fn is_free(&self) -> bool {
        self.budget.is_none()
    }

    fn need(&self, asking: &Asking, item: Item) -> Option<f64> {
        let of = asking.portion.of as f64;
        if of == 0.0 {
            return Some(0.0);
        }
        let need = *self.needs.get(&asking.node)?.amounts.get(&item)?;
        Some(match item {
            Item::CpuHours => need * asking.threads as f64 / of,
            Item::Calls | Item::JudgeCalls => (need - asking.made as f64).max(0.0).min(need / of),
            _ => need / of,
        })
    }

    /// What a node that runs has used of something.
    fn use_of(&self, running: &Running, item: Item) -> f64 {
        let hours = running.began.elapsed().as_secs_f64() / 3600.0;
        let part = || self.need(&running.asking, item).unwrap_or(0.0) * running.share;
        match item {
            Item::Hours => 0.0,
            Item::GpuHours => hours * running.asking.gpus as f64,
            Item::CpuHours if running.asking.gpus > 0 => 0.0,
            Item::CpuHours => hours * running.asking.threads as f64,
            Item::Calls => running.spent.calls as f64,
            Item::JudgeCalls => running.spent.judge_calls as f64,
            Item::Dollars => running.spent.dollars,
            Item::Tokens => part().max(running.spent.tokens as f64),
            Item::Disk => part(),
        }
    }

    fn used(&self, item: Item) -> f64 {
        if item == Item::Hours {
            return self.began.elapsed().as_secs_f64() / 3600.0;
        }
        let ended = self.used.get(&item).copied().unwrap_or(0.0);
        ended + self.running.values().map(|running| self.use_of(running, item)).sum::<f64>()
    }

    /// Whether a node may start now.
    pub(super) fn admit(&self, asking: Asking) -> Verdict {
        let mut left_of = BTreeMap::new();
        let mut wait = false;
        for (&item, &bound) in &self.budget.bounds {
            let takes = match item {
                Item::Hours | Item::Tokens | Item::Disk => true,
                Item::GpuHours => asking.gpus > 0,
                Item::CpuHours => asking.gpus == 0,
                Item::Calls | Item::Dollars => asking.calls,
                Item::JudgeCalls => asking.judge,
            };
            if !takes {
                continue;
            }
            let strict = matches!(item, Item::Calls | Item::JudgeCalls | Item::Dollars);
            // What other parts of the node may still spend.
            let others = || self.running.values().filter(|running| running.asking.node == asking.node);
            let promised: f64 = if strict { others().map(|running| running.promised(item)).sum() } else { 0.0 };
            let (left, need) = ((bound - self.used(item) - promised).max(0.0), self.need(&asking, item));
            let has_others = others().next().is_some();
            let told = |what: &str| {
                Verdict::Refuse(format!("{what}, and {} of {} {item} are left", item.told(left), item.told(bound)))
            };
            match need {
                // Another part may leave some of what it has.
                Some(need) if has_others && need > left => return Verdict::Wait,
                None if has_others && (left <= 0.0 || strict && item != Item::Dollars && left < 1.0) => {
                    return Verdict::Wait;
                }
                Some(need) if need > left => {
                    return told(&format!("it needs about {} {item}", item.told(need)));
                }
                // What is known to need nothing may be had for nothing.
                Some(0.0) => {}
                _ if left <= 0.0 => return told("what it needs is not known"),
                _ => {}
            }
            let others = self.running.values();
            wait |= if strict {
                others.clone().any(|running| running.asking.calls && running.asking.node != asking.node)
            } else {
                let rest = |running: &Running| {
                    (self.need(&running.asking, item).unwrap_or(0.0) - self.use_of(running, item)).max(0.0)
                };
                item != Item::Hours && need.unwrap_or(0.0) > left - others.clone().map(rest).sum::<f64>()
            };
            left_of.insert(item, left);
        }
        if wait && !self.running.is_empty() {
            return Verdict::Wait;
        }
        let open = asking.portion.open.max(1);
        let whole = |item| {
            let left = left_of.get(&item).map(|left: &f64| left.floor() as u64)?;
            Some((left / open as u64).max(left.min(1)))
        };
        Verdict::Start(Allowance {
            calls: whole(Item::Calls),
            judge_calls: whole(Item::JudgeCalls),
            dollars: left_of.get(&Item::Dollars).map(|left| left / open as f64),
        })
    }

    /// An attempt begins.
    pub(super) fn begin(&mut self, serial: u64, asking: Asking, allowance: Allowance) {
        let (began, spent) = (Instant::now(), Spent::default());
        self.running.insert(serial, Running { asking, began, allowance, spent, share: 0.0, told: false });
    }

    /// A worker says what it has spent.
    pub(super) fn spent(&mut self, serial: u64, spent: Spent) {
        if let Some(running) = self.running.get_mut(&serial) {
            running.spent = spent;
        }
    }

    /// A worker says how far it is.
    pub(super) fn progress(&mut self, serial: u64, done: u64, total: u64) {
        if let Some(running) = self.running.get_mut(&serial) {
            running.share = done as f64 / total.max(1) as f64;
        }
    }

    /// Whether an attempt was told to stop, or stopped because it had spent what it might.
    pub(super) fn stopped(&self, serial: u64) -> bool {
        self.running.get(&serial).is_some_and(|running| running.told || running.spent.refused)
    }

    /// Whether an attempt stopped because it had spent what it might.
    pub(super) fn refused(&self, serial: u64) -> bool {
        self.running.get(&serial).is_some_and(|running| running.spent.refused && !running.told)
    }

    /// An attempt has ended; what it made is of so many bytes, with so many tokens. Of one that died without a word it is
    /// taken that it spent all that it might. Returns the calls that it made.
    pub(super) fn end(&mut self, serial: u64, made: Option<(u64, u64)>, silent: bool) -> u64 {
        let Some(mut running) = self.running.remove(&serial) else { return 0 };
        if silent {
            running.spent.calls = running.allowance.calls.unwrap_or(running.spent.calls);
            running.spent.judge_calls = running.allowance.judge_calls.unwrap_or(running.spent.judge_calls);
            running.spent.dollars = running.allowance.dollars.unwrap_or(running.spent.dollars);
        }
        for item in self.budget.bounds.keys() {
            let used = match (item, made) {
                (Item::Disk, made) => made.map_or(0.0, |(bytes, _)| bytes as f64),
                // The parts were counted.
                (Item::Tokens, Some(_)) if running.asking.portion.of == 0 => 0.0,
                (Item::Tokens, Some((_, tokens))) => tokens.max(running.spent.tokens) as f64,
                _ => self.use_of(&running, *item),
            };
            *self.used.entry(*item).or_insert(0.0) += used;
        }
        if running.spent.refused {
            let met = |item: &Item| self.budget.bounds.get(item).is_some_and(|bound| self.used(*item) >= *bound);
            let mut met: Vec<Item> = [Item::Calls, Item::JudgeCalls].into_iter().filter(met).collect();
            // A part had a share of what is left; others go on with theirs.
            let Asking { node, portion, .. } = running.asking;
            let had_all = portion.open == 1 && self.running.values().all(|other| other.asking.node != node);
            if met.is_empty() && had_all {
                // The next call might have cost more than was left.
                met.push(Item::Dollars);
            }
            self.note(|item| met.contains(&item));
        }
        running.spent.calls
    }

    /// Notes which bounds were met.
    fn note(&mut self, which: impl Fn(Item) -> bool) {
        for (&item, &bound) in &self.budget.bounds {
            if which(item) && self.reached.insert(item) {
                self.told.push(format!("{} of {} {item} are used", item.told(self.used(item)), item.told(bound)));
            }
        }
    }

    /// The attempts that have to stop because something that they use is used up, each told once.
    pub(super) fn over(&mut self) -> Vec<u64> {
        let mut stop = Vec::new();
        let bounds: Vec<(Item, f64)> = self.budget.bounds.iter().map(|(item, bound)| (*item, *bound)).collect();
        for (item, bound) in bounds {
            // Who makes calls stops by itself.
            if matches!(item, Item::Calls | Item::JudgeCalls | Item::Dollars) || self.used(item) < bound {
                continue;
            }
            let uses = |running: &Running| match item {
                Item::GpuHours => running.asking.gpus > 0,
                Item::CpuHours => running.asking.gpus == 0,
                _ => true,
            };
            let users: Vec<u64> = self
                .running
                .iter()
                .filter(|(_, running)| uses(running) && !running.told)
                .map(|(serial, _)| *serial)
                .collect();
            if !users.is_empty() {
                self.note(|other| other == item);
            }
            stop.extend(users);
        }
        for serial in &stop {
            if let Some(running) = self.running.get_mut(serial) {
                running.told = true;
            }
        }
        stop
    }

    /// When a bound on time may be reached next.
    pub(super) fn next(&self) -> Option<Duration> {
        let rate = |item: Item| -> f64 {
            let running = self.running.values().filter(|running| !running.told);
            match item {
                Item::Hours => f64::from(u8::from(running.count() > 0)),
                Item::GpuHours => running.map(|running| running.asking.gpus as f64).sum(),
                Item::CpuHours => running
                    .filter(|running| running.asking.gpus == 0)
                    .map(|running| running.asking.threads as f64)
                    .sum(),
                _ => 0.0,
            }
        };
        let bounds = self.budget.bounds.iter().map(|(item, bound)| (rate(*item), (bound - self.used(*item)).max(0.0)));
        let seconds = bounds.filter(|(rate, _)| *rate > 0.0).map(|(rate, left)| left * 3600.0 / rate);
        let next = seconds.min_by(f64::total_cmp)?;
        // A moment later, so that it is reached then.
        Some(Duration::from_secs_f64(next.min(86_400.0)) + Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{Likely, Likeness, Past};
    use crate::kinds::estimate::{Amount, Estimate};

    fn budget(text: &str) -> Budget {
        Budget::parse(text).expect("a budget")
    }

    fn asking(node: usize) -> Asking {
        Asking { node, gpus: 0, threads: 1, calls: true, judge: true, made: 0, portion: Portion::WHOLE }
    }

    fn needs(calls: u64) -> Needs {
        let amount = Some(Amount::at_most(calls));
        Needs::of(&Estimate { endpoint_calls: amount, judge_calls: amount, ..Estimate::default() }, Some(&past()))
    }

    fn past() -> Past {
        let seconds = Likely { low: 1800.0, middle: 3600.0, high: 7200.0 };
        Past { attempts: 1, likeness: Likeness::Node, seconds, tokens: None, calls: None, peak: None, gpu_peak: None }
    }

    #[test]
    fn a_node_that_would_pass_what_is_left_does_not_start() {
        let mut ledger = Ledger::new(budget("judge-calls=30"), [(0, needs(20)), (1, needs(20)), (2, needs(0))].into());
        let Verdict::Start(allowance) = ledger.admit(asking(0)) else { panic!("it may start") };
        assert_eq!(allowance, Allowance { judge_calls: Some(30), ..Allowance::default() });
        ledger.begin(7, asking(0), allowance);
        assert_eq!(ledger.admit(asking(1)), Verdict::Wait);
        ledger.spent(7, Spent { calls: 18, judge_calls: 18, ..Spent::default() });
        assert_eq!(ledger.end(7, Some((10, 10)), false), 18);
        let why = "it needs about 20 judge-calls, and 12 of 30 judge-calls are left";
        assert_eq!(ledger.admit(asking(1)), Verdict::Refuse(why.to_owned()));
        // Answers that are remembered need no calls.
        assert!(matches!(ledger.admit(Asking { made: 9, ..asking(1) }), Verdict::Start(_)));
        assert!(matches!(ledger.admit(Asking { judge: false, ..asking(9) }), Verdict::Start(_)));
        // One that dies without a word may have made them all.
        ledger.begin(8, asking(0), Allowance { judge_calls: Some(12), ..Allowance::default() });
        ledger.end(8, None, true);
        assert!(matches!(ledger.admit(asking(9)), Verdict::Refuse(_)));
        assert!(matches!(ledger.admit(asking(2)), Verdict::Start(_)));
    }

    #[test]
    fn parts_share_what_is_left_and_never_have_more_together() {
        let mut ledger = Ledger::new(budget("judge-calls=10, dollars=1"), HashMap::new());
        let part = |open| Asking { portion: Portion { of: 4, open }, ..asking(0) };
        let mut given = Vec::new();
        for (serial, open) in [(1, 4), (2, 3), (3, 2), (4, 1)] {
            let Verdict::Start(allowance) = ledger.admit(part(open)) else { panic!("it may start") };
            ledger.begin(serial, part(open), allowance);
            given.push((allowance.judge_calls.unwrap(), allowance.dollars.unwrap()));
        }
        assert_eq!(given.iter().map(|(calls, _)| calls).collect::<Vec<_>>(), [&2, &2, &3, &3]);
        assert!((given.iter().map(|(_, dollars)| dollars).sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(ledger.admit(part(1)), Verdict::Wait, "all is promised");
        // What one leaves another may have.
        ledger.spent(1, Spent { calls: 1, judge_calls: 1, dollars: 0.05, ..Spent::default() });
        ledger.end(1, None, false);
        let Verdict::Start(allowance) = ledger.admit(part(1)) else { panic!("it may start") };
        assert_eq!(allowance.judge_calls, Some(1));
        // Other nodes that call wait, as ever.
        assert_eq!(ledger.admit(asking(5)), Verdict::Wait);
    }

    #[test]
    fn attempts_stop_when_what_they_use_is_used_up() {
        let mut ledger = Ledger::new(budget("cpu-hours=1e-9, tokens=100"), HashMap::new());
        assert_eq!((ledger.next(), ledger.over()), (None, Vec::new()));
        let gpu = Asking { gpus: 1, ..asking(1) };
        ledger.begin(1, Asking { threads: 4, ..asking(0) }, Allowance::default());
        ledger.begin(2, gpu, Allowance::default());
        std::thread::sleep(ledger.next().expect("soon"));
        assert_eq!(ledger.over(), [1]);
        assert!(ledger.stopped(1) && !ledger.stopped(2));
        assert_eq!(ledger.over(), Vec::<u64>::new());
        ledger.spent(2, Spent { tokens: 100, ..Spent::default() });
        assert_eq!(ledger.over(), [2]);
        assert_eq!(ledger.told.len(), 2);
        ledger.end(2, Some((1, 120)), false);
        assert!(matches!(ledger.admit(gpu), Verdict::Refuse(_)));
    }

    #[test]
    fn hours_that_a_node_is_likely_to_take_are_looked_at_before() {
        let ledger = Ledger::new(budget("hours=0.5"), [(0, needs(0))].into());
        let Verdict::Refuse(why) = ledger.admit(asking(0)) else { panic!("an hour does not fit into half an hour") };
        assert_eq!(why, "it needs about 1.000 hours, and 0.500 of 0.500 hours are left");
        assert!(matches!(
            Ledger::new(budget("gpu-hours=0.5"), [(0, needs(0))].into()).admit(asking(0)),
            Verdict::Start(_)
        ));
        assert_eq!(Item::Disk.told(2.5e9), "2.3 GiB");
    }
}
