//! Looking into the row memo.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::Value;

use super::about::{About, Uses};
use super::{line, merge, segments, table, table_of};
use crate::digest::Digest;
use crate::fs::absent_is_none;
use crate::store::gc::size;
use crate::store::{Store, StoreError};

/// A space as it is listed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpaceLine {
    /// Its id.
    pub space: Digest,
    /// What it holds; none of a space of an older version that was not used since.
    pub about: Option<About>,
    /// Rows, those counted twice that two segments have.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// Segments.
    pub segments: u64,
    /// Uses that were counted.
    pub uses: Uses,
    /// When it was used last, to the hour.
    pub used: jiff::Timestamp,
}

/// A row as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeptRow {
    /// What it goes by.
    pub key: Digest,
    /// The beginning and end of what was asked, if that was kept.
    pub note: Option<String>,
    /// The result.
    pub value: Value,
}

impl Store {
    /// All spaces of the row memo, those used last first.
    pub fn rows_list(&self) -> Result<Vec<SpaceLine>, StoreError> {
        let mut lines = Vec::new();
        for (space, directory) in self.row_spaces()? {
            let paths = segments(&directory)?;
            let (mut rows, mut bytes, mut used) = (0, 0, std::time::SystemTime::UNIX_EPOCH);
            for path in &paths {
                rows += absent_is_none(table_of(path))?.map_or(0, |table| table.len() as u64);
                bytes += size(path) + size(&table::beside(path));
                used = used.max(merge::last_used(path));
            }
            lines.push(SpaceLine {
                space,
                about: About::read(&directory),
                rows,
                bytes,
                segments: paths.len() as u64,
                uses: Uses::read(&directory),
                used: jiff::Timestamp::try_from(used).unwrap_or(jiff::Timestamp::UNIX_EPOCH),
            });
        }
        lines.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.space.cmp(&b.space)));
        Ok(lines)
    }

    /// The last rows of a space that hold a text, in their result or in what was asked; how many hold it in all.
    pub fn rows_of(&self, space: &Digest, last: usize, text: Option<&str>) -> Result<(Vec<KeptRow>, u64), StoreError> {
        let directory = self.root().join("rows").join(space.to_string());
        let (mut rows, mut all) = (VecDeque::with_capacity(last.min(1000)), 0);
        for path in segments(&directory)? {
            let scanned = line::scan(&path, |line, _, _| {
                // In the texts themselves, not as they are written.
                let read = || {
                    let note = line.note.and_then(|note| serde_json::from_str::<String>(note).ok());
                    let value = serde_json::from_str(line.value).unwrap_or(Value::Null);
                    KeptRow { key: line.key, note, value }
                };
                if text.is_some_and(|text| !read().holds(text)) {
                    return Ok(());
                }
                all += 1;
                if rows.len() == last {
                    rows.pop_front();
                }
                if last > 0 {
                    rows.push_back(read());
                }
                Ok(())
            });
            absent_is_none(scanned)?;
        }
        Ok((rows.into(), all))
    }
}

impl KeptRow {
    fn holds(&self, text: &str) -> bool {
        fn within(value: &Value, text: &str) -> bool {
            match value {
                Value::String(found) => found.contains(text),
                Value::Array(items) => items.iter().any(|item| within(item, text)),
                Value::Object(fields) => fields.values().any(|value| within(value, text)),
                _ => false,
            }
        }
        self.note.as_ref().is_some_and(|note| note.contains(text)) || within(&self.value, text)
    }
}
