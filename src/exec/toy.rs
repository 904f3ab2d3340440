//! Pipelines for tests of this layer.

use std::path::Path;

use crate::kinds;
use crate::pipeline::{self, Pipeline};

/// Loads a pipeline of the real kinds from text, in a directory of its own.
pub(crate) fn load(text: &str) -> Pipeline {
    let folder = tempfile::tempdir().expect("a directory");
    load_in(folder.path(), text)
}

/// Loads a pipeline from text, in a directory.
pub(crate) fn load_in(folder: &Path, text: &str) -> Pipeline {
    let path = folder.join("toy.toml");
    fs_err::write(&path, text).expect("writes");
    pipeline::load(&path, &[], &kinds::specs()).unwrap_or_else(|findings| panic!("{findings:#?}"))
}
