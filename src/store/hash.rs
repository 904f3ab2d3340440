//! Digests of files, each byte read once.
//!
//! BLAKE3 is a tree over chunks of 1 KiB, so that threads can hash subtrees of a large file, each from a buffer that
//! stays in its core's cache. Files are read, not mapped: a sector that cannot be read is an error and no signal.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use fs_err::File;

use super::{Blob, StoreError};
use crate::digest::Digest;
use crate::fs;

/// Bytes of a buffer: half of the second-level cache of common cores.
const BUFFER: u64 = 256 << 10;
/// Bytes that a thread hashes on its own; a file up to this size is hashed by the thread that asks.
pub(super) const ALONE: u64 = 4 << 20;

/// Hashes a file without holding it; a large one on all threads.
pub(super) fn hash_file(path: &Path) -> Result<Blob, StoreError> {
    let file = fs::open(path)?;
    let size = file.metadata()?.len();
    if size <= ALONE {
        return hash_all(file, size);
    }
    match tree(&file, size) {
        Ok(digest) => Ok(Blob { digest, size }),
        // It was cut short meanwhile: what there is has a digest all the same.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => hash_all(File::open(path)?, size),
        Err(error) => Err(error.into()),
    }
}

/// Hashes to the end; `expected` bytes or about that.
pub(super) fn hash_all(mut reader: impl Read, expected: u64) -> Result<Blob, StoreError> {
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    fs::each_block_of((expected + 1).min(BUFFER) as usize, &mut reader, |block| {
        hasher.update(block);
        size += block.len() as u64;
        Ok(())
    })?;
    Ok(Blob { digest: hasher.finalize().into(), size })
}

fn tree(file: &File, size: u64) -> std::io::Result<Digest> {
    let left = left_subtree_len(size);
    let (a, b) = rayon::join(|| subtree(file, 0, left), || subtree(file, left, size - left));
    Ok(merge_subtrees_root(&a?, &b?, Mode::Hash).into())
}

fn subtree(file: &File, from: u64, size: u64) -> std::io::Result<ChainingValue> {
    if size > ALONE {
        let left = left_subtree_len(size);
        let (a, b) = rayon::join(|| subtree(file, from, left), || subtree(file, from + left, size - left));
        return Ok(merge_subtrees_non_root(&a?, &b?, Mode::Hash));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(from);
    let mut buffer = vec![0; BUFFER.min(size) as usize];
    let mut done = 0;
    while done < size {
        let block = (size - done).min(BUFFER) as usize;
        file.file().read_exact_at(&mut buffer[..block], from + done)?;
        hasher.update(&buffer[..block]);
        done += block as u64;
    }
    Ok(hasher.finalize_non_root())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_on_threads_is_the_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let bytes: Vec<u8> = (0..3 * ALONE + 12_345).map(|at| (at * at % 251) as u8).collect();
        for size in
            [0, 1, BUFFER, ALONE - 1, ALONE, ALONE + 1, ALONE + 1024, 2 * ALONE, 2 * ALONE + 1, 3 * ALONE + 12_345]
        {
            let bytes = &bytes[..size as usize];
            fs_err::write(&path, bytes).unwrap();
            assert_eq!(hash_file(&path).unwrap(), Blob { digest: Digest::of(bytes), size }, "{size}");
        }
    }
}
