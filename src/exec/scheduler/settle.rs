//! What an attempt's end means for the other nodes: those that waited for what it made, and those that never get it.

use super::{Scheduler, Stop};
use crate::digest::Digest;
use crate::exec::attempt::Fault;
use crate::exec::phase::Phase;
use crate::exec::{Event, ExecError, Reason, State};
use crate::store::NodeRecord;

impl Scheduler<'_> {
    /// A node's record is in the store: tells so. `made` is what its attempt made, which is not what is recorded if another
    /// was first.
    pub(super) fn succeed(&mut self, node: usize, record: NodeRecord, made: Digest) -> Result<(), ExecError> {
        self.plan.records.add(&record);
        crate::fs::kill_point("finish");
        let key = record.key;
        let artifact = self.plan.handed_down(self.pipeline, self.store, node, &record)?;
        let equal_to_within = record.equal_to_within.filter(|equal| equal.artifact == artifact);
        let NodeRecord { seconds, metrics, usage, .. } = record;
        self.plan.nodes[node] = State::Hit { key, artifact };
        self.phases[node] = Phase::Ran { key, artifact, seconds, metrics: metrics.clone() };
        let (name, kind) = (self.pipeline.nodes[node].name.clone(), self.pipeline.nodes[node].kind.name.to_owned());
        let other = (made != artifact && equal_to_within.is_none()).then_some(made);
        let weights_kept = usage.and_then(|usage| usage.weights_kept);
        self.tell(&Event::NodeFinish {
            node: name,
            kind,
            key,
            artifact,
            other,
            equal_to_within,
            seconds,
            weights_kept,
            metrics,
        })?;
        self.settle(node)
    }

    /// A node turns out to be fresh.
    pub(super) fn hit(&mut self, node: usize, key: Digest, artifact: Digest) -> Result<(), ExecError> {
        self.phases[node] = Phase::Hit { key, artifact };
        self.plan.nodes[node] = State::Hit { key, artifact };
        self.tell(&Event::NodeHit { node: self.pipeline.nodes[node].name.clone(), key, artifact })
    }

    /// Moves on the nodes that waited for one that now has its artifact, and those that waited for these if they are
    /// hits.
    pub(super) fn settle(&mut self, node: usize) -> Result<(), ExecError> {
        let mut open = vec![node];
        while let Some(node) = open.pop() {
            for dependant in self.graph.dependants(node) {
                let Phase::Waiting { inputs } = &mut self.phases[dependant] else { continue };
                *inputs -= 1;
                if *inputs > 0 {
                    continue;
                }
                // gc does not take what is found between the look and the naming.
                let _section = self.store.sharing()?;
                match self.plan.decide(self.pipeline, self.store, self.index, dependant)? {
                    State::Hit { key, artifact } => {
                        self.store.need_hits([(key, artifact)])?;
                        self.hit(dependant, key, artifact)?;
                        open.push(dependant);
                    }
                    State::Run { key, reason } => {
                        let sought = reason != Reason::Forced && self.seeker.seek(dependant, key, &self.outbox)?;
                        self.phases[dependant] = Phase::Ready { key, reason };
                        if !sought {
                            self.enqueue(dependant);
                        }
                    }
                    State::Outside | State::Unknown { .. } => {}
                }
            }
        }
        Ok(())
    }

    /// A node has failed for good: what needs it is skipped.
    pub(super) fn fail(&mut self, node: usize, fault: Fault) -> Result<(), ExecError> {
        let name = &self.pipeline.nodes[node].name;
        self.tell(&fault.event(name.clone(), false))?;
        if !self.options.keep_going {
            self.stop = self.stop.max(Stop::Failed);
        }
        self.skip_dependants(node)
    }

    /// What needs a node that has no artifact is skipped.
    pub(super) fn skip_dependants(&mut self, node: usize) -> Result<(), ExecError> {
        let name = &self.pipeline.nodes[node].name;
        let mut open = vec![node];
        while let Some(node) = open.pop() {
            for dependant in self.graph.dependants(node) {
                if matches!(self.phases[dependant], Phase::Waiting { .. }) {
                    self.phases[dependant] = Phase::Skipped;
                    open.push(dependant);
                    let node = self.pipeline.nodes[dependant].name.clone();
                    self.tell(&Event::NodeSkip { node, because: name.clone() })?;
                }
            }
        }
        Ok(())
    }
}
