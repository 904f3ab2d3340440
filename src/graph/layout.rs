//! Where nodes stand in a drawing: layers by longest path, and an order within each that keeps edges short.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::Graph;
use crate::pipeline::{Pipeline, Target};

/// Sweeps over the layers; more hardly shortens edges.
const SWEEPS: usize = 6;
/// Edges over several layers get bends, unless the drawing would become mostly bends.
const MOST_BENDS: usize = 20_000;
/// Distance between neighbours of a layer, in columns.
const GAP: f64 = 0.25;
/// Width of a bend, in columns.
const BEND: f64 = 0.1;

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

/// Lays out a pipeline. Linear in nodes and edges, but for the sorting of layers.
pub fn layout(pipeline: &Pipeline, graph: &Graph) -> Layout {
    let mut index: IndexMap<Target, usize> = IndexMap::new();
    for link in pipeline.nodes.iter().flat_map(|node| &node.links) {
        if !matches!(link.target, Target::Node(_)) {
            let next = index.len();
            index.entry(link.target.clone()).or_insert(next);
        }
    }
    for &node in graph.order() {
        let next = index.len();
        index.insert(Target::Node(node), next);
    }
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    let mut layer = vec![0; index.len()];
    for &node in graph.order() {
        let at = index[&Target::Node(node)];
        let mut inputs: Vec<usize> =
            pipeline.nodes[node].links.iter().filter_map(|link| index.get(&link.target).copied()).collect();
        inputs.sort_unstable();
        inputs.dedup();
        for input in inputs {
            layer[at] = layer[at].max(layer[input] + 1);
            pairs.push((input, at));
        }
    }
    lower_sources(&index, &pairs, &mut layer);
    let edges = bend(&pairs, &mut layer);
    let mut layers = vec![Vec::new(); layer.iter().max().map_or(0, |last| last + 1)];
    layer.iter().enumerate().for_each(|(place, layer)| layers[*layer].push(place));
    let boxes = index.len();
    let x = arrange(&mut layers, &edges, boxes, layer.len());
    let right = x.iter().copied().fold(0.0, f64::max) + 0.5;
    let items = index.into_keys().map(Item::Target).chain(std::iter::repeat(Item::Bend));
    let places = items.zip(layer).zip(x).map(|((item, layer), x)| Place { item, layer, x }).collect();
    Layout { places, edges, layers, width: right }
}

/// Models and datasets stand right above the first node that takes them, not all at the top.
fn lower_sources(index: &IndexMap<Target, usize>, pairs: &[(usize, usize)], layer: &mut [usize]) {
    let mut first: HashMap<usize, usize> = HashMap::new();
    for &(from, to) in pairs {
        let lowest = first.entry(from).or_insert(usize::MAX);
        *lowest = (*lowest).min(layer[to]);
    }
    for (target, &at) in index {
        if !matches!(target, Target::Node(_))
            && let Some(lowest) = first.get(&at)
        {
            layer[at] = lowest - 1;
        }
    }
}

/// Gives edges a bend in each layer that they cross, adding the bends' layers.
fn bend(pairs: &[(usize, usize)], layer: &mut Vec<usize>) -> Vec<Vec<usize>> {
    let crossed: usize = pairs.iter().map(|&(from, to)| layer[to] - layer[from] - 1).sum();
    if crossed > MOST_BENDS {
        return pairs.iter().map(|&(from, to)| vec![from, to]).collect();
    }
    let route = |&(from, to): &(usize, usize)| {
        let mut route = vec![from];
        for between in layer[from] + 1..layer[to] {
            route.push(layer.len());
            layer.push(between);
        }
        route.push(to);
        route
    };
    pairs.iter().map(route).collect()
}

/// Orders each layer by the mean place of neighbours in the layers above, then below, a few times. Returns the
/// middles.
fn arrange(layers: &mut [Vec<usize>], edges: &[Vec<usize>], boxes: usize, count: usize) -> Vec<f64> {
    let (mut above, mut below) = (vec![Vec::new(); count], vec![Vec::new(); count]);
    for (from, to) in edges.iter().flat_map(|route| route.windows(2)).map(|pair| (pair[0], pair[1])) {
        above[to].push(from);
        below[from].push(to);
    }
    let half = |place: usize| if place < boxes { 0.5 } else { BEND / 2.0 };
    let mut x = vec![0.0; count];
    for layer in layers.iter() {
        spread(layer, &half, &mut x);
    }
    for sweep in 0..SWEEPS {
        let downwards = sweep % 2 == 0;
        let neighbours = if downwards { &above } else { &below };
        for step in 0..layers.len() {
            let at = if downwards { step } else { layers.len() - 1 - step };
            let wish = |place: usize| {
                let near = &neighbours[place];
                if near.is_empty() {
                    x[place]
                } else {
                    near.iter().map(|other| x[*other]).sum::<f64>() / near.len() as f64
                }
            };
            let mut wishes: Vec<(f64, usize)> = layers[at].iter().map(|&place| (wish(place), place)).collect();
            wishes.sort_by(|a, b| a.0.total_cmp(&b.0));
            layers[at] = wishes.iter().map(|(_, place)| *place).collect();
            for &(wish, place) in &wishes {
                x[place] = wish;
            }
            spread(&layers[at], &half, &mut x);
        }
    }
    let left = (0..count).map(|place| x[place] - half(place)).fold(f64::INFINITY, f64::min);
    for x in &mut x {
        *x -= left;
    }
    x
}

/// Moves the members of a layer apart where they would overlap, keeping their middle.
fn spread(layer: &[usize], half: &dyn Fn(usize) -> f64, x: &mut [f64]) {
    let mut shift = 0.0;
    let mut edge = f64::NEG_INFINITY;
    for &place in layer {
        let wanted = x[place];
        x[place] = wanted.max(edge + half(place));
        shift += x[place] - wanted;
        edge = x[place] + half(place) + GAP;
    }
    let shift = shift / layer.len().max(1) as f64;
    for &place in layer {
        x[place] -= shift;
    }
}
