//! How nodes came out of a run, for its record.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::phase::Phase;
use crate::digest::Digest;
use crate::pipeline::Pipeline;
use crate::store::RunNode;

/// The nodes asked for, in the order of the pipeline. `figures` are seconds and metrics by key.
pub(super) fn run_nodes(
    pipeline: &Pipeline,
    phases: &[Phase],
    figures: &HashMap<Digest, (f64, Map<String, Value>)>,
) -> Vec<RunNode> {
    let nodes = pipeline.nodes.iter().zip(phases).filter_map(|(node, phase)| {
        let (state, key, artifact) = match phase {
            Phase::Outside => return None,
            Phase::Hit { key, artifact } => ("hit", Some(*key), Some(*artifact)),
            Phase::Ran { key, artifact, .. } => ("ran", Some(*key), Some(*artifact)),
            Phase::Failed { key, .. } => ("failed", Some(*key), None),
            Phase::Ready { key, .. }
            | Phase::Held { key, .. }
            | Phase::Running { key }
            | Phase::Stopped { key, .. } => ("skipped", Some(*key), None),
            Phase::Waiting { .. } | Phase::Skipped => ("skipped", None, None),
        };
        let (seconds, metrics) = match phase {
            Phase::Ran { seconds, metrics, .. } => (*seconds, metrics.clone()),
            Phase::Failed { seconds, .. } | Phase::Stopped { seconds, .. } => (*seconds, Map::new()),
            Phase::Hit { key, .. } => figures.get(key).cloned().unwrap_or_default(),
            _ => (0.0, Map::new()),
        };
        let (name, kind) = (node.name.clone(), node.kind.name.to_owned());
        Some(RunNode { name, kind, state: state.to_owned(), key, artifact, seconds, metrics })
    });
    nodes.collect()
}

/// The name of this machine, for people.
pub fn host() -> String {
    let name = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown".to_owned() } else { name.trim().to_owned() }
}
