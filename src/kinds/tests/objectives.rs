//! The objectives on the same scored responses, one or several to a constitution.

use super::*;

/// Scored responses, `each` to a constitution.
fn scored(bench: &Bench, world: &World, each: u64, extra: &Value) -> (InputArtifact, InputArtifact) {
    let mut fields =
        json!({"prompt": PROMPT, "max_new_tokens": 12, "temperature": 1.0, "samples": 3, "keep": {"distinct": false}});
    fields["responses_per_constitution"] = json!(each);
    let inputs = [("model", &world.model), ("queries", &world.queries), ("constitutions", &world.constitutions)];
    let (responses, metrics) = bench.run("generate", "generate", fields, &inputs).expect("generates");
    assert_eq!(metrics["rows"], json!(12));
    let mut fields = json!({"prompt": PROMPT, "score_eos": true});
    fields.as_object_mut().expect("a table").extend(extra.as_object().cloned().expect("a table"));
    let inputs = [("model", &world.model), ("responses", &responses)];
    let (scores, metrics) = bench.run("score", "score", fields, &inputs).expect("scores");
    assert!(metrics["bound"].as_f64() <= metrics["bound_ceiling"].as_f64(), "{metrics:?}");
    (responses, scores)
}

fn train(bench: &Bench, world: &World, examples: &InputArtifact, extra: Value) -> (InputArtifact, Map<String, Value>) {
    let mut fields = json!({"steps": 8, "batch_queries": 6, "optimizer": {"lr": 0.003}, "score_eos": true});
    fields.as_object_mut().expect("a table").extend(extra.as_object().cloned().expect("a table"));
    let mut inputs = vec![("model", &world.model), ("examples", examples)];
    if extra.get("reference").is_some() {
        inputs.push(("reference", &world.model));
    }
    bench.run("finetune", "finetune", fields, &inputs).expect("trains")
}

fn read(rows: &InputArtifact) -> Vec<rows::Row> {
    rows::read(rows.file("rows.jsonl").expect("is there")).expect("reads")
}

fn steps(model: &InputArtifact) -> Vec<Value> {
    let lines = fs_err::read_to_string(model.file("train.jsonl").expect("is there")).expect("reads");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn sami_sft_and_dpo_train_on_the_same_responses() {
    let bench = Bench::new();
    let world = world(&bench);
    let (_, scores) = scored(&bench, &world, 1, &json!({}));

    let (both, metrics) = train(&bench, &world, &scores, json!({"objective": "dpo", "probe_every": 4}));
    for name in ["loss", "reward_margin", "reward_chosen", "accuracy", "bound", "bound_ceiling", "probe_kl"] {
        assert!(metrics[name].is_number(), "{name} is missing: {metrics:?}");
    }
    let lines = steps(&both);
    assert_eq!((&lines[0]["reward_margin"], &lines[0]["loss"]), (&json!(0.0), &json!(2f64.ln())));
    assert!(lines[7]["reward_margin"].as_f64() > Some(0.0), "{}", lines[7]);
    // The model itself is the reference that it has without one.
    let extra = json!({"objective": "dpo", "probe_every": 4, "reference": null});
    assert_eq!(train(&bench, &world, &scores, extra).0.id, both.id);

    let (first, metrics) = train(&bench, &world, &scores, json!({"objective": "dpo", "directions": "first"}));
    assert!(first.id != both.id && !metrics.contains_key("bound"), "a row has no columns to compare: {metrics:?}");
    let half = steps(&first)[0]["tokens"].as_u64().expect("a number");
    assert!(half < lines[0]["tokens"].as_u64().expect("a number"));

    let (all, _) = train(&bench, &world, &scores, json!({"objective": "sft", "epochs": 1.0, "steps": null}));
    let (own, _) =
        train(&bench, &world, &scores, json!({"objective": "sft", "responses": "first", "epochs": 1.0, "steps": null}));
    assert_eq!(
        (steps(&all).len(), steps(&own).len()),
        (4, 2),
        "24 responses, and 12 of them to the first constitution"
    );

    // What the scores say as a dataset: the same preferences, the same model.
    let rows: Vec<Value> = read(&scores)
        .into_iter()
        .map(|row| json!({"id": row["id"], "q": row["prompts"][0], "a": row["responses"][0]["text"], "b": row["responses"][1]["text"]}))
        .collect();
    let dataset = bench.rows(&rows);
    let templates = json!({"objective": "dpo", "prompt": "{{ q }}", "chosen": "{{ a }}", "rejected": "{{ b }}"});
    let (of_dataset, _) = train(&bench, &world, &dataset, templates);
    let finished = |row: &rows::Row| (0..2).all(|at| row["responses"][at]["finish"] == "eos");
    assert!(read(&scores).iter().all(finished), "or the two would not be scored alike");
    assert_eq!(of_dataset.id, first.id);
    let error = bench.run(
        "none",
        "finetune",
        json!({"objective": "dpo", "steps": 1, "optimizer": {"lr": 0.1}}),
        &[("model", &world.model), ("examples", &dataset)],
    );
    let error = error.expect_err("nothing says what is preferred").to_string();
    assert!(error.contains("no prompts and responses of its own"), "{error}");
}

#[test]
fn several_responses_to_a_constitution_are_scored_and_trained_on() {
    let bench = Bench::new();
    let world = world(&bench);
    let (one, _) = scored(&bench, &world, 1, &json!({}));
    let (several, scores) = scored(&bench, &world, 3, &json!({}));
    for (one, row) in read(&one).iter().zip(read(&several)) {
        let of = |row: &rows::Row| row["responses"].as_array().expect("a list").clone();
        let (one, several) = (of(one), of(&row));
        assert_eq!(several.len(), 6);
        assert_eq!((&one[0], &one[1]), (&several[0], &several[3]), "the first of each is what it would be alone");
    }
    for row in read(&scores) {
        let matrix = row["logprobs"].as_array().expect("rows");
        assert!(matrix.len() == 2 && matrix.iter().all(|row| row.as_array().is_some_and(|row| row.len() == 6)));
        assert_eq!(row["lengths"].as_array().map(Vec::len), Some(6));
    }
    let (_, metrics) = train(&bench, &world, &scores, json!({"objective": "sami", "kl_weight": 0.1}));
    assert!(metrics["bound"].as_f64() <= metrics["bound_ceiling"].as_f64(), "{metrics:?}");
    assert_eq!(metrics["bound_ceiling"], json!(2f64.ln()));
    let (first, _) = train(&bench, &world, &scores, json!({"objective": "sft", "responses": "first"}));
    let (all, _) = train(&bench, &world, &scores, json!({"objective": "sft"}));
    assert_ne!(first.id, all.id);
    for directions in ["both", "first"] {
        let (model, _) = train(&bench, &world, &scores, json!({"objective": "dpo", "directions": directions}));
        assert_eq!(steps(&model)[0]["loss"], json!(2f64.ln()));
    }
}

#[test]
fn prompts_and_responses_are_joined_in_training_as_they_were_scored() {
    let bench = Bench::new();
    let world = world(&bench);
    let (_, apart) = scored(&bench, &world, 1, &json!({}));
    let (_, together) = scored(&bench, &world, 1, &json!({"join": "none"}));
    let (with, without) = (&read(&apart)[0], &read(&together)[0]);
    assert!(with.get("prompts_join").is_none() && without["prompts_join"] == "none");
    assert_ne!(with["logprobs"], without["logprobs"]);
    let loss = |scores: &InputArtifact| {
        let (model, _) = train(
            &bench,
            &world,
            scores,
            json!({"objective": "sami", "length_norm": "sum", "steps": 1, "batch_queries": 12}),
        );
        steps(&model)[0]["loss"].as_f64().expect("a number")
    };
    // The loss of the first step is that of the scores.
    let of_scores = |scores: &InputArtifact| {
        let matrices: Vec<Vec<Vec<f64>>> =
            read(scores).iter().map(|row| serde_json::from_value(row["logprobs"].clone()).expect("numbers")).collect();
        let losses = matrices.iter().map(|matrix| {
            let figures = crate::lm::loss::Contrast::of_sums(&matrix.concat()).expect("sound");
            f64::midpoint(figures.loss_row, figures.loss_column)
        });
        losses.sum::<f64>() / matrices.len() as f64
    };
    for scores in [&apart, &together] {
        let (found, wanted) = (loss(scores), of_scores(scores));
        assert!((found - wanted).abs() < 1e-9, "{found} is not {wanted}");
    }
}
