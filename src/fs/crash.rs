//! What a disk would still have after the power went, written down for tests.
//!
//! With `SAMI_FAULT=crash-log:DIRECTORY` every process appends to `DIRECTORY/log`, a line of JSON each, what changes
//! names (`made`, `renamed`, `removed`) and what makes changes last: `synced` is a file whose bytes until then will be
//! there, kept in `DIRECTORY/BYTES`; `settled` is a directory whose names will be there; `failed` a file whose sync
//! failed, so that what was not on the disk by then never will be, whatever a later sync says. `told` are words to the
//! user. From a beginning of the log a test makes the tree that a crash at that point could have left.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::fault;

fn directory() -> Option<&'static Path> {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    DIRECTORY.get_or_init(|| fault::asked("crash-log").map(PathBuf::from)).as_deref()
}

/// A line goes in one write, so that those of several processes do not mix.
fn log(line: &Value) -> io::Result<()> {
    let Some(directory) = directory() else { return Ok(()) };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(directory.join("log"))?;
    file.write_all(format!("{line}\n").as_bytes())
}

fn inode(path: &Path) -> io::Result<u64> {
    Ok(std::fs::symlink_metadata(path)?.ino())
}

/// A file or a directory was made, or a file emptied.
pub(super) fn made(path: &Path) -> io::Result<()> {
    if directory().is_none() {
        return Ok(());
    }
    log(&json!({"op": "made", "path": path, "inode": inode(path)?, "directory": path.is_dir()}))
}

pub(super) fn renamed(from: &Path, to: &Path) -> io::Result<()> {
    if directory().is_none() {
        return Ok(());
    }
    log(&json!({"op": "renamed", "from": from, "to": to, "inode": inode(to)?, "directory": to.is_dir()}))
}

pub(super) fn removed(path: &Path) -> io::Result<()> {
    if directory().is_none() {
        return Ok(());
    }
    log(&json!({"op": "removed", "path": path}))
}

/// Runs the sync of a file and writes down what came of it: the bytes that it had before, for later ones may not be
/// on the disk.
pub(super) fn synced(path: &Path, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let Some(directory) = directory() else { return sync() };
    let name = format!("{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
    std::fs::copy(path, directory.join(&name))?;
    let inode = inode(path)?;
    let done = sync();
    let op = if done.is_ok() { "synced" } else { "failed" };
    log(&json!({"op": op, "path": path, "inode": inode, "bytes": name}))?;
    done
}

/// All that was done to a file or directory was synced with much else.
pub(super) fn lasting(path: &Path) -> io::Result<()> {
    if directory().is_none() || !path.exists() {
        return Ok(());
    }
    if path.is_dir() { settled(path) } else { synced(path, || Ok(())) }
}

pub(super) fn settled(path: &Path) -> io::Result<()> {
    if directory().is_none() {
        return Ok(());
    }
    log(&json!({"op": "settled", "path": path}))
}

/// The user was told something; what it says must hold from then on, whatever happens to the machine.
pub fn told(text: impl FnOnce() -> String) {
    if directory().is_some() {
        // Without a log there is nothing to keep it in, and a test finds that out by itself.
        let _ = log(&json!({"op": "told", "text": text()}));
    }
}
