//! The schema of a pipeline file.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::widen::{EXPRESSION, add_rule, partial, value, within};
use super::{DRAFT, describe, generator, of_kind, plain};
use crate::kinds::{Entry, KINDS};
use crate::pipeline::{self, Shapes};

/// A name of a model, a dataset or a node.
const NAME: &str = "^[A-Za-z0-9_-]+$";
/// A name that expressions can use.
const IDENTIFIER: &str = "^[A-Za-z_][A-Za-z0-9_]*$";

/// The JSON Schema of a pipeline file.
pub fn pipeline() -> Value {
    let mut generator = generator();
    let shapes = pipeline::shapes(&mut generator);
    let kinds: Vec<(&Entry, Value)> =
        KINDS.iter().filter(|kind| kind.spec.public).map(|kind| (kind, of_kind(kind, &mut generator))).collect();
    let init = KINDS.iter().find(|kind| kind.spec.name == "init").map(|kind| of_kind(kind, &mut generator));
    let mut definitions = Map::new();
    let mut whole = Vec::new();
    for (kind, schema) in kinds {
        let mut schema = with_common(schema, &shapes);
        within(&mut schema);
        add(&mut schema, "kind", json!(true));
        whole.push((kind, schema));
    }
    definitions.insert("some-node".to_owned(), any_of(&whole));
    for (kind, mut schema) in whole {
        // A variable of a matrix stands for the field of its name.
        if let Some(required) = schema.as_object_mut().and_then(|map| map.remove("required")) {
            let unless = json!({ "if": { "not": { "required": ["matrix"] } }, "then": { "required": required } });
            add_rule(schema.as_object_mut().expect("a kind has fields"), unless);
        }
        definitions.insert(kind.spec.name.to_owned(), schema);
    }
    definitions.insert("node".to_owned(), node());
    definitions.insert("model".to_owned(), model(&shapes, init.unwrap_or_default()));
    definitions.insert("dataset".to_owned(), dataset(&shapes));
    for name in ["model", "dataset"] {
        let mut part = definitions[name].clone();
        part.as_object_mut().expect("it was made so").remove("allOf");
        partial(&mut part);
        definitions.insert(format!("some-{name}"), part);
    }
    definitions.insert("overlay".to_owned(), overlay(&shapes));
    let mut document = json!({
        "$schema": DRAFT,
        "title": "A pipeline of sami",
        "description": "Models, datasets, and what is done with them: a DAG of nodes.",
        "type": "object",
        "additionalProperties": false,
        "properties": keys(shapes.top, &shapes, ""),
        "definitions": definitions,
    });
    tidy(&mut document);
    document
}

fn add(schema: &mut Value, name: &str, field: Value) {
    if let Some(Value::Object(fields)) = schema.get_mut("properties") {
        fields.insert(name.to_owned(), field);
    }
}

/// The keys of a table between the file and its declarations; those of an overlay are of `some-` of the same.
fn keys(names: &[&str], shapes: &Shapes, some: &str) -> Value {
    let named = |of: &str, about: &str| {
        let of = json!({ "$ref": format!("#/definitions/{some}{of}") });
        json!({ "type": "object", "description": about, "propertyNames": { "pattern": NAME }, "additionalProperties": of })
    };
    let text = |about: &str| json!({ "type": "string", "description": about });
    let key = |name: &&str| {
        let schema = match *name {
            "schema" => json!({
                "type": "integer", "enum": [shapes.schema], "default": shapes.schema,
                "description": format!("Version of this format: {}, which is also the default.", shapes.schema),
            }),
            "name" => text("The pipeline's name; the file's stem without it."),
            "description" => text("What the pipeline is for."),
            "params" => json!({
                "type": "object", "propertyNames": { "pattern": IDENTIFIER },
                "description": "Values for expressions (`${name}`); `--set name=value` overrides one.",
            }),
            "models" => named("model", "Models that come from outside, or are made at random."),
            "datasets" => named("dataset", "Rows that come from outside, or are made of a template."),
            "nodes" => named("node", "What is to be done, each node once."),
            "loop" => turns(shapes, some),
            "when" => when(shapes),
            "times" => json!({
                "type": ["integer", "string"], "minimum": 0, "maximum": shapes.most_iterations, "pattern": EXPRESSION,
                "description": "Iterations; `iteration` counts them from 1.",
            }),
            "carry" => carry(some),
            "remove" => json!({
                "type": "array", "items": { "type": "string" },
                "description": "Parts of the document that are not there then, by their paths: `\"nodes.NAME.FIELD\"`.",
            }),
            // A key of the format that has no schema yet: a test finds it.
            _ => return None,
        };
        Some(((*name).to_owned(), schema))
    };
    names.iter().filter_map(key).collect::<Map<_, _>>().into()
}

fn turns(shapes: &Shapes, some: &str) -> Value {
    let mut schema = json!({
        "type": "object",
        "description": "Nodes that are done in every iteration.",
        "additionalProperties": false,
        "properties": keys(shapes.turns, shapes, some),
    });
    if some.is_empty() {
        schema["required"] = json!(["times"]);
    }
    schema
}

fn carry(some: &str) -> Value {
    let mut carried = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "first": { "type": "string", "description": "What it is in the first iteration: a model, a dataset or a node outside." },
            "next": { "type": "string", "description": "The node of the loop whose output it is in later iterations." },
        },
        "required": ["first", "next"],
    });
    if !some.is_empty() {
        partial(&mut carried);
    }
    json!({
        "type": "object",
        "description": "What goes from one iteration to the next, by the name that the nodes of the loop give it.",
        "propertyNames": { "pattern": NAME },
        "additionalProperties": carried,
    })
}

/// What is laid over the document: a table, or several in order.
fn when(shapes: &Shapes) -> Value {
    let mut overlay = overlay(shapes);
    overlay["type"] = json!(["object", "array"]);
    overlay["items"] = json!({ "$ref": "#/definitions/overlay" });
    json!({
        "type": "object",
        "description": "What is otherwise while a param has a certain value: `[when.PARAM.VALUE.…]`.",
        "additionalProperties": { "type": "object", "additionalProperties": overlay },
    })
}

fn overlay(shapes: &Shapes) -> Value {
    let mut overlay =
        json!({ "type": "object", "additionalProperties": false, "properties": keys(shapes.when, shapes, "some-") });
    add(&mut overlay, "file", json!({ "type": "string", "description": "A `.toml` file that holds the overlay." }));
    overlay
}

/// A node's table: its kind's, found by `kind`. What all kinds have together is there for those who complete, who do not
/// follow conditions.
fn node() -> Value {
    let public = || KINDS.iter().filter(|kind| kind.spec.public);
    let words: Vec<(String, String)> =
        public().map(|kind| (kind.spec.name.to_owned(), describe::without_links(first_line(kind)))).collect();
    let mut kind = Map::new();
    kind.insert("description".to_owned(), "What the node does.".into());
    super::plain::put_words(&mut kind, &words);
    let mut kind = Value::Object(kind);
    // The kind is no value that comes out of a file.
    kind["pattern"] = format!("{}|{EXPRESSION}", kind["pattern"].as_str().unwrap_or_default()).into();
    let rules: Vec<Value> = public()
        .map(|kind| {
            let name = kind.spec.name;
            json!({
                "if": { "properties": { "kind": { "const": name } }, "required": ["kind"] },
                "then": { "$ref": format!("#/definitions/{name}") },
            })
        })
        .collect();
    json!({
        "type": "object",
        "required": ["kind"],
        "properties": { "kind": kind },
        "allOf": rules,
        "anyOf": [{ "$ref": "#/definitions/some-node" }, true],
    })
}

fn first_line(kind: &Entry) -> &str {
    kind.spec.doc.trim().lines().next().unwrap_or_default()
}

/// Adds what a node of any kind may have.
fn with_common(mut schema: Value, shapes: &Shapes) -> Value {
    let mut run = plain(shapes.run.clone());
    run["description"] = "How the node is executed; in no key.".into();
    let mut tolerance = plain(shapes.tolerance.clone());
    tolerance["description"] =
        "How far the numbers that the node makes may be from earlier ones and still count as the same for what is below it."
            .into();
    add(&mut schema, "run", run);
    add(&mut schema, "tolerance", tolerance);
    let values = json!({ "type": "array", "minItems": 1 });
    let matrix = json!({
        "type": "object",
        "description": "One node for each combination of these values, and of all that depends on it.",
        "minProperties": 1,
        "propertyNames": { "pattern": IDENTIFIER },
        "additionalProperties": values,
    });
    add(&mut schema, "matrix", matrix);
    schema
}

/// The fields of all kinds, each as one of the kinds that have it takes it: for a part of a node that does not say its kind,
/// and for those who complete, which is why each says whose it is.
fn any_of(kinds: &[(&Entry, Value)]) -> Value {
    let mut fields: Map<String, Value> = Map::new();
    let mut abouts: BTreeMap<String, Vec<(String, Vec<&str>)>> = BTreeMap::new();
    for (kind, schema) in kinds {
        for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let mut field = field.clone();
            partial(&mut field);
            if let Some(Value::String(about)) = field.as_object_mut().and_then(|field| field.remove("description")) {
                let known = abouts.entry(name.clone()).or_default();
                match known.iter_mut().find(|(known, _)| *known == about) {
                    Some((_, kinds)) => kinds.push(kind.spec.name),
                    None => known.push((about, vec![kind.spec.name])),
                }
            }
            let Some(known) = fields.get_mut(name) else {
                fields.insert(name.clone(), field);
                continue;
            };
            let apart = |schema: &Value| {
                let mut bare = schema.clone();
                bare.as_object_mut().into_iter().for_each(|bare| _ = bare.remove("default"));
                bare
            };
            if apart(known) != apart(&field) {
                // Two kinds mean different things by it: what is known of it is the name.
                *known = json!({});
            }
        }
    }
    for (name, abouts) in abouts {
        let whose = |(about, of): &(String, Vec<&str>)| match of.len() == kinds.len() {
            true => about.clone(),
            false => format!("`{}`: {about}", of.join("`, `")),
        };
        let about: Vec<String> = abouts.iter().map(whose).collect();
        if let Some(Value::Object(field)) = fields.get_mut(&name) {
            field.insert("description".to_owned(), about.join("\n\n").into());
        }
    }
    json!({ "type": "object", "additionalProperties": false, "properties": fields })
}

fn model(shapes: &Shapes, init: Value) -> Value {
    let mut schema = plain(shapes.model.clone());
    let endpoint = plain(shapes.endpoint.clone());
    for key in shapes.of_endpoints {
        let field = endpoint.pointer(&format!("/properties/{key}")).cloned().unwrap_or_default();
        add(&mut schema, key, field);
    }
    let mut init = init;
    init["description"] = "A randomly initialised model, instead of `source`.".into();
    add(&mut schema, "init", init);
    let dtypes = ["f32", "bf16", "f16"].map(|word| (word.to_owned(), String::new()));
    if let Some(Value::Object(dtype)) = schema.pointer_mut("/properties/dtype") {
        super::plain::put_words(dtype, &dtypes);
    }
    value(&mut schema);
    let forbid = |keys: &[&str]| -> Value {
        let keys: Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), false.into())).collect();
        json!({ "properties": keys })
    };
    let source = |rule: Value| json!({ "required": ["source"], "properties": { "source": rule } });
    let spoken_to = json!({ "type": "string", "pattern": "^openai:" });
    let elsewhere =
        json!({ "type": "string", "not": { "anyOf": [{ "pattern": "^openai:" }, { "pattern": EXPRESSION }] } });
    let map = schema.as_object_mut().expect("it is a table");
    // An endpoint has no numbers to be of a type.
    add_rule(map, json!({ "if": source(spoken_to), "then": forbid(&["dtype", "tokenizer"]) }));
    add_rule(map, json!({ "if": source(elsewhere), "then": forbid(shapes.of_endpoints) }));
    add_rule(map, json!({ "if": { "required": ["init"] }, "then": forbid(shapes.of_endpoints) }));
    one_of(map, "source", "init");
    schema
}

fn dataset(shapes: &Shapes) -> Value {
    let mut schema = plain(shapes.dataset.clone());
    schema["additionalProperties"] =
        json!({ "type": "string", "description": "Template of a field that each row gets." });
    value(&mut schema);
    let map = schema.as_object_mut().expect("it is a table");
    let keys: Map<String, Value> = shapes.of_the_hub.iter().map(|key| ((*key).to_owned(), false.into())).collect();
    add_rule(map, json!({ "if": { "required": ["make"] }, "then": { "properties": keys } }));
    one_of(map, "source", "make");
    schema
}

/// Has a table one of two keys and not the other, unless it is in a file.
fn one_of(map: &mut Map<String, Value>, one: &str, other: &str) {
    let in_a_file = json!({ "type": "object", "required": ["file"], "maxProperties": 1 });
    let either = json!({ "oneOf": [{ "required": [one] }, { "required": [other] }] });
    let table = json!({ "if": { "type": "object" }, "then": either });
    add_rule(map, json!({ "if": in_a_file, "else": table }));
}

/// What words mean is shown where they are completed: there the description goes, too.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let listed = map.get("anyOf").and_then(|any| any.get(1)) == Some(&Value::Bool(true))
                && map.get("anyOf").and_then(|any| any.pointer("/0/enum")).is_some();
            if let (true, Some(about)) = (listed, map.get("description").cloned()) {
                map.remove("description");
                map["anyOf"][0]["description"] = about;
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(parts) => parts.iter_mut().for_each(tidy),
        _ => {}
    }
}
