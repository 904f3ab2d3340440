//! Faults that tests ask for: the Nth change to the disk, or the Nth file read, goes wrong in a way of its own.
//!
//! `SAMI_FAULT=store-op:N[:KIND[:FILE]]` has the Nth change to the disk go wrong, `read-op:N…` the Nth read of a file of
//! the store, `sync-op:N…` the Nth sync of a file. Each process counts for itself, or all that are given the same `FILE` together: it grows by a byte with
//! each. Several faults are separated by commas. In a test on one thread `with_fault` does the same.

use std::cell::Cell;
use std::io::{self, Seek, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::env;

/// In which way something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `enospc`: the disk is full.
    Full,
    /// `eio`: the disk says that it is broken.
    Broken,
    /// `eintr`: a signal came in between, and the change is to be made again.
    Interrupted,
    /// `short`: of a write, half is written; anything else goes well.
    Short,
    /// `kill`: the process is killed before the change.
    Kill,
}

impl Kind {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "enospc" => Self::Full,
            "eio" => Self::Broken,
            "eintr" => Self::Interrupted,
            "short" => Self::Short,
            "kill" => Self::Kill,
            _ => return None,
        })
    }

    fn error(self, path: &Path) -> io::Result<()> {
        let place = path.display();
        match self {
            Self::Full => {
                Err(io::Error::new(io::ErrorKind::StorageFull, format!("no space left on device: `{place}`")))
            }
            Self::Broken => {
                let broken = io::Error::from_raw_os_error(libc::EIO);
                Err(io::Error::new(broken.kind(), format!("{broken}: `{place}`")))
            }
            Self::Interrupted => Err(io::ErrorKind::Interrupted.into()),
            Self::Short => Ok(()),
            // Nothing is flushed or unwound: this stands for `kill -9`.
            Self::Kill => std::process::abort(),
        }
    }
}

/// Counts one kind of operation of this process, or of several together.
struct Counter {
    nth: u64,
    kind: Kind,
    here: AtomicU64,
    together: Option<Mutex<std::fs::File>>,
}

impl Counter {
    fn asked(point: &str) -> Option<Self> {
        let text = asked(point)?;
        let mut parts = text.splitn(3, ':');
        let nth = parts.next()?.parse().ok()?;
        let kind = parts.next().map_or(Some(Kind::Full), Kind::parse)?;
        let open = |path| std::fs::OpenOptions::new().create(true).append(true).open(path).ok();
        let together = parts.next().and_then(open).map(Mutex::new);
        Some(Self { nth, kind, here: AtomicU64::new(0), together })
    }

    fn next(&self) -> Option<Kind> {
        let here = self.here.fetch_add(1, Ordering::Relaxed) + 1;
        let number = match &self.together {
            None => here,
            Some(file) => {
                let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                file.write_all(b".").and_then(|()| file.stream_position()).unwrap_or(0)
            }
        };
        (number == self.nth).then_some(self.kind)
    }
}

thread_local! {
    /// Operations left until the one that goes wrong, in a test on this thread, and how it does.
    static LEFT: Cell<Option<(u64, Kind)>> = const { Cell::new(None) };
}

/// What `SAMI_FAULT` says of a point.
pub(super) fn asked(point: &str) -> Option<String> {
    let of_point = |fault: &str| fault.strip_prefix(point)?.strip_prefix(':').map(str::to_owned);
    env::FAULT.get()?.split(',').find_map(of_point)
}

fn due() -> Option<Kind> {
    static COUNTER: OnceLock<Option<Counter>> = OnceLock::new();
    if let Some(kind) = COUNTER.get_or_init(|| Counter::asked("store-op")).as_ref().and_then(Counter::next) {
        return Some(kind);
    }
    let (left, kind) = LEFT.get()?;
    let left = left.checked_sub(1)?;
    LEFT.set(Some((left, kind)));
    (left == 0).then_some(kind)
}

/// Counts a change to the disk; errs if a test wants this one to fail.
pub(super) fn pass(path: &Path) -> io::Result<()> {
    due().map_or(Ok(()), |kind| kind.error(path))
}

/// Counts a write; how many of its bytes are to be written.
pub(super) fn pass_write(path: &Path, bytes: usize) -> io::Result<usize> {
    match due() {
        Some(Kind::Short) => Ok(bytes.div_ceil(2)),
        Some(kind) => kind.error(path).map(|()| bytes),
        None => Ok(bytes),
    }
}

/// As [`pass`], for the sync of a file, which is counted by itself, too.
pub(super) fn pass_sync(path: &Path) -> io::Result<()> {
    static COUNTER: OnceLock<Option<Counter>> = OnceLock::new();
    let counter = COUNTER.get_or_init(|| Counter::asked("sync-op")).as_ref();
    counter.and_then(Counter::next).map_or(Ok(()), |kind| kind.error(path))
}

/// Counts a read of a file; errs if a test wants this one to fail.
pub(super) fn pass_read(path: &Path) -> io::Result<()> {
    static COUNTER: OnceLock<Option<Counter>> = OnceLock::new();
    let counter = COUNTER.get_or_init(|| Counter::asked("read-op")).as_ref();
    counter.and_then(Counter::next).map_or(Ok(()), |kind| kind.error(path))
}

/// Runs `work` with the `n`th disk operation of this thread going wrong (from 1). Returns whether it was reached, too.
#[cfg(test)]
pub(crate) fn with_fault_of<T>(kind: Kind, n: u64, work: impl FnOnce() -> T) -> (T, bool) {
    LEFT.set(Some((n, kind)));
    let result = work();
    let reached = LEFT.replace(None).is_some_and(|(left, _)| left == 0);
    (result, reached)
}

/// As [`with_fault_of`] a full disk.
#[cfg(test)]
pub(crate) fn with_fault<T>(n: u64, work: impl FnOnce() -> T) -> (T, bool) {
    with_fault_of(Kind::Full, n, work)
}
