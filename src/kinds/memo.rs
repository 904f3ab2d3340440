//! The row memo: results of single rows, kept across attempts, nodes and pipelines.
//!
//! A *space* holds the rows of one computation (one model, one set of sampling fields); within it a row goes by the
//! digest of what else decides its result (prompt text and seed). A space is a directory of append-only segments, one
//! per attempt, a line per row: the row's key, a digest of the result, the result. A line that was torn by a kill, or
//! damaged since, does not match its digest and is passed over: its row is computed again.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::NodeError;
use crate::digest::Digest;
use crate::fs;
use crate::store::Store;

/// An open space of the row memo.
#[derive(Debug)]
pub(super) struct RowMemo<V> {
    rows: HashMap<Digest, V>,
    segment: PathBuf,
}

impl<V: Serialize + DeserializeOwned> RowMemo<V> {
    /// Reads a space.
    pub(super) fn open(store: &Store, space: &Digest) -> Result<Self, NodeError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let directory = store.rows_dir(space)?;
        let mut rows = HashMap::new();
        for path in fs::list(&directory)? {
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                read_segment(&path, &mut rows)?;
            }
        }
        // No two attempts write to one segment: the name holds the process, the time and a number within the process.
        let (process, time) = (std::process::id(), fs::now().as_nanosecond());
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        Ok(Self { rows, segment: directory.join(format!("{time}-{process}-{serial}.jsonl")) })
    }

    /// The result of a row, if it is known.
    pub(super) fn get(&self, key: &Digest) -> Option<&V> {
        self.rows.get(key)
    }

    /// Adds the results of a batch; once this returns they survive anything.
    pub(super) fn add(&mut self, batch: Vec<(Digest, V)>) -> Result<(), NodeError> {
        let mut text = String::new();
        for (key, value) in &batch {
            let value = serde_json::to_string(value)
                .map_err(|error| NodeError::failed(format!("a row's result cannot be kept: {error}")))?;
            text.push_str(&format!("{key} {} {value}\n", checksum(key, &value)));
        }
        fs::append(&self.segment, text.as_bytes())?;
        fs::kill_point("batch");
        self.rows.extend(batch);
        Ok(())
    }
}

fn checksum(key: &Digest, value: &str) -> String {
    Digest::of(format!("{key} {value}").as_bytes()).short()
}

fn read_segment<V: DeserializeOwned>(path: &Path, rows: &mut HashMap<Digest, V>) -> Result<(), NodeError> {
    let mut passed_over = 0;
    for line in BufReader::new(fs_err::File::open(path)?).split(b'\n') {
        let line = line?;
        let row = std::str::from_utf8(&line).ok().and_then(|line| {
            let (key, rest) = line.split_once(' ')?;
            let (check, value) = rest.split_once(' ')?;
            let key: Digest = key.parse().ok()?;
            let whole = checksum(&key, value) == check;
            Some((key, whole.then(|| serde_json::from_str(value).ok()).flatten()?))
        });
        match row {
            Some((key, value)) => {
                rows.insert(key, value);
            }
            None => passed_over += 1,
        }
    }
    if passed_over > 0 {
        tracing::warn!("{passed_over} torn or damaged rows of {} are computed again", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_and_torn_or_damaged_ones_are_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("cache")).expect("a store");
        let space = Digest::of(b"space");
        let key = |n: u8| Digest::of(&[n]);
        let mut memo: RowMemo<String> = RowMemo::open(&store, &space).expect("opens");
        memo.add(vec![(key(1), "one".to_owned()), (key(2), "two\n".to_owned())]).expect("adds");
        memo.add(vec![(key(3), "three".to_owned()), (key(4), "four".to_owned())]).expect("adds");
        assert_eq!(memo.get(&key(3)).map(String::as_str), Some("three"));
        let bytes = fs_err::read(&memo.segment).expect("reads");
        // Every possible torn end, and one flipped letter.
        for length in 0..bytes.len() {
            fs_err::write(&memo.segment, &bytes[..length]).expect("writes");
            let memo: RowMemo<String> = RowMemo::open(&store, &space).expect("opens");
            let whole = bytes[..length].split(|byte| *byte == b'\n').count() - 1;
            assert!(memo.rows.len() == whole || memo.rows.len() == whole + 1, "{length}");
            for (n, text) in [(1, "one"), (2, "two\n"), (3, "three"), (4, "four")] {
                assert!(memo.get(&key(n)).is_none_or(|found| found == text));
            }
        }
        let mut flipped = bytes.clone();
        let at = bytes.windows(3).position(|window| window == b"two").expect("is there");
        flipped[at] = b'T';
        fs_err::write(&memo.segment, &flipped).expect("writes");
        let memo: RowMemo<String> = RowMemo::open(&store, &space).expect("opens");
        assert_eq!((memo.rows.len(), memo.get(&key(2))), (3, None));
    }

    #[test]
    fn two_attempts_write_beside_each_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("cache")).expect("a store");
        let space = Digest::of(b"space");
        let mut one: RowMemo<u32> = RowMemo::open(&store, &space).expect("opens");
        let mut two: RowMemo<u32> = RowMemo::open(&store, &space).expect("opens");
        one.add(vec![(Digest::of(b"1"), 1)]).expect("adds");
        two.add(vec![(Digest::of(b"2"), 2)]).expect("adds");
        let all: RowMemo<u32> = RowMemo::open(&store, &space).expect("opens");
        assert_eq!(all.rows.len(), 2);
    }
}
