//! Principles as a person or a file of the authors gives them.

use std::fmt;

use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

/// A principle as written; either text may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = with_weak)]
pub struct Draft {
    /// What a response that follows the principle is like.
    #[serde(default, alias = "weak")]
    pub definition: Option<String>,
    /// What a response that goes against it is like.
    #[serde(default)]
    pub antithesis: Option<String>,
    /// Other wordings; kept, not used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paraphrases: Vec<String>,
    /// Other wordings of the antithesis; the first serves where `antithesis` is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paraphrases_antithesis: Vec<String>,
    /// Another wording, stronger; kept, not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strong: Option<String>,
    /// Fields of work that the principle is for; kept, not used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relevant_for: Vec<String>,
}

impl Draft {
    /// The antithesis, if there is one.
    pub fn written_antithesis(&self) -> Option<&str> {
        self.antithesis.as_deref().or(self.paraphrases_antithesis.first().map(String::as_str))
    }
}

/// A table of principles by name, the authors' list of pairs of constitutions, or a list of texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Principles(pub IndexMap<String, Draft>);

/// What a list may hold.
#[derive(Debug)]
enum Item {
    /// A principle without a name or an antithesis.
    Text(String),
    Pair(Pair),
}

/// A pair of whole constitutions in the authors' schema.
#[derive(Debug, Deserialize, JsonSchema)]
struct Pair {
    positive: String,
    negative: String,
    identifiers: Identifiers,
}

/// Which principle, in which polarity, each line of a pair is: `pos concise`, `neg concise`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Identifiers {
    positive: Vec<String>,
    negative: Vec<String>,
}

impl Principles {
    /// Reads principles out of one constitution whose parts are named.
    fn add(&mut self, text: &str, identifiers: &[String]) -> Result<(), String> {
        let parts = split_numbered(text);
        if parts.len() != identifiers.len() {
            return Err(format!("a constitution of {} principles has {} identifiers", parts.len(), identifiers.len()));
        }
        for (part, identifier) in parts.into_iter().zip(identifiers) {
            let (polarity, name) = identifier.split_once(' ').unwrap_or((identifier, ""));
            if name.trim().is_empty() {
                return Err(format!("the identifier `{identifier}` is not `pos NAME` or `neg NAME`"));
            }
            let draft = self.0.entry(name.trim().to_owned()).or_default();
            let slot = match polarity {
                "pos" => &mut draft.definition,
                "neg" => &mut draft.antithesis,
                _ => return Err(format!("the identifier `{identifier}` is not `pos NAME` or `neg NAME`")),
            };
            match slot {
                None => *slot = Some(part),
                Some(known) if *known == part => {}
                Some(_) => return Err(format!("`{identifier}` has two different texts")),
            }
        }
        Ok(())
    }
}

/// Splits `1. …\n2. …` into its parts; a line that does not start with the next number continues the part before, so
/// ten or more parts and parts of several lines are safe.
pub fn split_numbered(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for line in text.lines() {
        let next = format!("{}.", parts.len() + 1);
        match (line.trim_start().strip_prefix(&next), parts.last_mut()) {
            (Some(rest), _) => parts.push(rest.trim().to_owned()),
            (None, Some(part)) => {
                part.push('\n');
                part.push_str(line.trim_end());
            }
            (None, None) if line.trim().is_empty() => {}
            (None, None) => parts.push(line.trim().to_owned()),
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

impl Serialize for Principles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Principles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PrinciplesVisitor;
        impl<'de> Visitor<'de> for PrinciplesVisitor {
            type Value = Principles;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("principles by name: { name = { definition = \"…\", antithesis = \"…\" } }, or { file = \"principles.json\" }")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Principles, A::Error> {
                let mut principles = Principles::default();
                while let Some(name) = map.next_key::<String>()? {
                    principles.0.insert(name, map.next_value()?);
                }
                Ok(principles)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Principles, A::Error> {
                let mut principles = Principles::default();
                while let Some(item) = seq.next_element::<Item>()? {
                    match item {
                        Item::Text(text) => {
                            let name = (principles.0.len() + 1).to_string();
                            principles.0.insert(name, Draft { definition: Some(text), ..Draft::default() });
                        }
                        Item::Pair(pair) => {
                            principles.add(&pair.positive, &pair.identifiers.positive).map_err(A::Error::custom)?;
                            principles.add(&pair.negative, &pair.identifiers.negative).map_err(A::Error::custom)?;
                        }
                    }
                }
                Ok(principles)
            }
        }
        deserializer.deserialize_any(PrinciplesVisitor)
    }
}

/// `weak`, as the authors' files call it, is another name of `definition`.
fn with_weak(schema: &mut Schema) {
    if let Some(Value::Object(fields)) = schema.get_mut("properties") {
        let definition = fields.get("definition").cloned().unwrap_or_default();
        fields.insert("weak".to_owned(), definition);
    }
}

impl JsonSchema for Principles {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Principles".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut item = generator.subschema_for::<Pair>();
        item.insert("type".to_owned(), json!(["string", "object"]));
        json_schema!({
            "type": ["object", "array"],
            "additionalProperties": generator.subschema_for::<Draft>(),
            "items": item,
        })
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair { positive, negative, identifiers }, or the text of a principle")
            }

            fn visit_str<E>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item, A::Error> {
                Pair::deserialize(MapAccessDeserializer::new(map)).map(Item::Pair)
            }
        }
        deserializer.deserialize_any(ItemVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbered_parts_survive_tens_and_several_lines() {
        let text = (1..=12).map(|n| format!("{n}. Principle {n}\nmore of {n}\n")).collect::<Vec<_>>().concat();
        let parts = split_numbered(&text);
        assert_eq!(parts.len(), 12);
        assert_eq!(parts[10], "Principle 11\nmore of 11");
        assert_eq!(split_numbered("Only one."), ["Only one."]);
    }

    #[test]
    fn pairs_become_principles() {
        let pairs = json!([
            {"positive": "1. Short.\n2. Full.", "negative": "1. Long.\n2. Full.",
             "identifiers": {"positive": ["pos concise", "pos full"], "negative": ["neg concise", "pos full"]}},
            {"positive": "1. Short.\n2. Full.", "negative": "1. Short.\n2. Thin.",
             "identifiers": {"positive": ["pos concise", "pos full"], "negative": ["pos concise", "neg full"]}},
        ]);
        let principles: Principles = serde_json::from_value(pairs).expect("reads");
        assert_eq!(principles.0["concise"].antithesis.as_deref(), Some("Long."));
        assert_eq!(principles.0["full"].definition.as_deref(), Some("Full."));
        let again: Principles = serde_json::from_value(json!(principles)).expect("reads its own writing");
        assert_eq!(again, principles);
    }

    #[test]
    fn texts_and_pairs_of_wordings_become_principles() {
        let principles: Principles = serde_json::from_value(json!(["I am Layla.", "I am Ali."])).expect("reads");
        assert_eq!(principles.0["2"].definition.as_deref(), Some("I am Ali."));
        assert_eq!(principles.0["2"].written_antithesis(), None);
        let wordings = json!({"math.1": {"weak": "Think.", "strong": "Think HARD.", "antithesis": "Guess.",
            "relevant_for": ["math"]}});
        let principles: Principles = serde_json::from_value(wordings).expect("reads");
        assert_eq!(principles.0["math.1"].definition.as_deref(), Some("Think."));
        assert_eq!(principles.0["math.1"].written_antithesis(), Some("Guess."));
        let again: Principles = serde_json::from_value(json!(principles)).expect("reads its own writing");
        assert_eq!(again, principles);
    }

    #[test]
    fn a_pair_that_contradicts_itself_is_an_error() {
        let pair = json!([{"positive": "1. A", "negative": "1. B", "identifiers": {"positive": ["pos x"], "negative": ["pos x"]}}]);
        let error = serde_json::from_value::<Principles>(pair).expect_err("contradiction").to_string();
        assert!(error.contains("two different texts"), "{error}");
        let pair = json!([{"positive": "1. A", "negative": "1. B", "identifiers": {"positive": ["pos"], "negative": ["neg x"]}}]);
        let error = serde_json::from_value::<Principles>(pair).expect_err("no name").to_string();
        assert!(error.contains("`pos NAME`"), "{error}");
    }
}
