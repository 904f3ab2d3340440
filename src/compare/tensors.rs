//! The tensors of two models beside each other, by name.
//!
//! Approach: headers are read first; then the tensors that both have are read side by side, a block at a time, in the
//! order in which the new model's files hold them. Where the old one's files have another order they are opened again.

use std::collections::BTreeMap;
use std::io::{self, Read};

use half::{bf16, f16};
use serde::Serialize;
use serde_json::Value;

/// Longest header of a file that is read.
const LONGEST_HEADER: u64 = 100 << 20;
/// Bytes of each side that are held at once; whole numbers of every type fit.
const BLOCK: usize = 1 << 18;

/// Opens a safetensors file from its beginning; may be called again.
pub type Opening<'a> = Box<dyn Fn() -> io::Result<Box<dyn Read>> + 'a>;

/// What a tensor is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Form {
    /// Type of its numbers as the file names it, such as `BF16`.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// What differs between the tensors of two models.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TensorChanges {
    /// Tensors that are the same in both.
    pub same: u64,
    /// Those that only the new model has.
    pub added: BTreeMap<String, Form>,
    /// Those that only the old model has.
    pub removed: BTreeMap<String, Form>,
    /// Those that differ, by name.
    pub changed: Vec<TensorChange>,
    /// Norm of the difference over the norm of the old numbers, of all tensors that both have and that can be compared.
    pub relative: Option<f64>,
}

/// A tensor that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorChange {
    /// Its name.
    pub name: String,
    /// What it was like.
    pub before: Form,
    /// What it is like.
    pub after: Form,
    /// The largest difference of two numbers; absent if shapes differ, or if some number is not finite.
    pub max: Option<f64>,
    /// Norm of the difference over the norm of the old numbers; absent as above, and where the old numbers are all 0.
    pub relative: Option<f64>,
}

/// Compares two models; each side is its safetensors files.
///
/// Errs if a file is not what it should be. Holds two blocks of 256 KiB and the headers.
pub fn tensors(before: &[Opening<'_>], after: &[Opening<'_>]) -> io::Result<TensorChanges> {
    let (mut old, mut new) = (Side::open(before)?, Side::open(after)?);
    let mut changes = TensorChanges::default();
    let (mut squares, mut of_old) = (0.0, 0.0);
    let only = |one: &Side<'_>, other: &Side<'_>| -> BTreeMap<String, Form> {
        let only = one.places.iter().filter(|(name, _)| !other.places.contains_key(*name));
        only.map(|(name, place)| (name.clone(), place.form.clone())).collect()
    };
    (changes.added, changes.removed) = (only(&new, &old), only(&old, &new));
    let mut both: Vec<(String, Place, Place)> = Vec::new();
    for (name, place) in &new.places {
        if let Some(other) = old.places.get(name) {
            both.push((name.clone(), other.clone(), place.clone()));
        }
    }
    both.sort_by_key(|(_, _, place)| (place.file, place.at));
    for (name, was, is) in both {
        let found = if was.form.shape == is.form.shape {
            let found = difference(&mut old, &was, &mut new, &is)?;
            if found.same && was.form == is.form {
                changes.same += 1;
                of_old += Some(found.of_old).filter(|norm| norm.is_finite()).unwrap_or(0.0);
                continue;
            }
            found
        } else {
            Found::default()
        };
        let (max, relative) = if found.numbers && (found.squares + found.of_old).is_finite() {
            squares += found.squares;
            of_old += found.of_old;
            (Some(found.max), ratio(found.squares, found.of_old))
        } else {
            (None, None)
        };
        changes.changed.push(TensorChange { name, before: was.form, after: is.form, max, relative });
    }
    changes.changed.sort_by(|one, other| one.name.cmp(&other.name));
    changes.relative = ratio(squares, of_old);
    Ok(changes)
}

fn ratio(squares: f64, of_old: f64) -> Option<f64> {
    let ratio = (squares / of_old).sqrt();
    ratio.is_finite().then_some(ratio)
}

/// Where a tensor lies, and what it is like.
#[derive(Debug, Clone)]
struct Place {
    form: Form,
    file: usize,
    /// First byte, from the beginning of the file.
    at: u64,
    bytes: u64,
}

struct Side<'a> {
    files: &'a [Opening<'a>],
    places: BTreeMap<String, Place>,
    /// What is being read, and how far it is.
    reader: Option<(usize, u64, Box<dyn Read>)>,
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl<'a> Side<'a> {
    fn open(files: &'a [Opening<'a>]) -> io::Result<Self> {
        let mut places = BTreeMap::new();
        for (file, open) in files.iter().enumerate() {
            for (name, place) in header(&mut open()?, file)? {
                if places.insert(name.clone(), place).is_some() {
                    return Err(wrong(format!("tensor `{name}` is in two files")));
                }
            }
        }
        Ok(Self { files, places, reader: None })
    }

    /// Goes to the first byte of a tensor.
    fn go_to(&mut self, place: &Place) -> io::Result<()> {
        let behind = self.reader.take().filter(|(file, at, _)| *file == place.file && *at <= place.at);
        let (file, at, mut reader) = match behind {
            Some(reader) => reader,
            None => (place.file, 0, self.files[place.file]()?),
        };
        let skipped = io::copy(&mut (&mut reader).take(place.at - at), &mut io::sink())?;
        if skipped < place.at - at {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.reader = Some((file, place.at, reader));
        Ok(())
    }

    fn read(&mut self, block: &mut [u8]) -> io::Result<()> {
        let Some((_, at, reader)) = &mut self.reader else { return Err(wrong("nothing is being read")) };
        reader.read_exact(block)?;
        *at += block.len() as u64;
        Ok(())
    }
}

/// The tensors that a file's header lists.
fn header(reader: &mut dyn Read, file: usize) -> io::Result<Vec<(String, Place)>> {
    let mut length = [0; 8];
    reader.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(wrong("the header is too long"));
    }
    let mut text = Vec::new();
    reader.take(length).read_to_end(&mut text)?;
    let listed: BTreeMap<String, Value> = serde_json::from_slice(&text).map_err(|_| wrong("the header is no JSON"))?;
    let mut places = Vec::new();
    for (name, told) in listed.into_iter().filter(|(name, _)| name != "__metadata__") {
        let bad = || wrong(format!("tensor `{name}` is not described as it should be"));
        let numbers = |list: &Value| list.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<_>>>();
        let dtype = told["dtype"].as_str().ok_or_else(bad)?.to_owned();
        let shape = numbers(&told["shape"]).ok_or_else(bad)?;
        let Some([begin, end]) = numbers(&told["data_offsets"]).and_then(|list| <[u64; 2]>::try_from(list).ok()) else {
            return Err(bad());
        };
        let bytes = end.checked_sub(begin).ok_or_else(bad)?;
        let count = shape.iter().try_fold(1_u64, |count, size| count.checked_mul(*size)).ok_or_else(bad)?;
        if let Some((size, _)) = kind(&dtype)
            && count.checked_mul(size as u64) != Some(bytes)
        {
            return Err(bad());
        }
        let at = begin.checked_add(length + 8).ok_or_else(bad)?;
        places.push((name, Place { form: Form { dtype, shape }, file, at, bytes }));
    }
    Ok(places)
}

type Decode = fn(&[u8]) -> f64;

/// Bytes of a number of a type, and how to read one.
fn kind(dtype: &str) -> Option<(usize, Decode)> {
    fn bytes<const N: usize>(slice: &[u8]) -> [u8; N] {
        slice.try_into().unwrap_or([0; N])
    }
    Some(match dtype {
        "F64" => (8, |slice| f64::from_le_bytes(bytes(slice))),
        "F32" => (4, |slice| f64::from(f32::from_le_bytes(bytes(slice)))),
        "F16" => (2, |slice| f16::from_le_bytes(bytes(slice)).to_f64()),
        "BF16" => (2, |slice| bf16::from_le_bytes(bytes(slice)).to_f64()),
        "I64" => (8, |slice| i64::from_le_bytes(bytes(slice)) as f64),
        "U64" => (8, |slice| u64::from_le_bytes(bytes(slice)) as f64),
        "I32" => (4, |slice| f64::from(i32::from_le_bytes(bytes(slice)))),
        "U32" => (4, |slice| f64::from(u32::from_le_bytes(bytes(slice)))),
        "I16" => (2, |slice| f64::from(i16::from_le_bytes(bytes(slice)))),
        "U16" => (2, |slice| f64::from(u16::from_le_bytes(bytes(slice)))),
        "I8" => (1, |slice| f64::from(i8::from_le_bytes(bytes(slice)))),
        "U8" | "BOOL" => (1, |slice| f64::from(slice[0])),
        _ => return None,
    })
}

/// What the comparison of two tensors of one shape found.
#[derive(Debug, Default)]
struct Found {
    /// Whether all bytes are the same.
    same: bool,
    /// Whether the types can be read as numbers.
    numbers: bool,
    max: f64,
    squares: f64,
    of_old: f64,
}

fn difference(old: &mut Side<'_>, was: &Place, new: &mut Side<'_>, is: &Place) -> io::Result<Found> {
    let kinds = kind(&was.form.dtype).zip(kind(&is.form.dtype));
    let mut found = Found { same: was.bytes == is.bytes, numbers: kinds.is_some(), ..Found::default() };
    // Of types that are not known all that can be told is whether the bytes are the same.
    let ((size, decode), (new_size, new_decode)) = kinds.unwrap_or(((1, |_| 0.0), (1, |_| 0.0)));
    if kinds.is_none() && was.bytes != is.bytes {
        return Ok(found);
    }
    old.go_to(was)?;
    new.go_to(is)?;
    let (mut left, mut right) = (vec![0; BLOCK], vec![0; BLOCK / size * new_size]);
    let mut rest = was.bytes as usize / size;
    while rest > 0 {
        let count = rest.min(BLOCK / size);
        rest -= count;
        let (left, right) = (&mut left[..count * size], &mut right[..count * new_size]);
        old.read(left)?;
        new.read(right)?;
        let same = left == right;
        found.same &= same;
        if kinds.is_none() {
            continue;
        }
        for (left, right) in left.chunks_exact(size).zip(right.chunks_exact(new_size)) {
            let value = decode(left);
            found.of_old += value * value;
            // The same bits differ by nothing, be they what they may.
            if !same && left != right {
                let change = (new_decode(right) - value).abs();
                // Not `max`, which passes over what is no number.
                found.max = if change > found.max || change.is_nan() { change } else { found.max };
                found.squares += change * change;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    type Tensors<'a> = &'a [(&'a str, &'a str, &'a [u64], Vec<u8>)];

    fn file(tensors: Tensors<'_>) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let mut data = Vec::new();
        for (name, dtype, shape, bytes) in tensors {
            let offsets = [data.len(), data.len() + bytes.len()];
            header.insert((*name).to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
            data.extend(bytes);
        }
        let header = Value::Object(header).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
    }

    fn opening(bytes: Vec<u8>) -> Opening<'static> {
        Box::new(move || Ok(Box::new(io::Cursor::new(bytes.clone()))))
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn bf16s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
    }

    #[test]
    fn tensors_are_compared_by_name_whatever_file_they_are_in() {
        let many = vec![1.0; 200_000];
        let mut moved = many.clone();
        moved[150_000] = 1.5;
        let old = [
            opening(file(&[("a", "F32", &[2], f32s(&[3.0, 4.0])), ("gone", "F32", &[1], f32s(&[1.0]))])),
            opening(file(&[("many", "F32", &[200, 1000], f32s(&many)), ("still", "F32", &[1], f32s(&[f32::NAN]))])),
        ];
        let new = [opening(file(&[
            ("still", "F32", &[1], f32s(&[f32::NAN])),
            ("many", "F32", &[200, 1000], f32s(&moved)),
            ("came", "BF16", &[1, 1], bf16s(&[1.0])),
            ("a", "BF16", &[2], bf16s(&[3.0, 5.0])),
        ]))];
        let changes = tensors(&old, &new).expect("compares");
        assert_eq!(changes.same, 1);
        assert_eq!(changes.added.keys().collect::<Vec<_>>(), ["came"]);
        assert_eq!(changes.removed["gone"], Form { dtype: "F32".into(), shape: vec![1] });
        let [a, many] = &changes.changed[..] else { panic!("{changes:?}") };
        assert_eq!((a.max, a.relative, a.after.dtype.as_str()), (Some(1.0), Some(0.2), "BF16"));
        assert_eq!((many.max, many.relative), (Some(0.5), Some(0.5 / 200_000_f64.sqrt())));
        // The one that is no number is the same in both and counts for nothing.
        assert_eq!(changes.relative, Some((1.25_f64 / 200_025.0).sqrt()));
        assert_eq!(tensors(&new, &new).expect("compares").changed, []);
    }

    #[test]
    fn what_cannot_be_subtracted_is_told_without_figures() {
        let old = [opening(file(&[
            ("shape", "F32", &[2], f32s(&[1.0, 2.0])),
            ("nan", "F32", &[1], f32s(&[1.0])),
            ("odd", "F8_E4M3", &[2], vec![1, 2]),
            ("zero", "F32", &[1], f32s(&[0.0])),
        ]))];
        let new = [opening(file(&[
            ("shape", "F32", &[2, 1], f32s(&[1.0, 2.0])),
            ("nan", "F32", &[1], f32s(&[f32::NAN])),
            ("odd", "F8_E4M3", &[2], vec![1, 3]),
            ("zero", "F32", &[1], f32s(&[2.0])),
        ]))];
        let changes = tensors(&old, &new).expect("compares");
        let told: Vec<_> = changes.changed.iter().map(|one| (one.name.as_str(), one.max, one.relative)).collect();
        assert_eq!(told, [("nan", None, None), ("odd", None, None), ("shape", None, None), ("zero", Some(2.0), None)]);
    }

    #[test]
    fn files_that_are_none_are_errors() {
        let good = file(&[("a", "F32", &[2], f32s(&[3.0, 4.0]))]);
        for length in [0, 7, 20, good.len() - 1] {
            let cut = [opening(good[..length].to_vec())];
            assert!(tensors(&cut, &[opening(good.clone())]).is_err(), "{length}");
        }
        let long = [opening([255; 16].to_vec())];
        assert!(tensors(&long, &long).is_err());
        let wrong = [opening(file(&[("a", "F32", &[3], f32s(&[3.0, 4.0]))]))];
        assert!(tensors(&wrong, &wrong).is_err());
    }
}
