//! `[datasets]` as declared.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::diag::{Diagnostic, did_you_mean};
use crate::hub::{Part, Repo, RepoKind};
use crate::pipeline::dataset::{DatasetSpec, RowSource};
use crate::pipeline::findings::Findings;
use crate::pipeline::make;
use crate::pipeline::tree::{Tree, from_tree};

/// A template dataset larger than this is a slip of the pen.
const MOST_ROWS: u64 = 100_000_000;

#[derive(Deserialize, Default, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::pipeline) struct DatasetTable {
    /// A `.jsonl`, `.json`, `.csv`, `.txt` or `.parquet` file, all but the last also packed as `.gz`; or `hf:datasets/REPO`.
    source: Option<String>,
    /// Rows that are made of a seeded template, instead of `source`.
    make: Option<Make>,
    /// Template of the row's id; without it the field `id`, or else the row's number from 0.
    id: Option<String>,
    /// Of rows with one id the first is kept; without it they are an error.
    unique: bool,
    /// Seed: shuffles the rows.
    shuffle: Option<u64>,
    /// Rows left out at the start.
    skip: u64,
    /// Rows taken after those; all without it.
    take: Option<u64>,
    /// With `hf:datasets/…`: which split; `train` without it.
    split: Option<String>,
    /// With `hf:datasets/…`: which configuration.
    config: Option<String>,
    /// With `hf:datasets/…`: names of files, one or a list; `*` and `**` stand for anything.
    data_files: Option<OneOrMore>,
}

/// A text, or a list of some.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Make {
    /// How many rows.
    rows: u64,
    /// Seed of the random numbers.
    #[serde(default)]
    seed: u64,
    /// Template of a row's JSON object; it has `row` and `choose`, `sample`, `shuffle`, `chance`, `between`.
    template: String,
}

const OWN_KEYS: &[&str] =
    &["source", "make", "id", "unique", "shuffle", "skip", "take", "split", "config", "data_files"];
/// Keys that say which rows of a repository are meant.
pub(in crate::pipeline) const OF_THE_HUB: [&str; 3] = ["split", "config", "data_files"];

fn is_dataset(repo: Repo) -> Result<Repo, String> {
    match repo.kind {
        RepoKind::Dataset => Ok(repo),
        RepoKind::Model => Err(format!("that is a model; the dataset would be `hf:datasets/{}`", repo.name)),
    }
}

/// Reads `[datasets.NAME]`; what is wrong is reported.
pub(in crate::pipeline) fn dataset(
    name: &str,
    key_span: &Range<usize>,
    mut tree: Tree,
    findings: &mut Findings,
) -> Option<DatasetSpec> {
    let source = Arc::clone(&findings.source);
    let what = format!("dataset `{name}`");
    let mut fields = Vec::new();
    if let Some(table) = tree.table_mut() {
        // Any other key that holds text is a template field; one that does not is reported as unknown below.
        let others: Vec<String> = table
            .iter()
            .filter(|(key, entry)| !OWN_KEYS.contains(&key.as_str()) && entry.value.text().is_some())
            .map(|(key, _)| key.clone())
            .collect();
        for key in others {
            if let Some(entry) = table.shift_remove(&key) {
                fields.push((key, entry.value));
            }
        }
    }
    let places = tree.clone();
    let (table, sound) = findings.fit(&what, &mut tree, from_tree::<DatasetTable>);
    let table = table?;
    let mut template = |path: &str, text: &str, place: Range<usize>| {
        if let Err(fault) = make::Template::parse(text) {
            findings.add(
                Diagnostic::error("pipeline::bad-template", format!("the template `{path}` of {what} does not parse"))
                    .label(&source, place, fault)
                    .help("templates are minijinja: `{{ field }}`, `{% for … %}`, `{% if … %}`"),
            );
        }
    };
    if let Some(id) = &table.id {
        template("id", id, places.place("id"));
    }
    for (key, value) in &fields {
        template(key, value.text().unwrap_or_default(), value.span.clone());
    }
    if let Some(make) = &table.make {
        template("make.template", &make.template, places.place("make.template"));
    }
    let rows = match (table.source, table.make) {
        (Some(path), None) => {
            let given = OF_THE_HUB.iter().find(|key| places.table().is_some_and(|table| table.contains_key(key)));
            match (path.strip_prefix("hf:"), given) {
                (Some(repo), _) => match repo.parse::<Repo>().and_then(is_dataset) {
                    Ok(repo) => {
                        let files = match table.data_files {
                            None => Vec::new(),
                            Some(OneOrMore::One(file)) => vec![file],
                            Some(OneOrMore::More(files)) => files,
                        };
                        RowSource::Hub { repo, part: Part { split: table.split, config: table.config, files } }
                    }
                    Err(fault) => {
                        findings.add(
                            Diagnostic::error("pipeline::hub-name", format!("{what} comes from `{path}`"))
                                .label(&source, places.place("source"), fault)
                                .help("write `hf:datasets/ORGANISATION/NAME`, or `hf:datasets/ORGANISATION/NAME@REVISION`"),
                        );
                        return None;
                    }
                },
                (None, Some(key)) => {
                    findings.add(
                        Diagnostic::error("pipeline::split", format!("{what} names a `{key}` of a file"))
                            .label(&source, places.place(key), "only datasets of the hub have that")
                            .help(format!("remove `{key}`; cut the file with `skip` and `take`")),
                    );
                    return None;
                }
                (None, None) => RowSource::File(PathBuf::from(path)),
            }
        }
        (None, Some(make)) => {
            if let Some(key) = OF_THE_HUB.iter().find(|key| places.table().is_some_and(|table| table.contains_key(key)))
            {
                findings.add(
                    Diagnostic::error("pipeline::split", format!("{what} names a `{key}` of rows that are made"))
                        .label(&source, places.place(key), "only datasets of the hub have that")
                        .help(format!("remove `{key}`")),
                );
            }
            if sound && (make.rows == 0 || make.rows > MOST_ROWS) {
                findings.add(
                    Diagnostic::error("pipeline::row-count", format!("{what} makes {} rows", make.rows))
                        .label(&source, places.place("make.rows"), "")
                        .help(format!("make 1 to {MOST_ROWS} rows")),
                );
            }
            RowSource::Template { rows: make.rows, seed: make.seed, template: make.template }
        }
        (Some(_), Some(_)) => {
            findings.add(
                Diagnostic::error("pipeline::two-sources", format!("{what} has both `source` and `make`"))
                    .label(&source, places.place("source"), "read from a file")
                    .label(&source, places.place("make"), "made from a template")
                    .help("remove one of the two"),
            );
            return None;
        }
        (None, None) => {
            let near = fields.iter().find(|(key, _)| did_you_mean(key, ["source", "make"]).is_some());
            let place = near.map_or(key_span.clone(), |(_, value)| value.span.clone());
            findings.add(
                Diagnostic::error("pipeline::no-source", format!("{what} has neither `source` nor `make`"))
                    .label(&source, place, if near.is_some() { "did you mean `source`?" } else { "has no rows" })
                    .help("add `source = \"FILE\"` (.jsonl, .json, .csv, .txt, .parquet), `source = \"hf:datasets/REPO\"` or `make = { rows = N, template = \"…\" }`"),
            );
            return None;
        }
    };
    let fields = fields
        .into_iter()
        .map(|(key, value)| {
            let text = value.text().unwrap_or_default().to_owned();
            (key, text)
        })
        .collect();
    Some(DatasetSpec {
        name: name.to_owned(),
        source: rows,
        id: table.id,
        fields,
        unique: table.unique,
        shuffle: table.shuffle,
        skip: table.skip,
        take: table.take,
        span: key_span.clone(),
    })
}
