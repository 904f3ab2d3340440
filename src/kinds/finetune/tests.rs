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
fn what_fits_as_examples_follows_the_objective() {
    let kind: Finetune = serde_json::from_str(
        r#"{"model": "m", "examples": "s", "objective": "lm", "steps": 1, "optimizer": {"lr": 1}}"#,
    )
    .expect("reads");
    assert_eq!(kind.inputs()[1].accepts, [ArtifactType::Dataset]);
}
