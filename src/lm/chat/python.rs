//! What chat templates use of Python and minijinja does not have: methods of strings and dictionaries, and `json.dumps`.

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use serde::Serialize;

/// Calls a method as Python would.
pub(super) fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => string(value.as_str().unwrap_or_default(), name, args),
        ValueKind::Map => dictionary(state, value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn dictionary(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "items" => {
            let () = from_args(args)?;
            state.apply_filter("items", std::slice::from_ref(value))
        }
        "keys" => {
            let () = from_args(args)?;
            Ok(value.try_iter()?.collect())
        }
        "values" => {
            let () = from_args(args)?;
            let values: Result<Vec<Value>, Error> = value.try_iter()?.map(|key| value.get_item(&key)).collect();
            values.map(Value::from)
        }
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let found = value.get_item(&key)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn string(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let none = || from_args::<()>(args);
    Ok(match name {
        "upper" => none().map(|()| text.to_uppercase().into())?,
        "lower" => none().map(|()| text.to_lowercase().into())?,
        "title" => none().map(|()| title(text).into())?,
        "capitalize" => {
            none()?;
            let mut letters = text.chars();
            let first: String = letters.next().map(|first| first.to_uppercase().collect()).unwrap_or_default();
            format!("{first}{}", letters.as_str().to_lowercase()).into()
        }
        "strip" | "lstrip" | "rstrip" => {
            let (set,): (Option<String>,) = from_args(args)?;
            let strips = |c: char| set.as_ref().map_or(c.is_whitespace(), |set| set.contains(c));
            let text = if name == "rstrip" { text } else { text.trim_start_matches(strips) };
            (if name == "lstrip" { text } else { text.trim_end_matches(strips) }).into()
        }
        "startswith" | "endswith" => {
            let (part,): (Value,) = from_args(args)?;
            let holds = |part: &str| if name == "startswith" { text.starts_with(part) } else { text.ends_with(part) };
            match part.as_str() {
                Some(part) => holds(part).into(),
                None => part.try_iter()?.any(|part| part.as_str().is_some_and(holds)).into(),
            }
        }
        "split" => {
            let (by, most): (Option<Value>, Option<i64>) = from_args(args)?;
            let by = by.filter(|by| !by.is_none());
            let most =
                most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
            let parts: Vec<&str> = match by.as_ref().map(|by| by.as_str().unwrap_or_default()) {
                Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "a text cannot be split by nothing")),
                Some(by) => text.splitn(most, by).collect(),
                None => words(text, most),
            };
            parts.into_iter().collect()
        }
        "splitlines" => none().map(|()| text.lines().collect())?,
        "replace" => {
            let (from, to, most): (String, String, Option<usize>) = from_args(args)?;
            most.map_or_else(|| text.replace(&from, &to), |most| text.replacen(&from, &to, most)).into()
        }
        "find" => {
            let (part,): (String,) = from_args(args)?;
            text.find(&part).map_or(-1, |at| text[..at].chars().count() as i64).into()
        }
        "count" => {
            let (part,): (String,) = from_args(args)?;
            (if part.is_empty() { text.chars().count() + 1 } else { text.matches(&part).count() }).into()
        }
        "join" => {
            let (parts,): (Value,) = from_args(args)?;
            let parts: Vec<String> = parts.try_iter()?.map(|part| part.to_string()).collect();
            parts.join(text).into()
        }
        "removeprefix" => {
            let (part,): (String,) = from_args(args)?;
            text.strip_prefix(part.as_str()).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (part,): (String,) = from_args(args)?;
            text.strip_suffix(part.as_str()).unwrap_or(text).into()
        }
        "isdigit" => none().map(|()| (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into())?,
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

/// The first `most - 1` words and the rest, without white space around any of them.
fn words(text: &str, most: usize) -> Vec<&str> {
    let (mut words, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() && words.len() + 1 < most {
        let (word, more) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        words.push(word);
        rest = more.trim_start();
    }
    if !rest.is_empty() {
        words.push(rest.trim_end());
    }
    words
}

fn title(text: &str) -> String {
    let mut begins = true;
    text.chars()
        .flat_map(|c| {
            let cased: Vec<char> = if begins { c.to_uppercase().collect() } else { c.to_lowercase().collect() };
            begins = !c.is_alphabetic();
            cased
        })
        .collect()
}

/// `json.dumps(…, ensure_ascii=False)`: spaces after commas and colons, or an indent.
pub(super) fn to_json(value: &Value, args: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = args.get("indent")?;
    // Both are Python's way already.
    let _: (Option<bool>, Option<bool>) = (args.get("ensure_ascii")?, args.get("sort_keys")?);
    args.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(expression: &str) -> String {
        let mut environment = minijinja::Environment::new();
        environment.set_unknown_method_callback(method);
        environment.add_filter("tojson", to_json);
        environment
            .render_str(&format!("{{{{ ({expression}) | tojson }}}}"), ())
            .unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn methods_are_pythons() {
        for (expression, result) in [
            ("'  a b '.strip()", "\"a b\""),
            ("'xxaxx'.lstrip('x')", "\"axx\""),
            ("'xyaxy'.rstrip('yx')", "\"xya\""),
            ("'a,b,c'.split(',')", "[\"a\", \"b\", \"c\"]"),
            ("'a,b,c'.split(',', 1)", "[\"a\", \"b,c\"]"),
            ("' a  b c '.split()", "[\"a\", \"b\", \"c\"]"),
            ("' a  b c '.split(none, 1)", "[\"a\", \"b c\"]"),
            ("''.split(',')", "[\"\"]"),
            ("''.split()", "[]"),
            ("'they are bill\\'s'.title()", "\"They Are Bill'S\""),
            ("'hELLO wOrld'.capitalize()", "\"Hello world\""),
            ("'abc'.startswith(('x', 'ab'))", "true"),
            ("'äb'.find('b')", "1"),
            ("'ab'.find('c')", "-1"),
            ("'aaa'.count('aa')", "1"),
            ("', '.join(['a', 'b'])", "\"a, b\""),
            ("'aaa'.replace('a', 'b', 2)", "\"bba\""),
            ("{'a': 1}.get('b', 'none')", "\"none\""),
            ("{'a': 1}.get('b') is none", "true"),
            ("{'a': 1, 'b': [2, {'c': 3}]}", "{\"a\": 1, \"b\": [2, {\"c\": 3}]}"),
            ("{'a': 1}.items() | list", "[[\"a\", 1]]"),
            ("{'a': 1}.values()", "[1]"),
            ("'<\\'>'", "\"<'>\""),
        ] {
            assert_eq!(evaluate(expression), result, "{expression}");
        }
        assert!(evaluate("'a'.zfill(3)").contains("zfill"));
        assert!(evaluate("'a'.split('')").contains("by nothing"));
    }
}
