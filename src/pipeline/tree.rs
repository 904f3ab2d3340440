//! A TOML value that keeps the byte span of every part. It exists because expressions are evaluated between parsing
//! and typing, and because serde's tagged enums and `toml::Value` lose spans.

use std::ops::Range;

use serde_json::{Map, Number, Value};

pub use super::table::Table;
pub use super::typed::from_tree;

/// A value and where it stands in the pipeline file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tree {
    /// Byte range of the value in the file.
    pub span: Range<usize>,
    /// The value.
    pub value: TreeValue,
}

/// The value itself.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "TOML's own types")]
pub enum TreeValue {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Array(Vec<Tree>),
    Table(Table),
    /// Stands where a value is missing or wrong and that was reported: it fits every type, so that the rest of the
    /// table can be checked. What is made of it is thrown away.
    Hole,
}

/// A key of a table with its own span, and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Byte range of the key.
    pub key_span: Range<usize>,
    /// What the key holds.
    pub value: Tree,
}

/// Why a tree does not fit a type, with the place.
#[derive(Debug, Clone, PartialEq)]
pub struct TreeError {
    /// Byte range of the innermost value or key at fault.
    pub span: Range<usize>,
    /// What is wrong.
    pub what: TreeErrorKind,
}

/// The ways in which a tree does not fit.
#[derive(Debug, Clone, PartialEq)]
pub enum TreeErrorKind {
    /// A key the type does not have; the span is the key's.
    UnknownKey {
        /// The key as written.
        key: String,
        /// All keys that the type has.
        expected: Vec<String>,
    },
    /// A key the type needs is absent; the span is the table's.
    MissingKey(String),
    /// A value of another type than wanted: "expected …, found …".
    WrongType(String),
    /// One of a fixed set of words was wanted.
    UnknownWord {
        /// The word as written.
        word: String,
        /// All words that fit.
        expected: Vec<String>,
    },
    /// Anything else a `Deserialize` says.
    Other(String),
}

impl Tree {
    /// The entries, if this is a table.
    pub(super) fn table(&self) -> Option<&Table> {
        if let TreeValue::Table(table) = &self.value { Some(table) } else { None }
    }

    /// The entries, if this is a table.
    pub(super) fn table_mut(&mut self) -> Option<&mut Table> {
        if let TreeValue::Table(table) = &mut self.value { Some(table) } else { None }
    }

    /// The text, if this is a string.
    pub(super) fn text(&self) -> Option<&str> {
        if let TreeValue::String(text) = &self.value { Some(text) } else { None }
    }

    /// What the value is, for messages: "the string \"x\"", "an array".
    pub(super) fn describe(&self) -> String {
        match &self.value {
            TreeValue::String(text) if text.chars().count() <= 40 => format!("the string {text:?}"),
            TreeValue::String(_) => "a string".to_owned(),
            TreeValue::Integer(number) => format!("the number {number}"),
            TreeValue::Float(number) => format!("the number {number:?}"),
            TreeValue::Boolean(flag) => format!("{flag}"),
            TreeValue::Array(_) => "an array".to_owned(),
            TreeValue::Table(_) => "a table".to_owned(),
            TreeValue::Hole => "nothing".to_owned(),
        }
    }

    /// The place of the value at a dotted path, or of the innermost part of the path that is there.
    pub(super) fn place(&self, path: &str) -> Range<usize> {
        let mut at = self;
        let mut rest = path;
        while let Some(table) = at.table() {
            // Keys may hold dots themselves: the longest prefix that is a key wins.
            let mut end = rest.len();
            let step = loop {
                if let Some(entry) = table.get(&rest[..end]) {
                    break Some((entry, rest[end..].trim_start_matches('.')));
                }
                match rest[..end].rfind('.') {
                    Some(dot) => end = dot,
                    None => break None,
                }
            };
            let Some((entry, after)) = step else { break };
            at = &entry.value;
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        at.span.clone()
    }

    /// The place of the name in a reference: `"name"`, or `from` of a table.
    pub(super) fn place_of_reference(&self, path: &str) -> Range<usize> {
        self.place(&[path, ".from"].concat())
    }

    /// The value as JSON; spans are lost, a hole is null.
    pub(super) fn to_json(&self) -> Value {
        match &self.value {
            TreeValue::String(text) => Value::String(text.clone()),
            TreeValue::Integer(number) => Value::from(*number),
            TreeValue::Float(number) => Number::from_f64(*number).map_or(Value::Null, Value::Number),
            TreeValue::Boolean(flag) => Value::Bool(*flag),
            TreeValue::Array(items) => items.iter().map(Self::to_json).collect(),
            TreeValue::Table(table) => Value::Object(
                table.iter().map(|(key, entry)| (key.clone(), entry.value.to_json())).collect::<Map<_, _>>(),
            ),
            TreeValue::Hole => Value::Null,
        }
    }

    /// A tree of a JSON value, all of it at one place. Errs with what has no counterpart in TOML.
    pub(crate) fn of_json(value: Value, span: &Range<usize>) -> Result<Self, &'static str> {
        let value = match value {
            Value::Null => return Err("null, or a number that is not finite"),
            Value::Bool(flag) => TreeValue::Boolean(flag),
            Value::String(text) => TreeValue::String(text),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => TreeValue::Integer(integer),
                (None, Some(float)) if float.is_finite() && !number.is_u64() => TreeValue::Float(float),
                _ => return Err("a number that is too large"),
            },
            Value::Array(items) => {
                TreeValue::Array(items.into_iter().map(|item| Self::of_json(item, span)).collect::<Result<_, _>>()?)
            }
            Value::Object(map) => {
                let mut table = Table::with_capacity(map.len());
                for (key, item) in map {
                    table.insert(key, Entry { key_span: span.clone(), value: Self::of_json(item, span)? });
                }
                TreeValue::Table(table)
            }
        };
        Ok(Self { span: span.clone(), value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(span: Range<usize>, value: TreeValue) -> Tree {
        Tree { span, value }
    }

    fn table(span: Range<usize>, entries: Vec<(&str, Tree)>) -> Tree {
        let entries = entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), Entry { key_span: value.span.clone(), value }))
            .collect();
        Tree { span, value: TreeValue::Table(entries) }
    }

    #[test]
    fn place_is_the_innermost_part_that_is_there() {
        let inner = table(10..20, vec![("x.y", leaf(11..12, TreeValue::Integer(1)))]);
        let tree = table(0..30, vec![("a", inner)]);
        assert_eq!(tree.place("a.x.y"), 11..12);
        assert_eq!(tree.place("a.b"), 10..20);
        assert_eq!(tree.place("b"), 0..30);
        assert_eq!(tree.place_of_reference("a.x.y"), 11..12);
    }

    #[test]
    fn json_round_trips_but_null_is_refused() {
        let value = serde_json::json!({"a": [1, 2.5, true, "x"]});
        let tree = Tree::of_json(value.clone(), &(3..4)).expect("has a counterpart");
        assert_eq!(tree.to_json(), value);
        assert!(Tree::of_json(serde_json::json!([null]), &(0..0)).is_err());
    }
}
