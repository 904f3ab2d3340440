//! What the pipeline layer knows of a node kind: its name, its fields, what it takes and what it makes.
//!
//! The kinds themselves live in `kinds/`; `pipeline::load` is given their [`KindSpec`]s, so that this layer and its
//! tests need no model.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::tree::Tree;

/// What an artifact is, hence which inputs it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactType {
    /// `rows.jsonl`: an object per line, each with a unique `id`.
    Dataset,
    /// `constitutions.json`: principles, antitheses and how they are drawn for a query.
    Constitutions,
    /// `rows.jsonl`: a query, its constitutions and a response to each, per line.
    Responses,
    /// `rows.jsonl`: as responses, with the matrix of log-probabilities.
    Scores,
    /// A model directory in Hugging Face format.
    Model,
    /// `endpoint.json`: a model elsewhere, which can be spoken to and has no weights here.
    Endpoint,
    /// `rows.jsonl` of judged comparisons beside the metrics.
    Evaluation,
    /// Any files, made by a command.
    Files,
}

impl ArtifactType {
    /// The name as shown and stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Constitutions => "constitutions",
            Self::Responses => "responses",
            Self::Scores => "scores",
            Self::Model => "model",
            Self::Endpoint => "endpoint",
            Self::Evaluation => "evaluation",
            Self::Files => "files",
        }
    }
}

impl fmt::Display for ArtifactType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A reference to a model, a dataset or another node, with an optional slice of its rows.
///
/// Written `"name"` or `{ from = "name", skip = 10, take = 5 }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The name: a model, a dataset, a node, a node of iteration k (`finetune@2`), or a model carried by the loop.
    pub from: String,
    /// Rows to leave out at the start.
    pub skip: Option<u64>,
    /// Rows to take after those; all without it.
    pub take: Option<u64>,
}

impl Input {
    /// Whether only a part of the rows is meant.
    pub fn is_slice(&self) -> bool {
        self.skip.is_some() || self.take.is_some()
    }
}

impl Serialize for Input {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        if !self.is_slice() {
            return serializer.serialize_str(&self.from);
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("from", &self.from)?;
        if let Some(skip) = self.skip {
            map.serialize_entry("skip", &skip)?;
        }
        if let Some(take) = self.take {
            map.serialize_entry("take", &take)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InputVisitor;
        impl<'de> Visitor<'de> for InputVisitor {
            type Value = Input;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a model, a dataset or a node, or { from = \"name\", skip = N, take = N }")
            }

            fn visit_str<E>(self, name: &str) -> Result<Input, E> {
                Ok(Input { from: name.to_owned(), skip: None, take: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Input, A::Error> {
                let (mut from, mut skip, mut take) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "from" => from = Some(map.next_value()?),
                        "skip" => skip = Some(map.next_value()?),
                        "take" => take = Some(map.next_value()?),
                        _ => return Err(serde::de::Error::unknown_field(&key, &["from", "skip", "take"])),
                    }
                }
                let from = from.ok_or_else(|| serde::de::Error::missing_field("from"))?;
                Ok(Input { from, skip, take })
            }
        }
        deserializer.deserialize_any(InputVisitor)
    }
}

impl JsonSchema for Input {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Input".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "object"],
            "properties": {
                "from": { "type": "string", "description": "The name of a model, a dataset or a node." },
                "skip": { "type": "integer", "minimum": 0, "description": "Rows to leave out at the start." },
                "take": { "type": "integer", "minimum": 0, "description": "Rows to take after those; all without it." },
            },
            "required": ["from"],
            "additionalProperties": false,
        })
    }
}

/// An input field of a node: where it is, what it names, what fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputField {
    /// Dotted path of the field in the node's table, such as `model` or `candidates.sami`.
    pub path: String,
    /// What it refers to.
    pub input: Input,
    /// The artifact types that fit.
    pub accepts: &'static [ArtifactType],
}

/// Something wrong with a field's value that its type cannot express.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the field in the node's table; the nearest enclosing place is shown if the field is absent.
    pub path: String,
    /// What is wrong, as a title: lowercase, no full stop.
    pub what: String,
    /// What to do about it.
    pub help: String,
}

/// A node's own fields, typed. Pure: no method does I/O.
pub trait Spec: Any + fmt::Debug + Send + Sync {
    /// The inputs, in a fixed order, each path once.
    fn inputs(&self) -> Vec<InputField>;

    /// What the node makes.
    fn output(&self) -> ArtifactType;

    /// All fields after defaults as JSON; `serde_json::to_value(self)`.
    fn fields(&self) -> Value;

    /// Whether the fields depend on the environment, too, hence on more than the files that were read.
    fn depends_on_environment(&self) -> bool {
        false
    }

    /// Processes that can compute the node together, at most; 1: the kind knows none.
    fn ranks(&self) -> usize {
        1
    }

    /// Finds what the types cannot: ranges, templates that do not parse, fields that exclude each other.
    fn validate(&self) -> Vec<Problem> {
        Vec::new()
    }
}

/// A node kind as the pipeline layer sees it.
#[derive(Debug)]
pub struct KindSpec {
    /// The name after `kind =`.
    pub name: &'static str,
    /// Part of every key of the kind; raised when equal inputs would give other outputs.
    pub version: u32,
    /// The kind's page: what it does, its fields, an example. Markdown.
    pub doc: &'static str,
    /// Reads a node's table (without `kind`, `run` and `matrix`).
    pub parse: fn(&Tree) -> Result<Arc<dyn Spec>, super::tree::TreeError>,
    /// Whether users may write it; the kinds behind `[models.X] init` are made by the pipeline itself.
    pub public: bool,
}
