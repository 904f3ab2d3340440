//! Weights on disk, in safetensors: eight bytes of header length, a JSON header, then the numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use fs_err::File;
use serde::Deserialize;
use serde_json::{Value, json};

use super::gguf::Gguf;
use super::{Config, Files, LmError};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The limit of the reference implementation.
const LARGEST_HEADER: u64 = 100_000_000;

/// What a header says about one tensor.
#[derive(Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// An open file of tensors, its header read.
struct Reader {
    /// For messages.
    name: String,
    file: File,
    entries: BTreeMap<String, Value>,
    /// Where the numbers begin and how many bytes they are.
    start: u64,
    length: u64,
}

impl Reader {
    fn open(name: &str, path: &Path) -> Result<Self, LmError> {
        let damaged = |what: String| LmError::Weights { file: name.to_owned(), what };
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut length = [0; 8];
        if bytes < 8 {
            return Err(damaged(format!("the file has {bytes} bytes")));
        }
        file.read_exact(&mut length)?;
        let header = u64::from_le_bytes(length);
        if header > LARGEST_HEADER || header > bytes - 8 {
            return Err(damaged(format!("the header should have {header} bytes, the file has {bytes}")));
        }
        let mut text = vec![0; header as usize];
        file.read_exact(&mut text)?;
        let mut entries: BTreeMap<String, Value> =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("the header is not readable: {error}")))?;
        entries.remove("__metadata__");
        Ok(Self { name: name.to_owned(), file, entries, start: 8 + header, length: bytes - 8 - header })
    }

    /// Reads one tensor as f32.
    fn tensor(&mut self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor, LmError> {
        let damaged = |what: String| LmError::Weights { file: self.name.clone(), what };
        let entry = self.entries.get(name).ok_or_else(|| LmError::MissingTensor { name: name.to_owned() })?;
        let entry = Entry::deserialize(entry)
            .map_err(|error| damaged(format!("the header's entry `{name}` is not readable: {error}")))?;
        let form = |found: String, expected: String| LmError::TensorForm { name: name.to_owned(), found, expected };
        let dtype = match entry.dtype.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            "F64" => DType::F64,
            other => {
                return Err(form(format!("of type {other}"), "a type of floating point".to_owned()));
            }
        };
        if entry.shape.iter().ne(shape.iter().map(|size| *size as u64).collect::<Vec<_>>().iter()) {
            return Err(form(format!("{:?}", entry.shape), format!("{shape:?}")));
        }
        let (from, to) = entry.data_offsets;
        // Checked sizes of `config.json` are at most 2²⁴ each, two of them: no overflow.
        let bytes = shape.iter().map(|size| *size as u64).product::<u64>() * dtype.size_in_bytes() as u64;
        if from > to || to > self.length {
            return Err(damaged(format!(
                "`{name}` should lie at bytes {from} to {to} of {}: the file is cut short, or its header lies",
                self.length
            )));
        }
        if to - from != bytes {
            return Err(damaged(format!("`{name}` should have {bytes} bytes, the header gives it {}", to - from)));
        }
        let mut raw = vec![0; bytes as usize];
        self.file.seek(SeekFrom::Start(self.start + from))?;
        self.file.read_exact(&mut raw)?;
        let tensor = Tensor::from_raw_buffer(&raw, dtype, shape, &Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(tensor.to_device(device)?)
    }
}

/// Which file holds which tensor, by the index of a model in several files.
fn shards(path: &Path) -> Result<BTreeMap<String, String>, LmError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(&fs_err::read(path)?)
        .map_err(|error| LmError::Malformed { file: INDEX.to_owned(), what: error.to_string() })?;
    Ok(index.weight_map)
}

/// Reads all tensors that a model of this form has, as f32: `model.safetensors`, the shards of its index, or `model.gguf`.
///
/// Errs on missing files and tensors, on a file that is cut short or whose header lies, and on shapes that are not
/// the configuration's. Tensors that the model does not have are ignored.
pub fn load(files: &Files, config: &Config, device: &Device) -> Result<BTreeMap<String, Tensor>, LmError> {
    load_some(files, config, device, |_| true)
}

/// As [`load`], of those tensors whose names are wanted.
pub(super) fn load_some(
    files: &Files,
    config: &Config,
    device: &Device,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, Tensor>, LmError> {
    if let Some(gguf) = Gguf::of(files)? {
        return gguf.tensors(config, device);
    }
    let missing = |name: &str| LmError::MissingFile { name: name.to_owned() };
    let shards = match (files.contains_key(SINGLE), files.get(INDEX)) {
        (true, _) => None,
        (false, Some(index)) => Some(shards(index)?),
        (false, None) => {
            let pickled = |name: &&String| {
                [".bin", ".pt", ".pth", ".ckpt"].iter().any(|suffix| name.ends_with(suffix)) && !name.contains('/')
            };
            return Err(match files.keys().find(pickled) {
                Some(name) => LmError::PickledWeights { name: name.clone() },
                None => missing(SINGLE),
            });
        }
    };
    let mut readers: BTreeMap<String, Reader> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, shape) in config.tensors().into_iter().filter(|(name, _)| wanted(name)) {
        let file = match &shards {
            None => SINGLE,
            Some(map) => map.get(&name).ok_or_else(|| LmError::MissingTensor { name: name.clone() })?,
        };
        if !readers.contains_key(file) {
            let path = files.get(file).ok_or_else(|| missing(file))?;
            readers.insert(file.to_owned(), Reader::open(file, path)?);
        }
        let reader = readers.get_mut(file).expect("it was just put there");
        tensors.insert(name.clone(), reader.tensor(&name, &shape, device)?);
    }
    Ok(tensors)
}

/// The names of the tensors of a file.
pub(super) fn names(name: &str, path: &Path) -> Result<BTreeSet<String>, LmError> {
    Ok(Reader::open(name, path)?.entries.into_keys().collect())
}

/// Reads tensors of a file, as f32.
pub(super) fn read(
    name: &str,
    path: &Path,
    shapes: &[(String, Vec<usize>)],
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, LmError> {
    let mut reader = Reader::open(name, path)?;
    shapes.iter().map(|(name, shape)| Ok((name.clone(), reader.tensor(name, shape, device)?))).collect()
}

/// Writes tensors to one file of safetensors, as f32. The same tensors give the same bytes.
///
/// The file is written in place: make it in a directory that is renamed when it is whole.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), LmError> {
    let mut header = serde_json::Map::new();
    // `transformers` refuses files that do not say so.
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += tensor.elem_count() * 4;
        header.insert(name.clone(), json!({"dtype": "F32", "shape": tensor.dims(), "data_offsets": [start, end]}));
    }
    let mut header = serde_json::to_vec(&Value::Object(header)).expect("strings and numbers are JSON");
    // The reference implementation aligns the numbers to eight bytes with spaces.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in tensors.values() {
        for value in tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()? {
            file.write_all(&value.to_le_bytes())?;
        }
    }
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests;
