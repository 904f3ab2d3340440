use super::*;

#[test]
fn names_are_what_mlflow_takes() {
    assert_eq!(key("train/finetune@2/loss"), "train/finetune.2/loss");
    assert_eq!(key("evaluate[seed=1,lr=0.1]/win_rate"), "evaluate.seed-1.lr-0.1/win_rate");
    assert_eq!(key("é:x"), "_-x");
    assert_eq!(key(&"x".repeat(999)).len(), LONGEST_NAME);
}

#[test]
fn numbers_that_are_none_are_words() {
    let json = |value: f64| Metric { key: "k".into(), value, step: 1, at: 2 }.json()["value"].clone();
    assert_eq!(json(0.5), json!(0.5));
    assert_eq!(json(f64::NAN), json!("NaN"));
    assert_eq!(json(f64::NEG_INFINITY), json!("-Infinity"));
}
