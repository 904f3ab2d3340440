//! A node's key: the digest of everything that decides what the node makes.
//!
//! | in the key | not in the key, recorded on the attempt |
//! |---|---|
//! | kind and its version; every field after defaults | node name, names of inputs, file paths, times |
//! | content ids of the inputs; which of their rows are taken | device, threads, micro-batch, shards, retries |
//! | text of included files, seeds, params once evaluated | host, user, version of this tool |
//!
//! Rows of a *dataset* are cut before they are hashed, so that its slice is in the input's id; rows of what a *node*
//! made are cut by the worker, so that their slice is in the fields. The preimage is stored beside the key; key and
//! explanation come from this one walk, so an explanation cannot disagree with the decision.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::digest::Digest;
use crate::pipeline::{Node, Target};

/// Items of a list that are told one by one; if more differ, the list is told as a whole.
const MOST_ITEMS: usize = 3;
/// Longer texts are cut in explanations.
const LONGEST_SHOWN: usize = 48;

/// What the key of a node is made of. `inputs` are the content ids of its inputs by field path.
pub fn preimage(node: &Node, inputs: &BTreeMap<String, Digest>) -> Value {
    let mut fields = node.spec.fields();
    for link in &node.links {
        let slice = match link.target {
            Target::Node(_) if link.field.input.is_slice() => {
                json!({"skip": link.field.input.skip.unwrap_or(0), "take": link.field.input.take})
            }
            _ => Value::Null,
        };
        if let Some(place) = field_mut(&mut fields, &link.field.path) {
            *place = slice;
        }
    }
    let inputs = inputs.iter().map(|(path, id)| (path.clone(), Value::String(id.to_string()))).collect();
    // Not by `json!`, which would copy the fields.
    let mut preimage = Map::new();
    preimage.insert("kind".to_owned(), Value::from(node.kind.name));
    preimage.insert("version".to_owned(), Value::from(node.kind.version));
    preimage.insert("fields".to_owned(), fields);
    preimage.insert("inputs".to_owned(), Value::Object(inputs));
    Value::Object(preimage)
}

/// The value at a dotted path; a key may hold dots itself.
pub fn field_mut<'a>(fields: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let map = fields.as_object_mut()?;
    if map.contains_key(path) {
        return map.get_mut(path);
    }
    let dot = path.match_indices('.').map(|(dot, _)| dot).find(|&dot| map.contains_key(&path[..dot]))?;
    field_mut(map.get_mut(&path[..dot])?, &path[dot + 1..])
}

/// The key of a preimage.
pub fn key(preimage: &Value) -> Digest {
    Digest::of_value(preimage)
}

/// A part of a preimage that differs from an earlier one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The field (`optimizer.lr`), `input model`, `kind` or `version`.
    pub path: String,
    /// What it was; `None` if it was not there.
    pub old: Option<Value>,
    /// What it is; `None` if it is no longer there.
    pub new: Option<Value>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (old, new) = match (&self.old, &self.new) {
            (Some(Value::String(old)), Some(Value::String(new))) if !self.path.starts_with("input ") => {
                let (old, new) = differing_parts(old, new);
                (format!("{old:?}"), format!("{new:?}"))
            }
            (old, new) => (self.show(old.as_ref()), self.show(new.as_ref())),
        };
        write!(f, "{} {old} -> {new}", self.path)
    }
}

impl Change {
    fn show(&self, value: Option<&Value>) -> String {
        match value {
            None => "(none)".to_owned(),
            Some(Value::String(id)) if self.path.starts_with("input ") => id.chars().take(12).collect(),
            Some(Value::Number(number)) => match number.as_f64() {
                Some(float) if number.is_f64() => format!("{float:?}"),
                _ => number.to_string(),
            },
            Some(value) => cut(&value.to_string()),
        }
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Two texts from a little before where they part, cut to what can be read in a line.
fn differing_parts(old: &str, new: &str) -> (String, String) {
    let short = |text: &str| text.chars().count() <= LONGEST_SHOWN;
    if short(old) && short(new) {
        return (old.to_owned(), new.to_owned());
    }
    let same = old.chars().zip(new.chars()).take_while(|(a, b)| a == b).count();
    let start = same.saturating_sub(12);
    let part = |text: &str| {
        let dots = if start > 0 { "…" } else { "" };
        format!("{dots}{}", cut(&text.chars().skip(start).collect::<String>()))
    };
    (part(old), part(new))
}

/// What differs between two preimages: fields first, then inputs. Empty exactly if their keys are equal.
pub fn diff(old: &Value, new: &Value) -> Vec<Change> {
    let mut changes = Vec::new();
    let none = Value::Null;
    for part in ["kind", "version"] {
        let (old, new) = (old.get(part).unwrap_or(&none), new.get(part).unwrap_or(&none));
        compare(part, old, new, &mut changes);
    }
    let (old_fields, new_fields) = (old.get("fields").unwrap_or(&none), new.get("fields").unwrap_or(&none));
    compare("", old_fields, new_fields, &mut changes);
    let empty = Map::new();
    let inputs = |preimage: &'_ Value| preimage.get("inputs").and_then(Value::as_object).cloned();
    let old_inputs = inputs(old).unwrap_or_else(|| empty.clone());
    let new_inputs = inputs(new).unwrap_or(empty);
    let paths: BTreeSet<&String> = old_inputs.keys().chain(new_inputs.keys()).collect();
    for path in paths {
        let (old, new) = (old_inputs.get(path), new_inputs.get(path));
        if old != new {
            changes.push(Change { path: format!("input {path}"), old: old.cloned(), new: new.cloned() });
        }
    }
    changes
}

/// What differs between two values.
pub fn changes(old: &Value, new: &Value) -> Vec<Change> {
    let mut changes = Vec::new();
    compare("", old, new, &mut changes);
    changes
}

fn compare(path: &str, old: &Value, new: &Value, changes: &mut Vec<Change>) {
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for key in keys {
            let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match (old.get(key), new.get(key)) {
                (Some(old), Some(new)) => compare(&inner, old, new, changes),
                (old, new) => changes.push(Change { path: inner, old: old.cloned(), new: new.cloned() }),
            }
        }
        return;
    }
    // Equal exactly if they hash alike: 1 and 1.0 differ, 0.0 and -0.0 differ.
    let differ = |old: &Value, new: &Value| Digest::of_value(old) != Digest::of_value(new);
    if let (Value::Array(old), Value::Array(new)) = (old, new)
        && old.len() == new.len()
    {
        let changed: Vec<usize> = (0..old.len()).filter(|&at| differ(&old[at], &new[at])).collect();
        // A list that is mostly another one is told as a whole.
        if changed.len() <= MOST_ITEMS {
            for at in changed {
                compare(&format!("{path}[{at}]"), &old[at], &new[at], changes);
            }
            return;
        }
    }
    if differ(old, new) {
        changes.push(Change { path: path.to_owned(), old: Some(old.clone()), new: Some(new.clone()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(old: Value, new: Value) -> Vec<String> {
        diff(&old, &new).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn diff_names_the_exact_field_and_input() {
        let old = json!({"kind": "finetune", "version": 1, "fields": {"optimizer": {"lr": 5e-7, "name": "adamw"}, "gone": 1},
            "inputs": {"model": "a".repeat(64), "examples": "b".repeat(64)}});
        let new = json!({"kind": "finetune", "version": 2, "fields": {"optimizer": {"lr": 1e-6, "name": "adamw"}, "came": [1]},
            "inputs": {"model": "c".repeat(64), "examples": "b".repeat(64)}});
        assert_eq!(
            told(old.clone(), new),
            [
                "version 1 -> 2",
                "came (none) -> [1]",
                "gone 1 -> (none)",
                "optimizer.lr 5e-7 -> 1e-6",
                "input model aaaaaaaaaaaa -> cccccccccccc"
            ]
        );
        assert_eq!(told(old.clone(), old), Vec::<String>::new());
    }

    #[test]
    fn items_of_lists_are_told_one_by_one() {
        let with = |list: Value| json!({"fields": {"args": list}});
        let shown = told(with(json!(["-c", "echo 1", {"a": 1}])), with(json!(["-c", "echo 2", {"a": 2}])));
        assert_eq!(shown, ["args[1] \"echo 1\" -> \"echo 2\"", "args[2].a 1 -> 2"]);
        assert_eq!(told(with(json!([1])), with(json!([1, 2]))), ["args [1] -> [1,2]"]);
        assert_eq!(told(with(json!([1, 2, 3, 4])), with(json!([5, 6, 7, 8]))), ["args [1,2,3,4] -> [5,6,7,8]"]);
    }

    #[test]
    fn long_texts_are_shown_where_they_part() {
        let text = |end: &str| json!({"fields": {"prompt": format!("{}{end}", "word ".repeat(40))}});
        let shown = told(text("one"), text("two"));
        assert_eq!(shown, ["prompt \"…d word word one\" -> \"…d word word two\""]);
    }

    #[test]
    fn diff_is_empty_exactly_if_keys_are_equal() {
        let with = |value: Value| json!({"fields": {"a": value}});
        for (a, b) in
            [(json!(1), json!(1.0)), (json!(0.0), json!(-0.0)), (json!(null), json!("")), (json!([]), json!({}))]
        {
            let (a, b) = (with(a), with(b));
            assert_eq!(diff(&a, &b).is_empty(), key(&a) == key(&b), "{a} {b}");
            assert!(!diff(&a, &b).is_empty());
        }
    }
}
