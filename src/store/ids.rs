//! Many digests, in order: listed from the store's directories, found by place, resolved by prefix.

use std::cmp::Ordering;
use std::path::Path;

use rayon::prelude::*;

use super::{Store, StoreError, name};
use crate::digest::Digest;
use crate::fs;

/// From where a digest should be to where it is.
const STEPS: usize = 16;

/// Digests in order, each known by its place among them. A look-up costs a few comparisons: digests are spread evenly.
#[derive(Debug, Default)]
pub(super) struct Ids {
    ids: Vec<Digest>,
    /// Where each of the 65,536 beginnings of two bytes begins.
    starts: Vec<u32>,
}

impl Ids {
    /// Of digests in order, each once.
    pub(super) fn new(ids: Vec<Digest>) -> Self {
        debug_assert!(ids.windows(2).all(|two| two[0] < two[1]));
        let mut starts = Vec::with_capacity((1 << 16) + 1);
        for (place, id) in ids.iter().enumerate() {
            if starts.len() <= beginning(id) {
                starts.resize(beginning(id) + 1, place as u32);
            }
        }
        starts.resize((1 << 16) + 1, ids.len() as u32);
        Self { ids, starts }
    }

    /// The place of a digest.
    pub(super) fn find(&self, id: &Digest) -> Option<usize> {
        let start = *self.starts.get(beginning(id))? as usize;
        let end = self.starts[beginning(id) + 1] as usize;
        let some = &self.ids[start..end];
        // Where it would be if those of a beginning, too, were spread evenly, and then from one to the next: memory that is far
        // apart is what a look-up waits for.
        let bytes = id.as_bytes();
        let mut at = (usize::from(u16::from_be_bytes([bytes[2], bytes[3]])) * some.len()) >> 16;
        for _ in 0..STEPS {
            match some.get(at)?.cmp(id) {
                Ordering::Equal => return Some(start + at),
                Ordering::Less if some.get(at + 1).is_none_or(|next| next > id) => return None,
                Ordering::Less => at += 1,
                Ordering::Greater => at = at.checked_sub(1).filter(|before| some[*before] >= *id)?,
            }
        }
        some.binary_search(id).ok().map(|place| start + place)
    }

    /// All of them, in order.
    pub(super) fn all(&self) -> &[Digest] {
        &self.ids
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }
}

impl std::ops::Index<usize> for Ids {
    type Output = Digest;
    fn index(&self, place: usize) -> &Digest {
        &self.ids[place]
    }
}

fn beginning(id: &Digest) -> usize {
    let bytes = id.as_bytes();
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

impl Store {
    /// The ids in `FOLDER/ab/cdef…SUFFIX`, in order; files of other names are passed over.
    pub(super) fn sharded_ids(&self, folder: &str, suffix: &str) -> Result<Vec<Digest>, StoreError> {
        Ok(self.each_shard(folder, |shard| shard_ids(shard, suffix))?.concat())
    }

    /// Does something with each directory `FOLDER/ab`, several at once, and returns what came of it in order.
    pub(super) fn each_shard<T: Send>(
        &self,
        folder: &str,
        work: impl Fn(&Path) -> Result<T, StoreError> + Sync,
    ) -> Result<Vec<T>, StoreError> {
        let shards: Vec<_> = fs::list(&self.root.join(folder))?.into_iter().filter(|path| is_shard(path)).collect();
        shards.par_iter().map(|shard| work(shard)).collect()
    }

    /// The ids in `FOLDER/ab/cdef…SUFFIX` that begin with these hex digits, two at least: those of one shard are listed.
    pub(super) fn ids_beginning(&self, folder: &str, suffix: &str, prefix: &str) -> Result<Vec<Digest>, StoreError> {
        let Some(shard) = prefix.get(..2) else { return Ok(Vec::new()) };
        let mut ids = shard_ids(&self.root.join(folder).join(shard), suffix)?;
        ids.retain(|id| id.to_string().starts_with(prefix));
        Ok(ids)
    }
}

fn is_shard(path: &Path) -> bool {
    let name = name(path);
    name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) && path.is_dir()
}

/// The ids in a directory `ab`, in order; files of other names are passed over. None if it is not there.
pub(super) fn shard_ids(shard: &Path, suffix: &str) -> Result<Vec<Digest>, StoreError> {
    let mut ids = Vec::new();
    each_name(shard, |name| {
        ids.extend(name.strip_suffix(suffix).and_then(|rest| id_in(shard, rest)));
    })?;
    ids.sort_unstable();
    Ok(ids)
}

/// The digest of which a shard's name is the beginning and `rest` the rest.
pub(super) fn id_in(shard: &Path, rest: &str) -> Option<Digest> {
    let mut hex = [0; 64];
    let prefix = shard.file_name()?.as_encoded_bytes();
    if rest.len() != 62 || prefix.len() != 2 {
        return None;
    }
    hex[..2].copy_from_slice(prefix);
    hex[2..].copy_from_slice(rest.as_bytes());
    std::str::from_utf8(&hex).ok()?.parse().ok()
}

/// Hands on the names in a directory, in no order; none if it is not there.
pub(super) fn each_name(directory: &Path, mut see: impl FnMut(&str)) -> Result<(), StoreError> {
    let entries = match fs_err::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    for entry in entries {
        if let Some(name) = entry?.file_name().to_str() {
            see(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_found_by_place_and_by_prefix() {
        for count in [0, 1, 2, 3000] {
            let mut ids: Vec<Digest> = (0..count).map(|n: u32| Digest::of(&n.to_le_bytes())).collect();
            // Two that share their beginning, the first and the last there can be.
            ids.extend([Digest::from_bytes([0; 32]), Digest::from_bytes([255; 32])]);
            let mut near = [0; 32];
            near[31] = 1;
            ids.push(Digest::from_bytes(near));
            ids.sort_unstable();
            let known = Ids::new(ids.clone());
            for (place, id) in ids.iter().enumerate() {
                assert_eq!(known.find(id), Some(place));
            }
            assert_eq!(known.find(&Digest::of(b"not there")), None);
        }
        assert_eq!(Ids::default().find(&Digest::of(b"x")), None);
        assert_eq!(Ids::new(Vec::new()).find(&Digest::of(b"x")), None);

        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let blob = store.put_bytes(b"x").unwrap();
        fs_err::write(store.blob_path(&blob.digest).with_file_name("else"), "").unwrap();
        fs_err::create_dir(directory.path().join("objects/.tmp")).unwrap();
        let hex = blob.digest.to_string();
        assert_eq!(store.sharded_ids("objects", "").unwrap(), [blob.digest]);
        assert_eq!(store.ids_beginning("objects", "", &hex[..5]).unwrap(), [blob.digest]);
        assert_eq!(store.ids_beginning("objects", "", &hex).unwrap(), [blob.digest]);
        assert_eq!(store.ids_beginning("objects", "", "zz").unwrap(), []);
    }
}
