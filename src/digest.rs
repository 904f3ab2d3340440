//! Content digests: blake3 in 32 bytes, and the typed hash of a JSON value that node keys are made of.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

mod json;

/// A blake3 digest. Displays as 64 hex digits; [`Digest::short`] is what people read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Hashes bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Hashes a JSON value by meaning: types are tagged, lengths are prefixed, maps are sorted, floats go by their
    /// bits. Two values hash alike exactly if they are equal, whatever their spelling.
    pub fn of_value(value: &Value) -> Self {
        // Room for most at once.
        let mut hasher = Hasher(Vec::with_capacity(1024));
        hash_value(&mut hasher, value);
        hasher.finish()
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A digest from its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first twelve hex digits.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl std::hash::Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // A part of it spreads as well as all of it, and takes a third of the time.
        state.write_u64(self.0.iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte)));
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.short())
    }
}

/// The text is not 64 lowercase hex digits.
#[derive(Debug, thiserror::Error)]
#[error("not a digest of 64 hex digits")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        blake3::Hash::from_hex(text).map(Self::from).map_err(|_| NotADigest)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A blake3 hasher whose variable-length parts are length-prefixed, so that no two sequences of parts run together.
///
/// The parts are gathered and hashed at once: most are a few bytes, which blake3 takes one by one at a high price.
#[derive(Default)]
pub struct Hasher(Vec<u8>);

impl Hasher {
    /// An empty hasher.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a length-prefixed string.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Adds a number.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// Adds a digest.
    pub fn digest(&mut self, digest: &Digest) -> &mut Self {
        self.0.extend_from_slice(&digest.0);
        self
    }

    /// The digest of all that was added.
    pub fn finish(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// The first eight bytes of the digest as a number: a seed that depends on all that was added.
    pub fn seed(&self) -> u64 {
        let digest = self.finish();
        digest.0[..8].iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte))
    }
}

fn hash_value(hasher: &mut Hasher, value: &Value) {
    match value {
        Value::Null => {
            hasher.text("null");
        }
        Value::Bool(flag) => {
            hasher.text("bool").number(u64::from(*flag));
        }
        Value::Number(number) => {
            if let Some(integer) = number.as_i64() {
                hasher.text("int").number(integer as u64);
            } else if let Some(integer) = number.as_u64() {
                hasher.text("uint").number(integer);
            } else {
                hasher.text("float").number(number.as_f64().unwrap_or(f64::NAN).to_bits());
            }
        }
        Value::String(text) => {
            hasher.text("string").text(text);
        }
        Value::Array(items) => {
            hasher.text("array").number(items.len() as u64);
            for item in items {
                hash_value(hasher, item);
            }
        }
        Value::Object(map) => {
            hasher.text("map").number(map.len() as u64);
            let mut add = |(name, item): (&String, &Value)| {
                hasher.text(name);
                hash_value(hasher, item);
            };
            // They are, unless a feature of `serde_json` keeps them as they came.
            if map.keys().is_sorted() {
                map.iter().for_each(add);
            } else {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(name, _)| *name);
                entries.into_iter().for_each(&mut add);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hash_of_value_sees_type_and_nesting_but_not_order() {
        let of = |value| Digest::of_value(&value);
        assert_eq!(of(json!({"a": 1, "b": 2})), of(json!({"b": 2, "a": 1})));
        assert_ne!(of(json!(1)), of(json!(1.0)));
        assert_ne!(of(json!(["ab", "c"])), of(json!(["a", "bc"])));
        assert_ne!(of(json!([["a"], "b"])), of(json!([["a", "b"]])));
        assert_ne!(of(json!(null)), of(json!("null")));
    }

    #[test]
    fn digest_round_trips_through_text() {
        let digest = Digest::of(b"sami");
        assert_eq!(digest.to_string().parse::<Digest>().ok(), Some(digest));
        assert!("abc".parse::<Digest>().is_err());
    }
}
