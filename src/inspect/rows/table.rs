//! Rows as a table: which fields have columns, and what stands in the cells.

use indexmap::IndexSet;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Place, Row, mend};
use crate::inspect::figures::{figure, plain};

/// Fields that say what a row is; the others follow in the order in which rows have them.
const FIRST: [&str; 11] = [
    "id",
    "step",
    "query",
    "text",
    "prompt",
    "response",
    "chosen",
    "rejected",
    "constitutions",
    "responses",
    "candidates",
];
/// Columns that are shown where nothing else is asked for.
const COLUMNS: usize = 6;
/// Letters of a text in a cell, and of each of several.
const LONGEST: (usize, usize) = (400, 240);
/// Texts in a cell.
const MOST: usize = 8;

/// Rows as a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// Every field that one of the rows has, and whether it is shown.
    pub fields: Vec<(String, bool)>,
    /// For each field that is shown whether it holds numbers only.
    pub numbers: Vec<bool>,
    /// The rows.
    pub lines: Vec<Line>,
}

/// A row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Where it begins.
    pub at: Place,
    /// Its bytes.
    pub length: u64,
    /// Its id, if it has one.
    pub id: String,
    /// A cell for each field that is shown.
    pub cells: Vec<Cell>,
    /// The line as it is, if it is no object.
    pub plain: Option<String>,
}

/// What a row has in a field.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cell {
    /// A text, a number, or anything else on a line.
    pub text: String,
    /// Several texts, in place of that.
    pub items: Vec<String>,
    /// Whether it is a number.
    pub is_number: bool,
    /// Whether the row has more there.
    pub is_cut: bool,
}

/// Makes a table. `asked` names the fields that are shown.
pub fn table(rows: &[Row], asked: Option<&[&str]>) -> Table {
    let read: Vec<Option<Map<String, Value>>> = rows.iter().map(object).collect();
    let found: IndexSet<&String> = read.iter().flatten().flat_map(Map::keys).collect();
    let mut names: Vec<&String> = found.into_iter().collect();
    let rank = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
    names.sort_by_key(|name| rank(name));
    let shown = |(at, name): (usize, &&String)| match asked {
        Some(asked) => asked.contains(&name.as_str()),
        None => at < COLUMNS,
    };
    let shown: Vec<bool> = names.iter().enumerate().map(shown).collect();
    let line = |(row, object): (&Row, &Option<Map<String, Value>>)| {
        let cells = |object: &Map<String, Value>| {
            let wanted = names.iter().zip(&shown).filter(|(_, shown)| **shown);
            wanted.map(|(name, _)| object.get(*name).map(cell).unwrap_or_default()).collect()
        };
        let plain = object.is_none().then(|| cut(&plain(&row.text), LONGEST.0).0);
        let id = object.as_ref().and_then(|object| object.get("id")).map(|id| cut(&one_line(id), 80).0);
        let cells = object.as_ref().map(cells).unwrap_or_default();
        Line { at: row.at, length: row.length, id: id.unwrap_or_default(), cells, plain }
    };
    let lines: Vec<Line> = rows.iter().zip(&read).map(line).collect();
    let holds_numbers = |at: usize| {
        let mut cells = lines.iter().filter_map(|line| line.cells.get(at)).filter(|cell| **cell != Cell::default());
        cells.clone().next().is_some() && cells.all(|cell| cell.is_number)
    };
    let numbers = (0..shown.iter().filter(|shown| **shown).count()).map(holds_numbers).collect();
    Table { fields: names.into_iter().cloned().zip(shown).collect(), numbers, lines }
}

/// The object that a row is; of a very long one what its beginning has.
pub fn object(row: &Row) -> Option<Map<String, Value>> {
    if row.is_whole() { serde_json::from_str(&row.text).ok() } else { serde_json::from_str(&mend(&row.text)).ok() }
}

fn cell(value: &Value) -> Cell {
    match value {
        Value::String(text) => {
            let (text, is_cut) = cut(text, LONGEST.0);
            Cell { text, is_cut, ..Cell::default() }
        }
        Value::Array(_) | Value::Object(_) => {
            let all = texts(value);
            if all.is_empty() {
                let (text, is_cut) = cut(&one_line(value), LONGEST.0);
                return Cell { text, is_cut, ..Cell::default() };
            }
            let some: Vec<(String, bool)> = all.iter().take(MOST).map(|text| cut(text, LONGEST.1)).collect();
            let is_cut = all.len() > MOST || some.iter().any(|(_, is_cut)| *is_cut);
            Cell { items: some.into_iter().map(|(text, _)| text).collect(), is_cut, ..Cell::default() }
        }
        Value::Null => Cell { text: "null".to_owned(), ..Cell::default() },
        other => Cell { text: figure(other), is_number: other.is_number(), ..Cell::default() },
    }
}

/// The beginning of a text, and whether there is more.
fn cut(text: &str, most: usize) -> (String, bool) {
    match text.char_indices().nth(most) {
        Some((end, _)) => (format!("{}…", &text[..end]), true),
        None => (text.to_owned(), false),
    }
}

/// The texts in a value, those of named parts under their names.
pub fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(fields) => match fields.get("text") {
            Some(Value::String(text)) => vec![text.clone()],
            _ => fields
                .iter()
                .flat_map(|(name, value)| {
                    let said = texts(value).into_iter();
                    // Of what a candidate is asked and answers, the answers need no name.
                    said.map(move |text| if name == "responses" { text } else { format!("{name}: {text}") })
                })
                .collect(),
        },
        _ => Vec::new(),
    }
}

/// A value on a line, numbers to four digits.
pub fn one_line(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(one_line).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name} {}", one_line(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::Number(_) => figure(value),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Row {
        Row { at: Place::default(), length: text.len() as u64, text: text.to_owned() }
    }

    #[test]
    fn fields_that_say_what_a_row_is_come_first() {
        let rows = [
            row(
                r#"{"a":1.23456,"b":null,"c":[1,[2.5]],"d":true,"id":"x","query":"<b>","responses":[{"text":"y"},{"text":"z"}]}"#,
            ),
            row(r#"{"e":"more","id":7}"#),
            row("no object"),
        ];
        let table = table(&rows, None);
        let shown: Vec<&str> = table.fields.iter().filter(|(_, shown)| *shown).map(|(name, _)| name.as_str()).collect();
        assert_eq!(shown, ["id", "query", "responses", "a", "b", "c"]);
        let texts: Vec<&str> = table.lines[0].cells.iter().map(|cell| cell.text.as_str()).collect();
        assert_eq!(texts, ["x", "<b>", "", "1.235", "null", "[1, [2.500]]"]);
        assert_eq!(table.lines[0].cells[2].items, ["y", "z"]);
        assert!(
            table.lines[0].cells[3].is_number && table.lines[1].id == "7" && table.lines[1].cells[1] == Cell::default()
        );
        assert_eq!(table.lines[2].plain.as_deref(), Some("no object"));
        assert_eq!(table.numbers, [false, false, false, true, false, false]);
        let asked = super::table(&rows, Some(&["d", "e", "nothing"]));
        assert_eq!(asked.lines[1].cells.iter().map(|cell| cell.text.as_str()).collect::<Vec<_>>(), ["", "more"]);
    }

    #[test]
    fn long_values_are_cut() {
        let text = format!(r#"{{"a":"{}","b":[{}]}}"#, "ü".repeat(500), vec![r#"{"text":"t"}"#; 20].join(","));
        let table = table(&[row(&text)], None);
        let [a, b] = &table.lines[0].cells[..] else { panic!("two") };
        assert!(a.is_cut && a.text.chars().count() == 401 && b.is_cut && b.items.len() == 8);
        let long = Row { length: 10 << 20, ..row(r#"{"id":"1","text":"so it beg"#) };
        assert_eq!(super::table(&[long], None).lines[0].cells[1].text, "so it beg…");
    }
}
