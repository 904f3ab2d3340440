//! Where nodes, models and datasets stand in a drawing.

use indexmap::IndexMap;

use super::Graph;
use crate::pipeline::{Pipeline, Target};
use crate::plot::layered;

/// Something that has a place in the drawing.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A node, or a model or dataset that nodes take.
    Target(Target),
    /// A point that an edge goes through on its way over a layer.
    Bend,
}

/// Where something stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// What stands there.
    pub item: Item,
    /// The layer, from 0; everything that it needs is in a lower one.
    pub layer: usize,
    /// The middle, in columns: boxes are one column wide.
    pub x: f64,
}

/// A drawing without ink.
#[derive(Debug)]
pub struct Layout {
    /// Everything that has a place: sources first, then nodes in order, then bends.
    pub places: Vec<Place>,
    /// Indices into `places`: from what is taken, through bends, to what takes it.
    pub edges: Vec<Vec<usize>>,
    /// Indices into `places`, layer by layer, from left to right.
    pub layers: Vec<Vec<usize>>,
    /// The whole width, in columns.
    pub width: f64,
}

/// Lays out a pipeline. Models and datasets stand right above the first node that takes them.
pub fn layout(pipeline: &Pipeline, graph: &Graph) -> Layout {
    let mut index: IndexMap<Target, usize> = IndexMap::new();
    for link in pipeline.nodes.iter().flat_map(|node| &node.links) {
        if !matches!(link.target, Target::Node(_)) {
            let next = index.len();
            index.entry(link.target.clone()).or_insert(next);
        }
    }
    let sources = index.len();
    for &node in graph.order() {
        let next = index.len();
        index.insert(Target::Node(node), next);
    }
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for &node in graph.order() {
        let at = index[&Target::Node(node)];
        let mut inputs: Vec<usize> =
            pipeline.nodes[node].links.iter().filter_map(|link| index.get(&link.target).copied()).collect();
        inputs.sort_unstable();
        inputs.dedup();
        pairs.extend(inputs.into_iter().map(|input| (input, at)));
    }
    let laid = layered::layout(index.len(), &pairs, |place| place < sources);
    let items = index.into_keys().map(Item::Target).chain(std::iter::repeat(Item::Bend));
    let places = items.zip(laid.layer).zip(laid.x).map(|((item, layer), x)| Place { item, layer, x }).collect();
    Layout { places, edges: laid.arrows, layers: laid.layers, width: laid.width }
}
