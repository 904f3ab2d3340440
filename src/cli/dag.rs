//! `sami dag`: draws the DAG, with the state of each node in the cache if there is one.

use serde_json::json;

use super::{CommandResult, Context, DONE, DagFormat, PipelineArgs, context};
use crate::graph::{draw, layout, made_by};
use crate::pipeline::{Pipeline, Target};

/// Draws the DAG to standard output; with `--json`, nodes and edges as data.
pub(crate) fn run(context: &Context, args: &PipelineArgs, format: DagFormat) -> CommandResult {
    let (pipeline, graph) = context.load(args)?;
    let states = vec![None; pipeline.nodes.len()];
    if context.json() {
        context::print_json(&as_json(&pipeline, &states))?;
        return Ok(DONE);
    }
    let layout = layout::layout(&pipeline, &graph);
    let drawing = match format {
        DagFormat::Text => draw::text(&pipeline, &layout, &states),
        DagFormat::Dot => draw::dot(&pipeline, &layout, &states),
        DagFormat::Svg => draw::svg(&pipeline, &layout, &states),
    };
    context::print(&drawing)?;
    Ok(DONE)
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
