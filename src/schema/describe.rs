//! What fields mean, out of the tables in the kinds' own pages: they are written once.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::kinds::{self, Entry};

/// A row of a table: what a field means, and what it is where nothing is said.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct About {
    pub(super) meaning: String,
    pub(super) default: String,
}

/// The rows of the tables of a page whose first column is headed so, by each of the names in that.
fn rows(page: &str, heading: &str) -> BTreeMap<String, About> {
    let mut found = BTreeMap::new();
    let mut within = false;
    for line in page.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|line| line.trim_end().strip_suffix('|')) else {
            within = false;
            continue;
        };
        let row = row.replace("\\|", "\u{0}");
        let cells: Vec<String> = row.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect();
        if cells.first().is_some_and(|first| first == heading) {
            within = true;
            continue;
        }
        let [names, meaning, default] = cells.as_slice() else { continue };
        if !within || names.starts_with("--") {
            continue;
        }
        let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        // Several fields of a row have their defaults in order.
        let defaults: Vec<&str> = default.split(", ").collect();
        let each = names.len() == defaults.len();
        for (at, name) in names.iter().enumerate() {
            let default = if each { defaults[at] } else { default };
            let about = About { meaning: without_links(meaning), default: default.trim_matches('`').to_owned() };
            found.insert((*name).to_owned(), about);
        }
    }
    found
}

/// `[text](target)` as `text`: pages are read where links lead nowhere.
pub fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("](") {
        let (Some(open), Some(close)) = (rest[..at].rfind('['), rest[at..].find(')')) else { break };
        plain.push_str(&rest[..open]);
        plain.push_str(&rest[open + 1..at]);
        rest = &rest[at + close + 1..];
    }
    plain + rest
}

/// What the page of a kind says of a field, followed to the page that it refers to.
fn about(kind: &Entry, field: &str) -> Option<About> {
    let of = |kind: &Entry| rows(kind.spec.doc, "field").remove(field);
    let own = of(kind);
    let referred = own.as_ref().and_then(|own| own.meaning.split("as in `").nth(1)?.split('`').next());
    let from = match (referred, &own) {
        (Some(other), _) => kinds::find(other),
        // `sampling fields`: those that answer have them from there.
        (None, None) if kind.spec.doc.contains("sampling fields") => kinds::find("generate"),
        (None, _) => None,
    };
    let other = from.and_then(of);
    match (own, other) {
        (Some(own), Some(other)) => {
            // `as in …; some twenty queries will do`
            let more =
                own.meaning.split_once(['`', ' ']).and_then(|_| own.meaning.split_once("; ")).map(|(_, more)| more);
            let meaning = more.map_or(other.meaning.clone(), |more| format!("{}; {more}", other.meaning));
            let default = if own.default.is_empty() { other.default } else { own.default };
            Some(About { meaning, default })
        }
        (own, other) => own.or(other),
    }
}

/// Says of each field of a kind's table what the page says, unless the page leaves that to the type.
pub(super) fn fields(kind: &Entry, schema: &mut Value) {
    let Some(Value::Object(fields)) = schema.get_mut("properties") else { return };
    let filters = rows(kind.spec.doc, "filter");
    for (name, field) in fields {
        let Value::Object(field) = field else { continue };
        if let Some(about) = about(kind, name) {
            describe(field, &about);
        }
        if name == "keep"
            && let Some(Value::Object(parts)) = field.get_mut("properties")
        {
            for (name, part) in parts {
                if let (Value::Object(part), Some(about)) = (part, filters.get(name)) {
                    describe(part, about);
                }
            }
        }
    }
}

fn describe(field: &mut Map<String, Value>, about: &About) {
    let mut text = about.meaning.clone();
    if text.is_empty() {
        text = field.get("description").and_then(Value::as_str).unwrap_or_default().trim_end_matches('.').to_owned();
    }
    if !about.default.is_empty() {
        text = format!("{text}\n\nDefault: {}", about.default);
    }
    if !text.is_empty() {
        field.insert("description".to_owned(), text.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_by_their_first_column() {
        let page = "Text.\n\n| field | meaning | default |\n|---|---|---|\n| `a`, `b` | of [both](x.md#y) | 1, `[]` |\n| `c` | one \\| other | |\n\n| filter | x | y |\n|---|---|---|\n| `d` | e | f |\n";
        let found = rows(page, "field");
        assert_eq!(found["a"], About { meaning: "of both".into(), default: "1".into() });
        assert_eq!(found["b"].default, "[]");
        assert_eq!(found["c"].meaning, "one | other");
        assert!(!found.contains_key("d") && rows(page, "filter").contains_key("d"));
    }

    #[test]
    fn a_page_that_refers_to_another_is_followed() {
        let score = kinds::find("score").expect("a kind");
        assert!(about(score, "chat").expect("is said").meaning.contains("chat template"));
        let probe = kinds::find("probe").expect("a kind");
        assert!(about(probe, "temperature").expect("is said").meaning.contains("greedy"));
        assert_eq!(without_links("see [a](b) and [c](d)."), "see a and c.");
    }
}
