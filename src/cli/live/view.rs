//! A run as it is at a moment, in a few lines.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value;

use super::super::figures::{bytes, columns, count, cut, cut_middle, figure, seconds};
use super::super::outcomes::headline;
use super::gpu::Gpu;
use crate::exec::{Event, ShardState};
use crate::kinds::Progress;
use crate::plot::text::{Letters, bar};

/// Attempts that are drawn; of further ones how many there are is told.
const MOST: usize = 12;
/// What ends sooner is not drawn: it would only flicker.
const BRIEF: f64 = 0.4;
/// Moments that a rate is made from, a second apart.
const MOMENTS: usize = 30;
/// Columns from which on a part is cut rather than left out.
const SOME: usize = 24;
/// Narrowest and widest that names are.
const NAMES: (usize, usize) = (8, 32);

/// Where and how lines are drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Canvas {
    /// Columns; lines are narrower, so that none wraps.
    pub(super) width: usize,
    /// Rows.
    pub(super) height: usize,
    pub(super) letters: Letters,
    pub(super) coloured: bool,
}

/// A run as it is.
#[derive(Debug, Default)]
pub(crate) struct View {
    nodes: usize,
    hits: usize,
    ran: usize,
    failed: usize,
    skipped: usize,
    /// In the order in which they began.
    going: Vec<Going>,
    /// Nodes that other processes are at.
    waiting: BTreeSet<String>,
    /// Seconds that nodes which have not ended will take, as far as that is known.
    likely: BTreeMap<String, f64>,
    /// Seconds of attempts that have ended.
    worked: f64,
    note: Option<&'static str>,
    over: bool,
}

/// An attempt, or a download, that goes on.
#[derive(Debug)]
struct Going {
    name: String,
    device: String,
    attempt: u32,
    /// Seconds since the run began.
    began: f64,
    why: String,
    far: Option<Far>,
    /// Of a node in parts, those that are done and how many there are.
    shards: (usize, usize),
    /// Units done and in all of each of them.
    each: Vec<[u64; 2]>,
    /// Whether it counts bytes that come.
    download: bool,
}

/// How far an attempt is.
#[derive(Debug)]
struct Far {
    progress: Progress,
    /// Units done at some seconds of the attempt, the latest last.
    moments: VecDeque<(f64, u64)>,
}

impl View {
    /// What an event changes, at some seconds since the run began.
    pub(crate) fn take(&mut self, event: &Event, now: f64) {
        match event {
            Event::Start { nodes, hits, likely, .. } => {
                *self = Self { nodes: *nodes, hits: *hits, likely: likely.clone(), ..Self::default() };
            }
            Event::Download { name, finished: true, .. } => self.going.retain(|going| going.name != *name),
            Event::Download { name, done, total, seconds, .. } => {
                let progress = Progress { done: *done, total: *total, ..Progress::default() };
                self.begin(name, "", 1, now - seconds, true).far(progress, *seconds);
            }
            Event::NodeStart { node, device, attempt, why, .. } => {
                self.waiting.remove(node);
                self.begin(node, device, *attempt, now, false).why.clone_from(why);
            }
            Event::NodeShard { node, of, state, .. } => {
                let going = self.begin(node, "", 1, now, false);
                going.shards.1 = *of;
                going.shards.0 += usize::from(*state == ShardState::Done);
            }
            Event::NodeJob { node, state, host, .. } => {
                if let Some(going) = self.going.iter_mut().find(|going| going.name == *node) {
                    going.device = match (state.as_str(), host) {
                        ("runs", Some(host)) => host.clone(),
                        ("unseen", _) => "a cluster that does not answer".to_owned(),
                        _ => "a queue".to_owned(),
                    };
                }
            }
            Event::NodeProgress { node, progress, seconds, shards } => {
                // Not to go by when the word came.
                let going = self.begin(node, "", 1, now - seconds, false);
                going.began = going.began.min(now - seconds);
                going.far(progress.clone(), *seconds);
                going.each.clone_from(shards);
            }
            Event::NodeHit { node, .. } => {
                self.end(node, 0.0);
                self.hits += 1;
            }
            Event::NodeFinish { node, seconds, .. } => {
                self.end(node, *seconds);
                self.ran += 1;
            }
            Event::NodeFail { node, retry, .. } => {
                let took = self.going.iter().find(|going| going.name == *node).map_or(0.0, |going| now - going.began);
                let likely = self.likely.get(node).copied();
                self.end(node, took);
                if *retry {
                    self.likely.extend(likely.map(|likely| (node.clone(), likely)));
                } else {
                    self.failed += 1;
                }
            }
            Event::NodeStop { node, seconds } => self.end(node, *seconds),
            Event::NodeWait { node, .. } => _ = self.waiting.insert(node.clone()),
            Event::NodeSkip { node, .. } | Event::NodeRefuse { node, .. } => {
                self.end(node, 0.0);
                self.skipped += 1;
            }
            Event::Budget { .. } => self.note = Some("at its budget"),
            Event::Interrupt { again } => {
                self.note = Some(if *again { "stopping at once" } else { "finishing the batches in hand" });
            }
            Event::Done { .. } => *self = Self { over: true, ..Self::default() },
        }
    }

    fn begin(&mut self, name: &str, device: &str, attempt: u32, began: f64, download: bool) -> &mut Going {
        let at = self.going.iter().position(|going| going.name == name).unwrap_or_else(|| {
            let (name, device) = (name.to_owned(), device.to_owned());
            let (why, far, shards, each) = (String::new(), None, (0, 0), Vec::new());
            self.going.push(Going { name, device, attempt, began, why, far, shards, each, download });
            self.going.len() - 1
        });
        &mut self.going[at]
    }

    fn end(&mut self, node: &str, took: f64) {
        self.waiting.remove(node);
        self.going.retain(|going| going.name != node);
        self.likely.remove(node);
        self.worked += took;
    }

    /// Whether an attempt is on a GPU.
    pub(super) fn uses_gpus(&self) -> bool {
        self.going.iter().any(|going| going.device.starts_with("cuda"))
    }

    /// Seconds until all is done, and whether that is of a part of what is left; `None` if nothing is known of it.
    fn left(&self, now: f64) -> Option<(f64, bool)> {
        let left = self.nodes.saturating_sub(self.hits + self.ran + self.failed + self.skipped);
        let mut known = 0;
        let (mut sum, mut longest) = (0.0, 0.0_f64);
        for going in &self.going {
            let likely = self.likely.get(&going.name).map(|likely| (likely - (now - going.began)).max(0.0));
            let own = going.far.as_ref().and_then(|far| far.left(now - going.began)).or(likely);
            known += usize::from(own.is_some() && !going.download);
            sum += own.unwrap_or(0.0);
            longest = longest.max(own.unwrap_or(0.0));
        }
        for (_, likely) in self.likely.iter().filter(|(name, _)| !self.going.iter().any(|going| going.name == **name)) {
            known += 1;
            sum += likely;
            longest = longest.max(*likely);
        }
        let beside = self.going.iter().map(|going| now - going.began).sum::<f64>() + self.worked;
        let at_once = if now > 0.0 { (beside / now).max(1.0) } else { 1.0 };
        (known > 0).then(|| ((sum / at_once).max(longest), known < left))
    }

    /// The lines, each narrower than the canvas, and fewer than it has rows.
    pub(super) fn lines(&self, now: f64, canvas: Canvas, gpus: &[Gpu]) -> Vec<String> {
        let is_done = self.nodes == self.hits && self.going.is_empty();
        if self.over || is_done || canvas.height < 2 {
            return Vec::new();
        }
        let shown: Vec<&Going> =
            self.going.iter().filter(|going| now - going.began >= BRIEF || going.far.is_some()).collect();
        let rows = canvas.height.saturating_sub(2);
        let gpus = if rows > gpus.len() + 2 { gpus } else { &[] };
        let room = rows.saturating_sub(1 + gpus.len()).min(MOST);
        let most = if shown.len() > room { room.saturating_sub(1) } else { room };
        let names =
            shown.iter().take(most).map(|going| columns(&going.name)).chain(gpus.iter().map(|gpu| gpu.name.len()));
        let widest = (canvas.width * 2 / 5).clamp(NAMES.0, NAMES.1);
        let names = names.max().unwrap_or(0).clamp(NAMES.0, widest);
        let mut lines: Vec<String> = shown.iter().take(most).map(|going| going.line(now, names, canvas)).collect();
        if shown.len() > most && room > 0 {
            lines.push(cut(&format!("… {} more run", count((shown.len() - most) as u64)), canvas.width - 1));
        }
        lines.extend(gpus.iter().map(|gpu| {
            let used = gpu.used as f64 / gpu.total.max(1) as f64;
            let memory = format!("{} of {}", bytes(gpu.used), bytes(gpu.total));
            let busy = gpu.busy.map(|busy| format!("{busy}% busy"));
            let parts = [vec![memory], busy.into_iter().collect()].concat();
            line(&gpu.name, names, &[used], &parts, canvas)
        }));
        lines.push(self.sum(now, names, canvas));
        lines
    }

    fn sum(&self, now: f64, names: usize, canvas: Canvas) -> String {
        if self.nodes == 0 {
            // Downloads come before the run.
            return cut(&seconds(now.floor()), canvas.width - 1);
        }
        let done = self.hits + self.ran;
        let told = if canvas.width < 60 {
            format!("{done}/{}", self.nodes)
        } else {
            format!("{} of {} nodes done", count(done as u64), count(self.nodes as u64))
        };
        let mut parts = vec![told];
        // What runs is shown by the rows above.
        let others =
            [(self.failed, "failed"), (self.skipped, "skipped"), (self.waiting.len(), "waiting for other processes")];
        parts.extend(others.iter().filter(|(number, _)| *number > 0).map(|(number, word)| format!("{number} {word}")));
        parts.extend(self.note.map(ToOwned::to_owned));
        parts.push(whole(now));
        parts.extend(self.left(now).map(|(left, part)| {
            let word = if part { "at least " } else { "about " };
            format!("{word}{} left", whole(left))
        }));
        let ended = done + self.failed + self.skipped;
        line("all", names, &[ended as f64 / self.nodes as f64], &parts, canvas)
    }
}

impl Going {
    fn far(&mut self, progress: Progress, passed: f64) {
        match &mut self.far {
            Some(far) if far.progress.unit == progress.unit && far.progress.done <= progress.done => {
                if far.moments.back().is_none_or(|(last, _)| passed - last >= 1.0) {
                    far.moments.push_back((passed, progress.done));
                }
                if far.moments.len() > MOMENTS {
                    far.moments.pop_front();
                }
                far.progress = progress;
            }
            far => *far = Some(Far { moments: [(passed, progress.done)].into(), progress }),
        }
    }

    fn line(&self, now: f64, names: usize, canvas: Canvas) -> String {
        let passed = (now - self.began).max(0.0);
        let again = (self.attempt > 1).then(|| format!("attempt {}", self.attempt));
        let Some(far) = &self.far else {
            let on = (!self.device.is_empty() && self.device != "cpu").then(|| format!("on {}", self.device));
            let parts = again.into_iter().chain([whole(passed)]).chain(on).chain([self.why.clone()]);
            return line(&self.name, names, &[], &parts.collect::<Vec<_>>(), canvas);
        };
        let Progress { done, total, unit, metrics, .. } = &far.progress;
        let share = |[done, total]: [u64; 2]| if total > 0 { done as f64 / total as f64 } else { 0.0 };
        let shares = match self.each.len() {
            0 => vec![share([*done, *total])],
            _ => self.each.iter().map(|far| share(*far)).collect(),
        };
        let rate = far.rate(passed);
        let (amount, pace) = if self.download {
            (format!("{} of {}", bytes(*done), bytes(*total)), rate.map(|rate| format!("{}/s", bytes(rate as u64))))
        } else {
            let amount = format!("{}/{} {unit}", count(*done), count(*total));
            (amount, rate.map(|rate| format!("{}/s", figure(&Value::from(rate)))))
        };
        let left = far.left(passed).map(|left| format!("{} left", whole(left)));
        let shards = (self.shards.1 > 0).then(|| format!("{} of {} shards done", self.shards.0, self.shards.1));
        let parts = [amount].into_iter().chain(again).chain(shards).chain(left).chain(pace).chain(headline(metrics));
        line(&self.name, names, &shares, &parts.collect::<Vec<_>>(), canvas)
    }
}

impl Far {
    /// Units a second, lately.
    fn rate(&self, passed: f64) -> Option<f64> {
        let ((first, from), (last, to)) = (self.moments.front()?, self.moments.back()?);
        // One that begins where another one stopped has done much at once.
        let rate =
            if last - first >= 1.0 { (to - from) as f64 / (last - first) } else { *to as f64 / passed.max(*last) };
        (rate > 0.0 && rate.is_finite()).then_some(rate)
    }

    fn left(&self, passed: f64) -> Option<f64> {
        let (last, _) = self.moments.back()?;
        let left = self.progress.total.saturating_sub(self.progress.done) as f64 / self.rate(passed)?;
        Some((left - (passed - last).max(0.0).min(left * 0.5)).max(0.0))
    }
}

/// A time that does not change more than once a second.
fn whole(time: f64) -> String {
    if time < 60.0 { format!("{} s", time.max(0.0) as u64) } else { seconds(time.floor()) }
}

/// A name, a bar (in as many segments as there are shares) and as many parts as fit.
fn line(name: &str, names: usize, shares: &[f64], parts: &[String], canvas: Canvas) -> String {
    let width = canvas.width.saturating_sub(1);
    let name = cut_middle(name, names);
    let mut text = format!("{name}{}", " ".repeat(names.saturating_sub(columns(&name))));
    let mut used = names;
    let long = match canvas.width {
        ..36 => 0,
        36..60 => 8,
        60..100 => 16,
        _ => 24,
    };
    if long > 0 {
        text.push_str(if shares.is_empty() { "  " } else { " " });
        let (shares, width) = segments(shares, long);
        for share in &shares {
            let (filled, rest) = bar(*share, width, canvas.letters);
            text.push_str(&match canvas.coloured {
                true => format!(" \u{1b}[36m{filled}\u{1b}[0m\u{1b}[2m{rest}\u{1b}[0m"),
                false => format!(" {filled}{rest}"),
            });
        }
        text.push_str(&" ".repeat(long - (shares.len() * (width + 1)).saturating_sub(1)));
        used += 2 + long;
    }
    for (number, part) in parts.iter().filter(|part| !part.is_empty()).enumerate() {
        let gap = if number == 0 { "  " } else { " · " };
        let room = width.saturating_sub(used + columns(gap));
        // The first says most, and a little of a long one is better than none.
        let part = if number == 0 || room >= SOME { cut(part, room) } else { part.clone() };
        if room == 0 || columns(&part) > room {
            break;
        }
        used += columns(gap) + columns(&part);
        text.push_str(gap);
        text.push_str(&part);
    }
    text.trim_end().to_owned()
}

/// The segments of a bar, and how wide each is: one for all where there is no room for each, two letters at least.
fn segments(shares: &[f64], width: usize) -> (Vec<f64>, usize) {
    match shares.len() {
        0 => (Vec::new(), 0),
        many if 3 * many <= width + 1 => (shares.to_vec(), (width + 1) / many - 1),
        many => (vec![shares.iter().sum::<f64>() / many as f64], width),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
