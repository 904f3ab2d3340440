//! How much room row memos may take, and what goes first.
//!
//! Segments go, those that were used least recently first. A space that somebody has open is left alone, and so is a segment
//! that may be written to still. What may have cost money (answers of endpoints, and spaces of which nobody wrote down what
//! they are) goes only if it is named.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::about::About;
use super::{merge, segments, table};
use crate::digest::Digest;
use crate::store::gc::size;
use crate::store::{Store, StoreError};
use crate::{amount, env, fs};

/// The room without a setting.
const DEFAULT: u64 = 20_000_000_000;
/// The least time between two looks at the room by nodes that add rows.
const PAUSE: Duration = Duration::from_secs(600);

/// How many bytes row memos may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLimit(pub u64);

impl FromStr for RowLimit {
    type Err = String;

    /// `none`, or a size as [`amount::size`] reads it.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "none" => Ok(Self(u64::MAX)),
            text => amount::size(text)
                .map(Self)
                .map_err(|_| format!("`{text}` is no size; write for example `20GB`, `500MiB` or `none`")),
        }
    }
}

impl RowLimit {
    /// What `SAMI_ROWS_LIMIT` says, or the default. Errs if it is set to what is no size.
    pub fn from_environment() -> Result<Self, String> {
        env::ROWS_LIMIT.get().map_or(Ok(Self(DEFAULT)), |text| text.parse())
    }
}

/// What was (or would be) evicted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Evicted {
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that row memos take after it.
    pub left: u64,
    /// Bytes of what stays because it may have cost money.
    pub paid: u64,
}

/// A segment that could go.
struct Candidate {
    used: SystemTime,
    space: PathBuf,
    segment: PathBuf,
    bytes: u64,
    paid: bool,
}

impl Store {
    /// Evicts rows until they take at most the room given. Spaces that may have cost money are spared but for the `named`.
    pub fn evict_rows(&self, limit: RowLimit, named: &[Digest], dry_run: bool) -> Result<Evicted, StoreError> {
        let mut candidates = Vec::new();
        let (mut evicted, mut other) = (Evicted::default(), 0);
        for (id, space) in self.row_spaces()? {
            let paid = About::read(&space).is_none_or(|about| about.paid) && !named.contains(&id);
            let all: u64 = fs::list(&space)?.iter().map(|path| size(path)).sum();
            let before = candidates.len();
            for segment in segments(&space)? {
                let bytes = size(&segment) + size(&table::beside(&segment));
                let used = merge::last_used(&segment);
                candidates.push(Candidate { used, space: space.clone(), segment, bytes, paid });
            }
            let held: u64 = candidates[before..].iter().map(|candidate| candidate.bytes).sum();
            other += all.saturating_sub(held);
            evicted.paid += if paid { held } else { 0 };
        }
        evicted.left = other + candidates.iter().map(|candidate| candidate.bytes).sum::<u64>();
        candidates.sort_by(|a, b| a.used.cmp(&b.used).then_with(|| a.segment.cmp(&b.segment)));
        for candidate in candidates.iter().filter(|candidate| !candidate.paid) {
            if evicted.left <= limit.0 {
                break;
            }
            // Nobody has the space open while it goes, and nobody writes to the segment.
            let Some(_lock) = merge::own(&candidate.space) else { continue };
            if !merge::is_complete(&candidate.segment).unwrap_or(false) {
                continue;
            }
            if !dry_run {
                merge::remove(&candidate.segment)?;
                if segments(&candidate.space)?.is_empty() {
                    fs::remove_directory(&candidate.space)?;
                }
            }
            evicted.segments += 1;
            evicted.bytes += candidate.bytes;
            evicted.left -= candidate.bytes.min(evicted.left);
        }
        Ok(evicted)
    }

    /// As [`Store::evict_rows`] by the environment's setting, unless somebody did it a little while ago. What goes wrong is
    /// told in the log: no node fails for it.
    pub fn bound_rows(&self) {
        let marker = self.root().join("rows").join(".bounded");
        let age = fs_err::metadata(&marker).and_then(|metadata| metadata.modified()).ok();
        let age = age.and_then(|modified| fs::system_now().duration_since(modified).ok());
        if age.is_some_and(|age| age < PAUSE) {
            return;
        }
        let limit = match RowLimit::from_environment() {
            Ok(limit) => limit,
            Err(wrong) => return tracing::warn!("{}: {wrong}; no rows are evicted", env::ROWS_LIMIT.name),
        };
        let bounded = fs::create(&marker).map_err(StoreError::from).and_then(|_| self.evict_rows(limit, &[], false));
        match bounded {
            Ok(evicted) if evicted.bytes > 0 => {
                tracing::info!("row memos were over {} bytes: {} bytes of the oldest went", limit.0, evicted.bytes);
            }
            Ok(evicted) if evicted.left > limit.0 => tracing::warn!(
                "row memos take {} bytes, over the limit of {}: {} of them may have cost money and stay unless \
                 `sami cache rows --evict --paid SPACE` names them",
                evicted.left,
                limit.0,
                evicted.paid
            ),
            Ok(_) => {}
            Err(error) => tracing::warn!("no rows are evicted: {error}"),
        }
    }

    /// The spaces of the row memo: their ids and directories, in the order of ids.
    pub(super) fn row_spaces(&self) -> Result<Vec<(Digest, PathBuf)>, StoreError> {
        let directories = fs::list(&self.root().join("rows"))?.into_iter();
        Ok(directories.filter_map(|path| Some((crate::store::name(&path).parse().ok()?, path))).collect())
    }
}
