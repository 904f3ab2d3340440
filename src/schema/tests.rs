//! The schemas against the readers: the same fields, the same values.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Field, fields, generator, of_kind, pipeline, project};
use crate::kinds::{Entry, KINDS};
use crate::pipeline::tree::{self, Tree, TreeErrorKind, TreeValue};
use crate::settings::{self, Settings};

mod valid;
use valid::faults;

fn parse(kind: &Entry, fields: &Value) -> Result<(), TreeErrorKind> {
    let tree = Tree::of_json(fields.clone(), &(0..0)).expect("TOML has it");
    (kind.spec.parse)(&tree).map(drop).map_err(|error| error.what)
}

/// The keys that a kind's reader knows: it is given one that it cannot know.
fn known(kind: &Entry) -> BTreeSet<String> {
    let entry = tree::Entry { key_span: 0..0, value: Tree { span: 0..0, value: TreeValue::Hole } };
    let table: tree::Table = [("\u{1}".to_owned(), entry)].into_iter().collect();
    match (kind.spec.parse)(&Tree { span: 0..0, value: TreeValue::Table(table) }).map_err(|error| error.what) {
        Err(TreeErrorKind::UnknownKey { expected, .. }) => expected.into_iter().collect(),
        other => panic!("{}: {other:?}", kind.spec.name),
    }
}

#[test]
fn fields_are_those_that_the_reader_knows_and_each_says_what_it_means() {
    let document = pipeline();
    for kind in KINDS {
        let schema = match kind.spec.public {
            true => document["definitions"][kind.spec.name].clone(),
            false => of_kind(kind, &mut generator()),
        };
        let common = ["kind", "run", "tolerance", "matrix"];
        let own: BTreeSet<String> = schema["properties"]
            .as_object()
            .expect("fields")
            .keys()
            .filter(|key| !kind.spec.public || !common.contains(&key.as_str()))
            .cloned()
            .collect();
        assert_eq!(own, known(kind), "{}", kind.spec.name);
        let mut silent = Vec::new();
        find_silent(kind.spec.name, &fields(kind), &mut silent);
        assert!(silent.is_empty(), "fields whose meaning is not said: {silent:#?}");
    }
}

fn find_silent(of: &str, fields: &[Field], silent: &mut Vec<String>) {
    for field in fields {
        let name = format!("{of}.{}", field.name);
        find_silent(&name, &field.fields, silent);
        if field.about.is_empty() {
            silent.push(name);
        }
    }
}

#[test]
fn every_key_of_the_format_has_a_schema() {
    let document = pipeline();
    let shapes = crate::pipeline::shapes(&mut generator());
    let keys = |pointer: &str| -> BTreeSet<&str> {
        document.pointer(pointer).and_then(Value::as_object).expect("a table").keys().map(String::as_str).collect()
    };
    assert_eq!(keys("/properties"), shapes.top.iter().copied().collect());
    assert_eq!(keys("/properties/loop/properties"), shapes.turns.iter().copied().collect());
    let mut overlay = keys("/definitions/overlay/properties");
    assert!(overlay.remove("file"));
    assert_eq!(overlay, shapes.when.iter().copied().collect());
}

/// The least that a schema takes.
fn sample(schema: &Value) -> Value {
    if let Some(words) = schema.pointer("/anyOf/0/enum") {
        return words[0].clone();
    }
    let kind = match &schema["type"] {
        Value::Array(several) => several[0].clone(),
        one => one.clone(),
    };
    match kind.as_str() {
        Some("string") => json!(schema["pattern"].as_str().map_or("text", |words| words.trim_matches(['^', '$']))),
        Some("integer" | "number") => json!(3),
        Some("boolean") => json!(true),
        Some("array") => match &schema["items"] {
            Value::Array(items) => items.iter().map(sample).collect(),
            item => (0..schema["minItems"].as_u64().unwrap_or(0)).map(|_| sample(item)).collect(),
        },
        _ => {
            let names = schema["required"].as_array().cloned().unwrap_or_default();
            let field = |name: &Value| {
                let name = name.as_str().expect("a name");
                (name.to_owned(), sample(&schema["properties"][name]))
            };
            names.iter().map(field).collect::<Map<_, _>>().into()
        }
    }
}

/// Values of all forms.
fn values() -> Vec<Value> {
    vec![
        json!(0),
        json!(7),
        json!(-3),
        json!(0.25),
        json!(-0.5),
        json!(true),
        json!(false),
        json!("text"),
        json!("first"),
        json!("all"),
        json!("epoch"),
        json!("authors-2024"),
        json!("bpe"),
        json!("sum"),
        json!([]),
        json!(["a"]),
        json!([1, 2]),
        json!([1]),
        json!([["a", "b"]]),
        json!(["a", 1]),
        json!({}),
        json!({"x": "y"}),
        json!({"x": true}),
        json!({"x": 1}),
        json!({"from": "n"}),
        json!({"from": "n", "take": 3}),
        json!({"from": "n", "take": -3}),
        json!({"take": 3}),
        json!({"from": "n", "tkae": 3}),
        json!({"from": 4}),
        json!({"principles": 2}),
        json!({"principles": ["a"]}),
        json!({"principles": -1}),
        json!({"a": "n", "b": {"from": "m", "skip": 1}}),
        json!({"a": {"definition": "D"}}),
        json!({"a": {"weak": "D", "strong": "E"}}),
        json!({"a": {"defnition": "D"}}),
        json!({"lr": 0.1}),
        json!({"lr": 0.1, "name": "rmsprop"}),
        json!({"lr": 0.1, "name": "sgd"}),
        json!({"parts": 4, "kept": "last"}),
        json!({"name": "linear", "span": "epoch"}),
        json!({"name": "linear", "span": 9}),
        json!({"name": "linear", "span": "x"}),
        json!({"rank": 4, "targets": "all-linear"}),
        json!({"rank": 4, "targets": ["q_proj"]}),
        json!({"targets": "q_proj"}),
    ]
}

/// Each way to put one of the values into a place of what a schema describes: the place, and the whole.
fn mutations(schema: &Value, base: &Value, at: &str, found: &mut Vec<(String, Value)>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let place = format!("{at}.{name}");
        for value in values() {
            let mut whole = base.clone();
            whole[name] = value;
            found.push((place.clone(), whole));
        }
        let is_table =
            field["type"] == "object" || field["type"].as_array().is_some_and(|all| all.contains(&json!("object")));
        if is_table && field["properties"].is_object() {
            let mut table = field.clone();
            table["type"] = json!("object");
            let mut inner = Vec::new();
            mutations(&table, &sample(&table), &place, &mut inner);
            for (place, value) in inner {
                let mut whole = base.clone();
                whole[name] = value;
                found.push((place, whole));
            }
        }
    }
}

#[test]
fn the_schema_takes_what_the_reader_takes_and_nothing_else() {
    let mut tried = 0;
    for kind in KINDS {
        let schema = of_kind(kind, &mut generator());
        let base = sample(&schema);
        assert_eq!(parse(kind, &base), Ok(()), "{}: {base}", kind.spec.name);
        let mut all = Vec::new();
        mutations(&schema, &base, kind.spec.name, &mut all);
        for (place, fields) in all {
            let (read, faults) = (parse(kind, &fields), faults(&schema, &schema, &fields));
            // A struct is also read from a list of its fields, which no one writes.
            if read.is_ok() && !faults.is_empty() && faults.iter().all(|fault| fault.contains(": [")) {
                continue;
            }
            assert_eq!(read.is_ok(), faults.is_empty(), "{place}: {fields}\nreader: {read:?}\nschema: {faults:?}");
            tried += 1;
        }
    }
    assert!(tried > 5000, "only {tried} were tried");
}

fn toml(text: &str) -> Value {
    let table: ::toml::Table = text.parse().expect("is TOML");
    serde_json::to_value(table).expect("has a counterpart")
}

#[test]
fn what_the_program_takes_is_never_refused() {
    let document = pipeline();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for folder in ["pipelines", "pipelines/tiny", "tests/fuzz/corpus/pipeline", "tests/it/fixtures/store-v1"] {
        for entry in fs_err::read_dir(root.join(folder)).expect("is there") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "toml") || path.ends_with("sami.toml") {
                continue;
            }
            let loads = crate::pipeline::load(&path, &[], &crate::kinds::specs());
            if loads.is_err() && folder != "pipelines/tiny" {
                assert!(folder.starts_with("tests"), "{}: {loads:?}", path.display());
                continue;
            }
            let value = toml(&fs_err::read_to_string(&path).expect("is text"));
            // Those that are laid over others.
            let schema = match folder {
                "pipelines/tiny" => &document["definitions"]["overlay"],
                _ => &document,
            };
            assert_eq!(faults(&document, schema, &value), Vec::<String>::new(), "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 8, "only {seen} pipelines");
}

/// The table of a node, with a value put into it.
fn node(more: &str) -> Value {
    toml(&format!("[nodes.a]\nkind = \"command\"\nprogram = \"true\"\n{more}"))
}

#[test]
fn expressions_files_and_matrices_stand_for_values() {
    let document = pipeline();
    let fine = [
        node("args = \"${arguments}\"\nscript = { file = \"x.py\" }"),
        node("run = { threads = \"${n}\", retries = 2 }\ntolerance = 1e-4"),
        node("matrix = { seed = [1, 2], word = \"${words}\" }"),
        toml("[nodes.a]\nkind = \"tally\"\nmatrix = { verdicts = [\"a\", \"b\"] }"),
        toml("[nodes.a]\nkind = \"${kind}\"\nanything = 1"),
        toml(
            "[models]\nm = { file = \"m.toml\" }\nn = { source = \"${where}\", base_url = \"http://x\" }\n[nodes.a]\nkind = \"command\"\nprogram = \"true\"",
        ),
        toml(
            "[params]\nscale = \"full\"\n[when.scale.tiny.nodes.a]\noptimizer = { lr = 1e-3 }\n[[when.scale.small]]\nremove = [\"nodes.a.args\"]\n[[when.scale.small]]\nfile = \"o.toml\"",
        ),
        toml(
            "[loop]\ntimes = \"${n}\"\ncarry.policy = { first = \"m\", next = \"a\" }\n[loop.nodes.a]\nkind = \"command\"\nprogram = \"x\"",
        ),
        toml(
            "[datasets.d]\nsource = \"hf:datasets/a/b\"\ndata_files = [\"x\"]\nquery = \"{{ q }}\"\n[datasets.e]\nmake = { rows = \"${n}\", template = { file = \"t.jinja\" } }",
        ),
    ];
    for value in fine {
        assert_eq!(faults(&document, &document, &value), Vec::<String>::new(), "{value}");
    }
    let wrong = [
        (toml("[node.a]\nkind = \"command\""), "node"),
        (node("arg = []"), "arg"),
        (node("args = \"text\""), "args"),
        (node("run = { thread = 2 }"), "thread"),
        (node("run = { threads = -2 }"), "-2"),
        (node("matrix = { seed = 3 }"), "seed"),
        (node("tolerance = \"much\""), "much"),
        (node("script = { file = \"x\", line = 3 }"), "script"),
        (toml("[nodes.a]\nprogram = \"true\""), "kind"),
        (toml("[nodes.a]\nkind = \"comand\""), "comand"),
        (toml("[nodes.\"a b\"]\nkind = \"command\"\nprogram = \"x\""), "a b"),
        (toml("[nodes.a]\nkind = \"command\""), "program"),
        (toml("[models.m]\ndtype = \"f32\""), "source"),
        (toml("[models.m]\nsource = \"x\"\ndtype = \"f8\""), "f8"),
        (toml("[models.m]\nsource = \"x\"\nbase_url = \"http://x\""), "base_url"),
        (toml("[models.m]\nsource = \"openai:x\"\ndtype = \"f32\""), "dtype"),
        (toml("[datasets.d]\nsource = \"x\"\nmake = { rows = 1, template = \"\" }"), "datasets"),
        (toml("[datasets.d]\nsource = \"x\"\nunqiue = true"), "unqiue"),
        (toml("[loop.nodes.a]\nkind = \"command\"\nprogram = \"x\""), "times"),
        (toml("[when.scale.tiny.nodes.a]\nlerning_rate = 1"), "lerning_rate"),
        (toml("schema = 2"), "schema"),
    ];
    for (value, named) in wrong {
        let faults = faults(&document, &document, &value);
        assert!(faults.iter().any(|fault| fault.contains(named)), "{value}: {faults:?} should name {named}");
    }
}

#[test]
fn the_schema_of_sami_toml_is_what_its_readers_ask_for() {
    let document = project();
    let form = settings::forms();
    assert!(form.iter().any(|table| table.name == "remote" && table.required == ["url"]), "{form:?}");
    for table in &form {
        assert!(super::project::about(&table.name).is_some(), "what `[{}]` is for", table.name);
        for (key, _) in &table.keys {
            let path = format!("{}.{key}", table.name);
            assert!(super::project::about(&path).is_some(), "what `{path}` is for");
        }
    }
    let both = |text: &str| {
        let (read, faults) = (Settings::parse("sami.toml", text), faults(&document, &document, &toml(text)));
        assert_eq!(read.is_ok(), faults.is_empty(), "{text}\n{faults:?}");
        faults.is_empty()
    };
    assert!(both("") && both("[remote]\nurl = \"file:///x\"\npush = \"on-success\"\nconcurrency = 4\npull = true"));
    assert!(both("tensorboard = true\nmlflow = \"http://localhost:5000\"") && both("tensorboard = \"events\""));
    assert!(both("[mlflow]\nurl = \"http://localhost:5000\"\ntimeout = 5") && !both("mlflow = 3"));
    assert!(!both("[mlflow]\ntimeout = 5") && !both("tensorboard = 3") && !both("mlflow = { url = \"\" }"));
    assert!(!both("[remote]\npull = true") && !both("[remote]\nurl = \"file:///x\"\npush = \"always\""));
    assert!(!both("[remote]\nurl = \"file:///x\"\nconcurrency = 0") && !both("[remotes]\n") && !both("remote = 3"));
}
