//! A node in parts: an attempt at each, and one that puts them together.
//!
//! While parts go on the node is at `Phase::Running`. It stands among those that are ready as long as a part is open, and once
//! more when all are done; from there on it is as any node with an attempt.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Scheduler, Stop};
use crate::digest::Digest;
use crate::exec::attempt::{Attempt, Ended, Fault, Given};
use crate::exec::away::AWAY;
use crate::exec::engine::Ticket;
use crate::exec::event::ShardState;
use crate::exec::job::{Job, JobPart, JobResult};
use crate::exec::journal::attempt_directory;
use crate::exec::ledger::Portion;
use crate::exec::phase::Phase;
use crate::exec::plan::Recipe;
use crate::exec::room::{ANY_GPU, Place};
use crate::exec::shards::{Role, Sharded, Stage, count};
use crate::exec::{Event, ExecError, Reason};
use crate::kinds::{self, Progress};
use crate::pipeline::{Shards, Target, dataset};
use crate::store::{AttemptRecord, KeyLock};

impl Scheduler<'_> {
    /// Into how many parts a node is split that is about to start; `None` if it is not.
    pub(super) fn parts_of(&self, node: usize, recipe: &Recipe) -> Result<Option<usize>, ExecError> {
        let Some(wanted) = self.pipeline.nodes[node].run.shards else { return Ok(None) };
        let rows = self.rows_of(node, recipe)?;
        let slots = match &*self.devices[node] {
            ANY_GPU => self.options.gpus.len(),
            AWAY => self.yard.slots(),
            _ => 1,
        };
        let seconds = self.options.needs.get(&node).and_then(crate::exec::budget::Needs::seconds);
        let count = count(wanted, rows, seconds, slots);
        if let (Shards::Count(wanted), Some(rows)) = (wanted, rows)
            && count < wanted
        {
            let name = &self.pipeline.nodes[node].name;
            tracing::warn!("{name}: `shards = {wanted}` is more than there are rows: {rows} rows are {count} shards");
        }
        Ok((count > 1).then_some(count))
    }

    /// Rows that a node works on, one by one.
    fn rows_of(&self, node: usize, recipe: &Recipe) -> Result<Option<u64>, ExecError> {
        let node = &self.pipeline.nodes[node];
        let path = kinds::find(node.kind.name).and_then(|entry| entry.rows_of);
        let Some(link) = node.links.iter().find(|link| Some(link.field.path.as_str()) == path) else { return Ok(None) };
        let Some(id) = recipe.inputs.get(&link.field.path) else { return Ok(None) };
        let files = self.store.files(id)?;
        let rows = files.get("rows.jsonl").and_then(|path| dataset::sample_of(path, 1)).map(|(rows, _)| rows);
        // Rows of datasets are cut before they are hashed.
        let slice = matches!(link.target, Target::Node(_)).then_some(&link.field.input);
        let (skip, take) = slice.map_or((0, None), |input| (input.skip.unwrap_or(0), input.take));
        Ok(rows.map(|rows| rows.saturating_sub(skip).min(take.unwrap_or(u64::MAX))))
    }

    /// How many attempts could start on some devices at once, if there were room.
    pub(super) fn could_start(&self, on: impl Fn(&str) -> bool) -> usize {
        let nodes: usize = self.ready.iter().filter(|(device, _)| on(device)).map(|(_, nodes)| nodes.len()).sum();
        // Those in parts are few, and counted once.
        let more = self.in_parts.iter().map(|node| {
            let device = self.device_of(*node);
            let is_ready = || self.ready.get(&device).is_some_and(|nodes| nodes.contains(&(self.place[*node], *node)));
            if on(&device) && is_ready() { self.parts_to_start(*node).saturating_sub(1) } else { 0 }
        });
        nodes + more.sum::<usize>()
    }

    /// How many attempts a ready node in parts could start at once.
    pub(super) fn parts_to_start(&self, node: usize) -> usize {
        match (self.sharded.get(&node), self.pipeline.nodes[node].run.shards) {
            (Some(sharded), _) => sharded.count(Stage::Open),
            (None, Some(Shards::Count(count))) => count,
            _ => 1,
        }
    }

    /// The device that a node starts on next.
    pub(super) fn device_of(&self, node: usize) -> Arc<str> {
        match self.sharded.get(&node) {
            Some(sharded) if sharded.joins_on_cpu() => "cpu".into(),
            _ => Arc::clone(&self.devices[node]),
        }
    }

    /// Splits a node that is about to start.
    pub(super) fn split(
        &mut self,
        node: usize,
        (recipe, reason, lock): (Recipe, Reason, KeyLock),
        count: usize,
        place: &Place,
    ) -> Result<(), ExecError> {
        let number = self.numbers.entry(node).or_default();
        *number += 1;
        let number = *number;
        let (key, name) = (recipe.key, self.pipeline.nodes[node].name.clone());
        let event = Event::NodeStart {
            kind: self.pipeline.nodes[node].kind.name.to_owned(),
            key,
            attempt: number,
            why: reason.to_string(),
            device: place.device().to_owned(),
            threads: place.threads,
            log: self.journal.attempt(&name, number)?.join("log.txt"),
            shards: Some(count),
            node: name,
        };
        let mut sharded = Sharded::new(recipe, reason, lock, number, count);
        for (part, share) in sharded.shares.iter_mut().enumerate() {
            share.left = self.left_at(&key, (part, count)).is_some();
        }
        self.sharded.insert(node, sharded);
        self.keys.insert(key, Vec::new());
        self.phases[node] = Phase::Running { key };
        self.tell(&event)
    }

    /// What an earlier run began at a part and no one has seen the end of, with the place of its report: if the node was in as
    /// many parts then.
    fn left_at(&self, key: &Digest, (number, of): (usize, usize)) -> Option<(Ticket, PathBuf)> {
        let ticket = Ticket::at(self.store, key, Some(number))?;
        if ticket.is_spent() || !self.yard.knows(&ticket.engine) {
            return None;
        }
        match Job::read(&ticket.directory.join("job.json")).ok()?.part? {
            JobPart::Shard { of: others, report, .. } if others == of => Some((ticket, report)),
            _ => None,
        }
    }

    /// Starts an attempt at the next part of a node, or at putting its parts together.
    pub(super) fn begin_part(&mut self, node: usize, place: Place) -> Result<(), ExecError> {
        let Some(sharded) = self.sharded.get(&node) else {
            self.room.leave(&place);
            return Ok(());
        };
        let (key, of, next) = (sharded.recipe.key, sharded.shares.len(), sharded.next());
        let (running, open) = (sharded.count(Stage::Running), sharded.count(Stage::Open));
        let alone = next.is_some_and(|next| sharded.shares[next].alone);
        let left = next.filter(|next| sharded.shares[*next].left);
        if !sharded.is_ready() {
            self.room.leave(&place);
            return Ok(());
        }
        if alone && running > 0 {
            self.ledger.waiting.push(node);
            self.room.leave(&place);
            return Ok(());
        }
        let portion = match next {
            Some(_) => Portion { of, open: if alone { 1 } else { open } },
            None => Portion::NOTHING,
        };
        let Some((asking, allowance)) = self.admit(node, &place, &key, portion)? else {
            self.room.leave(&place);
            if self.phases[node] == Phase::Skipped {
                self.sharded.remove(&node);
                self.free(&key);
            }
            return Ok(());
        };
        let partial = self.store.partial_dir(&key)?;
        let adopted = left.and_then(|next| self.left_at(&key, (next, of)));
        let place = if adopted.is_some() {
            self.room.leave(&place);
            self.place_away(node)
        } else {
            place
        };
        let Some(sharded) = self.sharded.get_mut(&node) else { return Ok(()) };
        let attempt_at_part = next.map(|next| {
            let share = &mut sharded.shares[next];
            share.stage = Stage::Running;
            share.left = false;
            share.attempts += 1;
            share.had_all = running == 0 && (alone || open == 1);
            share.attempts
        });
        let mut ticket = None;
        let role = match (next, attempt_at_part) {
            (Some(number), Some(attempt)) => {
                let mut report = partial.join(format!("{}.{}.{number}.json", self.journal.run(), sharded.number));
                if let Some((found, told)) = adopted {
                    (ticket, report) = (Some(found), told);
                }
                Role::Shard { number, of, attempt, report }
            }
            _ => {
                sharded.joining = true;
                sharded.join()
            }
        };
        let given = Given {
            node,
            number: sharded.number,
            reason: sharded.reason.clone(),
            recipe: sharded.recipe.clone(),
            place,
            lock: Arc::clone(&sharded.lock),
            allowance,
            role,
            micro_batch: self.straits.get(&node).and_then(|strait| strait.micro_batch),
            models: Vec::new(),
            keep: Vec::new(),
        };
        let serial = self.launch(given, asking, ticket)?;
        if open > 1 {
            self.enqueue(node);
        }
        if let Some(number) = next {
            self.tell_part(serial, number, of, ShardState::Started, None)?;
        }
        Ok(())
    }

    /// Tells how an attempt that goes on at a part of a node is.
    fn tell_part(
        &mut self,
        serial: u64,
        number: usize,
        of: usize,
        state: ShardState,
        error: Option<String>,
    ) -> Result<(), ExecError> {
        let Some(attempt) = self.running.get(&serial) else { return Ok(()) };
        let event = part_event(&self.pipeline.nodes[attempt.node].name, attempt, (number, of), (state, error), 0.0);
        self.tell(&event)
    }

    /// A part tells how far it is.
    pub(super) fn hear_part(&mut self, node: usize, number: usize, progress: Progress) -> Result<(), ExecError> {
        let Some(sharded) = self.sharded.get_mut(&node) else { return Ok(()) };
        let Some((progress, shards)) = sharded.hear(number, progress) else { return Ok(()) };
        let seconds = sharded.began.elapsed().as_secs_f64();
        let node = self.pipeline.nodes[node].name.clone();
        self.tell(&Event::NodeProgress { node, progress, seconds, shards })
    }

    /// An attempt is over. Returns how it ended if it was at a whole node, or at putting one together; what the end of an
    /// attempt at a part means is dealt with here. `told`: whether it was told to stop; `refused`: whether it stopped because
    /// it had spent what it might; `again`: why an engine lets another attempt follow.
    pub(super) fn end_part(
        &mut self,
        attempt: &mut Attempt,
        ended: Ended,
        (told, refused): (bool, bool),
        again: Option<&String>,
    ) -> Result<Option<Ended>, ExecError> {
        let (node, stop) = (attempt.node, self.stop);
        let (number, of, report) = match &attempt.role {
            Role::Node => return Ok(Some(ended)),
            Role::Join { .. } => return Ok(self.end_join(attempt, ended, told)),
            Role::Shard { number, of, report, .. } => (*number, *of, report.clone()),
        };
        let name = self.pipeline.nodes[node].name.clone();
        let retries = self.pipeline.nodes[node].run.retries.unwrap_or(0);
        let relieved = if told { None } else { self.relieve(attempt) };
        let Some(sharded) = self.sharded.get_mut(&node) else { return Ok(None) };
        let gpu = (attempt.place.device() != "cpu").then_some(ended.seconds);
        sharded.use_of(attempt.usage.take(), gpu);
        let given_up = sharded.fault.is_some() || sharded.lost;
        let share = &mut sharded.shares[number];
        share.stage = Stage::Open;
        let spent = refused && share.had_all;
        share.alone |= refused;
        let fault = |what, help| Fault::of(&attempt.log, sharded.number, what, help);
        let part = number + 1;
        let (state, error) = match ended.result {
            JobResult::Computed { class } => {
                share.stage = Stage::Done;
                share.report = Some(report);
                sharded.computed_on(attempt.place.device(), class);
                (ShardState::Done, None)
            }
            JobResult::Failed { .. } | JobResult::Interrupted if told || given_up => (ShardState::Stopped, None),
            JobResult::Interrupted if again.is_some() => (ShardState::Again, again.cloned()),
            JobResult::Failed { .. } if !sharded.lock.holds() => {
                sharded.lost = true;
                (ShardState::Stopped, None)
            }
            JobResult::Failed { what, help } => {
                share.failures += u32::from(relieved.is_none());
                let again = stop == Stop::No && (relieved.is_some() || share.failures <= retries);
                let what = relieved.iter().fold(what, |what, told| format!("{what}; {told}"));
                if !again {
                    sharded.fault = Some(fault(format!("shard {part} of {of}: {what}"), help));
                }
                (if again { ShardState::Again } else { ShardState::Failed }, Some(what))
            }
            JobResult::Interrupted | JobResult::Done { .. } => {
                let what = "the worker was told to stop by someone else".to_owned();
                let help = "run it again: it goes on from where it stopped".to_owned();
                sharded.fault = Some(fault(format!("shard {part} of {of}: {what}"), Some(help)));
                (ShardState::Failed, Some(what))
            }
        };
        let over = sharded.fault.is_some() || sharded.lost || spent || told && !refused;
        let (running, is_lost, is_ready) = (sharded.count(Stage::Running), sharded.lost, sharded.is_ready());
        let event = part_event(&name, attempt, (number, of), (state, error), ended.seconds);
        self.tell(&event)?;
        if !over && self.stop == Stop::No {
            if is_ready {
                self.enqueue(node);
            }
        } else if running == 0 {
            self.conclude(node)?;
        } else if is_lost || over && !self.options.keep_going {
            // What they have done by then is kept.
            for other in self.running.values_mut().filter(|other| other.node == node) {
                match &other.remote {
                    Some(remote) => self.yard.stop(remote),
                    None => other.stop(),
                }
            }
        }
        Ok(None)
    }

    /// The attempt that puts parts together is over. Returns how, as if it had been the only one; nothing if it is made again
    /// where the parts were computed, as rows turned out to be gone.
    fn end_join(&mut self, attempt: &mut Attempt, ended: Ended, told: bool) -> Option<Ended> {
        let elsewhere = matches!(&attempt.role, Role::Join { class: Some(_), .. });
        let failed = matches!(ended.result, JobResult::Failed { .. }) && !told && attempt.lock.holds();
        if let Some(sharded) = self.sharded.get_mut(&attempt.node).filter(|_| failed && elsewhere) {
            tracing::warn!("the shards are put together on a device like theirs, as rows of them are gone");
            (sharded.on_device, sharded.joining) = (true, false);
            self.enqueue(attempt.node);
            return None;
        }
        let mut sharded = self.sharded.remove(&attempt.node)?;
        let gpu = (attempt.place.device() != "cpu").then_some(ended.seconds);
        sharded.use_of(attempt.usage.take(), gpu);
        attempt.usage = Some(sharded.usage);
        attempt.started = sharded.started;
        Some(Ended { seconds: sharded.began.elapsed().as_secs_f64(), ..ended })
    }

    /// Nothing comes of a node whose parts have all ended, for now.
    fn conclude(&mut self, node: usize) -> Result<(), ExecError> {
        let Some(sharded) = self.sharded.remove(&node) else { return Ok(()) };
        let (key, seconds) = (sharded.recipe.key, sharded.began.elapsed().as_secs_f64());
        let name = self.pipeline.nodes[node].name.clone();
        let error = sharded.fault.as_ref().map(|fault| fault.what.clone());
        self.unlisted.attempts.push(AttemptRecord {
            run: self.journal.run().to_owned(),
            attempt: sharded.number,
            key,
            state: if error.is_some() { "failed" } else { "interrupted" }.to_owned(),
            error,
            seconds,
            directory: attempt_directory(&name, sharded.number),
            node: name.clone(),
        });
        match sharded.fault {
            // Someone took this process for dead, and does the work now.
            _ if sharded.lost => {
                self.phases[node] = Phase::Held { key, reason: sharded.reason };
                self.held.insert(node);
            }
            Some(fault) => {
                self.phases[node] = Phase::Failed { key, seconds };
                self.fail(node, fault)?;
            }
            None => {
                self.phases[node] = Phase::Stopped { key, seconds };
                self.tell(&Event::NodeStop { node: name, seconds })?;
            }
        }
        drop(sharded.lock);
        self.free(&key);
        Ok(())
    }

    /// The run is over: nodes of which no part goes on, and some are open, have stopped.
    pub(super) fn conclude_all(&mut self) -> Result<(), ExecError> {
        let left: Vec<usize> = self.sharded.keys().copied().collect();
        left.into_iter().try_for_each(|node| self.conclude(node))
    }

    /// Lets others begin at a key that no one works at any more.
    pub(super) fn free(&mut self, key: &Digest) {
        for twin in self.keys.remove(key).unwrap_or_default() {
            self.enqueue(twin);
        }
    }
}

fn part_event(
    node: &str,
    attempt: &Attempt,
    (number, of): (usize, usize),
    (state, error): (ShardState, Option<String>),
    seconds: f64,
) -> Event {
    let tries = match &attempt.role {
        Role::Shard { attempt, .. } => *attempt,
        _ => 1,
    };
    Event::NodeShard {
        node: node.to_owned(),
        shard: number + 1,
        of,
        state,
        attempt: tries,
        device: attempt.place.device().to_owned(),
        threads: attempt.place.threads,
        seconds,
        error,
        log: attempt.log.clone(),
    }
}
