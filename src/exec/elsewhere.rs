//! Nodes that have to run here, and whose work another cache has.
//!
//! Keys take inputs by content, so a record that is elsewhere is enough to know the keys of what is below it: a plan is
//! gone through wave by wave with records alone. Only then are artifacts brought: those that were asked for by name (all,
//! if nothing was), and those that a node takes which is going to run. What lies between stays where it is.
//!
//! While the run goes on, nodes whose keys are known only then are looked for by a thread beside the loop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use super::local::Message;
use super::select::{Bare, select};
use super::{ExecError, Plan, Reason, State, plan};
use crate::digest::Digest;
use crate::graph::Graph;
use crate::pipeline::Pipeline;
use crate::store::{Index, Store};

/// Another cache. What goes wrong with it is its own to tell, once: for a run it then has nothing.
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// The artifacts recorded there under these keys, by key, as far as there are any.
    fn look(&self, keys: &[Digest]) -> HashMap<Digest, Digest>;

    /// Brings what was recorded under these keys, which were looked for before, into the store: artifacts, then records.
    fn bring(&self, keys: &[Digest]);
}

/// Takes from elsewhere what a plan would run, and brings the plan up to date by that. Returns how many nodes need not
/// run. Without `targets` all that is found is brought; else what they are and what has to run takes.
pub fn bring(
    pipeline: &Pipeline,
    graph: &Graph,
    store: &Store,
    index: &mut Index,
    plan: &mut Plan,
    targets: &[String],
    elsewhere: &dyn Elsewhere,
) -> Result<usize, ExecError> {
    let wanted: BTreeSet<usize> = match targets {
        [] => plan.order.iter().copied().collect(),
        names => select(pipeline, names, Bare::Last)?.into_iter().collect(),
    };
    let mut refused = BTreeSet::new();
    loop {
        let away = look(pipeline, graph, store, index, plan, elsewhere, &refused)?;
        let runs = |node: usize| matches!(plan.nodes[node], State::Run { .. } | State::Unknown { .. });
        let needed = away.iter().filter(|(node, _)| wanted.contains(node) || graph.dependants(**node).any(runs));
        let needed: Vec<(usize, Digest)> = needed.map(|(node, key)| (*node, *key)).collect();
        let keys: BTreeSet<Digest> = needed.iter().map(|(_, key)| *key).collect();
        if keys.is_empty() {
            return Ok(away.len());
        }
        elsewhere.bring(&keys.into_iter().collect::<Vec<_>>());
        let before = refused.len();
        for (node, key) in needed {
            plan.records.find_afresh(store, index, &key)?;
            let artifact = plan.artifact(node);
            let _section = store.sharing()?;
            let here = plan.decide(pipeline, store, index, node)?;
            plan::hold_one(store, &here)?;
            let is_here = matches!(&here, State::Hit { artifact: found, .. } if Some(*found) == artifact);
            if !is_here {
                refused.insert(key);
            }
        }
        if refused.len() == before {
            return Ok(away.len());
        }
        // What was built on it may come out otherwise.
        plan.decide_all(pipeline, store, index)?;
    }
}

/// Makes hits of the nodes whose records are elsewhere, and of what is fresh by that. Returns them with their keys.
fn look(
    pipeline: &Pipeline,
    graph: &Graph,
    store: &Store,
    index: &mut Index,
    plan: &mut Plan,
    elsewhere: &dyn Elsewhere,
    refused: &BTreeSet<Digest>,
) -> Result<BTreeMap<usize, Digest>, ExecError> {
    let mut away = BTreeMap::new();
    let stale = |state: &State| match state {
        State::Run { key, reason } if *reason != Reason::Forced && !refused.contains(key) => Some(*key),
        _ => None,
    };
    let mut front: Vec<usize> = plan.order.iter().copied().filter(|node| stale(&plan.nodes[*node]).is_some()).collect();
    while !front.is_empty() {
        let keys: BTreeSet<Digest> = front.iter().filter_map(|node| stale(&plan.nodes[*node])).collect();
        let found = elsewhere.look(&keys.into_iter().collect::<Vec<_>>());
        let mut open = Vec::new();
        for node in std::mem::take(&mut front) {
            let Some(key) = stale(&plan.nodes[node]) else { continue };
            let Some(artifact) = found.get(&key).copied() else { continue };
            plan.nodes[node] = State::Hit { key, artifact };
            away.insert(node, key);
            open.extend(graph.dependants(node));
        }
        while let Some(node) = open.pop() {
            if !matches!(plan.nodes[node], State::Unknown { .. }) {
                continue;
            }
            let _section = store.sharing()?;
            plan.nodes[node] = plan.state(pipeline, store, index, node)?;
            plan::hold_one(store, &plan.nodes[node])?;
            match &plan.nodes[node] {
                State::Hit { .. } => open.extend(graph.dependants(node)),
                state if stale(state).is_some() => front.push(node),
                _ => {}
            }
        }
    }
    Ok(away)
}

/// Looks for nodes beside the loop that runs the others.
pub(super) struct Seeker {
    elsewhere: Option<Arc<dyn Elsewhere>>,
    asks: Option<Sender<(usize, Digest)>>,
    /// Nodes that are looked for.
    open: usize,
}

impl Seeker {
    pub(super) fn new(elsewhere: Option<Arc<dyn Elsewhere>>) -> Self {
        Self { elsewhere, asks: None, open: 0 }
    }

    /// Begins to look for a node, which `Message::Sought` then tells of. Returns whether there is a place to look.
    pub(super) fn seek(&mut self, node: usize, key: Digest, inbox: &Sender<Message>) -> io::Result<bool> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(false) };
        if self.asks.is_none() {
            self.asks = Some(start(Arc::clone(elsewhere), inbox.clone())?);
        }
        let asked = self.asks.as_ref().is_some_and(|asks| asks.send((node, key)).is_ok());
        self.open += usize::from(asked);
        Ok(asked)
    }

    /// Takes note that nodes were looked for.
    pub(super) fn found(&mut self, nodes: &[usize]) {
        self.open -= nodes.len().min(self.open);
    }

    /// Whether some are still looked for.
    pub(super) fn is_open(&self) -> bool {
        self.open > 0
    }
}

/// Starts the thread. Whatever waits when it is free is looked for at once.
fn start(elsewhere: Arc<dyn Elsewhere>, inbox: Sender<Message>) -> io::Result<Sender<(usize, Digest)>> {
    let (asks, asked) = channel::<(usize, Digest)>();
    std::thread::Builder::new().name("elsewhere".into()).spawn(move || {
        while let Ok(first) = asked.recv() {
            let all: Vec<(usize, Digest)> = std::iter::once(first).chain(asked.try_iter()).collect();
            let keys: BTreeSet<Digest> = all.iter().map(|(_, key)| *key).collect();
            let found = elsewhere.look(&keys.into_iter().collect::<Vec<_>>());
            if !found.is_empty() {
                let mut keys: Vec<Digest> = found.into_keys().collect();
                keys.sort_unstable();
                elsewhere.bring(&keys);
            }
            if inbox.send(Message::Sought { nodes: all.into_iter().map(|(node, _)| node).collect() }).is_err() {
                break;
            }
        }
    })?;
    Ok(asks)
}

#[cfg(test)]
mod tests;
