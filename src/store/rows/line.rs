//! A line of a segment: a row's key, a check of the rest, the result, and perhaps a word on what was asked.
//!
//! ```text
//! KEY(64 hex) CHECK(12 hex) RESULT
//! KEY(64 hex) CHECK(12 hex) RESULT<tab>NOTE
//! ```
//!
//! Result and note are JSON, in which a tab never stands as itself.

use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::digest::Digest;

/// Digits of a key and of a check.
const KEY: usize = 64;
const CHECK: usize = 12;

/// A row as a line has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// What the row goes by.
    pub(super) key: Digest,
    /// Its result, as JSON.
    pub(super) value: &'a str,
    /// What was asked, as a JSON string.
    pub(super) note: Option<&'a str>,
}

/// Adds a row to a text; returns the bytes of its line.
pub(super) fn write(text: &mut String, key: &Digest, value: &str, note: Option<&str>) -> usize {
    let rest = match note {
        Some(note) => format!("{value}\t{}", serde_json::Value::from(note)),
        None => value.to_owned(),
    };
    let before = text.len();
    text.push_str(&format!("{key} {} {rest}\n", check(key, &rest)));
    text.len() - before
}

/// A line without its end; `None` if it was torn or damaged.
pub(super) fn read(line: &[u8]) -> Option<Line<'_>> {
    let line = std::str::from_utf8(line).ok()?;
    let (key, rest) = (line.get(..KEY)?, line.get(KEY..)?.strip_prefix(' ')?);
    let (given, rest) = (rest.get(..CHECK)?, rest.get(CHECK..)?.strip_prefix(' ')?);
    let key: Digest = key.parse().ok()?;
    if check(&key, rest) != given {
        return None;
    }
    let (value, note) = rest.split_once('\t').map_or((rest, None), |(value, note)| (value, Some(note)));
    Some(Line { key, value, note })
}

fn check(key: &Digest, rest: &str) -> String {
    Digest::of(format!("{key} {rest}").as_bytes()).short()
}

/// Reads a segment line by line: what each line holds if it is whole, where it begins, and its bytes with
/// its end. Returns how many lines were torn or damaged.
pub(super) fn scan(
    path: &Path,
    mut see: impl FnMut(Line<'_>, u64, &[u8]) -> std::io::Result<()>,
) -> std::io::Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 16, fs_err::File::open(path)?);
    let (mut bytes, mut at, mut passed_over) = (Vec::new(), 0, 0);
    loop {
        bytes.clear();
        let length = reader.read_until(b'\n', &mut bytes)?;
        if length == 0 {
            return Ok(passed_over);
        }
        match bytes.strip_suffix(b"\n").and_then(read) {
            Some(line) => see(line, at, &bytes)?,
            None => passed_over += 1,
        }
        at += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_and_damaged_ones_do_not() {
        let key = Digest::of(b"row");
        let mut text = String::new();
        let (plain, noted) = (write(&mut text, &key, "\"a b\"", None), write(&mut text, &key, "7", Some("why?\tso")));
        assert_eq!(plain + noted, text.len());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(read(lines[0].as_bytes()), Some(Line { key, value: "\"a b\"", note: None }));
        assert_eq!(read(lines[1].as_bytes()), Some(Line { key, value: "7", note: Some("\"why?\\tso\"") }));
        for at in 0..lines[1].len() {
            let mut damaged = lines[1].as_bytes().to_vec();
            damaged[at] ^= 1;
            assert_eq!(read(&damaged), None, "byte {at}");
            assert_eq!(read(&lines[1].as_bytes()[..at]), None, "cut at {at}");
        }
        assert_eq!((read(b""), read("ü".repeat(60).as_bytes())), (None, None));
    }
}
