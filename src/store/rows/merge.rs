//! Many small segments become one.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::table::{self, Place, Table};
use super::{ABANDONED, line, segments};
use crate::digest::Digest;
use crate::fs::{self, absent_is_none};

/// Segments of this size stay as they are.
const LARGE: u64 = 64 << 20;
/// So many smaller ones are merged.
const MANY: usize = 16;
/// Bytes of a merged segment, about.
const MOST: u64 = 256 << 20;

fn lock_file(directory: &Path) -> Option<fs_err::File> {
    let open = fs_err::OpenOptions::new().create(true).append(true).open(directory.join("lock"));
    // A cache that cannot be written is read without.
    open.ok()
}

/// Marks a space as in use until the file is dropped; none where that cannot be done.
pub(super) fn share(directory: &Path) -> Option<fs_err::File> {
    let file = lock_file(directory)?;
    file.file().try_lock_shared().ok()?;
    Some(file)
}

/// Marks a space as being changed; none while anyone has it open.
pub(super) fn own(directory: &Path) -> Option<fs_err::File> {
    let file = lock_file(directory)?;
    file.file().try_lock().ok()?;
    Some(file)
}

/// When a segment was used last: when its rows were read or written, to the hour.
pub(super) fn last_used(segment: &Path) -> SystemTime {
    let modified = |path: &Path| fs_err::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let times = [modified(&table::beside(segment)), modified(segment)];
    times.into_iter().flatten().max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Whether nobody writes to a segment any more: it has its table, or was left alone for long. The time, beside the lock,
/// is for file systems on which locks do not reach other machines.
pub(super) fn is_complete(segment: &Path) -> std::io::Result<bool> {
    let modified = fs_err::metadata(segment)?.modified()?;
    let age = fs::system_now().duration_since(modified).unwrap_or_default();
    Ok(age > ABANDONED || Table::beside(segment)?.is_some())
}

/// Merges small segments if they are many and no one else has the space open. Every row is in at least one segment at any
/// moment, so that it can be killed at any.
pub(super) fn merge(directory: &Path) -> std::io::Result<()> {
    let small = |path: &PathBuf| crate::store::gc::size(path) < LARGE;
    let mut parts: Vec<PathBuf> = segments(directory)?.into_iter().filter(small).collect();
    if parts.len() < MANY {
        return Ok(());
    }
    let Some(lock) = own(directory) else { return Ok(()) };
    let mut complete = Vec::with_capacity(parts.len());
    for part in parts.drain(..) {
        if absent_is_none(is_complete(&part))? == Some(true) {
            complete.push(part);
        }
    }
    if complete.len() >= MANY {
        for (number, parts) in by_size(complete).into_iter().enumerate() {
            join(directory, number, &parts)?;
        }
    }
    drop(lock);
    Ok(())
}

/// Groups of segments of at most [`MOST`] bytes.
fn by_size(parts: Vec<PathBuf>) -> Vec<Vec<PathBuf>> {
    let mut groups: Vec<Vec<PathBuf>> = Vec::new();
    let mut left = 0;
    for part in parts {
        let size = crate::store::gc::size(&part);
        match groups.last_mut() {
            Some(group) if size <= left => group.push(part),
            _ => {
                groups.push(vec![part]);
                left = MOST;
            }
        }
        left = left.saturating_sub(size);
    }
    groups
}

/// Writes the rows of segments into a new one, with its table, and removes them.
fn join(directory: &Path, number: usize, parts: &[PathBuf]) -> std::io::Result<()> {
    let used = parts.iter().map(|part| last_used(part)).max().unwrap_or(SystemTime::UNIX_EPOCH);
    let unfinished = fs::unfinished(directory);
    let joined = directory.join(format!("{}-{}-m{number}.jsonl", fs::now().as_nanosecond(), std::process::id()));
    let written = (|| {
        let mut rows: Vec<(Digest, Place)> = Vec::new();
        let mut seen: HashSet<Digest> = HashSet::new();
        let mut at = 0;
        let mut file = std::io::BufWriter::with_capacity(1 << 20, fs::writer(&unfinished)?);
        for part in parts {
            // Damaged lines end here: their rows were computed again, or will be.
            line::scan(part, |line, _, bytes| {
                if seen.insert(line.key) {
                    file.write_all(bytes)?;
                    rows.push((line.key, Place { offset: at, length: bytes.len() as u32 }));
                    at += bytes.len() as u64;
                }
                Ok(())
            })?;
        }
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync()?;
        fs::rename(&unfinished, &joined)?;
        Table::of(rows).write(&joined)?;
        fs_err::OpenOptions::new().append(true).open(table::beside(&joined))?.file().set_modified(used)
    })();
    if written.is_err() {
        fs::discard(&unfinished);
        return written;
    }
    for part in parts {
        remove(part)?;
    }
    Ok(())
}

/// Removes a segment and its table.
pub(super) fn remove(segment: &Path) -> std::io::Result<()> {
    fs::remove_file(segment)?;
    fs::remove_file(&table::beside(segment))
}
