//! A serde deserializer over [`Tree`] whose errors keep the place of the innermost part at fault.

use std::fmt::Display;
use std::ops::Range;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::tree::{Entry, Tree, TreeError, TreeErrorKind, TreeValue};

/// The span of an error that has no place yet: visitors do not know where they are, so the nearest caller that does
/// fills it in.
const NOWHERE: Range<usize> = usize::MAX..usize::MAX;

/// Reads a typed value from a tree.
pub fn from_tree<T: DeserializeOwned>(tree: &Tree) -> Result<T, TreeError> {
    T::deserialize(tree)
}

impl std::error::Error for TreeError {}

impl Display for TreeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.what {
            TreeErrorKind::UnknownKey { key, .. } => write!(f, "unknown key `{key}`"),
            TreeErrorKind::MissingKey(key) => write!(f, "missing key `{key}`"),
            TreeErrorKind::UnknownWord { word, .. } => write!(f, "unknown word `{word}`"),
            TreeErrorKind::WrongType(what) | TreeErrorKind::Other(what) => f.write_str(what),
        }
    }
}

fn nowhere(what: TreeErrorKind) -> TreeError {
    TreeError { span: NOWHERE, what }
}

/// Rust's type names in the words of people who write TOML.
fn in_words(expected: &dyn Expected) -> String {
    let expected = expected.to_string();
    match expected.as_str() {
        "f64" | "f32" => "a number".to_owned(),
        "u8" => "a whole number from 0 to 255".to_owned(),
        "u64" | "u32" | "u16" | "usize" => "a whole number from 0 up".to_owned(),
        "i64" | "i32" | "i16" | "i8" | "isize" => "a whole number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" => "a table".to_owned(),
        text if text.starts_with("struct ") => "a table".to_owned(),
        text if text.starts_with("enum ") => "a word".to_owned(),
        _ => expected,
    }
}

fn found(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Str(text) if text.chars().count() > 40 => "a string".to_owned(),
        Unexpected::Str(text) => format!("the string {text:?}"),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Unsigned(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number:?}"),
        Unexpected::Bool(flag) => format!("{flag}"),
        Unexpected::Seq => "an array".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

impl de::Error for TreeError {
    fn custom<T: Display>(message: T) -> Self {
        nowhere(TreeErrorKind::Other(message.to_string()))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        nowhere(TreeErrorKind::WrongType(format!("expected {}, found {}", in_words(expected), found(unexpected))))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        nowhere(TreeErrorKind::WrongType(format!("expected {}, found {length} items", in_words(expected))))
    }

    fn unknown_variant(word: &str, expected: &'static [&'static str]) -> Self {
        let expected = expected.iter().map(|&word| word.to_owned()).collect();
        nowhere(TreeErrorKind::UnknownWord { word: word.to_owned(), expected })
    }

    fn unknown_field(key: &str, expected: &'static [&'static str]) -> Self {
        let expected = expected.iter().map(|&key| key.to_owned()).collect();
        nowhere(TreeErrorKind::UnknownKey { key: key.to_owned(), expected })
    }

    fn missing_field(key: &'static str) -> Self {
        nowhere(TreeErrorKind::MissingKey(key.to_owned()))
    }
}

impl Tree {
    /// Gives an error that has no place the place of this value, or of the key that it names.
    fn locate<T>(&self, result: Result<T, TreeError>) -> Result<T, TreeError> {
        result.map_err(|mut error| {
            if error.span == NOWHERE {
                error.span = self.span.clone();
                if let TreeErrorKind::UnknownKey { key, .. } = &error.what
                    && let Some(entry) = self.table().and_then(|table| table.get(key))
                {
                    error.span = entry.key_span.clone();
                }
            }
            error
        })
    }

    fn visit<'de, V: Visitor<'de>>(&'de self, visitor: V) -> Result<V::Value, TreeError> {
        match &self.value {
            TreeValue::String(text) => visitor.visit_borrowed_str(text),
            TreeValue::Integer(number) => visitor.visit_i64(*number),
            TreeValue::Float(number) => visitor.visit_f64(*number),
            TreeValue::Boolean(flag) => visitor.visit_bool(*flag),
            TreeValue::Array(items) => visitor.visit_seq(Items(items.iter())),
            TreeValue::Table(table) => visitor.visit_map(Entries { entries: table.iter(), value: None }),
            TreeValue::Hole => visitor.visit_borrowed_str(""),
        }
    }
}

/// `deserialize_X` that differs from `deserialize_any` only for a hole, which gives the most harmless X.
macro_rules! harmless {
    ($($method:ident($visit:ident $value:expr);)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
            match self.value {
                TreeValue::Hole => self.locate(visitor.$visit($value)),
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for &'de Tree {
    type Error = TreeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.locate(self.visit(visitor))
    }

    harmless! {
        deserialize_bool(visit_bool false);
        deserialize_i8(visit_i8 1);
        deserialize_i16(visit_i16 1);
        deserialize_i32(visit_i32 1);
        deserialize_i64(visit_i64 1);
        deserialize_u8(visit_u8 1);
        deserialize_u16(visit_u16 1);
        deserialize_u32(visit_u32 1);
        deserialize_u64(visit_u64 1);
        deserialize_f32(visit_f32 1.0);
        deserialize_f64(visit_f64 1.0);
        deserialize_seq(visit_seq Items([].iter()));
        deserialize_map(visit_map Holes([].iter()));
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self.value {
            TreeValue::Hole => self.locate(visitor.visit_none()),
            _ => self.locate(visitor.visit_some(self)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        self.locate(visitor.visit_newtype_struct(self))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        match self.value {
            TreeValue::Hole => self.locate(visitor.visit_map(Holes(fields.iter()))),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        let result = match &self.value {
            TreeValue::String(word) => visitor.visit_enum(word.as_str().into_deserializer()),
            TreeValue::Hole => visitor.visit_enum(variants.first().copied().unwrap_or_default().into_deserializer()),
            TreeValue::Table(table) if table.len() == 1 => match table.get_index(0) {
                Some((key, entry)) => visitor.visit_enum(Variant { key, entry }),
                None => self.visit(visitor),
            },
            _ => self.visit(visitor),
        };
        self.locate(result)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 unit char str string bytes byte_buf unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items<'de>(std::slice::Iter<'de, Tree>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = TreeError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, TreeError> {
        self.0.next().map(|item| item.locate(seed.deserialize(item))).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, (String, Entry)>,
    value: Option<&'de Tree>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = TreeError;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, TreeError> {
        let Some((key, entry)) = self.entries.next() else { return Ok(None) };
        self.value = Some(&entry.value);
        let key: StrDeserializer<'_, TreeError> = key.as_str().into_deserializer();
        match seed.deserialize(key) {
            Ok(key) => Ok(Some(key)),
            Err(mut error) => {
                if error.span == NOWHERE {
                    error.span = entry.key_span.clone();
                }
                Err(error)
            }
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, TreeError> {
        let value = self.value.take().expect("serde asks for a value only after its key");
        value.locate(seed.deserialize(value))
    }
}

/// Every field of a struct, each a hole.
struct Holes(std::slice::Iter<'static, &'static str>);

static HOLE: Tree = Tree { span: NOWHERE, value: TreeValue::Hole };

impl<'de> MapAccess<'de> for Holes {
    type Error = TreeError;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, TreeError> {
        let Some(key) = self.0.next() else { return Ok(None) };
        let key: StrDeserializer<'_, TreeError> = key.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, TreeError> {
        seed.deserialize(&HOLE)
    }
}

/// An enum written as a table of one key: the variant's name and what it holds.
struct Variant<'de> {
    key: &'de str,
    entry: &'de Entry,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = TreeError;
    type Variant = &'de Tree;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, &'de Tree), TreeError> {
        let key: StrDeserializer<'_, TreeError> = self.key.into_deserializer();
        match seed.deserialize(key) {
            Ok(variant) => Ok((variant, &self.entry.value)),
            Err(error) => Err(TreeError { span: self.entry.key_span.clone(), ..error }),
        }
    }
}

impl<'de> VariantAccess<'de> for &'de Tree {
    type Error = TreeError;

    fn unit_variant(self) -> Result<(), TreeError> {
        match self.table() {
            Some(table) if table.is_empty() => Ok(()),
            _ => self.locate(Err(nowhere(TreeErrorKind::WrongType("expected nothing but the word".to_owned())))),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, TreeError> {
        self.locate(seed.deserialize(self))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, visitor: V) -> Result<V::Value, TreeError> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        self.deserialize_any(visitor)
    }
}

/// Reads a typed value and reports everything that does not fit: what was reported is taken out or becomes a hole,
/// and the rest is tried again. Returns the value, and whether none of it is made up: unknown keys are only left out.
pub(super) fn fit<T>(
    tree: &mut Tree,
    parse: impl Fn(&Tree) -> Result<T, TreeError>,
    mut report: impl FnMut(TreeError),
) -> (Option<T>, bool) {
    let mut whole = true;
    // Each turn takes one fault out, so this ends; the cap is against a type that finds fault with a hole for ever.
    for _ in 0..64 {
        let error = match parse(tree) {
            Ok(value) => return (Some(value), whole),
            Err(error) => error,
        };
        if error.span == NOWHERE {
            break;
        }
        whole &= matches!(error.what, TreeErrorKind::UnknownKey { .. });
        let mended = mend(tree, &error);
        report(error);
        if !mended {
            break;
        }
    }
    (None, false)
}

/// Takes the fault out of the tree. Returns whether it was found.
fn mend(tree: &mut Tree, error: &TreeError) -> bool {
    if matches!(tree.value, TreeValue::Hole) {
        return false;
    }
    let hole = |span: &Range<usize>| Tree { span: span.clone(), value: TreeValue::Hole };
    match &error.what {
        TreeErrorKind::MissingKey(key) if tree.span == error.span => {
            let span = tree.span.clone();
            if let Some(table) = tree.table_mut()
                && !table.contains_key(key)
            {
                table.insert(key.clone(), Entry { key_span: span.clone(), value: hole(&span) });
                return true;
            }
        }
        TreeErrorKind::UnknownKey { key, .. } => {
            if let Some(table) = tree.table_mut()
                && table.get(key).is_some_and(|entry| entry.key_span == error.span)
            {
                table.shift_remove(key);
                return true;
            }
        }
        _ if tree.span == error.span => {
            tree.value = TreeValue::Hole;
            return true;
        }
        _ => {}
    }
    match &mut tree.value {
        TreeValue::Array(items) => items.iter_mut().any(|item| mend(item, error)),
        TreeValue::Table(table) => table.values_mut().any(|entry| {
            if entry.key_span == error.span && !matches!(error.what, TreeErrorKind::MissingKey(_)) {
                entry.value.value = TreeValue::Hole;
                return true;
            }
            mend(&mut entry.value, error)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde::Deserialize;

    use super::*;
    use crate::diag::Source;
    use crate::pipeline::document;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        rate: f64,
        count: u8,
        #[serde(default)]
        words: Vec<String>,
        #[serde(default)]
        inner: Option<Inner>,
        #[serde(default)]
        choice: Choice,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        flags: BTreeMap<String, bool>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Choice {
        #[default]
        None,
        UpTo(u32),
        Range {
            low: i64,
        },
    }

    fn read(text: &str) -> (Option<Fields>, Vec<(String, String)>) {
        let source = Arc::new(Source::new("x.toml", text));
        let mut tree = document::parse(&source).expect("TOML");
        let mut errors = Vec::new();
        let (value, _) = fit(&mut tree, from_tree::<Fields>, |error| {
            errors.push((source.text[error.span.clone()].to_owned(), error.to_string()));
        });
        (value, errors)
    }

    #[test]
    fn values_take_their_types() {
        let (value, errors) =
            read("rate = 1\ncount = 2\nwords = ['a']\ninner.flags = { x = true }\nchoice = { up-to = 3 }\n");
        assert_eq!(errors, []);
        let inner = Some(Inner { flags: BTreeMap::from([("x".to_owned(), true)]) });
        let wanted = Fields { rate: 1.0, count: 2, words: vec!["a".to_owned()], inner, choice: Choice::UpTo(3) };
        assert_eq!(value, Some(wanted));
        assert_eq!(
            read("rate = 1\ncount = 2\nchoice = { range = { low = 4 } }").0.map(|f| f.choice),
            Some(Choice::Range { low: 4 })
        );
    }

    #[test]
    fn every_fault_has_its_innermost_place() {
        let text =
            "rat = 1\ncount = 300\nwords = ['a', 2, 3.5]\ninner = { flags = { x = 'yes', y = 1 } }\nchoice = 'up'\n";
        let (value, errors) = read(text);
        let found: Vec<(&str, &str)> = errors.iter().map(|(place, what)| (place.as_str(), what.as_str())).collect();
        assert_eq!(
            found,
            [
                ("rat", "unknown key `rat`"),
                ("300", "expected a whole number from 0 to 255, found the number 300"),
                ("2", "expected a string, found the number 2"),
                ("3.5", "expected a string, found the number 3.5"),
                ("'yes'", "expected true or false, found the string \"yes\""),
                ("1", "expected true or false, found the number 1"),
                ("'up'", "unknown word `up`"),
                // The whole file has no header to point at.
                ("", "missing key `rate`"),
            ]
        );
        assert!(value.is_some());
    }
}
