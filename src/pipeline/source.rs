//! `[models]` and `[datasets]` as declared.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::dataset::{DatasetSpec, RowSource};
use super::findings::Findings;
use super::make;
use super::tree::{Tree, from_tree};
use super::{ModelSource, Origin, endpoint};
use crate::diag::{Diagnostic, did_you_mean};

/// A template dataset larger than this is a slip of the pen.
const MOST_ROWS: u64 = 100_000_000;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ModelTable {
    source: Option<String>,
    dtype: Option<String>,
    tokenizer: Option<String>,
}

/// A model as declared.
#[derive(Debug)]
pub(super) enum ModelDeclaration {
    /// `source = "…"`.
    Source(ModelSource),
    /// `init = { … }`: the fields of a node of kind `init`.
    Init(Tree),
}

/// Reads `[models.NAME]`; what is wrong is reported.
pub(super) fn model(
    name: &str,
    key_span: &Range<usize>,
    mut tree: Tree,
    findings: &mut Findings,
) -> Option<ModelDeclaration> {
    let source = Arc::clone(&findings.source);
    let what = format!("model `{name}`");
    let init = tree.table_mut().and_then(|table| table.shift_remove("init"));
    let place = tree.place("source");
    if let Some(model) = endpoint::named(&tree) {
        return endpoint::model(name, model, key_span, tree, findings);
    }
    endpoint::strays(&what, &mut tree, findings);
    let (table, _) = findings.fit(&what, &mut tree, from_tree::<ModelTable>);
    let table = table?;
    if let Some(init) = init {
        if table.source.is_some() {
            findings.add(
                Diagnostic::error("pipeline::two-sources", format!("{what} has both `source` and `init`"))
                    .label(&source, init.key_span, "initialised at random")
                    .label(&source, place, "read from files")
                    .help("remove one of the two"),
            );
            return None;
        }
        return Some(ModelDeclaration::Init(init.value));
    }
    let Some(text) = table.source else {
        findings.add(
            Diagnostic::error("pipeline::no-source", format!("{what} has neither `source` nor `init`"))
                .label(&source, key_span.clone(), "comes from nowhere")
                .help("add `source = \"DIRECTORY\"`, `\"hf:REPO\"`, `\"gguf:FILE\"` or `\"openai:MODEL\"`, or `init = { … }` for a random one"),
        );
        return None;
    };
    let tokenizer = table.tokenizer.map(PathBuf::from);
    let origin = match text.split_once(':') {
        Some(("hf", repo)) => match repo.parse() {
            Ok(repo) => Origin::Hub(repo),
            Err(fault) => {
                findings.add(
                    Diagnostic::error("pipeline::hub-name", format!("{what} comes from `{text}`"))
                        .label(&source, place, fault)
                        .help("write `hf:ORGANISATION/NAME`, or `hf:ORGANISATION/NAME@REVISION`"),
                );
                return None;
            }
        },
        Some(("gguf", file)) => Origin::Gguf { file: PathBuf::from(file), tokenizer: tokenizer.clone() },
        _ => Origin::Directory(PathBuf::from(text)),
    };
    if tokenizer.is_some() && !matches!(origin, Origin::Gguf { .. }) {
        findings.add(
            Diagnostic::error("pipeline::tokenizer", format!("{what} names a tokenizer and has its own"))
                .label(&source, tree.place("tokenizer"), "only for `gguf:` sources")
                .help("remove `tokenizer`"),
        );
    }
    if let Some(dtype) = &table.dtype
        && !["f32", "bf16", "f16"].contains(&dtype.as_str())
    {
        findings.add(
            Diagnostic::error("pipeline::bad-dtype", format!("{what} has the unknown dtype `{dtype}`"))
                .label(&source, tree.place("dtype"), "unknown dtype")
                .help("give `f32`, `bf16` or `f16`"),
        );
    }
    Some(ModelDeclaration::Source(ModelSource { origin, dtype: table.dtype, span: place }))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct DatasetTable {
    source: Option<String>,
    make: Option<Make>,
    id: Option<String>,
    unique: bool,
    shuffle: Option<u64>,
    skip: u64,
    take: Option<u64>,
    split: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Make {
    rows: u64,
    #[serde(default)]
    seed: u64,
    template: String,
}

const OWN_KEYS: &[&str] = &["source", "make", "id", "unique", "shuffle", "skip", "take", "split"];

/// Reads `[datasets.NAME]`; what is wrong is reported.
pub(super) fn dataset(
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
            if path.starts_with("hf:") || path.ends_with(".parquet") {
                findings.add(
                    Diagnostic::error("pipeline::source-not-supported", format!("{what} comes from `{path}`"))
                        .label(&source, places.place("source"), "not supported yet")
                        .help("give the path of a .jsonl, .json, .csv or .txt file"),
                );
                return None;
            }
            if table.split.is_some() {
                findings.add(
                    Diagnostic::error("pipeline::split", format!("{what} names a split of a file"))
                        .label(&source, places.place("split"), "a file has no splits")
                        .help("remove `split`; cut the file with `skip` and `take`"),
                );
            }
            RowSource::File(PathBuf::from(path))
        }
        (None, Some(make)) => {
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
                    .help("add `source = \"FILE\"` (.jsonl, .json, .csv, .txt) or `make = { rows = N, template = \"…\" }`"),
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
