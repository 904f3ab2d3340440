//! The schema of `sami.toml`: what its readers ask for.

use serde_json::{Map, Value, json};

use super::DRAFT;
use crate::settings::{self, Form, TableForm};

/// What tables and keys are for, by `TABLE` or `TABLE.KEY`.
const ABOUT: &[(&str, &str)] = &[
    ("remote", "Where artifacts are shared."),
    ("remote.url", "The place: `s3://BUCKET/PREFIX`, `gs://…`, `file:///DIRECTORY`, or `https://…` to read only."),
    ("remote.push", "When a run sends what it made: `never` by itself, or `on-success`. Default: never"),
    ("remote.pull", "Whether a run takes from there what it would have to make. Default: false"),
    ("remote.endpoint", "The address of a server that speaks S3, if it is not Amazon's."),
    ("remote.region", "The region of a bucket of S3."),
    ("remote.allow_http", "Whether the server may be spoken to without TLS. Default: false"),
    ("remote.anonymous", "Whether requests go without credentials. Default: false"),
    ("remote.concurrency", "Requests at once. Default: 16"),
    (
        "remote.timeout",
        "Seconds that a run waits for answers about what is there before it goes on without. Default: 10",
    ),
    (
        "tensorboard",
        "Whether runs write event files for TensorBoard into `tensorboard/` of the cache, or the directory for them.",
    ),
    ("mlflow", "The MLflow server that is told how runs go: its address, or a table."),
    ("mlflow.url", "The address of the server, such as `http://localhost:5000`."),
    ("mlflow.allow_http", "Whether a server elsewhere may be spoken to without TLS. Default: false"),
    ("mlflow.experiment", "The experiment that runs belong to. Default: the pipeline's name"),
    ("mlflow.timeout", "Seconds that the server may keep an answer back, and a run at its end. Default: 10"),
];

/// What a table or a key is for.
pub(super) fn about(path: &str) -> Option<&'static str> {
    ABOUT.iter().find(|(known, _)| *known == path).map(|(_, about)| *about)
}

/// The JSON Schema of `sami.toml`.
pub fn project() -> Value {
    let mut tables: Map<String, Value> =
        settings::forms().iter().map(|form| (form.name.clone(), table(form))).collect();
    // These two may be written in one line.
    let text = json!({ "type": "string", "minLength": 1 });
    let mlflow = tables.remove("mlflow");
    tables.insert("mlflow".to_owned(), json!({ "description": about("mlflow"), "anyOf": [text, mlflow] }));
    let (here, flag) = (about("tensorboard"), json!({ "type": "boolean" }));
    tables.insert("tensorboard".to_owned(), json!({ "description": here, "anyOf": [flag, text] }));
    json!({
        "$schema": DRAFT,
        "title": "sami.toml",
        "description": "What belongs to a machine or a lab and not to a pipeline; nothing in it is part of any key.",
        "type": "object",
        "additionalProperties": false,
        "properties": tables,
    })
}

fn table(form: &TableForm) -> Value {
    let keys: Map<String, Value> =
        form.keys.iter().map(|(key, of)| (key.clone(), value(&form.name, key, of))).collect();
    let mut schema = json!({ "type": "object", "additionalProperties": false, "properties": keys });
    if !form.required.is_empty() {
        schema["required"] = json!(form.required);
    }
    if let Some(about) = about(&form.name) {
        schema["description"] = about.into();
    }
    schema
}

fn value(table: &str, key: &str, form: &Form) -> Value {
    let mut schema = match form {
        Form::Text => json!({ "type": "string", "minLength": 1 }),
        Form::Flag => json!({ "type": "boolean" }),
        Form::Number(range) => json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() }),
        Form::Word(words) => json!({ "enum": words }),
    };
    if let Some(about) = about(&format!("{table}.{key}")) {
        schema["description"] = about.into();
    }
    schema
}
