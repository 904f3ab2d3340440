//! Whether an artifact's files are still what they were, at the price of a stat each.
//!
//! Stamps of an artifact that was found whole form its seal: one stamp for its manifest, one per file. As long as all
//! stamps are the same, nothing is read. Where one differs, that file is hashed again.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::cas::hash_file;
use super::{Store, StoreError};
use crate::digest::Digest;
use crate::fs::Stamp;

/// What has become of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Every byte is as it was.
    Whole,
    /// A file is not there; which.
    Missing(String),
    /// A file is not what it was; which.
    Damaged(String),
}

/// Seals by artifact, as the index keeps them between runs. Empty is fine: all is read again, once.
#[derive(Debug, Default)]
pub struct Stamps {
    seals: HashMap<Digest, Vec<u8>>,
    changed: HashSet<Digest>,
}

impl Stamps {
    /// As loaded from the index.
    pub(super) fn loaded(seals: HashMap<Digest, Vec<u8>>) -> Self {
        Self { seals, changed: HashSet::new() }
    }

    /// What differs from what was loaded; `None` for a seal that was broken.
    pub(super) fn changes(&self) -> impl Iterator<Item = (&Digest, Option<&[u8]>)> {
        let mut changed: Vec<_> = self.changed.iter().collect();
        changed.sort_unstable();
        changed.into_iter().map(|id| (id, self.seals.get(id).map(Vec::as_slice)))
    }

    fn set(&mut self, id: &Digest, seal: Option<Vec<u8>>) {
        let before = match seal {
            Some(seal) => {
                let same = self.seals.get(id) == Some(&seal);
                self.seals.insert(*id, seal);
                !same
            }
            None => self.seals.remove(id).is_some(),
        };
        if before {
            self.changed.insert(*id);
        }
    }
}

/// A file of a seal: where it is and what it was like.
#[derive(Debug, PartialEq)]
struct Sealed<'a> {
    /// Path from the store's root, or absolute.
    path: &'a str,
    stamp: Stamp,
}

const NUMBERS: usize = 4 * 8;

fn push(seal: &mut Vec<u8>, file: &Sealed<'_>) {
    let stamp = &file.stamp;
    for number in [stamp.size, stamp.modified as u64, stamp.changed as u64, stamp.inode] {
        seal.extend(number.to_le_bytes());
    }
    seal.extend((file.path.len() as u16).to_le_bytes());
    seal.extend(file.path.as_bytes());
}

/// The files of a seal; what cannot be read, such as the seal of another version, ends it.
fn files(mut seal: &[u8]) -> impl Iterator<Item = Sealed<'_>> {
    std::iter::from_fn(move || {
        let (numbers, rest) = seal.split_at_checked(NUMBERS)?;
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = || numbers.next().unwrap_or(0);
        let stamp = Stamp { size: next(), modified: next() as i64, changed: next() as i64, inode: next() };
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (path, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        seal = rest;
        Some(Sealed { path: std::str::from_utf8(path).ok()?, stamp })
    })
}

impl Store {
    /// Whether an artifact is whole. Files whose stamp has not changed since they were found whole are trusted.
    ///
    /// Errs only if the disk does; what is missing or damaged is in the answer.
    pub fn health(&self, id: &Digest, stamps: &mut Stamps) -> Result<Health, StoreError> {
        let seal = stamps.seals.get(id).map_or(&[][..], Vec::as_slice);
        let mut trusted: Vec<&str> = Vec::new();
        let mut broken = seal.is_empty();
        for file in files(seal) {
            if Stamp::of(&self.root.join(file.path))? == Some(file.stamp) {
                trusted.push(file.path);
            } else {
                broken = true;
            }
        }
        if !broken {
            return Ok(Health::Whole);
        }
        let mut seal = Some(Vec::new());
        let health = self.examine(id, &trusted, &mut seal)?;
        stamps.set(id, seal.filter(|_| health == Health::Whole));
        Ok(health)
    }

    /// Reads all files but those in `trusted`; makes the seal unless a file changed too short a while ago.
    fn examine(&self, id: &Digest, trusted: &[&str], seal: &mut Option<Vec<u8>>) -> Result<Health, StoreError> {
        // Stamps are taken before the bytes are read: a change in between shows the next time.
        let path = self.manifest_path(id);
        let stamp = Stamp::of(&path)?;
        let manifest = match self.manifest(id) {
            Ok(manifest) => manifest,
            Err(StoreError::NoArtifact(_)) => return Ok(Health::Missing("the manifest".into())),
            Err(StoreError::Damaged { .. } | StoreError::BadName(_)) => {
                return Ok(Health::Damaged("the manifest".into()));
            }
            Err(error) => return Err(error),
        };
        self.seal(seal, &path, stamp);
        let external = self.external(id)?;
        for (name, blob) in &manifest.files {
            let path = self.place_of(name, blob, external.as_ref());
            let Some(stamp) = Stamp::of(&path)? else { return Ok(Health::Missing(name.clone())) };
            let short = path.strip_prefix(&self.root).unwrap_or(&path);
            let is_trusted = short.to_str().is_some_and(|short| trusted.contains(&short));
            if stamp.size != blob.size || !is_trusted && hash_file(&path)? != *blob {
                return Ok(Health::Damaged(name.clone()));
            }
            self.seal(seal, &path, Some(stamp));
        }
        Ok(Health::Whole)
    }

    fn seal(&self, seal: &mut Option<Vec<u8>>, path: &Path, stamp: Option<Stamp>) {
        let short = path.strip_prefix(&self.root).unwrap_or(path).to_str();
        match (seal.as_mut(), stamp, short) {
            (Some(seal), Some(stamp), Some(path)) if stamp.is_settled() && u16::try_from(path.len()).is_ok() => {
                push(seal, &Sealed { path, stamp });
            }
            _ => *seal = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::External;
    use super::super::record::tests::record;
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn every_change_to_a_sealed_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let id = record(&store, "a", "text").unwrap().artifact;
        let path = store.files(&id).unwrap()["rows.jsonl"].clone();
        let mut stamps = Stamps::default();
        // Too young to be sealed.
        assert_eq!(store.health(&id, &mut stamps).unwrap(), Health::Whole);
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(store.health(&id, &mut stamps).unwrap(), Health::Whole);
        assert_eq!(stamps.changes().count(), 1);
        assert_eq!(files(&stamps.seals[&id]).count(), 2);

        // Bit rot with size and modification time as before.
        let before = Stamp::of(&path).unwrap().unwrap();
        fs_err::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let mut file = fs_err::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(b"texT").unwrap();
        file.file().set_modified(UNIX_EPOCH + Duration::from_nanos(before.modified as u64)).unwrap();
        assert_eq!(store.health(&id, &mut stamps).unwrap(), Health::Damaged("rows.jsonl".into()));
        fs_err::remove_file(&path).unwrap();
        assert_eq!(store.health(&id, &mut stamps).unwrap(), Health::Missing("rows.jsonl".into()));
        store.put_bytes(b"text").unwrap();
        assert_eq!(store.health(&id, &mut stamps).unwrap(), Health::Whole);
        fs_err::remove_file(store.manifest_path(&id)).unwrap();
        assert_eq!(store.health(&id, &mut stamps).unwrap(), Health::Missing("the manifest".into()));
    }

    #[test]
    fn files_left_outside_are_watched_too() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("cache")).unwrap();
        let model = directory.path().join("model");
        fs_err::create_dir(&model).unwrap();
        fs_err::write(model.join("config.json"), "{}").unwrap();
        let blob = hash_file(&model.join("config.json")).unwrap();
        let id = store
            .put_external("model", &External::in_directory(&model).unwrap(), &[("config.json".to_owned(), blob)].into())
            .unwrap();
        let mut stamps = Stamps::default();
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(store.health(&id, &mut stamps).unwrap(), Health::Whole);
        assert_eq!(store.files(&id).unwrap()["config.json"], model.join("config.json"));
        fs_err::write(model.join("config.json"), "[]").unwrap();
        assert_eq!(store.health(&id, &mut stamps).unwrap(), Health::Damaged("config.json".into()));
    }

    #[test]
    fn a_seal_of_another_version_is_no_seal() {
        assert_eq!(files(&[1, 2, 3]).count(), 0);
        let mut seal = Vec::new();
        let stamp = Stamp { size: 1, modified: -2, changed: 3, inode: 4 };
        push(&mut seal, &Sealed { path: "a", stamp });
        assert_eq!(files(&seal).collect::<Vec<_>>(), [Sealed { path: "a", stamp }]);
    }
}
