//! An input field that takes one input or several by name.

use std::fmt;

use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;

use super::check::input;
use super::{Cx, InputArtifact, NodeError};
use crate::pipeline::{ArtifactType, Input, InputField};

/// `"name"`, `{ from = "name", take = N }`, or `{ a = "name", b = { from = "other", take = N } }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Several {
    /// One.
    One(Input),
    /// By name, in the order of the file.
    Named(IndexMap<String, Input>),
}

impl Several {
    /// The input fields, of paths `field` or `field.NAME`.
    pub(super) fn fields(&self, field: &str, accepts: &'static [ArtifactType]) -> Vec<InputField> {
        match self {
            Self::One(one) => vec![input(field, one, accepts)],
            Self::Named(all) => all.iter().map(|(name, one)| input(&format!("{field}.{name}"), one, accepts)).collect(),
        }
    }

    /// What was put in, with the names that tell rows of several apart.
    pub(super) fn artifacts<'a>(
        &'a self,
        cx: &'a Cx<'_>,
        field: &str,
    ) -> Result<Vec<(Option<&'a str>, &'a InputArtifact)>, NodeError> {
        match self {
            Self::One(_) => Ok(vec![(None, cx.input(field)?)]),
            Self::Named(all) => {
                let one = |name: &'a String| Ok((Some(name.as_str()), cx.input(&format!("{field}.{name}"))?));
                all.keys().map(one).collect()
            }
        }
    }
}

impl Serialize for Several {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(one) => one.serialize(serializer),
            Self::Named(all) => all.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Several {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SeveralVisitor;
        impl<'de> Visitor<'de> for SeveralVisitor {
            type Value = Several;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a dataset or a node, { from = \"name\", skip = N, take = N }, or several of these by names")
            }

            fn visit_str<E>(self, name: &str) -> Result<Several, E> {
                Ok(Several::One(Input { from: name.to_owned(), skip: None, take: None }))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Several, A::Error> {
                let mut one = Input { from: String::new(), skip: None, take: None };
                let mut is_one = false;
                let mut all = IndexMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "from" | "skip" | "take" if !all.is_empty() => {
                            return Err(A::Error::custom(format!("`{key}` stands beside inputs with names")));
                        }
                        "from" => one.from = map.next_value()?,
                        "skip" => one.skip = map.next_value()?,
                        "take" => one.take = map.next_value()?,
                        _ if is_one => return Err(A::Error::unknown_field(&key, &["from", "skip", "take"])),
                        _ => _ = all.insert(key.clone(), map.next_value()?),
                    }
                    is_one = all.is_empty();
                }
                match (is_one, one.from.is_empty()) {
                    (true, true) => Err(A::Error::missing_field("from")),
                    (true, false) => Ok(Several::One(one)),
                    (false, _) if all.is_empty() => Err(A::Error::missing_field("from")),
                    (false, _) => Ok(Several::Named(all)),
                }
            }
        }
        deserializer.deserialize_any(SeveralVisitor)
    }
}

impl JsonSchema for Several {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Several".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        // Names, or the keys of one input: never both.
        let of_one = json!([{ "required": ["from"] }, { "required": ["skip"] }, { "required": ["take"] }]);
        json_schema!({
            "type": ["string", "object"],
            "minProperties": 1,
            "properties": {
                "from": { "type": "string", "description": "The name of a dataset or a node." },
                "skip": { "type": "integer", "minimum": 0, "description": "Rows to leave out at the start." },
                "take": { "type": "integer", "minimum": 0, "description": "Rows to take after those; all without it." },
            },
            "additionalProperties": generator.subschema_for::<Input>(),
            "if": { "type": "object", "anyOf": of_one },
            "then": { "required": ["from"], "propertyNames": { "enum": ["from", "skip", "take"] } },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<Several, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn one_or_several_by_name_are_read_and_written_alike() {
        for value in [json!("a"), json!({"from": "a", "take": 3}), json!({"x": "a", "y": {"from": "b", "skip": 1}})] {
            assert_eq!(json!(read(value.clone()).expect("reads")), value);
        }
        let paths = |value| -> Vec<String> {
            let fields = read(value).expect("reads").fields("examples", &[ArtifactType::Scores]);
            fields.into_iter().map(|field| field.path).collect()
        };
        assert_eq!(paths(json!("a")), ["examples"]);
        assert_eq!(paths(json!({"x": "a", "y": "b"})), ["examples.x", "examples.y"]);
    }

    #[test]
    fn what_is_neither_is_refused() {
        assert!(read(json!({})).expect_err("empty").contains("from"));
        assert!(read(json!({"take": 3})).expect_err("of nothing").contains("from"));
        assert!(read(json!({"from": "a", "tkae": 3})).expect_err("a slip").contains("tkae"));
        assert!(read(json!({"other": "a", "take": 3})).expect_err("mixed").contains("beside"));
        assert!(read(json!(["a"])).is_err());
    }
}
