//! `tolerance`: how far the numbers that a node makes may be from earlier ones and still count as the same.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A difference of at most `absolute + relative × |earlier number|` counts as none. A number alone is both.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// In parts of the earlier number.
    pub relative: f64,
    /// In itself.
    pub absolute: f64,
}

impl Tolerance {
    /// Whether both are distances.
    pub(super) fn is_sound(&self) -> bool {
        [self.relative, self.absolute].iter().all(|part| part.is_finite() && *part >= 0.0)
    }
}

impl<'de> Deserialize<'de> for Tolerance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ToleranceVisitor;
        impl<'de> Visitor<'de> for ToleranceVisitor {
            type Value = Tolerance;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or { relative = NUMBER, absolute = NUMBER }")
            }

            fn visit_f64<E>(self, number: f64) -> Result<Tolerance, E> {
                Ok(Tolerance { relative: number, absolute: number })
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Tolerance, E> {
                self.visit_f64(number as f64)
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Tolerance, E> {
                self.visit_f64(number as f64)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tolerance, A::Error> {
                let mut tolerance = Tolerance { relative: 0.0, absolute: 0.0 };
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "relative" => tolerance.relative = map.next_value()?,
                        "absolute" => tolerance.absolute = map.next_value()?,
                        _ => return Err(A::Error::unknown_field(&key, &["relative", "absolute"])),
                    }
                }
                Ok(tolerance)
            }
        }
        deserializer.deserialize_any(ToleranceVisitor)
    }
}

impl JsonSchema for Tolerance {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Tolerance".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["number", "object"],
            "minimum": 0,
            "properties": {
                "relative": { "type": "number", "minimum": 0, "description": "In parts of the earlier number." },
                "absolute": { "type": "number", "minimum": 0, "description": "In itself." },
            },
            "additionalProperties": false,
        })
    }
}
