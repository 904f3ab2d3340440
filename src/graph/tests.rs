//! Graphs of whole pipeline files, with toy kinds.

use std::fmt::Write;
use std::time::Instant;

use super::{build, draw, key, layout};
use crate::digest::Digest;
use crate::pipeline::toy::{load, summary};
use serde_json::json;

fn steps(edges: &[(&str, &[&str])]) -> String {
    let mut text = "schema = 1\n[models.base]\nsource = \"m\"\n[datasets.posts]\nsource = \"p.jsonl\"\n".to_owned();
    for (name, inputs) in edges {
        let inputs: Vec<String> = inputs.iter().enumerate().map(|(at, input)| format!("i{at} = \"{input}\"")).collect();
        let _ = write!(text, "[nodes.{name}]\nkind = \"step\"\ninputs = {{ {} }}\n", inputs.join(", "));
    }
    text
}

#[test]
fn order_follows_edges_and_otherwise_the_file() {
    let pipeline =
        load(&steps(&[("d", &["b", "c"]), ("a", &["posts"]), ("b", &["a", "a"]), ("c", &["a"]), ("x", &[])]));
    let graph = build(&pipeline).expect("no cycle");
    let names: Vec<_> = graph.order().iter().map(|node| pipeline.nodes[*node].name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "x"]);
    assert_eq!(graph.dependencies(2).count(), 2);
    assert_eq!(graph.dependants(1).count(), 3);
    assert_eq!(graph.closure(&[2]), [1, 2]);
}

#[test]
fn every_cycle_shows_its_members_and_places() {
    let pipeline = load(&steps(&[
        ("a", &["c"]),
        ("b", &["a"]),
        ("c", &["b", "d"]),
        ("d", &["c"]),
        ("self", &["self"]),
        ("below", &["a"]),
    ]));
    let found = build(&pipeline).expect_err("cycles");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].title.ends_with("a -> c -> b -> a"), "{}", found[0].title);
    assert_eq!(found[0].labels.len(), 3);
    assert_eq!(found[0].labels[0].text, "`a` needs `c`");
    assert!(found[0].notes[0].contains("`d`"));
    assert!(found[1].title.ends_with("self -> self"));
}

#[test]
fn artifacts_of_the_wrong_type_are_refused() {
    let text = steps(&[("files", &[])])
        + "[nodes.answer]\nkind = \"answer\"\nmodel = \"posts\"\nqueries = \"files\"\nprompt = \"\"\n\
           [nodes.train]\nkind = \"train\"\nmodel = { from = \"base\", take = 2 }\nexamples = \"answer\"\n\
           optimizer = { name = \"a\", lr = 1 }\n";
    let found: Vec<_> = build(&load(&text)).expect_err("types").iter().map(summary).collect();
    assert_eq!(found[0].0, "graph::wrong-artifact");
    assert_eq!(
        (found[0].1.as_str(), found[0].2.as_str()),
        ("\"posts\"", "name something that gives model: `base`, `train`")
    );
    assert_eq!((found[1].1.as_str(), found[1].2.as_str()), ("\"files\"", "name something that gives dataset: `posts`"));
    assert_eq!((found[2].0, found[2].1.as_str()), ("graph::no-rows", "\"base\""));
}

#[test]
fn keys_do_not_see_names_but_slices_of_nodes() {
    let text = |from: &str, queries: &str| {
        format!(
            "{}[nodes.t]\nkind = \"train\"\nmodel = \"base\"\nexamples = {from}\noptimizer = {{ name = \"a\", lr = 1 }}\n\
             [nodes.a]\nkind = \"answer\"\nmodel = \"base\"\nqueries = {queries}\nprompt = \"\"\n\
             [nodes.b]\nkind = \"answer\"\nmodel = \"t\"\nqueries = \"posts\"\nprompt = \"\"\nrun = {{ threads = 2 }}\n",
            steps(&[])
        )
    };
    let preimage = |text: &str, node: usize| {
        let pipeline = load(text);
        let node = &pipeline.nodes[node];
        let inputs = node.links.iter().map(|link| (link.field.path.clone(), Digest::of(b"x"))).collect();
        key::preimage(node, &inputs)
    };
    let plain = preimage(&text("\"a\"", "\"posts\""), 0);
    assert_eq!(plain["fields"]["examples"], json!(null));
    assert_eq!(plain["inputs"]["examples"], json!(Digest::of(b"x")));
    let sliced = preimage(&text("{ from = \"a\", take = 3 }", "\"posts\""), 0);
    assert_eq!(sliced["fields"]["examples"], json!({"skip": 0, "take": 3}));
    assert_ne!(key::key(&plain), key::key(&sliced));
    // A dataset's slice is in its content; a node's name and `run` are nowhere.
    let all = text("\"a\"", "\"posts\"");
    let cut = text("\"a\"", "{ from = \"posts\", skip = 1 }");
    assert_eq!(preimage(&all, 1), preimage(&cut, 1));
    assert_eq!(preimage(&all, 1), preimage(&all, 2));
}

#[test]
fn drawings_hold_every_node_and_edge() {
    let pipeline = load(&steps(&[
        ("a<b".replace('<', "_").as_str(), &["posts"]),
        ("c", &["a_b", "base"]),
        ("d", &["c", "posts"]),
    ]));
    let graph = build(&pipeline).expect("no cycle");
    let drawn = layout::layout(&pipeline, &graph);
    let states = [Some("hit".to_owned()), Some("run".to_owned()), None];
    let text = draw::text(&pipeline, &drawn, &states);
    assert_eq!(
        text,
        "1  posts  dataset\n2  base   model\n   a_b    step · hit  <- posts\n3  c      step · run  <- a_b, base\n4  d      step        <- c, posts\n"
    );
    let dot = draw::dot(&pipeline, &drawn, &states);
    assert_eq!(dot.matches(" -> ").count(), 5);
    let svg = draw::svg(&pipeline, &drawn, &states);
    assert_eq!((svg.matches("<path marker-end").count(), svg.matches("<text").count()), (5, 10));
    for (from, to) in drawn.edges.iter().flat_map(|route| route.windows(2)).map(|pair| (pair[0], pair[1])) {
        assert_eq!(drawn.places[from].layer + 1, drawn.places[to].layer);
    }
    for layer in &drawn.layers {
        for pair in layer.windows(2) {
            assert!(drawn.places[pair[0]].x < drawn.places[pair[1]].x);
        }
    }
}

/// A diamond of 18 ways per level: level after level, every node takes all 18 of the level before.
fn diamonds(levels: usize) -> String {
    let name = |level: usize, way: usize| format!("n{level}_{way}");
    let nodes: Vec<(String, Vec<String>)> = (0..levels)
        .flat_map(|level| {
            (0..18).map(move |way| {
                let inputs = if level == 0 { Vec::new() } else { (0..18).map(|way| name(level - 1, way)).collect() };
                (name(level, way), inputs)
            })
        })
        .collect();
    let borrowed: Vec<Vec<&str>> =
        nodes.iter().map(|(_, inputs)| inputs.iter().map(String::as_str).collect()).collect();
    let edges: Vec<(&str, &[&str])> =
        nodes.iter().zip(&borrowed).map(|((name, _), inputs)| (name.as_str(), inputs.as_slice())).collect();
    steps(&edges)
}

#[test]
fn long_chains_and_nested_diamonds_take_linear_time() {
    let names: Vec<String> = (0..10_000).map(|at| format!("n{at}")).collect();
    let inputs: Vec<Vec<&str>> =
        (0..10_000).map(|at| if at == 0 { vec!["posts"] } else { vec![names[at - 1].as_str(), "base"] }).collect();
    let edges: Vec<(&str, &[&str])> =
        names.iter().zip(&inputs).map(|(name, inputs)| (name.as_str(), inputs.as_slice())).collect();
    for text in [steps(&edges), diamonds(100)] {
        let start = Instant::now();
        let pipeline = load(&text);
        let loaded = start.elapsed();
        let graph = build(&pipeline).expect("no cycle");
        assert_eq!(graph.order().len(), pipeline.nodes.len());
        assert_eq!(
            graph.closure(&[pipeline.nodes.len() - 1]).len(),
            pipeline.nodes.len() - if pipeline.nodes.len() == 1_800 { 17 } else { 0 }
        );
        let built = start.elapsed();
        let drawn = layout::layout(&pipeline, &graph);
        assert!(!draw::svg(&pipeline, &drawn, &[]).is_empty() && !draw::text(&pipeline, &drawn, &[]).is_empty());
        let all = start.elapsed();
        assert!(all.as_secs_f64() < 5.0, "load {loaded:?}, with graph {built:?}, with drawing {all:?}");
    }
}

#[test]
fn a_cycle_of_ten_thousand_is_shown_in_short() {
    let names: Vec<String> = (0..10_000).map(|at| format!("n{at}")).collect();
    let inputs: Vec<[&str; 1]> = (0..10_000).map(|at| [names[(at + 9_999) % 10_000].as_str()]).collect();
    let edges: Vec<(&str, &[&str])> =
        names.iter().zip(&inputs).map(|(name, inputs)| (name.as_str(), inputs.as_slice())).collect();
    let found = build(&load(&steps(&edges))).expect_err("a cycle");
    assert_eq!(found.len(), 1);
    assert!(found[0].title.len() < 400 && found[0].title.contains("more"), "{}", found[0].title);
}

/// Cuts, doubles and moves pieces of a sound file: whatever comes of it is a pipeline or findings, never a panic.
#[test]
fn torn_files_give_findings() {
    let sound = r#"
schema = 1
name = "é${lr}"
[params]
rounds = 2
lr = 5e-7
text = "ü ${lr * 2} $${x}"
[models.base]
source = "m"
[models.tiny]
init = { layers = "${rounds}", corpus = "made" }
[datasets.made]
make = { rows = 3, seed = 1, template = '{"a": {{ row }}}' }
query = "é {{ a }}"
[loop]
times = "${rounds}"
carry.policy = { first = "tiny", next = "train[rate=1e-7]" }
[loop.nodes.answer]
kind = "answer"
model = "policy@prev"
queries = { from = "made", skip = "${iteration - 1}", take = 1 }
prompt = { file = "gone.txt" }
run = { device = "cpu", threads = 1 }
[loop.nodes.train]
kind = "train"
matrix = { rate = [1e-7, 0.5] }
model = "base"
examples = { from = "answer", take = 2 }
optimizer = { name = "adamw", lr = "${rate}" }
[nodes.report]
kind = "step"
inputs = { a = "train@1[rate=0.5]", b = "train", c = "policy" }
note = "${[rounds, {'a': '}'}]} x"
"#;
    let letters: Vec<char> = sound.chars().collect();
    let mut random = proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let mut below = |bound: usize| {
        use proptest::prelude::Rng;
        (random.next_u64() % bound as u64) as usize
    };
    let mut built = 0;
    for _ in 0..1_500 {
        let mut torn = letters.clone();
        for _ in 0..=below(3) {
            let start = below(torn.len());
            let piece: Vec<char> = torn[start..torn.len().min(start + 1 + below(12))].to_vec();
            match below(3) {
                0 => drop(torn.drain(start..start + piece.len())),
                1 => drop(torn.splice(start..start, piece)),
                _ => {
                    let to = below(torn.len());
                    drop(torn.splice(to..to, piece));
                }
            }
        }
        let text: String = torn.into_iter().collect();
        let (pipeline, findings) = crate::pipeline::toy::examine(&text, &["lr=1", &text[..1]], &[]);
        for label in findings.iter().flat_map(|finding| &finding.labels) {
            assert!(label.source.text.get(label.span.clone()).is_some(), "{label:?}");
        }
        if let Some(pipeline) = pipeline
            && let Ok(graph) = build(&pipeline)
        {
            built += 1;
            assert_eq!(graph.order().len(), pipeline.nodes.len());
            crate::pipeline::check::data(&pipeline);
        }
    }
    assert!(built > 100, "{built}");
}
