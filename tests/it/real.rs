//! A real pretrained checkpoint, real posts and real constitutions through all five kinds.

use std::path::PathBuf;

use sami::env;

use super::sandbox::{Sandbox, skipped};

/// A part of the directory of real models and data; without it, a printed reason for the skip.
pub(crate) fn test_data(part: &str) -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");
    let found = PathBuf::from(env::TEST_DATA.get().unwrap_or_else(|| default.to_owned())).join(part);
    if found.exists() {
        return fs_err::canonicalize(found).ok();
    }
    skipped(&format!("there is no {} ({} names another directory)", found.display(), env::TEST_DATA.name));
    None
}

const PIPELINE: &str = r#"
schema = 1

[models.base]
source = "DATA/models/stories260K"

[datasets.posts]
source = "DATA/queries/tldr_posts_250.jsonl"
id = "{{ id }}"
start = "{{ post[:240] }}"

[nodes.constitutions]
kind = "constitutions"
task = "summarize a Reddit post"
principles = { file = "DATA/constitutions/sami_tldr_mistral.json" }

[loop]
times = 2
carry.policy = { first = "base", next = "finetune" }

[loop.nodes.generate]
kind = "generate"
model = "policy"
queries = { from = "posts", skip = "${6 * (iteration - 1)}", take = 6 }
constitutions = "constitutions"
prompt = """
Summarize the post according to the constitution.

Summarization Constitution:
{{ constitution }}

{{ start }}

Summary: The post"""
max_new_tokens = 24
temperature = 1.0
stop = ["\n\nHuman", "END"]

[loop.nodes.score]
kind = "score"
model = "policy"
reference = "base"
responses = "generate"
prompt = """
Summarization Constitution:
{{ constitution }}

{{ start }}

Summary:"""

[loop.nodes.finetune]
kind = "finetune"
objective = "sami"
model = "base"
examples = "score"
batch_queries = 3
steps = "${iteration}"
optimizer = { name = "rmsprop", lr = 1e-5 }
kl_budget = 0.5

[nodes.evaluate]
kind = "evaluate"
candidates = { base = "base", sami = "finetune" }
against = "base"
queries = { from = "posts", skip = 200, take = 6 }
constitutions = "constitutions"
prompt = "{{ constitution }}\n\n{{ start }}\n\nSummary: The post"
max_new_tokens = 24
temperature = 1.0
[nodes.evaluate.rules.principles]
concise = { definition = { max_words = 12 }, antithesis = { min_words = 13 } }
comprehensive = { definition = { min_sentences = 2 }, antithesis = { max_sentences = 1 } }
"#;

#[test]
fn a_real_checkpoint_goes_through_all_kinds() {
    let Some(data) = test_data("") else { return };
    let sandbox = Sandbox::with(&PIPELINE.replace("DATA", data.to_str().expect("a path in UTF-8")));
    sandbox.sami(&["check", "p.toml"]).exits(0);
    let first = sandbox.run(&[], 0);
    assert_eq!((first.ran, first.hits), (8, 0));
    let done = sandbox.sami(&["run", "p.toml", "--json"]).exits(0).json();
    assert_eq!((&done["ran"], &done["hits"]), (&0.into(), &8.into()));
    let metrics = |name: &str| {
        let nodes = done["nodes"].as_array().expect("a list");
        nodes.iter().find(|node| node["name"] == name).expect("a node")["metrics"].clone()
    };
    let number =
        |name: &str, figure: &str| metrics(name)[figure].as_f64().unwrap_or_else(|| panic!("no {figure} of {name}"));
    assert_eq!(number("generate@1", "rows") + number("generate@1", "dropped"), 6.0);
    for score in ["score@1", "score@2"] {
        assert!(number(score, "bound") <= number(score, "bound_ceiling") + 1e-9);
        assert!(number(score, "gap").is_finite() && number(score, "mean_length") > 1.0);
    }
    assert_eq!(number("score@1", "kl"), 0.0);
    assert!(number("score@2", "kl") > 0.0, "the second iteration's policy has been trained");
    assert_eq!(number("finetune@2", "steps"), 2.0);
    let rate = number("evaluate", "win_rate");
    assert!(number("evaluate", "win_rate_low") <= rate && rate <= number("evaluate", "win_rate_high"));

    // The model that comes out is a directory that other programs can open.
    sandbox.sami(&["cache", "checkout", "finetune@2", "out"]).exits(0);
    for name in ["config.json", "tokenizer.json", "model.safetensors", "train.jsonl"] {
        assert!(sandbox.path("out").join(name).is_file(), "{name} is missing");
    }
    // The checkpoint was taken where it lies, not copied.
    let weights = fs_err::metadata(data.join("models/stories260K/model.safetensors")).expect("the checkpoint").len();
    let copies = sandbox
        .files("cache/objects")
        .iter()
        .filter(|path| path.metadata().is_ok_and(|file| file.len() == weights))
        .count();
    assert!(copies <= 2, "only the two finetuned models lie in the cache, not {copies}");
    sandbox.verify();
}
