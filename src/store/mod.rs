//! The store: artifacts, node records and runs on disk.
//!
//! ```text
//! cache/
//!   VERSION                 format version, a number
//!   objects/ab/cdef…        blobs by blake3, read-only
//!   objects/ab/cdef….parts  in place of a large file of tensors: which objects it is made of
//!   artifacts/ab/cdef….json manifests: {"type", "files": {name: {digest, size}}}; named by the digest of their bytes
//!   external/ID.json        {"directory", "at"}: where a model artifact's files are that were not copied in
//!   nodes/ab/cdef….json     node records: key → artifact, preimage, metrics, provenance
//!   rows/SPACE/             row memos, see `rows`
//!   partial/KEY/            scratch of unfinished attempts (checkpoints)
//!   runs/RUN/               run.json, events.jsonl, NODE.ATTEMPT/{job.json,log.txt,result.json}; of `command` nodes
//!                           NODE.ATTEMPT.log
//!   pins/ID                 artifacts that gc keeps
//!   tensorboard/            event files, if `sami.toml` asks for them; can be deleted
//!   trackers/               as which run unfinished ones are told to trackers
//!   quarantine/             damaged files that were replaced
//!   live/                   one file per living process: what it needs, whatever gc thinks
//!   locks/                  one file per key that is worked on; `store` is shared by sections, gc's alone while it moves
//!                           things away; `gc` and `gate`: see `live`
//!   trash/                  what a gc moved away and is about to delete
//!   tmp/                    what is being written
//!   fresh/                  answers of commands that found everything fresh; can be deleted
//!   index.sqlite            a view of the above; can be deleted
//! ```
//!
//! Reading order: this file (layout, versions), `cas` (artifacts), `put` and `thin` (blobs, whole and in pieces), `checkout`
//! (getting them out), `record` (nodes and runs), `health` (is it still what it was), `fresh` (is everything), `rows` (the row
//! memo), `index` (the view), `lock` and `claim`, `live` (how runs and gc go on beside each other), `gc`, `inventory` (all of it in
//! memory), `usage`, `verify`, `migrate`, `preview`,
//! `arrive` (what comes from elsewhere).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::digest::Digest;
use crate::{env, fs};

mod arrive;
mod cas;
mod checkout;
mod claim;
mod class;
mod error;
mod fresh;
mod gc;
mod glance;
mod hash;
mod health;
mod identity;
mod ids;
mod index;
mod inventory;
mod live;
mod lock;
mod migrate;
mod preview;
mod put;
mod record;
pub mod rows;
mod thin;
mod usage;
mod uses;
mod verify;

pub use cas::{Blob, External, Manifest};
pub use checkout::{Link, copy};
pub use claim::Holder;
pub use class::{Class, EqualToWithin, Reproduces, Tolerance, Worst};
pub use error::StoreError;
pub use fresh::Fresh;
pub use gc::{Budget, By, Class as GcClass, Forgetting, Garbage, Going, Plan as GcPlan, Room, Roots, Selection};
pub use health::{Health, Stamps};
pub use index::{Glimpse, Index, Line, Lines, Maker, Order, Wanted};
pub use live::Sharing;
pub use lock::KeyLock;
pub use preview::{Preview, Tensor, preview, tensors};
pub use record::{AttemptRecord, GPU, NodeRecord, RunNode, RunRecord, Usage};
pub use usage::{Share, Shares};
pub use uses::Use;
pub use verify::{Finding, State, Verification};

/// The format that this program writes; it reads every one up to it (`migrate` says how a new one is made).
const FORMAT: u32 = 1;

const DIRECTORIES: &[&str] =
    &["artifacts", "external", "fresh", "live", "locks", "nodes", "objects", "partial", "pins", "rows", "runs", "tmp"];

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Where this process names what it needs, once it needs something.
    live: Mutex<Option<live::Live>>,
    /// Files of tensors from this size on are kept in pieces.
    thin_from: u64,
    /// What this process need not read again.
    known: put::Known,
}

impl Store {
    /// Opens the store at `root`, making it if there is none. Of a store that cannot be written, reads work.
    ///
    /// Errs if it is from a newer version or if the directory holds other things.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let root = std::path::absolute(root)?;
        match version(&root)? {
            Some(found) => up_to_date(&root, found)?,
            None if is_empty(&root)? => {
                fs::create_lasting_directory(&root)?;
                for directory in DIRECTORIES {
                    fs::create_directory(&root.join(directory))?;
                }
                // Last: a store with a version is complete.
                fs::write_atomic_via(&root.join("tmp"), &root.join("VERSION"), format!("{FORMAT}\n").as_bytes())?;
            }
            // Another process may have made it just now.
            None => match version(&root)? {
                Some(found) => up_to_date(&root, found)?,
                None => return Err(StoreError::NotAStore { directory: root }),
            },
        }
        Self::at(root)
    }

    /// Opens a store that must be there.
    pub fn open_existing(root: &Path) -> Result<Self, StoreError> {
        let root = std::path::absolute(root)?;
        match version(&root)? {
            Some(found) => up_to_date(&root, found)?,
            None => return Err(StoreError::Absent { directory: root }),
        }
        Self::at(root)
    }

    /// Opens the store at `root` to look at it. Where there is none yet, none is made: there is nothing in it.
    pub fn look(root: &Path) -> Result<Self, StoreError> {
        let root = std::path::absolute(root)?;
        match version(&root)? {
            Some(found) => up_to_date(&root, found)?,
            None if is_empty(&root)? => {}
            None => return Err(StoreError::NotAStore { directory: root }),
        }
        Self::at(root)
    }

    fn at(root: PathBuf) -> Result<Self, StoreError> {
        let thin_from = match env::THIN.get().as_deref() {
            None => thin::THIN_FROM,
            Some("off") => u64::MAX,
            Some(value) => {
                value.parse().map_err(|_| StoreError::Setting { name: env::THIN.name, value: value.to_owned() })?
            }
        };
        Ok(Self { root, live: Mutex::new(None), thin_from, known: put::Known::default() })
    }

    /// Whether it is there: one that is only [looked](Store::look) at may not be.
    pub(crate) fn exists(&self) -> bool {
        self.root.join("VERSION").exists()
    }

    /// The directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where what is being made lies until it is done.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Writes a file of the store whole or not at all.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        if let Some(directory) = path.parent() {
            fs::create_lasting_directory(directory)?;
        }
        fs::create_directory(&self.tmp())?;
        if path.is_dir() {
            self.quarantine(path)?;
        }
        Ok(fs::write_atomic_via(&self.tmp(), path, bytes)?)
    }

    /// `FOLDER/ab/cdef…SUFFIX`.
    fn sharded(&self, folder: &str, id: &Digest, suffix: &str) -> PathBuf {
        use std::fmt::Write;
        let root = self.root.as_os_str().to_string_lossy();
        let mut path = String::with_capacity(root.len() + folder.len() + suffix.len() + 68);
        let hex = id.to_string();
        let (shard, rest) = hex.split_at(2);
        // Writing to a string does not fail.
        let _ = write!(path, "{folder}/{shard}/{rest}{suffix}");
        self.root.join(path)
    }

    /// Moves a damaged file aside, so that a good one can take its place and people can still look at it.
    fn quarantine(&self, path: &Path) -> Result<(), StoreError> {
        let directory = self.root.join("quarantine");
        fs::create_directory(&directory)?;
        let shard = path.parent().map(name).unwrap_or_default();
        let aside =
            (0..10_000).map(|n| directory.join(format!("{shard}{}.{n}", name(path)))).find(|aside| !aside.exists());
        if let Some(aside) = aside {
            fs::rename(path, &aside)?;
            tracing::warn!("damaged file moved to {}", aside.display());
        }
        Ok(())
    }
}

/// The sizes of the pieces that a file of tensors would be cut into; for tests.
#[doc(hidden)]
pub fn cuts(bytes: &[u8]) -> Option<Vec<u64>> {
    thin::cuts(&mut &*bytes, bytes.len() as u64)
}

/// The last part of a path as text.
fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether what was to be read is there and is no plain file, or one larger than any that a store writes.
fn is_no_file(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::IsADirectory | ErrorKind::InvalidInput | ErrorKind::FileTooLarge)
}

fn is_empty(root: &Path) -> Result<bool, StoreError> {
    let known = |path: &PathBuf| {
        let name = name(path);
        DIRECTORIES.contains(&name.as_str()) || name == "README.md" || name.starts_with('.')
    };
    Ok(fs::list(root)?.iter().all(known))
}

fn version(root: &Path) -> Result<Option<u32>, StoreError> {
    if root.is_file() {
        return Err(StoreError::NotADirectory { file: root.to_owned() });
    }
    let path = root.join("VERSION");
    let text = match fs::read_text(&path, 64) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let what = || format!("`{}` should hold a number and holds `{}`", path.display(), text.trim());
    let found = text.trim().parse().ok().filter(|found| *found > 0);
    found.map(Some).ok_or_else(|| StoreError::Damaged { what: what() })
}

/// Brings a store of an earlier version up to this program's; errs if it is of a later one.
fn up_to_date(root: &Path, found: u32) -> Result<(), StoreError> {
    match found {
        FORMAT => Ok(()),
        newer if newer > FORMAT => Err(StoreError::NewerFormat { directory: root.to_owned(), found, known: FORMAT }),
        _ => migrate::migrate(root, migrate::STEPS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_what_is_a_store_or_can_become_one() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("cache");
        assert!(matches!(Store::open_existing(&root), Err(StoreError::Absent { .. })));
        drop(Store::open(&root).unwrap());
        drop(Store::open_existing(&root).unwrap());
        fs::write_atomic(&root.join("VERSION"), b"7\n").unwrap();
        let error = Store::open(&root).unwrap_err().to_string();
        assert!(error.contains("version 7") && error.contains("up to 1"), "{error}");
        fs::write_atomic(&root.join("VERSION"), b"x").unwrap();
        assert!(matches!(Store::open(&root), Err(StoreError::Damaged { .. })));
        assert!(matches!(Store::open(&root.join("VERSION")), Err(StoreError::NotADirectory { .. })));
        let home = directory.path().join("home");
        fs::create_directory(&home).unwrap();
        fs::write_atomic(&home.join("thesis.tex"), b"").unwrap();
        assert!(matches!(Store::open(&home), Err(StoreError::NotAStore { .. })));
    }

    #[test]
    fn opening_can_fail_anywhere_and_be_tried_again() {
        for n in 1.. {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().join("cache");
            let (result, reached) = fs::with_fault(n, || Store::open(&root).map(drop));
            assert_eq!(result.is_err(), reached);
            Store::open(&root).unwrap();
            if !reached {
                break;
            }
        }
    }
}
