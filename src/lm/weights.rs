//! Weights on disk, in safetensors: eight bytes of header length, a JSON header, then the numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use candle_core::{DType, Device, Storage, Tensor};
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::{Value, json};

use super::gguf::Gguf;
use super::{Config, Files, LmError};
use crate::fs;
use crate::pieces::{self, Pieces};

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
    file: Pieces,
    entries: BTreeMap<String, Value>,
    /// Where the numbers begin and how many bytes they are.
    start: u64,
    length: u64,
}

impl Reader {
    fn open(name: &str, path: &Path) -> Result<Self, LmError> {
        let damaged = |what: String| LmError::Weights { file: name.to_owned(), what };
        let mut file = pieces::open(path)?;
        let bytes = file.size();
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
        check_numbers(name, &tensor)?;
        Ok(tensor.to_device(device)?)
    }
}

/// Errs if a tensor on the CPU has NaN or infinite numbers in it.
pub(super) fn check_numbers(name: &str, tensor: &Tensor) -> Result<(), LmError> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else { return Ok(()) };
    let numbers = &storage.as_slice::<f32>()?[start..end];
    // Zero times a number that is none is NaN, and stays so in a sum; eight sums at a time are fast.
    let mut sums = [0f32; 8];
    let chunks = numbers.chunks_exact(8);
    let rest: f32 = chunks.remainder().iter().map(|number| number * 0.0).sum();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, number)| *sum += number * 0.0);
    }
    if sums.iter().sum::<f32>() + rest == 0.0 {
        return Ok(());
    }
    let what = if numbers.iter().any(|number| number.is_nan()) { "NaN" } else { "infinite numbers" };
    Err(LmError::NotANumber { name: name.to_owned(), what })
}

/// Errs on weights and biases of layers that the model does not have: it would compute something else without them.
fn refuse_strays<'a>(names: impl IntoIterator<Item = &'a String>, config: &Config) -> Result<(), LmError> {
    let known: BTreeSet<String> = config.tensors().into_iter().map(|(name, _)| name).collect();
    let weighs = |name: &&String| {
        name.starts_with("model.layers.") && matches!(name.rsplit('.').next(), Some("weight" | "bias"))
    };
    match names.into_iter().filter(weighs).find(|name| !known.contains(*name)) {
        None => Ok(()),
        Some(name) => Err(LmError::StrayTensor { name: name.clone(), model_type: config.model_type.model_type() }),
    }
}

/// Which file holds which tensor, by the index of a model in several files.
fn shards(path: &Path) -> Result<BTreeMap<String, String>, LmError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(&fs::read(path, LARGEST_HEADER)?)
        .map_err(|error| LmError::Malformed { file: INDEX.to_owned(), what: error.to_string() })?;
    Ok(index.weight_map)
}

/// Reads all tensors that a model of this form has, as f32 on the CPU and in the type of `config.json` elsewhere: `model.safetensors`, the shards of its index, or `model.gguf`.
///
/// Errs on missing files and tensors, on a file that is cut short or whose header lies, and on shapes that are not
/// the configuration's, on numbers that are none, and on weights of layers that the configuration does not have. Other
/// tensors that the model does not have are ignored.
pub fn load(files: &Files, config: &Config, device: &Device) -> Result<BTreeMap<String, Tensor>, LmError> {
    load_in(if device.is_cpu() { DType::F32 } else { config.dtype }, files, config, device)
}

/// As [`load`], in a type of one's own choice.
pub fn load_in(
    dtype: DType,
    files: &Files,
    config: &Config,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, LmError> {
    load_some(dtype, files, config, device, |_| true)
}

/// As [`load_in`], of those tensors whose names are wanted.
pub(super) fn load_some(
    dtype: DType,
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
        let tensor = reader.tensor(&name, &shape, &Device::Cpu)?;
        tensors.insert(name, tensor.to_dtype(dtype)?.to_device(device)?);
    }
    for reader in readers.values() {
        refuse_strays(reader.entries.keys(), config)?;
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

/// Writes tensors to one file of safetensors: bf16 and f16 as they are, else f32. The same tensors give the same bytes.
///
/// The file is written in place: make it in a directory that is renamed when it is whole.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), LmError> {
    let mut header = serde_json::Map::new();
    // `transformers` refuses files that do not say so.
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        let (dtype, size) = match tensor.dtype() {
            DType::BF16 => ("BF16", 2),
            DType::F16 => ("F16", 2),
            _ => ("F32", 4),
        };
        end += tensor.elem_count() * size;
        header.insert(name.clone(), json!({"dtype": dtype, "shape": tensor.dims(), "data_offsets": [start, end]}));
    }
    let mut header = serde_json::to_vec(&Value::Object(header)).expect("strings and numbers are JSON");
    // The reference implementation aligns the numbers to eight bytes with spaces.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, crate::fs::writer(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in tensors.values() {
        let flat = tensor.flatten_all()?;
        match tensor.dtype() {
            DType::BF16 => flat.to_vec1::<bf16>()?.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))?,
            DType::F16 => flat.to_vec1::<f16>()?.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))?,
            _ => {
                let values = flat.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))?;
            }
        }
    }
    // Not waited for: what is put into a store is synced there, as it is kept there.
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    Ok(())
}

#[cfg(test)]
mod tests;
