//! Checks that read data: datasets row by row, model directories, slices against the number of rows there are.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::dataset::{self, DatasetSpec, Row, RowFile, RowSource};
use super::rows::shown;
use super::{Link, ModelSource, Origin, Pipeline, Target};
use crate::diag::{Diagnostic, did_you_mean};
use crate::fs;

/// A `config.json`, and an index of weights in many files, are smaller by far.
const LARGEST_JSON: u64 = 64 << 20;

/// What reading all data of a pipeline found.
#[derive(Debug, Default)]
pub struct DataCheck {
    /// Errors and warnings.
    pub findings: Vec<Diagnostic>,
    /// Rows of each dataset that could be read.
    pub rows: HashMap<String, usize>,
}

/// Reads every dataset and looks into every model directory. What comes from the hub is read when it is there.
pub fn data(pipeline: &Pipeline) -> DataCheck {
    let mut check = DataCheck::default();
    for (name, spec) in &pipeline.datasets {
        if matches!(spec.source, RowSource::Hub { .. }) {
            continue;
        }
        match rows(spec, &dataset::files(spec, &pipeline.directory), pipeline) {
            Ok(rows) => _ = check.rows.insert(name.clone(), rows.len()),
            Err(findings) => check.findings.extend(findings),
        }
    }
    for (name, model) in &pipeline.models {
        check.findings.extend(self::model(name, model, pipeline));
    }
    // One finding per place in the file: the iterations of a loop share it.
    let mut seen = BTreeSet::new();
    for (node, link) in pipeline.nodes.iter().flat_map(|node| node.links.iter().map(move |link| (node, link))) {
        if let Some(finding) = slice(&node.name, link, &check.rows, pipeline)
            && seen.insert((link.span.start, finding.id))
        {
            check.findings.push(finding);
        }
    }
    check
}

/// Reads a dataset that lies in these files. What is wrong with it also points at the place where the pipeline declares
/// it.
pub fn rows(spec: &DatasetSpec, files: &[RowFile], pipeline: &Pipeline) -> Result<Vec<Row>, Vec<Diagnostic>> {
    let place = |finding: Diagnostic| {
        let finding = finding.label(&pipeline.source, spec.span.clone(), "of this dataset");
        if finding.id == "dataset::unreadable" { similar_file(finding, spec, pipeline) } else { finding }
    };
    dataset::read(spec, files).map_err(|findings| findings.into_iter().map(place).collect())
}

/// Names a file of the same directory that may have been meant.
fn similar_file(finding: Diagnostic, spec: &DatasetSpec, pipeline: &Pipeline) -> Diagnostic {
    let RowSource::File(path) = &spec.source else { return finding };
    let path = pipeline.directory.join(path);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return finding;
    };
    let names: Vec<String> = fs_err::read_dir(directory)
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    match did_you_mean(name, names.iter().map(String::as_str)) {
        Some(near) => finding.help(format!("a file with a similar name exists: `{}`", shown(&directory.join(near)))),
        None => finding,
    }
}

/// Looks at the files of a model for what it must have; returns what is wrong with them. What comes from the hub is
/// looked at when it is downloaded.
pub fn model(name: &str, model: &ModelSource, pipeline: &Pipeline) -> Option<Diagnostic> {
    match &model.origin {
        Origin::Directory(path) => model_directory(name, model, &pipeline.directory.join(path), pipeline),
        Origin::Gguf { file, tokenizer } => gguf_files(
            &pipeline.directory.join(file),
            tokenizer.as_ref().map(|path| pipeline.directory.join(path)).as_deref(),
        )
        .map(|(what, help)| {
            let title = format!("the GGUF file of model `{name}` cannot be used");
            Diagnostic::error("pipeline::gguf", title).label(&pipeline.source, model.span.clone(), what).help(help)
        }),
        Origin::Hub(_) | Origin::Endpoint { .. } => None,
    }
}

/// What is wrong with a GGUF file and the tokenizer named for it, and what to do.
fn gguf_files(file: &Path, tokenizer: Option<&Path>) -> Option<(String, &'static str)> {
    use std::io::Read;
    let mut magic = [0; 4];
    match fs::open(file).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) if magic == *b"GGUF" => {}
        Ok(()) => {
            return Some((
                format!("`{}` does not begin as GGUF files do", shown(file)),
                "give a file that ends in .gguf",
            ));
        }
        Err(error) => return Some((error.to_string(), "give the path of a GGUF file")),
    }
    match tokenizer {
        Some(path) if !path.is_file() => {
            Some((format!("there is no file `{}`", shown(path)), "give a `tokenizer.json`, or remove `tokenizer`"))
        }
        _ => None,
    }
}

fn model_directory(name: &str, model: &ModelSource, directory: &Path, pipeline: &Pipeline) -> Option<Diagnostic> {
    let fault = |what: String, help: &str| {
        let finding =
            Diagnostic::error("pipeline::model-directory", format!("the directory of model `{name}` cannot be used"));
        Some(finding.label(&pipeline.source, model.span.clone(), what).help(help))
    };
    let fix = "give a directory with config.json, tokenizer.json and *.safetensors, as `save_pretrained` writes it";
    let names: BTreeSet<String> = match fs_err::read_dir(directory) {
        Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return fault(format!("there is no directory `{}`", shown(directory)), fix);
        }
        Err(error) => return fault(error.to_string(), fix),
    };
    let missing: Vec<&str> =
        ["config.json", "tokenizer.json"].into_iter().filter(|&file| !names.contains(file)).collect();
    if !missing.is_empty() {
        let sentencepiece = missing == ["tokenizer.json"] && names.contains("tokenizer.model");
        let help = if sentencepiece {
            "convert its tokenizer.model in Python: `AutoTokenizer.from_pretrained(DIRECTORY, use_fast=True).save_pretrained(DIRECTORY)`"
        } else {
            fix
        };
        return fault(format!("it has no {}", missing.join(" and no ")), help);
    }
    if !names.iter().any(|name| name.ends_with(".safetensors")) {
        let pickled = |name: &String| Path::new(name).extension().is_some_and(|extension| extension == "bin");
        let help = if names.iter().any(pickled) {
            "convert the weights: `model.save_pretrained(DIRECTORY, safe_serialization=True)`"
        } else {
            fix
        };
        return fault("it has no *.safetensors".to_owned(), help);
    }
    if let Some(shard) = missing_shard(directory, &names) {
        return fault(
            format!("it has no {shard}, which its index names"),
            "fetch the file again, or name another directory",
        );
    }
    let config = fs::read(&directory.join("config.json"), LARGEST_JSON);
    match config.map(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes)) {
        Ok(Ok(serde_json::Value::Object(_))) => None,
        Ok(Ok(_)) => fault("its config.json is no JSON object".to_owned(), fix),
        Ok(Err(error)) => fault(format!("its config.json is not JSON: {error}"), fix),
        Err(error) => fault(error.to_string(), fix),
    }
}

/// The first weight file that is not there of those that the index names. What is wrong with an index itself, the
/// attempt that reads it says better.
fn missing_shard(directory: &Path, names: &BTreeSet<String>) -> Option<String> {
    if names.contains("model.safetensors") {
        return None;
    }
    let index = fs::read(&directory.join("model.safetensors.index.json"), LARGEST_JSON).ok()?;
    let index: serde_json::Value = serde_json::from_slice(&index).ok()?;
    let shards: BTreeSet<&str> =
        index.get("weight_map")?.as_object()?.values().filter_map(|name| name.as_str()).collect();
    shards.into_iter().find(|shard| !names.contains(*shard)).map(str::to_owned)
}

fn slice(node: &str, link: &Link, rows: &HashMap<String, usize>, pipeline: &Pipeline) -> Option<Diagnostic> {
    let Target::Dataset(name) = &link.target else { return None };
    let rows = *rows.get(name)? as u64;
    let skip = link.field.input.skip.unwrap_or(0);
    let left = rows.saturating_sub(skip);
    if left == 0 {
        let what = format!("node `{node}` skips all {rows} rows of dataset `{name}`");
        let finding = Diagnostic::error("pipeline::empty-slice", what);
        return Some(finding.label(&pipeline.source, link.span.clone(), "nothing is left").help("lower `skip`"));
    }
    let take = link.field.input.take?;
    if take == 0 {
        let what = format!("node `{node}` takes no rows of dataset `{name}`");
        let finding = Diagnostic::error("pipeline::empty-slice", what);
        return Some(finding.label(&pipeline.source, link.span.clone(), "nothing is taken").help("raise `take`"));
    }
    (take > left).then(|| {
        let what = format!("node `{node}` wants {take} rows of dataset `{name}`, which has {left}");
        let finding = Diagnostic::warning("pipeline::short-slice", what);
        let finding = finding.label(&pipeline.source, link.span.clone(), format!("{left} rows after `skip`"));
        finding.help("lower `take`, or add rows")
    })
}
