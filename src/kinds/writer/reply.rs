//! What a writer answered, as principles: one JSON object of the form that was asked for. A fence or prose around it does not
//! matter; anything else that is wrong is told in words that the writer can be given back.

use std::fmt;
use std::sync::LazyLock;

use indexmap::IndexMap;
use regex::Regex;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::kinds::alike::{same, words};
use crate::kinds::contrast::Principle;
use crate::kinds::principles::Draft;

/// How a text begins that is no principle but a refusal to write one.
static REFUSAL: LazyLock<Regex> = LazyLock::new(|| {
    let begins = r"(?i)^\W*(i['’]m (really |very )?sorry|i am (really |very )?sorry|sorry\b|i (can['’]t|cannot|can not|won['’]t|will not)\b|i['’]m (unable|not able)|i am (unable|not able)|as an ai\b)";
    Regex::new(begins).expect("a pattern")
});

/// Words of a form that was not filled in.
const OF_FORMS: &[&str] = &[
    "a",
    "an",
    "the",
    "its",
    "of",
    "your",
    "here",
    "insert",
    "write",
    "text",
    "principle",
    "definition",
    "antithesis",
];

/// The keys of an object in order; one that stands twice is an error.
#[derive(Debug)]
struct Object(IndexMap<String, Value>);

/// Reads the principles that were asked for out of an answer. What a person wrote is kept, whatever the answer says.
///
/// An error says what is wrong with the answer, as one would say it to the writer.
pub(super) fn read(reply: &str, asked: &IndexMap<String, Draft>) -> Result<IndexMap<String, Principle>, String> {
    let object = unwrapped(only_object(reply)?, asked);
    let mut found: IndexMap<&String, Value> = IndexMap::new();
    let mut more = Vec::new();
    for (name, value) in object.0 {
        let exactly = asked.keys().find(|known| **known == name);
        let known = exactly.or_else(|| asked.keys().find(|known| same(known, &name)));
        match known {
            Some(known) if found.contains_key(known) => return Err(format!("the principle `{known}` is there twice")),
            Some(known) => drop(found.insert(known, value)),
            None => more.push(name),
        }
    }
    let missing: Vec<&String> = asked.keys().filter(|name| !found.contains_key(name)).collect();
    if !missing.is_empty() || !more.is_empty() {
        let listed = |names: &[&String]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let mut faults = Vec::new();
        if !missing.is_empty() {
            faults.push(format!("lacks {}", listed(&missing)));
        }
        if !more.is_empty() {
            faults.push(format!("has {}, which was not asked for", listed(&more.iter().collect::<Vec<_>>())));
        }
        return Err(format!("the JSON object {}", faults.join(" and ")));
    }
    let mut principles = IndexMap::with_capacity(asked.len());
    for (name, draft) in asked {
        let value = &found[name];
        let text = |field: &str, given: Option<&str>| match given {
            Some(given) => Ok(given.to_owned()),
            None => written(name, field, value),
        };
        let definition = text("definition", draft.definition.as_deref())?;
        let antithesis = text("antithesis", draft.written_antithesis())?;
        if same(&definition, &antithesis) {
            return Err(format!("the antithesis of `{name}` says the same as its definition"));
        }
        principles.insert(name.clone(), Principle { definition, antithesis });
    }
    Ok(principles)
}

/// A text that the writer wrote.
fn written(name: &str, field: &str, of: &Value) -> Result<String, String> {
    let Some(object) = of.as_object() else {
        return Err(format!("what stands for `{name}` is no object with `definition` and `antithesis`"));
    };
    let text = match object.get(field) {
        Some(Value::String(text)) => text.trim(),
        Some(_) => return Err(format!("the {field} of `{name}` is no text")),
        None => return Err(format!("`{name}` has no `{field}`")),
    };
    if text.is_empty() {
        return Err(format!("the {field} of `{name}` is empty"));
    }
    if REFUSAL.is_match(text) {
        return Err(format!("the {field} of `{name}` is a refusal, and not a text that says what responses are like"));
    }
    let own = words(name);
    let framed = [('<', '>'), ('[', ']'), ('{', '}')]
        .iter()
        .any(|(open, close)| text.starts_with(*open) && text.ends_with(*close));
    let echo = words(text).iter().all(|word| own.contains(word) || OF_FORMS.contains(&word.as_str()));
    if framed || echo {
        return Err(format!("the {field} of `{name}` is {text:?}: a place to be filled in, and not a text"));
    }
    Ok(text.to_owned())
}

/// Takes off `{"principles": {…}}` where it was not asked for.
fn unwrapped(object: Object, asked: &IndexMap<String, Draft>) -> Object {
    match object.0.get("principles") {
        Some(Value::Object(inner)) if object.0.len() == 1 && !asked.contains_key("principles") => {
            Object(inner.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
        }
        _ => object,
    }
}

/// The one JSON object of a text.
fn only_object(text: &str) -> Result<Object, String> {
    let (mut objects, mut fault) = (Vec::new(), None);
    let mut at = 0;
    while let Some(start) = text[at..].find('{').map(|found| at + found) {
        at = start + 1;
        // Braces of prose and templates are followed by something else.
        if !text[at..].trim_start().starts_with(['"', '\'', '}']) {
            continue;
        }
        let mut stream = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Object>();
        match stream.next() {
            Some(Ok(object)) => {
                objects.push(object);
                at = start + stream.byte_offset();
            }
            Some(Err(error)) if error.is_eof() => {
                let what = "the JSON object has no end, as if the answer were cut off";
                fault.get_or_insert(what.to_owned());
                break;
            }
            Some(Err(error)) => {
                fault.get_or_insert(format!("the JSON object cannot be read: {error}"));
                // What stands in an object that cannot be read is no object of its own.
                at = end(&text[start..]).map_or(text.len(), |end| start + end);
            }
            None => {}
        }
    }
    match (objects.len(), fault) {
        (1, _) => Ok(objects.remove(0)),
        (0, Some(fault)) => Err(fault),
        (0, None) if REFUSAL.is_match(text) => Err("it is a refusal, and not the JSON object".to_owned()),
        (0, None) if text.trim().is_empty() => Err("it is empty".to_owned()),
        (0, None) => Err("there is no JSON object in it".to_owned()),
        (count, _) => Err(format!("there are {count} JSON objects in it, and one is wanted")),
    }
}

/// Where the braces that a text begins with are closed.
fn end(text: &str) -> Option<usize> {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '{' if !quoted => depth += 1,
            '}' if !quoted => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = IndexMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if object.contains_key(&name) {
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                    object.insert(name, value);
                }
                Ok(Object(object))
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> IndexMap<String, Draft> {
        [("concise".to_owned(), Draft::default()), ("pirate_speak".to_owned(), Draft::default())].into()
    }

    const GOOD: &str = r#"{"concise": {"definition": "Summaries are brief.", "antithesis": "Summaries ramble."},
        "pirate_speak": {"definition": "Talk like a pirate.", "antithesis": "Talk plainly."}}"#;

    fn fault(reply: &str) -> String {
        read(reply, &asked()).expect_err("it cannot be used")
    }

    #[test]
    fn a_fence_prose_or_a_wrapping_around_the_object_does_not_matter() {
        for reply in [
            GOOD.to_owned(),
            format!("```json\n{GOOD}\n```"),
            format!("Sure! Each {{principle}} has both texts:\n\n{GOOD}\n\nI hope {{this}} helps."),
            format!("{{\"principles\": {GOOD}}}"),
            GOOD.replace("pirate_speak", "Pirate speak"),
            GOOD.replace("\"Talk plainly.\"", "\"Talk plainly.\", \"why\": \"pirates do not\""),
        ] {
            let read = read(&reply, &asked()).unwrap_or_else(|fault| panic!("{fault}: {reply}"));
            assert_eq!(read["concise"].antithesis, "Summaries ramble.");
            assert_eq!(read["pirate_speak"].definition, "Talk like a pirate.");
        }
    }

    #[test]
    fn what_a_person_wrote_is_kept() {
        let mut asked = asked();
        asked["concise"].definition = Some("Be brief.".to_owned());
        let read = read(GOOD, &asked).expect("reads");
        assert_eq!(
            (read["concise"].definition.as_str(), read["concise"].antithesis.as_str()),
            ("Be brief.", "Summaries ramble.")
        );
        asked["concise"].definition = Some("Summaries ramble!".to_owned());
        assert!(super::read(GOOD, &asked).expect_err("the same").contains("says the same"));
    }

    #[test]
    fn answers_without_the_object_are_told_apart() {
        assert_eq!(fault("Conciseness means that a summary is short."), "there is no JSON object in it");
        assert_eq!(fault(" \n"), "it is empty");
        assert!(fault("I'm sorry, but I can’t help with that.").contains("refusal"));
        assert!(fault(&format!("{GOOD}\n{GOOD}")).contains("2 JSON objects"));
        assert!(fault(&GOOD[..GOOD.len() - 9]).contains("no end"));
        let broken = fault(&GOOD.replace("ramble.\"", "ramble.\","));
        assert!(broken.contains("cannot be read") && broken.contains("trailing comma"), "{broken}");
        assert!(fault(&GOOD.replace('"', "'")).contains("cannot be read"));
        assert!(fault(&GOOD.replace("pirate_speak", "concise")).contains("`concise` is there twice"));
        assert!(fault("[\"a\"]").contains("no JSON object"));
        assert!(fault("{}").contains("lacks `concise`, `pirate_speak`"));
    }

    #[test]
    fn principles_that_are_missing_or_too_many_are_named() {
        let more = GOOD.replacen('{', r#"{"poetic": {"definition": "Rhyme.", "antithesis": "Prose."}, "#, 1);
        assert_eq!(fault(&more), "the JSON object has `poetic`, which was not asked for");
        let renamed = fault(&GOOD.replace("pirate_speak", "corsair"));
        assert_eq!(renamed, "the JSON object lacks `pirate_speak` and has `corsair`, which was not asked for");
        assert!(fault(&GOOD.replace("pirate_speak", "Concise")).contains("is there twice"));
    }

    #[test]
    fn texts_that_say_nothing_are_named() {
        for (text, what) in [
            ("", "is empty"),
            ("…", "filled in"),
            ("<definition>", "filled in"),
            ("[a good antithesis]", "filled in"),
            ("The antithesis of concise", "filled in"),
            ("I cannot write that.", "is a refusal"),
            ("Summaries are BRIEF!", "says the same"),
        ] {
            let fault = fault(&GOOD.replace("Summaries ramble.", text));
            assert!(fault.contains("antithesis of `concise`") && fault.contains(what), "{text}: {fault}");
        }
        assert!(fault(&GOOD.replace("\"Summaries ramble.\"", "[\"a\"]")).contains("is no text"));
        assert!(
            fault(&GOOD.replace("\"antithesis\": \"Summaries", "\"opposite\": \"Summaries"))
                .contains("has no `antithesis`")
        );
        assert!(fault(r#"{"concise": "Be brief.", "pirate_speak": "Arr."}"#).contains("no object with `definition`"));
    }
}
