//! An attempt from its start to its end, as the loop sees it.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::{GATHER, LISTING, MOST_TOGETHER, MOST_UNLISTED, Scheduler, Stop};
use crate::digest::Digest;
use crate::exec::attempt::{Attempt, Fault, Given, Made, Start};
use crate::exec::commit;
use crate::exec::engine::Ticket;
use crate::exec::job::{JobResult, Word};
use crate::exec::ledger::{Asking, Portion};
use crate::exec::phase::Phase;
use crate::exec::records::Found;
use crate::exec::room::Place;
use crate::exec::shards::Role;
use crate::exec::tolerance;
use crate::exec::verified::check_inputs;
use crate::exec::{Event, ExecError, Reason};
use crate::store::{AttemptRecord, NodeRecord, StoreError};

impl Scheduler<'_> {
    /// Starts an attempt at a ready node, unless its key turns out to be worked on or done.
    pub(super) fn begin(&mut self, node: usize, place: Place) -> Result<(), ExecError> {
        if self.sharded.contains_key(&node) {
            return self.begin_part(node, place);
        }
        let Phase::Ready { key, reason } = self.phases[node].clone() else {
            self.room.leave(&place);
            return Ok(());
        };
        if let Some(twins) = self.keys.get_mut(&key) {
            twins.push(node);
            self.phases[node] = Phase::Held { key, reason };
            self.room.leave(&place);
            return Ok(());
        }
        let Some(lock) = self.store.try_lock_key(&key)? else {
            self.held.insert(node);
            self.phases[node] = Phase::Held { key, reason };
            self.room.leave(&place);
            let by = self.store.key_holder(&key).map(|holder| holder.name());
            let event = Event::NodeWait { node: self.pipeline.nodes[node].name.clone(), key, by };
            return if self.waited.insert(node) { self.tell(&event) } else { Ok(()) };
        };
        // It may have been done elsewhere since the plan was made.
        let section = self.store.sharing()?;
        if reason != Reason::Forced
            && let (Found::Whole(_), Some(record)) = self.plan.records.find_afresh(self.store, self.index, &key)?
        {
            let artifact = self.plan.handed_down(self.pipeline, self.store, node, &record)?;
            self.store.need_hits([(key, artifact)])?;
            self.room.leave(&place);
            self.hit(node, key, artifact)?;
            return self.settle(node);
        }
        drop(section);
        let recipe = self.plan.recipe(self.pipeline, node);
        if let Some(wrong) = check_inputs(self.pipeline, self.store, self.plan, node, &recipe)? {
            self.room.leave(&place);
            return self.repair(node, key, wrong);
        }
        // What an earlier run began and no one has seen the end of goes on, wherever this run would have it.
        let ticket =
            Ticket::at(self.store, &key, None).filter(|ticket| self.yard.knows(&ticket.engine) && !ticket.is_spent());
        let place = match &ticket {
            Some(_) => {
                self.room.leave(&place);
                self.place_away(node)
            }
            None => place,
        };
        if let Some(parts) = self.parts_of(node, &recipe)?.filter(|_| ticket.is_none()) {
            self.split(node, (recipe, reason, lock), parts, &place)?;
            return self.begin_part(node, place);
        }
        let Some((asking, allowance)) = self.admit(node, &place, &key, Portion::WHOLE)? else {
            self.room.leave(&place);
            return Ok(());
        };
        let number = self.numbers.entry(node).or_default();
        *number += 1;
        let number = *number;
        let (lock, role) = (Arc::new(lock), Role::Node);
        let micro_batch = self.straits.get(&node).and_then(|strait| strait.micro_batch);
        let (models, keep) = (Vec::new(), Vec::new());
        let given = Given { node, number, reason, recipe, place, lock, allowance, role, micro_batch, models, keep };
        let adopted = ticket.is_some();
        let serial = self.launch(given, asking, ticket)?;
        let Some(attempt) = self.running.get(&serial) else { return Ok(()) };
        let event = Event::NodeStart {
            node: self.pipeline.nodes[node].name.clone(),
            kind: self.pipeline.nodes[node].kind.name.to_owned(),
            key,
            attempt: number,
            why: attempt.reason.to_string(),
            device: attempt.place.device().to_owned(),
            threads: attempt.place.threads,
            log: attempt.log.clone(),
            shards: None,
        };
        let job = attempt.remote.as_ref().filter(|_| adopted).map(|remote| Event::NodeJob {
            node: self.pipeline.nodes[node].name.clone(),
            engine: remote.ticket.engine.clone(),
            job: remote.ticket.job.clone(),
            state: "adopted".to_owned(),
            host: None,
            why: remote.ticket.look.clone(),
        });
        self.keys.insert(key, Vec::new());
        self.phases[node] = Phase::Running { key };
        self.tell(&event)?;
        job.map_or(Ok(()), |job| self.tell(&job))
    }

    /// Starts an attempt, or listens to one that an engine executes already; returns its number among those of the run.
    pub(super) fn launch(
        &mut self,
        mut given: Given,
        asking: Asking,
        ticket: Option<Ticket>,
    ) -> Result<u64, ExecError> {
        given.models = self.models_of(&given);
        given.keep = self.to_keep(&given);
        self.make_way(&given)?;
        self.serial += 1;
        let start = Start {
            pipeline: self.pipeline,
            store: self.store,
            journal: &self.journal,
            program: &self.options.program,
            inbox: &self.outbox,
            stamps: &self.plan.records.stamps,
            serial: self.serial,
        };
        let allowance = given.allowance;
        let attempt = if given.place.is_away() {
            Attempt::send(&start, given, &mut self.yard, ticket)?
        } else {
            Attempt::start(&start, given, &mut self.idle)?
        };
        self.ledger.begin(self.serial, asking, allowance);
        self.running.insert(self.serial, attempt);
        Ok(self.serial)
    }

    /// Takes a worker's word.
    pub(super) fn hear(&mut self, serial: u64, word: Word) -> Result<(), ExecError> {
        let Some(attempt) = self.running.get_mut(&serial) else { return Ok(()) };
        match word {
            Word::Used(usage) => {
                attempt.usage = Some(usage);
                Ok(())
            }
            Word::Spent(spent) => {
                self.ledger.spent(serial, spent);
                Ok(())
            }
            Word::Full { row } => {
                attempt.full = Some(row);
                Ok(())
            }
            Word::Kept { models } => {
                attempt.kept = models;
                Ok(())
            }
            Word::Last => {
                attempt.last = true;
                Ok(())
            }
            Word::Result(result) => {
                // Of a job it counts when all is known that belongs to it.
                if attempt.remote.is_some() {
                    return Ok(());
                }
                attempt.result = Some(result);
                // Of the others the end follows when their workers end.
                if attempt.is_light() || attempt.keeps_weights() { self.end(serial) } else { Ok(()) }
            }
            Word::Began { host } => {
                // What it took until then it waited.
                attempt.began = Instant::now();
                tracing::debug!("attempt {serial} has begun on {host}");
                Ok(())
            }
            Word::Progress(progress) => {
                if let Some(remote) = &mut attempt.remote {
                    remote.reached = progress.done;
                }
                self.ledger.progress(serial, progress.done, progress.total);
                let at = attempt.node;
                match attempt.role {
                    Role::Node => {}
                    Role::Shard { number, .. } => return self.hear_part(at, number, progress),
                    // All rows are there.
                    Role::Join { .. } => return Ok(()),
                }
                let node = self.pipeline.nodes[attempt.node].name.clone();
                let seconds = attempt.began.elapsed().as_secs_f64();
                self.tell(&Event::NodeProgress { node, progress, seconds, shards: Vec::new() })
            }
        }
    }

    /// An attempt is over: has what it made recorded, or tells what went wrong.
    pub(super) fn end(&mut self, serial: u64) -> Result<(), ExecError> {
        let Some(mut attempt) = self.running.remove(&serial) else { return Ok(()) };
        let (node, key) = (attempt.node, attempt.recipe.key);
        let stays = self.stays(&attempt);
        let ended = attempt.end(&mut self.idle, stays)?;
        let again = attempt.remote.as_mut().and_then(|remote| remote.again.take());
        self.room.leave(&attempt.place);
        let name = self.pipeline.nodes[node].name.clone();
        let told = self.stop >= Stop::Interrupted || self.ledger.stopped(serial);
        let refused = self.ledger.refused(serial);
        self.account(serial, &key, &ended.result, ended.silent)?;
        let Some(ended) = self.end_part(&mut attempt, ended, (told, refused), again.as_ref())? else { return Ok(()) };
        let seconds = ended.seconds;
        let (state, error) = match &ended.result {
            JobResult::Done { .. } | JobResult::Computed { .. } => ("done", None),
            JobResult::Failed { what, .. } if !told => ("failed", Some(what.clone())),
            JobResult::Failed { .. } | JobResult::Interrupted => ("interrupted", again.clone()),
        };
        self.unlisted.attempts.push(AttemptRecord {
            run: self.journal.run().to_owned(),
            node: name.clone(),
            attempt: attempt.number,
            key,
            state: state.to_owned(),
            error,
            seconds,
            directory: ended.directory,
        });
        match ended.result {
            JobResult::Done { artifact, metrics, put, unsettled } => {
                self.store.trust(put);
                let there = attempt.remote.as_ref().and_then(|remote| Some(remote.exit.as_ref()?.1.clone()));
                let host = there.unwrap_or_else(|| self.host.clone());
                let made = Made { pipeline: self.pipeline, run: self.journal.run(), host: &host, artifact, metrics };
                let mut record = attempt.record(made, seconds);
                let tolerance = self.pipeline.nodes[node].tolerance;
                let records = &mut self.plan.records;
                let latest = records.latest(&record.node).copied();
                // The record is true without it.
                let settled =
                    tolerance::settle(self.store, &mut records.stamps, tolerance, latest.as_ref(), &mut record);
                if let Err(error) = settled {
                    tracing::warn!("{name}: cannot be held against what it was: {error}");
                }
                self.made.push(commit::Made { attempt: serial, record, unsettled, since: Instant::now() });
                // Until it is recorded, no one else begins at the key.
                self.committing.insert(serial, attempt);
                return Ok(());
            }
            // Of a part, which was dealt with.
            JobResult::Computed { .. } => {}
            JobResult::Interrupted if !told && again.is_some() && self.stop == Stop::No => {
                let what = again.unwrap_or_default();
                let fault = Fault::of(&attempt.log, attempt.number, what, None);
                self.phases[node] = Phase::Ready { key, reason: attempt.reason.clone() };
                self.tell(&fault.event(name, true))?;
                self.enqueue(node);
            }
            JobResult::Interrupted if again.is_some() => {
                self.phases[node] = Phase::Stopped { key, seconds };
                self.tell(&Event::NodeStop { node: name, seconds })?;
            }
            JobResult::Failed { .. } | JobResult::Interrupted if told => {
                self.phases[node] = Phase::Stopped { key, seconds };
                self.tell(&Event::NodeStop { node: name, seconds })?;
            }
            JobResult::Interrupted => {
                let what = "the worker was told to stop by someone else";
                let help = "run it again: it goes on from where it stopped";
                self.phases[node] = Phase::Failed { key, seconds };
                self.fail(node, Fault::of(&attempt.log, attempt.number, what.to_owned(), Some(help.to_owned())))?;
            }
            // Someone took this process for dead, and its files away, and does the work now.
            JobResult::Failed { .. } if !attempt.lock.holds() => {
                self.phases[node] = Phase::Held { key, reason: attempt.reason.clone() };
                self.held.insert(node);
            }
            JobResult::Failed { what, help } => {
                let retries = self.pipeline.nodes[node].run.retries.unwrap_or(0);
                let relieved = self.relieve(&attempt);
                let failures = self.failures.entry(node).or_default();
                *failures += u32::from(relieved.is_none());
                let again = relieved.is_some() || *failures <= retries;
                let what = relieved.iter().fold(what, |what, told| format!("{what}; {told}"));
                let fault = Fault::of(&attempt.log, attempt.number, what, help);
                if again && self.stop == Stop::No {
                    self.phases[node] = Phase::Ready { key, reason: attempt.reason.clone() };
                    self.tell(&fault.event(name, true))?;
                    self.enqueue(node);
                } else {
                    self.phases[node] = Phase::Failed { key, seconds };
                    self.fail(node, fault)?;
                }
            }
        }
        self.release(attempt);
        Ok(())
    }

    /// Lets others begin at the key of an attempt that is over.
    pub(super) fn release(&mut self, attempt: Attempt) {
        let key = attempt.recipe.key;
        drop(attempt);
        self.free(&key);
    }

    /// Has what was made recorded, unless that is being done for what was made before: what ends in the meantime is recorded
    /// together. So is, for a moment, what ends while no one has to wait for it.
    pub(super) fn hand_over(&mut self, batches: &Sender<Vec<commit::Made>>) {
        let Some(first) = self.made.first() else { return };
        let busy = !self.running.is_empty() && self.ready.values().any(|nodes| !nodes.is_empty());
        let gather = busy && self.made.len() < MOST_TOGETHER && first.since.elapsed() < GATHER;
        if !gather && !self.is_committing {
            // The thread that takes them lives as long as the loop.
            self.is_committing = batches.send(std::mem::take(&mut self.made)).is_ok();
        }
    }

    /// What attempts made is recorded: it is true now that they succeeded.
    pub(super) fn committed(
        &mut self,
        attempts: &[u64],
        done: Result<Vec<(NodeRecord, Digest)>, StoreError>,
    ) -> Result<(), ExecError> {
        self.is_committing = false;
        let attempts: Vec<Attempt> = attempts.iter().filter_map(|attempt| self.committing.remove(attempt)).collect();
        let records = done?;
        for (attempt, record) in attempts.iter().zip(&records) {
            self.unlisted.nodes.push((self.pipeline.nodes[attempt.node].name.clone(), record.0.clone()));
        }
        self.list(false);
        for (attempt, (record, made)) in attempts.into_iter().zip(records) {
            self.succeed(attempt.node, record, made)?;
            self.release(attempt);
        }
        Ok(())
    }

    /// Tells the index of what it has not been told yet, if that is much or a while ago, or `now`.
    pub(super) fn list(&mut self, now: bool) {
        let Unlisted { attempts, nodes, since } = &self.unlisted;
        if attempts.is_empty() && nodes.is_empty() || !now && nodes.len() < MOST_UNLISTED && since.elapsed() < LISTING {
            return;
        }
        let latest = nodes.iter().map(|(name, record)| (name.clone(), record.key)).collect();
        self.index.together(|index| {
            attempts.iter().for_each(|attempt| index.add_attempt(attempt));
            nodes.iter().for_each(|(_, record)| index.add_node(record));
            index.set_latest(&self.pipeline.name, &latest);
        });
        self.unlisted = Unlisted::default();
    }
}

/// What the index has not been told of: a transaction costs as much as a short node.
pub(super) struct Unlisted {
    pub(super) attempts: Vec<AttemptRecord>,
    /// Nodes by name, with the records that hold.
    nodes: Vec<(String, NodeRecord)>,
    since: Instant,
}

impl Default for Unlisted {
    fn default() -> Self {
        Self { attempts: Vec::new(), nodes: Vec::new(), since: Instant::now() }
    }
}

impl Unlisted {
    pub(super) fn is_empty(&self) -> bool {
        self.attempts.is_empty() && self.nodes.is_empty()
    }
}
