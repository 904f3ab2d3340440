use serde_json::{Value, json};

use super::*;
use crate::endpoint::Price;
use crate::kinds::{NodeKind, constitutions::ConstitutionsKind, evaluate::Evaluate, finetune::Finetune};
use crate::kinds::{command::Command, generate::Generate, init::Init, score::Score};
use crate::pipeline::dataset::Row;

fn of<K: NodeKind>(fields: Value, inputs: &[(&'static str, Facts)]) -> Estimate {
    let kind: K = serde_json::from_value(fields).expect("fields");
    let run = RunFields::default();
    let inputs = inputs.iter().cloned().collect();
    kind.estimate(&Known { inputs, run: &run, place: Place::Cpu })
}

/// Ten queries of forty letters.
fn queries() -> Facts {
    let row = |n: usize| -> Row {
        json!({"id": n.to_string(), "query": "x".repeat(40)}).as_object().cloned().expect("an object")
    };
    Facts::of_rows(Amount::exactly(10), (0..10).map(row).collect())
}

/// Two constitutions a query, of two principles of 37 letters: `1. …\n2. …`, 81 letters.
fn principles() -> Facts {
    let texts = json!({"definition": "d".repeat(37), "antithesis": "a".repeat(37)});
    of::<ConstitutionsKind>(json!({"principles": {"one": texts, "two": texts}}), &[]).made
}

fn model() -> Facts {
    let fields = json!({"hidden_size": 64, "layers": 2, "heads": 4, "tokenizer": {"from": "texts", "vocab_size": 100}});
    of::<Init>(fields, &[]).made
}

fn responses() -> Facts {
    let fields = json!({"model": "m", "queries": "q", "constitutions": "c", "prompt": "{{ constitution }}{{ query }}xxx",
        "max_new_tokens": 50, "responses_per_constitution": 3, "temperature": 1.0});
    let estimate =
        of::<Generate>(fields, &[("model", model()), ("queries", queries()), ("constitutions", principles())]);
    assert_eq!(estimate.rows, Some(Amount::exactly(10)));
    // (81 + 40 + 3) / 4 letters of a prompt.
    assert_eq!(estimate.tokens_read, Some(Amount::about(10 * 2 * 3 * 31)));
    assert_eq!(estimate.tokens_written, Some(Amount::at_most(10 * 2 * 3 * 50)));
    // Keys and values of two layers of width 64, in f32, of 60 rows at once.
    assert_eq!(estimate.memory.expect("memory").cache, 60 * 81 * 2 * 2 * 64 * 4);
    assert!((estimate.cost, estimate.endpoint_calls, &estimate.unknown) == (None, None, &None));
    estimate.made
}

#[test]
fn rows_prompts_and_responses_multiply() {
    let facts = responses();
    assert_eq!((facts.rows, facts.response), (Some(Amount::at_most(10)), Some(Amount::at_most(50))));
    let fields = json!({"model": "m", "responses": "r", "prompt": "{{ constitution }}{{ query }}xxx"});
    let scores = of::<Score>(fields, &[("model", model()), ("responses", facts.clone())]);
    // Each of two prompts once, and the six responses after it.
    assert_eq!(scores.tokens_read, Some(Amount::about(10 * 2 * (31 + 6 * 50))));
    // What a node that ran said counts more.
    let metrics = json!({"rows": 7, "mean_length": 20.5}).as_object().cloned().expect("an object");
    let scored = scores.made.corrected(&metrics);
    let inputs = [("model", model()), ("examples", scored.clone())];
    let fields = json!({"model": "m", "examples": "e", "objective": "sami", "batch_queries": 4, "steps": 5, "optimizer": {"lr": 1e-3}});
    let trained = of::<Finetune>(fields.clone(), &inputs);
    assert_eq!((trained.rows, trained.steps), (Some(Amount::exactly(7)), Some(Amount::exactly(5))));
    assert_eq!(trained.tokens_trained, Some(Amount::about(5 * 4 * 2 * (31 + 6 * 21))));
    let parameters = model().config().expect("a form").parameters();
    assert_eq!(trained.disk, Some(Amount::at_most(4 * parameters)));
    assert_eq!(trained.memory.expect("memory").moments, 8 * parameters);
    assert!(trained.made.model.is_some() && trained.scratch.is_none());
    let mut long = fields;
    long["steps"] = json!(1000);
    long["kl_budget"] = json!(0.1);
    let long = of::<Finetune>(long, &inputs);
    assert_eq!((long.steps, long.scratch), (Some(Amount::at_most(1000)), Some(Amount::about(12 * parameters))));
    assert_eq!(long.memory.expect("memory").reference, 4 * parameters);
    let epochs = json!({"model": "m", "examples": "e", "objective": "lm", "text": "{{ query }}", "epochs": 3.0, "optimizer": {"lr": 1e-3}});
    let epochs = of::<Finetune>(epochs, &[("model", model()), ("examples", queries())]);
    // Thirty texts in batches of sixteen.
    assert_eq!((epochs.steps, epochs.tokens_trained), (Some(Amount::exactly(2)), Some(Amount::about(2 * 16 * 10))));
}

#[test]
fn a_judge_is_asked_in_both_orders() {
    let fields = json!({"candidates": {"base": "a", "sami": "b", "sft": "c"}, "against": "base", "queries": "q",
        "constitutions": "c", "prompt": "{{ query }}", "max_new_tokens": 30, "judge": "j", "judge_max_tokens": 10});
    let price = Price { input: 1000.0, output: 2000.0 };
    let inputs = |judge: Facts| {
        [
            ("candidates.base", model()),
            ("candidates.sami", model()),
            ("candidates.sft", model()),
            ("queries", queries()),
            ("constitutions", principles()),
            ("judge", judge),
        ]
    };
    let called = of::<Evaluate>(fields.clone(), &inputs(Facts::of_endpoint(Some(price))));
    assert_eq!(called.judge_calls, Some(Amount::at_most(2 * 10 * 2)));
    assert_eq!(called.endpoint_calls, called.judge_calls);
    let answers = 40.0 * 10.0 * 2000.0 / 1e6;
    assert!(called.cost.is_some_and(|cost| cost > answers && cost < 100.0 * answers), "{:?}", called.cost);
    assert_eq!(called.tokens_written, Some(Amount::at_most(3 * 10 * 2 * 30 + 40 * 10)));
    let local = of::<Evaluate>(fields, &inputs(model()));
    assert_eq!((local.judge_calls, local.endpoint_calls, local.cost), (called.judge_calls, None, None));
}

#[test]
fn what_is_not_known_says_why() {
    let fields = json!({"model": "m", "queries": "q", "constitutions": "c", "prompt": "{{ query }}"});
    let why = "until q is downloaded";
    let inputs = [("model", model()), ("queries", Facts::unknown(why)), ("constitutions", principles())];
    let estimate = of::<Generate>(fields.clone(), &inputs);
    assert_eq!(
        (estimate.unknown.as_deref(), estimate.made.unknown.as_deref(), estimate.rows),
        (Some(why), Some(why), None)
    );
    // A model whose form is not known still reads and writes as much.
    let why = "until m is downloaded";
    let inputs = [("model", Facts::unknown(why)), ("queries", queries()), ("constitutions", principles())];
    let estimate = of::<Generate>(fields, &inputs);
    assert_eq!((estimate.unknown.as_deref(), estimate.memory), (Some(why), None));
    assert_eq!(estimate.tokens_written, Some(Amount::at_most(10 * 2 * 256)));
    assert!(of::<Command>(json!({"program": "sh"}), &[]).made.are_none() && !queries().are_none());
    let writer = json!({"principles": {"one": {"definition": "Be brief.", "antithesis": "Be long."}}, "per_query": 4});
    assert_eq!(of::<ConstitutionsKind>(writer, &[]).made.principles.expect("principles").per_query, 4);
}
