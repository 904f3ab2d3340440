//! `sami why`: from a stale node to the fields, inputs and rows that made it so.

use std::io::Write;

use serde_json::{Value, json};

use super::context::Failure;
use super::diff::row_lines;
use super::figures::{clock, count, seconds, some};
use super::fresh::Question;
use super::plan::{Planned, planned, size};
use super::screen::Screen;
use super::{CommandResult, Context, DONE, PipelineArgs, context};
use crate::compare::{self, RowChanges};
use crate::digest::Digest;
use crate::exec::{self, Bare, Finding, Reason, State, Step};
use crate::graph::key::Change;
use crate::pipeline::Target;

/// Steps of an explanation that are drawn; of a longer one those in the middle that only wait are left out.
const STEPS: usize = 12;
/// Inputs that are named on a line.
const INPUTS: usize = 3;
/// Rows that are shown of a dataset that changed.
const ROWS: usize = 2;

/// Explains why a node is stale.
pub(super) fn why(context: &Context, args: &PipelineArgs, node: &str) -> CommandResult {
    let target = [node.to_owned()];
    let screen = Screen::of_stdout();
    let question = Question::new("why", args, &target)?.on(screen);
    let Some(planned) = planned(context, question, args, &target)? else { return Ok(DONE) };
    let Planned { pipeline, store, index, plan, .. } = &planned;
    let mut explained = Vec::new();
    for node in exec::select(pipeline, &target, Bare::Last)? {
        explained.push(exec::why(pipeline, store, index, plan, node)?);
    }
    if context.json() {
        let explained: Vec<Value> =
            explained.iter().map(|steps| steps.iter().map(|step| step_as_json(&planned, step)).collect()).collect();
        context::print_json(&explained)?;
        return planned.leave();
    }
    let texts: Result<Vec<String>, _> = explained.iter().map(|steps| explanation(&planned, steps, screen)).collect();
    let text = texts?.join("\n");
    context::print(&text)?;
    planned.question.remember(store, plan, &text);
    planned.leave()
}

fn explanation(planned: &Planned, steps: &[Step], screen: Screen) -> Result<String, Failure> {
    let mut text = String::new();
    let mut left_out = 0;
    for (at, step) in steps.iter().enumerate() {
        let only_waits = matches!(&step.finding, Finding::Waits { changes, .. } if changes.is_empty());
        if only_waits && steps.len() > STEPS && at >= STEPS / 2 && steps.len() - at > STEPS / 2 {
            left_out += 1;
            continue;
        }
        if left_out > 0 {
            text.push_str(&format!("… {} more nodes that wait …\n", count(left_out)));
            left_out = 0;
        }
        for line in step_lines(planned, step, screen)? {
            text.push_str(&line);
            text.push('\n');
        }
    }
    Ok(text)
}

fn step_lines(planned: &Planned, step: &Step, screen: Screen) -> Result<Vec<String>, Failure> {
    let name = &step.name;
    Ok(match &step.finding {
        Finding::Fresh { key, artifact } => {
            let made = planned.store.node(key)?.map(|record| {
                format!(", made {} in {} by run {}", clock(&record.started), seconds(record.seconds), record.run)
            });
            let mut lines = vec![format!("{name} is fresh: artifact {}{}", artifact.short(), made.unwrap_or_default())];
            lines.extend(cut_off(planned, name)?);
            lines
        }
        Finding::Waits { inputs, changes } => {
            // Of nodes there may be very many, and none is called as a model or a dataset is.
            let (models, datasets) = (&planned.pipeline.models, &planned.pipeline.datasets);
            let absent = inputs.iter().any(|(_, name)| models.contains_key(name) || datasets.contains_key(name));
            let (fields, names): (Vec<&str>, Vec<&str>) =
                inputs.iter().map(|(input, name)| (input.as_str(), name.as_str())).unzip();
            let (verb, come) = match (inputs.len(), absent) {
                (1, false) => ("has run", "input"),
                (1, true) => ("is there", "input"),
                (_, false) => ("have run", "inputs"),
                (_, true) => ("are there", "inputs"),
            };
            let from = if inputs.len() == 1 { "comes from it" } else { "come from them" };
            let line = format!(
                "{name} is unknown until {} {verb}: {come} {} {from}",
                some(&names, ", ", INPUTS),
                some(&fields, ", ", INPUTS)
            );
            let mut lines = vec![line];
            if !changes.is_empty() {
                lines.extend(listed("  whatever that gives, it has to run", changes, screen));
            }
            lines
        }
        Finding::Runs { reason: Reason::Changed(changes), .. } => {
            listed(&format!("{name} has to run"), changes, screen)
        }
        Finding::Runs { reason, like: Some((cell, changes)), .. } => {
            let mut lines = vec![format!("{name} has to run: {reason}")];
            lines.extend(listed(&format!("  it is most like {cell}"), changes, screen));
            lines
        }
        Finding::Runs { reason, .. } => vec![format!("{name} has to run: {reason}")],
        Finding::Remade { changes } => listed(&format!("{name} made that anew"), changes, screen),
        Finding::Differs => vec![format!("{name} made that anew from the same inputs and fields, with another result")],
        Finding::Source { old, new, taken } => {
            let mut lines = vec![format!("{name} comes from outside and is not what it was")];
            if let Some(rows) = row_changes(planned, old, new.as_ref(), taken) {
                lines.extend(row_lines(&rows, screen));
            }
            lines
        }
        Finding::Absent { bytes } => {
            vec![format!("{name} is not in the hub's cache{}; `sami run` downloads it", size(*bytes))]
        }
    })
}

/// Changes: one that is short on the line, others on lines of their own.
fn listed(lead: &str, changes: &[Change], screen: Screen) -> Vec<String> {
    let indent = lead.len() - lead.trim_start().len() + 2;
    if let [change] = changes {
        let told = screen.change(change, 0);
        if let [line] = &told[..] {
            return vec![format!("{lead}: {line}")];
        }
    }
    let mut lines = vec![format!("{lead}:")];
    lines.extend(changes.iter().flat_map(|change| screen.change(change, indent)));
    lines
}

/// Which rows of a dataset's slice changed, if both can be read.
fn row_changes(planned: &Planned, old: &Digest, new: Option<&Digest>, taken: &(usize, String)) -> Option<RowChanges> {
    let file = |id: &Digest| planned.store.files(id).ok()?.remove("rows.jsonl").filter(|path| path.is_file());
    let before = file(old)?;
    if let Some(after) = new.and_then(file) {
        return compare::rows(&before, &after, ROWS).ok();
    }
    // What was only looked at is not in the cache.
    let mut after = tempfile::NamedTempFile::new().ok()?;
    for row in exec::rows_now(&planned.pipeline, taken.0, &taken.1)? {
        serde_json::to_writer(&mut after, &row).ok()?;
        after.write_all(b"\n").ok()?;
    }
    after.flush().ok()?;
    compare::rows(&before, after.path(), ROWS).ok()
}

/// What a node, or one that it takes from, made and counts as an earlier artifact by its tolerance.
fn cut_off(planned: &Planned, name: &str) -> Result<Vec<String>, Failure> {
    let nodes = &planned.pipeline.nodes;
    let Some(node) = nodes.iter().position(|node| node.name == name) else { return Ok(Vec::new()) };
    let inputs = nodes[node].links.iter().filter_map(|link| match link.target {
        Target::Node(input) => Some(input),
        _ => None,
    });
    let mut lines = Vec::new();
    for at in std::iter::once(node).chain(inputs).filter(|at| nodes[*at].tolerance.is_some()) {
        let State::Hit { key, artifact } = &planned.plan.nodes[at] else { continue };
        let Some(record) = planned.store.node(key)? else { continue };
        if let Some(equal) = record.equal_to_within.filter(|equal| equal.artifact == *artifact) {
            let (made, counts_as) = (record.artifact.short(), artifact.short());
            let (who, worst) = (&nodes[at].name, &equal.worst);
            lines.push(format!("  {who} made {made}, which counts as {counts_as} by its tolerance: {worst}"));
        }
    }
    Ok(lines)
}

fn step_as_json(planned: &Planned, step: &Step) -> Value {
    let mut value = match &step.finding {
        Finding::Fresh { key, artifact } => json!({"finding": "fresh", "key": key, "artifact": artifact}),
        Finding::Waits { inputs, changes } => {
            let named: Vec<Value> = inputs.iter().map(|(input, name)| json!({"input": input, "from": name})).collect();
            json!({"finding": "waits", "input": inputs.first().map(|(input, _)| input), "inputs": named, "changes": changes})
        }
        Finding::Runs { key, reason, like } => {
            let changes = if let Reason::Changed(list) = reason { list.clone() } else { Vec::new() };
            let like = like.as_ref().map(|(cell, changes)| json!({"node": cell, "changes": changes}));
            json!({"finding": "runs", "key": key, "why": reason.to_string(), "changes": changes, "like": like})
        }
        Finding::Remade { changes } => json!({"finding": "remade", "changes": changes}),
        Finding::Differs => json!({"finding": "differs"}),
        Finding::Source { old, new, taken } => {
            json!({"finding": "source", "old": old, "new": new, "rows": row_changes(planned, old, new.as_ref(), taken)})
        }
        Finding::Absent { bytes } => json!({"finding": "absent", "bytes": bytes}),
    };
    value["node"] = json!(step.name);
    value
}
