//! Whether an artifact's files are still what they were, at the price of a stat each.
//!
//! Stamps of an artifact that was found whole form its seal: one stamp for its manifest, one per file. As long as all
//! stamps are the same, nothing is read. Where one differs, that file is hashed again.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::hash::{ALONE, hash_file};
use super::thin::Flaw;
use super::{Blob, Store, StoreError};
use crate::digest::Digest;
use crate::fs::Stamp;
use crate::pieces::Recipe;

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

    /// Takes in a seal from the index, unless more is known of the artifact.
    pub(super) fn load(&mut self, id: Digest, seal: Vec<u8>) {
        if !self.changed.contains(&id) {
            self.seals.entry(id).or_insert(seal);
        }
    }

    /// What differs from what was loaded; `None` for a seal that was broken.
    pub(super) fn changes(&self) -> impl Iterator<Item = (&Digest, Option<&[u8]>)> {
        let mut changed: Vec<_> = self.changed.iter().collect();
        changed.sort_unstable();
        changed.into_iter().map(|id| (id, self.seals.get(id).map(Vec::as_slice)))
    }

    /// The seal of an artifact that was found whole.
    pub(super) fn seal(&self, id: &Digest) -> Option<&[u8]> {
        self.seals.get(id).map(Vec::as_slice)
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
pub(super) struct Sealed<'a> {
    /// Path from the store's root, or absolute.
    pub(super) path: &'a str,
    pub(super) stamp: Stamp,
}

/// What every seal begins with; those of versions that sealed less do not.
const MARK: &[u8; 8] = b"sealed 2";
const NUMBERS: usize = 5 * 8;

fn push(seal: &mut Vec<u8>, file: &Sealed<'_>) {
    let stamp = &file.stamp;
    for number in [stamp.size, stamp.modified as u64, stamp.changed as u64, stamp.inode, stamp.device] {
        seal.extend(number.to_le_bytes());
    }
    seal.extend((file.path.len() as u16).to_le_bytes());
    seal.extend(file.path.as_bytes());
}

/// The files of a seal; what cannot be read, such as the seal of another version, ends it.
pub(super) fn files(seal: &[u8]) -> impl Iterator<Item = Sealed<'_>> {
    let mut seal = seal.strip_prefix(MARK).unwrap_or_default();
    std::iter::from_fn(move || {
        let (numbers, rest) = seal.split_at_checked(NUMBERS)?;
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = || numbers.next().unwrap_or(0);
        let (size, modified, changed) = (next(), next() as i64, next() as i64);
        let stamp = Stamp { size, modified, changed, inode: next(), device: next() };
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (path, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        seal = rest;
        Some(Sealed { path: std::str::from_utf8(path).ok()?, stamp })
    })
}

/// A look at an artifact's files: which are trusted without being read, and the seal that comes of it.
struct Look<'a> {
    store: &'a Store,
    /// Paths as a seal has them.
    trusted: HashSet<&'a str>,
    /// `None` once a file changed too short a while ago for its stamp to be gone by.
    seal: Option<Vec<u8>>,
}

impl Look<'_> {
    fn trusts(&self, path: &Path, stamp: &Stamp) -> bool {
        let short = path.strip_prefix(&self.store.root).unwrap_or(path);
        short.to_str().is_some_and(|short| self.trusted.contains(short)) || self.store.knows(path, stamp)
    }

    fn seal(&mut self, path: &Path, stamp: Stamp) {
        let short = path.strip_prefix(&self.store.root).unwrap_or(path).to_str();
        let lasts = stamp.is_settled() || self.store.knows(path, &stamp);
        match (self.seal.as_mut(), short) {
            (Some(seal), Some(path)) if lasts && u16::try_from(path.len()).is_ok() => {
                push(seal, &Sealed { path, stamp });
            }
            _ => self.seal = None,
        }
    }

    /// Reads all files but those that are trusted, once, on all threads.
    fn examine(&mut self, id: &Digest) -> Result<Health, StoreError> {
        let store = self.store;
        // Stamps are taken before the bytes are read: a change in between shows the next time.
        let path = store.manifest_path(id);
        let stamp = Stamp::of(&path)?;
        let manifest = match store.manifest(id) {
            Ok(manifest) => manifest,
            Err(StoreError::NoArtifact(_)) => return Ok(Health::Missing("the manifest".into())),
            Err(StoreError::Damaged { .. } | StoreError::BadName(_)) => {
                return Ok(Health::Damaged("the manifest".into()));
            }
            Err(error) => return Err(error),
        };
        match stamp {
            Some(stamp) => self.seal(&path, stamp),
            None => self.seal = None,
        }
        let external = store.external(id)?;
        let mut unread: Vec<(&String, &Blob, PathBuf)> = Vec::new();
        for (name, blob) in &manifest.files {
            let path = store.place_of(name, blob, external.as_ref());
            if Recipe::is_at(&path) {
                if let Some(flaw) = self.examine_pieces(name, blob)? {
                    return Ok(flaw);
                }
                continue;
            }
            let Some(stamp) = Stamp::of(&path)? else { return Ok(Health::Missing(name.clone())) };
            if stamp.size != blob.size {
                return Ok(Health::Damaged(name.clone()));
            }
            self.seal(&path, stamp);
            if !self.trusts(&path, &stamp) {
                unread.push((name, blob, path));
            }
        }
        let is_damaged = |(_, blob, path): &&(&String, &Blob, PathBuf)| match hash_file(path) {
            Ok(read) => read != **blob,
            // A sector that cannot be read is as bad as one with other bytes.
            Err(_) => true,
        };
        let much = unread.len() > 1 && unread.iter().map(|(_, blob, _)| blob.size).sum::<u64>() > ALONE;
        let damaged =
            if much { unread.par_iter().find_first(is_damaged) } else { unread.iter().find(|file| is_damaged(file)) };
        Ok(damaged.map_or(Health::Whole, |(name, ..)| Health::Damaged((*name).clone())))
    }

    /// What is wrong with a file that is kept in pieces, if anything.
    fn examine_pieces(&mut self, name: &str, blob: &Blob) -> Result<Option<Health>, StoreError> {
        let mut seen = Vec::new();
        let trusts = |path: &Path, stamp: &Stamp| self.trusts(path, stamp);
        let flaw = self.store.examine_pieces(blob, &trusts, &mut |path, stamp| seen.push((path.to_owned(), stamp)))?;
        for (path, stamp) in seen {
            self.seal(&path, stamp);
        }
        // As people see it: the file, and the piece by the beginning of its digest.
        let part = |path: &Path| {
            let hex: String =
                path.iter().rev().take(2).collect::<Vec<_>>().into_iter().rev().filter_map(OsStr::to_str).collect();
            if Recipe::is_at(path) { format!("{name}, its list of parts") } else { format!("{name}, part {hex:.12}") }
        };
        Ok(flaw.map(|flaw| match flaw {
            Flaw::Missing(path) => Health::Missing(part(&path)),
            Flaw::Damaged(path) => Health::Damaged(part(&path)),
        }))
    }
}

impl Store {
    /// Whether an artifact is whole. Files whose stamp has not changed since they were found whole are trusted.
    ///
    /// Errs only if the disk does; what is missing or damaged is in the answer.
    pub fn health(&self, id: &Digest, stamps: &mut Stamps) -> Result<Health, StoreError> {
        let seal = stamps.seals.get(id).map_or(&[][..], Vec::as_slice);
        let mut trusted = HashSet::new();
        let mut broken = false;
        for file in files(seal) {
            if Stamp::of(&self.root.join(file.path))? == Some(file.stamp) {
                trusted.insert(file.path);
            } else {
                broken = true;
            }
        }
        if !broken && !trusted.is_empty() {
            return Ok(Health::Whole);
        }
        let mut look = Look { store: self, trusted, seal: Some(MARK.to_vec()) };
        let health = look.examine(id)?;
        let seal = look.seal;
        stamps.set(id, seal.filter(|_| health == Health::Whole));
        Ok(health)
    }

    /// Whether an artifact's files are there, with the sizes that they should have. None is read, nor is one that lies outside looked at.
    pub fn is_there(&self, id: &Digest) -> bool {
        let Ok(manifest) = self.manifest(id) else { return false };
        manifest.files.values().all(|blob| self.has_object(blob)) || matches!(self.external(id), Ok(Some(_)))
    }

    /// The files of an artifact that its seal says are whole, from some bytes on, for [`Store::trust`]: another process need
    /// not read them again.
    pub fn sealed(&self, id: &Digest, stamps: &Stamps, from: u64) -> Vec<(PathBuf, Stamp)> {
        let seal = stamps.seals.get(id).map_or(&[][..], Vec::as_slice);
        let large = files(seal).filter(|file| file.stamp.size >= from);
        large.map(|file| (self.root.join(file.path), file.stamp)).collect()
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
        let stamp = Stamp { size: 1, modified: -2, changed: 3, inode: 4, device: 5 };
        let mut seal = Vec::new();
        push(&mut seal, &Sealed { path: "a", stamp });
        assert_eq!(files(&seal).count(), 0);
        let mut seal = MARK.to_vec();
        push(&mut seal, &Sealed { path: "a", stamp });
        assert_eq!(files(&seal).collect::<Vec<_>>(), [Sealed { path: "a", stamp }]);
    }
}
