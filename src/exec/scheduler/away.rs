//! Attempts that an engine executes, in the loop: what is seen of their jobs, and what the end of one means.

use super::{Scheduler, Stop};
use crate::exec::away::{AWAY, devices_in_job};
use crate::exec::engine::{Again, Fate, Judged, Sight, Standing, Ticket, judge};
use crate::exec::job::JobResult;
use crate::exec::phase::Phase;
use crate::exec::room::Place;
use crate::exec::shards::Sharded;
use crate::exec::{Event, ExecError};
use crate::settings::OnInterrupt;
use crate::store::Health;

impl Scheduler<'_> {
    /// Has nodes wait for jobs that an engine executes.
    pub(super) fn send_away(&mut self) {
        for node in 0..self.pipeline.nodes.len() {
            if self.yard.goes_away(self.pipeline, node) {
                self.devices[node] = AWAY.into();
            }
        }
    }

    /// Listens to the jobs that an earlier run left at nodes that are ready, before any other starts: they are among those that
    /// there may be at once, but never too many to be listened to.
    pub(super) fn take_up(&mut self) -> Result<(), ExecError> {
        let ready: Vec<(usize, usize)> = self.ready.get(AWAY).into_iter().flatten().copied().collect();
        if ready.is_empty() {
            return Ok(());
        }
        let mut left = Ticket::all(self.store)?;
        left.retain(|_, tickets| tickets.iter().any(|ticket| self.yard.knows(&ticket.engine) && !ticket.is_spent()));
        for (place, node) in ready {
            if !matches!(&self.phases[node], Phase::Ready { key, .. } if left.contains_key(key)) {
                continue;
            }
            self.ready.entry(AWAY.into()).or_default().remove(&(place, node));
            self.begin(node, self.place_away(node))?;
            let parts = self.sharded.get(&node).map_or(0, |sharded| sharded.shares.len());
            for _ in 1..parts {
                if self.sharded.get(&node).is_some_and(Sharded::is_left) {
                    self.begin(node, self.place_away(node))?;
                }
            }
        }
        Ok(())
    }

    /// The place of a node in a job.
    pub(super) fn place_away(&self, node: usize) -> Place {
        let resources = self.yard.resources(self.pipeline, node);
        let devices = devices_in_job(self.pipeline, &self.pipeline.nodes[node], &resources);
        Place::away(resources.cpus.unwrap_or(1), devices)
    }

    /// Takes what is seen of a job.
    pub(super) fn see(&mut self, serial: u64, sight: Sight) -> Result<(), ExecError> {
        let Some(attempt) = self.running.get_mut(&serial) else { return Ok(()) };
        let Some(remote) = &mut attempt.remote else { return Ok(()) };
        let node = self.pipeline.nodes[attempt.node].name.clone();
        let (engine, job) = (remote.ticket.engine.clone(), remote.ticket.job.clone());
        let (state, host, why) = match sight {
            Sight::Over(fate) => return self.over(serial, &fate),
            Sight::Submitted { job, look } => {
                crate::fs::kill_point("submitted");
                remote.ticket.job = Some(job.clone());
                remote.ticket.look.clone_from(&look);
                remote.ticket.note()?;
                return self.tell(&Event::NodeJob {
                    node,
                    engine,
                    job: Some(job),
                    state: "submitted".into(),
                    host: None,
                    why: look,
                });
            }
            Sight::Blind { what } => ("unseen", None, what),
            Sight::At(seen) => {
                let state = if seen.state == Standing::Runs { "runs" } else { "waits" };
                (state, seen.host, seen.why)
            }
        };
        self.tell(&Event::NodeJob { node, engine, job, state: state.to_owned(), host, why })
    }

    /// A job is over: its attempt has ended, or another one follows.
    fn over(&mut self, serial: u64, fate: &Fate) -> Result<(), ExecError> {
        let Some(attempt) = self.running.get_mut(&serial) else { return Ok(()) };
        let Some(remote) = &mut attempt.remote else { return Ok(()) };
        self.yard.jobs = self.yard.jobs.saturating_sub(1);
        if let Some(exit) = &fate.exit {
            attempt.usage = Some(exit.usage);
            remote.exit = Some((exit.seconds, exit.host.clone()));
            self.ledger.spent(serial, exit.spent);
        }
        remote.silent = fate.exit.is_none();
        // Parts of a node are often preempted all at once: each has its own.
        let place = (attempt.node, attempt.role.part());
        let patience = self.yard.patience.get(&place).copied().unwrap_or_default();
        let seconds = fate.exit.as_ref().map(|exit| exit.seconds);
        let terms = self.yard.terms(self.pipeline, place, remote.reached, seconds);
        // Of what an earlier run began it may be long ago that it ended.
        let judged = match fate.exit.as_ref().map(|exit| &exit.result) {
            Some(JobResult::Done { artifact, .. })
                if remote.is_adopted()
                    && self.store.health(artifact, &mut self.plan.records.stamps)? != Health::Whole =>
            {
                let what = "what its job made is not in the cache any more".to_owned();
                Judged::Again(Again { what, patience })
            }
            _ => judge(fate, patience, terms),
        };
        match judged {
            Judged::Ended(result) => attempt.result = Some(result),
            Judged::Again(again) => {
                self.yard.patience.insert(place, again.patience);
                attempt.result = Some(JobResult::Interrupted);
                remote.again = Some(again.what);
            }
        }
        // Of what it made and is not recorded yet the ticket tells the next scheduler, if it comes to that.
        if !attempt.result.as_ref().is_some_and(JobResult::is_done) {
            Ticket::clear(self.store, &attempt.recipe.key, attempt.role.part())?;
        }
        self.end(serial)
    }

    /// Lets go of jobs, if they are to go on without this run, or if it has been told twice before that it is to end: an engine that
    /// is out of reach may never tell of theirs.
    pub(super) fn leave_jobs(&mut self) -> Result<(), ExecError> {
        if self.stop < Stop::Killed && self.yard.on_interrupt() != OnInterrupt::Leave {
            return Ok(());
        }
        let away: Vec<u64> =
            self.running.iter().filter(|(_, attempt)| attempt.remote.is_some()).map(|(serial, _)| *serial).collect();
        for serial in &away {
            let Some(attempt) = self.running.remove(serial) else { continue };
            let Some(remote) = &attempt.remote else { continue };
            let node = self.pipeline.nodes[attempt.node].name.clone();
            self.yard.left.push(node.clone());
            let key = attempt.recipe.key;
            let seconds = attempt.began.elapsed().as_secs_f64();
            self.phases[attempt.node] = Phase::Stopped { key, seconds };
            let (engine, job, why) =
                (remote.ticket.engine.clone(), remote.ticket.job.clone(), remote.ticket.look.clone());
            self.tell(&Event::NodeJob { node, engine, job, state: "left".into(), host: None, why })?;
            self.release(attempt);
        }
        Ok(())
    }

    /// Lets attempts stop, or ends them.
    pub(super) fn slow_down(&mut self, stop: Stop) {
        let cancel =
            stop == Stop::Killed || stop == Stop::Interrupted && self.yard.on_interrupt() == OnInterrupt::Cancel;
        self.stop = self.stop.max(stop);
        for attempt in self.running.values_mut() {
            match &attempt.remote {
                Some(remote) if cancel => self.yard.cancel(remote),
                Some(remote) => self.yard.stop(remote),
                None if stop == Stop::Killed => attempt.kill(),
                None => attempt.stop(),
            }
        }
    }
}
