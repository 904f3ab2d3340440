//! Keys of endpoints: whether the environment has those that nodes need.

use std::collections::BTreeSet;

use super::{Elsewhere, ExecError, PlanOptions, State, bring, plan};
use crate::diag::Diagnostic;
use crate::graph::Graph;
use crate::pipeline::{Origin, Pipeline, Target};
use crate::store::{Index, Store};

/// The endpoints that these nodes speak to and whose key is not there, each with its place. No key is in what is returned.
pub fn absent_keys(pipeline: &Pipeline, nodes: impl IntoIterator<Item = usize>) -> Vec<Diagnostic> {
    let links = nodes.into_iter().flat_map(|node| &pipeline.nodes[node].links);
    let names: BTreeSet<&String> =
        links.filter_map(|link| if let Target::Model(name) = &link.target { Some(name) } else { None }).collect();
    let absent = |name: &String| {
        let model = pipeline.models.get(name)?;
        let Origin::Endpoint { endpoint, calling } = &model.origin else { return None };
        let error = calling.key(endpoint).err()?;
        Some(error.diagnostic().label(&pipeline.source, model.span.clone(), format!("of model `{name}`")))
    };
    names.into_iter().filter_map(absent).collect()
}

/// Sees to it that the key of every endpoint is there that a run may speak to: before anything is downloaded or computed.
/// Nodes that are fresh, or that another cache has, speak to no one, and need none.
///
/// Errs with every endpoint whose key is not there.
pub fn require_keys(
    pipeline: &Pipeline,
    graph: &Graph,
    store: &Store,
    index: &mut Index,
    options: &PlanOptions,
    elsewhere: Option<&dyn Elsewhere>,
) -> Result<(), ExecError> {
    if absent_keys(pipeline, 0..pipeline.nodes.len()).is_empty() {
        return Ok(());
    }
    let mut plan = plan(pipeline, graph, store, index, &PlanOptions { put_sources: false, ..options.clone() })?;
    if let Some(elsewhere) = elsewhere {
        bring(pipeline, graph, store, index, &mut plan, &options.targets, elsewhere)?;
    }
    let may_run = |node: &usize| matches!(plan.nodes[*node], State::Run { .. } | State::Unknown { .. });
    let absent = absent_keys(pipeline, plan.order.iter().copied().filter(may_run));
    if absent.is_empty() { Ok(()) } else { Err(ExecError::Sources(absent)) }
}
