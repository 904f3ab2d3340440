//! Rows of an artifact as people read them: what is short on one line, texts below each other.

use serde_json::Value;

use super::figures::{cut, figure, plain};
use crate::inspect::rows::{one_line, texts};

/// Widest value among those on the first line, if they are several.
const SHORT: usize = 48;
/// Texts of a field that are shown, and fields that have any.
const MOST: usize = 4;
/// Fields of a row that say what it is; the others follow in the order of their names.
const FIRST: &[&str] = &["id", "query", "text"];

/// The lines for a row: its short values, then fields that hold texts (`constitutions`, `responses`), then figures.
/// What is no JSON object is shown as it is.
pub(super) fn lines(row: &str) -> Vec<String> {
    let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(row) else { return vec![plain(row)] };
    let mut names: Vec<&String> = fields.keys().collect();
    names.sort_by_key(|name| FIRST.iter().position(|first| first == name).unwrap_or(FIRST.len()));
    let width = if fields.len() > 2 { SHORT } else { 2 * SHORT };
    let mut short: Vec<String> = Vec::new();
    let (mut told, mut rest) = (Vec::new(), Vec::new());
    for name in names {
        let value = &fields[name];
        match value {
            Value::String(text) => short.push(format!("{name} {}", cut(text, width))),
            Value::Array(_) | Value::Object(_) => {
                let texts = texts(value);
                if texts.is_empty() { rest.push((name, vec![one_line(value)])) } else { told.push((name, texts)) }
            }
            other => short.push(format!("{name} {}", figure(other))),
        }
    }
    let mut lines = vec![short.join(" · ")];
    let below: Vec<(&String, Vec<String>)> = told.into_iter().chain(rest).take(MOST).collect();
    let width = below.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, texts) in below {
        for (number, text) in texts.iter().take(MOST).enumerate() {
            let label = if number == 0 { name.as_str() } else { "" };
            lines.push(format!("  {label:<width$}  {text}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_below_each_other() {
        let row = r#"{"form":2,"constitutions":[{"text":"be brief .","principles":[]},{"text":"be long ."}],"id":"0",
            "logprobs":[[-26.083732,-45.7],[1,2]],"query":"where is my plane","responses":[{"text":"here ."},{"text":"there ."}]}"#;
        let expected = [
            "id 0 · query where is my plane · form 2",
            "  constitutions  be brief .",
            "                 be long .",
            "  responses      here .",
            "                 there .",
            "  logprobs       [[-26.08, -45.70], [1, 2]]",
        ];
        assert_eq!(lines(row), expected);
    }

    #[test]
    fn candidates_have_their_names_and_anything_else_is_shown_as_it_is() {
        let row =
            r#"{"candidates":{"base":{"responses":[{"text":"a"}],"win":0.5},"sami":{"responses":[{"text":"b"}]}}}"#;
        assert_eq!(lines(row), ["", "  candidates  base: a", "              sami: b"]);
        assert_eq!(lines("[1]\u{7}"), ["[1] "]);
        assert_eq!(lines("plain text"), ["plain text"]);
        assert_eq!(lines(r#"{"id":"a","x":{"y":null}}"#), ["id a", "  x  {y null}"]);
    }
}
