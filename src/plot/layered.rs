//! Where boxes with arrows between them stand: layers by longest path, and an order within each that keeps arrows short.
//! Linear in boxes and arrows, but for the sorting of layers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Sweeps over the layers; more hardly shortens arrows.
const SWEEPS: usize = 6;
/// Arrows over several layers get bends, unless the drawing would become mostly bends.
const MOST_BENDS: usize = 20_000;
/// Bends in all arrows together, shared ones counted each time.
const MOST_PASSED: usize = 100_000;
/// Distance of a box from its neighbours in a layer, in columns.
const GAP: f64 = 0.22;
/// Distance of a bend from its neighbours, in columns.
const BEND: f64 = 0.1;

/// A drawing without ink. Places are boxes first, in the order in which they were given, then bends: points that an arrow
/// goes through on its way over a layer.
#[derive(Debug)]
pub struct Layout {
    /// The layer of each place, from 0; everything that a box needs is in a lower one.
    pub layer: Vec<usize>,
    /// The middle of each place, in columns: boxes are one column wide.
    pub x: Vec<f64>,
    /// An arrow for each that was given: from what is taken, through bends, to what takes it. One that would close a circle
    /// goes up.
    pub arrows: Vec<Vec<usize>>,
    /// Places, layer by layer, from left to right.
    pub layers: Vec<Vec<usize>>,
    /// The whole width, in columns.
    pub width: f64,
}

/// Lays out `boxes` boxes with arrows between them. Of those for which `lowered` is true, each stands right above the first
/// that takes it, not at the top.
pub fn layout(boxes: usize, arrows: &[(usize, usize)], lowered: impl Fn(usize) -> bool) -> Layout {
    let (order, rank) = sort(boxes, arrows);
    let is_down = |&(from, to): &(usize, usize)| rank[from] < rank[to];
    let mut above = vec![Vec::new(); boxes];
    arrows.iter().filter(|arrow| is_down(arrow)).for_each(|&(from, to)| above[to].push(from));
    let mut layer = vec![0; boxes];
    for &at in &order {
        layer[at] = above[at].iter().map(|from| layer[*from] + 1).max().unwrap_or(0);
    }
    let mut first = vec![usize::MAX; boxes];
    arrows.iter().filter(|arrow| is_down(arrow)).for_each(|&(from, to)| first[from] = first[from].min(layer[to]));
    for at in 0..boxes {
        if above[at].is_empty() && first[at] != usize::MAX && lowered(at) {
            layer[at] = first[at] - 1;
        }
    }
    let routes = bend(boxes, arrows, &mut layer);
    let mut layers = vec![Vec::new(); layer.iter().max().map_or(0, |last| last + 1)];
    layer.iter().enumerate().for_each(|(place, layer)| layers[*layer].push(place));
    let x = arrange(&mut layers, &routes, &layer, boxes);
    let boxes_end = x.iter().take(boxes).copied().fold(0.0, f64::max) + 0.5;
    let width = x.iter().copied().fold(boxes_end, f64::max);
    Layout { layer, x, arrows: routes, layers, width }
}

/// An order in which each box stands after those that it needs, as near to the order given as that allows, and the rank of
/// each in it. A circle is cut where its first box in the order given is reached.
fn sort(boxes: usize, arrows: &[(usize, usize)]) -> (Vec<usize>, Vec<usize>) {
    let mut below = vec![Vec::new(); boxes];
    let mut waiting = vec![0_usize; boxes];
    for &(from, to) in arrows {
        below[from].push(to);
        waiting[to] += 1;
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..boxes).filter(|at| waiting[*at] == 0).map(Reverse).collect();
    let (mut order, mut rank) = (Vec::with_capacity(boxes), vec![usize::MAX; boxes]);
    let mut next = 0;
    while order.len() < boxes {
        let at = match ready.pop() {
            Some(Reverse(at)) => at,
            None => {
                while rank[next] != usize::MAX {
                    next += 1;
                }
                next
            }
        };
        if rank[at] != usize::MAX {
            continue;
        }
        rank[at] = order.len();
        order.push(at);
        for &to in &below[at] {
            waiting[to] -= 1;
            if waiting[to] == 0 && rank[to] == usize::MAX {
                ready.push(Reverse(to));
            }
        }
    }
    (order, rank)
}

/// Gives arrows a bend in each layer that they cross, adding the bends' layers. Arrows from one box share theirs: they are a
/// trunk from which branches go off.
fn bend(boxes: usize, arrows: &[(usize, usize)], layer: &mut Vec<usize>) -> Vec<Vec<usize>> {
    let (mut reach, mut passed) = (vec![0; boxes], 0);
    for &(from, to) in arrows {
        let crossed = layer[to].saturating_sub(layer[from] + 1);
        passed += crossed;
        reach[from] = crossed.max(reach[from]);
    }
    if passed > MOST_PASSED || reach.iter().sum::<usize>() > MOST_BENDS {
        return arrows.iter().map(|&(from, to)| vec![from, to]).collect();
    }
    let mut trunk = vec![0; boxes];
    for from in 0..boxes {
        trunk[from] = layer.len();
        layer.extend((1..=reach[from]).map(|down| layer[from] + down).collect::<Vec<_>>());
    }
    let route = |&(from, to): &(usize, usize)| {
        let crossed = layer[to].saturating_sub(layer[from] + 1);
        [from].into_iter().chain(trunk[from]..trunk[from] + crossed).chain([to]).collect()
    };
    arrows.iter().map(route).collect()
}

/// Orders each layer by the mean place of neighbours in the layers above, then below, a few times. Returns the middles.
fn arrange(layers: &mut [Vec<usize>], routes: &[Vec<usize>], layer: &[usize], boxes: usize) -> Vec<f64> {
    let count = layer.len();
    let (mut above, mut below) = (vec![Vec::new(); count], vec![Vec::new(); count]);
    let mut pairs: Vec<(usize, usize)> =
        routes.iter().flat_map(|route| route.windows(2)).map(|pair| (pair[0], pair[1])).collect();
    pairs.sort_unstable();
    pairs.dedup();
    for (from, to) in pairs.into_iter().filter(|(from, to)| layer[*from] < layer[*to]) {
        above[to].push(from);
        below[from].push(to);
    }
    // With half of the distance from neighbours.
    let half = |place: usize| if place < boxes { 0.5 + GAP / 2.0 } else { BEND / 2.0 };
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
    let half = |place: usize| if place < boxes { 0.5 } else { 0.0 };
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
        edge = x[place] + half(place);
    }
    let shift = shift / layer.len().max(1) as f64;
    for &place in layer {
        x[place] -= shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never(_: usize) -> bool {
        false
    }

    #[test]
    fn what_is_needed_stands_above_and_nothing_overlaps() {
        let mut arrows: Vec<(usize, usize)> = (0..40).map(|at| (at / 3, at + 1)).collect();
        arrows.extend([(0, 40), (2, 39)]);
        let layout = layout(41, &arrows, never);
        for (route, (from, to)) in layout.arrows.iter().zip(&arrows) {
            assert_eq!((route.first(), route.last()), (Some(from), Some(to)));
            assert!(route.windows(2).all(|pair| layout.layer[pair[0]] + 1 == layout.layer[pair[1]]));
        }
        for layer in &layout.layers {
            let boxes: Vec<f64> = layer.iter().filter(|place| **place < 41).map(|place| layout.x[*place]).collect();
            assert!(boxes.windows(2).all(|pair| pair[1] - pair[0] > 1.0), "{boxes:?}");
            assert!(boxes.iter().all(|x| (0.499..=layout.width - 0.499).contains(x)));
        }
    }

    #[test]
    fn a_circle_is_cut_at_its_first_box_and_sources_stand_near() {
        let circle = layout(4, &[(0, 1), (1, 2), (2, 1), (2, 3)], never);
        assert_eq!(circle.layer, [0, 1, 2, 3]);
        assert_eq!(circle.arrows[2], [2, 1]);
        let near = layout(4, &[(0, 1), (1, 2), (3, 2)], |at| at == 3);
        assert_eq!(near.layer, [0, 1, 2, 1]);
        assert_eq!(layout(1, &[(0, 0)], never).layer, [0]);
        assert_eq!(layout(0, &[], never).width, 0.5);
    }

    #[test]
    fn ten_thousand_boxes_take_no_second() {
        let arrows: Vec<(usize, usize)> =
            (10..10_000).flat_map(|at| [(at - 10, at), (at - 1 - at % 7, at), (at % 10, at)]).collect();
        let began = std::time::Instant::now();
        let layout = layout(10_000, &arrows, never);
        assert_eq!(layout.x.len(), layout.layer.len());
        assert!(began.elapsed().as_secs_f64() < 1.0, "{:?}", began.elapsed());
    }
}
