//! What differs between two artifacts, or two rows, and by how much.
//!
//! Two things are alike if their structure and texts are the same and every number is within a tolerance of the earlier one.
//! Looked into are JSON, rows of JSON and safetensors; files of other kinds are alike if they are the same.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::fs;
use crate::pieces::{self, Pieces};
use crate::store::{Tolerance, Worst};

/// Longest header of a safetensors file, as its own library has it.
const HEADER: u64 = 100_000_000;
/// Values of a difference are told up to this length.
const SHOWN: usize = 60;

/// Compares with a tolerance, and keeps count.
#[derive(Debug)]
pub(super) struct Comparison {
    tolerance: Tolerance,
    /// The numbers farthest apart so far, those within the tolerance among them.
    pub(super) worst: Worst,
    /// The first things that differ beyond it.
    pub(super) differences: Vec<String>,
    /// How many do.
    pub(super) different: u64,
}

/// Differences that are told.
const TOLD: usize = 8;

impl Comparison {
    /// Nothing compared yet.
    pub(super) fn new(tolerance: Tolerance) -> Self {
        Self { tolerance, worst: Worst::default(), differences: Vec::new(), different: 0 }
    }

    /// Whether all that was compared is alike.
    pub(super) fn is_alike(&self) -> bool {
        self.different == 0
    }

    pub(super) fn differs(&mut self, what: impl FnOnce() -> String) {
        self.different += 1;
        if self.differences.len() < TOLD {
            self.differences.push(what());
        }
    }

    /// Compares the files of two artifacts by name.
    pub(super) fn files(
        &mut self,
        earlier: &BTreeMap<String, PathBuf>,
        later: &BTreeMap<String, PathBuf>,
    ) -> std::io::Result<()> {
        for name in earlier.keys().filter(|name| !later.contains_key(*name)) {
            self.differs(|| format!("{name}: is not there any more"));
        }
        for (name, path) in later {
            match earlier.get(name) {
                None => self.differs(|| format!("{name}: was not there before")),
                Some(before) if before == path => {}
                Some(before) => self.file(name, before, path)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, name: &str, earlier: &Path, later: &Path) -> std::io::Result<()> {
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        match extension {
            Some("jsonl") => self.rows(name, earlier, later),
            Some("json") => {
                let read = |path: &Path| {
                    serde_json::from_reader::<_, Value>(BufReader::new(pieces::open(path)?))
                        .map_err(std::io::Error::from)
                };
                match (read(earlier), read(later)) {
                    (Ok(earlier), Ok(later)) => self.value(name, &earlier, &later),
                    _ => self.bytes(name, earlier, later)?,
                }
                Ok(())
            }
            Some("safetensors") => self.tensors(name, earlier, later),
            _ => self.bytes(name, earlier, later),
        }
    }

    fn bytes(&mut self, name: &str, earlier: &Path, later: &Path) -> std::io::Result<()> {
        if hash(earlier)? != hash(later)? {
            self.differs(|| format!("{name}: other bytes"));
        }
        Ok(())
    }

    /// Rows in their order.
    fn rows(&mut self, name: &str, earlier: &Path, later: &Path) -> std::io::Result<()> {
        let lines = |path: &Path| Ok::<_, std::io::Error>(BufReader::new(pieces::open(path)?).split(b'\n'));
        let (mut before, mut after) = (lines(earlier)?, lines(later)?);
        let mut number = 0u64;
        loop {
            number += 1;
            match (before.next().transpose()?, after.next().transpose()?) {
                (None, None) => return Ok(()),
                (Some(earlier), Some(later)) => {
                    if earlier == later {
                        continue;
                    }
                    let place = format!("{name} line {number}");
                    match (serde_json::from_slice(&earlier), serde_json::from_slice(&later)) {
                        (Ok(earlier), Ok(later)) => self.value(&place, &earlier, &later),
                        _ => self.differs(|| {
                            let text = |line: &[u8]| cut(&String::from_utf8_lossy(line));
                            format!("{place}: {} -> {}", text(&earlier), text(&later))
                        }),
                    }
                }
                (earlier, _) => {
                    let (fewer, more) = if earlier.is_some() { ("later", "earlier") } else { ("earlier", "later") };
                    self.differs(|| {
                        format!("{name}: the {more} one has more lines than the {} of the {fewer}", number - 1)
                    });
                    return Ok(());
                }
            }
        }
    }

    /// Two values of JSON.
    pub(super) fn value(&mut self, place: &str, earlier: &Value, later: &Value) {
        match (earlier, later) {
            (Value::Number(one), Value::Number(other)) => {
                if one == other {
                    self.worst.numbers += 1;
                    return;
                }
                let (one, other) = (one.as_f64().unwrap_or(f64::NAN), other.as_f64().unwrap_or(f64::NAN));
                self.number(|| place.to_owned(), one, other);
            }
            (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
                for (at, (one, other)) in one.iter().zip(other).enumerate() {
                    self.value(&format!("{place}[{at}]"), one, other);
                }
            }
            (Value::Object(one), Value::Object(other)) => self.fields(place, one, other),
            _ if earlier == later => {}
            _ => {
                self.differs(|| format!("{place}: {} -> {}", cut(&earlier.to_string()), cut(&later.to_string())));
            }
        }
    }

    fn fields(&mut self, place: &str, earlier: &Map<String, Value>, later: &Map<String, Value>) {
        for name in earlier.keys().filter(|name| !later.contains_key(*name)) {
            self.differs(|| format!("{place} `{name}`: is not there any more"));
        }
        for (name, value) in later {
            match earlier.get(name) {
                None => self.differs(|| format!("{place} `{name}`: was not there before")),
                Some(before) => self.value(&format!("{place} `{name}`"), before, value),
            }
        }
    }

    fn number(&mut self, place: impl Fn() -> String, earlier: f64, later: f64) {
        self.worst.see(earlier, later, &place);
        if !self.tolerance.holds(earlier, later) {
            self.differs(|| format!("{}: {earlier:?} -> {later:?}", place()));
        }
    }

    /// The tensors of two files. Headers must be the same, so that the numbers stand in the same places.
    fn tensors(&mut self, name: &str, earlier: &Path, later: &Path) -> std::io::Result<()> {
        let (mut one, mut other) = (Tensors::open(earlier)?, Tensors::open(later)?);
        let (Some(header), true) = (one.header.clone(), one.header == other.header) else {
            self.differs(|| format!("{name}: other tensors"));
            return Ok(());
        };
        let mut at = 0;
        for (tensor, part) in layout(&header) {
            let mut left = part.end.saturating_sub(at.max(part.start));
            at = part.end.max(at);
            let mut index = 0u64;
            while left > 0 {
                let length = left.min(1 << 16) as usize;
                let (a, b) = (one.next(length)?, other.next(length)?);
                if a.len() != length || b.len() != length {
                    self.differs(|| format!("{name}: the file ends before its tensors do"));
                    return Ok(());
                }
                if a != b {
                    self.block(&format!("{name} {tensor}"), &part.dtype, index, a, b);
                }
                index += (length / part.width()) as u64;
                left -= length as u64;
            }
        }
        Ok(())
    }

    fn block(&mut self, place: &str, dtype: &str, first: u64, earlier: &[u8], later: &[u8]) {
        let width = width(dtype);
        let Some(read) = reader(dtype) else {
            return self.differs(|| format!("{place}: other {dtype} numbers"));
        };
        for (at, (one, other)) in earlier.chunks(width).zip(later.chunks(width)).enumerate() {
            if one != other && one.len() == width {
                self.number(|| format!("{place}[{}]", first + at as u64), read(one), read(other));
            } else {
                self.worst.numbers += 1;
            }
        }
    }
}

/// A safetensors file that is read from its beginning.
struct Tensors {
    /// What stands before the numbers, if it can be read.
    header: Option<Value>,
    file: BufReader<Pieces>,
    block: Vec<u8>,
}

impl Tensors {
    fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = BufReader::with_capacity(1 << 18, pieces::open(path)?);
        let mut length = [0; 8];
        let mut header = None;
        if file.read_exact(&mut length).is_ok() && u64::from_le_bytes(length) <= HEADER {
            let mut text = Vec::new();
            (&mut file).take(u64::from_le_bytes(length)).read_to_end(&mut text)?;
            header = serde_json::from_slice(&text).ok();
        }
        Ok(Self { header, file, block: Vec::new() })
    }

    fn next(&mut self, length: usize) -> std::io::Result<&[u8]> {
        self.block.clear();
        (&mut self.file).take(length as u64).read_to_end(&mut self.block)?;
        Ok(&self.block)
    }
}

/// Where a tensor's numbers are.
struct Part {
    dtype: String,
    start: u64,
    end: u64,
}

impl Part {
    fn width(&self) -> usize {
        width(&self.dtype)
    }
}

/// The tensors of a header in the order of their numbers.
fn layout(header: &Value) -> Vec<(String, Part)> {
    let tensors = header.as_object().into_iter().flatten().filter(|(name, _)| *name != "__metadata__");
    let mut parts: Vec<(String, Part)> = tensors
        .filter_map(|(name, tensor)| {
            let offset = |at: usize| tensor.get("data_offsets")?.get(at)?.as_u64();
            let dtype = tensor.get("dtype")?.as_str()?.to_owned();
            Some((name.clone(), Part { dtype, start: offset(0)?, end: offset(1)? }))
        })
        .collect();
    parts.sort_by_key(|(_, part)| (part.start, part.end));
    parts
}

fn width(dtype: &str) -> usize {
    match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        _ => 1,
    }
}

/// How a number is read; none of types that are not floating point, of which any difference is one.
fn reader(dtype: &str) -> Option<fn(&[u8]) -> f64> {
    fn bytes<const N: usize>(from: &[u8]) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&from[..N]);
        bytes
    }
    match dtype {
        "F64" => Some(|from| f64::from_le_bytes(bytes(from))),
        "F32" => Some(|from| f64::from(f32::from_le_bytes(bytes(from)))),
        "F16" => Some(|from| f16::from_le_bytes(bytes(from)).to_f64()),
        "BF16" => Some(|from| bf16::from_le_bytes(bytes(from)).to_f64()),
        _ => None,
    }
}

fn hash(path: &Path) -> std::io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    fs::each_block(&mut pieces::open(path)?, |block| {
        hasher.update(block);
        Ok(())
    })?;
    Ok(Digest::from(hasher.finalize()))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tolerance(both: f64) -> Tolerance {
        Tolerance { relative: both, absolute: both }
    }

    fn values(both: f64, earlier: &Value, later: &Value) -> Comparison {
        let mut comparison = Comparison::new(tolerance(both));
        comparison.value("row", earlier, later);
        comparison
    }

    #[test]
    fn numbers_may_differ_a_little_and_nothing_else_may() {
        let earlier = json!({"a": [1.0, 2.0], "b": "x", "c": {"d": 3}, "e": null});
        let near = json!({"a": [1.001, 2.0], "b": "x", "c": {"d": 3}, "e": null});
        let found = values(1e-2, &earlier, &near);
        assert!(found.is_alike());
        assert!((found.worst.absolute - 1e-3).abs() < 1e-9 && found.worst.at == "row `a`[0]", "{:?}", found.worst);
        assert_eq!(found.worst.numbers, 3);
        let found = values(1e-4, &earlier, &near);
        assert_eq!(found.differences, ["row `a`[0]: 1.0 -> 1.001"]);
        for later in [
            json!({"a": [1.0, 2.0], "b": "y", "c": {"d": 3}, "e": null}),
            json!({"a": [1.0, 2.0, 3.0], "b": "x", "c": {"d": 3}, "e": null}),
            json!({"a": [1.0, 2.0], "b": "x", "c": {"d": "3"}, "e": null}),
            json!({"a": [1.0, 2.0], "b": "x", "c": {"d": 3}, "e": 0.0}),
            json!({"a": [1.0, 2.0], "b": "x", "c": {"d": 3}}),
            json!({"a": [1.0, 2.0], "b": "x", "c": {"d": 3}, "e": null, "f": 1}),
            json!({"a": [1.0, 2.0], "b": "x", "c": {"d": true}, "e": null}),
        ] {
            assert_eq!(values(1e9, &earlier, &later).different, 1, "{later}");
        }
    }

    fn safetensors(dtype: &str, numbers: &[u8], name: &str) -> Vec<u8> {
        let shape = numbers.len() / width(dtype);
        let header = json!({name: {"dtype": dtype, "shape": [shape], "data_offsets": [0, numbers.len()]}}).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(numbers);
        bytes
    }

    #[test]
    fn files_are_compared_by_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let compare = |name: &str, earlier: &[u8], later: &[u8]| {
            let put = |folder_name: &str, bytes: &[u8]| {
                let path = folder.path().join(folder_name);
                fs_err::write(&path, bytes).unwrap();
                BTreeMap::from([(name.to_owned(), path)])
            };
            let mut comparison = Comparison::new(tolerance(1e-2));
            comparison.files(&put("earlier", earlier), &put("later", later)).unwrap();
            (comparison.is_alike(), comparison.differences.first().cloned().unwrap_or_default())
        };
        let alike = (true, String::new());
        assert_eq!(compare("rows.jsonl", b"{\"a\":1.0}\n{\"b\":2}\n", b"{\"a\":1.001}\n{\"b\":2}\n"), alike);
        assert!(compare("rows.jsonl", b"{\"a\":1.0}\n", b"{\"a\":1.0}\n{\"a\":1.0}\n").1.contains("more lines"));
        assert!(
            compare("rows.jsonl", b"{\"a\":1.0}\n{\"b\":2}\n", b"{\"a\":1.0}\n{\"b\":3}\n").1.contains("line 2 `b`")
        );
        assert_eq!(compare("metrics.json", b"{\"a\":1.0}", b"{ \"a\": 1.001 }"), alike);
        assert!(!compare("metrics.json", b"{\"a\":1.0", b"{\"a\":1.001").0, "no JSON: by bytes");
        assert!(!compare("out.txt", b"1.0", b"1.001").0);
        let floats = |numbers: [f32; 3]| numbers.map(f32::to_le_bytes).concat();
        let whole = |numbers| safetensors("F32", &floats(numbers), "w");
        assert_eq!(compare("m.safetensors", &whole([1.0, 2.0, 3.0]), &whole([1.0, 2.001, 3.0])), alike);
        let (same, what) = compare("m.safetensors", &whole([1.0, 2.0, 3.0]), &whole([1.0, 2.0, 4.0]));
        assert!(!same && what.contains("w[2]: 3.0 -> 4.0"), "{what}");
        assert_eq!(compare("m.safetensors", &whole([1.0, f32::NAN, 3.0]), &whole([1.0, f32::NAN, 3.0])), alike);
        assert!(!compare("m.safetensors", &whole([1.0, 2.0, 3.0]), &whole([1.0, f32::NAN, 3.0])).0);
        let renamed = safetensors("F32", &floats([1.0, 2.0, 3.0]), "v");
        assert!(compare("m.safetensors", &whole([1.0, 2.0, 3.0]), &renamed).1.contains("other tensors"));
        let short = |bytes: Vec<u8>| bytes[..bytes.len() - 2].to_vec();
        assert!(!compare("m.safetensors", &whole([1.0, 2.0, 3.0]), &short(whole([1.0, 2.0, 3.0]))).0);
        let halves = |number: f32| safetensors("BF16", &bf16::from_f32(number).to_le_bytes(), "w");
        assert_eq!(compare("m.safetensors", &halves(1.0), &halves(1.0078)), alike);
        assert!(!compare("m.safetensors", &halves(1.0), &halves(1.5)).0);
        let whole = |number: i32| safetensors("I32", &number.to_le_bytes(), "w");
        assert!(!compare("m.safetensors", &whole(1_000_000), &whole(1_000_001)).0, "no floating point");
    }
}
