//! A graph of boxes and arrows as SVG, from top to bottom. A state is a word and a shape in the box; its colour only helps.

use std::collections::HashSet;
use std::fmt::Write;

use super::escape;
use super::layered::layout;

/// Longer lines are cut in boxes; whole they are in the box's title.
const LONGEST: usize = 30;
/// Width of a letter, in pixels.
const LETTER: f64 = 7.4;
const HEIGHT: f64 = 48.0;
const LAYER: f64 = 92.0;
const MARGIN: f64 = 14.0;
/// Room at the left of a box for the shape.
const SHAPE: f64 = 26.0;

/// A box.
#[derive(Debug, Clone, Default)]
pub struct Block {
    /// What is written first.
    pub name: String,
    /// What is written below: kind, state, counts.
    pub what: String,
    /// What is told where the pointer rests, or is read aloud.
    pub title: String,
    /// Its state, a class of the style sheet, which decides shape and colour; empty for none.
    pub state: &'static str,
    /// Where it leads.
    pub href: Option<String>,
    /// Of several that are folded: how many are in which state.
    pub shares: Vec<(&'static str, usize)>,
    /// How much is done, from 0 to 1.
    pub done: Option<f64>,
    /// Whether it comes from outside.
    pub is_source: bool,
}

/// Draws boxes with arrows between them, from what is taken to what takes it.
pub fn picture(title: &str, blocks: &[Block], arrows: &[(usize, usize)]) -> String {
    let laid = layout(blocks.len(), arrows, |_| true);
    let letters = |block: &Block| block.name.chars().count().max(block.what.chars().count()).clamp(8, LONGEST + 1);
    let column = blocks.iter().map(letters).max().unwrap_or(8) as f64 * LETTER + SHAPE + 14.0;
    let width = laid.width * column + 2.0 * MARGIN;
    let height = laid.layers.len().saturating_sub(1) as f64 * LAYER + HEIGHT + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"dag\" role=\"group\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" font-size=\"12.5\" aria-label=\"{0}\">\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto-start-reverse\"><path class=\"tip\" d=\"M0,0 L8,4 L0,8 z\" fill=\"#7b868a\"/></marker></defs>\n\
         <g class=\"arrows\" fill=\"none\" stroke=\"#7b868a\" stroke-width=\"1.2\" aria-hidden=\"true\">\n",
        escape(title)
    );
    let x = |place: usize| MARGIN + laid.x[place] * column;
    let y = |place: usize| MARGIN + laid.layer[place] as f64 * LAYER;
    // Arrows from one box share their way as far as it is the same: that is drawn once.
    let mut drawn = HashSet::new();
    for route in &laid.arrows {
        let new = route.windows(2).position(|pair| drawn.insert((pair[0], pair[1]))).unwrap_or(route.len() - 2);
        drawn.extend(route.windows(2).map(|pair| (pair[0], pair[1])));
        draw_arrow(&mut svg, &route[new..], new == 0, &x, &y, &laid.layer, column);
    }
    svg.push_str("</g>\n");
    for (at, block) in blocks.iter().enumerate() {
        draw(&mut svg, block, x(at) - column / 2.0, y(at), column);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_arrow(
    svg: &mut String,
    route: &[usize],
    whole: bool,
    x: &dyn Fn(usize) -> f64,
    y: &dyn Fn(usize) -> f64,
    layer: &[usize],
    column: f64,
) {
    let (from, to) = (route[0], route[route.len() - 1]);
    // Writing to a string does not fail, here and below.
    if layer[from] >= layer[to] {
        // Back up, around the right sides.
        let (x0, y0, x1, y1) =
            (x(from) + column / 2.0, y(from) + HEIGHT / 2.0, x(to) + column / 2.0, y(to) + HEIGHT / 2.0);
        let out = x0.max(x1) + 0.2 * column;
        let _ = writeln!(
            svg,
            "<path marker-end=\"url(#tip)\" stroke-dasharray=\"5 3\" d=\"M{x0:.1},{y0:.1} C{out:.1},{y0:.1} {out:.1},{y1:.1} {x1:.1},{y1:.1}\"/>"
        );
        return;
    }
    svg.push_str("<path marker-end=\"url(#tip)\" d=\"");
    for (at, pair) in route.windows(2).enumerate() {
        let (x0, y0, x1, y1) = (x(pair[0]), y(pair[0]) + HEIGHT, x(pair[1]), y(pair[1]));
        // Straight past the layer that a bend belongs to; a branch begins above it, where the trunk ends.
        match at {
            0 if whole => drop(write!(svg, "M{x0:.1},{y0:.1}")),
            0 => drop(write!(svg, "M{x0:.1},{:.1} L{x0:.1},{y0:.1}", y0 - HEIGHT)),
            _ => drop(write!(svg, " L{x0:.1},{y0:.1}")),
        }
        let middle = f64::midpoint(y0, y1);
        let _ = write!(svg, " C{x0:.1},{middle:.1} {x1:.1},{middle:.1} {x1:.1},{y1:.1}");
    }
    svg.push_str("\"/>\n");
}

fn draw(svg: &mut String, block: &Block, left: f64, top: f64, column: f64) {
    let class = if block.is_source { "source" } else { block.state };
    let _ = write!(svg, "<g class=\"box {class}\"><title>{}</title>", escape(&block.title));
    if let Some(href) = &block.href {
        let _ = write!(svg, "<a href=\"{}\">", escape(href));
    }
    let round = if block.is_source { HEIGHT / 2.0 } else { 5.0 };
    let face = |dx: f64| {
        format!(
            "<rect class=\"face\" x=\"{:.1}\" y=\"{:.1}\" width=\"{column:.1}\" height=\"{HEIGHT}\" rx=\"{round}\" \
             fill=\"#f6f7f5\" stroke=\"#7b868a\"/>",
            left + dx,
            top + dx
        )
    };
    if !block.shares.is_empty() {
        svg.push_str(&face(4.0));
    }
    svg.push_str(&face(0.0));
    if !block.is_source {
        shape(svg, block.state, left + SHAPE / 2.0 + 2.0, top + HEIGHT / 2.0);
    }
    let text = left + if block.is_source { HEIGHT / 2.0 } else { SHAPE + 4.0 };
    let _ = write!(
        svg,
        "<text x=\"{text:.1}\" y=\"{:.1}\" font-weight=\"600\">{}</text><text class=\"what\" x=\"{text:.1}\" y=\"{:.1}\" \
         font-size=\"11.5\">{}</text>",
        top + 20.0,
        escape(&cut(&block.name)),
        top + 36.0,
        escape(&cut(&block.what))
    );
    bar(svg, block, left, top, column);
    svg.push_str(if block.href.is_some() { "</a></g>\n" } else { "</g>\n" });
}

/// At a box's foot: how much is done, or how the states share it.
fn bar(svg: &mut String, block: &Block, left: f64, top: f64, column: f64) {
    let (left, top, room) = (left + 6.0, top + HEIGHT - 7.0, column - 12.0);
    if let Some(done) = block.done {
        let _ = write!(
            svg,
            "<rect class=\"track\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{room:.1}\" height=\"4\" rx=\"2\" fill=\"#d5d9d4\"/>\
             <rect class=\"fill\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"4\" rx=\"2\" fill=\"#1d56a8\"/>",
            room * done.clamp(0.0, 1.0)
        );
        return;
    }
    let all: usize = block.shares.iter().map(|(_, count)| count).sum();
    let mut at = left;
    for (state, count) in &block.shares {
        let part = room * *count as f64 / all.max(1) as f64;
        let _ = write!(
            svg,
            "<rect class=\"part {state}\" x=\"{at:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"4\" fill=\"#7b868a\"/>",
            (part - 1.0).max(0.5)
        );
        at += part;
    }
}

/// The shape of a state: full circle, diamond, triangle, cross, ring, bar; no two that are told apart share one.
fn shape(svg: &mut String, state: &str, x: f64, y: f64) {
    let path = match state {
        "fresh" | "ran" | "hit" => "M-6,0 a6,6 0 1,0 12,0 a6,6 0 1,0 -12,0 z",
        "stale" => "M0,-7 L7,0 L0,7 L-7,0 z",
        "running" => "M-5,-7 L7,0 L-5,7 z",
        "failed" | "refused" => "M-6,-4 L-4,-6 L0,-2 L4,-6 L6,-4 L2,0 L6,4 L4,6 L0,2 L-4,6 L-6,4 L-2,0 z",
        "unknown" => "M-6,0 a6,6 0 1,0 12,0 a6,6 0 1,0 -12,0 M-3.6,0 a3.6,3.6 0 1,1 7.2,0 a3.6,3.6 0 1,1 -7.2,0 z",
        "waiting" => "M-6,-7 L6,-7 L0,0 L6,7 L-6,7 L0,0 z",
        "stopped" => "M-6,-6 L6,-6 L6,6 L-6,6 z",
        "skipped" | "outside" => "M-6,-1.5 L6,-1.5 L6,1.5 L-6,1.5 z",
        _ => return,
    };
    let _ = write!(
        svg,
        "<path class=\"shape\" fill-rule=\"evenodd\" fill=\"#566064\" transform=\"translate({x:.1} {y:.1})\" d=\"{path}\"/>"
    );
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, state: &'static str) -> Block {
        Block { name: name.to_owned(), state, ..Block::default() }
    }

    #[test]
    fn a_picture_shows_every_box_and_arrow_and_no_markup_of_a_name() {
        let boxes = [
            Block { is_source: true, ..block("<data>", "") },
            Block { done: Some(0.5), href: Some("/node?name=a&b=\"".to_owned()), ..block("train", "running") },
            Block { shares: vec![("fresh", 3), ("stale", 1)], ..block(&"x".repeat(99), "stale") },
        ];
        let svg = picture("a & b", &boxes, &[(0, 1), (1, 2), (2, 1)]);
        assert_eq!(svg.matches("<g class=\"box").count(), 3);
        assert_eq!(svg.matches("marker-end").count(), 3);
        assert_eq!(svg.matches("stroke-dasharray").count(), 1, "the one that closes the circle");
        assert!(
            svg.contains("&lt;data&gt;")
                && svg.contains("href=\"/node?name=a&amp;b=&quot;\"")
                && !svg.contains("<data>")
        );
        assert!(svg.contains(&format!("{}…", "x".repeat(LONGEST))) && svg.contains("class=\"part stale\""));
        assert!(!svg.contains("NaN") && !svg.contains("style="));
        assert!(picture("", &[], &[]).ends_with("</svg>\n"));
    }
}
