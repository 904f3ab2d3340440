//! A training run on disk, from which another process goes on to the same bits.
//!
//! One file of safetensors: `weight.NAME` as f32, the optimiser's moments as it keeps them, the rest as JSON in its
//! metadata, and as last tensor the BLAKE3 digest of every byte before it. It is written beside its place, waited for, and renamed, so
//! that there is always the old one or the new one; whatever else lies there is taken for none.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use candle_core::{DType, Tensor};
use fs_err::File;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::optimizer::Numbers;
use super::super::{Config, LmError};
use super::anchor::Anchors;
use super::{Example, StepRecord, TrainSettings};

/// The checkpoint, in the directory that the caller names.
const FILE: &str = "checkpoint.safetensors";
/// The same while it is being written.
const UNFINISHED: &str = "checkpoint.safetensors.unfinished";
/// The name of the last tensor.
const CHECKSUM: &str = "checksum";
/// Raised when equal settings and examples begin to give other bits, so that older checkpoints are left alone.
const VERSION: u32 = 2;

/// Everything but the tensors.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// [`digest`] of the run.
    pub(super) run: String,
    /// Updates the optimiser did.
    pub(super) updates: u64,
    /// A record for each step.
    pub(super) records: Vec<StepRecord>,
    /// What the reference says of the examples.
    #[serde(default, skip_serializing_if = "Anchors::is_empty")]
    pub(super) anchors: Anchors,
    /// Whether steps are in parts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) in_parts: bool,
}

/// Tensors that were read, flat.
pub(super) type Tensors = BTreeMap<String, Numbers<'static>>;

/// What is written as a tensor.
pub(super) enum Source<'a> {
    Here(Numbers<'a>),
    /// Copied from its device when it is written.
    In(&'a Tensor),
}

impl Source<'_> {
    /// Its type by the name that the format has for it, and how many numbers it has.
    fn form(&self) -> (&'static str, usize) {
        match self {
            Self::Here(Numbers::U8(numbers)) => ("U8", numbers.len()),
            Self::Here(Numbers::F32(numbers)) => ("F32", numbers.len()),
            Self::In(tensor) => ("F32", tensor.elem_count()),
        }
    }

    /// Hands on its bytes.
    fn bytes(&self, mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), LmError> {
        match self {
            Self::Here(Numbers::U8(numbers)) => sink(numbers)?,
            Self::Here(Numbers::F32(numbers)) => bytes(numbers, sink)?,
            Self::In(tensor) => bytes(&tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?, sink)?,
        }
        Ok(())
    }
}

/// What a run is: everything that its bits depend on. A checkpoint of another run is never gone on from.
pub(super) fn digest(
    settings: &TrainSettings,
    config: &Config,
    weights: &BTreeMap<String, Tensor>,
    reference: Option<&BTreeMap<String, Tensor>>,
    examples: &[Example],
) -> Result<String, LmError> {
    let mut hasher = blake3::Hasher::new();
    text(&mut hasher, &format!("training run {VERSION}"));
    text(&mut hasher, &json!(settings).to_string());
    text(&mut hasher, &config.to_json().to_string());
    for weights in [Some(weights), reference] {
        number(&mut hasher, weights.map_or(0, BTreeMap::len));
        for (name, weight) in weights.into_iter().flatten() {
            text(&mut hasher, name);
            number(&mut hasher, weight.elem_count());
            Source::In(weight).bytes(|block| {
                hasher.update(block);
                Ok(())
            })?;
        }
    }
    number(&mut hasher, examples.len());
    for example in examples {
        text(&mut hasher, &example.id);
        number(&mut hasher, example.sequences.len());
        for sequence in &example.sequences {
            number(&mut hasher, sequence.prompt);
            number(&mut hasher, sequence.ids.len());
            for id in &sequence.ids {
                hasher.update(&id.to_le_bytes());
            }
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn text(hasher: &mut blake3::Hasher, text: &str) {
    number(hasher, text.len());
    hasher.update(text.as_bytes());
}

fn number(hasher: &mut blake3::Hasher, number: usize) {
    hasher.update(&(number as u64).to_le_bytes());
}

/// Hands on the bytes of numbers, in blocks that need little memory.
fn bytes(numbers: &[f32], mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut block = Vec::with_capacity(1 << 16);
    for numbers in numbers.chunks(1 << 14) {
        block.clear();
        block.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        sink(&block)?;
    }
    Ok(())
}

/// Writes a checkpoint into a directory that exists, in place of the one there.
pub(super) fn write(directory: &Path, state: &State, tensors: &[(String, Source<'_>)]) -> Result<(), LmError> {
    let unfinished = directory.join(UNFINISHED);
    let mut file = BufWriter::with_capacity(1 << 20, crate::fs::writer(&unfinished)?);
    let mut hasher = blake3::Hasher::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all(bytes)
    };
    let header = header(state, tensors);
    put(&(header.len() as u64).to_le_bytes())?;
    put(header.as_bytes())?;
    for (_, numbers) in tensors {
        numbers.bytes(&mut put)?;
    }
    let checksum = hasher.finalize();
    file.write_all(checksum.as_bytes())?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync()?;
    Ok(crate::fs::rename(&unfinished, &directory.join(FILE))?)
}

/// Bytes of a number.
fn width(dtype: &str) -> usize {
    if dtype == "U8" { 1 } else { size_of::<f32>() }
}

fn header(state: &State, tensors: &[(String, Source<'_>)]) -> String {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "state": json!(state).to_string() }));
    let mut start = 0;
    for (name, numbers) in tensors {
        let (dtype, count) = numbers.form();
        let end = start + count * width(dtype);
        let entry = json!({ "dtype": dtype, "shape": [count], "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
        start = end;
    }
    let entry = json!({ "dtype": "U8", "shape": [blake3::OUT_LEN], "data_offsets": [start, start + blake3::OUT_LEN] });
    header.insert(CHECKSUM.to_owned(), entry);
    let mut header = Value::Object(header).to_string();
    // The format wants what follows to begin at a multiple of eight.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    header
}

/// Reads the checkpoint of a directory, a tensor at a time; `None` if there is none, or one that is not whole.
///
/// Errs if there is one that may not be read.
pub(super) fn read(directory: &Path) -> Result<Option<(State, Tensors)>, LmError> {
    match File::open(directory.join(FILE)) {
        Ok(file) => Ok(parse(file)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn parse(mut file: File) -> io::Result<Option<(State, Tensors)>> {
    #[derive(Deserialize)]
    struct Metadata {
        state: String,
    }
    #[derive(Deserialize)]
    struct Entry {
        dtype: String,
        shape: [usize; 1],
        data_offsets: [u64; 2],
    }
    let Some(content) = file.metadata()?.len().checked_sub(blake3::OUT_LEN as u64) else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader((&mut file).take(content))?;
    let mut checksum = [0; blake3::OUT_LEN];
    file.read_exact(&mut checksum)?;
    if hasher.finalize() != checksum {
        return Ok(None);
    }
    // From here on the file is one that `write` wrote.
    file.rewind()?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = vec![0; u64::from_le_bytes(length) as usize];
    file.read_exact(&mut header)?;
    let Ok(mut header) = serde_json::from_slice::<Map<String, Value>>(&header) else { return Ok(None) };
    let metadata = header.remove("__metadata__").map(serde_json::from_value::<Metadata>);
    let Some(Ok(Ok(state))) = metadata.map(|read| read.map(|Metadata { state }| serde_json::from_str(&state))) else {
        return Ok(None);
    };
    header.remove(CHECKSUM);
    let start = file.stream_position()?;
    let mut tensors = Tensors::new();
    for (name, entry) in header {
        let Ok(Entry { dtype, shape: [count], data_offsets: [from, _] }) = serde_json::from_value(entry) else {
            return Ok(None);
        };
        file.seek(SeekFrom::Start(start + from))?;
        tensors.insert(name, numbers(&mut file, &dtype, count)?);
    }
    Ok(Some((state, tensors)))
}

/// Reads numbers, in blocks that need little memory.
fn numbers(file: &mut File, dtype: &str, count: usize) -> io::Result<Numbers<'static>> {
    if dtype == "U8" {
        let mut numbers = vec![0; count];
        file.read_exact(&mut numbers)?;
        return Ok(Numbers::U8(numbers.into()));
    }
    let mut numbers = Vec::with_capacity(count);
    let mut block = vec![0; (count * size_of::<f32>()).min(1 << 16)];
    while numbers.len() < count {
        let here = &mut block[..((count - numbers.len()) * size_of::<f32>()).min(1 << 16)];
        file.read_exact(here)?;
        numbers.extend(here.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)));
    }
    Ok(Numbers::F32(numbers.into()))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn state(records: Vec<StepRecord>) -> State {
        State {
            run: "run".to_owned(),
            updates: 3,
            records,
            anchors: [(7, vec![-0.1 - 0.2, 1e-300])].into(),
            in_parts: true,
        }
    }

    #[test]
    fn reads_what_it_wrote_and_nothing_torn() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(read(directory.path()).expect("no fault").is_none(), "there is none yet");
        let tensor = Tensor::new(&[[1.5f32, -0.0], [f32::MIN_POSITIVE, 4.0]], &Device::Cpu).expect("fits");
        let record = StepRecord { step: 1, loss: 0.1 + 0.2, kl: Some(1e-300), ..StepRecord::default() };
        let tensors = [
            ("weight.a".to_owned(), Source::In(&tensor)),
            ("second.a".to_owned(), Source::Here(Numbers::F32(vec![0.25; 40_000].into()))),
            ("second.b".to_owned(), Source::Here(Numbers::U8(vec![200; 5].into()))),
        ];
        write(directory.path(), &state(vec![record.clone()]), &tensors).expect("writes");

        let (found, numbers) = read(directory.path()).expect("no fault").expect("whole");
        assert_eq!((found.run.as_str(), found.updates, found.records), ("run", 3, vec![record]));
        assert_eq!(found.anchors, state(Vec::new()).anchors);
        let Numbers::F32(weight) = &numbers["weight.a"] else { panic!("{numbers:?}") };
        let bits: Vec<u32> = weight.iter().map(|number| number.to_bits()).collect();
        assert_eq!(bits, [1.5f32, -0.0, f32::MIN_POSITIVE, 4.0].map(f32::to_bits));
        assert_eq!(numbers["second.a"], Numbers::F32(vec![0.25; 40_000].into()));
        assert_eq!(numbers["second.b"], Numbers::U8(vec![200; 5].into()));
        assert_eq!(numbers.len(), 3);

        let path = directory.path().join(FILE);
        let whole = fs_err::read(&path).expect("there");
        assert!(candle_core::safetensors::load(&path, &Device::Cpu).is_ok(), "any reader of safetensors opens it");
        for length in [0, 1, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
            fs_err::write(&path, &whole[..length]).expect("writes");
            assert!(read(directory.path()).expect("no fault").is_none(), "cut to {length} bytes");
        }
        for place in [0, 9, 200, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs_err::write(&path, damaged).expect("writes");
            assert!(read(directory.path()).expect("no fault").is_none(), "byte {place} changed");
        }
    }

    #[test]
    fn unfinished_one_leaves_the_old_one_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), &state(Vec::new()), &[]).expect("writes");
        fs_err::write(directory.path().join(UNFINISHED), "half of").expect("writes");
        assert!(read(directory.path()).expect("no fault").is_some());
        write(directory.path(), &state(Vec::new()), &[]).expect("writes over it");
        assert!(!directory.path().join(UNFINISHED).exists());
    }
}
