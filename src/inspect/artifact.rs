//! An artifact: what it is, what made it, what took it, what is in it.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::digest::Digest;
use crate::store::{Index, Manifest, NodeRecord, Store, StoreError, Tensor, Use, tensors};

/// Bytes of a file of JSON that are read.
const LARGEST: u64 = 16 << 20;

/// What there is to tell of an artifact.
#[derive(Debug)]
pub struct Known {
    /// Its id.
    pub id: Digest,
    /// What it is made of.
    pub manifest: Manifest,
    /// The record of the latest node that made it; none of what was read from outside.
    pub record: Option<NodeRecord>,
    /// Work that made it, the latest first.
    pub makers: Vec<Use>,
    /// Work that took it, the latest first.
    pub users: Vec<Use>,
}

/// Reads what there is to tell. Errs if there is no such artifact.
pub fn know(store: &Store, index: &Index, id: Digest) -> Result<Known, StoreError> {
    let manifest = store.manifest(&id)?;
    let makers = index.makers(&id);
    let record = makers.first().map(|maker| store.node(&maker.key)).transpose()?.flatten();
    Ok(Known { id, manifest, record, makers, users: index.users(&id) })
}

/// The weights of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Weights {
    /// Every tensor with its file, in the order of layers.
    pub tensors: Vec<(String, Tensor)>,
    /// Numbers in all of them.
    pub parameters: u64,
    /// Bytes of them.
    pub size: u64,
    /// Their types, with the numbers of each.
    pub dtypes: Vec<(String, u64)>,
    /// Parts of the model with their numbers: all layers are one.
    pub parts: Vec<(String, u64)>,
    /// Files whose headers cannot be read.
    pub unread: Vec<String>,
}

/// Reads the headers of a model's files of tensors.
pub fn weights<'a>(files: impl Iterator<Item = (&'a String, &'a std::path::PathBuf)>) -> Weights {
    let mut weights = Weights::default();
    for (name, path) in files.filter(|(name, _)| Path::new(name).extension() == Some("safetensors".as_ref())) {
        match tensors(path) {
            Ok(read) => weights.tensors.extend(read.into_iter().map(|tensor| (name.clone(), tensor))),
            Err(_) => weights.unread.push(name.clone()),
        }
    }
    weights.tensors.sort_by_cached_key(|(_, tensor)| natural(&tensor.name));
    let (mut dtypes, mut parts) = (indexmap::IndexMap::new(), indexmap::IndexMap::new());
    for (_, tensor) in &weights.tensors {
        let numbers = tensor.parameters();
        weights.parameters = weights.parameters.saturating_add(numbers);
        weights.size = weights.size.saturating_add(tensor.size);
        for (sums, name) in [(&mut dtypes, tensor.dtype.clone()), (&mut parts, part(&tensor.name))] {
            let sum: &mut u64 = sums.entry(name).or_default();
            *sum = sum.saturating_add(numbers);
        }
    }
    weights.dtypes = dtypes.into_iter().collect();
    weights.parts = parts.into_iter().collect();
    weights
}

/// The name of a tensor without the numbers in it: `model.layers.*.mlp.up_proj.weight`.
fn part(name: &str) -> String {
    let plain =
        |part: &str| if part.bytes().all(|byte| byte.is_ascii_digit()) { "*".to_owned() } else { part.to_owned() };
    name.split('.').map(plain).collect::<Vec<_>>().join(".")
}

/// A name so that 10 comes after 9.
fn natural(name: &str) -> Vec<(u64, String)> {
    name.split('.')
        .map(|part| part.parse().map_or_else(|_| (u64::MAX, part.to_owned()), |number| (number, String::new())))
        .collect()
}

/// A file of JSON; `None` if it is not there, is too large, or is none.
pub fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&crate::fs::read(path, LARGEST).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_summed_by_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let header = br#"{"model.layers.10.w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
            "model.layers.9.w":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"embed":{"dtype":"F32","shape":[],"data_offsets":[32,36]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        crate::fs::write(&path, bytes).unwrap();
        let damaged = folder.path().join("y");
        crate::fs::write(&damaged, "").unwrap();
        let files = [("a.safetensors".to_owned(), path), ("b.safetensors".to_owned(), damaged)];
        let weights = weights(files.iter().map(|(name, path)| (name, path)));
        let names: Vec<&str> = weights.tensors.iter().map(|(_, tensor)| tensor.name.as_str()).collect();
        assert_eq!(names, ["embed", "model.layers.9.w", "model.layers.10.w"]);
        assert_eq!(
            (weights.parameters, weights.size, &weights.unread[..]),
            (11, 36, &["b.safetensors".to_owned()][..])
        );
        assert_eq!(weights.parts, [("embed".to_owned(), 1), ("model.layers.*.w".to_owned(), 10)]);
        assert_eq!(weights.dtypes, [("F32".to_owned(), 7), ("BF16".to_owned(), 4)]);
    }
}
