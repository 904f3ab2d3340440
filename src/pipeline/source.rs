//! `[models]` and `[datasets]` as declared.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::findings::Findings;
use super::tree::{Tree, from_tree};
use super::{ModelSource, Origin, endpoint};
use crate::diag::Diagnostic;
use crate::hub::{Repo, RepoKind};

pub(super) mod dataset;
pub(super) use dataset::dataset;

#[derive(Deserialize, Default, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ModelTable {
    /// A directory with `config.json`, `tokenizer.json` and `*.safetensors`; or `hf:REPO`, `hf:REPO@REVISION`; or `gguf:FILE`; or `openai:MODEL`, an endpoint.
    source: Option<String>,
    /// `f32`, `bf16` or `f16`; what the checkpoint says without it.
    dtype: Option<String>,
    /// With `gguf:`: a `tokenizer.json` to use instead of what the file says.
    tokenizer: Option<String>,
}

/// A model as declared.
#[derive(Debug)]
pub(super) enum ModelDeclaration {
    /// `source = "…"`.
    Source(Box<ModelSource>),
    /// `init = { … }`: the fields of a node of kind `init`.
    Init(Tree),
}

fn is_model(repo: Repo) -> Result<Repo, String> {
    match repo.kind {
        RepoKind::Model => Ok(repo),
        RepoKind::Dataset => Err("that is a dataset; `[datasets]` take it".to_owned()),
    }
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
    let sourced = tree.table().is_some_and(|table| table.contains_key("source"));
    if let (true, Some(init)) = (sourced, &init) {
        findings.add(
            Diagnostic::error("pipeline::two-sources", format!("{what} has both `source` and `init`"))
                .label(&source, init.key_span.clone(), "initialised at random")
                .label(&source, place, "comes from outside")
                .help("remove one of the two"),
        );
        return None;
    }
    if let Some(model) = endpoint::named(&tree) {
        return endpoint::model(name, model, key_span, tree, findings);
    }
    endpoint::strays(&what, &mut tree, findings);
    let (table, _) = findings.fit(&what, &mut tree, from_tree::<ModelTable>);
    let table = table?;
    if let Some(init) = init {
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
        Some(("hf", repo)) => match repo.parse::<Repo>().and_then(is_model) {
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
    Some(ModelDeclaration::Source(Box::new(ModelSource { origin, dtype: table.dtype, span: place })))
}
