//! What attempts left that ended or were killed: `tmp/`, `partial/`, `quarantine/`, `locks/`.
//!
//! Whoever works at a key holds its lock; a file that is being written is younger than an hour, or its process is there.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use jiff::SignedDuration;

use crate::digest::Digest;
use crate::fs;
use crate::store::ids::Ids;
use crate::store::inventory::weigh;
use crate::store::{Store, StoreError, name};

/// Where bytes wait that come from elsewhere.
const ARRIVING: &str = "arriving";
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// What there was when gc began.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    tmp: Vec<PathBuf>,
    partial: Vec<PathBuf>,
    quarantine: Vec<PathBuf>,
}

impl Store {
    /// Lists it. Before records are listed: an attempt's scratch is there before its record.
    pub(super) fn scratch(&self) -> Result<Scratch, StoreError> {
        let list = |folder: &str| fs::list(&self.root.join(folder));
        let mut tmp = list("tmp")?;
        // What comes from elsewhere is there until all of it came; by file, for the directory is older than they are.
        tmp.retain(|path| !path.ends_with(ARRIVING));
        tmp.extend(list("tmp/arriving")?);
        Ok(Scratch { tmp, partial: list("partial")?, quarantine: list("quarantine")? })
    }

    /// Removes it, as far as nobody is at it. `gone` are keys of which the records went just now.
    pub(super) fn sweep_scratch(
        &self,
        gone: &HashSet<Digest>,
        removed: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let scratch = self.scratch()?;
        let recorded = |key: &Digest| gone.contains(key) || self.node_path(key).exists();
        for path in scratch.tmp.iter().filter(|path| is_old(path)).chain(&scratch.quarantine) {
            Self::remove(path, removed)?;
        }
        for path in scratch.tmp.iter().filter(|path| !is_arriving(path)).chain(&scratch.partial) {
            let Ok(key) = name(path).parse::<Digest>() else { continue };
            let done = path.starts_with(self.tmp()) || recorded(&key);
            if !done {
                continue;
            }
            if let Some(_lock) = self.try_lock_key(&key)? {
                Self::remove(path, removed)?;
            }
        }
        for path in fs::list(&self.root.join("locks"))? {
            let Ok(key) = name(&path).parse::<Digest>() else { continue };
            if let Some(_lock) = self.try_lock_key(&key)? {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn remove(path: &Path, removed: &mut dyn FnMut(u64, u64)) -> Result<(), StoreError> {
        if path.is_dir() {
            let (files, bytes) = weigh(path)?;
            removed(files, bytes);
            return Ok(fs::remove_directory(path)?);
        }
        removed(1, super::size(path));
        Ok(fs::remove_file(path)?)
    }
}

impl Scratch {
    /// What of it would go: all but what someone is at. `done` are the keys with records.
    pub(super) fn garbage(self, store: &Store, done: &Ids) -> Result<Vec<PathBuf>, StoreError> {
        let mut garbage = self.quarantine;
        garbage.extend(self.tmp.iter().filter(|path| is_old(path)).cloned());
        for path in self.tmp.into_iter().filter(|path| !is_arriving(path)).chain(self.partial) {
            let Ok(key) = name(&path).parse::<Digest>() else { continue };
            let wanted = path.starts_with(store.tmp()) || done.find(&key).is_some();
            if wanted && !store.is_key_locked(&key) {
                garbage.push(path);
            }
        }
        Ok(garbage)
    }
}

fn is_arriving(path: &Path) -> bool {
    path.parent().is_some_and(|directory| directory.ends_with(ARRIVING))
}

/// Whether a file that is no attempt's was left by a process that is gone, or by no one knows whom, an hour ago or more.
fn is_old(path: &Path) -> bool {
    let name = name(path);
    if name.parse::<Digest>().is_ok() && !is_arriving(path) {
        return false;
    }
    let writer = name.strip_prefix('.').and_then(|name| name.split_once('-')).map(|(process, _)| process);
    let writer = writer.filter(|writer| writer.parse::<u32>().is_ok());
    let written = fs_err::symlink_metadata(path).and_then(|file| file.modified()).ok();
    let written = written.and_then(|written| jiff::Timestamp::try_from(written).ok());
    let old = written.is_some_and(|written| fs::now().duration_since(written) > HOUR);
    old && writer.is_none_or(|writer| !Path::new("/proc").join(writer).exists())
}
