//! Runs what is stale.
//!
//! Approach: one phase per node and one loop. Whatever happens (a worker's word or end, an interrupt, a tick) arrives
//! in one inbox; a turn of the loop takes one message, moves nodes on, and starts what there is room for. Only this
//! thread changes phases, records results and writes the index, so there is nothing to lock in here. When a node has
//! its artifact, the keys of those that wait for it are made with its content id: one whose key is known is a hit and
//! moves its own dependants on in turn, which is early cutoff. (`phase` draws them.)
//!
//! Reading order: this file (the loop), `attempts` (an attempt from its start to its end), `settle` (what its end means for
//! the other nodes), `kept` (weights that stay in memory from one to the next), `repair` (an input that turns out to be damaged).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::exec::attempt::Attempt;
use crate::exec::away::{AWAY, Yard};
use crate::exec::commit::{Made, commit_all};
use crate::exec::device::{check_gpus, devices};
use crate::exec::elsewhere::Seeker;
use crate::exec::interrupt::Interrupts;
use crate::exec::ledger::Ledger;

use crate::digest::Digest;
use crate::exec::budget::likely;
use crate::exec::journal::{Journal, sweep, sweep_slots};
use crate::exec::kept::{Idle, Users, users};
use crate::exec::local::Message;
use crate::exec::phase::{Phase, phases};
use crate::exec::record::{host, run_nodes};
use crate::exec::room::{Full, Room, Wish, is_light};
use crate::exec::shards::Sharded;
use crate::exec::{Event, ExecError, Plan, RunOptions, State, Summary};
use crate::graph::Graph;
use crate::pipeline::Pipeline;
use crate::store::{Index, RunNode, Store};

mod attempts;
mod away;
mod budget;
mod kept;
mod repair;
mod settle;
mod shards;
mod straits;

use attempts::Unlisted;
pub(super) use straits::Strait;

/// How often a key is tried that another process works at.
const TICK: Duration = Duration::from_millis(50);

/// How long what an attempt made may wait for that of others, to be recorded together with it.
const GATHER: Duration = Duration::from_millis(10);
/// How many may wait so.
const MOST_TOGETHER: usize = 32;

/// Messages that are taken before anything new starts.
const MOST_MESSAGES: usize = 256;

/// How long the index is not told of what was done.
const LISTING: Duration = Duration::from_millis(300);
/// How many nodes it is not told of.
const MOST_UNLISTED: usize = 128;

/// How far the run is from going on as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    /// Nothing new starts.
    Failed,
    /// Workers were told to stop.
    Interrupted,
    /// Workers were killed.
    Killed,
}

/// Runs a plan, which is brought up to date by that; `report` is told what happens. A node that fails is no error.
///
/// Errs if the run could not go on: nothing that was done until then is lost.
pub fn run(
    pipeline: &Pipeline,
    graph: &Graph,
    store: &Store,
    index: &mut Index,
    plan: &mut Plan,
    options: &RunOptions,
    report: &mut dyn FnMut(&Event),
) -> Result<Summary, ExecError> {
    let (outbox, inbox) = channel();
    let devices = devices(pipeline, &options.device, !options.gpus.is_empty())?;
    let yard = Yard::new(options.away.clone(), outbox.clone(), store.root());
    let stale = |node: &usize| !matches!(plan.nodes[*node], State::Hit { .. } | State::Outside);
    let (away, here): (Vec<usize>, Vec<usize>) =
        plan.order.iter().copied().filter(stale).partition(|node| yard.goes_away(pipeline, *node));
    let users = users(pipeline, here.iter().copied());
    check_gpus(pipeline, here, &devices, &options.gpus)?;
    yard.check_gpus(pipeline, away)?;
    let journal = Journal::begin(&pipeline.name, &pipeline.params, store, &options.file)?;
    let scheduler = Scheduler {
        phases: phases(pipeline, plan),
        place: vec![0; pipeline.nodes.len()],
        room: Room::new(options.threads, options.jobs, &options.gpus),
        running: BTreeMap::new(),
        sharded: BTreeMap::new(),
        in_parts: (0..pipeline.nodes.len()).filter(|node| pipeline.nodes[*node].run.shards.is_some()).collect(),
        straits: HashMap::new(),
        idle: Idle::default(),
        users,
        made: Vec::new(),
        committing: BTreeMap::new(),
        is_committing: false,
        unlisted: Unlisted::default(),
        ready: BTreeMap::new(),
        held: BTreeSet::new(),
        waited: BTreeSet::new(),
        repaired: BTreeSet::new(),
        keys: HashMap::new(),
        numbers: HashMap::new(),
        failures: HashMap::new(),
        serial: 0,
        ledger: Ledger::new(options.budget.clone(), options.needs.clone()),
        stop: Stop::No,
        fault: None,
        yard,
        seeker: Seeker::new(options.elsewhere.clone()),
        inbox,
        outbox,
        pipeline,
        graph,
        store,
        index,
        plan,
        options,
        devices,
        journal,
        host: host(),
        report,
    };
    let (batches, taken) = channel();
    std::thread::scope(|scope| {
        let outbox = scheduler.outbox.clone();
        let commit = move || commit_all(store, &taken, &outbox);
        std::thread::Builder::new().name("commit".to_owned()).spawn_scoped(scope, commit).map_err(ExecError::Spawn)?;
        scheduler.drive(batches)
    })
}

struct Scheduler<'a> {
    pipeline: &'a Pipeline,
    graph: &'a Graph,
    store: &'a Store,
    index: &'a mut Index,
    options: &'a RunOptions,
    report: &'a mut dyn FnMut(&Event),
    /// States of nodes that are done, hence recipes of those that need them.
    plan: &'a mut Plan,
    phases: Vec<Phase>,
    /// Where nodes are in the order of the plan; those that are ready start in this order.
    place: Vec<usize>,
    devices: Vec<Arc<str>>,
    room: Room,
    /// Ready nodes by device, as (place, node).
    ready: BTreeMap<Arc<str>, BTreeSet<(usize, usize)>>,
    /// Nodes whose key another process works at.
    held: BTreeSet<usize>,
    /// Those of which that was told.
    waited: BTreeSet<usize>,
    /// Nodes that ran again because what they had made was damaged.
    repaired: BTreeSet<usize>,
    /// Keys that attempts of this run are at, and nodes that wait for them because they have the same key.
    keys: HashMap<Digest, Vec<usize>>,
    running: BTreeMap<u64, Attempt>,
    /// Nodes of which parts are computed.
    sharded: BTreeMap<usize, Sharded>,
    /// Nodes that may be computed so.
    in_parts: Vec<usize>,
    /// Nodes of which attempts ran out of memory.
    straits: HashMap<usize, Strait>,
    /// Workers that take further jobs and have none.
    idle: Idle,
    /// Nodes that use a model's weights.
    users: Users,
    /// What attempts made that no one has begun to record.
    made: Vec<Made>,
    /// Attempts that succeeded and are not recorded yet.
    committing: BTreeMap<u64, Attempt>,
    /// Whether some are being recorded.
    is_committing: bool,
    unlisted: Unlisted,
    /// Attempts made, by node.
    numbers: HashMap<usize, u32>,
    /// Attempts that failed by themselves, by node: those that were lost, or ran out of memory and can have more, are not among them.
    failures: HashMap<usize, u32>,
    serial: u64,
    journal: Journal,
    host: String,
    ledger: Ledger,
    stop: Stop,
    fault: Option<ExecError>,
    yard: Yard,
    seeker: Seeker,
    inbox: Receiver<Message>,
    outbox: Sender<Message>,
}

impl Scheduler<'_> {
    fn drive(mut self, batches: Sender<Vec<Made>>) -> Result<Summary, ExecError> {
        for (place, node) in self.plan.order.iter().enumerate() {
            self.place[*node] = place;
        }
        let is_ready = |node: &usize| matches!(self.phases[*node], Phase::Ready { .. });
        let ready: Vec<usize> = (0..self.phases.len()).filter(is_ready).collect();
        let asked = self.plan.order.len();
        let hits = self.plan.nodes.iter().filter(|state| matches!(state, State::Hit { .. })).count();
        let start = Event::Start {
            run: self.journal.run().to_owned(),
            pipeline: self.pipeline.name.clone(),
            nodes: asked,
            hits,
            threads: self.options.threads,
            likely: likely(self.pipeline, &self.options.needs),
        };
        self.tell(&start)?;
        sweep_slots(self.store)?;
        self.send_away();
        let mut interrupts = None;
        if !ready.is_empty() {
            interrupts = Some(Interrupts::forward(self.outbox.clone())?);
            self.journal.save(self.store)?;
            if let Some(invocation) = &self.options.invocation {
                self.journal.keep(invocation)?;
            }
            self.index.add_run(self.journal.record());
            sweep(self.store, &self.journal)?;
        }
        for node in ready {
            self.enqueue(node);
        }
        let mut turn = self.take_up().map(|()| true);
        loop {
            match turn {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::debug!("the run stops: {error}");
                    self.fault.get_or_insert(error);
                    self.slow_down(Stop::Interrupted);
                }
            }
            turn = self.turn(&batches);
        }
        drop(interrupts);
        self.idle.end()?;
        self.finish()
    }

    /// Starts what there is room for, then waits for a message, and takes those that have come with it. Returns whether there is more to wait for.
    fn turn(&mut self, batches: &Sender<Vec<Made>>) -> Result<bool, ExecError> {
        self.fill()?;
        self.let_go()?;
        self.hand_over(batches);
        self.journal.flush()?;
        let waits = !self.held.is_empty() || self.seeker.is_open();
        if self.running.is_empty() && self.committing.is_empty() && (!waits || self.stop > Stop::No) {
            return Ok(false);
        }
        let patience = [
            (!self.held.is_empty()).then_some(TICK),
            (!self.unlisted.is_empty()).then_some(LISTING),
            (!self.made.is_empty() && !self.is_committing).then_some(GATHER),
            self.ledger.next(),
        ];
        let first = match patience.into_iter().flatten().min() {
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(patience) => self.inbox.recv_timeout(patience),
        };
        self.take(first)?;
        for _ in 1..MOST_MESSAGES {
            let Ok(message) = self.inbox.try_recv() else { break };
            self.take(Ok(message))?;
        }
        self.keep_to_budget()?;
        Ok(true)
    }

    /// Takes a message, or note that none came.
    fn take(&mut self, message: Result<Message, RecvTimeoutError>) -> Result<(), ExecError> {
        match message {
            Ok(Message::Word { attempt, word }) => self.hear(attempt, word)?,
            Ok(Message::Gone { attempt }) => self.end(attempt)?,
            Ok(Message::Sight { attempt, sight }) => self.see(attempt, sight)?,
            Ok(Message::Committed { attempts, done }) => self.committed(&attempts, *done)?,
            Ok(Message::Interrupt) => {
                let again = self.stop >= Stop::Interrupted;
                self.leave_jobs()?;
                self.slow_down(if again { Stop::Killed } else { Stop::Interrupted });
                self.tell(&Event::Interrupt { again })?;
            }
            Ok(Message::Sought { nodes }) => {
                self.seeker.found(&nodes);
                for node in nodes {
                    self.enqueue(node);
                }
            }
            // This struct holds a sender itself, so the channel cannot be closed.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                for node in std::mem::take(&mut self.held) {
                    self.enqueue(node);
                }
                self.list(false);
            }
        }
        Ok(())
    }

    /// Puts a node whose turn has come (again) among those that are ready.
    fn enqueue(&mut self, node: usize) {
        if let Phase::Held { key, reason } = &self.phases[node] {
            self.phases[node] = Phase::Ready { key: *key, reason: reason.clone() };
        }
        self.ready.entry(self.device_of(node)).or_default().insert((self.place[node], node));
    }

    fn fill(&mut self) -> Result<(), ExecError> {
        let mut busy: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut full = false;
        while self.stop == Stop::No {
            let firsts =
                self.ready.iter().filter(|(device, _)| !busy.contains(*device) && (!full || &***device == AWAY));
            let Some((_, node)) = firsts.filter_map(|(_, nodes)| nodes.first()).min().copied() else { break };
            let (device, declared) = (self.device_of(node), &self.pipeline.nodes[node]);
            if &*device == AWAY {
                if self.yard.is_full() {
                    busy.insert(device);
                } else {
                    self.ready.entry(device).or_default().remove(&(self.place[node], node));
                    let place = self.place_away(node);
                    self.begin(node, place)?;
                }
                continue;
            }
            let wish = Wish::of(is_light(self.pipeline, declared), declared.run.threads);
            let count = self.could_start(|device| device != AWAY);
            let ranks = declared.run.ranks.unwrap_or(1);
            match self.room.enter(wish, &device, ranks, count, self.want(node)) {
                Err(Full::Machine) => full = true,
                Err(Full::Device) => _ = busy.insert(device),
                Ok(place) => {
                    self.ready.entry(device).or_default().remove(&(self.place[node], node));
                    self.begin(node, place)?;
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, event: &Event) -> Result<(), ExecError> {
        (self.report)(event);
        self.journal.write(event)
    }

    /// Tells the index what the next plan is to know: the keys of hits, and the seals of what was made.
    fn remember(&mut self) {
        let records = &mut self.plan.records;
        let mut latest = BTreeMap::new();
        for (node, phase) in self.pipeline.nodes.iter().zip(&self.phases) {
            match phase {
                Phase::Hit { key, .. } if records.latest(&node.name) != Some(key) => {
                    latest.insert(node.name.clone(), *key);
                }
                // What cannot be read now, the next plan will read.
                Phase::Ran { artifact, .. } if self.stop < Stop::Interrupted => {
                    let _ = self.store.health(artifact, &mut records.stamps);
                }
                _ => {}
            }
        }
        self.index.set_latest(&self.pipeline.name, &latest);
        self.index.save_stamps(&records.stamps);
        // Not to stand in memory beside the run's record, which is as large.
        records.shrink();
    }

    /// Records the run and tells that it is over.
    fn finish(mut self) -> Result<Summary, ExecError> {
        self.conclude_all()?;
        self.list(true);
        self.remember();
        let nodes = run_nodes(self.pipeline, &self.phases, &self.index.figures());
        let mut summary = Summary {
            run: self.journal.run().to_owned(),
            interrupted: false,
            seconds: 0.0,
            budget: Vec::new(),
            left: Vec::new(),
            nodes,
        };
        summary.budget = std::mem::take(&mut self.ledger.told);
        summary.left = std::mem::take(&mut self.yard.left);
        summary.interrupted = self.stop >= Stop::Interrupted && !summary.ok();
        // A gc removes this run wholly before both or after: else the index would know a run that is gone.
        let section = self.store.sharing();
        let ended = self.journal.end(self.store, summary.ok(), &mut summary.nodes);
        self.index.add_run(self.journal.record());
        drop(section);
        if let Some(error) = self.fault {
            return Err(error);
        }
        ended?;
        let (ok, nodes) = (summary.ok(), std::mem::take(&mut summary.nodes));
        let count = |state| nodes.iter().filter(|node: &&RunNode| node.state == state).count();
        let done = Event::Done { ok, ran: count("ran"), hits: count("hit"), failed: count("failed"), nodes };
        self.tell(&done)?;
        self.journal.flush()?;
        if let Event::Done { nodes, .. } = done {
            summary.nodes = nodes;
        }
        summary.seconds = self.journal.seconds();
        Ok(summary)
    }
}
