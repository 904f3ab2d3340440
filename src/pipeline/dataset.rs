//! Datasets: rows from a file or from a seeded template, given ids, sliced, deduplicated and shuffled.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::make::{Template, excerpt};
use super::random::Random;
use super::rows::{self, RowFindings};
use crate::diag::Diagnostic;
use crate::hub::{Part, Repo};

pub(crate) use super::rows::PARQUET_THREAD;
pub use super::rows::RowFile;

/// Where rows come from.
#[derive(Debug, Clone, PartialEq)]
pub enum RowSource {
    /// A `.jsonl`, `.json` (an array of objects, or an object of objects), `.csv`, `.txt` (a row per line, field `text`) or
    /// `.parquet` file; all but the last may be packed (`.gz`).
    File(PathBuf),
    /// `hf:datasets/…`: such files in a repository of the hub.
    Hub {
        /// The repository.
        repo: Repo,
        /// Which of its rows.
        part: Part,
    },
    /// `make = { rows, seed, template }`: a minijinja template rendered once per row to a JSON object, with seeded
    /// `choose(list)`, `chance(p)`, `sample(list, n)`, `shuffle(list)`, `between(a, b)` and `row` (the index).
    Template {
        /// Number of rows.
        rows: u64,
        /// Seed.
        seed: u64,
        /// The template's text.
        template: String,
    },
}

/// A dataset as declared. Applied in the order: read, `id` and field templates, duplicate check or `unique`,
/// `shuffle`, `skip`, `take`.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetSpec {
    /// Name in the pipeline.
    pub name: String,
    /// Where the rows come from.
    pub source: RowSource,
    /// Template of the id; the row's `id` field or else its number (from 0) without it.
    pub id: Option<String>,
    /// Template fields, by name (such as `query`): each adds a field to the row.
    pub fields: Vec<(String, String)>,
    /// Keep the first row of each id instead of calling a second one an error.
    pub unique: bool,
    /// Seed of the shuffle.
    pub shuffle: Option<u64>,
    /// Rows left out at the start.
    pub skip: u64,
    /// Rows taken after those; all without it.
    pub take: Option<u64>,
    /// Place of the declaration.
    pub span: Range<usize>,
}

/// A row: its id is under `id` as a string.
pub type Row = Map<String, Value>;

/// The files of a dataset that come from nowhere else; relative paths start from `base`.
pub fn files(spec: &DatasetSpec, base: &Path) -> Vec<RowFile> {
    match &spec.source {
        RowSource::File(path) => {
            let path = base.join(path);
            vec![RowFile { name: rows::shown(&path), path }]
        }
        RowSource::Hub { .. } | RowSource::Template { .. } => Vec::new(),
    }
}

/// Reads all rows of a dataset that lies in these files, or in none if it is made. Errs with every row that is at fault,
/// up to a screenful.
pub fn read(spec: &DatasetSpec, files: &[RowFile]) -> Result<Vec<Row>, Vec<Diagnostic>> {
    let name = format!("dataset {}", spec.name);
    let (rows, file) = match (&spec.source, files) {
        (RowSource::Template { rows, seed, template }, _) => (make_rows(&name, *rows, *seed, template)?, name),
        (_, [file]) => (rows::read(file)?, file.name.clone()),
        (_, files) => {
            let mut rows = Vec::new();
            for file in files {
                rows.append(&mut rows::read(file)?);
            }
            (rows, name)
        }
    };
    let mut findings = RowFindings::new(file);
    let mut rows = fill_in(spec, rows, &mut findings);
    let mut first: HashMap<String, usize> = HashMap::with_capacity(rows.len());
    let mut keep = Vec::with_capacity(rows.len());
    for (at, row) in rows.iter().enumerate() {
        let Some(id) = row.get("id").and_then(Value::as_str) else { continue };
        let earlier = *first.entry(id.to_owned()).or_insert(at);
        keep.push(earlier == at);
        if earlier != at && !spec.unique {
            findings.add(|file| {
                let rows = format!("rows {} and {} of `{file}`", earlier + 1, at + 1);
                Diagnostic::error("dataset::duplicate-id", format!("{rows} have the same id `{}`", excerpt(id))).help(
                    "give each row an id of its own (`id = \"{{ … }}\"`), or write `unique = true` to keep the first",
                )
            });
        }
    }
    rows = findings.finish(rows)?;
    let mut keep = keep.into_iter();
    rows.retain(|_| keep.next().unwrap_or(true));
    if let Some(seed) = spec.shuffle {
        Random::new(seed, 0).shuffle(&mut rows);
    }
    let count = rows.len();
    let range = range(count, spec.skip, spec.take);
    rows.truncate(range.end);
    rows.drain(..range.start);
    if rows.is_empty() {
        let what = format!("`skip` and `take` leave nothing of the {count} rows of dataset `{}`", spec.name);
        return Err(vec![Diagnostic::error("dataset::empty", what).help("lower `skip`, or raise `take`")]);
    }
    Ok(rows)
}

/// What can be said of a dataset without reading all of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Rows, after `skip` and `take`.
    pub rows: u64,
    /// Whether there are so many, and not fewer because some have one id.
    pub exact: bool,
    /// Some of them, with their template fields.
    pub some: Vec<Row>,
}

/// Looks at some rows of a dataset that lies in these files, or in none if it is made. `None` where they are at fault, which
/// [`read`] says better.
pub fn sample(spec: &DatasetSpec, files: &[RowFile], most: usize) -> Option<Sample> {
    let (mut all, mut some) = (0, Vec::new());
    if let RowSource::Template { rows, seed, template } = &spec.source {
        all = *rows;
        some = make_rows("", (*rows).min(most as u64), *seed, template).ok()?;
    }
    for file in files {
        let (rows, first) = rows::sample(file, most)?;
        all += rows;
        some.extend(first);
    }
    let mut findings = RowFindings::new(String::new());
    let some = fill_in(spec, some, &mut findings);
    let some = findings.finish(some).ok()?;
    let rows = spec.take.unwrap_or(u64::MAX).min(all.saturating_sub(spec.skip));
    Some(Sample { rows, exact: !spec.unique, some })
}

/// How many rows a file of JSON lines has, and some of them.
pub fn sample_of(lines: &Path, most: usize) -> Option<(u64, Vec<Row>)> {
    rows::sample(&RowFile { name: "rows.jsonl".to_owned(), path: lines.to_owned() }, most)
}

/// The part of the rows that an input takes.
pub fn slice(rows: &[Row], skip: Option<u64>, take: Option<u64>) -> &[Row] {
    &rows[range(rows.len(), skip.unwrap_or(0), take)]
}

fn range(count: usize, skip: u64, take: Option<u64>) -> Range<usize> {
    let start = usize::try_from(skip).unwrap_or(usize::MAX).min(count);
    let length = take.map_or(usize::MAX, |take| usize::try_from(take).unwrap_or(usize::MAX));
    start..start + length.min(count - start)
}

fn make_rows(name: &str, rows: u64, seed: u64, template: &str) -> Result<Vec<Row>, Vec<Diagnostic>> {
    let mut findings = RowFindings::new(name.to_owned());
    let template = Template::parse(template).map_err(|what| {
        vec![
            Diagnostic::error("dataset::bad-template", format!("the template of {name} does not parse"))
                .note(what)
                .help("templates are minijinja: `{{ choose([1, 2]) }}`, `{% if chance(0.5) %}`"),
        ]
    })?;
    let mut made = Vec::new();
    let mut faults = 0;
    for number in 0..rows {
        match template.make(seed, number) {
            Ok(row) => made.push(row),
            Err(what) => {
                findings.add(|name| {
                    Diagnostic::error("dataset::bad-row", format!("row {number} of {name} cannot be made"))
                        .note(what)
                        .help("the template must give a JSON object; put text in with `{{ text | tojson }}`")
                });
                faults += 1;
                // A template that fails a hundred times fails for all; a million rows of it would only take time.
                if faults == 100 {
                    break;
                }
            }
        }
    }
    findings.finish(made)
}

/// Gives every row its template fields and its id. All templates see the row as it was read.
fn fill_in(spec: &DatasetSpec, rows: Vec<Row>, findings: &mut RowFindings) -> Vec<Row> {
    let mut templates = Vec::with_capacity(spec.fields.len() + 1);
    for (name, text) in spec.id.iter().map(|id| ("id", id)).chain(spec.fields.iter().map(|(n, t)| (n.as_str(), t))) {
        match Template::parse(text) {
            Ok(template) => templates.push((name, template)),
            Err(what) => findings.add(|file| {
                Diagnostic::error(
                    "dataset::bad-template",
                    format!("the template `{name}` over `{file}` does not parse"),
                )
                .note(what)
                .help("templates are minijinja: `{{ field }}`")
            }),
        }
    }
    let mut filled = Vec::with_capacity(rows.len());
    for (at, mut row) in rows.into_iter().enumerate() {
        let mut values = Vec::with_capacity(templates.len());
        for (name, template) in &templates {
            match template.render(&row) {
                Ok(text) => values.push(((*name).to_owned(), Value::String(text))),
                Err(what) => findings.add(|file| {
                    let row_name = format!("row {} of `{file}`", at + 1);
                    Diagnostic::error(
                        "dataset::template",
                        format!("the template `{name}` cannot be filled in for {row_name}"),
                    )
                    .note(what)
                    .note(format!("the row has {}", fields_of(&row)))
                    .help("use fields that every row has, or `{{ field | default('') }}`")
                }),
            }
        }
        row.extend(values);
        let id = match row.get("id") {
            Some(Value::String(_)) => None,
            Some(Value::Number(number)) => Some(number.to_string()),
            None => Some(at.to_string()),
            Some(other) => {
                let shown = excerpt(&other.to_string());
                findings.add(|file| {
                    Diagnostic::error("dataset::bad-id", format!("row {} of `{file}` has no usable id", at + 1))
                        .note(format!("`id` is {shown}, neither text nor a number"))
                        .help("give the dataset an id template: `id = \"{{ … }}\"`")
                });
                Some(at.to_string())
            }
        };
        if let Some(id) = id {
            row.insert("id".to_owned(), Value::String(id));
        }
        filled.push(row);
    }
    filled
}

fn fields_of(row: &Row) -> String {
    let names: Vec<String> = row.keys().take(12).map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "no fields".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn spec(source: RowSource) -> DatasetSpec {
        DatasetSpec {
            name: "d".to_owned(),
            source,
            id: None,
            fields: Vec::new(),
            unique: false,
            shuffle: None,
            skip: 0,
            take: None,
            span: 0..0,
        }
    }

    fn of_file(name: &str, text: &str) -> (tempfile::TempDir, DatasetSpec) {
        let folder = tempfile::tempdir().expect("a folder");
        fs_err::write(folder.path().join(name), text).expect("writes");
        (folder, spec(RowSource::File(name.into())))
    }

    fn rows(name: &str, text: &str) -> Result<Vec<Row>, Vec<Diagnostic>> {
        let (folder, spec) = of_file(name, text);
        read_in(&spec, folder.path())
    }

    fn read_in(spec: &DatasetSpec, base: &Path) -> Result<Vec<Row>, Vec<Diagnostic>> {
        read(spec, &files(spec, base))
    }

    fn ids(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row["id"].as_str().expect("text")).collect()
    }

    #[test]
    fn every_format_gives_rows_with_ids() {
        let found = rows("a.jsonl", "{\"id\": 7, \"t\": \"x\"}\r\n{\"t\": \"y\"}\n\n").expect("reads");
        assert_eq!(ids(&found), ["7", "1"]);
        let found = rows("a.json", "{\"z\": {\"t\": 1}, \"a\": {\"id\": \"own\"}}").expect("reads");
        assert_eq!(ids(&found), ["z", "own"]);
        assert_eq!(rows("a.json", "[{\"t\": 1}]").expect("reads")[0]["t"], 1);
        let found = rows("a.json", "{\"z\": [{\"t\": 1}], \"a\": {}}").expect("reads");
        assert_eq!((ids(&found), found[0]["items"][0]["t"].as_u64()), (vec!["z", "a"], Some(1)));
        let found = rows("a.csv", "id,text\r\nq,\"a, b\"\r\nr,c\r\n").expect("reads");
        assert_eq!((ids(&found), found[0]["text"].as_str()), (vec!["q", "r"], Some("a, b")));
        let found = rows("a.txt", "one\ntwo").expect("reads");
        assert_eq!((ids(&found), found[1]["text"].as_str()), (vec!["0", "1"], Some("two")));
    }

    #[test]
    fn packed_files_and_several_are_read_as_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let pack = |text: &str| {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(text.as_bytes()).expect("packs");
            packed.finish().expect("packs")
        };
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs_err::write(&path, bytes).expect("writes");
            RowFile { name: name.to_owned(), path }
        };
        let two = [pack("{\"t\": 1}\n"), pack("{\"t\": 2}\n")].concat();
        let files = [file("a.jsonl.gz", &two), file("b.csv.gz", &pack("t\n3\n")), file("c.jsonl", b"{\"t\": oops}\n")];
        let spec = spec(RowSource::File("not used".into()));
        let found = read(&spec, &files[..2]).expect("reads");
        assert_eq!((ids(&found), &found[1]["t"], &found[2]["t"]), (vec!["0", "1", "2"], &2.into(), &"3".into()));
        let found = read(&spec, &files).expect_err("one is broken");
        assert!(found.len() == 1 && found[0].title.contains("row 1 of `c.jsonl`"), "{found:?}");
        let some = sample(&spec, &files[..2], 2).expect("rows");
        assert_eq!((some.rows, some.exact, ids(&some.some)), (3, true, vec!["0", "1", "2"]));
        let cut = file("d.jsonl.gz", &two[..20]);
        assert_eq!(sample(&spec, std::slice::from_ref(&cut), 2), None);
        assert_eq!(read(&spec, &[cut]).expect_err("cut off")[0].id, "dataset::bad-file");
    }

    #[test]
    fn every_broken_row_is_named() {
        let fault = |name: &str, text: &str| -> Vec<String> {
            let found = rows(name, text).expect_err("at fault");
            found.iter().map(|finding| format!("{} {} {:?}", finding.id, finding.title, finding.notes)).collect()
        };
        let found = fault("a.jsonl", "{}\n{\"t\": }\n\n[1]\n{}\n");
        assert_eq!(found.len(), 3, "{found:?}");
        for (finding, row) in found.iter().zip([2, 3, 4]) {
            assert!(finding.contains(&format!("row {row} of")), "{finding}");
        }
        assert!(fault("a.csv", "a,b\n1,2\n\n3\n")[0].contains("row 2"));
        assert!(fault("a.csv", "a,b\n1,2\n3\n4,5\n")[0].contains("1 values for 2 columns"));
        assert!(fault("a.csv", "a,a\n1,2\n")[0].contains("column 2"));
        assert!(fault("a.txt", "a\n\nb\n")[0].contains("row 2"));
        assert!(fault("a.json", "[{}, 3]")[0].contains("row 2"));
        assert!(fault("a.json", "[{},\n{]")[0].contains("dataset::bad-file"));
        assert!(fault("a.jsonl", "")[0].contains("has no rows"));
        assert!(fault("a.csv", "")[0].contains("has no rows"));
        assert!(fault("a.xlsx", "")[0].contains("no known format"));
        assert!(fault("a.parquet.gz", "")[0].contains("no known format"));
        assert!(fault("a.parquet", "PAR1")[0].contains("no Parquet file"));
        assert!(fault("a.jsonl.gz", "{}")[0].contains("no gzip file"));
        assert!(fault("a.jsonl", "{\"id\": 1}\n{\"id\": \"1\"}\n")[0].contains("rows 1 and 2"));
        assert!(fault("a.jsonl", "{\"id\": null}\n")[0].contains("no usable id"));
        assert_eq!(fault("a.txt", &"\n".repeat(100).replace('\n', "\nx\n")).len(), 20);
    }

    #[test]
    fn a_broken_line_is_pointed_into() {
        let found = rows("a.jsonl", "{}\n{\"t\": oops}\n").expect_err("at fault");
        let label = &found[0].labels[0];
        assert_eq!((label.source.first_line, &label.source.text[label.span.clone()]), (2, "o"));
        let long = format!("{{}}\n{{\"t\": \"{}\" oops}}\n", "ü".repeat(5_000));
        let found = rows("a.jsonl", &long).expect_err("at fault");
        let label = &found[0].labels[0];
        assert!(label.source.text.len() < 400 && &label.source.text[label.span.clone()] == "o", "{label:?}");
    }

    #[test]
    fn templates_make_fields_and_ids() {
        let (folder, mut spec) = of_file("a.jsonl", "{\"info\": {\"n\": 1}}\n{\"info\": {\"n\": 2}}\n{\"info\": {}}\n");
        spec.id = Some("p{{ info.n }}".to_owned());
        spec.fields = vec![("query".to_owned(), "POST: {{ info.n }}".to_owned())];
        let found = read_in(&spec, folder.path()).expect_err("row 3 has no n");
        assert_eq!(found.len(), 2);
        assert!(found[0].title.contains("row 3"), "{found:?}");
        spec.id = Some("p{{ info.n | default(0) }}".to_owned());
        spec.fields[0].1 = "POST: {{ info.n | default('none') }}".to_owned();
        let found = read_in(&spec, folder.path()).expect("reads");
        assert_eq!((ids(&found), found[2]["query"].as_str()), (vec!["p1", "p2", "p0"], Some("POST: none")));
    }

    #[test]
    fn unique_then_shuffle_then_slice() {
        let text = (0..10).map(|n| format!("{{\"id\": {}}}\n", n / 2)).collect::<Vec<_>>().concat();
        let (folder, mut spec) = of_file("a.jsonl", &text);
        assert_eq!(read_in(&spec, folder.path()).expect_err("doubled").len(), 5);
        spec.unique = true;
        assert_eq!(ids(&read_in(&spec, folder.path()).expect("reads")), ["0", "1", "2", "3", "4"]);
        spec.shuffle = Some(3);
        let all = read_in(&spec, folder.path()).expect("reads");
        assert_ne!(ids(&all), ["0", "1", "2", "3", "4"]);
        (spec.skip, spec.take) = (1, Some(2));
        assert_eq!(read_in(&spec, folder.path()).expect("reads"), all[1..3]);
        assert_eq!(slice(&all, Some(1), Some(2)), &all[1..3]);
        assert_eq!(slice(&all, Some(99), None), &all[5..]);
        spec.skip = 9;
        assert_eq!(read_in(&spec, folder.path()).expect_err("nothing left")[0].id, "dataset::empty");
    }

    #[test]
    fn made_rows_are_seeded_one_by_one() {
        let make = |rows, seed, template: &str| {
            read(&spec(RowSource::Template { rows, seed, template: template.to_owned() }), &[])
        };
        let template = "{\"n\": {{ between(0, 1000000) }}}";
        let ten = make(10, 1, template).expect("makes");
        assert_eq!(make(5, 1, template).expect("makes"), ten[..5]);
        assert_ne!(make(10, 2, template).expect("makes"), ten);
        assert_eq!(make(200, 1, "{{ gone }}").expect_err("strict").len(), 20);
    }
}
