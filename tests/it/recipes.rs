//! The method's recipes as pipelines say them: what each iteration trains from, on which queries, for how long.

use sami::kinds;
use sami::pipeline::{self, Node, Pipeline, Target};
use serde_json::{Value, json};

const PIPELINE: &str = r#"
[params]
start = 2
added = 2
split = 2500

[models.base]
source = "m"
[datasets.posts]
source = "posts.jsonl"
[nodes.constitutions]
kind = "constitutions"
principles = { a = { definition = "do a", antithesis = "not a" } }

[loop]
times = 3
carry.policy = { first = "base", next = "finetune" }

[loop.nodes.generate]
kind = "generate"
model = "policy"
queries = { from = "posts", skip = "${split * ((iteration - 1) % 2)}", take = "${split}" }
constitutions = "constitutions"
prompt = "{{ constitution }} {{ query }}"

[loop.nodes.score]
kind = "score"
model = "policy"
responses = "generate"
prompt = "{{ constitution }}"

[loop.nodes.finetune]
kind = "finetune"
model = "base"
examples = "score"
objective = "sami"
batch_queries = 128
steps = "${start + added * (iteration - 1)}"
optimizer = { name = "rmsprop", lr = 5e-7 }
"#;

fn load(text: &str, sets: &[&str]) -> Pipeline {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p.toml");
    fs_err::write(&path, text).expect("writes");
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    pipeline::load(&path, &sets, &kinds::specs()).expect("a sound pipeline")
}

fn node<'a>(pipeline: &'a Pipeline, name: &str) -> &'a Node {
    pipeline.nodes.iter().find(|node| node.name == name).expect("a node")
}

/// What an input of a node refers to.
fn target(pipeline: &Pipeline, of: &str, field: &str) -> String {
    let link = node(pipeline, of).links.iter().find(|link| link.field.path == field).expect("an input");
    match &link.target {
        Target::Node(index) => pipeline.nodes[*index].name.clone(),
        Target::Model(name) | Target::Dataset(name) => name.clone(),
    }
}

fn fields(pipeline: &Pipeline, name: &str) -> Value {
    node(pipeline, name).spec.fields()
}

#[test]
fn steps_grow_splits_alternate_and_training_restarts_from_the_base() {
    for (sets, wanted) in [(&[][..], [2, 4, 6]), (&["start=4", "added=4"], [4, 8, 12])] {
        let pipeline = load(PIPELINE, sets);
        for (iteration, steps) in (1..=3).zip(wanted) {
            let finetune = format!("finetune@{iteration}");
            assert_eq!(fields(&pipeline, &finetune)["steps"], json!(steps));
            assert_eq!(target(&pipeline, &finetune, "model"), "base");
            assert_eq!(target(&pipeline, &finetune, "examples"), format!("score@{iteration}"));
            let before = if iteration == 1 { "base".to_owned() } else { format!("finetune@{}", iteration - 1) };
            for kind in ["generate", "score"] {
                assert_eq!(target(&pipeline, &format!("{kind}@{iteration}"), "model"), before);
            }
            let links = &node(&pipeline, &format!("generate@{iteration}")).links;
            let queries = &links.iter().find(|link| link.field.path == "queries").expect("an input").field.input;
            assert_eq!((queries.skip, queries.take), (Some(2500 * ((iteration - 1) % 2)), Some(2500)));
        }
        let optimizer = &fields(&pipeline, "finetune@1")["optimizer"];
        assert_eq!((&optimizer["alpha"], &optimizer["eps"]), (&json!(0.99), &json!(1e-8)), "as in PyTorch");
    }
}

#[test]
fn published_runs_as_they_were_are_a_schedule_and_an_accumulation() {
    let as_run = "optimizer = { name = \"rmsprop\", lr = 5e-7 }\nschedule = \"authors-2024\"\n\
                  accumulation = { parts = 16, kept = \"last\" }\nweights = \"bf16\"";
    let text = PIPELINE.replace("optimizer = { name = \"rmsprop\", lr = 5e-7 }", as_run);
    let fields = fields(&load(&text, &[]), "finetune@3");
    assert_eq!(fields["accumulation"], json!({"parts": 16, "kept": "last"}));
    assert_eq!(fields["schedule"]["span"], json!("epoch"));
    assert_eq!(fields["weights"], json!("bf16"));
}

#[test]
fn baselines_on_the_same_responses_are_nodes_beside_it() {
    let baselines = r#"
[nodes.sft]
kind = "finetune"
model = "base"
examples = "score@1"
objective = "sft"
responses = "first"
epochs = 1.0
optimizer = { lr = 1e-5 }

[nodes.dpo]
kind = "finetune"
model = "base"
reference = "base"
examples = "score@1"
objective = "dpo"
directions = "first"
epochs = 1.0
optimizer = { lr = 1e-6 }
"#;
    let pipeline = load(&PIPELINE.replace("[loop]\n", &format!("{baselines}\n[loop]\n")), &[]);
    for name in ["sft", "dpo"] {
        assert_eq!(target(&pipeline, name, "examples"), "score@1");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p.toml");
    let wrong = PIPELINE.replace("objective = \"sami\"", "objective = \"sami\"\nschedule = \"authors-2023\"");
    fs_err::write(&path, wrong).expect("writes");
    let errors = pipeline::load(&path, &[], &kinds::specs()).expect_err("no such schedule");
    assert!(errors.iter().any(|error| format!("{error:?}").contains("authors-2024")), "{errors:?}");
}
