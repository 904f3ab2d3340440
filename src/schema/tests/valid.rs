//! What a value has that a schema does not allow: as much of JSON Schema as ours use.

use regex::Regex;
use serde_json::Value;

/// All that is wrong; `root` is where references start.
pub(super) fn faults(root: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(root, schema, value, "", &mut found);
    found
}

fn fits(root: &Value, schema: &Value, value: &Value) -> bool {
    faults(root, schema, value).is_empty()
}

fn is(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("the type `{other}`"),
    }
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let rules = match schema {
        Value::Bool(true) => return,
        Value::Object(rules) => rules,
        _ => return found.push(format!("{at}: nothing may be here")),
    };
    let mut fail = |what: String| found.push(format!("{at}: {what}"));
    if let Some(target) = rules.get("$ref").and_then(Value::as_str) {
        let schema = root.pointer(target.trim_start_matches('#')).unwrap_or_else(|| panic!("{target} leads nowhere"));
        return check(root, schema, value, at, found);
    }
    let list = |key: &str| rules.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    match rules.get("type") {
        Some(Value::String(kind)) if !is(kind, value) => fail(format!("{value} is no {kind}")),
        Some(Value::Array(kinds)) if !kinds.iter().any(|kind| is(kind.as_str().unwrap_or_default(), value)) => {
            fail(format!("{value} is none of {kinds:?}"));
        }
        _ => {}
    }
    if let Some(words) = rules.get("enum").and_then(Value::as_array)
        && !words.contains(value)
    {
        fail(format!("{value} is none of {words:?}"));
    }
    if rules.get("const").is_some_and(|constant| constant != value) {
        fail(format!("{value} is not {}", rules["const"]));
    }
    let number = |key: &str| rules.get(key).and_then(Value::as_f64);
    if let Some(given) = value.as_f64()
        && (number("minimum").is_some_and(|least| given < least) || number("maximum").is_some_and(|most| given > most))
    {
        fail(format!("{value} is out of range"));
    }
    if let (Some(pattern), Some(text)) = (rules.get("pattern").and_then(Value::as_str), value.as_str())
        && !Regex::new(pattern).expect("a pattern").is_match(text)
    {
        fail(format!("{value} does not match {pattern}"));
    }
    if let (Some(least), Some(text)) = (number("minLength"), value.as_str())
        && (text.chars().count() as f64) < least
    {
        fail(format!("{value} is too short"));
    }
    let size = |least: &str, most: &str, count: usize| {
        let count = count as f64;
        number(least).is_some_and(|least| count < least) || number(most).is_some_and(|most| count > most)
    };
    if let Some(items) = value.as_array() {
        if size("minItems", "maxItems", items.len()) {
            fail(format!("{value} has too few or too many items"));
        }
        for (at_item, item) in items.iter().enumerate() {
            let schema = match rules.get("items") {
                Some(Value::Array(schemas)) => schemas.get(at_item).or(rules.get("additionalItems")),
                schema => schema,
            };
            if let Some(schema) = schema {
                check(root, schema, item, &format!("{at}[{at_item}]"), found);
            }
        }
    }
    if let Some(table) = value.as_object() {
        let mut fail = |what: String| found.push(format!("{at}: {what}"));
        if size("minProperties", "maxProperties", table.len()) {
            fail(format!("{value} has too few or too many keys"));
        }
        for key in list("required").iter().filter_map(Value::as_str).filter(|key| !table.contains_key(*key)) {
            fail(format!("`{key}` is not there"));
        }
        for (key, item) in table {
            let place = format!("{at}.{key}");
            if let Some(names) = rules.get("propertyNames") {
                check(root, names, &Value::String(key.clone()), &place, found);
            }
            let own = rules.get("properties").and_then(|fields| fields.get(key));
            if let Some(schema) = own.or(rules.get("additionalProperties")) {
                check(root, schema, item, &place, found);
            }
        }
    }
    for part in list("allOf") {
        check(root, part, value, at, found);
    }
    let mut fail = |what: String| found.push(format!("{at}: {what}"));
    if !list("anyOf").is_empty() && !list("anyOf").iter().any(|part| fits(root, part, value)) {
        fail(format!("{value} fits none of several"));
    }
    let of_one = list("oneOf").iter().filter(|part| fits(root, part, value)).count();
    if !list("oneOf").is_empty() && of_one != 1 {
        fail(format!("{value} fits {of_one} of what it must fit one: {:?}", list("oneOf")));
    }
    if rules.get("not").is_some_and(|not| fits(root, not, value)) {
        fail(format!("{value} is what it must not be"));
    }
    if let Some(condition) = rules.get("if") {
        let branch = if fits(root, condition, value) { rules.get("then") } else { rules.get("else") };
        if let Some(branch) = branch {
            check(root, branch, value, at, found);
        }
    }
}
