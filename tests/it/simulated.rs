//! An engine of which everything is simulated but the files: jobs wait, begin on one of so many machines, and leave what a detached
//! worker leaves, or not, as their fate has it. The scheduler, its watcher and the store are the real ones.
//!
//! What befalls a job is drawn from a seed and the job's mark, not from the order in which threads get to it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sami::diag::Diagnostic;
use sami::digest::Digest;
use sami::exec::budget::Budget;
use sami::exec::engine::{Engine, Refusal, Seen, Standing, Submission};
use sami::exec::{Away, RunOptions};
use sami::settings::{Executor, OnInterrupt, Profile, Resources};
use sami::store::{Manifest, Store, Usage};
use serde_json::{Value, json};

/// How to run with an engine.
pub(crate) fn options(away: Away) -> RunOptions {
    RunOptions {
        file: "p.toml".to_owned(),
        program: "sami".into(),
        jobs: None,
        threads: 1,
        device: "cpu".to_owned(),
        gpus: Vec::new(),
        keep_going: true,
        keep_weights: true,
        elsewhere: None,
        budget: Budget::default(),
        away: Some(away),
        invocation: None,
        needs: HashMap::new(),
    }
}

/// A profile for the simulated engine.
pub(crate) fn profile(interval: Duration, lag: Duration, jobs: usize) -> Profile {
    Profile {
        name: "simulated".to_owned(),
        // Read only where an engine is made of it.
        executor: Executor::Slurm,
        base: Resources::default(),
        kinds: Vec::new(),
        nodes: Vec::new(),
        on_interrupt: OnInterrupt::Stop,
        interval,
        lag,
        notice: Duration::ZERO,
        jobs,
        retries: 1000,
        memory_growth: 2.0,
        memory_limit: None,
        program: None,
        probe: None,
    }
}

/// How a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// Its node is done.
    Done,
    /// Its node fails.
    Fails,
    /// Its machine fails; it leaves nothing.
    Lost,
    /// Its machine is taken for failed, and it ends all the same, beside the next attempt.
    Orphan,
    /// It is over without a record, and the engine knows it no more.
    Vanishes,
    /// It has to go for another one, and leaves a record of that.
    Preempted,
    /// Its time is up; it has come further than the one before.
    TimeLimit,
}

/// What kinds of trouble there are, and how often.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble {
    /// What befalls jobs that would be done else.
    pub(crate) fates: Vec<Fate>,
    /// How many of a hundred jobs.
    pub(crate) jobs: u64,
    /// How many of a hundred calls are refused; half of those that submit have been taken all the same.
    pub(crate) calls: u64,
}

/// How the cluster is.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    /// What a call that submits takes, and each further job of it.
    pub(crate) submit: (Duration, Duration),
    /// What a call that asks takes.
    pub(crate) poll: Duration,
    /// How long a job waits at least.
    pub(crate) queue: Duration,
    /// How long jobs take, from and to.
    pub(crate) work: (Duration, Duration),
    /// Jobs that run at once.
    pub(crate) machines: usize,
    pub(crate) trouble: Trouble,
    pub(crate) seed: u64,
}

impl Manner {
    /// What befalls an attempt at a node.
    pub(crate) fn fate(&self, node: &str, attempt: u64) -> Fate {
        let drawn = draw(self.seed, &format!("{node}.{attempt}"));
        if self.trouble.fates.is_empty() || drawn % 100 >= self.trouble.jobs {
            return Fate::Done;
        }
        self.trouble.fates[(drawn / 100) as usize % self.trouble.fates.len()]
    }
}

/// What was seen of the jobs, for what must not be.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Jobs submitted, by node.
    pub(crate) submitted: BTreeMap<String, usize>,
    /// Nodes that a job was submitted for while the engine had another one, or had one that was done.
    pub(crate) doubled: Vec<String>,
    /// Marks that were used twice.
    pub(crate) reused: Vec<String>,
    /// The most jobs that were known at once.
    pub(crate) most: usize,
    /// Calls of each kind: submit, poll, find, cancel.
    pub(crate) calls: [usize; 4],
}

/// The cluster; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Cluster(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    manner: Mutex<Manner>,
    store: Store,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: HashMap<u64, Job>,
    marks: HashMap<String, u64>,
    waiting: VecDeque<u64>,
    due: BinaryHeap<Reverse<(Instant, u64, Step)>>,
    free: usize,
    last: u64,
    /// Jobs that are not over.
    known: usize,
    /// These by node.
    alive: HashMap<String, BTreeSet<u64>>,
    done: BTreeSet<String>,
    account: Account,
    ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Queued,
    End,
    /// The end of a job that is over for the engine.
    Late,
}

#[derive(Debug)]
struct Job {
    mark: String,
    directory: PathBuf,
    state: Standing,
    fate: Fate,
}

/// The node that a job is for, and the number of the attempt.
fn node_of(mark: &str) -> (&str, u64) {
    let place = mark.split_once('/').map_or(mark, |(_, place)| place);
    let (node, attempt) = place.rsplit_once('.').unwrap_or((place, "0"));
    (node, attempt.parse().unwrap_or(0))
}

/// A number that is drawn for a text.
pub(crate) fn draw(seed: u64, text: &str) -> u64 {
    let digest = Digest::of(format!("{seed}/{text}").as_bytes()).to_string();
    u64::from_str_radix(&digest[..15], 16).unwrap_or(0)
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Starts it over the cache in a directory, which must be there.
    pub(crate) fn start(cache: &Path, manner: Manner) -> Self {
        let state = State { free: manner.machines, ..State::default() };
        let shared = Shared {
            manner: Mutex::new(manner),
            store: Store::open(cache).expect("the cache"),
            state: Mutex::new(state),
            changed: Condvar::new(),
        };
        let cluster = Self(Arc::new(shared));
        let own = cluster.clone();
        std::thread::Builder::new().name("simulated".to_owned()).spawn(move || own.live()).expect("a thread");
        cluster
    }

    /// What was seen so far.
    pub(crate) fn account<T>(&self, read: impl FnOnce(&Account) -> T) -> T {
        read(&held(&self.0.state).account)
    }

    /// From now on nothing goes wrong.
    pub(crate) fn calm_down(&self) {
        held(&self.0.manner).trouble = Trouble::default();
    }

    /// Ends its thread.
    pub(crate) fn end(&self) {
        held(&self.0.state).ended = true;
        self.0.changed.notify_all();
    }

    fn manner(&self) -> Manner {
        held(&self.0.manner).clone()
    }

    /// Whether a call is refused.
    fn refuses(&self, what: usize) -> bool {
        let manner = self.manner();
        let mut state = held(&self.0.state);
        state.account.calls[what] += 1;
        let call = format!("call {what} {}", state.account.calls[what]);
        drop(state);
        draw(manner.seed, &call) % 100 < manner.trouble.calls
    }

    fn fate(&self, mark: &str) -> Fate {
        let (node, attempt) = node_of(mark);
        self.manner().fate(node, attempt)
    }

    /// Lets jobs begin and end when it is their time.
    fn live(&self) {
        let mut state = held(&self.0.state);
        while !state.ended {
            let next = state.due.peek().map(|Reverse((when, ..))| *when);
            let now = Instant::now();
            match next {
                Some(when) if when <= now => {
                    let Some(Reverse((_, id, step))) = state.due.pop() else { continue };
                    drop(state);
                    self.step(id, step);
                    state = held(&self.0.state);
                }
                Some(when) => {
                    state = self.0.changed.wait_timeout(state, when - now).unwrap_or_else(PoisonError::into_inner).0;
                }
                None => state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn step(&self, id: u64, step: Step) {
        let mut state = held(&self.0.state);
        let Some(job) = state.jobs.get(&id) else { return };
        match step {
            Step::Queued if job.state == Standing::Waits => {
                state.waiting.push_back(id);
                drop(state);
                self.fill();
            }
            Step::End if job.state == Standing::Runs => {
                let (directory, mark, fate) = (job.directory.clone(), job.mark.clone(), job.fate);
                // Who sees its record may submit the next one, before the engine has said that it is over.
                state.known -= 1;
                drop(state);
                // As it is: what a worker leaves is there before its job is over.
                self.leave(&directory, &mark, fate, false);
                self.over(id, fate);
                self.fill();
            }
            Step::Late => {
                let (directory, mark) = (job.directory.clone(), job.mark.clone());
                drop(state);
                self.leave(&directory, &mark, Fate::Done, true);
            }
            _ => {}
        }
    }

    /// Begins jobs for which there are machines.
    fn fill(&self) {
        let manner = self.manner();
        loop {
            let mut state = held(&self.0.state);
            if state.free == 0 {
                return;
            }
            let Some(id) = state.waiting.pop_front() else { return };
            let Some(job) = state.jobs.get_mut(&id).filter(|job| job.state == Standing::Waits) else { continue };
            job.state = Standing::Runs;
            let (directory, mark) = (job.directory.clone(), job.mark.clone());
            state.free -= 1;
            let (from, to) = manner.work;
            let spread = (to.saturating_sub(from)).as_micros().max(1) as u64;
            let work = from + Duration::from_micros(draw(manner.seed, &format!("work {mark}")) % spread);
            state.due.push(Reverse((Instant::now() + work, id, Step::End)));
            drop(state);
            say(&directory, &json!({"began": {"host": host(id)}}));
        }
    }

    /// Leaves what the worker of a job leaves at its end; `late`: when no one expects it any more.
    fn leave(&self, directory: &Path, mark: &str, fate: Fate, late: bool) {
        let (node, attempt) = node_of(mark);
        let (result, told) = match fate {
            Fate::Done => match self.make(directory) {
                Ok(artifact) => (json!({"state": "done", "artifact": artifact, "metrics": {"size": node.len()}}), None),
                // What a cache that is gone makes of it is no matter: the test is over.
                Err(_) => return,
            },
            Fate::Fails => (json!({"state": "failed", "what": "it was to fail", "help": null}), None),
            Fate::Preempted => (json!({"state": "interrupted"}), Some("signal")),
            Fate::TimeLimit => {
                say(directory, &json!({"progress": {"done": attempt, "total": 1000, "unit": "rows", "metrics": {}}}));
                (json!({"state": "interrupted"}), Some("time-limit"))
            }
            _ => return,
        };
        let mut exit = json!({"result": result, "host": "simulated", "seconds": 0.01, "usage": Usage::default()});
        if let Some(told) = told {
            exit["told"] = told.into();
        }
        if fate == Fate::Done && !late {
            held(&self.0.state).done.insert(node.to_owned());
        }
        let file = directory.join("result.json");
        let unfinished = directory.join("result.tmp");
        let _ = fs_err::write(&unfinished, exit.to_string()).and_then(|()| fs_err::rename(&unfinished, file));
    }

    /// Makes what a job's node makes: a file with the node's name, so that every attempt makes the same.
    fn make(&self, directory: &Path) -> Result<Digest, Box<dyn std::error::Error>> {
        let job: Value = serde_json::from_slice(&fs_err::read(directory.join("job.json"))?)?;
        let name = job["node"].as_str().unwrap_or_default();
        // On the cluster's own disk, which is not waited for here.
        let (made, _) = sami::fs::deferred(|| {
            let blob = self.0.store.put_bytes(name.as_bytes())?;
            let files = BTreeMap::from([("out".to_owned(), blob)]);
            self.0.store.put_manifest(&Manifest { kind: "files".into(), files })
        });
        Ok(made?)
    }

    fn over(&self, id: u64, fate: Fate) {
        let mut state = held(&self.0.state);
        let Some(job) = state.jobs.get_mut(&id).filter(|job| job.state == Standing::Runs) else { return };
        job.state = match fate {
            Fate::Done => Standing::Ended(Some(0)),
            Fate::Fails => Standing::Ended(Some(1)),
            Fate::Lost | Fate::Orphan | Fate::Vanishes => Standing::HostFailed,
            Fate::Preempted => Standing::Preempted,
            Fate::TimeLimit => Standing::TimeLimit,
        };
        let mark = job.mark.clone();
        state.free += 1;
        if fate == Fate::Orphan {
            state.due.push(Reverse((Instant::now() + Duration::from_millis(30), id, Step::Late)));
        }
        if fate == Fate::Vanishes {
            state.jobs.remove(&id);
            state.marks.remove(&mark);
        }
        if let Some(alive) = state.alive.get_mut(node_of(&mark).0) {
            alive.remove(&id);
        }
    }

    fn take(&self, submission: &Submission) -> u64 {
        let fate = self.fate(&submission.mark);
        let queue = self.manner().queue;
        let mut state = held(&self.0.state);
        state.last += 1;
        let (id, mark) = (state.last, submission.mark.clone());
        let node = node_of(&mark).0.to_owned();
        *state.account.submitted.entry(node.clone()).or_default() += 1;
        if state.done.contains(&node) || state.alive.get(&node).is_some_and(|alive| !alive.is_empty()) {
            state.account.doubled.push(mark.clone());
        }
        if state.marks.insert(mark.clone(), id).is_some() {
            state.account.reused.push(mark.clone());
        }
        state.alive.entry(node).or_default().insert(id);
        let job = Job { mark, directory: submission.directory.clone(), state: Standing::Waits, fate };
        state.jobs.insert(id, job);
        state.known += 1;
        state.account.most = state.account.most.max(state.known);
        state.due.push(Reverse((Instant::now() + queue, id, Step::Queued)));
        self.0.changed.notify_all();
        id
    }
}

impl Engine for Cluster {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn submit(&self, jobs: &[Submission]) -> Vec<Result<String, Refusal>> {
        let (first, each) = self.manner().submit;
        std::thread::sleep(first + each * jobs.len() as u32);
        if self.refuses(0) {
            // An answer that did not come says nothing of whether the job was taken.
            let seed = self.manner().seed;
            let taken = |job: &&Submission| draw(seed, &format!("taken {}", job.mark)).is_multiple_of(2);
            jobs.iter().filter(taken).for_each(|job| _ = self.take(job));
            return jobs.iter().map(|_| Err(refusal())).collect();
        }
        jobs.iter().map(|job| Ok(self.take(job).to_string())).collect()
    }

    fn poll(&self, jobs: &[&str]) -> Result<HashMap<String, Seen>, Refusal> {
        std::thread::sleep(self.manner().poll);
        if self.refuses(1) {
            return Err(refusal());
        }
        let state = held(&self.0.state);
        let seen = jobs.iter().filter_map(|id| {
            let number: u64 = id.parse().ok()?;
            let job = state.jobs.get(&number)?;
            let host = (job.state != Standing::Waits).then(|| host(number));
            Some(((*id).to_owned(), Seen { state: job.state, host, why: String::new() }))
        });
        Ok(seen.collect())
    }

    fn find(&self, marks: &[&str]) -> Result<HashMap<String, String>, Refusal> {
        if self.refuses(2) {
            return Err(refusal());
        }
        let state = held(&self.0.state);
        Ok(marks.iter().filter_map(|mark| Some(((*mark).to_owned(), state.marks.get(*mark)?.to_string()))).collect())
    }

    fn cancel(&self, jobs: &[&str]) -> Result<(), Refusal> {
        if self.refuses(3) {
            return Err(refusal());
        }
        for id in jobs {
            let Ok(id) = id.parse::<u64>() else { continue };
            let mut state = held(&self.0.state);
            let Some(job) = state.jobs.get_mut(&id).filter(|job| !job.state.is_over()) else { continue };
            let ran = std::mem::replace(&mut job.state, Standing::Cancelled) == Standing::Runs;
            let node = node_of(&job.mark).0.to_owned();
            state.free += usize::from(ran);
            state.known -= 1;
            if let Some(alive) = state.alive.get_mut(&node) {
                alive.remove(&id);
            }
            drop(state);
            self.fill();
        }
        Ok(())
    }

    fn over(&self, jobs: &[&str]) {
        let mut state = held(&self.0.state);
        for id in jobs {
            let Ok(id) = id.parse::<u64>() else { continue };
            let Some(job) = state.jobs.get(&id).filter(|job| job.state.is_over() && job.fate != Fate::Orphan) else {
                continue;
            };
            let mark = job.mark.clone();
            state.jobs.remove(&id);
            state.marks.remove(&mark);
        }
    }

    fn look(&self, job: &str) -> String {
        format!("simulated {job}")
    }
}

fn host(id: u64) -> String {
    format!("n{}", id % 64)
}

/// Appends to what a worker says.
fn say(directory: &Path, word: &Value) {
    use std::io::Write as _;
    let file = fs_err::OpenOptions::new().append(true).create(true).open(directory.join("words.jsonl"));
    let _ = file.and_then(|mut file| writeln!(file, "{word}"));
}

fn refusal() -> Refusal {
    let finding = Diagnostic::error("cluster::no-answer", "the simulated cluster does not answer".to_owned());
    Refusal { finding: Box::new(finding), passing: true }
}
