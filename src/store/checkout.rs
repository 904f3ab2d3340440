//! Getting files out of the store: as clones, hard or symbolic links, or copies.
//!
//! All files are made under a hidden directory first and renamed when all are there: a checkout that is killed leaves no
//! half file under a name that is asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err::File;
use serde::Serialize;

use super::{Store, StoreError, name};
use crate::digest::Digest;
use crate::fs;
use crate::pieces::{self, Recipe};

/// How the hidden directory's name begins; the number of the process that made it follows.
const STAGING: &str = ".sami-checkout-";

/// How a file gets out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// A clone where the file system can, else a copy.
    Auto,
    /// A clone that shares blocks until either is written to.
    Reflink,
    /// A second name of the object itself.
    Hard,
    /// A symbolic link to the object.
    Symlink,
    /// A copy.
    Copy,
}

impl Store {
    /// Whether a directory has nothing in it but what checkouts that were killed left, or is not there.
    pub fn is_free(directory: &Path) -> Result<bool, StoreError> {
        if directory.is_file() {
            return Ok(false);
        }
        Ok(fs::list(directory)?.iter().all(|path| name(path).starts_with(STAGING)))
    }

    /// Puts an artifact's files into a directory, which is made if it is not there, and says how each got there. Files
    /// there of the same names are replaced. The bytes are not looked at: ask [`Store::health`] before.
    ///
    /// A file that is kept in pieces is copied, whatever is asked for. Errs with [`StoreError::NoLink`] where the file
    /// system cannot do what is asked for; then nothing is there that was not before.
    pub fn checkout(&self, id: &Digest, directory: &Path, link: Link) -> Result<BTreeMap<String, Link>, StoreError> {
        let existed = directory.exists();
        fs::create_directory(directory)?;
        sweep(directory)?;
        let staging = directory.join(format!("{STAGING}{}", std::process::id()));
        let made = self.make(id, &staging, link).and_then(|made| {
            let places = made.iter().map(|(name, (from, _))| (from.clone(), directory.join(name)));
            let places: Vec<(PathBuf, PathBuf)> = places.collect();
            for (_, to) in &places {
                if let Some(parent) = to.parent() {
                    fs::create_directory(parent)?;
                }
            }
            fs::rename_all(places.iter().map(|(from, to)| (from.as_path(), to.as_path())))?;
            fs::remove_directory(&staging)?;
            Ok(made.into_iter().map(|(name, (_, link))| (name, link)).collect())
        });
        if made.is_err() {
            // That something cannot be removed is no news then.
            let _ = fs_err::remove_dir_all(&staging);
            let names = self.manifest(id).map(|manifest| manifest.files).unwrap_or_default();
            for parent in names.keys().flat_map(|name| Path::new(name).ancestors().skip(1)).filter(|path| *path != "") {
                let _ = fs_err::remove_dir(directory.join(parent));
            }
            let _ = if existed { Ok(()) } else { fs_err::remove_dir(directory) };
        }
        made
    }

    /// Makes all files under `staging`: where each is, and how it got there.
    fn make(&self, id: &Digest, staging: &Path, link: Link) -> Result<BTreeMap<String, (PathBuf, Link)>, StoreError> {
        fs::create_directory(staging)?;
        let (mut made, mut link) = (BTreeMap::new(), link);
        for (number, (name, from)) in self.files(id)?.into_iter().enumerate() {
            let to = staging.join(number.to_string());
            let how = if Recipe::is_at(&from) { Link::Copy } else { link };
            let how = get(&from, &to, how)?.ok_or_else(|| StoreError::NoLink { link, file: from.clone() })?;
            // Where one file cannot be cloned the next one cannot either.
            if link == Link::Auto && how == Link::Copy && !Recipe::is_at(&from) {
                link = Link::Copy;
            }
            made.insert(name, (to, how));
        }
        Ok(made)
    }
}

/// Removes what checkouts left whose processes are gone.
fn sweep(directory: &Path) -> Result<(), StoreError> {
    for path in fs::list(directory)? {
        let left = name(&path);
        let Some(process) = left.strip_prefix(STAGING) else { continue };
        if process == std::process::id().to_string() || !Path::new("/proc").join(process).exists() {
            fs::remove_directory(&path)?;
        }
    }
    Ok(())
}

/// Makes `to` hold what `from` does. `None` where the file system cannot do that.
fn get(from: &Path, to: &Path, link: Link) -> Result<Option<Link>, StoreError> {
    let done = match link {
        Link::Reflink | Link::Auto => fs::reflink(&File::open(from)?, to)?.then_some(Link::Reflink),
        Link::Hard => fs::hard_link(from, to)?.then_some(Link::Hard),
        Link::Symlink => {
            fs::symlink(&std::path::absolute(from)?, to)?;
            Some(Link::Symlink)
        }
        Link::Copy => {
            copy(from, to)?;
            Some(Link::Copy)
        }
    };
    if done.is_none() && link == Link::Auto {
        copy(from, to)?;
        return Ok(Some(Link::Copy));
    }
    Ok(done)
}

/// Copies a file, whole or in pieces, within the kernel.
pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let mut file = fs::create(to)?;
    for (piece, size) in pieces::open(from)?.files() {
        fs::copy_range(&File::open(piece)?, 0, size, &mut file)?;
    }
    Ok(fs::sync(&file)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::thin;
    use std::os::unix::fs::MetadataExt;

    /// A store with an artifact of two files, the second in pieces.
    fn store(directory: &Path) -> (Store, Digest, Vec<u8>) {
        let mut store = Store::open(&directory.join("cache")).unwrap();
        store.thin_from = 100;
        let weights = thin::tests::tensors(&[("a", &vec![1; 70_000]), ("b", &vec![2; 70_000])]);
        let files = [("config.json", b"{}".as_slice()), ("deep/model.safetensors", &weights)].map(|(name, bytes)| {
            let staged = store.unfinished().unwrap();
            fs_err::write(&staged, bytes).unwrap();
            (name.to_owned(), staged)
        });
        let id = store.put_artifact("model", &files.into()).unwrap();
        (store, id, weights)
    }

    #[test]
    fn files_get_out_each_way() {
        let directory = tempfile::tempdir().unwrap();
        let (store, id, weights) = store(directory.path());
        let object = store.files(&id).unwrap()["config.json"].clone();
        for link in [Link::Auto, Link::Copy, Link::Hard, Link::Symlink, Link::Reflink] {
            let out = directory.path().join(format!("{link:?}"));
            let how = match store.checkout(&id, &out, link) {
                Ok(how) => how,
                // This file system may have no clones; then nothing is there.
                Err(StoreError::NoLink { link: Link::Reflink, .. }) if link == Link::Reflink => {
                    assert!(!out.exists());
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            assert_eq!(how["deep/model.safetensors"], Link::Copy);
            assert!([how["config.json"], Link::Auto].contains(&link));
            assert_eq!(fs_err::read(out.join("config.json")).unwrap(), b"{}");
            assert_eq!(fs_err::read(out.join("deep/model.safetensors")).unwrap(), weights);
            assert_eq!(fs::walk(&out).unwrap().len(), 2, "nothing else is left");
            let inode = |path: &Path| fs_err::metadata(path).unwrap().ino();
            let same = [Link::Hard, Link::Symlink].contains(&link);
            assert_eq!(inode(&out.join("config.json")) == inode(&object), same);
            assert_eq!(fs_err::symlink_metadata(out.join("config.json")).unwrap().is_symlink(), link == Link::Symlink);
            // Again, over what is there; what else is there stays.
            fs_err::write(out.join("mine"), "mine").unwrap();
            store.checkout(&id, &out, Link::Copy).unwrap();
            assert_eq!(fs_err::read(&object).unwrap(), b"{}");
            assert_eq!(fs::walk(&out).unwrap().len(), 3);
        }
    }

    #[test]
    fn a_checkout_that_fails_leaves_no_half_file() {
        for n in 1.. {
            let directory = tempfile::tempdir().unwrap();
            let (store, id, weights) = store(directory.path());
            let out = directory.path().join("out");
            let (result, reached) = fs::with_fault(n, || store.checkout(&id, &out, Link::Auto));
            assert_eq!(result.is_err(), reached, "operation {n}");
            for path in fs::walk(&out).unwrap() {
                let whole = if path.ends_with("config.json") { b"{}".as_slice() } else { &weights };
                assert_eq!(fs_err::read(&path).unwrap(), whole, "operation {n}");
            }
            if !reached {
                assert!(n > 10);
                break;
            }
            // What one that was killed left is no hindrance.
            fs::create_directory(&out.join(format!("{STAGING}4194999/x"))).unwrap();
            assert_eq!(Store::is_free(&out).unwrap(), fs::walk(&out).unwrap().is_empty());
            store.checkout(&id, &out, Link::Auto).unwrap();
            assert_eq!(fs::walk(&out).unwrap().len(), 2);
        }
    }
}
