//! Rows from files: `.jsonl`, `.json`, `.csv`, `.txt` and `.parquet`, all but the last also packed as `.gz`. What is wrong
//! with a row names the file and the row.

use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::dataset::Row;
use super::make::excerpt;
use crate::diag::{Diagnostic, Source};
use crate::fs::{self, AtMost};

mod parquet;
pub(crate) use parquet::THREAD as PARQUET_THREAD;

/// What a file of rows holds at most: all rows of a dataset stand in memory.
const MOST_BYTES: u64 = 16 << 30;
/// A row is no longer than this.
const LONGEST_ROW: usize = 64 << 20;

/// The most that a packed file of so many bytes is unpacked to. Text packs to a tenth, text that repeats itself to a
/// hundredth; a file that unpacks to a thousand times its size is made to fill someone's memory.
fn most_unpacked(packed: u64) -> u64 {
    const ALWAYS: u64 = 256 << 20;
    packed.saturating_mul(200).clamp(ALWAYS, MOST_BYTES)
}

/// A broken file is not listed to its end.
const MOST_FINDINGS: usize = 20;
/// Longer lines are shown in part.
const LONGEST_LINE: usize = 300;

/// Collects what is wrong with a file's rows.
#[derive(Debug)]
pub(super) struct RowFindings {
    list: Vec<Diagnostic>,
    more: usize,
    file: String,
}

impl RowFindings {
    /// None yet; `file` is the name to show.
    pub(super) fn new(file: String) -> Self {
        Self { list: Vec::new(), more: 0, file }
    }

    /// Adds one, as long as there is room.
    pub(super) fn add(&mut self, finding: impl FnOnce(&str) -> Diagnostic) {
        if self.list.len() < MOST_FINDINGS {
            self.list.push(finding(&self.file));
        } else {
            self.more += 1;
        }
    }

    /// The rows, or what is wrong with them.
    pub(super) fn finish<T>(mut self, rows: T) -> Result<T, Vec<Diagnostic>> {
        if self.list.is_empty() {
            return Ok(rows);
        }
        if self.more > 0
            && let Some(last) = self.list.pop()
        {
            self.list.push(last.note(format!("and {} more such rows in `{}`", self.more, self.file)));
        }
        Err(self.list)
    }

    fn line(&mut self, number: usize, line: &str, at: Range<usize>, what: impl Into<String>, help: &str) {
        let what = what.into();
        self.add(|file| {
            let (text, at) = window(line, at);
            let source = Arc::new(Source { path: file.to_owned(), text, first_line: number });
            Diagnostic::error("dataset::bad-row", format!("row {number} of `{file}` is malformed"))
                .label(&source, at, what)
                .help(help)
        });
    }
}

/// The part of a long line around a place.
fn window(line: &str, at: Range<usize>) -> (String, Range<usize>) {
    if line.len() <= LONGEST_LINE {
        return (line.to_owned(), at);
    }
    let boundary = |mut byte: usize| {
        while !line.is_char_boundary(byte) {
            byte -= 1;
        }
        byte
    };
    let start = boundary(at.start.saturating_sub(LONGEST_LINE / 2).min(line.len()));
    let end = boundary((start + LONGEST_LINE).min(line.len()));
    let text = line[start..end].to_owned();
    let at = at.start - start..(at.end - start).min(text.len());
    (text, at)
}

/// A path as people write it: without the `./` of the directory that they are in.
pub(super) fn shown(path: &Path) -> String {
    path.strip_prefix(".").unwrap_or(path).display().to_string()
}

/// What a file's name says about its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    JsonLines,
    Json,
    Csv,
    Text,
    Parquet,
}

/// Formats by how names end.
const FORMATS: [(&str, Format); 5] = [
    ("jsonl", Format::JsonLines),
    ("json", Format::Json),
    ("csv", Format::Csv),
    ("txt", Format::Text),
    ("parquet", Format::Parquet),
];

/// The format of a file, and whether it is packed.
fn format(name: &str) -> Option<(Format, bool)> {
    let plain = name.strip_suffix(".gz");
    let extension = Path::new(plain.unwrap_or(name)).extension()?;
    let (_, format) = FORMATS.iter().find(|(known, _)| extension == *known)?;
    // Parquet packs its own columns.
    (plain.is_none() || *format != Format::Parquet).then_some((*format, plain.is_some()))
}

/// A file of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFile {
    /// As people know it; it ends as the format wants.
    pub name: String,
    /// Where it is.
    pub path: std::path::PathBuf,
}

/// Reads all rows of a file, as they stand there.
pub(super) fn read(file: &RowFile) -> Result<Vec<Row>, Vec<Diagnostic>> {
    let RowFile { name, path } = file;
    let Some((format, packed)) = format(name) else {
        let finding = Diagnostic::error("dataset::unknown-format", format!("`{name}` is of no known format"))
            .help("give a .jsonl, .json, .csv, .txt or .parquet file; all but the last may also be packed as .gz");
        return Err(vec![finding]);
    };
    let mut findings = RowFindings::new(name.clone());
    let rows = if format == Format::Parquet && path.is_file() {
        match parquet::read(path, None) {
            Ok((rows, _)) => rows,
            Err((what, help)) => {
                findings.add(|file| bad_file(file, "Parquet", what, help));
                Vec::new()
            }
        }
    } else {
        let bytes = bytes(path, packed).map_err(|error| vec![unreadable(name, packed, &error)])?;
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        match format {
            Format::JsonLines => json_lines(bytes, &mut findings),
            Format::Json => json(bytes, &mut findings),
            Format::Csv => csv(bytes, &mut findings),
            Format::Text | Format::Parquet => text_lines(bytes, &mut findings),
        }
    };
    if rows.is_empty() && findings.list.is_empty() {
        findings.add(|file| {
            Diagnostic::error("dataset::empty", format!("the file `{file}` has no rows"))
                .help("put rows into it, or remove the dataset")
        });
    }
    findings.finish(rows)
}

/// How many rows a file has, and some of them: evenly spread where that costs nothing, else the first. `None` where the file
/// cannot be read or is at fault.
pub(super) fn sample(file: &RowFile, most: usize) -> Option<(u64, Vec<Row>)> {
    let RowFile { name, path } = file;
    let (format, packed) = format(name)?;
    match format {
        Format::Parquet => parquet::read(path, Some(most)).ok().map(|(rows, all)| (all, rows)),
        Format::JsonLines => {
            let bytes = bytes(path, packed).ok()?;
            let all = lines(&bytes).count();
            let every = all.div_ceil(most).max(1);
            let some = lines(&bytes).step_by(every).map(|(_, line)| serde_json::from_slice(line));
            Some((all as u64, some.collect::<Result<_, _>>().ok()?))
        }
        _ => {
            let rows = read(file).ok()?;
            let (all, every) = (rows.len(), rows.len().div_ceil(most).max(1));
            Some((all as u64, rows.into_iter().step_by(every).collect()))
        }
    }
}

/// What a file holds, unpacked.
fn bytes(path: &Path, packed: bool) -> std::io::Result<Vec<u8>> {
    if !packed {
        return fs::read(path, MOST_BYTES);
    }
    let mut bytes = Vec::new();
    // Several packed files in a row are one, as `cat` puts them together.
    let file = fs::open(path)?;
    let most = most_unpacked(file.metadata()?.len());
    let unpacked = flate2::read::MultiGzDecoder::new(BufReader::new(file));
    AtMost::new(unpacked, most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(name: &str, packed: bool, error: &std::io::Error) -> Diagnostic {
    use std::io::ErrorKind;
    if packed && [ErrorKind::InvalidInput, ErrorKind::InvalidData, ErrorKind::UnexpectedEof].contains(&error.kind()) {
        return bad_file(name, "gzip", error.to_string(), "fetch or pack the file again");
    }
    let what = match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    };
    Diagnostic::error("dataset::unreadable", format!("the file `{name}` cannot be read"))
        .note(what)
        .help("paths start from the pipeline file's directory")
}

fn bad_file(name: &str, format: &str, what: String, help: &str) -> Diagnostic {
    Diagnostic::error("dataset::bad-file", format!("the file `{name}` is no {format} file that can be read"))
        .note(what)
        .help(help)
}

/// The lines up to the last that is not blank, numbered from 1.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let end = bytes.trim_ascii_end().len();
    let lines = bytes[..end].split(|byte| *byte == b'\n').take(if end == 0 { 0 } else { usize::MAX });
    lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).enumerate().map(|(at, line)| (at + 1, line))
}

/// The end of the character that begins at a byte.
fn end_of_char(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(0, char::len_utf8)
}

fn blank(line: &[u8]) -> bool {
    line.trim_ascii().is_empty()
}

fn json_lines(bytes: &[u8], findings: &mut RowFindings) -> Vec<Row> {
    let mut rows = Vec::new();
    for (number, line) in lines(bytes) {
        if blank(line) {
            findings.line(number, "", 0..0, "an empty line", "remove the line, or put a JSON object there");
            continue;
        }
        if line.len() > LONGEST_ROW {
            let what = format!("it is longer than {} MiB", LONGEST_ROW >> 20);
            findings.line(number, "", 0..0, what, "a row is one example: split the file into lines");
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(Value::Object(row)) => rows.push(row),
            Ok(other) => {
                let line = String::from_utf8_lossy(line);
                let what = format!("expected a JSON object, found {}", describe(&other));
                findings.line(number, &line, 0..line.len(), what, "write one object a line: `{\"id\": \"1\", …}`");
            }
            Err(error) => {
                let text = String::from_utf8_lossy(line);
                let mut at = error.column().saturating_sub(1).min(text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                findings.line(
                    number,
                    &text,
                    at..end_of_char(&text, at),
                    format!("not JSON: {}", plain(&error)),
                    "write one JSON object a line",
                );
            }
        }
    }
    rows
}

/// What serde_json says, without the place.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "true or false".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        Value::String(text) => format!("the string \"{}\"", excerpt(text)),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// A `.json` file: an array of objects, or an object of objects whose keys become ids; a list in it becomes a row's
/// `items`.
fn json(bytes: &[u8], findings: &mut RowFindings) -> Vec<Row> {
    let first = bytes.trim_ascii_start().first();
    // Read in the order of the file, whatever order serde_json keeps objects in.
    let items: Result<Vec<(Option<String>, Value)>, _> = if first == Some(&b'{') {
        serde_json::from_slice::<IndexMap<String, Value>>(bytes)
            .map(|map| map.into_iter().map(|(id, value)| (Some(id), value)).collect())
    } else {
        serde_json::from_slice::<Vec<Value>>(bytes).map(|items| items.into_iter().map(|item| (None, item)).collect())
    };
    let items = match items {
        Ok(items) => items,
        Err(_) if blank(bytes) => return Vec::new(),
        Err(error) => {
            let line = bytes.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
            let text = String::from_utf8_lossy(line).into_owned();
            let mut at = error.column().saturating_sub(1).min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            findings.add(|file| {
                let (text, at) = window(&text, at..end_of_char(&text, at));
                let source = Arc::new(Source { path: file.to_owned(), text, first_line: error.line().max(1) });
                Diagnostic::error("dataset::bad-file", format!("the file `{file}` is no JSON array of objects"))
                    .label(&source, at, plain(&error))
                    .help("write an array of objects, or an object of objects whose keys are ids")
            });
            return Vec::new();
        }
    };
    let mut rows = Vec::with_capacity(items.len());
    for (at, (id, item)) in items.into_iter().enumerate() {
        match item {
            Value::Object(mut row) => {
                if let Some(id) = id {
                    row.entry("id").or_insert(Value::String(id));
                }
                rows.push(row);
            }
            // As in the authors' files of training pairs.
            Value::Array(items) if id.is_some() => {
                let id = id.map(Value::String).map(|id| ("id".to_owned(), id));
                rows.push(id.into_iter().chain([("items".to_owned(), Value::Array(items))]).collect());
            }
            other => findings.add(|file| {
                let number = at + 1;
                Diagnostic::error("dataset::bad-row", format!("row {number} of `{file}` is malformed"))
                    .note(format!("expected an object, found {}", describe(&other)))
                    .help("make every row an object")
            }),
        }
    }
    rows
}

fn csv(bytes: &[u8], findings: &mut RowFindings) -> Vec<Row> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(bytes);
    let headers = match reader.byte_headers() {
        Ok(headers) => headers.clone(),
        Err(_) => return Vec::new(),
    };
    let headers: Vec<String> = headers.iter().map(|header| String::from_utf8_lossy(header).trim().to_owned()).collect();
    for (at, header) in headers.iter().enumerate() {
        if header.is_empty() || headers[..at].contains(header) {
            let what = if header.is_empty() { "has no name" } else { "has the name of an earlier one" };
            findings.add(|file| {
                Diagnostic::error("dataset::bad-file", format!("column {} of `{file}` {what}", at + 1))
                    .help("give each column a name of its own in the first line")
            });
        }
    }
    let mut rows = Vec::new();
    let mut record = csv::ByteRecord::new();
    let mut number = 0;
    while matches!(reader.read_byte_record(&mut record), Ok(true)) {
        number += 1;
        let start = record.position().map_or((0, 0), |position| (position.byte() as usize, position.line()));
        let fault = |findings: &mut RowFindings, line: u64, what: String, help: &str| {
            findings.add(|file| {
                Diagnostic::error("dataset::bad-row", format!("row {number} of `{file}` is malformed"))
                    .note(format!("line {line}: {what}"))
                    .help(help)
            });
        };
        // The reader passes over empty lines; they stand between the end of the last record and this one.
        let mut rest = &bytes[start.0.min(bytes.len())..];
        if start.0 > 0 && bytes[start.0 - 1] == b'\r' {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        if rest.first().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            fault(findings, start.1, "an empty line".to_owned(), "remove the line");
        }
        if record.len() != headers.len() {
            let what = format!("{} values for {} columns", record.len(), headers.len());
            fault(findings, start.1, what, "give each row a value per column; quote values that hold commas or quotes");
            continue;
        }
        let mut row = Map::new();
        for (header, value) in headers.iter().zip(&record) {
            match std::str::from_utf8(value) {
                Ok(value) => {
                    row.insert(header.clone(), Value::String(value.to_owned()));
                }
                Err(_) => fault(findings, start.1, format!("column `{header}` is not UTF-8"), "save the file as UTF-8"),
            }
        }
        rows.push(row);
    }
    rows
}

fn text_lines(bytes: &[u8], findings: &mut RowFindings) -> Vec<Row> {
    let mut rows = Vec::new();
    for (number, line) in lines(bytes) {
        if blank(line) {
            findings.line(number, "", 0..0, "an empty line", "remove the line");
            continue;
        }
        match std::str::from_utf8(line) {
            Ok(text) => rows.push(Map::from_iter([("text".to_owned(), Value::String(text.to_owned()))])),
            Err(error) => {
                let at = error.valid_up_to();
                let text = String::from_utf8_lossy(line);
                findings.line(
                    number,
                    &text,
                    at..at + char::REPLACEMENT_CHARACTER.len_utf8(),
                    "not UTF-8",
                    "save the file as UTF-8",
                );
            }
        }
    }
    rows
}
