//! Weights that stay in memory from one node to the next, in a worker that executes several.
//!
//! A model is on the shelf while nobody uses it: who uses one has taken it off, and gives it back unchanged. Where memory is not ample,
//! weights on the shelf make way for those that are loaded.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::InputArtifact;
use crate::digest::Digest;
use crate::fs::Stamp;
use crate::lm::peaks::{self, Load};
use crate::lm::{Device, LmError, Model, Tokenizer, memory};

/// Weights that the next node may take, by what they are: a model's artifact is its form, weights, adapter and tokenizer.
#[derive(Debug, Default)]
pub struct Shelf(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The models that are worth keeping.
    keep: BTreeSet<Digest>,
    models: Vec<Shelved>,
    uses: Uses,
}

/// How an attempt came by weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uses {
    /// Read from files.
    pub loaded: u32,
    /// There since the attempt before.
    pub kept: u32,
}

#[derive(Debug)]
struct Shelved {
    id: Digest,
    device: String,
    loaded: Loaded,
}

/// A model that samples and scores, and its tokenizer.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
    /// What the files were before they were read; `None` if no one asked, or they could change without a trace.
    stamps: Option<Stamps>,
    load: Load,
}

type Stamps = Vec<(PathBuf, Stamp)>;

/// How long files that were made just now are waited for, until they could not change any more without their stamps changing.
const SETTLING: Duration = Duration::from_millis(50);

/// Where the files of a model are, and their stamps; `None` if one is gone, or may change without its stamp changing.
fn stamps(input: &InputArtifact) -> Option<Stamps> {
    let stamp = |path: &PathBuf| Some((path.clone(), Stamp::of(path).ok()??));
    let stamps: Stamps = input.files.values().map(stamp).collect::<Option<_>>()?;
    stamps.iter().all(|(_, stamp)| stamp.is_settled()).then_some(stamps)
}

/// The same of files that may have been made just now.
fn settled(input: &InputArtifact) -> Option<Stamps> {
    let began = Instant::now();
    loop {
        match stamps(input) {
            None if began.elapsed() < SETTLING => std::thread::sleep(Duration::from_millis(2)),
            stamps => return stamps,
        }
    }
}

/// Bytes that a model's weights take at most: in files they have two bytes each or more, on a CPU four.
fn bytes(input: &InputArtifact, device: &Device) -> u64 {
    let sizes = input.files.values().filter_map(|path| Some(fs_err::metadata(path).ok()?.len()));
    sizes.sum::<u64>() * if device.is_cpu() { 2 } else { 1 }
}

impl Shelf {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Whatever panicked, models are whole: they are put and taken as they are.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins another attempt, which takes these models as inputs: others are let go of. From now on those of `keep` are kept.
    pub fn begin(&self, inputs: impl Fn(&Digest) -> bool, keep: &[Digest]) {
        let mut inner = self.inner();
        inner.models.retain(|shelved| inputs(&shelved.id));
        inner.keep = keep.iter().copied().collect();
        inner.uses = Uses::default();
    }

    /// How this attempt came by weights so far.
    pub fn uses(&self) -> Uses {
        self.inner().uses
    }

    /// Ends an attempt. Returns the models that the next one may take; others are let go of.
    pub fn end(&self) -> Vec<Digest> {
        let inner = &mut *self.inner();
        inner.models.retain(|shelved| inner.keep.contains(&shelved.id));
        inner.models.iter().map(|shelved| shelved.id).collect()
    }

    /// Takes a model off, or loads it.
    pub(super) fn take(&self, input: &InputArtifact, device: &str) -> Result<Loaded, LmError> {
        let mut inner = self.inner();
        let found = inner.models.iter().position(|shelved| shelved.id == input.id && shelved.device == device);
        if let Some(at) = found {
            let loaded = inner.models.swap_remove(at).loaded;
            // What is in memory is what was verified then. Files that were touched since are read again, whatever they hold.
            if loaded.stamps.is_some() && loaded.stamps == stamps(input) {
                inner.uses.kept += 1;
                tracing::info!("the weights of model {} are there from the node before", input.id.short());
                peaks::as_if(loaded.load);
                return Ok(loaded);
            }
        }
        let device = crate::lm::device(device)?;
        if !inner.models.is_empty() && !memory::is_ample(&device, bytes(input, &device)) {
            inner.models.clear();
        }
        inner.uses.loaded += 1;
        let stamps = if inner.keep.contains(&input.id) { settled(input) } else { None };
        drop(inner);
        let tokenizer = Tokenizer::load(&input.files)?;
        let (model, load) = peaks::loading(|| Model::load_to_use(&input.files, &device))?;
        Ok(Loaded { model, tokenizer, stamps, load })
    }

    /// Takes a model back from who used it, if it is worth keeping.
    pub(super) fn put(&self, input: &InputArtifact, device: &str, loaded: Loaded) {
        let mut inner = self.inner();
        let is_there = inner.models.iter().any(|shelved| shelved.id == input.id);
        if is_there || !inner.keep.contains(&input.id) || loaded.stamps.is_none() || loaded.stamps != stamps(input) {
            return;
        }
        // Buffers of passes are no weights.
        loaded.model.limit_buffers(Some(0));
        loaded.model.limit_buffers(None);
        inner.models.push(Shelved { id: input.id, device: device.to_owned(), loaded });
    }
}
