//! What `plan` says a pipeline will come to, held against what it came to.

use sami::cli::DONE;
use serde_json::Value;

use super::hub_server::Server;
use super::sandbox::Sandbox;

const PIPELINE: &str = r#"
[models.blank]
init = { hidden_size = 32, layers = 2, heads = 2, max_positions = 128, tokenizer = { from = "texts", vocab_size = 64 } }
[datasets.texts]
make = { rows = 40, seed = 1, template = '{"text": "rules : be brief . q : what is {{ row }} a : it is {{ choose(["red", "blue"]) }} ."}' }
[datasets.questions]
make = { rows = 12, seed = 2, template = '{"query": "what is {{ row }}"}' }
[nodes.base]
kind = "finetune"
objective = "lm"
model = "blank"
examples = "texts"
batch_queries = 8
epochs = 2
optimizer = { lr = 1e-2 }
[nodes.constitutions]
kind = "constitutions"
principles.brief = { definition = "be brief .", antithesis = "be long ." }
[nodes.generate]
kind = "generate"
model = "base"
queries = { from = "questions", skip = 2 }
constitutions = "constitutions"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
max_new_tokens = 12
temperature = 1.0
keep = { distinct = false, min_tokens = 0 }
[nodes.score]
kind = "score"
model = "base"
responses = "generate"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
[nodes.sami]
kind = "finetune"
objective = "sami"
model = "base"
examples = "score"
batch_queries = 4
steps = 3
optimizer = { lr = 1e-3 }
"#;

fn plan(sandbox: &Sandbox) -> Value {
    let output = sandbox.sami(&["plan", "p.toml", "--json"]).exits(DONE.into());
    serde_json::from_str(&output.stdout).expect("JSON")
}

fn node<'a>(plan: &'a Value, name: &str) -> &'a Value {
    plan["nodes"].as_array().expect("nodes").iter().find(|node| node["name"] == name).expect("the node")
}

#[test]
fn a_plan_says_what_a_run_comes_to() {
    let sandbox = Sandbox::with(PIPELINE);
    let before = plan(&sandbox);
    let of = |name: &str, part: &str| node(&before, name)["estimate"][part].clone();
    assert_eq!((&of("base", "steps")["number"], &of("base", "steps")["how"]), (&10.into(), &"exactly".into()));
    assert_eq!((&of("generate", "rows")["number"], &of("sami", "steps")["number"]), (&10.into(), &3.into()));
    assert_eq!(of("generate", "tokens_written")["number"], 10 * 2 * 12);
    let text = sandbox.sami(&["plan", "p.toml"]).exits(DONE.into()).stdout;
    for says in ["  tokens ", "at most 240 written", "in 13 steps", "  memory ", "on the CPU", "  disk ", "are free"] {
        assert!(text.contains(says), "{says}: {text}");
    }
    let text = sandbox.sami(&["plan", "p.toml", "--estimate", "--device", "cuda"]).exits(DONE.into()).stdout;
    assert!(text.contains("on the GPU") && text.contains("written  steps"), "{text}");
    let little = sandbox.command(&["plan", "p.toml"]).env("SAMI_FAULT", "room:1000").output().expect("starts");
    let told = String::from_utf8_lossy(&little.stderr).into_owned();
    assert!(told.contains("cli::disk") && told.contains("1000 B are free"), "{told}");

    sandbox.sami(&["run", "p.toml"]).exits(DONE.into());
    let after = plan(&sandbox);
    assert!(after["nodes"].as_array().expect("nodes").iter().all(|node| node["estimate"].is_null()), "{after}");
    let metric = |name: &str, part: &str| node(&after, name)["metrics"][part].as_f64().expect("a metric");
    let said = |name: &str, part: &str| of(name, part)["number"].as_f64().expect("a number");
    assert!(metric("generate", "tokens") <= said("generate", "tokens_written"));
    assert_eq!((metric("base", "steps"), metric("sami", "steps")), (10.0, 3.0));
    // Of a node below fresh ones what those made is known.
    sandbox.write("p.toml", &PIPELINE.replace("steps = 3", "steps = 4"));
    let again = plan(&sandbox);
    let trained = node(&again, "sami")["estimate"]["tokens_trained"]["number"].as_f64().expect("a number");
    assert!(trained <= 4.0 / 3.0 * said("sami", "tokens_trained"), "{again}");
    assert!(node(&again, "generate")["estimate"].is_null());
    // The weights are on the disk as they were said to be.
    let said = said("base", "disk");
    let weights = sandbox.files("cache/objects").iter().map(|path| fs_err::metadata(path).expect("a file").len()).max();
    let weights = weights.expect("files") as f64;
    assert!((weights / said - 1.0).abs() < 0.25, "{weights} of {said}");
}

#[test]
fn a_model_that_is_not_here_has_a_form() {
    let config = br#"{"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "torch_dtype": "bfloat16"}"#;
    let files =
        [("config.json", config.to_vec()), ("tokenizer.json", b"{}".to_vec()), ("model.safetensors", vec![0; 5000])];
    let server = Server::start(files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect());
    let text = PIPELINE.replace(
        r#"init = { hidden_size = 32, layers = 2, heads = 2, max_positions = 128, tokenizer = { from = "texts", vocab_size = 64 } }"#,
        "source = \"hf:acme/tiny\"",
    );
    let sandbox = Sandbox::with(&text);
    let mut command = sandbox.command(&["plan", "p.toml", "--device", "cuda", "--json"]);
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", sandbox.path("home")).env_remove("HF_HUB_OFFLINE");
    let output: super::sandbox::Output = command.output().expect("starts").into();
    let plan: Value = serde_json::from_str(&output.exits(DONE.into()).stdout).expect("JSON");
    let memory = &node(&plan, "base")["estimate"]["memory"];
    // 7,241,732,096 weights, as everybody counts them.
    assert_eq!(memory["weights"], 4 * 7_241_732_096_u64, "{plan}");
    assert_eq!(memory["moments"], 8 * 7_241_732_096_u64);
    assert_eq!(plan["estimate"]["download"], config.len() + 2 + 5000);
    assert!(!sandbox.path("home/hub").exists(), "a plan downloads nothing");
}
