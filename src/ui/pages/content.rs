//! What is in the files of an artifact: a table of rows, a row, the text of a file.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::artifact::asked;
use crate::digest::Digest;
use crate::inspect::contrast;
use crate::inspect::rows::{self, Ask, Filter, Found, Place, Table};
use crate::ui::html::{Page, Tab};
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// Rows of a page.
const PAGE: usize = 25;
/// Bytes of a row that are read for its page, and letters of a value on it.
const ROW: (u64, usize) = (2 << 20, 20_000);
/// Fields of a row that are shown.
const FIELDS: usize = 200;
/// Bytes of a file that a page shows.
const TEXT: u64 = 128 << 10;
/// Bytes that are given as they are.
const RAW: u64 = 16 << 20;
/// Endings of files that are text.
const TEXTS: [&str; 10] = ["json", "jsonl", "txt", "md", "toml", "csv", "jinja", "py", "log", "yaml"];

/// A page of rows.
#[derive(Debug, Serialize)]
pub(super) struct Rows {
    file: String,
    q: String,
    table: Table,
    /// What the columns are where others are asked for.
    columns: Option<String>,
    /// For each field the columns that would be shown if it were shown, or were not.
    toggles: Vec<String>,
    /// The first row's number among those that pass.
    nth: u64,
    /// How many pass, of those that were looked at.
    passed: u64,
    /// How many rows there are: about, if not all was looked at.
    all: u64,
    ended: bool,
    looked: Place,
    /// The rest of the addresses of other pages.
    first: Option<String>,
    back: Option<String>,
    forth: Option<String>,
    /// Looks on where this page stopped looking.
    on: Option<String>,
}

/// Whether a file has rows, by its name.
pub(super) fn is_rows(name: &str) -> bool {
    Path::new(name).extension() == Some("jsonl".as_ref())
}

/// Whether a file is text, by its name.
pub(super) fn is_text(name: &str) -> bool {
    Path::new(name).extension().and_then(|ending| ending.to_str()).is_some_and(|ending| TEXTS.contains(&ending))
}

/// The file that an address names, or the one that a page begins with: `rows.jsonl`, or the first that `fits`.
pub(super) fn file<'a>(
    files: &'a BTreeMap<String, PathBuf>,
    asked: Option<&str>,
    fits: fn(&str) -> bool,
) -> Result<Option<(&'a String, &'a PathBuf)>, Problem> {
    if let Some(asked) = asked {
        let found = files.get_key_value(asked);
        return found.map(Some).ok_or_else(|| Problem::absent(format!("the artifact has no file `{asked}`")));
    }
    Ok(files.get_key_value("rows.jsonl").or_else(|| files.iter().find(|(name, _)| fits(name))))
}

/// Reads a page of rows.
pub(super) fn rows(path: &Path, file: &str, query: &Query) -> Result<Rows, Problem> {
    let q = query.get("q").unwrap_or_default().to_owned();
    let nth = query.number("nth", 0)?;
    let from = Place { byte: query.number("at", 0)?, row: query.number("row", 0)?, nth: query.number("from", 0)? };
    let filter = Filter::parse(&q);
    let budget = if filter.takes_apart() { rows::BUDGET_OF_FIELDS } else { rows::BUDGET };
    let found = rows::look(path, &Ask { from, nth, take: PAGE, enough: false, filter, budget })?;
    let columns: Option<Vec<&str>> = query.get("columns").map(|columns| columns.split(',').collect());
    let table = rows::table(&found.rows, columns.as_deref());
    let toggle = |(name, shown): &(String, bool)| {
        let wanted = table.fields.iter().filter(|(other, is)| if other == name { !shown } else { *is });
        let named: Vec<&str> = wanted.map(|(other, _)| other.as_str()).collect();
        // Without a name the usual ones would be shown.
        query.with("columns", &if named.is_empty() { ",".to_owned() } else { named.join(",") })
    };
    let toggles = table.fields.iter().map(toggle).collect();
    let Found { next, looked, ended, .. } = found;
    let after = next.map(|next| place(query, next, next.nth));
    let on = (!ended && next.is_none()).then(|| place(query, looked, looked.nth));
    Ok(Rows {
        file: file.to_owned(),
        q,
        columns: query.get("columns").map(str::to_owned),
        toggles,
        nth,
        passed: looked.nth,
        all: found.rows_in_all(),
        ended,
        looked,
        first: (nth > 0).then(|| place(query, Place::default(), 0)),
        back: (nth > 0).then(|| place(query, Place::default(), nth.saturating_sub(PAGE as u64))),
        forth: after,
        on,
        table,
    })
}

/// The address of the page of rows that begins at a place.
fn place(query: &Query, at: Place, nth: u64) -> String {
    let number = |name: &str, value: u64, query: &Query| Query::parse(&query.with(name, &value.to_string()));
    let query = number("at", at.byte, query);
    let query = number("row", at.row, &query);
    let query = number("from", at.nth, &query);
    query.with("nth", &nth.to_string())
}

/// A field of a row.
#[derive(Debug, Serialize)]
struct Field {
    name: String,
    /// Its text, or its value as JSON.
    text: String,
    /// Letters that are not shown.
    more: usize,
}

/// `/row`: a row with all of its fields.
pub(super) fn row(site: &Site, query: &Query) -> Result<Page, Problem> {
    let (id, kind, files) = opened(site, query)?;
    let Some((name, path)) = file(&files, query.get("file"), is_rows)? else {
        return Err(Problem::absent("the artifact has no rows"));
    };
    let number: u64 = query.number("row", 0)?;
    let from = Place { byte: query.number("at", 0)?, row: number, nth: number };
    // And the one behind it, if there is one.
    let ask = Ask { from, nth: number, take: 2, enough: true, budget: rows::BUDGET, ..Ask::default() };
    let found = rows::look(path, &ask)?;
    let Some(row) = found.rows.first() else {
        return Err(Problem::absent(format!("`{name}` has no row {number}, as far as it was looked through")));
    };
    let text = rows::text_of(path, row, ROW.0)?;
    let is_cut = (text.len() as u64) < row.length;
    let read = serde_json::from_str(&if is_cut { rows::mend(&text) } else { text.clone() });
    let mut fields = Vec::new();
    if let Ok(Value::Object(object)) = &read {
        fields.extend(object.iter().take(FIELDS).map(|(name, value)| field(name, value)));
    } else {
        fields.push(field("the line as it is", &Value::String(text)));
    }
    let next = found.rows.get(1).map(|next| place(query, next.at, next.at.nth));
    Ok(Page::new(Tab::Artifacts, format!("Row {number}"), "row.html")
        .with("id", &id)
        .with("short", &id.short())
        .with("kind", &kind)
        .with("file", name)
        .with("number", &number)
        .with("at", &row.at.byte)
        .with("length", &row.length)
        .with("is_cut", &is_cut)
        .with("fields", &fields)
        .with("next", &next)
        .with("previous", &(number > 0).then(|| place(query, Place { byte: 0, row: number - 1, nth: 0 }, 0)))
        .with("has_contrast", &(name == "rows.jsonl" && contrast::TYPES.contains(&kind.as_str()))))
}

fn field(name: &str, value: &Value) -> Field {
    let text = match value {
        Value::String(text) => text.clone(),
        other => serde_json::to_string_pretty(other).unwrap_or_default(),
    };
    let (text, more) = match text.char_indices().nth(ROW.1) {
        Some((end, _)) => (text[..end].to_owned(), text[end..].chars().count()),
        None => (text, 0),
    };
    Field { name: name.to_owned(), text, more }
}

/// `/text`: the beginning of a file as text.
pub(super) fn text(site: &Site, query: &Query) -> Result<Page, Problem> {
    let (id, kind, files) = opened(site, query)?;
    let Some((name, path)) = file(&files, Some(query.need("file")?), is_text)? else {
        return Err(Problem::absent("the artifact has no such file"));
    };
    let at: u64 = query.number("at", 0)?;
    let (bytes, size) = part(path, at, TEXT)?;
    let is_text = !bytes.contains(&0);
    let end = at + bytes.len() as u64;
    let text = if is_text { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() };
    Ok(Page::new(Tab::Artifacts, name.as_str(), "text.html")
        .with("id", &id)
        .with("short", &id.short())
        .with("kind", &kind)
        .with("file", name)
        .with("size", &size)
        .with("at", &at)
        .with("end", &end)
        .with("is_text", &is_text)
        .with("text", &text)
        .with("largest", &RAW)
        .with("back", &(at > 0).then(|| query.with("at", &at.saturating_sub(TEXT).to_string())))
        .with("forth", &(end < size).then(|| query.with("at", &end.to_string()))))
}

/// `/raw`: bytes of a file as plain text, which no browser takes for anything else.
pub(super) fn raw(site: &Site, query: &Query) -> Result<String, Problem> {
    let (_, _, files) = opened(site, query)?;
    let Some((_, path)) = file(&files, Some(query.need("file")?), is_text)? else {
        return Err(Problem::absent("the artifact has no such file"));
    };
    let (bytes, _) = part(path, query.number("at", 0)?, query.number("length", RAW)?.min(RAW))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Some bytes of a file, whole or in pieces, and how many it has.
fn part(path: &Path, at: u64, most: u64) -> Result<(Vec<u8>, u64), Problem> {
    let mut file = crate::pieces::open(path)?;
    let size = file.size();
    file.seek(SeekFrom::Start(at.min(size)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok((bytes, size))
}

type Opened = (Digest, String, BTreeMap<String, PathBuf>);

/// The artifact that an address names: its id, its type, its files.
fn opened(site: &Site, query: &Query) -> Result<Opened, Problem> {
    let (store, index) = site.open()?;
    let id = asked(&store, &index, query)?;
    let kind = store.manifest(&id)?.kind;
    Ok((id, kind, store.files(&id)?))
}
