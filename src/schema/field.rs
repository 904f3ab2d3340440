//! The fields of a kind for people: what each takes, in a word or two, and what it means.

use serde::Serialize;
use serde_json::Value;

use crate::kinds::Entry;

/// A field of a node's table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it takes: `number`, `text`, `list of text`, `"a" | "b"`, `table of …`, `name of a node`.
    pub takes: String,
    /// Whether it must be there.
    pub required: bool,
    /// What it means and, after an empty line, what it is by default; Markdown of a line or two.
    pub about: String,
    /// The fields of a table.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Field>,
}

/// The fields of a kind, those that must be there first, else in the order of the type.
pub fn fields(kind: &Entry) -> Vec<Field> {
    of(&super::of_kind(kind, &mut super::generator()))
}

fn of(schema: &Value) -> Vec<Field> {
    let required = |name: &str| {
        let names = schema.get("required").and_then(Value::as_array);
        names.is_some_and(|names| names.iter().any(|required| required == name))
    };
    let Some(Value::Object(fields)) = schema.get("properties") else { return Vec::new() };
    let field = |(name, field): (&String, &Value)| Field {
        name: name.clone(),
        takes: takes(field),
        required: required(name),
        about: field.get("description").and_then(Value::as_str).unwrap_or_default().to_owned(),
        fields: if is_reference(field) { Vec::new() } else { of(field) },
    };
    let mut all: Vec<Field> = fields.iter().map(field).collect();
    all.sort_by_key(|field| !field.required);
    all
}

/// Whether a schema is that of an input.
fn is_reference(schema: &Value) -> bool {
    schema.pointer("/properties/from").is_some() && schema.pointer("/properties/take").is_some()
}

fn takes(schema: &Value) -> String {
    if is_reference(schema) {
        let several = schema.get("additionalProperties").is_some_and(Value::is_object);
        return if several { "name, or several" } else { "name" }.to_owned();
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => return "anything".to_owned(),
    };
    let one = |kind: &&str| match *kind {
        "integer" => "whole number".to_owned(),
        "string" => words(schema).unwrap_or_else(|| "text".to_owned()),
        "boolean" => "true or false".to_owned(),
        "array" => match schema.get("items") {
            Some(items) if items.is_object() && items.get("type").is_some_and(Value::is_string) => {
                format!("list of {}", takes(items))
            }
            _ => "list".to_owned(),
        },
        "object" => "table".to_owned(),
        other => other.to_owned(),
    };
    types.iter().map(one).collect::<Vec<_>>().join(", or ")
}

/// The words that a text is one of.
fn words(schema: &Value) -> Option<String> {
    if let Some(words) = schema.pointer("/anyOf/0/enum").and_then(Value::as_array) {
        return Some(words.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "));
    }
    let pattern = schema.get("pattern")?.as_str()?;
    let inner = pattern.trim_start_matches("^(").trim_start_matches('^').trim_end_matches('$').trim_end_matches(')');
    Some(inner.split('|').map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn fields_say_what_they_take() {
        let all = fields(kinds::find("finetune").expect("a kind"));
        let field = |name: &str| all.iter().find(|field| field.name == name).expect("a field").clone();
        assert!(field("objective").required && field("objective").takes.contains("\"sami\" | \"dpo\""));
        assert_eq!(field("examples").takes, "name, or several");
        assert_eq!(field("model").takes, "name");
        assert_eq!(field("steps").takes, "whole number");
        assert_eq!(field("clip").takes, "number");
        assert!(field("schedule").takes.contains("\"authors-2024\""));
        assert!(field("optimizer").fields.iter().any(|part| part.name == "lr" && part.required));
        assert!(all[0].required && !all.last().expect("some").required);
        let generate = fields(kinds::find("generate").expect("a kind"));
        let takes = |name: &str| generate.iter().find(|field| field.name == name).expect("a field").takes.clone();
        assert_eq!(
            (takes("chat"), takes("stop"), takes("prompt")),
            ("true or false".into(), "list of text".into(), "text".into())
        );
    }
}
