//! Weights that stay in a worker's memory for the next node that uses them.
//!
//! A worker is kept if, when its attempt is done, a node waits that will use the same model. It is ended when none waits any more, when
//! an attempt starts that needs its memory, and when nothing new starts. So there is never more in memory for it than the attempt had
//! that it executed, and nothing that another attempt is in want of.

use super::{Scheduler, Stop};
use crate::digest::Digest;
use crate::exec::ExecError;
use crate::exec::attempt::{Attempt, Given};
use crate::exec::budget::Needs;
use crate::exec::phase::Phase;
use crate::exec::room::{holds_models, needs_weights};
use crate::exec::shards::Role;
use crate::exec::slots::number;
use crate::pipeline::Target;

impl Scheduler<'_> {
    /// Attempts that will want a model, besides one at a node that is about to start.
    fn waiting(&self, model: &Target, starting: Option<usize>) -> usize {
        let of_model = self.users.get(model).map_or(&[][..], Vec::as_slice);
        let wanted = of_model.iter().map(|node| match self.phases[*node] {
            // What is left of one in parts.
            Phase::Running { .. } => self.sharded.get(node).map_or(0, |_| self.parts_to_start(*node)),
            Phase::Waiting { .. } | Phase::Ready { .. } if starting != Some(*node) => self.parts_to_start(*node),
            _ => 0,
        });
        wanted.sum()
    }

    /// The models that an attempt samples or scores with here; none of one that is in a worker of its own whatever it uses.
    pub(super) fn models_of(&self, given: &Given) -> Vec<(Target, Digest)> {
        let node = &self.pipeline.nodes[given.node];
        // One that puts parts together finds all rows remembered.
        if !self.options.keep_weights
            || given.place.is_away()
            || node.run.ranks.is_some()
            || matches!(given.role, Role::Join { .. })
        {
            return Vec::new();
        }
        let mut models: Vec<(Target, Digest)> = Vec::new();
        for link in needs_weights(self.pipeline, node) {
            if let Some(id) = given.recipe.inputs.get(&link.field.path)
                && models.iter().all(|(target, _)| *target != link.target)
            {
                models.push((link.target.clone(), *id));
            }
        }
        models
    }

    /// Those of an attempt's models that others will want when it is done.
    pub(super) fn to_keep(&self, given: &Given) -> Vec<(Target, Digest)> {
        let is_wanted = |model: &&(Target, Digest)| self.waiting(&model.0, Some(given.node)) > 0;
        given.models.iter().filter(is_wanted).cloned().collect()
    }

    /// Ends idle workers whose memory an attempt needs that is about to start.
    pub(super) fn make_way(&mut self, given: &Given) -> Result<(), ExecError> {
        let node = &self.pipeline.nodes[given.node];
        if self.idle.keeps_none() || given.place.is_away() {
            return Ok(());
        }
        if given.place.device() != "cpu" {
            let one = [given.place.device().to_owned()];
            let devices = if given.place.devices().is_empty() { &one[..] } else { given.place.devices() };
            return Ok(devices.iter().try_for_each(|device| self.idle.make_way(device, &given.models))?);
        }
        let joins = matches!(given.role, Role::Join { .. });
        if holds_models(self.pipeline, node) && !joins && !self.fits(Some(given.node)) {
            self.idle.make_way("cpu", &given.models)?;
        }
        Ok(())
    }

    /// Whether there is memory for an attempt at a node beside the idle workers, and for all that those may come to take that go on:
    /// what these hold by now is not known, and counts twice.
    fn fits(&self, node: Option<usize>) -> bool {
        let on_cpu =
            self.running.values().filter(|attempt| attempt.remote.is_none() && attempt.place.device() == "cpu");
        let running = on_cpu.map(|attempt| attempt.node);
        let mut holding = running.chain(node).filter(|node| holds_models(self.pipeline, &self.pipeline.nodes[*node]));
        let need = holding.try_fold(0u64, |sum, node| {
            let need = self.options.needs.get(&node).and_then(Needs::host_memory)?;
            Some(sum.saturating_add(need))
        });
        need.is_some_and(|need| need == 0 || crate::kinds::free_memory().is_some_and(|free| need <= free))
    }

    /// Whether the worker of an attempt that is over is kept.
    pub(super) fn stays(&self, attempt: &Attempt) -> bool {
        let on_cpu = attempt.place.device() == "cpu";
        attempt.keeps_weights() && self.stop == Stop::No && (!on_cpu || self.fits(None))
    }

    /// Ends idle workers whose weights no one waits for.
    pub(super) fn let_go(&mut self) -> Result<(), ExecError> {
        if self.idle.keeps_none() {
            return Ok(());
        }
        let mut idle = std::mem::take(&mut self.idle);
        let ended = idle.let_go(|model| if self.stop == Stop::No { self.waiting(model, None) } else { 0 });
        self.idle = idle;
        Ok(ended?)
    }

    /// The number of a GPU where weights are that a node uses.
    pub(super) fn near(&self, node: usize) -> Option<usize> {
        if self.idle.keeps_none() {
            return None;
        }
        let links = || needs_weights(self.pipeline, &self.pipeline.nodes[node]);
        self.idle.devices_of(|model| links().any(|link| link.target == *model)).find_map(number)
    }
}
