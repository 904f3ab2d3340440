//! What may stand in the place of any value: an expression, or a file that holds it.

use serde_json::{Map, Value, json};

/// A text with an expression in it.
pub(super) const EXPRESSION: &str = r"\$\{";

/// The description of `{ file = "…" }`.
const FILE: &str = "A file that holds the value: text, or what a `.json` or `.toml` file says. Its path starts from this file's directory.";

/// The values of a schema that is itself none: the fields of a table.
pub(super) fn within(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    for key in ["properties", "patternProperties"] {
        if let Some(Value::Object(parts)) = map.get_mut(key) {
            parts.values_mut().for_each(value);
        }
    }
    for key in ["additionalProperties", "items"] {
        match map.get_mut(key) {
            Some(Value::Array(parts)) => parts.iter_mut().for_each(value),
            Some(part) => value(part),
            None => {}
        }
    }
}

/// A value and all within it.
pub(super) fn value(schema: &mut Value) {
    within(schema);
    let Value::Object(map) = schema else { return };
    let mut types: Vec<String> = match map.get("type") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        // Anything goes.
        _ => return,
    };
    if !types.iter().any(|kind| kind == "string") {
        types.push("string".to_owned());
        map.insert("pattern".to_owned(), EXPRESSION.into());
    } else if let Some(pattern) = map.get("pattern").and_then(Value::as_str) {
        let either = format!("{pattern}|{EXPRESSION}");
        map.insert("pattern".to_owned(), either.into());
    }
    let file = json!({ "type": "string", "description": FILE });
    if types.iter().any(|kind| kind == "object") {
        let named = map.get("additionalProperties").filter(|additional| additional.is_object()).cloned();
        let fields = map.entry("properties").or_insert_with(|| json!({}));
        if let Value::Object(fields) = fields {
            // A key that people choose may be called so, too.
            let file = named.map_or(file.clone(), |named| json!({ "anyOf": [file, named] }));
            fields.entry("file").or_insert(file);
        }
        let alone = json!({ "required": ["file"], "type": "object" });
        let mut either = json!({ "if": alone });
        if map.get("additionalProperties") == Some(&Value::Bool(false)) {
            either["then"] = json!({ "maxProperties": 1 });
        }
        for key in ["required", "if", "then", "else"] {
            if let Some(rule) = map.remove(key) {
                let other = either.as_object_mut().expect("it was made so").entry("else").or_insert_with(|| json!({}));
                other[key] = rule;
            }
        }
        if either.get("then").is_some() || either.get("else").is_some() {
            add_rule(map, either);
        }
    } else {
        types.push("object".to_owned());
        map.insert("properties".to_owned(), json!({ "file": file }));
        map.insert("required".to_owned(), json!(["file"]));
        map.insert("additionalProperties".to_owned(), false.into());
    }
    map.insert("type".to_owned(), json!(types));
}

/// Adds a rule to those that all must hold.
pub(super) fn add_rule(map: &mut Map<String, Value>, rule: Value) {
    if let Value::Array(rules) = map.entry("allOf").or_insert_with(|| json!([])) {
        rules.push(rule);
    }
}

/// Takes out of a schema what says that something must be there: of a part that is laid over another one, the rest is in
/// that.
pub(super) fn partial(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    if map.get("required") != Some(&json!(["file"])) {
        map.remove("required");
    }
    map.remove("minProperties");
    if let Some(Value::Array(rules)) = map.get_mut("allOf") {
        for rule in &mut *rules {
            if let Some(rule) = rule.as_object_mut() {
                rule.remove("else");
            }
        }
        rules.retain(|rule| rule.get("then").is_some());
    }
    for key in ["properties", "patternProperties"] {
        if let Some(Value::Object(parts)) = map.get_mut(key) {
            parts.values_mut().for_each(partial);
        }
    }
    map.get_mut("additionalProperties").into_iter().for_each(partial);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widened(mut schema: Value) -> Value {
        value(&mut schema);
        schema
    }

    #[test]
    fn a_number_may_be_an_expression_or_in_a_file() {
        let schema = widened(json!({"type": "integer", "minimum": 0}));
        assert_eq!(schema["type"], json!(["integer", "string", "object"]));
        assert_eq!((&schema["pattern"], &schema["required"]), (&json!(r"\$\{"), &json!(["file"])));
        let word = widened(json!({"type": "string", "pattern": "^(a|b)$"}));
        assert_eq!(word["pattern"], r"^(a|b)$|\$\{");
        assert_eq!(widened(json!(true)), json!(true));
    }

    #[test]
    fn a_table_is_in_a_file_alone_or_has_what_it_must() {
        let schema = widened(
            json!({"type": "object", "properties": {"lr": {"type": "number"}}, "required": ["lr"], "additionalProperties": false}),
        );
        assert_eq!(schema["allOf"][0]["then"], json!({"maxProperties": 1}));
        assert_eq!(schema["allOf"][0]["else"], json!({"required": ["lr"]}));
        assert_eq!(schema["properties"]["lr"]["type"], json!(["number", "string", "object"]));
        let mut part = schema;
        partial(&mut part);
        assert_eq!(
            part["allOf"],
            json!([{"if": {"required": ["file"], "type": "object"}, "then": {"maxProperties": 1}}])
        );
    }
}
