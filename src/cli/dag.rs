//! `sami dag`: draws the DAG, with the state of each node in the cache if there is one.

use serde_json::json;

use super::{CommandResult, Context, DONE, DagFormat, PipelineArgs, context, plan, terminal};
use crate::exec::{self, PlanOptions};
use crate::graph::{Graph, draw, layout, made_by};
use crate::pipeline::{Pipeline, Target};
use crate::store::{Index, Store};

/// Draws the DAG to standard output; with `--json`, nodes and edges as data.
pub(crate) fn run(context: &Context, args: &PipelineArgs, format: DagFormat) -> CommandResult {
    let (pipeline, graph) = context.load(args)?;
    let states = states(context, args, &pipeline, &graph);
    if context.json() {
        context::print_json(&as_json(&pipeline, &states))?;
        return Ok(DONE);
    }
    let layout = layout::layout(&pipeline, &graph);
    let drawing = match format {
        DagFormat::Text if terminal::is_plain() => draw::words(&pipeline, &layout, &states),
        DagFormat::Text => draw::text(&pipeline, &layout, &states),
        DagFormat::Dot => draw::dot(&pipeline, &layout, &states),
        DagFormat::Svg => draw::svg(&pipeline, &layout, &states),
    };
    match format {
        DagFormat::Text => context::print(&drawing)?,
        // Documents, which stay as they are.
        DagFormat::Dot | DagFormat::Svg => context::write_out(|stdout| stdout.write_all(drawing.as_bytes()))?,
    }
    Ok(DONE)
}

/// The word for each node's state. A drawing needs no cache and makes none: without one, or where planning fails
/// (a dataset that cannot be read, say), nodes have no state.
fn states(context: &Context, args: &PipelineArgs, pipeline: &Pipeline, graph: &Graph) -> Vec<Option<String>> {
    let planned = || {
        let directory = context.cache_directory(Some(&args.pipeline)).ok()?;
        let store = Store::open_existing(&directory).ok()?;
        let mut index = Index::open(&store).ok()?;
        exec::plan(pipeline, graph, &store, &mut index, &PlanOptions::default()).ok()
    };
    let Some(plan) = planned() else { return vec![None; pipeline.nodes.len()] };
    let word = |state| Some(plan::describe(pipeline, state).0.to_owned()).filter(|word| !word.is_empty());
    plan.nodes.iter().map(word).collect()
}

fn as_json(pipeline: &Pipeline, states: &[Option<String>]) -> serde_json::Value {
    let nodes: Vec<_> = pipeline
        .nodes
        .iter()
        .zip(states)
        .map(|(node, state)| json!({"name": node.name, "kind": node.kind.name, "output": node.spec.output(), "state": state}))
        .collect();
    let mut edges = Vec::new();
    for node in &pipeline.nodes {
        for link in &node.links {
            let from = match &link.target {
                Target::Model(name) | Target::Dataset(name) => name,
                Target::Node(from) => &pipeline.nodes[*from].name,
            };
            edges.push(
                json!({"from": from, "to": node.name, "input": link.field.path, "type": made_by(link, pipeline)}),
            );
        }
    }
    json!({"pipeline": pipeline.name, "nodes": nodes, "edges": edges})
}
