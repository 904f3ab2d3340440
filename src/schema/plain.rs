//! Few forms instead of many: what an optional value, a word of several or a value of several types looks like.
//!
//! A value of several types is one schema with a list of types, as each keyword binds one of them only; errors then name
//! the keyword at fault, where `anyOf` would say that none of its parts fits.

use serde_json::{Map, Value, json};

/// Brings a schema and all within it into plain forms.
pub(super) fn simplify(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    map.remove("format");
    map.remove("title");
    without_null(map);
    if as_words(map) {
        return;
    }
    for key in ["properties", "definitions", "patternProperties"] {
        if let Some(Value::Object(parts)) = map.get_mut(key) {
            parts.values_mut().for_each(simplify);
        }
    }
    for key in ["additionalProperties", "items", "propertyNames", "not", "if", "then", "else"] {
        map.get_mut(key).into_iter().for_each(simplify);
    }
    for key in ["anyOf", "oneOf", "allOf", "prefixItems"] {
        if let Some(Value::Array(parts)) = map.get_mut(key) {
            parts.iter_mut().for_each(simplify);
        }
    }
    as_types(map);
    // A pair, as this draft says it.
    if let Some(items) = map.remove("prefixItems") {
        map.insert("items".to_owned(), items);
        map.insert("additionalItems".to_owned(), false.into());
    }
}

/// TOML has no null: what may be absent is absent.
fn without_null(map: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = map.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            map.insert("type".to_owned(), one);
        }
    }
    // Defaults that are tables are those of their keys.
    if map.get("default").is_some_and(|default| default.is_null() || default.is_object() || default.is_array()) {
        map.remove("default");
    }
    for key in ["anyOf", "oneOf"] {
        let Some(Value::Array(parts)) = map.get_mut(key) else { continue };
        parts.retain(|part| part != &json!({"type": "null"}));
        if let [Value::Object(one)] = parts.as_slice() {
            let one = one.clone();
            map.remove(key);
            for (key, value) in one {
                map.entry(key).or_insert(value);
            }
        }
    }
}

/// The words that a schema lists, each with what it means.
fn words(schema: &Value) -> Option<Vec<(String, String)>> {
    let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    if let Some(word) = schema.get("const").and_then(Value::as_str) {
        return Some(vec![(word.to_owned(), about.to_owned())]);
    }
    let several = schema.get("enum")?.as_array()?;
    several.iter().map(|word| Some((word.as_str()?.to_owned(), String::new()))).collect()
}

/// One of several words: a pattern, so that an error lists them and `${…}` can be let in, beside the list for completion.
fn as_words(map: &mut Map<String, Value>) -> bool {
    let found = match map.get("oneOf") {
        Some(Value::Array(parts)) => {
            let each: Option<Vec<_>> = parts.iter().map(words).collect();
            each.map(|each| each.concat())
        }
        _ => words(&Value::Object(map.clone())),
    };
    let Some(found) = found else { return false };
    ["oneOf", "enum", "const"].iter().for_each(|key| _ = map.remove(*key));
    put_words(map, &found);
    true
}

/// Has a schema of text take one of these words, each with what it means.
pub(super) fn put_words(map: &mut Map<String, Value>, words: &[(String, String)]) {
    let plain: Vec<&str> = words.iter().map(|(word, _)| word.as_str()).collect();
    let alternatives: Vec<String> = plain.iter().map(|word| regex::escape(word).replace("\\-", "-")).collect();
    map.insert("type".to_owned(), "string".into());
    map.insert("pattern".to_owned(), format!("^({})$", alternatives.join("|")).into());
    let mut list = json!({ "enum": plain });
    if words.iter().any(|(_, about)| !about.is_empty()) {
        let about: Vec<&str> = words.iter().map(|(_, about)| about.as_str()).collect();
        list["x-taplo"] = json!({ "docs": { "enumValues": about } });
    }
    // Always holds; it is there for those who complete.
    map.insert("anyOf".to_owned(), json!([list, true]));
}

/// Values of several types that have nothing to do with each other.
fn as_types(map: &mut Map<String, Value>) {
    let Some(Value::Array(parts)) = map.get("anyOf") else { return };
    let mut types = Vec::new();
    let mut merged = Map::new();
    for part in parts {
        let Some(part) = part.as_object() else { return };
        let of_part = match part.get("type") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => return,
        };
        if of_part.iter().any(|kind| types.contains(kind)) {
            return;
        }
        types.extend(of_part);
        for (key, value) in part {
            let known = key == "type" || key == "description" || merged.insert(key.clone(), value.clone()).is_none();
            if !known {
                return;
            }
        }
    }
    map.remove("anyOf");
    map.insert("type".to_owned(), json!(types));
    map.extend(merged);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(mut schema: Value) -> Value {
        simplify(&mut schema);
        schema
    }

    #[test]
    fn what_may_be_absent_is_what_it_is() {
        assert_eq!(
            plain(json!({"type": ["integer", "null"], "format": "uint", "minimum": 0})),
            json!({"type": "integer", "minimum": 0})
        );
        let optional = json!({"description": "D", "anyOf": [{"type": "object", "properties": {}}, {"type": "null"}]});
        assert_eq!(plain(optional), json!({"description": "D", "type": "object", "properties": {}}));
    }

    #[test]
    fn words_are_a_pattern_and_a_list() {
        let schema =
            json!({"oneOf": [{"const": "all-linear", "description": "All."}, {"enum": ["b", "c"], "type": "string"}]});
        let schema = plain(schema);
        assert_eq!(schema["pattern"], "^(all-linear|b|c)$");
        assert_eq!(schema["anyOf"][0]["enum"], json!(["all-linear", "b", "c"]));
        assert_eq!(schema["anyOf"][0]["x-taplo"]["docs"]["enumValues"], json!(["All.", "", ""]));
        assert_eq!(schema["anyOf"][1], true);
    }

    #[test]
    fn types_apart_become_one_schema() {
        let schema =
            plain(json!({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "enum": ["epoch"]}]}));
        assert_eq!(schema["type"], json!(["integer", "string"]));
        assert_eq!((&schema["minimum"], &schema["pattern"]), (&json!(0), &json!("^(epoch)$")));
        let same = json!({"anyOf": [{"type": "string", "minLength": 1}, {"type": "string"}]});
        assert_eq!(plain(same.clone()), same);
    }
}
