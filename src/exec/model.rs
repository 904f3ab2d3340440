//! Models from outside: where their files are, and what they are by content.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::source::{add_stamp, blob_of, hasher};
use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::fs::Stamp;
use crate::hub::{Hub, HubError, Repo, Settings};
use crate::pipeline::{ArtifactType, ModelSource, Origin, Pipeline, check};
use crate::store::{Blob, External, Manifest, Store, StoreError};

/// The file of a model artifact that says how its weights are to be read, where the pipeline says so.
const DTYPE_FILE: &str = "sami.json";
/// What the one file of a GGUF model is called in its artifact, whatever it is called where it is.
const GGUF: &str = "model.gguf";

/// Where a source is, or what of it is here.
#[derive(Debug)]
pub(super) enum Located<T> {
    /// Here.
    Here(T),
    /// It has to be downloaded; how many bytes, if the hub tells.
    Absent { bytes: Option<u64> },
}

/// The files of a model that is here.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) external: External,
    /// Where they are, by their names in the artifact.
    files: BTreeMap<String, PathBuf>,
}

/// Finds the files of a model. Of one that is to be downloaded the hub is asked for the size; of one in the cache it is
/// asked nothing.
pub(super) fn locate(name: &str, model: &ModelSource, pipeline: &Pipeline) -> Result<Located<Place>, Box<Diagnostic>> {
    let here = |path: &Path| pipeline.directory.join(path);
    let unreadable = |error: io::Error| {
        let finding = check::model(name, model, pipeline).unwrap_or_else(|| {
            Diagnostic::error("exec::model-source", format!("model `{name}` cannot be read"))
                .label(&pipeline.source, model.span.clone(), error.to_string())
                .help("give a directory with config.json, tokenizer.json and *.safetensors")
        });
        Box::new(finding)
    };
    let (external, files) = match &model.origin {
        Origin::Directory(path) => {
            let directory = here(path);
            (External::in_directory(&directory), model_files(&directory).map_err(unreadable)?)
        }
        Origin::Gguf { file, tokenizer } => {
            let mut files = BTreeMap::from([(GGUF.to_owned(), here(file))]);
            files.extend(tokenizer.as_ref().map(|path| ("tokenizer.json".to_owned(), here(path))));
            let absolute = files.iter().map(|(name, path)| Ok((name.clone(), std::path::absolute(path)?)));
            let at: io::Result<BTreeMap<String, PathBuf>> = absolute.collect();
            let directory = here(file).parent().unwrap_or(Path::new(".")).to_owned();
            (at.and_then(|at| Ok(External { at, ..External::in_directory(&directory)? })), files)
        }
        // It has no files of its own: `source` makes its artifact.
        Origin::Endpoint { .. } => return Ok(Located::Absent { bytes: None }),
        Origin::Hub(repo) => {
            let failed = |error: HubError| Box::new(hub_finding("model", name, &model.span, pipeline, &error));
            let hub = open_hub().map_err(failed)?;
            match hub.cached(repo).map_err(unreadable)? {
                Some(snapshot) => (External::in_directory(&snapshot.directory), snapshot.files),
                None => return absent(repo, hub.to_download(repo)).map_err(failed),
            }
        }
    };
    Ok(Located::Here(Place { external: external.map_err(unreadable)?, files }))
}

/// The hub that the environment names.
pub(super) fn open_hub() -> Result<Hub, HubError> {
    Ok(Hub::new(Settings::from_env()?))
}

/// That something is not here, as far as the hub tells.
pub(super) fn absent<T>(repo: &Repo, to_download: Result<Option<u64>, HubError>) -> Result<Located<T>, HubError> {
    match to_download {
        Ok(bytes) => Ok(Located::Absent { bytes }),
        Err(HubError::Network { what }) => {
            tracing::warn!("how large {repo} is cannot be told: {what}");
            Ok(Located::Absent { bytes: None })
        }
        Err(error) => Err(error),
    }
}

/// What the hub refused, at the place where the pipeline asks for it.
pub(super) fn hub_finding(
    what: &str,
    name: &str,
    span: &Range<usize>,
    pipeline: &Pipeline,
    error: &HubError,
) -> Diagnostic {
    error.diagnostic().label(&pipeline.source, span.clone(), format!("of {what} `{name}`"))
}

impl Place {
    /// Where the files are, by their names in the artifact.
    pub(super) fn files(&self) -> &BTreeMap<String, PathBuf> {
        &self.files
    }

    /// All that decides what the model is, and whether the stamps in it can be gone by.
    pub(super) fn declaration(&self, model: &ModelSource) -> io::Result<(Digest, bool)> {
        let mut hasher = hasher("model");
        hasher.text(&self.external.directory.to_string_lossy()).text(model.dtype.as_deref().unwrap_or(""));
        let mut settled = true;
        for (name, path) in &self.files {
            let gone = || io::Error::new(io::ErrorKind::NotFound, format!("its `{}` is gone", path.display()));
            let stamp = Stamp::of(path)?.ok_or_else(gone)?;
            settled &= stamp.is_settled();
            add_stamp(hasher.text(name).text(&self.external.path(name).to_string_lossy()), &stamp);
        }
        Ok((hasher.finish(), settled))
    }

    /// The id of the model's artifact; it is recorded in the store, if one is given. Reads all files, once.
    pub(super) fn artifact(&self, model: &ModelSource, store: Option<&Store>) -> Result<Digest, StoreError> {
        let mut files = BTreeMap::new();
        for (name, path) in &self.files {
            let stamp = Stamp::of(path)?.filter(Stamp::is_settled);
            files.insert(name.clone(), Blob::of_file(path)?);
            if let Some(store) = store {
                store.trust(stamp.map(|stamp| (self.external.path(name), stamp)));
            }
        }
        let _section = store.map(Store::sharing).transpose()?;
        if let Some(dtype) = &model.dtype {
            let bytes = json!({"dtype": dtype}).to_string().into_bytes();
            let blob = match store {
                Some(store) => store.put_bytes(&bytes)?,
                None => blob_of(&bytes),
            };
            files.insert(DTYPE_FILE.to_owned(), blob);
        }
        let kind = ArtifactType::Model.name();
        match store {
            Some(store) => store.put_external(kind, &self.external, &files),
            None => Ok(Manifest { kind: kind.to_owned(), files }.id()),
        }
    }
}

/// The files of a directory that make it a model: configuration, tokenizer and weights. Of weights in several forms
/// those count that `transformers` would load.
fn model_files(directory: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    const INDEX: &str = "model.safetensors.index.json";
    let mut files = BTreeMap::new();
    for entry in fs_err::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let counts = ["json", "jinja", "model", "safetensors", "txt"];
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if counts.contains(&extension) && name != DTYPE_FILE && path.is_file() {
            stays_inside(&path, directory)?;
            files.insert(name.to_owned(), path);
        }
    }
    let one = files.contains_key("model.safetensors");
    let shards: Option<BTreeSet<String>> = match files.get(INDEX) {
        _ if one => Some(BTreeSet::from(["model.safetensors".to_owned()])),
        Some(path) => shard_names(path)?,
        None => None,
    };
    if one {
        files.remove(INDEX);
    }
    if let Some(shards) = shards {
        files.retain(|name, _| !name.ends_with(".safetensors") || shards.contains(name));
    }
    Ok(files)
}

/// Errs on a link that leads out of a model's directory: whoever made the directory could have anything read through it,
/// and what is read is kept in the cache and may be shared. The directory itself may be a link, for a user named it; and a
/// snapshot of the hub's cache is made of links to the blobs beside it.
fn stays_inside(path: &Path, directory: &Path) -> io::Result<()> {
    if !fs_err::symlink_metadata(path)?.is_symlink() {
        return Ok(());
    }
    let (real, root) = (fs_err::canonicalize(path)?, fs_err::canonicalize(directory)?);
    let snapshots = root.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repo| repo.join("blobs"));
    if real.starts_with(&root) || blobs.is_some_and(|blobs| real.starts_with(blobs)) {
        return Ok(());
    }
    let what =
        format!("`{}` is a link that leads out of the model's directory, to `{}`", path.display(), real.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what + ": put the file itself there"))
}

/// The weight files that an index names; `None` if it cannot be read, which the worker will say better.
fn shard_names(index: &Path) -> io::Result<Option<BTreeSet<String>>> {
    let index: serde_json::Value = serde_json::from_slice(&fs_err::read(index)?).unwrap_or_default();
    let map = index.get("weight_map").and_then(|map| map.as_object());
    Ok(map.map(|map| map.values().filter_map(|name| name.as_str().map(str::to_owned)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err::os::unix::fs::symlink;

    #[test]
    fn links_stay_in_a_model_s_directory_or_in_the_hub_s_blobs() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for directory in ["model/sub", "repo/snapshots/1", "repo/blobs"] {
            fs_err::create_dir_all(path(directory)).unwrap();
        }
        for file in ["secret.json", "model/sub/a.json", "model/b.json", "repo/blobs/c"] {
            fs_err::write(path(file), "{}").unwrap();
        }
        symlink("sub/a.json", path("model/config.json")).unwrap();
        symlink("../../blobs/c", path("repo/snapshots/1/config.json")).unwrap();
        symlink(path("model"), path("named")).unwrap();
        let names = |directory: &str| model_files(&path(directory)).map(|files| files.into_keys().collect::<Vec<_>>());
        assert_eq!(names("named").unwrap(), ["b.json", "config.json"]);
        assert_eq!(names("repo/snapshots/1").unwrap(), ["config.json"]);
        // What leads nowhere, or to what is no file, is not there.
        symlink("nowhere", path("model/d.json")).unwrap();
        symlink("/dev/zero", path("model/e.json")).unwrap();
        assert_eq!(names("model").unwrap(), ["b.json", "config.json"]);
        for to in ["../secret.json", "sub/out/secret.json"] {
            symlink("../..", path("model/sub/out")).ok();
            symlink(to, path("model/tokenizer.json")).unwrap();
            let error = names("model").unwrap_err().to_string();
            assert!(
                error.contains("tokenizer.json") && error.contains("leads out") && error.contains("secret.json"),
                "{error}"
            );
            fs_err::remove_file(path("model/tokenizer.json")).unwrap();
        }
        // Blobs of another repository are not its own.
        fs_err::create_dir_all(path("other/blobs")).unwrap();
        fs_err::write(path("other/blobs/x"), "{}").unwrap();
        symlink("../../../other/blobs/x", path("repo/snapshots/1/tokenizer.json")).unwrap();
        assert!(names("repo/snapshots/1").is_err());
    }
}
