//! What is looked at in a `tokenizer.json` before the library gets it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Bytes of the longest token in a list. The library keeps such lists as a tree with a level for each byte, which it takes down
/// by recursion: a token of some ten thousand would end the process. Real ones have dozens.
const LONGEST: usize = 1000;

#[derive(Deserialize)]
struct Outline {
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Longest,
}

/// The length of the longest text in lists, in bytes; what is no list is passed over.
#[derive(Default)]
struct Longest(usize);

/// Errs with what is wrong with a text that no tokenizer should be made of.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let outline: Outline = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match outline.model.map_or(0, |model| model.vocab.0) {
        0..=LONGEST => Ok(()),
        longest => Err(format!("it has a token of {longest} bytes; {LONGEST} are the most")),
    }
}

impl<'de> Deserialize<'de> for Longest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self::default())
    }
}

impl<'de> Visitor<'de> for Longest {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tokens")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self, A::Error> {
        while let Some(Self(length)) = list.next_element()? {
            self.0 = self.0.max(length);
        }
        Ok(self)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self, E> {
        Ok(Self(text.len()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
}
