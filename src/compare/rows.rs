//! Two files of rows beside each other: by id, whatever their order.
//!
//! Approach: of each row a hash of its id, a hash of its bytes and its place are held, 32 bytes; both sides are sorted by
//! id and merged, and the rows that differ are read again from their places. If there are more rows than may be held,
//! only those of a share of the ids are, and the files are read once for each share: the memory is bounded, whatever
//! the size.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;

/// Rows of a side that are held at once: 32 MiB.
const HELD: usize = 1 << 20;

/// What differs between two files of rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RowChanges {
    /// Rows of the old file.
    pub before: u64,
    /// Rows of the new file.
    pub after: u64,
    /// Rows of the new file whose id the old one does not have.
    pub added: u64,
    /// Rows of the old file whose id the new one does not have.
    pub removed: u64,
    /// Rows of both that hold other values.
    pub changed: u64,
    /// Whether rows of both stand in another order.
    pub moved: bool,
    /// In how many rows of both each field differs.
    pub fields: BTreeMap<String, u64>,
    /// The first rows that changed, went and came, as many of each as were asked for.
    pub samples: Vec<Differing>,
}

impl RowChanges {
    /// Whether both files have the same rows in the same order.
    pub fn is_none(&self) -> bool {
        self.added + self.removed + self.changed == 0 && !self.moved
    }
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Differing {
    /// Its id; `#3` for the third row of a file whose rows have none.
    pub id: String,
    /// What it was; absent if it came.
    pub before: Option<Value>,
    /// What it is; absent if it went.
    pub after: Option<Value>,
}

/// Compares two files of JSON lines; `samples` is how many rows of each kind of difference are wanted.
///
/// Rows without an `id` go by their number, rows with the id of an earlier one by their order.
pub fn rows(before: &Path, after: &Path, samples: usize) -> io::Result<RowChanges> {
    rows_holding(before, after, samples, HELD)
}

fn rows_holding(before: &Path, after: &Path, samples: usize, held: usize) -> io::Result<RowChanges> {
    let mut changes = RowChanges::default();
    let mut sides = [Side::open(before)?, Side::open(after)?];
    let mut wanted =
        Wanted { most: samples, changed: BTreeMap::new(), removed: BTreeSet::new(), added: BTreeSet::new() };
    // Shares of the ids that are still to be compared, as a remainder and what it is one of.
    let mut open = vec![(0, 1)];
    while let Some((share, mut shares)) = open.pop() {
        for at in 0..sides.len() {
            let [old, new] = &mut sides;
            let (side, other) = if at == 0 { (old, new) } else { (new, old) };
            let most = side.read(share, shares, held)?;
            while shares < most {
                open.push((share + shares, 2 * shares));
                shares *= 2;
            }
            // Both sides are to have the same share.
            other.keep(share, shares);
        }
        let [old, new] = &mut sides;
        (changes.before, changes.after) = (old.rows, new.rows);
        let pairs = merge(&mut old.records, &mut new.records, &mut changes, &mut wanted);
        compare(old, new, pairs, &mut changes, &mut wanted)?;
    }
    let [old, new] = &mut sides;
    changes.samples = wanted.read(old, new)?;
    Ok(changes)
}

/// A row as it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    id: (u64, u64),
    at: u64,
    content: u64,
}

/// One of the files.
struct Side {
    file: BufReader<fs_err::File>,
    records: Vec<Record>,
    rows: u64,
    line: Vec<u8>,
}

/// Places of rows to be shown, the first ones of each kind.
struct Wanted {
    most: usize,
    changed: BTreeMap<u64, u64>,
    removed: BTreeSet<u64>,
    added: BTreeSet<u64>,
}

/// Keeps the first places.
fn keep_first(places: &mut BTreeSet<u64>, at: u64, most: usize) {
    places.insert(at);
    if places.len() > most {
        places.pop_last();
    }
}

fn in_share(id: (u64, u64), share: u64, shares: u64) -> bool {
    id.1 % shares == share
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The only part of a row that is understood at first.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    id: Option<Value>,
}

/// A row's id as text, if it has one.
fn id(line: &[u8]) -> Option<String> {
    let is_object = line.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let head: Head = if is_object { serde_json::from_slice(line).ok()? } else { return None };
    match head.id? {
        Value::String(text) => Some(text),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

impl Side {
    fn open(path: &Path) -> io::Result<Self> {
        let file = BufReader::with_capacity(1 << 18, fs_err::File::open(path)?);
        Ok(Self { file, records: Vec::new(), rows: 0, line: Vec::new() })
    }

    /// Reads the rows of a share of the ids. If they are too many, a smaller share; returns how many shares that makes.
    fn read(&mut self, share: u64, mut shares: u64, held: usize) -> io::Result<u64> {
        self.file.seek(SeekFrom::Start(0))?;
        self.records.clear();
        self.rows = 0;
        let mut at = 0;
        loop {
            self.line.clear();
            let length = self.file.read_until(b'\n', &mut self.line)? as u64;
            if length == 0 {
                return Ok(shares);
            }
            let line = self.line.trim_ascii_end();
            if !line.is_empty() {
                self.rows += 1;
                let id = id(line).unwrap_or_else(|| format!("#{}", self.rows));
                let hash = Digest::of(id.as_bytes());
                let (one, other) = hash.as_bytes().split_at(8);
                let id = (number(one), number(other));
                if in_share(id, share, shares) {
                    let content = number(Digest::of(line).as_bytes());
                    self.records.push(Record { id, at, content });
                    while self.records.len() > held && shares < 1 << 40 {
                        shares *= 2;
                        self.keep(share, shares);
                    }
                }
            }
            at += length;
        }
    }

    fn keep(&mut self, share: u64, shares: u64) {
        self.records.retain(|record| in_share(record.id, share, shares));
    }

    /// The row at a place. What is no JSON is told as text.
    fn row(&mut self, at: u64) -> io::Result<(Option<String>, Value)> {
        let here = self.file.stream_position()?;
        self.file.seek_relative(at as i64 - here as i64)?;
        self.line.clear();
        self.file.read_until(b'\n', &mut self.line)?;
        let line = self.line.trim_ascii_end();
        let value = serde_json::from_slice(line);
        Ok((id(line), value.unwrap_or_else(|_| Value::String(String::from_utf8_lossy(line).into_owned()))))
    }

    /// The number of the row at a place, from 1.
    fn number_of(&mut self, at: u64) -> io::Result<u64> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut number = 1;
        let mut before = (&mut self.file).take(at);
        loop {
            self.line.clear();
            if before.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(number);
            }
            number += u64::from(!self.line.trim_ascii_end().is_empty());
        }
    }
}

/// Counts what came and went; returns the places of the rows of both, and whether their bytes differ.
fn merge(
    old: &mut [Record],
    new: &mut [Record],
    changes: &mut RowChanges,
    wanted: &mut Wanted,
) -> Vec<(u64, u64, bool)> {
    old.sort_unstable();
    new.sort_unstable();
    let mut pairs = Vec::with_capacity(old.len().min(new.len()));
    let (mut left, mut right) = (old.iter().peekable(), new.iter().peekable());
    loop {
        // Rows of one id are paired in their order; what is left over came or went.
        let order = match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(old), Some(new)) => old.id.cmp(&new.id),
        };
        if order == std::cmp::Ordering::Equal
            && let (Some(old), Some(new)) = (left.next(), right.next())
        {
            pairs.push((old.at, new.at, old.content != new.content));
        } else if order == std::cmp::Ordering::Less
            && let Some(old) = left.next()
        {
            changes.removed += 1;
            keep_first(&mut wanted.removed, old.at, wanted.most);
        } else if let Some(new) = right.next() {
            changes.added += 1;
            keep_first(&mut wanted.added, new.at, wanted.most);
        }
    }
    pairs.sort_unstable();
    pairs
}

/// Reads the rows of both whose bytes differ, and counts by field.
fn compare(
    old: &mut Side,
    new: &mut Side,
    pairs: Vec<(u64, u64, bool)>,
    changes: &mut RowChanges,
    wanted: &mut Wanted,
) -> io::Result<()> {
    changes.moved |= pairs.windows(2).any(|two| two[0].1 > two[1].1);
    for (at, other, _) in pairs.into_iter().filter(|(.., differ)| *differ) {
        let ((_, before), (_, after)) = (old.row(at)?, new.row(other)?);
        if before == after {
            continue;
        }
        changes.changed += 1;
        wanted.changed.insert(at, other);
        if wanted.changed.len() > wanted.most {
            wanted.changed.pop_last();
        }
        if let (Value::Object(before), Value::Object(after)) = (&before, &after) {
            let gone = before.keys().filter(|name| !after.contains_key(*name));
            let differ = after.iter().filter(|(name, value)| before.get(*name) != Some(value));
            for name in gone.chain(differ.map(|(name, _)| name)) {
                match changes.fields.get_mut(name) {
                    Some(count) => *count += 1,
                    None => _ = changes.fields.insert(name.clone(), 1),
                }
            }
        }
    }
    Ok(())
}

impl Wanted {
    fn read(self, old: &mut Side, new: &mut Side) -> io::Result<Vec<Differing>> {
        let mut samples = Vec::new();
        let named = |side: &mut Side, at: u64| -> io::Result<(String, Value)> {
            let (id, row) = side.row(at)?;
            Ok((id.map_or_else(|| Ok::<_, io::Error>(format!("#{}", side.number_of(at)?)), Ok)?, row))
        };
        for (at, other) in self.changed {
            let ((id, before), (_, after)) = (named(old, at)?, new.row(other)?);
            samples.push(Differing { id, before: Some(before), after: Some(after) });
        }
        for at in self.removed {
            let (id, row) = named(old, at)?;
            samples.push(Differing { id, before: Some(row), after: None });
        }
        for at in self.added {
            let (id, row) = named(new, at)?;
            samples.push(Differing { id, before: None, after: Some(row) });
        }
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn write(folder: &Path, name: &str, lines: &[String]) -> std::path::PathBuf {
        let path = folder.join(name);
        fs_err::write(&path, lines.join("\n")).expect("writes");
        path
    }

    #[test]
    fn rows_are_compared_by_id_in_any_order_and_any_share_of_memory() {
        let folder = tempfile::tempdir().expect("a folder");
        let row = |id: usize, text: &str| json!({"id": id.to_string(), "text": text, "same": 1}).to_string();
        let old: Vec<String> = (0..1000).map(|id| row(id, "a")).collect();
        // Every tenth row changed, the last hundred went, fifty came, the order is turned round.
        let mut new: Vec<String> = (0..900).map(|id| row(id, if id % 10 == 3 { "b" } else { "a" })).collect();
        new.extend((2000..2050).map(|id| row(id, "new")));
        new.reverse();
        let (old, new) = (write(folder.path(), "old", &old), write(folder.path(), "new", &new));
        for held in [HELD, 100, 7] {
            let changes = rows_holding(&old, &new, 2, held).expect("compares");
            assert_eq!((changes.before, changes.after, changes.moved), (1000, 950, true), "{held}");
            assert_eq!((changes.added, changes.removed, changes.changed), (50, 100, 90), "{held}");
            assert_eq!(changes.fields, BTreeMap::from([("text".to_owned(), 90)]));
            let ids: Vec<&str> = changes.samples.iter().map(|one| one.id.as_str()).collect();
            assert_eq!(ids, ["3", "13", "900", "901", "2049", "2048"], "{held}");
            assert_eq!(changes.samples[0].after.as_ref().expect("is there")["text"], "b");
        }
        assert!(rows(&old, &old, 3).expect("compares").is_none());
    }

    #[test]
    fn rows_without_ids_go_by_number_and_doubled_ones_by_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let old = write(folder.path(), "old", &["[1]".into(), "no json".into(), "{\"a\":1}".into(), String::new()]);
        let new = write(folder.path(), "new", &["[1]".into(), String::new(), "other".into(), "{\"a\": 1}".into()]);
        let changes = rows(&old, &new, 3).expect("compares");
        assert_eq!((changes.changed, changes.added, changes.removed), (1, 0, 0));
        assert_eq!(
            changes.samples[0],
            Differing { id: "#2".into(), before: Some(json!("no json")), after: Some(json!("other")) }
        );
        let same = |text: &str| json!({"id": 7, "text": text}).to_string();
        let old = write(folder.path(), "old", &[same("a"), same("b")]);
        let new = write(folder.path(), "new", &[same("a"), same("c"), same("d")]);
        let changes = rows(&old, &new, 3).expect("compares");
        assert_eq!((changes.changed, changes.added, changes.removed, changes.moved), (1, 1, 0, false));
        let empty = write(folder.path(), "empty", &[]);
        assert_eq!(rows(&empty, &old, 0).expect("compares").added, 2);
        assert!(rows(&empty, &folder.path().join("absent"), 0).is_err());
    }
}
