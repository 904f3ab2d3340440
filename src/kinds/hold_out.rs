//! What a pipeline says is kept out of training.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A share of the combinations of principles, or whole principles.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// `hold_out = 0.25`
    Share(f64),
    /// `hold_out = { principles = … }`
    Principles(Which),
}

/// Principles that are held out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The last so many, in the order of the file.
    Last(usize),
    /// By name.
    Named(Vec<String>),
}

impl Default for Rule {
    fn default() -> Self {
        Self::Share(0.0)
    }
}

impl Which {
    /// The names of those held out of `all`; all of them if more are wanted than there are.
    pub(super) fn names<'a>(&self, all: impl ExactSizeIterator<Item = &'a String>) -> Vec<String> {
        match self {
            Self::Named(names) => names.clone(),
            Self::Last(count) => {
                let before = all.len().saturating_sub(*count);
                all.skip(before).cloned().collect()
            }
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Share(share) => serializer.serialize_f64(*share),
            Self::Principles(which) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("principles", which)?;
                map.end()
            }
        }
    }
}

impl Serialize for Which {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Last(count) => serializer.serialize_u64(*count as u64),
            Self::Named(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RuleVisitor;
        impl<'de> Visitor<'de> for RuleVisitor {
            type Value = Rule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a share such as 0.25, or { principles = [\"name\", …] }, or { principles = N } for the last N",
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Rule, E> {
                // A value that could not be made, and was told of, is empty.
                if text.is_empty() {
                    return Ok(Rule::default());
                }
                Err(E::invalid_type(serde::de::Unexpected::Str(text), &self))
            }

            fn visit_f64<E>(self, share: f64) -> Result<Rule, E> {
                Ok(Rule::Share(share))
            }

            fn visit_i64<E>(self, share: i64) -> Result<Rule, E> {
                Ok(Rule::Share(share as f64))
            }

            fn visit_u64<E>(self, share: u64) -> Result<Rule, E> {
                Ok(Rule::Share(share as f64))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Rule, A::Error> {
                let mut which = None;
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "principles" => which = Some(map.next_value()?),
                        _ => return Err(A::Error::unknown_field(&key, &["principles"])),
                    }
                }
                which.map(Rule::Principles).ok_or_else(|| A::Error::missing_field("principles"))
            }
        }
        deserializer.deserialize_any(RuleVisitor)
    }
}

impl JsonSchema for Rule {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rule".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["number", "object"],
            "properties": {
                "principles": {
                    "type": ["integer", "array", "string"],
                    "minimum": 0,
                    "items": { "type": "string" },
                    "description": "Names of principles, or how many of the last ones.",
                },
            },
            "required": ["principles"],
            "additionalProperties": false,
        })
    }
}

impl<'de> Deserialize<'de> for Which {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WhichVisitor;
        impl<'de> Visitor<'de> for WhichVisitor {
            type Value = Which;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names of principles, or how many of the last ones")
            }

            fn visit_str<E>(self, name: &str) -> Result<Which, E> {
                Ok(Which::Named(if name.is_empty() { Vec::new() } else { vec![name.to_owned()] }))
            }

            fn visit_i64<E: Error>(self, count: i64) -> Result<Which, E> {
                let unsigned =
                    u64::try_from(count).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(count), &self))?;
                self.visit_u64(unsigned)
            }

            fn visit_u64<E>(self, count: u64) -> Result<Which, E> {
                Ok(Which::Last(usize::try_from(count).unwrap_or(usize::MAX)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Which, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element()? {
                    names.push(name);
                }
                Ok(Which::Named(names))
            }
        }
        deserializer.deserialize_any(WhichVisitor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn rules_read_what_they_write() {
        for (value, rule) in [
            (json!(0.25), Rule::Share(0.25)),
            (json!({"principles": 2}), Rule::Principles(Which::Last(2))),
            (json!({"principles": ["a", "b"]}), Rule::Principles(Which::Named(vec!["a".to_owned(), "b".to_owned()]))),
        ] {
            assert_eq!(serde_json::from_value::<Rule>(value.clone()).expect("reads"), rule);
            assert_eq!(json!(rule), value);
        }
        assert_eq!(serde_json::from_value::<Rule>(json!(0)).expect("reads"), Rule::Share(0.0));
        let wrong = |value: Value| serde_json::from_value::<Rule>(value).expect_err("is none").to_string();
        assert!(wrong(json!({"principle": 2})).contains("unknown field `principle`"));
        assert!(wrong(json!({"principles": -1})).contains("how many of the last ones"));
        assert!(wrong(json!("a quarter")).contains("a share such as 0.25"));
    }

    #[test]
    fn the_last_ones_are_named() {
        let all: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(Which::Last(2).names(all.iter()), ["b", "c"]);
        assert_eq!(Which::Last(0).names(all.iter()).len(), 0);
        assert_eq!(Which::Last(9).names(all.iter()).len(), 3);
    }
}
