//! Which files of a repository make a model.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::{HubError, Repo};

/// The list of the weight files of a model that has several.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Files without which there is no model.
pub(super) const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Files that a model may have beside them and its weights.
pub(super) const OPTIONAL: [&str; 3] = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];

/// The files of one repository that count.
#[derive(Debug)]
pub(super) struct Selection {
    sharded: bool,
}

/// Whether a file holds weights.
pub(super) fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

impl Selection {
    /// Errs if the repository lacks what a model must have.
    pub(super) fn of<'a>(repo: &Repo, names: impl Iterator<Item = &'a str>) -> Result<Self, HubError> {
        let names: BTreeSet<&str> = names.collect();
        let fail = |what: &str| Err(HubError::NoModel { repo: repo.clone(), what: what.to_owned() });
        if !names.contains("config.json") {
            if names.iter().any(|name| Path::new(name).extension().is_some_and(|extension| extension == "gguf")) {
                return fail("it has GGUF files only: download one and give `source = \"gguf:FILE\"`");
            }
            return fail("it has no config.json");
        }
        if !names.contains(SINGLE) && !names.contains(INDEX) {
            let pickled = |name: &&&str| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|suffix| name.ends_with(suffix));
            return match names.iter().find(pickled) {
                Some(name) => fail(&format!(
                    "its weights `{name}` are in PyTorch's own format, which can hold programs; convert them in Python: \
                     `from_pretrained(REPO).save_pretrained(DIRECTORY, safe_serialization=True)`"
                )),
                None => fail(&format!("it has no {SINGLE} and no {INDEX}")),
            };
        }
        if !names.contains("tokenizer.json") {
            if names.contains("tokenizer.model") {
                return fail(
                    "it has no tokenizer.json, only tokenizer.model (SentencePiece); convert it in Python: \
                     `AutoTokenizer.from_pretrained(REPO, use_fast=True).save_pretrained(DIRECTORY)`",
                );
            }
            return fail("it has no tokenizer.json");
        }
        Ok(Self { sharded: !names.contains(SINGLE) })
    }

    /// Whether the weights are in several files.
    pub(super) fn is_sharded(&self) -> bool {
        self.sharded
    }

    /// Whether a file belongs to the model; of several weights, whether its name is one that shards have.
    pub(super) fn counts(&self, name: &str) -> bool {
        let shard = || name.starts_with("model-") && is_weights(name) && name.contains("-of-");
        match name {
            SINGLE => !self.sharded,
            INDEX => self.sharded,
            _ => REQUIRED.contains(&name) || OPTIONAL.contains(&name) || self.sharded && shard(),
        }
    }
}

/// The weight files that an index names; `None` if there is no index.
pub(super) fn shards(index: &Path) -> io::Result<Option<BTreeSet<String>>> {
    if !index.is_file() {
        return Ok(None);
    }
    let index: serde_json::Value = serde_json::from_slice(&fs_err::read(index)?).unwrap_or_default();
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let names = map.into_iter().flat_map(|map| map.values()).filter_map(|name| name.as_str().map(str::to_owned));
    Ok(Some(names.filter(|name| super::cache::is_inside(name)).collect()))
}

/// The model's files among those of a snapshot; `None` if they are not all there.
pub(super) fn of_snapshot(directory: &Path) -> io::Result<Option<BTreeSet<String>>> {
    let there = |name: &str| directory.join(name).is_file();
    if !REQUIRED.iter().all(|name| there(name)) {
        return Ok(None);
    }
    let mut names: BTreeSet<String> =
        REQUIRED.iter().chain(OPTIONAL.iter().filter(|name| there(name))).map(|name| (*name).to_owned()).collect();
    if there(SINGLE) {
        names.insert(SINGLE.to_owned());
        return Ok(Some(names));
    }
    match shards(&directory.join(INDEX))? {
        Some(shards) if !shards.is_empty() && shards.iter().all(|name| there(name)) => {
            names.insert(INDEX.to_owned());
            names.extend(shards);
            Ok(Some(names))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(names: &[&str]) -> Result<Vec<String>, String> {
        let repo: Repo = "a/b".parse().expect("a repository");
        let selection = Selection::of(&repo, names.iter().copied()).map_err(|error| error.to_string())?;
        Ok(names.iter().filter(|name| selection.counts(name)).map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_model_is_what_transformers_would_load() {
        let single = ["README.md", "config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", INDEX];
        assert_eq!(
            select(&single),
            Ok(vec!["config.json".into(), "tokenizer.json".into(), "model.safetensors".into()])
        );
        let sharded = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "tokenizer.model",
            INDEX,
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
            "onnx/model.onnx",
        ];
        let chosen = select(&sharded).expect("a model");
        assert_eq!(chosen.len(), 7);
        assert!(!chosen.iter().any(|name| name == "consolidated.safetensors" || name == "tokenizer.model"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_before_anything_is_downloaded() {
        let error = |names: &[&str]| select(names).expect_err("it is refused");
        assert!(error(&["config.json", "tokenizer.json", "pytorch_model.bin"]).contains("can hold programs"));
        assert!(error(&["config.json", "tokenizer.model", SINGLE]).contains("AutoTokenizer"));
        assert!(error(&["model.Q4_K_M.gguf"]).contains("gguf:FILE"));
        assert!(error(&["config.json", "tokenizer.json"]).contains("no model.safetensors"));
    }
}
