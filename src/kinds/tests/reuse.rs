//! Every field of every row-wise kind, changed: what is computed again and what is remembered. A line for each change says
//! which; a field without a line fails the test.

use std::collections::BTreeMap;

use super::*;

/// What a change may do to what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It decides results: something is computed again.
    Matters,
    /// It decides none: every row is reused.
    Free,
}

use Change::{Free, Matters};

/// What changes did that was not expected.
#[derive(Default)]
struct Table {
    faults: Vec<String>,
}

/// Rows looked up and found so far, by what is computed.
fn uses(bench: &Bench) -> BTreeMap<String, (u64, u64)> {
    let mut uses = BTreeMap::new();
    for line in bench.store.rows_list().expect("lists") {
        let about = line.about.expect("says what it is");
        let sum: &mut (u64, u64) = uses.entry(about.what).or_default();
        *sum = (sum.0 + line.uses.asked, sum.1 + line.uses.reused);
    }
    uses
}

/// A node and the changes to it.
struct Case<'a> {
    bench: &'a Bench,
    kind: &'a str,
    fields: Value,
    inputs: Vec<(&'a str, &'a InputArtifact)>,
    table: &'a mut Table,
    seen: Vec<String>,
}

impl<'a> Case<'a> {
    fn new(
        bench: &'a Bench,
        table: &'a mut Table,
        kind: &'a str,
        fields: Value,
        inputs: &[(&'a str, &'a InputArtifact)],
    ) -> Self {
        let mut case = Self { bench, kind, fields, inputs: inputs.to_vec(), table, seen: Vec::new() };
        case.run(case.fields.clone(), case.inputs.clone());
        let counts = case.run(case.fields.clone(), case.inputs.clone());
        case.note("nothing", &counts, Free);
        case
    }

    /// Runs the node; what it looked up, and what was known. A writer that gives nothing of use has been asked all the same.
    fn run(&mut self, fields: Value, inputs: Vec<(&str, &InputArtifact)>) -> BTreeMap<String, (u64, u64)> {
        let before = uses(self.bench);
        let ran = self.bench.run("case", self.kind, fields, &inputs);
        if let Err(error) = ran.map_err(|error| error.to_string())
            && !error.contains("the writer gave no principles")
        {
            self.table.faults.push(format!("{}: {error}", self.kind));
        }
        let mut counts = uses(self.bench);
        for (what, sum) in &mut counts {
            let (asked, reused) = before.get(what).copied().unwrap_or_default();
            *sum = (sum.0 - asked, sum.1 - reused);
        }
        counts.retain(|_, sum| sum.0 > 0);
        counts
    }

    fn note(&mut self, what: &str, counts: &BTreeMap<String, (u64, u64)>, expected: Change) {
        let told: Vec<String> =
            counts.iter().map(|(what, (asked, reused))| format!("{what} {reused} of {asked}")).collect();
        let all = !counts.is_empty() && counts.values().all(|(asked, reused)| asked == reused);
        let line = format!("{}: {what}: {expected:?}, reused {}", self.kind, told.join(", "));
        if all != (expected == Free) {
            self.table.faults.push(line);
        }
    }

    /// Changes a field, with others that it needs.
    fn field(&mut self, name: &str, expected: Change, change: Value) {
        let mut fields = self.fields.clone();
        for (name, value) in change.as_object().expect("fields") {
            fields[name] = value.clone();
        }
        let counts = self.run(fields, self.inputs.clone());
        self.note(&format!("{name} {change}"), &counts, expected);
        self.seen.push(name.to_owned());
    }

    /// Gives another input.
    fn input(&mut self, path: &str, what: &str, expected: Change, input: &'a InputArtifact) {
        let mut inputs = self.inputs.clone();
        inputs.retain(|(other, _)| *other != path);
        inputs.push((path, input));
        let counts = self.run(self.fields.clone(), inputs);
        self.note(&format!("{path}, {what}"), &counts, expected);
        self.seen.push(path.split('.').next().unwrap_or(path).to_owned());
    }

    /// Asserts that every field of the kind was changed but for `others`, which decide nothing that is computed by rows.
    fn all_fields(self, others: &[&str]) {
        // The kind names its fields where it is given one that it does not have.
        let entry = find(self.kind).expect("a kind");
        let mut fields = self.fields.clone();
        fields["not-a-field"] = json!(1);
        for (path, _) in &self.inputs {
            fields = fields_with_references(fields, &[((*path).to_owned(), self.inputs[0].1.clone())].into());
        }
        let mut progress = |_: Progress| {};
        let mut cx = Cx {
            store: &self.bench.store,
            inputs: BTreeMap::new(),
            node: String::new(),
            key: Digest::of(b""),
            scratch: PathBuf::new(),
            staging: PathBuf::new(),
            device: "cpu".to_owned(),
            threads: 1,
            micro_batch: None,
            activation_checkpointing: None,
            afresh: false,
            part: Part::Whole,
            ranked: false,
            team: None,
            progress: &mut progress,
            shelf: std::sync::Arc::default(),
            purse: std::sync::Arc::default(),
            cancel: &self.bench.cancel,
        };
        let told = entry.run(&fields, &mut cx).expect_err("no such field").to_string();
        let (_, names) = told.split_once("expected one of ").expect("it names its fields");
        for name in names.split('`').skip(1).step_by(2) {
            let seen = self.seen.iter().any(|seen| seen == name) || others.contains(&name);
            assert!(seen, "nobody changed `{name}` of `{}`: {told}", self.kind);
        }
    }
}

/// The sampling fields that `generate`, `probe` and `evaluate` share.
fn sampling(case: &mut Case<'_>) {
    case.field("max_new_tokens", Matters, json!({"max_new_tokens": 5}));
    case.field("temperature", Matters, json!({"temperature": 0.5}));
    case.field("top_k", Matters, json!({"top_k": 7}));
    case.field("top_p", Matters, json!({"top_p": 0.75}));
    case.field("stop", Matters, json!({"stop": ["zz"]}));
    case.field("prefix", Matters, json!({"prefix": "well"}));
    case.field("seed", Matters, json!({"seed": 9}));
    case.field(
        "prompt",
        Matters,
        json!({"prompt": format!("so {}", case.fields["prompt"].as_str().unwrap_or_default())}),
    );
    case.field("too_long", Free, json!({"too_long": "cut"}));
}

/// The prompt of a kind, begun by a word of its own, so that no kind finds rows of another.
fn prompt(word: &str) -> String {
    format!("{word} {PROMPT}")
}

#[test]
fn what_decides_a_row_is_computed_again_and_nothing_else_is() {
    let bench = Bench::new();
    let world = world(&bench);
    let mut table = Table::default();

    // With a chat template, so that conversations can be had.
    let template = bench.folder.path().join("template");
    let turns = "{% for m in messages %}{{ m.content }} {% endfor %}a :";
    fs_err::write(&template, turns).expect("writes");
    let mut files = world.model.files.clone();
    files.insert("chat_template.jinja".to_owned(), template);
    let model = bench.artifact(ArtifactType::Model, &files);
    // Whose answers are others than those of the first.
    let fields = json!({"hidden_size": 16, "layers": 1, "heads": 2, "max_positions": 64, "seed": 7, "tokenizer": {}});
    let (other, _) =
        bench.run("other", "init", fields, &[("tokenizer.from", &world.documents)]).expect("makes a model");

    let query = |id: &str, query: &str, more: &str| json!({"id": id, "query": query, "more": more});
    let rows = [query("0", "is it a saw", "x"), query("1", "is it a cat", "x")];
    let queries = bench.rows(&rows);
    let asked_otherwise = bench.rows(&[rows[0].clone(), query("1", "is it a pear", "x")]);
    let called_otherwise = bench.rows(&[rows[0].clone(), query("2", "is it a cat", "x")]);
    let not_asked = bench.rows(&[rows[0].clone(), query("1", "is it a cat", "y")]);
    let grown = bench.rows(&[rows[0].clone(), rows[1].clone(), query("7", "is it a pear", "x")]);
    let turned = bench.rows(&[rows[1].clone(), rows[0].clone()]);
    let constitutions = |principles: Value, hold_out: f64| {
        let fields =
            json!({"contrast": "complement", "format": "plain", "principles": principles, "hold_out": hold_out});
        bench.run("drawn", "constitutions", fields, &[]).expect("draws").0
    };
    let brief = json!({"definition": "be brief .", "antithesis": "be long ."});
    let plain = constitutions(json!({"brief": brief}), 0.0);
    let renamed = constitutions(json!({"short": brief}), 0.0);
    let reworded = constitutions(json!({"brief": {"definition": "be brief !", "antithesis": "be long ."}}), 0.0);
    let two = json!({"brief": brief, "kind": {"definition": "be kind .", "antithesis": "be it ."}});
    let two = constitutions(two, 0.5);

    let fields = json!({"prompt": PROMPT, "max_new_tokens": 4, "temperature": 1.0, "keep": {"distinct": false, "min_tokens": 0}});
    let inputs = [("model", &model), ("queries", &queries), ("constitutions", &plain)];
    let mut case = Case::new(&bench, &mut table, "generate", fields.clone(), &inputs);
    sampling(&mut case);
    case.field("chat", Matters, json!({"chat": true}));
    case.field("system", Matters, json!({"chat": true, "system": "be brief ."}));
    case.field("samples", Matters, json!({"samples": 2}));
    case.field("responses_per_constitution", Matters, json!({"responses_per_constitution": 3}));
    case.field("combinations", Free, json!({"combinations": "all"}));
    case.field("cut", Free, json!({"cut": ["."]}));
    case.field("until", Free, json!({"until": ["."]}));
    case.field("after", Free, json!({"after": "yes", "keep": {"distinct": false, "min_tokens": 0}}));
    case.field("keep", Free, json!({"keep": {"distinct": false, "min_tokens": 1}}));
    case.input("model", "other weights", Matters, &other);
    case.input("queries", "another text", Matters, &asked_otherwise);
    case.input("queries", "another id", Matters, &called_otherwise);
    case.input("queries", "another field that is not asked", Free, &not_asked);
    case.input("queries", "one more row", Matters, &grown);
    case.input("queries", "another order", Free, &turned);
    case.input("constitutions", "another name", Free, &renamed);
    case.input("constitutions", "another text", Matters, &reworded);
    case.all_fields(&[]);
    let inputs = [("model", &model), ("queries", &queries), ("constitutions", &two)];
    let mut case = Case::new(&bench, &mut table, "generate", fields.clone(), &inputs);
    case.field("combinations", Matters, json!({"combinations": "held-out"}));
    let inputs = [("model", &model), ("queries", &queries), ("constitutions", &plain)];
    let (responses, _) = bench.run("responses", "generate", fields, &inputs).expect("generates");

    let fields = json!({"prompt": prompt("saw")});
    let inputs = [("model", &model), ("responses", &responses), ("reference", &other)];
    let mut case = Case::new(&bench, &mut table, "score", fields, &inputs);
    case.field("prompt", Matters, json!({"prompt": prompt("so saw")}));
    case.field("chat", Matters, json!({"chat": true}));
    case.field("system", Matters, json!({"chat": true, "system": "be brief ."}));
    case.field("score_eos", Matters, json!({"score_eos": true}));
    case.field("join", Matters, json!({"join": "none"}));
    case.field("too_long", Free, json!({"too_long": "cut"}));
    // Of one principle there is one order.
    case.field("shuffle_principles", Free, json!({"shuffle_principles": false}));
    case.field("seed", Free, json!({"seed": 9}));
    case.input("model", "other weights", Matters, &world.model);
    case.input("reference", "other weights", Matters, &world.model);
    let few = InputArtifact { take: Some(1), ..responses.clone() };
    case.input("responses", "fewer rows", Free, &few);
    case.all_fields(&[]);

    let fields = json!({"prompt": prompt("cat"), "max_new_tokens": 4, "temperature": 1.0});
    let inputs = [("model", &model), ("queries", &queries), ("constitutions", &plain)];
    let mut case = Case::new(&bench, &mut table, "probe", fields, &inputs);
    sampling(&mut case);
    case.field("chat", Matters, json!({"chat": true}));
    case.field("system", Matters, json!({"chat": true, "system": "be brief ."}));
    case.field("score_prompt", Matters, json!({"score_prompt": prompt("it")}));
    case.field("score_eos", Matters, json!({"score_eos": true}));
    case.field("join", Matters, json!({"join": "none"}));
    case.field("samples", Matters, json!({"samples": 2}));
    case.field("principles", Free, json!({"principles": ["brief"]}));
    case.field("require", Free, json!({"require": -10.0}));
    case.field("cut", Matters, json!({"cut": ["."]}));
    case.field("until", Matters, json!({"until": ["yes"]}));
    case.field("after", Matters, json!({"after": "yes"}));
    case.input("model", "other weights", Matters, &other);
    case.input("queries", "another text", Matters, &asked_otherwise);
    case.input("queries", "another order", Free, &turned);
    case.input("constitutions", "another text", Matters, &reworded);
    case.all_fields(&[]);

    let fields = json!({"prompt": prompt("pear"), "max_new_tokens": 4, "temperature": 1.0, "against": "base", "candidates": {},
        "judge_prompt": "q : {{ query }} a : {{ a }} {{ b }} : {{ constitution }}", "judge_labels": ["yes", "well"]});
    let inputs = [
        ("candidates.base", &model),
        ("candidates.new", &other),
        ("queries", &queries),
        ("constitutions", &plain),
        ("judge", &model),
    ];
    let mut case = Case::new(&bench, &mut table, "evaluate", fields, &inputs);
    sampling(&mut case);
    case.field("score_prompt", Matters, json!({"score_prompt": prompt("is")}));
    case.field("score_eos", Matters, json!({"score_eos": true}));
    case.field("join", Matters, json!({"join": "none"}));
    case.field("until", Matters, json!({"until": ["yes"]}));
    case.field("after", Matters, json!({"after": "yes"}));
    case.field("chat", Matters, json!({"chat": ["base"]}));
    case.field("chat_prompt", Matters, json!({"chat": ["base"], "chat_prompt": "{{ query }}"}));
    case.field("system", Matters, json!({"chat": ["base"], "system": "be brief ."}));
    case.field("judge_prompt", Matters, json!({"judge_prompt": "a : {{ a }} {{ b }} : {{ constitution }}"}));
    case.field("judge_system", Matters, json!({"judge_system": "be brief ."}));
    case.field("judge_labels", Matters, json!({"judge_labels": ["yes", "long"]}));
    case.field("judge_by", Matters, json!({"judge_by": "words", "judge_max_tokens": 3, "judge_retries": 0}));
    case.field("judge_max_tokens", Matters, json!({"judge_by": "words", "judge_max_tokens": 4, "judge_retries": 0}));
    case.field(
        "judge_retries",
        Free,
        json!({"judge_by": "words", "judge_max_tokens": 4, "judge_retries": 0, "ties": "half"}),
    );
    case.field("judge_orders", Free, json!({"judge_orders": "one"}));
    case.field("compare", Matters, json!({"compare": "all"}));
    case.field("ties", Free, json!({"ties": "loss"}));
    case.field("combinations", Free, json!({"combinations": "train"}));
    case.field("against", Matters, json!({"against": "new"}));
    case.input("candidates.new", "other weights", Matters, &world.model);
    case.input("judge", "other weights", Matters, &other);
    case.input("queries", "another text", Matters, &asked_otherwise);
    case.input("queries", "another field that is not asked", Free, &not_asked);
    case.input("constitutions", "another name", Free, &renamed);
    case.input("constitutions", "another text", Matters, &reworded);
    case.all_fields(&["rules"]);

    let fields = json!({"principles": ["brief"], "writer_prompt": "rules : {{ task }} q :", "task": "saw", "writer_attempts": 1,
        "writer_max_new_tokens": 3, "writer_temperature": 1.0});
    let mut case = Case::new(&bench, &mut table, "constitutions", fields, &[("writer", &model)]);
    case.field("writer_prompt", Matters, json!({"writer_prompt": "rule : {{ task }} q :"}));
    case.field("writer_system", Matters, json!({"writer_system": "be brief ."}));
    case.field("writer_max_new_tokens", Matters, json!({"writer_max_new_tokens": 4}));
    case.field("writer_temperature", Matters, json!({"writer_temperature": 0.5}));
    case.field("task", Matters, json!({"task": "cat"}));
    case.field("seed", Matters, json!({"seed": 9}));
    case.field("per_query", Free, json!({"per_query": 2}));
    case.field("format", Free, json!({"format": "plain"}));
    case.field("contrast", Free, json!({"contrast": "complement"}));
    case.input("writer", "other weights", Matters, &other);
    // Principles are what is asked for, as far as the prompt says them; the others come after the answer.
    case.all_fields(&["writer_attempts", "principles", "principles_per_constitution", "hold_out", "must_flip"]);

    assert!(table.faults.is_empty(), "not as expected:\n{}", table.faults.join("\n"));
}

#[test]
fn an_audit_neither_reads_nor_writes_the_memo() {
    let mut bench = Bench::new();
    let world = world(&bench);
    let (remembered, _) = generate(&bench, &world, &world.queries).expect("generates");
    let before = uses(&bench);
    bench.afresh = true;
    let (computed, metrics) = generate(&bench, &world, &world.queries).expect("generates");
    assert_eq!((computed.id, &metrics["rows_asked"], &metrics["rows_reused"]), (remembered.id, &json!(16), &json!(0)));
    assert_eq!(uses(&bench), before);
}

#[test]
fn rows_of_the_base_count_as_reused_when_another_model_is_new() {
    let bench = Bench::new();
    let world = world(&bench);
    let fields = json!({"objective": "lm", "steps": 2, "batch_queries": 16, "optimizer": {"lr": 0.01}});
    let inputs = [("model", &world.model), ("examples", &world.documents)];
    let (other, _) = bench.run("other", "finetune", fields, &inputs).expect("trains");
    let evaluate = |candidates: &[(&'static str, &InputArtifact)]| {
        let fields = json!({"prompt": PROMPT, "max_new_tokens": 4, "against": "base", "candidates": {},
            "rules": {"principles": {"brief": {"definition": {"max_words": 1}, "antithesis": {"min_words": 3}}}}});
        let inputs = [candidates, &[("queries", &world.queries), ("constitutions", &world.constitutions)]].concat();
        let (_, metrics) = bench.run("evaluate", "evaluate", fields, &inputs).expect("evaluates");
        (metrics["rows"].clone(), metrics["rows_asked"].clone(), metrics["rows_reused"].clone())
    };
    let base = ("candidates.base", &world.model);
    let twin = ("candidates.twin", &world.model);
    assert_eq!(evaluate(&[base, twin]), (json!(4), json!(8), json!(4)), "the twin says what the base said");
    assert_eq!(evaluate(&[base, ("candidates.new", &other)]), (json!(4), json!(8), json!(4)));
}
