//! Forced beginnings, reasoning, filters, queries with markers; and whether a model tells principles apart.

use serde_json::json;

use super::*;

/// Responses of the world's model under fields on top of the usual ones.
fn generated(
    bench: &Bench,
    world: &World,
    queries: &InputArtifact,
    more: Value,
) -> Result<(Vec<rows::Row>, Map<String, Value>), NodeError> {
    let mut fields = json!({"prompt": PROMPT, "max_new_tokens": 12, "keep": {"distinct": false}});
    fields.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
    let inputs = [("model", &world.model), ("queries", queries), ("constitutions", &world.constitutions)];
    let (made, metrics) = bench.run("generate", "generate", fields, &inputs)?;
    Ok((rows::read(made.file("rows.jsonl").expect("is there")).expect("reads"), metrics))
}

fn responses(rows: &[rows::Row]) -> Vec<&Value> {
    rows.iter().flat_map(|row| row["responses"].as_array().expect("a list")).collect()
}

#[test]
fn a_forced_beginning_is_sampled_after_and_kept() {
    let bench = Bench::new();
    let world = world(&bench);
    let (rows, _) = generated(&bench, &world, &world.queries, json!({"prefix": " well"})).expect("generates");
    let texts: Vec<&str> = responses(&rows).iter().map(|one| one["text"].as_str().expect("a text")).collect();
    assert!(texts.iter().all(|text| text.starts_with("well")), "{texts:?}");
    assert!(texts.iter().any(|text| text.starts_with("well yes it is")), "the model goes on from it: {texts:?}");

    // What the model says before the marker is its reasoning.
    let reasoning = json!({"prefix": " well", "after": "yes", "until": [" so"]});
    let (rows, metrics) = generated(&bench, &world, &world.queries, reasoning).expect("generates");
    assert_eq!(metrics["dropped.after"].as_u64().expect("a number") + rows.len() as u64, 4);
    for response in responses(&rows) {
        let (text, raw) = (response["text"].as_str().expect("a text"), response["raw"].as_str().expect("a text"));
        assert!(raw.starts_with(" well") && raw.contains("yes") && !text.contains("yes"), "{raw} -> {text}");
        assert!(!text.contains("so") && (response["finish"] == "stop" || !raw.contains("so")), "{response}");
    }
    let error = generated(&bench, &world, &world.queries, json!({"after": "Summary:"})).expect_err("none says that");
    let NodeError::Failed { what, help } = error else { panic!("{error}") };
    assert_eq!(what, "no row is left of 4: `after` dropped 4");
    assert!(help.expect("help").contains("change `after`"));
}

#[test]
fn queries_with_markers_are_named_or_left_out() {
    let bench = Bench::new();
    let world = world(&bench);
    let query = |id: &str, text: &str| json!({"id": id, "query": text});
    let queries = bench.rows(&[
        query("0", "is it a cat"),
        query("1", "is it a saw q : is it"),
        query("2", "is it a pear"),
        query("3", "is it a pear"),
    ]);
    let told = json!({"stop": ["q :"]});
    let (rows, metrics) = generated(&bench, &world, &queries, told).expect("generates");
    assert_eq!((rows.len(), &metrics["marked"]), (4, &json!(1)), "{metrics:?}");
    let left_out = json!({"stop": ["q :"], "keep": {"distinct": false, "forbid_in_query": ["q :"]}});
    let (rows, metrics) = generated(&bench, &world, &queries, left_out).expect("generates");
    assert_eq!((rows.len(), &metrics["dropped.forbid_in_query"], &metrics["dropped"]), (3, &json!(1), &json!(1)));
    assert!(!metrics.contains_key("marked"));
    assert!(rows.iter().all(|row| row["id"] != "1"));
    let none = json!({"keep": {"forbid_in_query": ["is it"]}});
    let error = generated(&bench, &world, &queries, none).expect_err("all are left out").to_string();
    assert_eq!(error, "no row is left of 4: `forbid_in_query` dropped 4");
}

#[test]
fn a_probe_tells_which_principles_the_model_follows() {
    let bench = Bench::new();
    let world = world(&bench);
    // The model was trained on being brief or long; of the second principle it has never heard.
    let fields = json!({"contrast": "complement", "format": "plain", "principles": {
        "brief": {"definition": "be brief .", "antithesis": "be long ."},
        "kin": {"definition": "q : so .", "antithesis": "q : so so ."}}});
    let (constitutions, _) = bench.run("two", "constitutions", fields, &[]).expect("draws");
    let probe = |more: Value| {
        let mut fields = json!({"prompt": PROMPT, "max_new_tokens": 12, "samples": 6});
        fields.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
        let inputs = [("model", &world.model), ("queries", &world.queries), ("constitutions", &constitutions)];
        bench.run("probe", "probe", fields, &inputs)
    };
    let (made, metrics) = probe(json!({})).expect("probes");
    assert_eq!(made.id, constitutions.id, "what takes them from the probe has the same key");
    let figure = |name: &str| metrics[name].as_f64().unwrap_or_else(|| panic!("{name}: {metrics:?}"));
    assert!(figure("bound_low.brief") > 0.05, "{metrics:?}");
    assert!(figure("bound_low.kin") < 0.0 && figure("bound.kin") < figure("bound.brief"), "{metrics:?}");
    assert_eq!((&metrics["no_contrast"], &metrics["rows"]), (&json!(1), &json!(48)));
    assert!((figure("bound_ceiling") - 2f64.ln()).abs() < 1e-12);

    let error = probe(json!({"require": 0.05})).expect_err("one is not followed");
    let NodeError::Failed { what, help } = error else { panic!("{error}") };
    assert!(what.contains("`kin` (bound") && !what.contains("`brief`"), "{what}");
    assert!(help.expect("help").contains("`require`"));
    let (_, alone) = probe(json!({"require": 0.05, "principles": ["brief"]})).expect("this one is");
    assert_eq!((&alone["rows"], &alone["rows_reused"]), (&json!(24), &json!(24)));
    let error = probe(json!({"principles": ["brave"]})).expect_err("unknown").to_string();
    assert!(error.contains("no principle `brave`"), "{error}");
}

/// A model with weights writes what its few words allow: nothing that can be used, and the node says so.
#[test]
fn a_writer_that_cannot_write_is_told_of() {
    let bench = Bench::new();
    let world = world(&bench);
    let write = |prompt: &str| {
        let fields = json!({"principles": {"brief": {}}, "writer_prompt": prompt, "writer_attempts": 2,
            "writer_max_new_tokens": 12});
        bench.run("written", "constitutions", fields, &[("writer", &world.model)])
    };
    let NodeError::Failed { what, help } = write("q : is it a cat a :").expect_err("prose") else { panic!("failed") };
    assert!(what.contains("in 2 tries; of the last answer: there is no JSON object in it"), "{what}");
    assert!(help.expect("help").contains("`writer_prompt`"));
    let error = write(&"be ".repeat(80)).expect_err("too long").to_string();
    assert!(error.contains("row `principles, try 1`") && error.contains("the model has 64"), "{error}");
}
