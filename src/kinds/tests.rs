//! The kinds one after another on a model of a few thousand numbers, in this process.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use serde_json::json;

use super::*;

mod contrasts;
mod objectives;
mod reuse;

/// A store, and nodes run in it.
struct Bench {
    folder: tempfile::TempDir,
    store: Store,
    cancel: AtomicBool,
    /// Calls of the progress function after which the node is interrupted.
    patience: Option<usize>,
    /// Whether rows are computed whether they are remembered or not.
    afresh: bool,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("cache")).expect("a store");
        Self { folder, store, cancel: AtomicBool::new(false), patience: None, afresh: false }
    }

    fn rows(&self, rows: &[Value]) -> InputArtifact {
        let text: String = rows.iter().fold(String::new(), |text, row| text + &row.to_string() + "\n");
        let path = self.folder.path().join("rows");
        fs_err::write(&path, text).expect("writes");
        self.artifact(ArtifactType::Dataset, &[("rows.jsonl".to_owned(), path)].into())
    }

    fn artifact(&self, kind: ArtifactType, files: &BTreeMap<String, PathBuf>) -> InputArtifact {
        let id = self.store.put_artifact(kind.name(), files).expect("puts");
        let files = self.store.files(&id).expect("is there");
        InputArtifact { id, kind, files, skip: 0, take: None, calling: None }
    }

    /// Runs a node; its scratch stays for the next attempt at the same `name`.
    fn run(
        &self,
        name: &str,
        kind: &str,
        fields: Value,
        inputs: &[(&str, &InputArtifact)],
    ) -> Result<(InputArtifact, Map<String, Value>), NodeError> {
        let entry = find(kind).expect("a kind");
        let key = Digest::of(name.as_bytes());
        let scratch = self.store.partial_dir(&key).expect("made");
        let staging = self.store.staging_dir(&key).expect("made");
        let calls = AtomicUsize::new(0);
        let mut progress = |_: Progress| {
            if self.patience == Some(calls.fetch_add(1, Ordering::Relaxed) + 1) {
                self.cancel.store(true, Ordering::Relaxed);
            }
        };
        self.cancel.store(false, Ordering::Relaxed);
        let inputs = inputs.iter().map(|(path, input)| ((*path).to_owned(), (*input).clone())).collect();
        let mut cx = Cx {
            store: &self.store,
            inputs,
            node: name.to_owned(),
            key,
            scratch,
            staging,
            device: "cpu".to_owned(),
            threads: 1,
            micro_batch: Some(8),
            activation_checkpointing: None,
            afresh: self.afresh,
            part: Part::Whole,
            ranked: false,
            team: None,
            progress: &mut progress,
            shelf: std::sync::Arc::default(),
            purse: std::sync::Arc::default(),
            cancel: &self.cancel,
        };
        let fields = fields_with_references(fields, &cx.inputs);
        let outputs = entry.run(&fields, &mut cx)?;
        let made: ArtifactType = match kind {
            "constitutions" | "probe" => ArtifactType::Constitutions,
            "generate" => ArtifactType::Responses,
            "score" => ArtifactType::Scores,
            "evaluate" => ArtifactType::Evaluation,
            _ => ArtifactType::Model,
        };
        Ok((self.artifact(made, &outputs.files), outputs.metrics))
    }
}

/// Fills in a name for each input: what it names does not matter here.
fn fields_with_references(mut fields: Value, inputs: &BTreeMap<String, InputArtifact>) -> Value {
    for path in inputs.keys() {
        let mut place = &mut fields;
        for part in path.split('.') {
            place = &mut place[part];
        }
        if place.is_null() {
            *place = json!("x");
        }
    }
    fields
}

const PROMPT: &str = "rules : {{ constitution }} q : {{ query }} a :";

/// Inputs of the whole method: documents, queries, a blank model and constitutions.
struct World {
    documents: InputArtifact,
    queries: InputArtifact,
    model: InputArtifact,
    constitutions: InputArtifact,
}

fn world(bench: &Bench) -> World {
    let things = ["apple", "pear", "saw", "cat"];
    let documents: Vec<Value> = (0..64)
        .map(|n| {
            let (rule, answer) = [("be brief .", "yes ."), ("be long .", "well yes it is so .")][n % 2];
            let text = format!("rules : {rule} q : is it a {} a : {answer}", things[n / 2 % 4]);
            json!({"id": n.to_string(), "text": text})
        })
        .collect();
    let documents = bench.rows(&documents);
    let queries: Vec<Value> = things
        .iter()
        .enumerate()
        .map(|(n, thing)| json!({"id": n.to_string(), "query": format!("is it a {thing}")}))
        .collect();
    let queries = bench.rows(&queries);
    let fields = json!({"hidden_size": 16, "layers": 1, "heads": 2, "max_positions": 64, "tokenizer": {}});
    let (blank, metrics) =
        bench.run("blank", "init", fields, &[("tokenizer.from", &documents)]).expect("makes a model");
    assert!(metrics["parameters"].as_u64().expect("a number") > 1000);
    let fields = json!({"objective": "lm", "steps": 60, "batch_queries": 16, "optimizer": {"lr": 0.03}});
    let (model, metrics) =
        bench.run("base", "finetune", fields, &[("model", &blank), ("examples", &documents)]).expect("trains");
    assert!(metrics["loss"].as_f64().expect("a number") < 1.0, "{metrics:?}");
    let fields = json!({"contrast": "complement", "format": "plain",
        "principles": {"brief": {"definition": "be brief .", "antithesis": "be long ."}}});
    let (constitutions, _) = bench.run("constitutions", "constitutions", fields, &[]).expect("draws");
    World { documents, queries, model, constitutions }
}

fn generate(
    bench: &Bench,
    world: &World,
    queries: &InputArtifact,
) -> Result<(InputArtifact, Map<String, Value>), NodeError> {
    let fields =
        json!({"prompt": PROMPT, "max_new_tokens": 12, "temperature": 1.0, "samples": 4, "keep": {"distinct": false}});
    let inputs = [("model", &world.model), ("queries", queries), ("constitutions", &world.constitutions)];
    bench.run("generate", "generate", fields, &inputs)
}

#[test]
fn the_whole_method_runs_and_its_rows_are_reused() {
    let bench = Bench::new();
    let world = world(&bench);
    let few = InputArtifact { take: Some(3), ..world.queries.clone() };
    let (_, first) = generate(&bench, &world, &few).expect("generates");
    assert_eq!((&first["rows"], &first["rows_reused"]), (&json!(12), &json!(0)));
    let (responses, all) = generate(&bench, &world, &world.queries).expect("generates");
    assert_eq!((&all["rows"], &all["rows_reused"]), (&json!(16), &json!(12)));
    let again = generate(&bench, &world, &world.queries).expect("generates");
    assert_eq!((again.0.id, &again.1["rows_reused"]), (responses.id, &json!(16)));

    let fields = json!({"prompt": PROMPT, "score_eos": true});
    let inputs = [("model", &world.model), ("responses", &responses), ("reference", &world.model)];
    let (scores, metrics) = bench.run("score", "score", fields, &inputs).expect("scores");
    let figure = |name: &str| metrics[name].as_f64().expect("a number");
    assert!((figure("bound_ceiling") - 2f64.ln()).abs() < 1e-12 && figure("bound") <= figure("bound_ceiling"));
    assert!(figure("bound") > 0.1, "this base model follows its rule: {metrics:?}");
    assert_eq!(figure("kl"), 0.0, "a model does not differ from itself");

    let fields = json!({"objective": "sami", "steps": 4, "batch_queries": 8, "optimizer": {"lr": 0.003}, "kl_weight": 0.1, "score_eos": true});
    let inputs = [("model", &world.model), ("examples", &scores)];
    let (tuned, metrics) = bench.run("finetune", "finetune", fields, &inputs).expect("trains");
    for name in
        ["loss", "bound", "bound_ceiling", "gap", "accuracy_row", "accuracy_column", "kl", "mean_length", "steps"]
    {
        assert!(metrics[name].is_number(), "{name} is missing: {metrics:?}");
    }
    assert!(tuned.files.contains_key("tokenizer.json") && tuned.files.contains_key("train.jsonl"));
    let lines = fs_err::read_to_string(tuned.file("train.jsonl").expect("is there")).expect("reads");
    assert_eq!(lines.lines().count(), 4);

    let rules = json!({"principles": {"brief": {"definition": {"max_words": 1}, "antithesis": {"min_words": 3}}}});
    let fields = json!({"candidates": {}, "against": "base", "prompt": PROMPT, "max_new_tokens": 12, "temperature": 1.0,
        "compare": "all", "rules": rules});
    let inputs = [
        ("candidates.base", &world.model),
        ("candidates.tuned", &tuned),
        ("candidates.twin", &world.model),
        ("queries", &world.queries),
        ("constitutions", &world.constitutions),
    ];
    let (evaluation, metrics) = bench.run("evaluate", "evaluate", fields, &inputs).expect("evaluates");
    assert_eq!(metrics["win_rate.twin"], json!(0.5), "equal models answer alike");
    assert_eq!(metrics["kl.twin"], json!(0.0));
    assert_eq!(metrics["adherence.twin"], metrics["adherence.base"]);
    assert!(metrics["win_rate_low.tuned"].as_f64() <= metrics["win_rate.tuned"].as_f64());
    assert!(metrics["kl.tuned"].as_f64().expect("a number") > 0.0);
    assert!(!metrics.contains_key("win_rate"), "with two rivals it would be unclear whose it is");
    assert_eq!(rows::read(evaluation.file("rows.jsonl").expect("is there")).expect("reads").len(), 4);
    assert!(!world.documents.files.is_empty());
}

#[test]
fn candidates_begin_as_they_are_made_to_and_are_judged_by_what_follows_their_reasoning() {
    let bench = Bench::new();
    let world = world(&bench);
    let inputs =
        [("candidates.base", &world.model), ("queries", &world.queries), ("constitutions", &world.constitutions)];
    let evaluate = |shape: Value| {
        let rules = json!({"principles": {"brief": {"definition": {"max_words": 1}, "antithesis": {"min_words": 3}}}});
        let mut fields =
            json!({"candidates": {}, "against": "base", "prompt": PROMPT, "max_new_tokens": 12, "rules": rules});
        fields.as_object_mut().expect("an object").extend(shape.as_object().cloned().expect("an object"));
        let (evaluation, metrics) = bench.run("evaluate", "evaluate", fields, &inputs).expect("evaluates");
        let rows = rows::read(evaluation.file("rows.jsonl").expect("is there")).expect("reads");
        let said = |row: &rows::Row| row["candidates"]["base"]["responses"][0]["text"].as_str().map(str::to_owned);
        (rows.iter().map(|row| said(row).expect("a text")).collect::<Vec<String>>(), metrics)
    };
    let (begun, _) = evaluate(json!({"prefix": " well yes"}));
    assert!(begun.iter().all(|text| text.starts_with("well yes")), "{begun:?}");
    let (after, metrics) = evaluate(json!({"prefix": " well yes", "after": "well", "until": ["."]}));
    assert!(after.iter().all(|text| text.starts_with("yes") && !text.contains('.')), "{after:?}");
    let words: usize = after.iter().map(|text| text.split_whitespace().count()).sum();
    assert_eq!(metrics["mean_length.base"], json!(words as f64 / after.len() as f64), "the response's tokens alone");
    let (none, _) = evaluate(json!({"after": "Summary:"}));
    assert!(none.iter().all(String::is_empty), "{none:?}");
}

#[test]
fn examples_of_several_nodes_are_mixed() {
    let bench = Bench::new();
    let world = world(&bench);
    let (responses, _) = generate(&bench, &world, &world.queries).expect("generates");
    let inputs = [("model", &world.model), ("responses", &responses)];
    let (scores, _) = bench.run("score", "score", json!({"prompt": PROMPT}), &inputs).expect("scores");
    let few = InputArtifact { take: Some(2), ..scores.clone() };
    let train = |examples: Value, inputs: &[(&str, &InputArtifact)]| {
        let fields = json!({"objective": "sami", "epochs": 1.0, "batch_queries": 2, "optimizer": {"lr": 0.003}, "examples": examples});
        bench.run("finetune", "finetune", fields, inputs).map(|(_, metrics)| metrics["steps"].clone())
    };
    let model = ("model", &world.model);
    let steps = train(json!("x"), &[model, ("examples", &scores)]).expect("trains");
    assert_eq!(steps, 8, "sixteen rows, two a step");
    let both = [model, ("examples.all", &scores), ("examples.few", &few)];
    assert_eq!(train(json!({"all": "x", "few": "x"}), &both).expect("trains"), 9);
}

#[test]
fn interrupted_nodes_go_on_where_they_were() {
    let undisturbed = Bench::new();
    let there = world(&undisturbed);
    let (whole, _) = generate(&undisturbed, &there, &there.queries).expect("generates");

    let mut bench = Bench::new();
    let here = world(&bench);
    assert_eq!(here.model.id, there.model.id, "the same seeds make the same model");
    // The first report is of what is known already; each other follows eight responses, those under one constitution first.
    bench.patience = Some(4);
    assert!(matches!(generate(&bench, &here, &here.queries), Err(NodeError::Interrupted)));
    bench.patience = None;
    let (resumed, metrics) = generate(&bench, &here, &here.queries).expect("generates");
    assert_eq!(resumed.id, whole.id);
    assert!(metrics["rows_reused"].as_u64().expect("a number") > 0);

    let train = |bench: &Bench, name: &str| {
        let fields = json!({"objective": "lm", "steps": 7, "batch_queries": 16, "optimizer": {"lr": 0.01}, "checkpoint_every": 3});
        bench.run(name, "finetune", fields, &[("model", &here.model), ("examples", &here.documents)])
    };
    let (whole, _) = train(&bench, "undisturbed").expect("trains");
    for stop in 1..7 {
        bench.patience = Some(stop);
        assert!(matches!(train(&bench, "disturbed"), Err(NodeError::Interrupted)), "stopped after step {stop}");
        bench.patience = None;
        let (resumed, metrics) = train(&bench, "disturbed").expect("trains");
        assert_eq!((resumed.id, &metrics["steps"]), (whole.id, &json!(7)));
        bench.store.clear_partial(&Digest::of(b"disturbed")).expect("clears");
    }
}

#[test]
fn what_cannot_be_trained_on_is_named() {
    let bench = Bench::new();
    let world = world(&bench);
    let rows = bench.rows(&[json!({"id": "a", "text": "yes ."}), json!({"id": "b", "text": " "})]);
    let fields =
        json!({"objective": "sft", "prompt": "q :", "response": "{{ text }}", "steps": 1, "optimizer": {"lr": 0.1}});
    let error = bench.run("sft", "finetune", fields, &[("model", &world.model), ("examples", &rows)]);
    let error = error.expect_err("nothing to train on").to_string();
    assert!(error.contains("row `b`"), "{error}");
    let fields = json!({"prompt": PROMPT, "max_new_tokens": 4, "keep": {"forbid": [" ", "."]}});
    let inputs = [("model", &world.model), ("queries", &world.queries), ("constitutions", &world.constitutions)];
    let error = bench.run("generate", "generate", fields, &inputs).expect_err("all dropped").to_string();
    assert!(error.contains("no row is left of 4") && error.contains("dropped"), "{error}");
    let fields = json!({"prompt": format!("{}{PROMPT}", "be ".repeat(70)), "max_new_tokens": 4});
    let error = bench.run("long", "generate", fields, &inputs).expect_err("64 positions").to_string();
    assert!(error.contains("row `0`") && error.contains("\"be be be") && error.contains("the model has 64"), "{error}");
    let fields = json!({"prompt": format!("{}{PROMPT}", "be ".repeat(70)), "max_new_tokens": 4, "too_long": "cut",
        "keep": {"distinct": false, "min_tokens": 0}});
    bench.run("cut", "generate", fields, &inputs).expect("prompts may be cut");
}

#[test]
fn adapters_go_wherever_a_model_goes() {
    let bench = Bench::new();
    let world = world(&bench);
    let inputs = [("model", &world.model), ("examples", &world.documents)];
    let train = |name: &str, merge: bool| {
        let fields = json!({"objective": "lm", "steps": 12, "batch_queries": 16, "optimizer": {"lr": 0.02}, "merge": merge,
            "probe_every": 5, "lora": {"rank": 4, "targets": ["q_proj", "v_proj", "down_proj"]}});
        bench.run(name, "finetune", fields, &inputs).expect("trains")
    };
    let (merged, metrics) = train("merged", true);
    assert!(metrics["probe_kl"].as_f64().expect("a number") > 1e-4, "{metrics:?}");
    let (beside, _) = train("beside", false);
    for (made, folder) in [(&merged, "merged-adapter"), (&beside, "adapter")] {
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            assert!(made.files.contains_key(&format!("{folder}/{name}")), "{:?}", made.files.keys());
        }
    }
    let same = |made: &InputArtifact| made.files["model.safetensors"] == world.model.files["model.safetensors"];
    assert!(same(&beside) && !same(&merged), "the weights of the base lie in the store once");

    let generate = |model: &InputArtifact| {
        let fields = json!({"prompt": PROMPT, "max_new_tokens": 12, "samples": 2, "keep": {"distinct": false}});
        let inputs = [("model", model), ("queries", &world.queries), ("constitutions", &world.constitutions)];
        let (responses, _) = bench.run("generate", "generate", fields, &inputs).expect("generates");
        rows::read(responses.file("rows.jsonl").expect("is there")).expect("reads").len()
    };
    assert_eq!((generate(&merged), generate(&beside)), (8, 8));
    let further = |model: &InputArtifact| {
        let fields = json!({"objective": "lm", "steps": 1, "batch_queries": 64, "optimizer": {"lr": 1e-9}});
        let inputs = [("model", model), ("examples", &world.documents)];
        bench.run("further", "finetune", fields, &inputs).expect("trains").1["loss"].as_f64().expect("a number")
    };
    let (one, other, base) = (further(&merged), further(&beside), further(&world.model));
    assert!((one - other).abs() < 1e-5 && (one - base).abs() > 1e-5, "{one} {other} {base}");
}
