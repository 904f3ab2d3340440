//! An input that turns out to be damaged when a node is about to take it is made again within the run.

use super::Scheduler;
use crate::digest::Digest;
use crate::exec::attempt::Fault;
use crate::exec::phase::Phase;
use crate::exec::verified::Wrong;
use crate::exec::{ExecError, State};

impl Scheduler<'_> {
    /// Lets the maker of a damaged input run again, and those wait that would take it. Its own inputs are looked at
    /// before, in turn, so that this goes up as far as the damage does. What already ran on the input when it was whole
    /// stays.
    ///
    /// A source has no maker, and what is damaged again at once stands on a disk that cannot be trusted: then the node
    /// fails.
    pub(super) fn repair(&mut self, node: usize, key: Digest, wrong: Wrong) -> Result<(), ExecError> {
        let Some((maker, reason)) = wrong.maker else {
            let help = "run it again: what changed is read anew, and what takes it runs again";
            return self.fail_before(node, key, wrong.what, help);
        };
        let (Phase::Hit { key: made, .. } | Phase::Ran { key: made, .. }) = self.phases[maker] else {
            return self.fail_before(node, key, wrong.what, "run it again: what is damaged is made again first");
        };
        if !self.repaired.insert(maker) {
            let help = "it was made again in this run and is damaged again: have the disk and its memory checked";
            return self.fail_before(node, key, wrong.what, help);
        }
        tracing::warn!("{}: `{}` runs again", wrong.what, self.pipeline.nodes[maker].name);
        for dependant in self.graph.dependants(maker) {
            match &mut self.phases[dependant] {
                Phase::Waiting { inputs } => *inputs += 1,
                phase @ (Phase::Ready { .. } | Phase::Held { .. }) => {
                    *phase = Phase::Waiting { inputs: 1 };
                    self.withdraw(dependant);
                }
                _ => {}
            }
        }
        self.plan.nodes[maker] = State::Run { key: made, reason: reason.clone() };
        self.phases[maker] = Phase::Ready { key: made, reason };
        self.enqueue(maker);
        Ok(())
    }

    /// Takes a node from among those that start next.
    fn withdraw(&mut self, node: usize) {
        self.held.remove(&node);
        if let Some(ready) = self.ready.get_mut(&self.devices[node]) {
            ready.remove(&(self.place[node], node));
        }
    }

    /// A node fails before there was an attempt.
    fn fail_before(&mut self, node: usize, key: Digest, what: String, help: &str) -> Result<(), ExecError> {
        self.phases[node] = Phase::Failed { key, seconds: 0.0 };
        self.fail(node, Fault { attempt: 0, what, help: Some(help.to_owned()), log: None, tail: Vec::new() })
    }
}
