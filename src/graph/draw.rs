//! Drawings of a pipeline: text for the terminal, DOT for Graphviz, SVG for everything else. Each takes a word per
//! node (its state in the cache, say); nothing is said by colour alone.

use std::fmt::Write;

use super::layout::{Item, Layout, Place};
use crate::pipeline::{Pipeline, Target};

/// Longer names are cut in boxes; the whole name is in the box's tooltip.
const LONGEST: usize = 34;
/// Width of a letter of the boxes' font, in pixels.
const LETTER: f64 = 7.0;
const BOX_HEIGHT: f64 = 42.0;
const LAYER_HEIGHT: f64 = 84.0;
const MARGIN: f64 = 16.0;

/// What is written in a box: a name, and a line that says what it is.
fn describe(target: &Target, pipeline: &Pipeline, states: &[Option<String>]) -> (String, String) {
    match target {
        Target::Model(name) => (name.clone(), "model".to_owned()),
        Target::Dataset(name) => (name.clone(), "dataset".to_owned()),
        Target::Node(node) => {
            let state = states.get(*node).and_then(Option::as_deref);
            let node = &pipeline.nodes[*node];
            let kind = node.kind.name;
            (node.name.clone(), state.map_or_else(|| kind.to_owned(), |state| format!("{kind} · {state}")))
        }
    }
}

fn name_of<'a>(target: &'a Target, pipeline: &'a Pipeline) -> &'a str {
    match target {
        Target::Model(name) | Target::Dataset(name) => name,
        Target::Node(node) => &pipeline.nodes[*node].name,
    }
}

fn targets<'a>(layout: &'a Layout, layer: &'a [usize]) -> impl Iterator<Item = &'a Target> {
    layer.iter().filter_map(|place| match &layout.places[*place].item {
        Item::Target(target) => Some(target),
        Item::Bend => None,
    })
}

/// What a node takes, each once; `slice` says which rows are taken from where: from a number on and up to another one, which
/// is empty where it is their end.
fn inputs(target: &Target, pipeline: &Pipeline, slice: impl Fn(u64, String) -> String) -> Vec<String> {
    let mut inputs: Vec<String> = Vec::new();
    let Target::Node(node) = target else { return inputs };
    for link in &pipeline.nodes[*node].links {
        let input = &link.field.input;
        let mut name = name_of(&link.target, pipeline).to_owned();
        if input.is_slice() {
            let skip = input.skip.unwrap_or(0);
            let end = input.take.map_or_else(String::new, |take| skip.saturating_add(take).to_string());
            name += &slice(skip, end);
        }
        if !inputs.contains(&name) {
            inputs.push(name);
        }
    }
    inputs
}

/// The same as [`text`] in words, for who hears them: a line for each layer and each of what is in it.
pub fn words(pipeline: &Pipeline, layout: &Layout, states: &[Option<String>]) -> String {
    let mut told = String::new();
    for (number, layer) in layout.layers.iter().enumerate() {
        let _ = writeln!(told, "layer {} of {}", number + 1, layout.layers.len());
        for target in targets(layout, layer) {
            let (name, what) = describe(target, pipeline, states);
            let what = what.replace(" · ", ", ");
            let inputs = inputs(target, pipeline, |skip, end| match end.as_str() {
                "" => format!(" without the first {skip} rows"),
                end => format!(" rows {skip} to {end}"),
            });
            let takes = if inputs.is_empty() { String::new() } else { format!("; takes {}", inputs.join(", ")) };
            let _ = writeln!(told, "{name}: {what}{takes}");
        }
    }
    told
}

/// A line per node, model and dataset, layer by layer, with what each takes.
pub fn text(pipeline: &Pipeline, layout: &Layout, states: &[Option<String>]) -> String {
    let mut lines: Vec<[String; 4]> = Vec::new();
    for (number, layer) in layout.layers.iter().enumerate() {
        for (at, target) in targets(layout, layer).enumerate() {
            let number = if at == 0 { (number + 1).to_string() } else { String::new() };
            let (name, what) = describe(target, pipeline, states);
            let inputs = inputs(target, pipeline, |skip, end| format!("[{skip}..{end}]"));
            lines.push([number, name, what, inputs.join(", ")]);
        }
    }
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0).min(48);
    let (numbers, names, whats) = (width(0), width(1), width(2));
    let mut drawing = String::new();
    for [number, name, what, inputs] in &lines {
        let arrow = if inputs.is_empty() { "" } else { "<- " };
        let line = format!("{number:>numbers$}  {name:<names$}  {what:<whats$}  {arrow}{inputs}");
        drawing.push_str(line.trim_end());
        drawing.push('\n');
    }
    drawing
}

/// Graphviz.
pub fn dot(pipeline: &Pipeline, layout: &Layout, states: &[Option<String>]) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut drawing = format!("digraph {} {{\n  node [shape=box, fontname=monospace];\n", quote(&pipeline.name));
    let boxes = |place: &usize| matches!(layout.places[*place].item, Item::Target(_));
    for (at, place) in layout.places.iter().enumerate() {
        let Item::Target(target) = &place.item else { continue };
        let (name, what) = describe(target, pipeline, states);
        let style = if matches!(target, Target::Node(_)) { "" } else { ", style=rounded" };
        let label = quote(&name).trim_end_matches('"').to_owned() + "\\n" + quote(&what).trim_start_matches('"');
        let _ = writeln!(drawing, "  n{at} [label={label}{style}];");
    }
    for route in &layout.edges {
        let ends: Vec<&usize> = route.iter().filter(|place| boxes(place)).collect();
        if let [from, to] = ends[..] {
            let _ = writeln!(drawing, "  n{from} -> n{to};");
        }
    }
    drawing.push_str("}\n");
    drawing
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The fill of a box by what its node's state begins with.
fn fill(target: &Target, states: &[Option<String>]) -> &'static str {
    let Target::Node(node) = target else { return "#f2f2f2" };
    match states.get(*node).and_then(Option::as_deref).and_then(|state| state.split(' ').next()) {
        Some("hit" | "ran" | "fresh") => "#dff3e3",
        Some("run" | "running" | "stale") => "#fff0cf",
        Some("failed") => "#fbdcdc",
        _ => "#ffffff",
    }
}

/// A picture, from top to bottom.
pub fn svg(pipeline: &Pipeline, layout: &Layout, states: &[Option<String>]) -> String {
    let described: Vec<Option<(String, String)>> = layout
        .places
        .iter()
        .map(|place| match &place.item {
            Item::Target(target) => Some(describe(target, pipeline, states)),
            Item::Bend => None,
        })
        .collect();
    let letters = described
        .iter()
        .flatten()
        .map(|(name, what)| name.chars().count().max(what.chars().count()).min(LONGEST + 1))
        .max()
        .unwrap_or(0);
    let column = letters as f64 * LETTER + 20.0;
    let (width, height) = (
        layout.width * column + 2.0 * MARGIN,
        layout.layers.len().saturating_sub(1) as f64 * LAYER_HEIGHT + BOX_HEIGHT + 2.0 * MARGIN,
    );
    let mut drawing = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"ui-monospace, Menlo, Consolas, monospace\" font-size=\"11.5\">\n\
         <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto\"><path d=\"M0,0 L8,4 L0,8 z\" fill=\"#8a8f98\"/></marker></defs>\n\
         <g fill=\"none\" stroke=\"#8a8f98\" stroke-width=\"1.2\">\n",
        escape(&pipeline.name)
    );
    let x = |place: &Place| MARGIN + place.x * column;
    let y = |place: &Place| MARGIN + place.layer as f64 * LAYER_HEIGHT;
    for route in &layout.edges {
        let _ = write!(drawing, "<path marker-end=\"url(#arrow)\" d=\"");
        for (at, pair) in route.windows(2).enumerate() {
            let (from, to) = (&layout.places[pair[0]], &layout.places[pair[1]]);
            let (x0, y0, x1, y1) = (x(from), y(from) + BOX_HEIGHT, x(to), y(to));
            if at == 0 {
                let _ = write!(drawing, "M{x0:.1},{y0:.1}");
            } else {
                // Straight past the layer that the bend belongs to.
                let _ = write!(drawing, " L{x0:.1},{y0:.1}");
            }
            let middle = f64::midpoint(y0, y1);
            let _ = write!(drawing, " C{x0:.1},{middle:.1} {x1:.1},{middle:.1} {x1:.1},{y1:.1}");
        }
        drawing.push_str("\"/>\n");
    }
    drawing.push_str("</g>\n");
    for (place, described) in layout.places.iter().zip(&described) {
        let (Item::Target(target), Some((name, what))) = (&place.item, described) else { continue };
        let (middle, top) = (x(place), y(place));
        let round = if matches!(target, Target::Node(_)) { 3 } else { 20 };
        let _ = writeln!(
            drawing,
            "<g><title>{} ({})</title><rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{column:.1}\" height=\"{BOX_HEIGHT}\" \
             rx=\"{round}\" fill=\"{}\" stroke=\"#4a4f57\"/>\
             <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-weight=\"bold\">{}</text>\
             <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#4a4f57\">{}</text></g>",
            escape(name),
            escape(what),
            middle - column / 2.0,
            fill(target, states),
            top + 17.0,
            escape(&cut(name)),
            top + 33.0,
            escape(&cut(what)),
        );
    }
    drawing.push_str("</svg>\n");
    drawing
}
