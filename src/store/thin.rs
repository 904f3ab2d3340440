//! Large files of tensors, an object per tensor: models share those that did not change.
//!
//! Such a file is cut where its header says that tensors begin. The header and each tensor become objects like any
//! other, by their blake3, and a recipe (`pieces`) stands for the whole file's digest: manifests and ids stay what they are.
//! A finetune with frozen parts, or an adapter merged into some layers, then adds only what it changed. Files that are
//! no safetensors to the letter stay whole, and so do small ones.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::path::{Path, PathBuf};

use fs_err::File;
use serde::Deserialize;

use super::hash::hash_file;
use super::put::{self, written_to};
use super::{Blob, Store, StoreError};
use crate::digest::Digest;
use crate::fs::{self, Stamp};
use crate::pieces::{self, Pieces, Recipe};

/// Files of tensors from this size on are cut. Below it a model is written whole in a moment and takes little room, and
/// other programs can open its object as it is.
pub(super) const THIN_FROM: u64 = 64 << 20;
/// Tensors smaller than this go together with their small neighbours: a file for each would cost more than it shares.
const SMALL: u64 = 64 << 10;
/// The limit of the reference implementation.
const LONGEST_HEADER: u64 = 100_000_000;

/// What is wrong with a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A file is not there.
    Missing(PathBuf),
    /// A file is not what it was.
    Damaged(PathBuf),
}

/// The sizes of the pieces that a file of tensors is cut into; `None` if it is no file of tensors, to the letter: numbers
/// from the header's end to the file's end, without holes.
pub(super) fn cuts(file: &mut (impl Read + ?Sized), size: u64) -> Option<Vec<u64>> {
    #[derive(Deserialize)]
    struct Entry {
        data_offsets: (u64, u64),
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER || length > size.checked_sub(8)? {
        return None;
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).ok()?;
    let mut entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header).ok()?;
    entries.remove("__metadata__");
    let spans = entries.into_values().map(|entry| Entry::deserialize(entry).ok().map(|entry| entry.data_offsets));
    let mut spans = spans.collect::<Option<Vec<_>>>()?;
    spans.sort_unstable();
    let mut sizes = vec![8 + length];
    let (mut end, mut small) = (0, 0);
    for (from, to) in spans {
        if from != end || to < from {
            return None;
        }
        end = to;
        if to - from < SMALL {
            small += to - from;
        } else {
            sizes.extend([small, to - from].iter().filter(|size| **size > 0));
            small = 0;
        }
    }
    sizes.extend((small > 0).then_some(small));
    (size - 8 - length == end).then_some(sizes)
}

/// A file's digest and those of its pieces, from one read.
pub(super) struct Scan {
    whole: blake3::Hasher,
    size: u64,
    pieces: Cutter,
}

struct Cutter {
    left: VecDeque<u64>,
    piece: blake3::Hasher,
    done: u64,
    made: Vec<(Digest, u64)>,
}

impl Cutter {
    fn update(&mut self, mut block: &[u8]) {
        while let Some(size) = self.left.front().copied() {
            let (now, rest) = block.split_at(block.len().min((size - self.done) as usize));
            self.piece.update(now);
            self.done += now.len() as u64;
            block = rest;
            if self.done < size {
                return;
            }
            self.made.push((self.piece.finalize().into(), size));
            self.piece.reset();
            self.done = 0;
            self.left.pop_front();
        }
    }
}

impl Scan {
    /// Of a file that is cut into pieces of these sizes; of none, if it stays whole.
    pub(super) fn new(cuts: Option<Vec<u64>>) -> Self {
        let left = cuts.unwrap_or_default().into();
        let pieces = Cutter { left, piece: blake3::Hasher::new(), done: 0, made: Vec::new() };
        Self { whole: blake3::Hasher::new(), size: 0, pieces }
    }

    /// Takes the next bytes. The whole and the pieces are hashed beside each other.
    pub(super) fn update(&mut self, block: &[u8]) {
        let Self { whole, pieces, .. } = self;
        if pieces.left.is_empty() {
            whole.update(block);
        } else {
            rayon::join(|| _ = whole.update(block), || pieces.update(block));
        }
        self.size += block.len() as u64;
    }

    /// The file, and its pieces if it was cut and they are all there.
    pub(super) fn finish(self) -> (Blob, Option<Vec<(Digest, u64)>>) {
        let blob = Blob { digest: self.whole.finalize().into(), size: self.size };
        let Cutter { made, left, .. } = self.pieces;
        let whole = left.is_empty() && made.iter().map(|(_, size)| size).sum::<u64>() == self.size;
        (blob, (whole && !made.is_empty()).then_some(made))
    }
}

impl Store {
    /// Where a blob's recipe is, if it is kept in pieces.
    pub fn recipe_path(&self, digest: &Digest) -> PathBuf {
        self.sharded("objects", digest, pieces::SUFFIX)
    }

    /// Digests of all blobs that have a recipe, in order.
    pub fn recipe_ids(&self) -> Result<Vec<Digest>, StoreError> {
        self.sharded_ids("objects", pieces::SUFFIX)
    }

    /// The objects that a blob's bytes lie in: itself, or the pieces of its recipe, each once.
    ///
    /// Errs with [`StoreError::Damaged`] if the recipe cannot be read.
    pub fn stands_on(&self, digest: &Digest) -> Result<Vec<Digest>, StoreError> {
        if std::fs::symlink_metadata(self.blob_path(digest)).is_ok() {
            return Ok(vec![*digest]);
        }
        let Some(recipe) = self.recipe(digest)? else { return Ok(vec![*digest]) };
        let mut parts: Vec<Digest> = recipe.parts.into_iter().map(|(part, _)| part).collect();
        parts.sort_unstable();
        parts.dedup();
        Ok(parts)
    }

    /// Opens a blob, whole or in pieces.
    pub fn read_blob(&self, blob: &Blob) -> Result<Pieces, StoreError> {
        Ok(pieces::open(&self.place_of_blob(&blob.digest))?)
    }

    /// The path by which a blob is opened: its object, or its recipe if it has one and no object.
    pub(super) fn place_of_blob(&self, digest: &Digest) -> PathBuf {
        let object = self.blob_path(digest);
        if std::fs::symlink_metadata(&object).is_ok() {
            return object;
        }
        let recipe = self.recipe_path(digest);
        if std::fs::symlink_metadata(&recipe).is_ok() { recipe } else { object }
    }

    fn recipe(&self, digest: &Digest) -> Result<Option<Recipe>, StoreError> {
        match Recipe::read(&self.recipe_path(digest)) {
            Ok(recipe) => Ok(Some(recipe)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(StoreError::Damaged { what: error.to_string() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The pieces to cut a file into, if it is one to be cut.
    pub(super) fn cuts(&self, file: &mut File) -> Result<Option<Vec<u64>>, StoreError> {
        let size = file.metadata()?.len();
        Ok(if size < self.thin_from { None } else { cuts(file, size) })
    }

    /// Puts the pieces of a file that was hashed, and their recipe last: until it is there, nothing stands on them.
    pub(super) fn place_pieces(
        &self,
        path: &Path,
        blob: &Blob,
        parts: Vec<(Digest, u64)>,
        marked: &Stamp,
    ) -> Result<(), StoreError> {
        let source = File::open(path)?;
        let mut fresh: BTreeMap<Digest, (PathBuf, PathBuf)> = BTreeMap::new();
        let placed = (|| {
            let mut at = 0;
            for (digest, size) in &parts {
                if !fresh.contains_key(digest) && !self.has_whole_object(&Blob { digest: *digest, size: *size })? {
                    let (unfinished, object) = (self.unfinished()?, self.blob_path(digest));
                    if let Some(directory) = object.parent() {
                        fs::create_lasting_directory(directory)?;
                    }
                    fresh.insert(*digest, (unfinished.clone(), object));
                    let mut file = fs::create(&unfinished)?;
                    fs::copy_range(&source, at, *size, &mut file)?;
                }
                at += size;
            }
            if Stamp::of(path)?.as_ref() != Some(marked) {
                return Err(written_to(path));
            }
            let mut marks = Vec::new();
            for (unfinished, _) in fresh.values() {
                marks.push(put::marked(unfinished)?);
                fs::sync(&File::open(unfinished)?)?;
                fs::protect(unfinished)?;
            }
            fs::rename_all(fresh.values().map(|(from, to)| (from.as_path(), to.as_path())))?;
            for ((_, object), mark) in fresh.values().zip(&marks) {
                self.learn(object, mark)?;
            }
            self.put_recipe(blob, &serde_json::to_vec(&Recipe { size: blob.size, parts })?)
        })();
        if placed.is_err() {
            fresh.values().for_each(|(unfinished, _)| fs::discard(unfinished));
        }
        placed
    }

    /// Puts the recipe of a blob whose pieces are there.
    pub(super) fn put_recipe(&self, blob: &Blob, bytes: &[u8]) -> Result<(), StoreError> {
        let recipe = self.recipe_path(&blob.digest);
        if std::fs::symlink_metadata(&recipe).is_ok() {
            let stamp = Stamp::of(&recipe)?;
            if fs_err::read(&recipe).is_ok_and(|there| there == bytes) {
                fs::sync_named(&recipe)?;
                self.trust(stamp.filter(Stamp::is_settled).map(|stamp| (recipe, stamp)));
                return Ok(());
            }
            self.quarantine(&recipe)?;
        }
        self.write_known(&recipe, bytes, true)
    }

    /// What is wrong with a blob that is kept in pieces, if anything. Files that `is_trusted` knows by their stamps are not
    /// read; `seen` is told of each file and its stamp, taken before it was read.
    pub(super) fn examine_pieces(
        &self,
        blob: &Blob,
        is_trusted: &(dyn Fn(&Path, &Stamp) -> bool + Sync),
        seen: &mut dyn FnMut(&Path, Stamp),
    ) -> Result<Option<Flaw>, StoreError> {
        use rayon::prelude::*;
        let path = self.recipe_path(&blob.digest);
        let Some(stamp) = Stamp::of(&path)? else { return Ok(Some(Flaw::Missing(path))) };
        let recipe = match self.recipe(&blob.digest) {
            Ok(Some(recipe)) if recipe.size == blob.size => recipe,
            Ok(Some(_)) | Err(StoreError::Damaged { .. }) => return Ok(Some(Flaw::Damaged(path))),
            Ok(None) => return Ok(Some(Flaw::Missing(path))),
            Err(error) => return Err(error),
        };
        let known = is_trusted(&path, &stamp);
        seen(&path, stamp);
        let mut unread: BTreeMap<Digest, PathBuf> = BTreeMap::new();
        for (digest, size) in &recipe.parts {
            let path = self.blob_path(digest);
            let Some(stamp) = Stamp::of(&path)? else { return Ok(Some(Flaw::Missing(path))) };
            if stamp.size != *size {
                return Ok(Some(Flaw::Damaged(path)));
            }
            if !is_trusted(&path, &stamp) {
                unread.insert(*digest, path.clone());
            }
            seen(&path, stamp);
        }
        if !known {
            // That these pieces in this order are the blob shows in its digest alone.
            let mut scan =
                Scan::new(Some(recipe.parts.iter().map(|(_, size)| *size).filter(|size| *size > 0).collect()));
            let read = fs::each_block(&mut pieces::open(&path)?, |block| {
                scan.update(block);
                Ok(())
            });
            if read.is_ok() && scan.finish().0 == *blob {
                return Ok(None);
            }
            unread = recipe.parts.iter().map(|(digest, _)| (*digest, self.blob_path(digest))).collect();
        }
        // A sector that cannot be read is as bad as one with other bytes.
        let is_damaged =
            |(digest, path): &(&Digest, &PathBuf)| hash_file(path).map_or(true, |read| read.digest != **digest);
        let unread: Vec<_> = unread.iter().collect();
        let damaged = unread.into_par_iter().find_first(is_damaged).map(|(_, path)| path.clone());
        Ok(match (damaged, known) {
            (Some(part), _) => Some(Flaw::Damaged(part)),
            (None, true) => None,
            (None, false) => Some(Flaw::Damaged(path)),
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
