//! The DAG of a pipeline's nodes, their keys and their drawing.
//!
//! Reading order: this file (edges, cycles, artifact types), [`key`] (what names a node's work), [`layout`] (layers)
//! and [`draw`] (text, DOT, SVG). Everything is iterative and linear in nodes and edges.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashSet};

use petgraph::Direction;
use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::diag::Diagnostic;
use crate::pipeline::{ArtifactType, Link, Origin, Pipeline, Target};

pub mod draw;
pub mod key;
pub mod layout;

/// A cycle's places are labelled up to this many, and its members named up to this many.
const MOST_SHOWN: usize = 24;

/// A pipeline's nodes and which needs which. Nodes go by their index in [`Pipeline::nodes`].
#[derive(Debug)]
pub struct Graph {
    edges: DiGraph<(), (), usize>,
    order: Vec<usize>,
}

impl Graph {
    /// All nodes, each after those that it needs; as near to the order of the file as that allows.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The nodes that a node needs, once per input, in no particular order.
    pub fn dependencies(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        self.edges.neighbors_directed(NodeIndex::new(node), Direction::Incoming).map(NodeIndex::index)
    }

    /// The nodes that need a node, once per input, in no particular order.
    pub fn dependants(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        self.edges.neighbors_directed(NodeIndex::new(node), Direction::Outgoing).map(NodeIndex::index)
    }

    /// The targets and all that they need, however far up, in ascending order.
    pub fn closure(&self, targets: &[usize]) -> Vec<usize> {
        let mut seen = vec![false; self.edges.node_count()];
        let mut open = targets.to_vec();
        while let Some(node) = open.pop() {
            if let Some(seen) = seen.get_mut(node)
                && !std::mem::replace(seen, true)
            {
                open.extend(self.dependencies(node));
            }
        }
        (0..seen.len()).filter(|node| seen[*node]).collect()
    }
}

/// Makes the graph of a pipeline. Errs with every cycle and every input that takes another type of artifact than it
/// is given.
pub fn build(pipeline: &Pipeline) -> Result<Graph, Vec<Diagnostic>> {
    let edges = connect(pipeline);
    let order = sort(&edges);
    let mut findings = check_types(pipeline);
    if order.len() < pipeline.nodes.len() {
        findings.extend(cycles(&edges, &order, pipeline));
    }
    if findings.is_empty() { Ok(Graph { edges, order }) } else { Err(findings) }
}

fn connect(pipeline: &Pipeline) -> DiGraph<(), (), usize> {
    let inputs = pipeline.nodes.iter().map(|node| node.links.len()).sum();
    let mut edges = DiGraph::with_capacity(pipeline.nodes.len(), inputs);
    pipeline.nodes.iter().for_each(|_| _ = edges.add_node(()));
    for (at, node) in pipeline.nodes.iter().enumerate() {
        for link in &node.links {
            if let Target::Node(input) = link.target {
                edges.add_edge(NodeIndex::new(input), NodeIndex::new(at), ());
            }
        }
    }
    edges
}

/// Kahn's algorithm, taking of all nodes that are ready the first of the file. Members of cycles, and what is below
/// them, are left out.
fn sort(edges: &DiGraph<(), (), usize>) -> Vec<usize> {
    let mut waiting: Vec<usize> =
        edges.node_indices().map(|node| edges.neighbors_directed(node, Direction::Incoming).count()).collect();
    let mut ready: BinaryHeap<Reverse<usize>> =
        (0..waiting.len()).filter(|node| waiting[*node] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(waiting.len());
    while let Some(Reverse(node)) = ready.pop() {
        order.push(node);
        for dependant in edges.neighbors_directed(NodeIndex::new(node), Direction::Outgoing) {
            let left = &mut waiting[dependant.index()];
            *left -= 1;
            if *left == 0 {
                ready.push(Reverse(dependant.index()));
            }
        }
    }
    order
}

fn check_types(pipeline: &Pipeline) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    // The iterations of a loop share their places in the file: one finding for all of them.
    let mut seen = HashSet::new();
    for node in &pipeline.nodes {
        for link in &node.links {
            let made = made_by(link, pipeline);
            let name = &link.field.input.from;
            let what = (!link.field.accepts.contains(&made), link.field.input.is_slice() && !has_rows(made));
            if what == (false, false) || !seen.insert((link.span.start, what)) {
                continue;
            }
            if what.0 {
                findings.push(wrong_type(pipeline, &node.name, link, made));
            } else {
                findings.push(
                    Diagnostic::error(
                        "graph::no-rows",
                        format!("node `{}` takes rows of `{name}`, which has none", node.name),
                    )
                    .label(&pipeline.source, link.span.clone(), format!("`{name}` gives {made}"))
                    .help(format!("write `{} = \"{name}\"`, without `skip` and `take`", link.field.path)),
                );
            }
        }
    }
    findings
}

fn has_rows(made: ArtifactType) -> bool {
    matches!(made, ArtifactType::Dataset | ArtifactType::Responses | ArtifactType::Scores | ArtifactType::Evaluation)
}

/// The type of artifact that an input is given.
pub fn made_by(link: &Link, pipeline: &Pipeline) -> ArtifactType {
    match &link.target {
        Target::Node(node) => pipeline.nodes[*node].spec.output(),
        Target::Model(name) if is_endpoint(pipeline, name) => ArtifactType::Endpoint,
        Target::Model(_) => ArtifactType::Model,
        Target::Dataset(_) => ArtifactType::Dataset,
    }
}

fn is_endpoint(pipeline: &Pipeline, model: &str) -> bool {
    pipeline.models.get(model).is_some_and(|model| matches!(model.origin, Origin::Endpoint { .. }))
}

fn wrong_type(pipeline: &Pipeline, node: &str, link: &Link, made: ArtifactType) -> Diagnostic {
    let wanted: Vec<&str> = link.field.accepts.iter().map(|kind| kind.name()).collect();
    let wanted = wanted.join(" or ");
    let fits = |kind: ArtifactType| link.field.accepts.contains(&kind);
    let mut fitting: BTreeSet<&str> = BTreeSet::new();
    for name in pipeline.models.keys() {
        let made = if is_endpoint(pipeline, name) { ArtifactType::Endpoint } else { ArtifactType::Model };
        fitting.extend(fits(made).then_some(name.as_str()));
    }
    if fits(ArtifactType::Dataset) {
        fitting.extend(pipeline.datasets.keys().map(String::as_str));
    }
    for other in pipeline.nodes.iter().filter(|other| fits(other.spec.output())) {
        let name = other.name.split(['@', '[']).next().unwrap_or(&other.name);
        fitting.insert(name.strip_prefix("models.").unwrap_or(name));
    }
    let own = node.split(['@', '[']).next().unwrap_or(node);
    fitting.remove(own);
    let help = if fitting.is_empty() {
        format!("name something that gives {wanted}; the pipeline has nothing of that kind yet")
    } else {
        let names: Vec<String> = fitting.iter().take(12).map(|name| format!("`{name}`")).collect();
        format!("name something that gives {wanted}: {}", names.join(", "))
    };
    let finding = Diagnostic::error(
        "graph::wrong-artifact",
        format!("input `{}` of node `{own}` takes {wanted}, not {}", link.field.path, made.name()),
    )
    .label(&pipeline.source, link.span.clone(), format!("`{}` gives {made}", link.field.input.from));
    match &link.target {
        Target::Model(name) if made == ArtifactType::Endpoint && fits(ArtifactType::Model) => finding
            .note(format!("`{}` needs weights, and of the endpoint `{name}` there are none here", link.field.path)),
        Target::Node(other) => finding.label(&pipeline.source, pipeline.nodes[*other].span.clone(), "made here"),
        _ => finding,
    }
    .help(help)
}

/// Every cycle: one per strongly connected component, its members in order, with the places of all references.
fn cycles(edges: &DiGraph<(), (), usize>, order: &[usize], pipeline: &Pipeline) -> Vec<Diagnostic> {
    let sorted: HashSet<usize> = order.iter().copied().collect();
    let rest = edges.filter_map(|node, ()| (!sorted.contains(&node.index())).then_some(node.index()), |_, ()| Some(()));
    let mut findings: Vec<(usize, Diagnostic)> = Vec::new();
    // The iterations of a loop repeat a cycle at the same places in the file.
    let mut seen: HashSet<BTreeSet<usize>> = HashSet::new();
    for component in kosaraju_scc(&rest) {
        let mut members: Vec<usize> = component.iter().map(|node| rest[*node]).collect();
        members.sort_unstable();
        let first = members[0];
        let own_edge = pipeline.nodes[first].links.iter().any(|link| link.target == Target::Node(first));
        if members.len() == 1 && !own_edge {
            continue;
        }
        let cycle = shortest_cycle(&members, pipeline);
        let places: BTreeSet<usize> = cycle.iter().map(|(_, link)| link.span.start).collect();
        if seen.insert(places) {
            findings.push((first, cycle_finding(&cycle, &members, pipeline)));
        }
    }
    findings.sort_by_key(|(first, _)| *first);
    findings.into_iter().map(|(_, finding)| finding).collect()
}

/// The shortest cycle through the first member: each node with its link to the next.
fn shortest_cycle<'a>(members: &[usize], pipeline: &'a Pipeline) -> Vec<(usize, &'a Link)> {
    let within: HashSet<usize> = members.iter().copied().collect();
    let first = members[0];
    let mut from: std::collections::HashMap<usize, (usize, &Link)> = std::collections::HashMap::new();
    let mut open = std::collections::VecDeque::from([first]);
    while let Some(node) = open.pop_front() {
        for link in &pipeline.nodes[node].links {
            let Target::Node(next) = link.target else { continue };
            if !within.contains(&next) || from.contains_key(&next) {
                continue;
            }
            from.insert(next, (node, link));
            if next == first {
                let mut cycle = Vec::new();
                let mut at = first;
                while let Some(&(node, link)) = from.get(&at) {
                    cycle.push((node, link));
                    at = node;
                    if at == first {
                        break;
                    }
                }
                cycle.reverse();
                return cycle;
            }
            open.push_back(next);
        }
    }
    Vec::new()
}

fn cycle_finding(cycle: &[(usize, &Link)], members: &[usize], pipeline: &Pipeline) -> Diagnostic {
    let name = |node: usize| pipeline.nodes[node].name.as_str();
    let mut names: Vec<&str> = cycle.iter().map(|(node, _)| name(*node)).collect();
    names.extend(names.first().copied());
    let shown = if names.len() <= MOST_SHOWN {
        names.join(" -> ")
    } else {
        let half = MOST_SHOWN / 2;
        let left_out = names.len() - 2 * half;
        format!("{} -> … {left_out} more … -> {}", names[..half].join(" -> "), names[names.len() - half..].join(" -> "))
    };
    let mut finding = Diagnostic::error("graph::cycle", format!("nodes depend on each other in a cycle: {shown}"));
    for (at, (node, link)) in cycle.iter().enumerate().take(MOST_SHOWN) {
        let next = names.get(at + 1).copied().unwrap_or_default();
        finding = finding.label(&pipeline.source, link.span.clone(), format!("`{}` needs `{next}`", name(*node)));
    }
    let on_it: HashSet<usize> = cycle.iter().map(|(node, _)| *node).collect();
    let others: Vec<String> =
        members.iter().filter(|node| !on_it.contains(node)).map(|node| format!("`{}`", name(*node))).collect();
    if !others.is_empty() {
        let more =
            if others.len() > MOST_SHOWN { format!(" and {} more", others.len() - MOST_SHOWN) } else { String::new() };
        let others = others[..others.len().min(MOST_SHOWN)].join(", ");
        finding = finding.note(format!("cycles with these nodes also go through {others}{more}"));
    }
    finding.help(format!(
        "break it: let one of them take something else; to train in rounds, put the nodes into `[loop.nodes]` and carry \
         the model (`carry.policy = {{ first = \"…\", next = \"{}\" }}`)",
        names.first().map_or("…", |name| name.split('@').next().unwrap_or(name))
    ))
}

#[cfg(test)]
mod tests;
