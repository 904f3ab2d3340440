//! A training run on disk, from which another process goes on to the same bits.
//!
//! One file of safetensors: `weight.NAME`, `first.NAME` and `second.NAME` as f32, the rest as JSON in its metadata, and
//! as last tensor the BLAKE3 digest of every byte before it. It is written beside its place, waited for, and renamed, so
//! that there is always the old one or the new one; whatever else lies there is taken for none.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use candle_core::Tensor;
use fs_err::File;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::{Config, LmError};
use super::{Example, StepRecord, TrainSettings};

/// The checkpoint, in the directory that the caller names.
const FILE: &str = "checkpoint.safetensors";
/// The same while it is being written.
const UNFINISHED: &str = "checkpoint.safetensors.unfinished";
/// The name of the last tensor.
const CHECKSUM: &str = "checksum";
/// Raised when equal settings and examples begin to give other bits, so that older checkpoints are left alone.
const VERSION: u32 = 1;

/// Everything but the tensors.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// [`digest`] of the run.
    pub(super) run: String,
    /// Updates the optimiser did.
    pub(super) updates: u64,
    /// A record for each step.
    pub(super) records: Vec<StepRecord>,
}

/// Tensors that were read, flat.
pub(super) type Tensors = BTreeMap<String, Vec<f32>>;

/// The numbers of a tensor: there already, or copied from its device when they are written.
pub(super) enum Numbers<'a> {
    Here(Cow<'a, [f32]>),
    In(&'a Tensor),
}

impl Numbers<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Here(numbers) => numbers.len(),
            Self::In(tensor) => tensor.elem_count(),
        }
    }

    fn read(&self) -> Result<Cow<'_, [f32]>, LmError> {
        match self {
            Self::Here(numbers) => Ok(Cow::Borrowed(numbers)),
            Self::In(tensor) => Ok(Cow::Owned(tensor.flatten_all()?.to_vec1()?)),
        }
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
            bytes(&Numbers::In(weight).read()?, |block| {
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
pub(super) fn write(directory: &Path, state: &State, tensors: &[(String, Numbers<'_>)]) -> Result<(), LmError> {
    let unfinished = directory.join(UNFINISHED);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
    let mut hasher = blake3::Hasher::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all(bytes)
    };
    let header = header(state, tensors);
    put(&(header.len() as u64).to_le_bytes())?;
    put(header.as_bytes())?;
    for (_, numbers) in tensors {
        bytes(&numbers.read()?, &mut put)?;
    }
    let checksum = hasher.finalize();
    file.write_all(checksum.as_bytes())?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs_err::rename(&unfinished, directory.join(FILE))?;
    // The rename itself must reach the disk too.
    File::open(directory)?.sync_all()?;
    Ok(())
}

fn header(state: &State, tensors: &[(String, Numbers<'_>)]) -> String {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "state": json!(state).to_string() }));
    let mut start = 0;
    for (name, numbers) in tensors {
        let end = start + numbers.len() * size_of::<f32>();
        let entry = json!({ "dtype": "F32", "shape": [numbers.len()], "data_offsets": [start, end] });
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

/// Reads the checkpoint of a directory; `None` if there is none, or one that is not whole.
///
/// Errs if there is one that may not be read.
pub(super) fn read(directory: &Path) -> Result<Option<(State, Tensors)>, LmError> {
    let file = match fs_err::read(directory.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(parse(&file))
}

fn parse(file: &[u8]) -> Option<(State, Tensors)> {
    let (content, checksum) = file.split_last_chunk::<{ blake3::OUT_LEN }>()?;
    if blake3::hash(content) != *checksum {
        return None;
    }
    let (_, metadata) = SafeTensors::read_metadata(file).ok()?;
    let state = serde_json::from_str(metadata.metadata().as_ref()?.get("state")?).ok()?;
    let tensors = SafeTensors::deserialize(file).ok()?;
    let numbers = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
    let tensors = tensors.iter().filter(|(name, _)| *name != CHECKSUM);
    Some((state, tensors.map(|(name, tensor)| (name.to_owned(), numbers(tensor.data()))).collect()))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn state(records: Vec<StepRecord>) -> State {
        State { run: "run".to_owned(), updates: 3, records }
    }

    #[test]
    fn reads_what_it_wrote_and_nothing_torn() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(read(directory.path()).expect("no fault").is_none(), "there is none yet");
        let tensor = Tensor::new(&[[1.5f32, -0.0], [f32::MIN_POSITIVE, 4.0]], &Device::Cpu).expect("fits");
        let record = StepRecord { step: 1, loss: 0.1 + 0.2, kl: Some(1e-300), ..StepRecord::default() };
        let tensors = [
            ("weight.a".to_owned(), Numbers::In(&tensor)),
            ("second.a".to_owned(), Numbers::Here(Cow::Owned(vec![0.25; 40_000]))),
        ];
        write(directory.path(), &state(vec![record.clone()]), &tensors).expect("writes");

        let (found, numbers) = read(directory.path()).expect("no fault").expect("whole");
        assert_eq!((found.run.as_str(), found.updates, found.records), ("run", 3, vec![record]));
        let bits: Vec<u32> = numbers["weight.a"].iter().map(|number| number.to_bits()).collect();
        assert_eq!(bits, [1.5f32, -0.0, f32::MIN_POSITIVE, 4.0].map(f32::to_bits));
        assert_eq!((numbers["second.a"].len(), numbers.len()), (40_000, 2));

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
