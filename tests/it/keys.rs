//! What is in a key: every field of every kind, and nothing of how a node is executed.

use std::collections::{BTreeMap, BTreeSet};

use sami::digest::Digest;
use sami::graph::key;
use sami::pipeline::{self, Node, Pipeline};
use sami::{env, kinds};
use serde_json::Value;

/// One node of each kind, with a line of its own for every field that can be changed.
const PIPELINE: &str = r#"
[models.base]
source = "m"
[models.other]
source = "n"
[models.blank.init]
hidden_size = 64
layers = 2
heads = 2
kv_heads = 2
intermediate_size = 128
max_positions = 64
rope_theta = 10000.0
tie_embeddings = true
seed = 1
tokenizer = { from = "rows", field = "text", kind = "word", vocab_size = 100 }

[datasets.rows]
source = "rows.jsonl"
[datasets.queries]
source = "queries.jsonl"

[nodes.constitutions]
kind = "constitutions"
task = "answer"
contrast = "complement"
per_query = 2
principles_per_constitution = 2
hold_out = 0.25
format = "plain"
seed = 1
principles = { a = { definition = "do a", antithesis = "not a" }, b = { definition = "do b", antithesis = "not b" }, c = { definition = "do c", antithesis = "not c" } }

[nodes.generate]
kind = "generate"
model = "base"
queries = "queries"
constitutions = "constitutions"
prompt = "{{ constitution }} {{ query }}"
combinations = "train"
max_new_tokens = 20
temperature = 1.0
top_k = 0
top_p = 1.0
stop = ["x"]
cut = ["y"]
samples = 1
seed = 1
keep = { distinct = true }

[nodes.score]
kind = "score"
model = "base"
responses = "generate"
reference = "other"
prompt = "{{ constitution }}"
score_eos = false
shuffle_principles = true
seed = 1

[nodes.finetune]
kind = "finetune"
model = "base"
reference = "other"
examples = "score"
objective = "sami"
batch_queries = 8
steps = 4
probe_every = 2
compute = "f32"
lora = { rank = 8, alpha = 16, dropout = 0.0, targets = "all-linear" }
merge = true
optimizer = { name = "adamw", lr = 1e-3, beta1 = 0.9, beta2 = 0.999, alpha = 0.99, eps = 1e-8, weight_decay = 0.0 }
schedule = { name = "constant", warmup = 0, floor = 0.0 }
clip = 1.0
kl_weight = 0.1
kl_budget = 0.5
sides = "both"
length_norm = "mean"
score_eos = false
seed = 1
checkpoint_every = 100

[nodes.pretrain]
kind = "finetune"
model = "blank"
examples = "rows"
objective = "lm"
epochs = 1.0
optimizer = { lr = 1e-3 }
text = "{{ text }}"

[nodes.imitate]
kind = "finetune"
model = "blank"
examples = "rows"
objective = "sft"
steps = 1
optimizer = { lr = 1e-3 }
prompt = "{{ text }}"
response = "{{ text }}"

[nodes.evaluate]
kind = "evaluate"
candidates = { base = "base", sami = "finetune" }
against = "base"
queries = "queries"
constitutions = "constitutions"
prompt = "{{ constitution }}"
score_prompt = "{{ constitution }} {{ query }}"
combinations = "all"
compare = "first"
max_new_tokens = 20
temperature = 1.0
top_k = 0
top_p = 1.0
stop = ["x"]
score_eos = false
seed = 1
rules = { principles = { a = { definition = { max_words = 3 }, antithesis = { min_words = 4 } } }, well_formed = { min_words = 1 } }

[nodes.tally]
kind = "tally"
verdicts = "rows"
ties = "half"
paired = [["a", "b"]]
seed = 1

[nodes.prefer]
kind = "finetune"
model = "base"
reference = "other"
examples = "score"
objective = "dpo"
batch_queries = 8
steps = 1
optimizer = { lr = 1e-3 }
schedule = { name = "linear", warmup = 1, from_zero = true, span = 15 }
beta = 0.1
label_smoothing = 0.1
directions = "both"
kl_weight = 0.1
kl_over = "diagonal"
accumulation = { parts = 2, kept = "last" }
weights = "bf16"

[nodes.rank]
kind = "finetune"
model = "base"
examples = "rows"
objective = "dpo"
steps = 1
optimizer = { lr = 1e-3 }
prompt = "{{ text }}"
chosen = "{{ text }}"
rejected = "{{ text }}"
join = "none"

[nodes.copy]
kind = "finetune"
model = "base"
examples = "score"
objective = "sft"
steps = 1
optimizer = { lr = 1e-3 }
responses = "first"

[nodes.command]
kind = "command"
program = "sh"
args = ["{script}"]
inputs = { rows = "rows" }
output = "files"
script = "true"
env = { A = "1" }
"#;

/// Changes of one line each, with the field that they change (inputs change by their content, see below).
const CHANGES: &[(&str, &str, &str)] = &[
    ("models.blank", "hidden_size = 64", "hidden_size = 128"),
    ("models.blank", "layers = 2", "layers = 3"),
    ("models.blank", "\nheads = 2", "\nheads = 4"),
    ("models.blank", "kv_heads = 2", "kv_heads = 1"),
    ("models.blank", "intermediate_size = 128", "intermediate_size = 64"),
    ("models.blank", "max_positions = 64", "max_positions = 128"),
    ("models.blank", "rope_theta = 10000.0", "rope_theta = 500000.0"),
    ("models.blank", "tie_embeddings = true", "tie_embeddings = false"),
    ("models.blank", "seed = 1", "seed = 2"),
    (
        "models.blank",
        "tokenizer = { from = \"rows\", field = \"text\"",
        "tokenizer = { from = \"rows\", field = \"body\"",
    ),
    ("constitutions", "task = \"answer\"", "task = \"ask\""),
    ("constitutions", "contrast = \"complement\"", "contrast = \"uniform\""),
    ("constitutions", "per_query = 2", "per_query = 3"),
    ("constitutions", "principles_per_constitution = 2", "principles_per_constitution = 3"),
    ("constitutions", "hold_out = 0.25", "hold_out = 0.5"),
    ("constitutions", "format = \"plain\"", "format = \"lines\""),
    ("constitutions", "seed = 1", "seed = 2"),
    ("constitutions", "contrast = \"complement\"", "contrast = \"positive-vs-antithesis\"\nmust_flip = [\"a\"]"),
    ("constitutions", "principles = { a = { definition = \"do a\"", "principles = { a = { definition = \"do A\""),
    ("generate", "prompt = \"{{ constitution }} {{ query }}\"", "prompt = \"{{ query }}\""),
    ("generate", "combinations = \"train\"", "combinations = \"held-out\""),
    ("generate", "max_new_tokens = 20", "max_new_tokens = 21"),
    ("generate", "temperature = 1.0", "temperature = 0.9"),
    ("generate", "top_k = 0", "top_k = 5"),
    ("generate", "top_p = 1.0", "top_p = 0.9"),
    ("generate", "stop = [\"x\"]", "stop = []"),
    ("generate", "cut = [\"y\"]", "cut = []"),
    ("generate", "samples = 1", "samples = 2"),
    ("generate", "seed = 1", "seed = 2"),
    ("generate", "keep = { distinct = true }", "keep = { distinct = false }"),
    ("generate", "keep = { distinct = true }", "keep = { distinct = true, min_distance = 0.5 }"),
    ("generate", "keep = { distinct = true }", "keep = { distinct = true, first = { ends_with = \".\" } }"),
    ("generate", "keep = { distinct = true }", "keep = { distinct = true, forbid_in_query = [\"x\"] }"),
    ("generate", "seed = 1", "seed = 1\nprefix = \"The post\""),
    ("generate", "seed = 1", "seed = 1\nafter = \"Summary:\""),
    ("generate", "seed = 1", "seed = 1\nuntil = [\"x\"]"),
    ("score", "prompt = \"{{ constitution }}\"", "prompt = \"{{ query }}\""),
    ("score", "score_eos = false", "score_eos = true"),
    ("score", "shuffle_principles = true", "shuffle_principles = false"),
    ("score", "seed = 1", "seed = 2"),
    ("finetune", "objective = \"sami\"", "objective = \"sft\""),
    ("finetune", "batch_queries = 8", "batch_queries = 9"),
    ("finetune", "steps = 4", "steps = 5"),
    ("finetune", "optimizer = { name = \"adamw\"", "optimizer = { name = \"rmsprop\""),
    ("finetune", "schedule = { name = \"constant\"", "schedule = { name = \"linear\""),
    ("finetune", "clip = 1.0", "clip = 0.5"),
    ("finetune", "probe_every = 2", "probe_every = 3"),
    ("finetune", "compute = \"f32\"", "compute = \"bf16\""),
    ("finetune", "targets = \"all-linear\"", "targets = [\"q_proj\"]"),
    ("finetune", "merge = true", "merge = false"),
    ("finetune", "kl_weight = 0.1", "kl_weight = 0.2"),
    ("finetune", "kl_budget = 0.5", "kl_budget = 0.4"),
    ("finetune", "sides = \"both\"", "sides = \"row\""),
    ("finetune", "length_norm = \"mean\"", "length_norm = \"sum\""),
    ("finetune", "score_eos = false", "score_eos = true"),
    ("finetune", "seed = 1", "seed = 2"),
    ("finetune", "checkpoint_every = 100", "checkpoint_every = 50"),
    ("pretrain", "epochs = 1.0", "epochs = 2.0"),
    ("pretrain", "text = \"{{ text }}\"", "text = \"{{ id }}\""),
    ("imitate", "prompt = \"{{ text }}\"", "prompt = \"{{ id }}\""),
    ("imitate", "response = \"{{ text }}\"", "response = \"{{ id }}\""),
    ("prefer", "from_zero = true", "from_zero = false"),
    ("prefer", "span = 15", "span = \"epoch\""),
    ("prefer", "beta = 0.1", "beta = 0.2"),
    ("prefer", "label_smoothing = 0.1", "label_smoothing = 0.0"),
    ("prefer", "directions = \"both\"", "directions = \"first\""),
    ("prefer", "kl_over = \"diagonal\"", "kl_over = \"cells\""),
    ("prefer", "parts = 2", "parts = 4"),
    ("prefer", "kept = \"last\"", "kept = \"all\""),
    ("prefer", "weights = \"bf16\"", "weights = \"f32\""),
    ("rank", "chosen = \"{{ text }}\"", "chosen = \"{{ id }}\""),
    ("rank", "rejected = \"{{ text }}\"", "rejected = \"{{ id }}\""),
    ("rank", "join = \"none\"", "join = \"space\""),
    ("copy", "responses = \"first\"", "responses = \"all\""),
    ("generate", "samples = 1", "samples = 1\nresponses_per_constitution = 2"),
    ("score", "score_eos = false", "score_eos = false\njoin = \"none\""),
    ("evaluate", "score_eos = false", "score_eos = false\njoin = \"none\""),
    ("evaluate", "candidates = { base = \"base\", sami", "candidates = { base = \"base\", tuned"),
    ("evaluate", "against = \"base\"", "against = \"sami\""),
    ("evaluate", "prompt = \"{{ constitution }}\"", "prompt = \"{{ query }}\""),
    ("evaluate", "score_prompt = \"{{ constitution }} {{ query }}\"", "score_prompt = \"{{ query }}\""),
    ("evaluate", "combinations = \"all\"", "combinations = \"train\""),
    ("evaluate", "compare = \"first\"", "compare = \"all\""),
    ("evaluate", "max_new_tokens = 20", "max_new_tokens = 21"),
    ("evaluate", "temperature = 1.0", "temperature = 0.5"),
    ("evaluate", "top_k = 0", "top_k = 3"),
    ("evaluate", "top_p = 1.0", "top_p = 0.5"),
    ("evaluate", "stop = [\"x\"]", "stop = [\"z\"]"),
    ("evaluate", "score_eos = false", "score_eos = true"),
    ("evaluate", "stop = [\"x\"]", "stop = [\"x\"]\nprefix = \"p\""),
    ("evaluate", "stop = [\"x\"]", "stop = [\"x\"]\nafter = \"a\""),
    ("evaluate", "stop = [\"x\"]", "stop = [\"x\"]\nuntil = [\"u\"]"),
    ("evaluate", "seed = 1", "seed = 2"),
    (
        "evaluate",
        "rules = { principles = { a = { definition = { max_words = 3 }",
        "rules = { principles = { a = { definition = { max_words = 2 }",
    ),
    ("evaluate", "seed = 1", "seed = 1\nties = \"loss\""),
    ("evaluate", "seed = 1", "seed = 1\njudge = \"base\""),
    ("evaluate", "seed = 1", "seed = 1\njudge = \"base\"\njudge_prompt = \"{{ a }} {{ b }}\""),
    ("evaluate", "seed = 1", "seed = 1\njudge = \"base\"\njudge_system = \"\""),
    ("evaluate", "seed = 1", "seed = 1\njudge = \"base\"\njudge_labels = [\"1\", \"2\"]"),
    ("evaluate", "seed = 1", "seed = 1\njudge = \"base\"\njudge_by = \"words\""),
    ("evaluate", "seed = 1", "seed = 1\njudge = \"base\"\njudge_orders = \"one\""),
    ("evaluate", "seed = 1", "seed = 1\njudge = \"base\"\njudge_retries = 3"),
    ("evaluate", "seed = 1", "seed = 1\njudge = \"base\"\njudge_max_tokens = 100"),
    ("tally", "ties = \"half\"", "ties = \"loss\""),
    ("tally", "paired = [[\"a\", \"b\"]]", "paired = []"),
    ("tally", "seed = 1", "seed = 2"),
    ("command", "program = \"sh\"", "program = \"bash\""),
    ("command", "args = [\"{script}\"]", "args = [\"-x\", \"{script}\"]"),
    ("command", "inputs = { rows", "inputs = { data"),
    ("command", "output = \"files\"", "output = \"dataset\""),
    ("command", "script = \"true\"", "script = \"false\""),
    ("command", "env = { A = \"1\" }", "env = { A = \"2\" }"),
];

fn load(text: &str) -> Pipeline {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p.toml");
    fs_err::write(&path, text).expect("writes");
    pipeline::load(&path, &[], &kinds::specs()).expect("a sound pipeline")
}

fn node<'a>(pipeline: &'a Pipeline, name: &str) -> &'a Node {
    pipeline.nodes.iter().find(|node| node.name == name).expect("a node")
}

/// A preimage with made-up contents of the inputs.
fn preimage(node: &Node) -> Value {
    let inputs: BTreeMap<String, Digest> =
        node.links.iter().map(|link| (link.field.path.clone(), Digest::of(link.field.path.as_bytes()))).collect();
    key::preimage(node, &inputs)
}

/// The pipeline with `old` replaced within the section of a node.
fn changed(name: &str, old: &str, new: &str) -> String {
    let header = if name == "models.blank" { "[models.blank.init]".to_owned() } else { format!("[nodes.{name}]") };
    let start = PIPELINE.find(&header).expect("the node's header");
    let end = PIPELINE[start + 1..].find("\n\n").map_or(PIPELINE.len(), |end| start + 1 + end);
    let section = &PIPELINE[start..end];
    assert!(section.contains(old), "{name} has no `{old}`");
    format!("{}{}{}", &PIPELINE[..start], section.replacen(old, new, 1), &PIPELINE[end..])
}

#[test]
fn every_field_of_every_kind_is_in_the_key() {
    let before = load(PIPELINE);
    let mut covered: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, old, new) in CHANGES {
        let after = load(&changed(name, old, new));
        let (old_preimage, new_preimage) = (preimage(node(&before, name)), preimage(node(&after, name)));
        assert_ne!(key::key(&old_preimage), key::key(&new_preimage), "{name}: `{new}` does not change the key");
        let differences = key::diff(&old_preimage, &new_preimage);
        assert!(!differences.is_empty());
        let fields =
            differences.iter().map(|change| change.path.split(['.', '[']).next().unwrap_or_default().to_owned());
        covered.entry(name).or_default().extend(fields);
        for other in before.nodes.iter().filter(|other| other.name != *name) {
            assert_eq!(preimage(other), preimage(node(&after, &other.name)), "{name}: `{new}` changes {}", other.name);
        }
    }
    // Fields that are inputs stand in the key by what they hold.
    for node in &before.nodes {
        let preimage = preimage(node);
        let inputs: BTreeSet<&str> =
            node.links.iter().map(|link| link.field.path.split('.').next().unwrap_or_default()).collect();
        for (field, value) in preimage["fields"].as_object().expect("fields") {
            let elsewhere =
                value.is_null() || ["pretrain", "imitate", "prefer", "rank", "copy"].contains(&node.name.as_str());
            let seen = covered.get(node.name.as_str()).is_some_and(|seen| seen.contains(field));
            assert!(
                seen || elsewhere || inputs.contains(field.as_str()),
                "no change of {}.{field} is tried",
                node.name
            );
        }
        for link in &node.links {
            let mut ids: BTreeMap<String, Digest> = node
                .links
                .iter()
                .map(|link| (link.field.path.clone(), Digest::of(link.field.path.as_bytes())))
                .collect();
            ids.insert(link.field.path.clone(), Digest::of(b"something else"));
            assert_ne!(key::key(&key::preimage(node, &ids)), key::key(&preimage));
        }
    }
}

#[test]
fn how_a_node_is_executed_and_what_it_is_called_is_not_in_the_key() {
    let before = load(PIPELINE);
    for run in [
        "device = \"cpu\"",
        "threads = 1",
        "micro_batch = 3",
        "activation_checkpointing = true",
        "shards = 2",
        "retries = 4",
    ] {
        let after = load(&changed("generate", "seed = 1", &format!("seed = 1\nrun = {{ {run} }}")));
        assert_eq!(preimage(node(&before, "generate")), preimage(node(&after, "generate")), "{run}");
    }
    let renamed = load(
        &PIPELINE
            .replace("[nodes.generate]", "[nodes.answers]")
            .replace("responses = \"generate\"", "responses = \"answers\""),
    );
    assert_eq!(preimage(node(&before, "generate")), preimage(node(&renamed, "answers")));
    assert_eq!(preimage(node(&before, "score")), preimage(node(&renamed, "score")));
}

/// A key that changes in silence makes users compute everything again: such a change must be seen, and belongs under
/// "Keys" in CHANGELOG.md.
#[test]
fn keys_are_what_they_were() {
    let pipeline = load(PIPELINE);
    let line = |node| format!("{} {}\n", key::key(&preimage(node)).short(), preimage(node));
    let text = pipeline.nodes.iter().map(line).collect::<Vec<_>>().concat();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/keys.txt");
    if env::BLESS.get().is_some() {
        fs_err::write(path, text).expect("writes");
        return;
    }
    let known = fs_err::read_to_string(path).expect("tests/it/keys.txt; SAMI_BLESS=1 writes it");
    for (known, found) in known.lines().zip(text.lines()) {
        assert_eq!(
            known, found,
            "a key has changed: if that is meant, run with SAMI_BLESS=1 and say so in CHANGELOG.md"
        );
    }
    assert_eq!(known.lines().count(), text.lines().count());
}
