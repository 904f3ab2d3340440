//! A node in parts, as the scheduler sees it: which parts are done, and how far all of them are together.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Reason;
use super::attempt::Fault;
use super::job::JobPart;
use super::plan::Recipe;
use crate::fs;
use crate::kinds::Progress;
use crate::pipeline::Shards;
use crate::store::{KeyLock, Usage};

/// The least time between two words on how far all parts are, and for each part more.
const BEAT: Duration = Duration::from_millis(100);
const BEAT_OF_PART: Duration = Duration::from_millis(2);

/// Seconds of one worker that are worth another one.
const WORTH: f64 = 60.0;

/// What an attempt is at.
#[derive(Debug, Clone, Default)]
pub(super) enum Role {
    /// A node.
    #[default]
    Node,
    /// A part of one.
    Shard {
        /// Its number, from 0.
        number: usize,
        /// How many parts there are.
        of: usize,
        /// Number of the attempt at the part, from 1.
        attempt: u32,
        /// Where it tells what it did.
        report: PathBuf,
    },
    /// Putting the parts of one together.
    Join {
        /// What the parts did, as they told it.
        reports: Vec<PathBuf>,
        /// The class of device that the parts were computed on, if it is not on such a device.
        class: Option<String>,
        /// The device that the parts were computed on.
        device: String,
    },
}

impl Role {
    /// What the worker is told of it.
    pub(super) fn job(&self) -> Option<JobPart> {
        match self.clone() {
            Self::Node => None,
            Self::Shard { number, of, report, .. } => Some(JobPart::Shard { number, of, report }),
            Self::Join { reports, class, .. } => Some(JobPart::Join { reports, class }),
        }
    }

    /// The number of the part, from 0, if it is at one.
    pub(super) fn part(&self) -> Option<usize> {
        match self {
            Self::Shard { number, .. } => Some(*number),
            _ => None,
        }
    }

    /// What tells its attempt from others at the node.
    pub(super) fn mark(&self) -> String {
        match self {
            Self::Shard { number, attempt, .. } => format!("#{}.{attempt}", number + 1),
            _ => String::new(),
        }
    }

    /// What is told of it behind what is told of the node.
    pub(super) fn told(&self) -> String {
        match self {
            Self::Shard { number, of, .. } => format!(", shard {} of {of}", number + 1),
            _ => String::new(),
        }
    }

    /// Its directory in one of the node: that itself, but for a part.
    pub(super) fn of(&self, directory: &Path) -> io::Result<PathBuf> {
        let Self::Shard { number, attempt, .. } = self else { return Ok(directory.to_owned()) };
        let own = directory.join(format!("shard-{}.{attempt}", number + 1));
        fs::create_directory(&own)?;
        Ok(own)
    }

    /// Its own beside a directory of the node.
    pub(super) fn beside(&self, directory: PathBuf) -> PathBuf {
        let Self::Shard { number, attempt, .. } = self else { return directory };
        let mut beside = directory.into_os_string();
        beside.push(format!(".{number}.{attempt}"));
        beside.into()
    }
}

/// Where a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It starts when there is room.
    Open,
    /// An attempt goes on.
    Running,
    /// Its rows are remembered.
    Done,
}

/// A part.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) stage: Stage,
    /// Attempts at it in this run.
    pub(super) attempts: u32,
    /// Those of them that failed.
    pub(super) failures: u32,
    /// Whether it had all that was left of the budget.
    pub(super) had_all: bool,
    /// Whether its share of the budget did not do: it goes on when no other part runs, with all that is left then.
    pub(super) alone: bool,
    /// Whether an earlier run left a job at it, which no attempt of this run listens to yet.
    pub(super) left: bool,
    /// Units done and in all, as far as it has told; of each unit in turn.
    far: Vec<(String, u64, u64)>,
    /// What the attempt that did it told.
    pub(super) report: Option<PathBuf>,
}

/// A node in parts.
pub(super) struct Sharded {
    pub(super) reason: Reason,
    pub(super) recipe: Recipe,
    /// Nobody else works at the key.
    pub(super) lock: Arc<KeyLock>,
    /// Number of the attempt at the node.
    pub(super) number: u32,
    pub(super) shares: Vec<Share>,
    /// Why it comes to nothing, once a part has failed for good.
    pub(super) fault: Option<Fault>,
    /// Whether someone else took the key over.
    pub(super) lost: bool,
    /// The device, and the class of device, that parts were computed on; no class if they differ in it.
    pub(super) device: Option<(String, Option<String>)>,
    /// Whether it is being put together.
    pub(super) joining: bool,
    /// Whether putting it together where there is no such device failed: then it is done on one.
    pub(super) on_device: bool,
    /// What the attempts used.
    pub(super) usage: Usage,
    pub(super) began: Instant,
    pub(super) started: String,
    told: Option<Instant>,
}

impl Sharded {
    pub(super) fn new(recipe: Recipe, reason: Reason, lock: KeyLock, number: u32, count: usize) -> Self {
        let share = || Share {
            stage: Stage::Open,
            attempts: 0,
            failures: 0,
            had_all: false,
            alone: false,
            left: false,
            far: Vec::new(),
            report: None,
        };
        Self {
            reason,
            recipe,
            lock: Arc::new(lock),
            number,
            shares: std::iter::repeat_with(share).take(count).collect(),
            fault: None,
            lost: false,
            device: None,
            joining: false,
            on_device: false,
            usage: Usage::default(),
            began: Instant::now(),
            started: fs::now().to_string(),
            told: None,
        }
    }

    pub(super) fn count(&self, stage: Stage) -> usize {
        self.shares.iter().filter(|share| share.stage == stage).count()
    }

    /// Whether there is an attempt to start: at a part, or at putting all together.
    pub(super) fn is_ready(&self) -> bool {
        self.fault.is_none() && (self.count(Stage::Open) > 0 || self.is_computed() && !self.joining)
    }

    /// Whether its rows are all there.
    pub(super) fn is_computed(&self) -> bool {
        self.count(Stage::Done) == self.shares.len()
    }

    /// The part that starts next: first those at which there is a job already; those that wait for others to end come last.
    pub(super) fn next(&self) -> Option<usize> {
        let open = self.shares.iter().enumerate().filter(|(_, share)| share.stage == Stage::Open);
        open.min_by_key(|(number, share)| (share.alone, !share.left, *number)).map(|(number, _)| number)
    }

    /// Whether there is a job at the part that starts next.
    pub(super) fn is_left(&self) -> bool {
        self.next().is_some_and(|next| self.shares[next].left)
    }

    /// Takes down on which device, of which class, a part was computed.
    pub(super) fn computed_on(&mut self, device: &str, class: Option<String>) {
        match &mut self.device {
            None => self.device = Some((device.to_owned(), class)),
            Some((_, known)) if *known != class => *known = None,
            Some(_) => {}
        }
    }

    /// Whether the parts are all done and can be put together without a GPU.
    pub(super) fn joins_on_cpu(&self) -> bool {
        let on_cpu = |(device, class): &(String, Option<String>)| device == "cpu" || !self.on_device && class.is_some();
        self.is_computed() && self.device.as_ref().is_none_or(on_cpu)
    }

    /// How the parts are put together.
    pub(super) fn join(&self) -> Role {
        let reports = self.shares.iter().filter_map(|share| share.report.clone()).collect();
        let (device, class) = self.device.clone().unwrap_or_else(|| ("cpu".to_owned(), None));
        let class = class.filter(|_| device != "cpu" && self.joins_on_cpu());
        Role::Join { reports, class, device }
    }

    /// Adds up what an attempt used; `gpu` are its seconds on one.
    pub(super) fn use_of(&mut self, usage: Option<Usage>, gpu: Option<f64>) {
        let usage = Usage { gpu_seconds: gpu, ..usage.unwrap_or_default() };
        self.usage = sum(self.usage, usage);
    }

    /// A part tells how far it is. Returns how far all are, units done and in all of each part and the sum, unless that was told
    /// just now.
    pub(super) fn hear(&mut self, number: usize, progress: Progress) -> Option<(Progress, Vec<[u64; 2]>)> {
        let is_done = progress.done >= progress.total;
        let far = &mut self.shares.get_mut(number)?.far;
        let Progress { done, total, unit, .. } = progress;
        far.retain(|(known, ..)| *known != unit);
        far.push((unit, done, total));
        let beat = BEAT.max(BEAT_OF_PART * self.shares.len() as u32);
        if !is_done && self.told.is_some_and(|told| told.elapsed() < beat) {
            return None;
        }
        self.told = Some(Instant::now());
        Some(self.far())
    }

    /// How far all parts are, counted in what the one counts that is least far.
    fn far(&self) -> (Progress, Vec<[u64; 2]>) {
        let behind = self.shares.iter().filter(|share| share.stage != Stage::Done && !share.far.is_empty());
        let behind = behind.min_by_key(|share| share.far.len()).or(self.shares.last());
        let unit = behind.and_then(|share| share.far.last()).map(|(unit, ..)| unit.clone()).unwrap_or_default();
        let of = |share: &Share| {
            let far = share.far.iter().find(|(known, ..)| *known == unit);
            far.map(|(_, done, total)| (*done, *total))
        };
        let known: Vec<(u64, u64)> = self.shares.iter().filter_map(of).collect();
        let (done, total) = known.iter().fold((0, 0), |sum, far| (sum.0 + far.0, sum.1 + far.1));
        // Of those that have not begun as much is expected.
        let total = total * self.shares.len() as u64 / known.len().max(1) as u64;
        let each = self.shares.iter().map(|share| of(share).map_or([0, 0], |(done, total)| [done, total])).collect();
        (Progress { done, total, unit, ..Progress::default() }, each)
    }
}

/// What two attempts used together.
fn sum(one: Usage, other: Usage) -> Usage {
    let count = |one: Option<u32>, other: Option<u32>| one.map_or(other, |one| Some(one + other.unwrap_or(0)));
    let add = |one: Option<f64>, other: Option<f64>| one.map_or(other, |one| Some(one + other.unwrap_or(0.0)));
    Usage {
        cpu_seconds: add(one.cpu_seconds, other.cpu_seconds),
        peak_bytes: one.peak_bytes.max(other.peak_bytes),
        gpu_peak_bytes: one.gpu_peak_bytes.max(other.gpu_peak_bytes),
        gpu_seconds: add(one.gpu_seconds, other.gpu_seconds),
        weights_loaded: count(one.weights_loaded, other.weights_loaded),
        weights_kept: count(one.weights_kept, other.weights_kept),
        calls: one.calls.map_or(other.calls, |calls| Some(calls + other.calls.unwrap_or(0))),
        dollars: add(one.dollars, other.dollars),
    }
}

/// Into how many parts a node is split: no more than it has rows. `auto` takes as many as there are `slots` for, but not more
/// than its work is worth: a part is a minute at least, where it is known how long one worker would take.
pub(super) fn count(wanted: Shards, rows: Option<u64>, seconds: Option<f64>, slots: usize) -> usize {
    let most = rows.map_or(usize::MAX, |rows| usize::try_from(rows).unwrap_or(usize::MAX)).max(1);
    let wanted = match wanted {
        Shards::Count(count) => count,
        Shards::Auto => slots.min(seconds.map_or(usize::MAX, |seconds| (seconds / WORTH).ceil() as usize)),
    };
    wanted.clamp(1, most)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sharded(count: usize) -> Sharded {
        let folder = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(folder.path()).unwrap();
        let key = crate::digest::Digest::of(b"key");
        let lock = store.try_lock_key(&key).unwrap().unwrap();
        let recipe = Recipe { key, preimage: serde_json::Value::Null, inputs: BTreeMap::new() };
        Sharded::new(recipe, Reason::New, lock, 1, count)
    }

    #[test]
    fn there_are_no_more_parts_than_rows_or_than_the_work_is_worth() {
        assert_eq!(count(Shards::Count(64), Some(3), None, 1), 3);
        assert_eq!(count(Shards::Count(64), None, None, 1), 64);
        assert_eq!(count(Shards::Count(2), Some(0), None, 1), 1);
        assert_eq!(count(Shards::Auto, Some(1000), Some(3600.0), 8), 8);
        assert_eq!(count(Shards::Auto, Some(1000), Some(150.0), 8), 3);
        assert_eq!(count(Shards::Auto, Some(1000), Some(5.0), 8), 1);
        assert_eq!(count(Shards::Auto, Some(2), None, 8), 2);
        assert_eq!(count(Shards::Auto, Some(1000), None, 1), 1);
    }

    #[test]
    fn parts_at_which_there_is_a_job_come_first_and_those_that_wait_for_others_last() {
        let mut node = sharded(4);
        (node.shares[0].alone, node.shares[2].left) = (true, true);
        assert!(node.is_left());
        let mut order = Vec::new();
        while let Some(next) = node.next() {
            (node.shares[next].stage, node.shares[next].left) = (Stage::Running, false);
            order.push(next);
        }
        assert_eq!(order, [2, 1, 3, 0]);
        assert!(!node.is_left());
    }

    #[test]
    fn how_far_parts_are_is_added_up_in_one_unit() {
        let mut node = sharded(3);
        let word = |done, total, unit: &str| Progress { done, total, unit: unit.to_owned(), ..Progress::default() };
        let (all, each) = node.hear(0, word(5, 10, "responses")).unwrap();
        assert_eq!((all.done, all.total, each), (5, 30, vec![[5, 10], [0, 0], [0, 0]]));
        assert!(node.hear(1, word(1, 10, "responses")).is_none(), "it was told just now");
        node.hear(0, word(10, 10, "responses")).unwrap();
        // One is ahead, at what the others have not begun.
        node.hear(0, word(4, 4, "verdicts")).unwrap();
        let (all, _) = node.far();
        assert_eq!((all.done, all.total, all.unit.as_str()), (11, 30, "responses"));
    }

    #[test]
    fn classes_that_differ_are_put_together_on_a_device() {
        let mut node = sharded(2);
        node.shares.iter_mut().for_each(|share| share.stage = Stage::Done);
        node.computed_on("cuda:0", Some("cuda:sm_90".to_owned()));
        node.computed_on("cuda:1", Some("cuda:sm_90".to_owned()));
        let Role::Join { class: Some(class), device, .. } = node.join() else { panic!("on the CPU") };
        assert_eq!((class.as_str(), device.as_str()), ("cuda:sm_90", "cuda:0"));
        node.computed_on("cuda:2", Some("cuda:sm_80".to_owned()));
        assert!(!node.joins_on_cpu() && matches!(node.join(), Role::Join { class: None, .. }));
        let mut node = sharded(2);
        node.shares.iter_mut().for_each(|share| share.stage = Stage::Done);
        node.computed_on("cpu", Some("cpu".to_owned()));
        assert!(node.joins_on_cpu() && matches!(node.join(), Role::Join { class: None, .. }));
    }
}
