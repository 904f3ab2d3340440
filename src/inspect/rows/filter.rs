//! Which rows are wanted: words, and conditions on fields.

use aho_corasick::AhoCorasick;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// Letters of a filter that are read.
const LONGEST: usize = 500;
/// Words and conditions that are read.
const MOST: usize = 16;

/// Which rows are wanted. An empty one passes all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    words: Vec<Word>,
    conditions: Vec<Condition>,
}

/// A text that must be in the row, as JSON writes it; the case of ASCII letters does not count.
#[derive(Debug, Clone)]
struct Word {
    finder: AhoCorasick,
    length: usize,
}

/// What a field must be.
#[derive(Debug, Clone, PartialEq)]
struct Condition {
    /// The field, and fields in it. Through a list it leads into all of its items: one that fits is enough.
    path: Vec<String>,
    is: Is,
    value: String,
    number: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Equal,
    Other,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// Longest first: `<=` is no `<`.
const SIGNS: [(&str, Is); 6] =
    [("!=", Is::Other), ("<=", Is::AtMost), (">=", Is::AtLeast), ("=", Is::Equal), ("<", Is::Less), (">", Is::More)];

impl Filter {
    /// Reads a filter: words that must all be there, `"words with blanks"`, and conditions such as `finish=length`,
    /// `candidates.sami.win<0.5` or `query!="where is it"`. Nothing that is typed is wrong: what is no condition is a word.
    pub fn parse(text: &str) -> Self {
        let mut filter = Self::default();
        let text: String = text.chars().take(LONGEST).collect();
        for part in parts(&text).into_iter().take(MOST) {
            match Condition::parse(&part) {
                Some(condition) => {
                    // Rows that do not have the field's name are not taken apart.
                    filter.words.extend(condition.path.first().and_then(|field| Word::new(field)));
                    filter.conditions.push(condition);
                }
                None => filter.words.extend(Word::new(&part.replace('"', ""))),
            }
        }
        filter
    }

    /// The row of an id.
    pub fn of_id(id: &str) -> Self {
        let condition = Condition { path: vec!["id".to_owned()], is: Is::Equal, value: id.to_owned(), number: None };
        Self { words: Word::new(id).into_iter().collect(), conditions: vec![condition] }
    }

    /// Whether all rows pass.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty() && self.conditions.is_empty()
    }

    /// Whether rows are taken apart to tell.
    pub fn takes_apart(&self) -> bool {
        !self.conditions.is_empty()
    }

    /// How many words there are.
    pub(super) fn words(&self) -> usize {
        self.words.len()
    }

    /// Bytes of the longest word.
    pub(super) fn longest(&self) -> usize {
        self.words.iter().map(|word| word.length).max().unwrap_or(0)
    }

    /// Notes which words are in a part of a row.
    pub(super) fn find(&self, part: &[u8], found: &mut [bool]) {
        for (word, found) in self.words.iter().zip(found) {
            *found = *found || word.finder.is_match(part);
        }
    }

    /// Whether a row passes, of which `line` is the end and `found` says which words stand before that; forgets the latter.
    pub(super) fn passes(&self, line: &[u8], length: u64, found: &mut [bool]) -> bool {
        self.find(line, found);
        let words = found.iter().all(|found| *found);
        found.fill(false);
        // One that was not held whole cannot be taken apart.
        words && (self.conditions.is_empty() || line.len() as u64 == length && hold(&self.conditions, line))
    }
}

/// Splits at blanks that are not in quotes.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for letter in text.chars() {
        quoted ^= letter == '"';
        match parts.last_mut() {
            Some(part) if !letter.is_whitespace() || quoted => part.push(letter),
            _ => parts.push(String::new()),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

impl Word {
    fn new(text: &str) -> Option<Self> {
        let written = serde_json::to_string(text).ok()?;
        let inner = &written[1..written.len() - 1];
        let finder = AhoCorasick::builder().ascii_case_insensitive(true).build([inner]).ok()?;
        (!inner.is_empty()).then_some(Self { finder, length: inner.len() })
    }
}

impl Condition {
    fn parse(part: &str) -> Option<Self> {
        let at = part.find(['!', '<', '>', '='])?;
        let (field, rest) = part.split_at(at);
        let (sign, is) = SIGNS.into_iter().find(|(sign, _)| rest.starts_with(sign))?;
        let plain = |letter: char| letter.is_alphanumeric() || "_-.".contains(letter);
        let value = rest[sign.len()..].replace('"', "");
        let number = value.parse::<f64>().ok();
        let compares = matches!(is, Is::Equal | Is::Other) || number.is_some();
        let named = !field.is_empty() && field.chars().all(plain);
        (named && compares && !value.is_empty()).then(|| Self {
            path: field.split('.').map(str::to_owned).collect(),
            is,
            value,
            number,
        })
    }

    /// Whether a value fits, or one that is at a path in it.
    fn fits(&self, value: &Value, path: &[String]) -> bool {
        match (value, path) {
            (Value::Array(items), [place, rest @ ..]) => {
                let at = place.parse::<usize>().ok().and_then(|place| items.get(place));
                at.map_or_else(|| items.iter().any(|item| self.fits(item, path)), |item| self.fits(item, rest))
            }
            (Value::Array(items), []) => items.iter().any(|item| self.fits(item, path)),
            (value, [name, rest @ ..]) => value.get(name).is_some_and(|value| self.fits(value, rest)),
            (value, []) => self.compare(value),
        }
    }

    fn compare(&self, value: &Value) -> bool {
        let numbers = value.as_f64().zip(self.number);
        let equal = match value {
            Value::String(text) => text.eq_ignore_ascii_case(&self.value),
            Value::Number(_) => numbers.is_some_and(|(own, other)| own == other),
            Value::Bool(is) => self.value == if *is { "true" } else { "false" },
            Value::Null => self.value == "null",
            list => list.to_string().eq(&self.value),
        };
        match self.is {
            Is::Equal => equal,
            Is::Other => !equal,
            Is::Less => numbers.is_some_and(|(own, other)| own < other),
            Is::AtMost => numbers.is_some_and(|(own, other)| own <= other),
            Is::More => numbers.is_some_and(|(own, other)| own > other),
            Is::AtLeast => numbers.is_some_and(|(own, other)| own >= other),
        }
    }
}

/// Whether all conditions hold of a row, which is read once for all of them.
fn hold(conditions: &[Condition], line: &[u8]) -> bool {
    let mut reader = serde_json::Deserializer::from_slice(line);
    Fields(conditions).deserialize(&mut reader).is_ok_and(|held| held.count_ones() as usize == conditions.len())
}

/// Reads the fields of an object that conditions are about, and passes over the others: a bit for each condition that holds.
struct Fields<'a>(&'a [Condition]);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = u32;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u32, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = u32;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<u32, A::Error> {
        let mut held = 0;
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let asks = |condition: &Condition| condition.path.first().is_some_and(|field| *field == name);
            if !self.0.iter().any(asks) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value: Value = map.next_value()?;
            for (at, condition) in self.0.iter().enumerate().filter(|(_, condition)| asks(condition)) {
                // Of a field that is there twice the last one counts.
                let bit = 1 << at;
                held = if condition.fits(&value, &condition.path[1..]) { held | bit } else { held & !bit };
            }
        }
        Ok(held)
    }
}
