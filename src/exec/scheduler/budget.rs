//! A run that keeps to a budget: nodes that do not start, attempts that are told to stop.

use super::Scheduler;
use crate::digest::Digest;
use crate::endpoint::Allowance;
use crate::exec::job::JobResult;
use crate::exec::ledger::{Asking, Portion, Verdict};
use crate::exec::phase::Phase;
use crate::exec::room::Place;
use crate::exec::{Event, ExecError};
use crate::fs;
use crate::graph::made_by;
use crate::pipeline::{ArtifactType, Link};

/// In the directory that attempts at a key share: the calls that those have made which did not succeed.
const CALLS: &str = "calls.txt";

impl Scheduler<'_> {
    /// What a node that is about to start may spend; `None` if it does not start (yet).
    pub(super) fn admit(
        &mut self,
        node: usize,
        place: &Place,
        key: &Digest,
        portion: Portion,
    ) -> Result<Option<(Asking, Allowance)>, ExecError> {
        let pipeline = self.pipeline;
        let is_called = |link: &&Link| made_by(link, pipeline) == ArtifactType::Endpoint;
        let called = || pipeline.nodes[node].links.iter().filter(is_called);
        let asking = Asking {
            node,
            gpus: place.gpus(),
            threads: place.threads,
            calls: called().count() > 0,
            judge: called().any(|link| link.field.path == "judge"),
            portion,
            made: if self.ledger.is_free() { 0 } else { self.calls_made(key) },
        };
        match self.ledger.admit(asking) {
            Verdict::Start(allowance) => Ok(Some((asking, allowance))),
            Verdict::Wait => {
                self.ledger.waiting.push(node);
                Ok(None)
            }
            Verdict::Refuse(why) => {
                let name = pipeline.nodes[node].name.clone();
                self.ledger.told.push(format!("{name} did not start: {why}"));
                self.phases[node] = Phase::Skipped;
                self.tell(&Event::NodeRefuse { node: name, why })?;
                self.skip_dependants(node)?;
                Ok(None)
            }
        }
    }

    /// Tells those to stop that use what is used up.
    pub(super) fn keep_to_budget(&mut self) -> Result<(), ExecError> {
        let known = self.ledger.told.len();
        for serial in self.ledger.over() {
            if let Some(attempt) = self.running.get_mut(&serial) {
                match &attempt.remote {
                    Some(remote) => self.yard.stop(remote),
                    None => attempt.stop(),
                }
            }
        }
        self.tell_budget(known)
    }

    /// Tells what the ledger has said since it had said `known` things.
    fn tell_budget(&mut self, known: usize) -> Result<(), ExecError> {
        let told = self.ledger.told[known..].to_vec();
        for what in told {
            self.tell(&Event::Budget { what })?;
        }
        Ok(())
    }

    /// Takes into account what an attempt came to, and lets nodes try again that waited for it.
    pub(super) fn account(
        &mut self,
        serial: u64,
        key: &Digest,
        result: &JobResult,
        silent: bool,
    ) -> Result<(), ExecError> {
        let made = match result {
            JobResult::Done { .. } if self.ledger.is_free() => Some((0, 0)),
            JobResult::Done { artifact, metrics, .. } => {
                let count = |name: &str| metrics.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
                Some((self.store.manifest(artifact)?.size(), count("tokens")))
            }
            _ => None,
        };
        let known = self.ledger.told.len();
        let calls = self.ledger.end(serial, made, silent);
        if made.is_none() && calls > 0 && !silent {
            let calls = self.calls_made(key) + calls;
            fs::write_atomic(&self.store.partial_dir(key)?.join(CALLS), calls.to_string().as_bytes())?;
        }
        self.tell_budget(known)?;
        for node in std::mem::take(&mut self.ledger.waiting) {
            self.enqueue(node);
        }
        Ok(())
    }

    fn calls_made(&self, key: &Digest) -> u64 {
        let path = self.store.root().join("partial").join(key.to_string()).join(CALLS);
        fs_err::read_to_string(path).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}
