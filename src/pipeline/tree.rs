//! A TOML value that keeps the byte span of every part, and a serde deserializer over it whose errors keep the
//! place. It exists because expressions are evaluated between parsing and typing, and because serde's tagged enums
//! and `toml::Value` lose spans.

use std::ops::Range;

use indexmap::IndexMap;
use serde::de::DeserializeOwned;

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
    Table(IndexMap<String, Entry>),
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
    /// A value of another type than wanted; the text is serde's "invalid type: …, expected …".
    WrongType(String),
    /// Anything else a `Deserialize` says.
    Other(String),
}

/// Reads a typed value from a tree.
pub fn from_tree<T: DeserializeOwned>(_tree: &Tree) -> Result<T, TreeError> {
    todo!()
}
