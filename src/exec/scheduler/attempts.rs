//! An attempt from its start to its end, as the loop sees it.

use super::{Scheduler, Stop};
use crate::digest::Digest;
use crate::exec::attempt::{Attempt, Fault, Given, Made, Start};
use crate::exec::job::{JobResult, Word};
use crate::exec::phase::Phase;
use crate::exec::records::Found;
use crate::exec::room::Place;
use crate::exec::verified::check_inputs;
use crate::exec::{Event, ExecError, Reason};
use crate::store::AttemptRecord;

impl Scheduler<'_> {
    /// Starts an attempt at a ready node, unless its key turns out to be worked on or done.
    pub(super) fn begin(&mut self, node: usize, place: Place) -> Result<(), ExecError> {
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
        let Some((asking, allowance)) = self.admit(node, &place, &key)? else {
            self.room.leave(&place);
            return Ok(());
        };
        let number = self.numbers.entry(node).or_default();
        *number += 1;
        let number = *number;
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
        let attempt = Attempt::start(&start, Given { node, number, reason, recipe, place, lock, allowance })?;
        self.ledger.begin(self.serial, asking, allowance);
        let event = Event::NodeStart {
            node: self.pipeline.nodes[node].name.clone(),
            kind: self.pipeline.nodes[node].kind.name.to_owned(),
            key,
            attempt: number,
            why: attempt.reason.to_string(),
            device: attempt.place.device().to_owned(),
            threads: attempt.place.threads,
            log: attempt.log.clone(),
        };
        self.running.insert(self.serial, attempt);
        self.keys.insert(key, Vec::new());
        self.phases[node] = Phase::Running { key };
        self.tell(&event)
    }

    /// The artifact that another process has recorded under a key since this one began at it.
    fn done_elsewhere(&mut self, key: &Digest, reason: &Reason) -> Result<Option<Digest>, ExecError> {
        if *reason == Reason::Forced {
            return Ok(None);
        }
        let (found, _) = self.plan.records.find_afresh(self.store, self.index, key)?;
        Ok(if let Found::Whole(artifact) = found { Some(artifact) } else { None })
    }

    /// Takes a worker's word.
    pub(super) fn hear(&mut self, attempt: u64, word: Word) -> Result<(), ExecError> {
        let serial = attempt;
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
            Word::Result(result) => {
                attempt.result = Some(result);
                Ok(())
            }
            Word::Progress(progress) => {
                self.ledger.progress(serial, progress.done, progress.total);
                let node = self.pipeline.nodes[attempt.node].name.clone();
                let seconds = attempt.began.elapsed().as_secs_f64();
                self.tell(&Event::NodeProgress { node, progress, seconds })
            }
        }
    }

    /// An attempt is over: records what it made, or what went wrong.
    pub(super) fn end(&mut self, attempt: u64) -> Result<(), ExecError> {
        let serial = attempt;
        let Some(mut attempt) = self.running.remove(&serial) else { return Ok(()) };
        let (node, key) = (attempt.node, attempt.recipe.key);
        let twins = self.keys.remove(&key).unwrap_or_default();
        let ended = attempt.end()?;
        self.room.leave(&attempt.place);
        let seconds = ended.seconds;
        let name = self.pipeline.nodes[node].name.clone();
        let told = self.stop >= Stop::Interrupted || self.ledger.stopped(serial);
        self.account(serial, &key, &ended.result, ended.silent)?;
        let (state, error) = match &ended.result {
            JobResult::Done { .. } => ("done", None),
            JobResult::Failed { what, .. } if !told => ("failed", Some(what.clone())),
            JobResult::Failed { .. } | JobResult::Interrupted => ("interrupted", None),
        };
        self.index.add_attempt(&AttemptRecord {
            run: self.journal.run().to_owned(),
            node: name.clone(),
            attempt: attempt.number,
            key,
            state: state.to_owned(),
            error,
            seconds,
            directory: ended.directory,
        });
        // Someone may have taken this process for dead, and done the work meanwhile.
        let elsewhere = match &ended.result {
            JobResult::Failed { .. } if !told => self.done_elsewhere(&key, &attempt.reason)?,
            _ => None,
        };
        match ended.result {
            JobResult::Done { artifact, metrics, put } => {
                self.store.trust(put);
                let made =
                    Made { pipeline: self.pipeline, run: self.journal.run(), host: &self.host, artifact, metrics };
                let record = attempt.record(made, seconds);
                self.commit(node, record)?;
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
            JobResult::Failed { .. } if elsewhere.is_some() => {
                if let Some(artifact) = elsewhere {
                    self.hit(node, key, artifact)?;
                    self.settle(node)?;
                }
            }
            JobResult::Failed { what, help } => {
                let retries = self.pipeline.nodes[node].run.retries.unwrap_or(0);
                let fault = Fault::of(&attempt.log, attempt.number, what, help);
                if attempt.number <= retries && self.stop == Stop::No {
                    self.phases[node] = Phase::Ready { key, reason: attempt.reason };
                    self.tell(&fault.event(name, true))?;
                    self.enqueue(node);
                } else {
                    self.phases[node] = Phase::Failed { key, seconds };
                    self.fail(node, fault)?;
                }
            }
        }
        // Not before, so that no one else begins at the key while its record is not there.
        drop(attempt.lock);
        for twin in twins {
            self.enqueue(twin);
        }
        Ok(())
    }
}
