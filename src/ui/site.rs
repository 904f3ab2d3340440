//! What pages are asked of: a cache directory, and the pipelines that belong to it.

use std::path::{Path, PathBuf};

use super::Problem;
use crate::pipeline::KindSpec;
use crate::store::{Index, Store};

/// What all pages share. It says where things are and holds none of them open.
#[derive(Debug)]
pub struct Site {
    root: PathBuf,
    /// Pipeline files named on the command line.
    pipelines: Vec<PathBuf>,
    kinds: Vec<&'static KindSpec>,
}

impl Site {
    /// The site of a cache, which need not be there yet.
    pub fn new(root: PathBuf, pipelines: Vec<PathBuf>, kinds: Vec<&'static KindSpec>) -> Self {
        Self { root, pipelines, kinds }
    }

    /// The cache directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Pipeline files named on the command line.
    pub fn pipelines(&self) -> &[PathBuf] {
        &self.pipelines
    }

    /// The kinds that pipelines may use.
    pub fn kinds(&self) -> &[&'static KindSpec] {
        &self.kinds
    }

    /// Opens the cache for a request: another program may have removed it, or be of another version.
    pub fn store(&self) -> Result<Store, Problem> {
        Ok(Store::open_existing(&self.root)?)
    }

    /// Opens the cache and its index for a request.
    pub fn open(&self) -> Result<(Store, Index), Problem> {
        let store = self.store()?;
        let index = Index::open(&store)?;
        Ok((store, index))
    }
}
