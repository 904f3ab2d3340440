//! The pipeline file: bytes to text to a [`Tree`], each with its own errors.

use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::findings::Findings;
use super::quick;
use super::tree::{Entry, Table, Tree, TreeValue};
use crate::diag::{Diagnostic, Source};
use crate::{fs, secret};

/// A file larger than this is no pipeline: data belongs into a dataset.
const MOST_BYTES: u64 = 16 << 20;

/// Reads a pipeline file.
pub(super) fn read(path: &Path) -> Result<(Arc<Source>, Tree), Vec<Diagnostic>> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    let opened = fs::open(path).and_then(|file| {
        // Room for the file as it is: growing by doubling would hold up to twice of it while it is parsed.
        bytes.reserve_exact(file.metadata()?.len().min(MOST_BYTES) as usize + 1);
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes)
    });
    opened.map_err(|error| {
        vec![
            Diagnostic::error("pipeline::unreadable", format!("the pipeline file `{name}` cannot be read"))
                .note(error.to_string())
                .help("give the path of a pipeline file, such as `pipelines/quickstart.toml`"),
        ]
    })?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(vec![
            Diagnostic::error(
                "pipeline::too-large",
                format!("the pipeline file `{name}` is larger than {} MiB", MOST_BYTES >> 20),
            )
            .help("keep data in files of its own and name them in `[datasets.NAME] source`"),
        ]);
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes()[at];
        let source = Arc::new(Source::new(name.as_str(), String::from_utf8_lossy(error.as_bytes())));
        let (line, column) = source.position(at);
        vec![
            Diagnostic::error("pipeline::not-utf8", format!("the pipeline file `{name}` is not UTF-8"))
                .label(
                    &source,
                    at..at + char::REPLACEMENT_CHARACTER.len_utf8(),
                    format!("byte 0x{byte:02x} at line {line}, column {column}"),
                )
                .help("save the file as UTF-8"),
        ]
    })?;
    let source = Arc::new(Source::new(name, text));
    let tree = parse(&source)?;
    Ok((source, tree))
}

/// What stands in a pipeline gets into keys, records and logs: the value of a variable that holds a secret must not.
pub(super) fn look_for_secrets(source: &Source, sets: &[String], findings: &mut Findings) {
    let texts = std::iter::once((source.path.as_str(), source.text.as_str()));
    for (place, text) in texts.chain(sets.iter().map(|set| ("`--set`", set.as_str()))) {
        let Some((variable, at)) = secret::found_in(text) else { continue };
        let line = text[..at].matches('\n').count() + 1;
        findings.add(
            Diagnostic::error("pipeline::secret", format!("the value of `{variable}` stands in {place}, line {line}"))
                .note("what stands in a pipeline gets into keys, records and logs")
                .help(format!(
                    "name the variable: `env = [\"{variable}\"]` passes it on to a `command`, `api_key_env = \"{variable}\"` to an endpoint"
                )),
        );
    }
}

/// Parses TOML; every syntax error of the text is in the result.
pub(super) fn parse(source: &Arc<Source>) -> Result<Tree, Vec<Diagnostic>> {
    quick::parse(&source.text).map_or_else(|| parse_thoroughly(source), Ok)
}

/// As [`parse`], of any text.
pub(super) fn parse_thoroughly(source: &Arc<Source>) -> Result<Tree, Vec<Diagnostic>> {
    let (table, mut errors) = DeTable::parse_recoverable(&source.text);
    if !errors.is_empty() {
        errors.sort_by_key(|error| error.span().map(|span| span.start));
        return Err(errors.iter().map(|error| syntax_error(error, source)).collect());
    }
    let mut faults = Vec::new();
    let span = table.span();
    let table = convert_table(table.into_inner(), &mut faults);
    if faults.is_empty() {
        return Ok(Tree { span, value: TreeValue::Table(table) });
    }
    let fault = |(span, what, help): (Range<usize>, String, &str)| {
        Diagnostic::error("pipeline::value", what).label(source, span, "").help(help)
    };
    Err(faults.into_iter().map(fault).collect())
}

/// Parses the text of a value as TOML; its spans are in that text.
pub(super) fn parse_value(text: &str) -> Option<Tree> {
    let value = DeValue::parse(text).ok()?;
    let mut faults = Vec::new();
    let tree = convert(value, &mut faults);
    faults.is_empty().then_some(tree)
}

/// Parses TOML that is included in a pipeline file. Errs with what is wrong and the line.
pub(super) fn parse_included(text: &str) -> Result<Tree, String> {
    let source = Arc::new(Source::new("", text));
    parse(&source).map_err(|errors| {
        let Some(first) = errors.first() else { return String::new() };
        let line = first.labels.first().map_or(1, |label| source.position(label.span.start).0);
        format!("line {line}: {}", first.labels.first().map_or(first.title.as_str(), |label| label.text.as_str()))
    })
}

fn syntax_error(error: &toml::de::Error, source: &Arc<Source>) -> Diagnostic {
    let span = error.span().unwrap_or(0..0);
    let message = error.message().lines().collect::<Vec<_>>().join("; ");
    let found = Diagnostic::error("pipeline::syntax", "the file is not TOML").label(source, span, message.as_str());
    if message.contains("duplicate key") {
        found.help("remove one of the two, or give one another name")
    } else if message.contains("quote") || message.contains("string") {
        found.help("put text between quotes: `key = \"text\"`; `\"\"\"` begins and ends text of several lines")
    } else {
        found.help("write `key = value` lines under `[table]` headers; see toml.io")
    }
}

type Faults<'a> = Vec<(Range<usize>, String, &'a str)>;

fn convert(value: Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Tree {
    let span = value.span();
    let mut fault = |what: String, help| {
        faults.push((span.clone(), what, help));
        TreeValue::Hole
    };
    let value = match value.into_inner() {
        DeValue::String(text) => TreeValue::String(text.into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
            Ok(number) => TreeValue::Integer(number),
            Err(_) => fault(
                format!("the number {} is out of range", number.as_str()),
                "whole numbers go up to 9223372036854775807",
            ),
        },
        DeValue::Float(number) => match number.as_str().replace('_', "").parse::<f64>() {
            Ok(number) if number.is_finite() => TreeValue::Float(number),
            _ => fault(format!("{} is not a finite number", number.as_str()), "give a finite number"),
        },
        DeValue::Boolean(flag) => TreeValue::Boolean(flag),
        DeValue::Datetime(_) => fault("dates are not used in pipelines".to_owned(), "put it between quotes"),
        DeValue::Array(items) => TreeValue::Array(items.into_iter().map(|item| convert(item, faults)).collect()),
        DeValue::Table(table) => TreeValue::Table(convert_table(table, faults)),
    };
    Tree { span, value }
}

fn convert_table(table: DeTable<'_>, faults: &mut Faults<'_>) -> Table {
    // The parser sorts by name; the order of the file is that of the keys' places.
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut converted = Table::with_capacity(entries.len());
    for (key, value) in entries {
        let key_span = key.span();
        let value = convert(value, faults);
        converted.insert(key.into_inner().into_owned(), Entry { key_span, value });
    }
    converted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_keep_the_order_of_the_file() {
        let source = Arc::new(Source::new("x.toml", "z = 1\n[b]\ny = 0x1F\nx = 1_000.5\n[a]\n"));
        let tree = parse(&source).expect("TOML");
        let keys: Vec<_> = tree.table().expect("a table").keys().collect();
        assert_eq!(keys, ["z", "b", "a"]);
        assert_eq!(tree.to_json(), serde_json::json!({"z": 1, "b": {"y": 31, "x": 1000.5}, "a": {}}));
        assert_eq!(&source.text[tree.place("b.y")], "0x1F");
    }

    #[test]
    fn every_syntax_error_has_its_place() {
        let source = Arc::new(Source::new("x.toml", "a = \nb = 1\nb = 2\nc = [1,\n"));
        let errors = parse(&source).expect_err("not TOML");
        assert!(errors.len() >= 2, "{errors:#?}");
        let (line, _) = source.position(errors[0].labels[0].span.start);
        assert_eq!(line, 1);
        let source = Arc::new(Source::new("x.toml", "a = 99999999999999999999\nb = 2020-01-01\nc = nan\n"));
        assert_eq!(parse(&source).expect_err("no such values").len(), 3);
    }

    #[test]
    fn bytes_that_are_not_text_and_large_files_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.toml");
        fs_err::write(&path, b"schema = 1\nname = \"\xff\"\n").expect("writes");
        let errors = read(&path).expect_err("not UTF-8");
        assert_eq!(errors[0].id, "pipeline::not-utf8");
        assert!(errors[0].labels[0].text.contains("line 2, column 9"), "{errors:?}");
        fs_err::write(&path, vec![b'#'; 17 << 20]).expect("writes");
        assert_eq!(read(&path).expect_err("too large")[0].id, "pipeline::too-large");
        assert_eq!(read(folder.path()).expect_err("a directory")[0].id, "pipeline::unreadable");
    }
}
