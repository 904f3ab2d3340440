//! `run.shards`: into how many parts the rows of a node are split.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Parts that a row-wise node is split into, each computed by a worker of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shards {
    /// As many as the work is worth and the machine has room for.
    Auto,
    /// So many, if there are as many rows.
    Count(usize),
}

const AUTO: &str = "auto";

impl Serialize for Shards {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Count(count) => serializer.serialize_u64(*count as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShardsVisitor;
        impl Visitor<'_> for ShardsVisitor {
            type Value = Shards;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or \"auto\"")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Shards, E> {
                let count = usize::try_from(number);
                count.map(Shards::Count).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Shards, E> {
                let count = u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))?;
                self.visit_u64(count)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Shards, E> {
                if text == AUTO { Ok(Shards::Auto) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
            }
        }
        deserializer.deserialize_any(ShardsVisitor)
    }
}

impl JsonSchema for Shards {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Shards".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1 }, { "const": AUTO }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_a_number_or_auto() {
        let read = |text: &str| serde_json::from_str::<Shards>(text).map_err(|error| error.to_string());
        assert_eq!(read("3"), Ok(Shards::Count(3)));
        assert_eq!(read("\"auto\""), Ok(Shards::Auto));
        for wrong in ["-1", "1.5", "\"many\"", "[2]"] {
            assert!(read(wrong).is_err_and(|error| error.contains("a number, or \"auto\"")), "{wrong}");
        }
        for shards in [Shards::Auto, Shards::Count(7)] {
            assert_eq!(read(&serde_json::to_string(&shards).unwrap()), Ok(shards));
        }
    }
}
