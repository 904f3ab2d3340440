//! Models share the tensors that did not change, over the real binary: small models, with the threshold lowered.

use sami::cli::DONE;
use serde_json::Value;

use super::sandbox::{Done, Output, Sandbox};

/// A model, a tuning of it that is merged into it, and one of that which lies beside it.
fn pipeline() -> String {
    let tune = |name: &str, model: &str, merge: bool| {
        format!(
            r#"
[nodes.{name}]
kind = "finetune"
objective = "lm"
model = "{model}"
examples = {{ from = "documents", take = 4 }}
steps = 1
batch_queries = 4
optimizer = {{ lr = 0.01 }}
lora = {{ rank = 2, targets = ["q_proj"] }}
merge = {merge}
"#
        )
    };
    let ends = [
        r#"
[datasets.documents]
make = { rows = 32, seed = 1, template = '{"text": "q : is it a {{ choose(["saw", "cat", "pear"]) }} a : yes ."}' }

[models.blank]
init = { hidden_size = 128, layers = 2, heads = 2, max_positions = 64, tokenizer = { from = "documents" } }
"#,
        r#"
[nodes.copy]
kind = "command"
program = "sh"
args = ["-ec", "cat {input.model}/model.safetensors > copy.safetensors"]
inputs = { model = "merged" }
"#,
    ];
    [ends[0], &tune("merged", "blank", true), &tune("further", "merged", false), ends[1]].concat()
}

fn sami(sandbox: &Sandbox, thin: &str, args: &[&str]) -> Output {
    let output = sandbox.command(args).env("SAMI_THIN", thin).output();
    Output::from(output.expect("the binary starts")).exits(DONE.into())
}

fn run(sandbox: &Sandbox, thin: &str, target: &str) -> Done {
    sami(sandbox, thin, &["run", "p.toml", target, "--json"]).done()
}

fn held(sandbox: &Sandbox) -> u64 {
    sandbox.files("cache/objects").iter().map(|path| fs_err::metadata(path).expect("a file").len()).sum()
}

fn shown(sandbox: &Sandbox, what: &str) -> Value {
    sandbox.sami(&["cache", "show", what, "--json"]).exits(DONE.into()).json()
}

fn weights(sandbox: &Sandbox, what: &str) -> u64 {
    shown(sandbox, what)["files"]["model.safetensors"]["size"].as_u64().expect("bytes")
}

#[test]
fn an_adapter_merged_into_a_model_adds_the_layers_that_it_changed() {
    let sandbox = Sandbox::with(&pipeline());
    let blank = run(&sandbox, "1000", "models.blank");
    let blank = blank.nodes[0].name.clone();
    let before = held(&sandbox);
    run(&sandbox, "1000", "merged");
    let (size, added) = (weights(&sandbox, "merged"), held(&sandbox) - before);
    // Two layers of 128 × 128 in f32, the tokenizer being the same; beside it the header, the adapter, figures.
    let changed = 2 * 128 * 128 * 4;
    assert!(size > 10 * changed && weights(&sandbox, &blank) == size, "{size}");
    assert!((changed..changed + 30_000).contains(&added), "{added} bytes added, {changed} changed of {size}");
    let path = shown(&sandbox, "merged")["paths"]["model.safetensors"].clone();
    assert!(path.as_str().is_some_and(|path| path.rsplit('.').next() == Some("parts")), "{path}");
    // The model is opened as it lies, stands in another artifact as it lies, and a program gets it as one file.
    let before = held(&sandbox);
    let thin = run(&sandbox, "1000", "further");
    assert!(thin.ok && held(&sandbox) - before < 30_000);
    run(&sandbox, "1000", "copy");
    let digest = |what: &str, file: &str| shown(&sandbox, what)["files"][file]["digest"].clone();
    assert_eq!(digest("copy", "copy.safetensors"), digest("merged", "model.safetensors"));
    let left: Vec<_> = sandbox.files("cache/tmp").into_iter().chain(sandbox.files("cache/partial")).collect();
    assert!(left.is_empty(), "{left:?}");
    sandbox.verify();
    let out = sandbox.path("out");
    sandbox.sami(&["cache", "checkout", "merged", "out"]).exits(DONE.into());
    assert_eq!(fs_err::metadata(out.join("model.safetensors")).expect("a file").len(), size);
    let cat = sandbox.command(&["cache", "cat", "merged", "model.safetensors"]).output().expect("starts").stdout;
    assert!(cat == fs_err::read(out.join("model.safetensors")).expect("a file"));
    // The adapter lies beside, two matrices for each of the two that it changes.
    let tensors = |what: &str| shown(&sandbox, what)["preview"]["tensors"].as_u64().expect("a count");
    assert_eq!(tensors("merged"), tensors(&blank) + 4);
    // Neither keys nor ids tell how it is kept; what is there stays as it is.
    let whole = Sandbox::with(&pipeline());
    let ids = |done: &Done| done.nodes.iter().map(|node| (node.key.clone(), node.artifact.clone())).collect::<Vec<_>>();
    assert_eq!(ids(&run(&whole, "off", "further")), ids(&thin));
    assert!(whole.files("cache/objects").iter().all(|path| path.extension().is_none()));
    let mixed = run(&whole, "1000", "copy");
    assert_eq!((mixed.ran, mixed.failed), (1, 0));
    sandbox.sami(&["cache", "gc", "--keep-runs", "1", "--yes"]).exits(DONE.into());
    sandbox.verify();
}

#[test]
fn a_damaged_tensor_is_named_and_made_again() {
    let sandbox = Sandbox::with(&pipeline());
    let first = run(&sandbox, "1000", "further");
    let path = shown(&sandbox, "merged")["paths"]["model.safetensors"].as_str().expect("a path").to_owned();
    let recipe: Value = serde_json::from_str(&fs_err::read_to_string(path).expect("a recipe")).expect("JSON");
    let part = recipe["parts"][2][0].as_str().expect("a digest").to_owned();
    let object = sandbox.path("cache/objects").join(&part[..2]).join(&part[2..]);
    let mut bytes = fs_err::read(&object).expect("an object");
    bytes[1000] ^= 4;
    fs_err::remove_file(&object).expect("removed");
    fs_err::write(&object, bytes).expect("written");
    let plan = sandbox.sami(&["plan", "p.toml", "further"]).exits(DONE.into()).stdout;
    assert!(plan.contains(&format!("model.safetensors, part {} of its artifact is damaged", &part[..12])), "{plan}");
    let verified = sandbox.sami(&["cache", "verify", "--json"]).exits(3).json();
    assert!(verified["verification"]["findings"][0]["path"].as_str().expect("a path").ends_with(&part[2..]));
    let again = run(&sandbox, "1000", "further");
    // Its maker, or that of the model that it is shared with.
    assert!(["merged", "models.blank"].iter().any(|maker| again.names("ran").contains(maker)), "{again:?}");
    assert_eq!(again.nodes.last().expect("nodes").artifact, first.nodes.last().expect("nodes").artifact);
    sandbox.verify();
}
