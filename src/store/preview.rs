//! A short look into an artifact: first rows, or what a model is made of.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Store, StoreError};
use crate::digest::Digest;

/// Bytes of a text file that are looked at for a preview.
const GLANCE: u64 = 1 << 20;
/// Longest header of a safetensors file that is read.
const LONGEST_HEADER: u64 = 100 << 20;

/// What an artifact holds, in short.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Preview {
    /// First lines of its rows, or of its only text file.
    pub lines: Vec<String>,
    /// Rows in all, if it has rows.
    pub rows: Option<u64>,
    /// `config.json` of a model.
    pub config: Map<String, Value>,
    /// Tensors of a model.
    pub tensors: u64,
    /// Numbers in them.
    pub parameters: u64,
    /// Their types.
    pub dtypes: Vec<String>,
}

/// The file that stands for an artifact: its rows, its constitutions, its config, or its only file but metrics.
pub(super) fn main_file<T>(files: &BTreeMap<String, T>) -> Option<&str> {
    let usual = ["rows.jsonl", "constitutions.json", "config.json"].into_iter().find(|name| files.contains_key(*name));
    // Metrics of a command stand beside what it made.
    let mut others = files.keys().map(String::as_str).filter(|name| *name != "metrics.json" || files.len() == 1);
    usual.or_else(|| others.next().filter(|_| others.next().is_none()))
}

/// Looks into an artifact; `lines` is how many lines are wanted. A file that is missing shows nothing.
pub fn preview(store: &Store, id: &Digest, lines: usize) -> Result<Preview, StoreError> {
    let files = store.files(id)?;
    let mut preview = Preview::default();
    if let Some(config) = files.get("config.json") {
        preview.config = super::record::read_json(config)?.unwrap_or_default();
        let weights = files.iter().filter(|(name, _)| Path::new(name).extension() == Some("safetensors".as_ref()));
        let mut dtypes: Vec<String> = Vec::new();
        for (_, path) in weights {
            for tensor in tensors(path).unwrap_or_default() {
                preview.tensors += 1;
                preview.parameters += tensor.parameters();
                dtypes.push(tensor.dtype);
            }
        }
        dtypes.sort_unstable();
        dtypes.dedup();
        preview.dtypes = dtypes;
        return Ok(preview);
    }
    if let Some(path) = main_file(&files).and_then(|name| files.get(name)) {
        preview.lines = first_lines(path, lines).unwrap_or_default();
        if path_is_rows(&files) {
            preview.rows = count_lines(path).ok();
        }
    }
    Ok(preview)
}

fn path_is_rows<T>(files: &BTreeMap<String, T>) -> bool {
    main_file(files).is_some_and(|name| Path::new(name).extension() == Some("jsonl".as_ref()))
}

/// The first lines; none of a file that is not text.
fn first_lines(path: &Path, count: usize) -> std::io::Result<Vec<String>> {
    let reader = BufReader::new(fs_err::File::open(path)?.take(GLANCE));
    let lines = reader.split(b'\n').take(count).collect::<std::io::Result<Vec<_>>>()?;
    if lines.iter().flatten().any(|byte| *byte == 0) {
        return Ok(Vec::new());
    }
    Ok(lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect())
}

fn count_lines(path: &Path) -> std::io::Result<u64> {
    let mut lines = 0;
    crate::fs::each_block(&mut fs_err::File::open(path)?, |block| {
        lines += block.split(|byte| *byte == b'\n').count() as u64 - 1;
        Ok(())
    })?;
    Ok(lines)
}

/// A tensor, as the header of its file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// The type of its numbers, such as `BF16`; empty if the header has none.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Bytes.
    pub size: u64,
}

impl Tensor {
    /// Numbers in it.
    pub fn parameters(&self) -> u64 {
        self.shape.iter().fold(1, |product, length| product.saturating_mul(*length))
    }
}

/// The tensors that the header of a safetensors file lists, in the order of their names. Errs on a file that is none.
pub fn tensors(path: &Path) -> std::io::Result<Vec<Tensor>> {
    let of = |(name, tensor): (String, Value)| {
        let offset = |at: usize| tensor["data_offsets"].get(at).and_then(Value::as_u64).unwrap_or(0);
        Tensor {
            name,
            dtype: tensor["dtype"].as_str().unwrap_or_default().to_owned(),
            shape: tensor["shape"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect(),
            size: offset(1).saturating_sub(offset(0)),
        }
    };
    Ok(header(path)?.into_iter().map(of).collect())
}

fn header(path: &Path) -> std::io::Result<Map<String, Value>> {
    let mut file = crate::pieces::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length).min(LONGEST_HEADER);
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let mut tensors: Map<String, Value> = serde_json::from_slice(&header)?;
    tensors.remove("__metadata__");
    Ok(tensors)
}

impl Store {
    /// The name of the file that stands for an artifact: its rows, its constitutions, its config, or its only file but metrics.
    pub fn main_file(&self, id: &Digest) -> Result<Option<String>, StoreError> {
        Ok(main_file(&self.manifest(id)?.files).map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_models_show_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let put = |files: &[(&str, &[u8])]| {
            let blob = |(name, bytes): &(&str, &[u8])| ((*name).to_owned(), store.put_bytes(bytes).unwrap());
            let manifest = super::super::Manifest { kind: "x".into(), files: files.iter().map(blob).collect() };
            store.put_manifest(&manifest).unwrap()
        };
        let id = put(&[("rows.jsonl", b"{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n"), ("log.jsonl", b"")]);
        let rows = preview(&store, &id, 2).unwrap();
        assert_eq!((rows.lines.len(), rows.rows), (2, Some(3)));

        let header = br#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"__metadata__":{}}"#;
        let mut weights = (header.len() as u64).to_le_bytes().to_vec();
        weights.extend(header);
        let id = put(&[("config.json", br#"{"hidden_size":2}"#), ("model.safetensors", &weights)]);
        let model = preview(&store, &id, 2).unwrap();
        assert_eq!((model.tensors, model.parameters), (1, 6));
        assert_eq!(model.dtypes, ["F32"]);
        assert_eq!(model.config["hidden_size"], 2);

        let cut = put(&[("config.json", b"{"), ("model.safetensors", &[255; 9])]);
        assert_eq!(preview(&store, &cut, 2).unwrap(), Preview::default());
    }
}
