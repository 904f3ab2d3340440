//! Whole pipeline files, with toy kinds.

use std::fmt::Write;

use super::toy::{examine, faults, load};
use super::{Pipeline, Target};
use serde_json::json;

const HEAD: &str = r#"
schema = 1
[params]
rounds = 2
lr = 5e-7
[models.base]
source = "model"
[datasets.posts]
source = "posts.jsonl"
"#;

fn with(text: &str) -> String {
    format!("{HEAD}{text}")
}

fn names(pipeline: &Pipeline) -> Vec<&str> {
    pipeline.nodes.iter().map(|node| node.name.as_str()).collect()
}

/// The inputs of a node, as the names of what they are linked to.
fn inputs<'a>(pipeline: &'a Pipeline, node: &str) -> Vec<&'a str> {
    let node = pipeline.nodes.iter().find(|other| other.name == node).unwrap_or_else(|| panic!("no node {node}"));
    let name = |target: &'a Target| match target {
        Target::Node(at) => pipeline.nodes[*at].name.as_str(),
        Target::Model(name) | Target::Dataset(name) => name,
    };
    node.links.iter().map(|link| name(&link.target)).collect()
}

const LOOP: &str = r#"
[loop]
times = "${rounds}"
carry.policy = { first = "base", next = "train" }
[loop.nodes.answer]
kind = "answer"
model = "policy"
queries = { from = "posts", skip = "${10 * (iteration - 1)}", take = 10 }
prompt = "Q {{ query }}"
[loop.nodes.train]
kind = "train"
model = "base"
examples = "answer"
optimizer = { name = "adamw", lr = "${lr}" }
steps = "${2 * iteration}"
[nodes.report]
kind = "step"
inputs = { last = "train", first = "train@1", policy = "policy", answers = { from = "answer", take = 3 } }
"#;

#[test]
fn loop_is_unrolled_and_carries() {
    let pipeline = load(&with(LOOP));
    assert_eq!(names(&pipeline), ["answer@1", "train@1", "answer@2", "train@2", "report"]);
    assert_eq!(inputs(&pipeline, "answer@1"), ["base", "posts"]);
    assert_eq!(inputs(&pipeline, "answer@2"), ["train@1", "posts"]);
    assert_eq!(inputs(&pipeline, "train@2"), ["base", "answer@2"]);
    assert_eq!(inputs(&pipeline, "report"), ["train@2", "train@1", "train@2", "answer@2"]);
    assert_eq!(pipeline.nodes[2].spec.fields()["queries"], json!({"from": "posts", "skip": 10, "take": 10}));
    assert_eq!(pipeline.nodes[3].spec.fields()["steps"], 4);
    assert_eq!(pipeline.nodes[3].spec.fields()["optimizer"]["lr"], 5e-7);
}

#[test]
fn set_changes_params_everywhere() {
    let (pipeline, findings) = examine(&with(LOOP), &["rounds=3", "lr=1e-6"], &[]);
    assert!(findings.is_empty(), "{findings:#?}");
    let pipeline = pipeline.expect("it was read");
    assert_eq!(pipeline.nodes.len(), 7);
    assert_eq!(pipeline.nodes[1].spec.fields()["optimizer"]["lr"], 1e-6);
    assert_eq!(pipeline.params["rounds"], 3);
}

#[test]
fn a_loop_of_no_iterations_leaves_what_is_carried_first() {
    let (pipeline, findings) = examine(&with(LOOP), &["rounds=0"], &[]);
    let what: Vec<_> = findings.iter().map(|finding| (finding.id, finding.title.as_str())).collect();
    assert_eq!(what.len(), 3, "{what:?}");
    assert!(
        what.iter()
            .all(|(id, title)| *id == "pipeline::bad-reference" && title.contains("train") || title.contains("answer"))
    );
    let pipeline = pipeline.expect("it was read");
    assert_eq!(inputs(&pipeline, "report"), ["base"]);
}

#[test]
fn previous_iterations_are_named() {
    let text = r#"
[loop]
times = 3
carry.policy = { first = "base", next = "train" }
[loop.nodes.answer]
kind = "answer"
model = "policy@prev"
queries = "posts"
prompt = ""
[loop.nodes.train]
kind = "train"
model = "train@prev"
examples = "answer@1"
optimizer = { name = "adamw", lr = 1 }
"#;
    let pipeline = load(&with(text));
    assert_eq!(inputs(&pipeline, "answer@1")[0], "base");
    assert_eq!(inputs(&pipeline, "answer@2")[0], "base");
    assert_eq!(inputs(&pipeline, "answer@3")[0], "train@1");
    assert_eq!(inputs(&pipeline, "train@1"), ["base", "answer@1"]);
    assert_eq!(inputs(&pipeline, "train@3"), ["train@2", "answer@1"]);
    let wrong =
        text.replace("carry.policy = { first = \"base\", next = \"train\" }\n", "").replace("policy@prev", "base");
    let found = faults(&with(&wrong));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].0, found[0].1.as_str()), ("pipeline::bad-reference", "\"train@prev\""));
    assert!(found[0].2.contains("carry"));
    assert!(faults(&with(&text.replace("answer@1", "answer@4")))[0].2.contains("the loop has 3"));
}

const MATRIX: &str = r#"
[nodes.answer]
kind = "answer"
model = "base"
queries = "posts"
prompt = ""
matrix = { seed = [0, 1] }
[nodes.train]
kind = "train"
model = "base"
examples = "answer"
optimizer = { name = "adamw", lr = "${rate}" }
matrix = { rate = [1e-7, 0.5] }
[nodes.report]
kind = "step"
inputs = { trained = "train" }
[nodes.compare]
kind = "step"
inputs = { a = "train[rate=1e-07, seed=0]", b = "train[rate=0.5,seed=1]" }
[nodes.half]
kind = "step"
inputs = { a = "train[rate=1e-7]", b = "answer" }
"#;

#[test]
fn matrix_multiplies_what_depends_on_it() {
    let pipeline = load(&with(MATRIX));
    let names = names(&pipeline);
    assert_eq!(names.len(), 2 + 4 + 4 + 1 + 2, "{names:?}");
    assert_eq!(names[..4], ["answer[seed=0]", "answer[seed=1]", "train[rate=1e-7,seed=0]", "train[rate=1e-7,seed=1]"]);
    assert_eq!(inputs(&pipeline, "train[rate=0.5,seed=1]"), ["base", "answer[seed=1]"]);
    assert_eq!(inputs(&pipeline, "report[rate=0.5,seed=0]"), ["train[rate=0.5,seed=0]"]);
    assert_eq!(inputs(&pipeline, "compare"), ["train[rate=1e-7,seed=0]", "train[rate=0.5,seed=1]"]);
    assert_eq!(inputs(&pipeline, "half[seed=1]"), ["train[rate=1e-7,seed=1]", "answer[seed=1]"]);
    let node = |name: &str| pipeline.nodes.iter().find(|node| node.name == name).expect("a node");
    // A variable with the name of a field is that field.
    assert_eq!(node("answer[seed=1]").spec.fields()["seed"], 1);
    assert_eq!(node("train[rate=0.5,seed=0]").spec.fields()["optimizer"]["lr"], 0.5);
}

#[test]
fn matrix_cells_go_on_from_their_own_iteration_before() {
    let text = LOOP.replace("steps = \"${2 * iteration}\"", "matrix = { steps = [1, 2] }");
    let pipeline = load(&with(&text));
    assert_eq!(inputs(&pipeline, "answer@1"), ["base", "posts"]);
    assert_eq!(inputs(&pipeline, "answer@2[steps=2]"), ["train@1[steps=2]", "posts"]);
    assert_eq!(inputs(&pipeline, "train@2[steps=1]"), ["base", "answer@2[steps=1]"]);
    assert_eq!(pipeline.nodes.len(), 1 + 2 + 2 + 2 + 2);
}

#[test]
fn faults_of_a_matrix() {
    let fault = |from: &str, to: &str| faults(&with(&MATRIX.replace(from, to)))[0].clone();
    assert_eq!(fault("rate=0.5,seed=1]", "rate=0.6]").0, "pipeline::unknown-cell");
    assert!(fault("rate=0.5,seed=1]", "rate=0.6]").2.contains("`train[rate=1e-7,seed=0]`"));
    assert_eq!(fault("[1e-7, 0.5]", "[1e-7, 1e-7]").0, "pipeline::bad-matrix");
    assert_eq!(fault("[1e-7, 0.5]", "[]").0, "pipeline::bad-matrix");
    assert_eq!(fault("\"${rate}\"", "1").0, "pipeline::unused-variable");
    assert_eq!(fault("answer\"\noptimizer", "answer[seed=\"\noptimizer").0, "pipeline::bad-reference");
    assert_eq!(
        fault("{ rate = [1e-7, 0.5] }", "{ rate = [1e-7, 0.5], seed = [7] }\nsteps = \"${seed}\"").0,
        "pipeline::disjoint-matrix"
    );
}

#[test]
fn a_random_model_is_a_node() {
    let text = with(
        "[models.tiny]\ninit = { layers = 2, corpus = \"posts\" }\n[nodes.n]\nkind = \"step\"\ninputs = { m = \"tiny\" }\n",
    );
    let pipeline = load(&text);
    assert_eq!(names(&pipeline), ["models.tiny", "n"]);
    assert_eq!((inputs(&pipeline, "models.tiny"), inputs(&pipeline, "n")), (vec!["posts"], vec!["models.tiny"]));
    assert_eq!(faults(&text.replace("layers = 2", "layer = 2")).len(), 2);
}

#[test]
fn included_files_are_values_but_not_expressions() {
    let text = with("[nodes.n]\nkind = \"step\"\nnote = { file = \"${'note'}.txt\" }\n");
    let (pipeline, findings) = examine(&text, &[], &[("note.txt", "cost ${lr} {{ x }}")]);
    assert!(findings.is_empty(), "{findings:#?}");
    assert_eq!(pipeline.expect("read").nodes[0].spec.fields()["note"], "cost ${lr} {{ x }}");
    assert_eq!(faults(&text)[0].0, "pipeline::file");
}

#[test]
fn every_error_of_a_file_comes_at_once_in_order() {
    let text = r#"
schema = 1
nmae = "typo"
[params]
lr = 1e-3
[models.base]
source = "openai:"
[datasets.posts]
sorce = "posts.jsonl"
[nodes."../x"]
kind = "step"
[nodes.answer]
kind = "answer"
model = "bse"
queries = "post"
tempreature = 0.7
tokens = "many"
mode = "greddy"
[nodes.train]
kind = "train"
model = "base"
examples = "answer"
optimizer = { name = "adamw", lr = "${lrr}" }
[nodes.kindless]
inputs = {}
[nodes.other]
kind = "stp"
[nodes.cold]
kind = "answer"
model = "base"
queries = "posts"
prompt = { file = "gone.jinja" }
temperature = -1
run = { device = "gpu", thread = 2 }
"#;
    let found = faults(text);
    let short: Vec<(&str, &str)> = found.iter().map(|(id, under, _)| (*id, under.as_str())).collect();
    assert_eq!(
        short,
        [
            ("pipeline::unknown-key", "nmae"),
            ("pipeline::endpoint", "\"openai:\""),
            ("pipeline::no-source", "\"posts.jsonl\""),
            ("pipeline::bad-name", "\"../x\""),
            ("pipeline::missing-key", "[nodes.answer]"),
            ("pipeline::unknown-reference", "\"bse\""),
            ("pipeline::unknown-reference", "\"post\""),
            ("pipeline::unknown-key", "tempreature"),
            ("pipeline::wrong-type", "\"many\""),
            ("pipeline::unknown-word", "\"greddy\""),
            ("pipeline::unknown-name", "lrr"),
            ("pipeline::missing-key", "[nodes.kindless]"),
            ("pipeline::unknown-kind", "\"stp\""),
            ("pipeline::file", "\"gone.jinja\""),
            ("pipeline::bad-run", "\"gpu\""),
            ("pipeline::unknown-key", "thread"),
        ],
        "{found:#?}"
    );
    for (id, _, help) in &found {
        assert!(!help.is_empty(), "{id} names no fix");
    }
    let help = |under: &str| &found.iter().find(|(_, found, _)| found == under).expect("found").2;
    assert!(help("tempreature").contains("`temperature`") && help("\"bse\"").contains("`base`"));
    assert!(help("nmae").contains("`name`") && help("\"greddy\"").contains("`greedy`"));
    assert!(help("\"stp\"").contains("`step`"));
    // What types cannot say comes once they fit.
    let cold = text.split("[nodes.cold]").nth(1).expect("it is there").replace("{ file = \"gone.jinja\" }", "\"\"");
    let cold = cold.replace("thread = 2", "threads = 0");
    let found = faults(&with(&format!("[nodes.cold]{cold}")));
    let ids: Vec<_> = found.iter().map(|(id, under, _)| (*id, under.as_str())).collect();
    assert_eq!(ids, [("pipeline::bad-field", "-1"), ("pipeline::bad-run", "\"gpu\""), ("pipeline::bad-run", "0")]);
}

#[test]
fn types_in_words_and_nested_places() {
    let text = with(
        "[nodes.train]\nkind = \"train\"\nmodel = \"base\"\nexamples = { from = \"train\", tak = 1 }\noptimizer = { nme = \"adamw\", lr = \"1e-3\" }\nsteps = -1\n",
    );
    let found = faults(&text);
    let short: Vec<(&str, &str)> = found.iter().map(|(id, under, _)| (*id, under.as_str())).collect();
    assert_eq!(
        short,
        [
            ("pipeline::unknown-key", "tak"),
            ("pipeline::missing-key", "{ nme = \"adamw\", lr = \"1e-3\" }"),
            ("pipeline::unknown-key", "nme"),
            ("pipeline::wrong-type", "\"1e-3\""),
            ("pipeline::wrong-type", "-1"),
        ]
    );
    assert!(found[3].2.contains("without quotes"), "{found:?}");
}

#[test]
fn names_are_shared_and_plain() {
    let step = |name: &str| format!("[nodes.{name}]\nkind = \"step\"\n");
    assert_eq!(faults(&with(&step("base")))[0].0, "pipeline::duplicate-name");
    assert_eq!(faults(&with(&step("\"a b\"")))[0].0, "pipeline::bad-name");
    assert_eq!(faults("schema = 1\n")[0].0, "pipeline::no-nodes");
    assert_eq!(faults(&with(&step("a")).replace("schema = 1", "schema = 2"))[0].2, "update sami");
    assert_eq!(faults("nodes = 3")[0].0, "pipeline::wrong-type");
    let carry = LOOP.replace("next = \"train\"", "next = \"report\"").replace("first = \"base\"", "first = \"answer\"");
    assert_eq!(faults(&with(&carry)).iter().filter(|fault| fault.0 == "pipeline::carry").count(), 2);
}

#[test]
fn slips_of_the_pen_do_not_fill_the_memory() {
    assert_eq!(faults(&with(&LOOP.replace("\"${rounds}\"", "99999")))[0].0, "pipeline::too-many-nodes");
    assert_eq!(faults(&with(&LOOP.replace("\"${rounds}\"", "999999999")))[0].0, "pipeline::wrong-type");
    let list = (0..1000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let matrix = format!("matrix = {{ tokens = [{list}], seed = [{list}], temperature = [{list}] }}");
    let found = faults(&with(&MATRIX.replace("matrix = { seed = [0, 1] }", &matrix)));
    assert!(found.iter().any(|fault| fault.0 == "pipeline::too-many-nodes"), "{found:?}");
}

#[test]
fn nesting_does_not_overflow_the_stack() {
    let deep = format!("x = {}1{}\n", "[".repeat(50_000), "]".repeat(50_000));
    assert_eq!(faults(&deep)[0].0, "pipeline::syntax");
}

#[test]
fn ten_thousand_nodes_are_read_in_time() {
    let mut text = HEAD.to_owned();
    for at in 0..10_000 {
        let input = if at == 0 { "posts".to_owned() } else { format!("n{}", at - 1) };
        let _ =
            write!(text, "[nodes.n{at}]\nkind = \"step\"\ninputs = {{ a = \"{input}\" }}\nnote = \"${{lr}} {at}\"\n");
    }
    let start = std::time::Instant::now();
    let pipeline = load(&text);
    assert_eq!(pipeline.nodes.len(), 10_000);
    assert_eq!(pipeline.nodes[9_999].spec.fields()["note"], "5e-7 9999");
    assert!(start.elapsed().as_millis() < 1_500, "{:?}", start.elapsed());
}
