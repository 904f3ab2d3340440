use super::*;

fn problems(extra: &str) -> Vec<String> {
    let text = format!(r#"{{"model": "m", "examples": "s", "optimizer": {{"lr": 1e-3}}, {extra}}}"#);
    let kind: Finetune = serde_json::from_str(&text).expect("reads");
    kind.validate().into_iter().map(|problem| problem.path).collect()
}

#[test]
fn fields_that_exclude_each_other_are_found() {
    assert!(problems(r#""objective": "sami", "steps": 3"#).is_empty());
    assert_eq!(problems(r#""objective": "sami""#), ["steps"]);
    assert_eq!(problems(r#""objective": "sami", "steps": 3, "epochs": 1.0"#), ["steps"]);
    assert_eq!(problems(r#""objective": "sami", "steps": 3, "text": "{{ x }}""#), ["text"]);
    assert_eq!(problems(r#""objective": "sft", "steps": 3, "prompt": "{{ x }}""#), ["prompt"]);
    assert_eq!(problems(r#""objective": "lm", "steps": 3, "text": "{{ x""#), ["text"]);
    assert_eq!(
        problems(r#""objective": "lm", "steps": 3, "prompt": "{{ x }}", "response": "y""#),
        ["prompt", "response"]
    );
    assert_eq!(problems(r#""objective": "sami", "steps": 3, "reference": "b""#), ["reference"]);
    assert!(problems(r#""objective": "sami", "steps": 3, "reference": "b", "probe_every": 2"#).is_empty());
    assert_eq!(problems(r#""objective": "sami", "steps": 3, "probe_every": 0"#), ["probe_every"]);
    assert_eq!(problems(r#""objective": "sami", "steps": 3, "merge": false"#), ["merge"]);
    assert!(problems(r#""objective": "sami", "steps": 3, "merge": false, "lora": {}"#).is_empty());
    let lora = r#""objective": "sami", "steps": 3, "lora": {"rank": 0, "alpha": 0, "dropout": 1, "targets": []}"#;
    assert_eq!(problems(lora), ["lora.rank", "lora.alpha", "lora.dropout", "lora.targets"]);
    assert!(problems(r#""objective": "sami", "steps": 3, "lora": {"targets": "all-linear"}"#).is_empty());
    let lora = r#""objective": "sami", "steps": 3, "lora": {"targets": ["q_pro", "v_proj"]}"#;
    assert_eq!(problems(lora), ["lora.targets"]);
}

#[test]
fn fields_of_one_objective_are_told_from_others() {
    let templates = r#""prompt": "{{ q }}", "chosen": "{{ a }}", "rejected": "{{ b }}""#;
    let dpo = |extra: &str| problems(&format!(r#""objective": "dpo", "steps": 3{extra}"#));
    assert!(dpo("").is_empty());
    assert!(dpo(r#", "reference": "b", "beta": 0.2, "label_smoothing": 0.1, "directions": "first""#).is_empty());
    assert!(dpo(&format!(r#", "join": "none", {templates}"#)).is_empty());
    assert_eq!(dpo(&format!(r#", "directions": "both", {templates}"#)), ["directions"]);
    assert_eq!(dpo(r#", "chosen": "{{ a }}""#), ["prompt"]);
    assert_eq!(dpo(r#", "beta": 0.0, "label_smoothing": 0.5, "sides": "row""#), ["sides", "beta", "label_smoothing"]);
    let sami = |extra: &str| problems(&format!(r#""objective": "sami", "steps": 3, {extra}"#));
    assert_eq!(sami(r#""beta": 0.1, "directions": "both", "responses": "first""#), ["beta", "directions", "responses"]);
    assert_eq!(sami(r#""join": "none""#), ["join"]);
    assert_eq!(sami(r#""kl_over": "diagonal""#), ["kl_over"]);
    assert!(sami(r#""kl_over": "diagonal", "kl_weight": 0.1"#).is_empty());
    let authors = r#""schedule": "authors-2024", "accumulation": {"parts": 16, "kept": "last"}"#;
    assert!(sami(&format!(r#"{authors}, "batch_queries": 128, "weights": "bf16""#)).is_empty());
    assert_eq!(sami(&format!(r#"{authors}, "batch_queries": 100"#)), ["accumulation.parts"]);
    assert_eq!(sami(r#""weights": "bf16", "lora": {}"#), ["weights"]);
    assert_eq!(sami(r#""schedule": {"from_zero": true, "span": 0}"#), ["schedule.span", "schedule.from_zero"]);
    assert!(problems(r#""objective": "sft", "steps": 3, "responses": "first""#).is_empty());
    assert_eq!(
        problems(r#""objective": "sft", "steps": 3, "responses": "first", "prompt": "p", "response": "r""#),
        ["responses"]
    );
}

#[test]
fn newer_fields_stand_in_no_key_unless_they_are_used() {
    let fields = |extra: &str| {
        let text = format!(r#"{{"model": "m", "examples": "s", "optimizer": {{"lr": 1e-3}}, "steps": 2, {extra}}}"#);
        serde_json::from_str::<Finetune>(&text).expect("reads").fields()
    };
    let old = fields(r#""objective": "sami""#);
    let newer = [
        "kl_over",
        "accumulation",
        "weights",
        "beta",
        "label_smoothing",
        "directions",
        "responses",
        "join",
        "chosen",
        "rejected",
    ];
    assert!(newer.iter().all(|field| old.get(field).is_none()), "{old}");
    assert_eq!(old["length_norm"], json!("mean"));
    assert_eq!(fields(r#""objective": "dpo""#)["length_norm"], json!("sum"), "what it comes to is what is in the key");
    assert_eq!(fields(r#""objective": "dpo", "length_norm": "mean""#)["length_norm"], json!("mean"));
    let authors = fields(r#""objective": "sami", "schedule": "authors-2024""#)["schedule"].clone();
    let table = json!({"name": "linear", "warmup": 1, "floor": 0.0, "from_zero": true, "span": "epoch"});
    assert_eq!(authors, table, "a preset is what it stands for");
}

#[test]
fn what_fits_as_examples_follows_the_objective() {
    let kind: Finetune = serde_json::from_str(
        r#"{"model": "m", "examples": "s", "objective": "lm", "steps": 1, "optimizer": {"lr": 1}}"#,
    )
    .expect("reads");
    assert_eq!(kind.inputs()[1].accepts, [ArtifactType::Dataset]);
}
