//! A look at the index that waits for no one and changes nothing: for words that are completed while people type.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Params, Row};

use super::SCHEMA;
use super::insert::digest;
use crate::digest::Digest;

/// For how long a writer is waited for.
const PATIENCE: Duration = Duration::from_millis(15);

/// An index as it is. Whatever is wrong with it, it has no answers then.
#[derive(Debug)]
pub struct Glimpse(Connection);

impl Glimpse {
    /// The index of the cache in a directory, if it has one that can be read now.
    pub fn open(directory: &Path) -> Option<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(directory.join("index.sqlite"), flags).ok()?;
        connection.busy_timeout(PATIENCE).ok()?;
        let schema: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).ok()?;
        (schema == SCHEMA).then_some(Self(connection))
    }

    fn rows<T>(&self, query: &str, values: impl Params, read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> Vec<T> {
        let all = || -> rusqlite::Result<Vec<T>> { self.0.prepare(query)?.query_map(values, read)?.collect() };
        all().unwrap_or_default()
    }

    /// Names of nodes that made something, with a pipeline of each: those that begin so, in order.
    pub fn nodes(&self, prefix: &str, most: usize) -> Vec<(String, String)> {
        let query = "SELECT node, MIN(pipeline) FROM latest WHERE node >= ?1 AND node < ?2 GROUP BY node ORDER BY node LIMIT ?3";
        let end = format!("{prefix}\u{10ffff}");
        self.rows(query, (prefix, end, most as i64), |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// Names of pipelines that made something.
    pub fn pipelines(&self) -> Vec<String> {
        self.rows("SELECT DISTINCT pipeline FROM latest ORDER BY pipeline", [], |row| row.get(0))
    }

    /// Artifacts whose ids begin so, with their types and the nodes that made them last; the newest ones without a beginning.
    pub fn artifacts(&self, prefix: &str, most: usize) -> Vec<(Digest, String, Option<String>)> {
        let read = |row: &Row<'_>| Ok((digest(row, 0)?, row.get(1)?, row.get(2)?));
        let from = "SELECT a.id, a.type, n.node FROM artifacts a LEFT JOIN nodes n ON n.key = a.maker";
        match bounds(prefix) {
            None => Vec::new(),
            Some(_) if prefix.is_empty() => {
                self.rows(&format!("{from} ORDER BY a.made DESC LIMIT ?1"), [most as i64], read)
            }
            Some((low, high)) => {
                let query = format!("{from} WHERE a.id >= ?1 AND a.id <= ?2 ORDER BY a.id LIMIT ?3");
                self.rows(&query, (low.as_slice(), high.as_slice(), most as i64), read)
            }
        }
    }

    /// Keys that begin so, with the names of the nodes that had them.
    pub fn keys(&self, prefix: &str, most: usize) -> Vec<(Digest, String)> {
        let Some((low, high)) = bounds(prefix).filter(|_| !prefix.is_empty()) else { return Vec::new() };
        let query = "SELECT key, node FROM nodes WHERE key >= ?1 AND key <= ?2 ORDER BY key LIMIT ?3";
        self.rows(query, (low.as_slice(), high.as_slice(), most as i64), |row| Ok((digest(row, 0)?, row.get(1)?)))
    }

    /// Runs whose ids begin so, newest first, with the pipeline of each.
    pub fn runs(&self, prefix: &str, most: usize) -> Vec<(String, String)> {
        let query = "SELECT run, pipeline FROM runs WHERE run >= ?1 AND run < ?2 ORDER BY run DESC LIMIT ?3";
        let end = format!("{prefix}\u{10ffff}");
        self.rows(query, (prefix, end, most as i64), |row| Ok((row.get(0)?, row.get(1)?)))
    }
}

/// The first and the last digest that begin with some digits; `None` for what no digest begins with.
fn bounds(prefix: &str) -> Option<([u8; 32], [u8; 32])> {
    let digits = prefix.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit));
    if !digits || prefix.len() > 64 {
        return None;
    }
    let bytes = |fill: char| {
        let text: String = prefix.chars().chain(std::iter::repeat(fill)).take(64).collect();
        text.parse::<Digest>().ok().map(|digest| *digest.as_bytes())
    };
    Some((bytes('0')?, bytes('f')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_what_begins_so() {
        let (low, high) = bounds("abc").expect("digits");
        assert_eq!((low[0], low[1], low[2]), (0xab, 0xc0, 0));
        assert_eq!((high[0], high[1], high[31]), (0xab, 0xcf, 0xff));
        assert!(bounds("xyz").is_none() && bounds(&"a".repeat(65)).is_none() && bounds("").is_some());
    }

    #[test]
    fn what_is_no_index_has_no_answers() {
        let folder = tempfile::tempdir().expect("a directory");
        assert!(Glimpse::open(folder.path()).is_none());
        for text in ["", "not a database at all, not at all"] {
            fs_err::write(folder.path().join("index.sqlite"), text).expect("writes");
            assert!(Glimpse::open(folder.path()).is_none());
        }
        let left: Vec<_> = fs_err::read_dir(folder.path()).expect("is there").collect();
        assert_eq!(left.len(), 1, "nothing was made: {left:?}");
    }

    /// Two hundred thousand artifacts and as many nodes: a word is completed before anyone notices.
    #[test]
    fn a_large_index_answers_at_once() {
        let folder = tempfile::tempdir().expect("a directory");
        let many = 200_000_i64;
        let connection = Connection::open(folder.path().join("index.sqlite")).expect("opens");
        connection.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF").expect("set");
        connection.execute_batch(super::super::TABLES).expect("tables");
        let numbers = format!("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {many})");
        for insert in [
            "INSERT INTO artifacts SELECT randomblob(32), 'dataset', 9, 1, 9, x'', i, randomblob(32) FROM n",
            "INSERT INTO latest SELECT 'p', 'node-' || i, randomblob(32) FROM n",
            "INSERT INTO runs SELECT '2026-' || i, 'p', 'f', 's', 'e', 1 FROM n WHERE i < 10000",
        ] {
            connection.execute(&format!("{numbers} {insert}"), []).expect("fills");
        }
        connection
            .execute_batch(&format!("{}; PRAGMA user_version = {SCHEMA}", super::super::INDEXES))
            .expect("indexes");
        drop(connection);
        let begin = std::time::Instant::now();
        let glimpse = Glimpse::open(folder.path()).expect("an index");
        assert_eq!(glimpse.artifacts("", 20).len(), 20);
        assert!(!glimpse.artifacts("a1", 50).is_empty());
        assert_eq!(glimpse.nodes("node-1", 50).len(), 50);
        assert_eq!(glimpse.runs("2026-99", 500).len(), 111);
        assert!(begin.elapsed() < Duration::from_millis(200), "{:?}", begin.elapsed());
    }
}
