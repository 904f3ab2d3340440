//! The typed hash of JSON as text, without a tree of it: what a store of very many records is read through by.
//!
//! Approach: while the text is parsed, each part goes into the hasher as [`Digest::of_value`] would put it there; how many parts
//! an array or a map has is filled in at its end. That needs names in order, as we write them.

use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{Digest, Hasher};

/// Bytes of a number of parts.
const COUNT: usize = size_of::<u64>();

impl Digest {
    /// The digest that [`Digest::of_value`] gives of an object in JSON without its field `but`, and what that field says.
    /// `None` where it takes a tree to tell: of what is no object, has names that are not in order, or another value than a string
    /// in that field.
    pub fn of_object_but(text: &[u8], but: &str) -> Option<(Self, Option<String>)> {
        let mut hasher = Hasher(Vec::with_capacity(text.len()));
        let mut json = serde_json::Deserializer::from_slice(text);
        let said = Object { hasher: &mut hasher, but: Some(but) }.deserialize(&mut json).ok()?;
        json.end().ok()?;
        Some((hasher.finish(), said))
    }
}

/// Any value.
struct Part<'a>(&'a mut Hasher);

/// An object, and which of its fields is left out and returned.
struct Object<'a> {
    hasher: &'a mut Hasher,
    but: Option<&'a str>,
}

/// The name of a field: put in, its place is returned.
struct Name<'a>(&'a mut Hasher);

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<String>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Range<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Range<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.text("null");
        Ok(())
    }

    fn visit_bool<E>(self, flag: bool) -> Result<(), E> {
        self.0.text("bool").number(u64::from(flag));
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.0.text("int").number(number as u64);
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.0.text(if i64::try_from(number).is_ok() { "int" } else { "uint" }).number(number);
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.0.text("float").number(number.to_bits());
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.text("string").text(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let place = begin(self.0, "array");
        let mut count = 0;
        while items.next_element_seed(Part(self.0))?.is_some() {
            count += 1;
        }
        end(self.0, place, count);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<(), A::Error> {
        Object { hasher: self.0, but: None }.visit_map(fields).map(drop)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Option<String>, A::Error> {
        let Self { hasher, but } = self;
        let place = begin(hasher, "map");
        let (mut count, mut said, mut last) = (0, None, None::<Range<usize>>);
        loop {
            let before = hasher.0.len();
            let Some(name) = fields.next_key_seed(Name(hasher))? else { break };
            if but.is_some_and(|but| but.as_bytes() == &hasher.0[name.clone()]) {
                if said.is_some() {
                    return Err(A::Error::custom("it is there twice"));
                }
                said = Some(fields.next_value()?);
                hasher.0.truncate(before);
                continue;
            }
            // Of two that are the same a tree has the last.
            if last.is_some_and(|last| hasher.0[last] >= hasher.0[name.clone()]) {
                return Err(A::Error::custom("names are not in order"));
            }
            last = Some(name);
            fields.next_value_seed(Part(hasher))?;
            count += 1;
        }
        end(hasher, place, count);
        Ok(said)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Range<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, text: &str) -> Result<Range<usize>, E> {
        self.0.text(text);
        let end = self.0.0.len();
        Ok(end - text.len()..end)
    }
}

/// Begins what has parts; returns where their number is to stand.
fn begin(hasher: &mut Hasher, what: &str) -> usize {
    let place = hasher.text(what).0.len();
    hasher.number(0);
    place
}

fn end(hasher: &mut Hasher, place: usize, count: u64) {
    hasher.0[place..place + COUNT].copy_from_slice(&count.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map("[a-d\\\"\n\u{e4}]{0,3}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_is_that_of_the_value(
            fields in proptest::collection::btree_map("[a-e]{0,3}", value(), 0..6),
            check in proptest::option::of(any::<String>()),
            pretty in any::<bool>(),
        ) {
            let rest: Map<String, Value> = fields.into_iter().filter(|(name, _)| name != "check").collect();
            let mut all = rest.clone();
            all.extend(check.iter().map(|check| ("check".to_owned(), json!(check))));
            let text = if pretty { serde_json::to_vec_pretty(&all) } else { serde_json::to_vec(&all) }.unwrap();
            let (digest, said) = Digest::of_object_but(&text, "check").expect("names are in order");
            // As it is read back: numbers that are not finite are written as null.
            let mut read: Value = serde_json::from_slice(&text).unwrap();
            read.as_object_mut().unwrap().remove("check");
            prop_assert_eq!(digest, Digest::of_value(&read));
            prop_assert_eq!(said, check);
        }
    }

    #[test]
    fn what_needs_a_tree_is_left_to_it() {
        let of = |text: &str| Digest::of_object_but(text.as_bytes(), "check");
        for text in [
            "",
            "[]",
            "1",
            "{\"b\": 1, \"a\": 2}",
            "{\"a\": 1, \"a\": 2}",
            "{\"x\": {\"b\": 1, \"a\": 2}}",
            "{} {}",
            "{\"a\": 1",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
        for text in ["{\"check\": 1}", "{\"check\": \"a\", \"check\": \"a\"}"] {
            assert_eq!(of(text), None, "{text}");
        }
        // Where the field stands does not matter, and within another object it is a field like any.
        let (first, last) = ("{\"check\": \"c\", \"a\": 1, \"z\": 2}", "{\"a\": 1, \"z\": 2, \"check\": \"c\"}");
        assert_eq!(of(first), of(last));
        assert_eq!(of(first), Some((Digest::of_value(&json!({"a": 1, "z": 2})), Some("c".to_owned()))));
        let within = json!({"a": {"check": "c"}});
        assert_eq!(of(&within.to_string()), Some((Digest::of_value(&within), None)));
    }
}
