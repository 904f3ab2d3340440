//! `sami check`: every error of a pipeline file at once, data included.

use serde_json::json;

use super::figures::plural;
use super::{CommandResult, Context, DONE, PipelineArgs, USAGE, context, render};
use crate::diag::Severity;
use crate::graph;
use crate::pipeline::check::DataCheck;
use crate::pipeline::{self, Pipeline};

/// Reports every error of a pipeline: its text, its graph, its data and its models.
pub(crate) fn run(context: &Context, args: &PipelineArgs) -> CommandResult {
    let (pipeline, mut findings) = pipeline::examine(&args.pipeline, &args.set, context.kinds());
    let mut data = DataCheck::default();
    if let Some(pipeline) = &pipeline {
        findings.extend(graph::build(pipeline).err().unwrap_or_default());
        data = pipeline::check::data(pipeline);
        findings.append(&mut data.findings);
    }
    let sound = findings.iter().all(|finding| finding.severity == Severity::Warning);
    if context.json() {
        let findings: Vec<_> = findings.iter().map(render::as_json).collect();
        let rows = data.rows.iter().collect::<std::collections::BTreeMap<_, _>>();
        let nodes = pipeline.as_ref().map_or(0, |pipeline| pipeline.nodes.len());
        context::print_json(&json!({"ok": sound, "findings": findings, "nodes": nodes, "rows": rows}))?;
    } else {
        context::complain(&findings);
        if let (true, Some(pipeline)) = (sound, &pipeline) {
            context::print(&summary(pipeline, &data))?;
        }
    }
    Ok(if sound { DONE } else { USAGE })
}

fn summary(pipeline: &Pipeline, data: &DataCheck) -> String {
    let plural = |count: usize, noun: &str| plural(count as u64, noun);
    let mut parts = vec![plural(pipeline.nodes.len(), "node")];
    if !pipeline.datasets.is_empty() {
        let rows = data.rows.values().sum();
        parts.push(format!("{} ({})", plural(pipeline.datasets.len(), "dataset"), plural(rows, "row")));
    }
    if !pipeline.models.is_empty() {
        parts.push(format!("{} from outside", plural(pipeline.models.len(), "model")));
    }
    format!("{}: no errors; {}\n", pipeline.source.path, parts.join(", "))
}
