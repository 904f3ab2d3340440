//! Answers to commands that found everything fresh: `fresh/ASKED`, a file each.
//!
//! Such an answer rests on files that were read (the pipeline, what it includes, sources, this program) and on artifacts
//! that were whole. As long as the stamps of all of them are what they were, the answer is what it was, and nothing is
//! parsed, hashed or asked of the index. The least difference makes an answer void; so does a file that is torn, or of
//! another version. All of them can be deleted at any time.
//!
//! ```text
//! magic  blake3 of what follows up to the body  length  facts and head  |  length of the body  blake3 of it  |  body
//! ```

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::health::{Stamps, files};
use super::{Store, StoreError};
use crate::digest::Digest;
use crate::fs::{self, Stamp, Watch};

const MAGIC: &[u8; 16] = b"sami fresh v0002";
/// Answers that are kept.
const MOST: usize = 64;
/// An answer that claims more is damaged.
const LONGEST: u64 = 1 << 30;

/// An answer that still holds.
#[derive(Debug)]
pub struct Fresh {
    /// What was remembered with it.
    pub head: Vec<u8>,
    file: fs_err::File,
    length: u64,
    digest: Digest,
}

impl Fresh {
    /// Copies the rest of the answer to `out`. Returns whether it was what it should be.
    pub fn copy_body(&mut self, out: &mut dyn Write) -> io::Result<bool> {
        let mut hasher = blake3::Hasher::new();
        let mut length = 0;
        let mut block = vec![0; 1 << 17];
        loop {
            let read = self.file.read(&mut block)?;
            if read == 0 {
                return Ok(length == self.length && Digest::from(hasher.finalize()) == self.digest);
            }
            hasher.update(&block[..read]);
            length += read as u64;
            out.write_all(&block[..read])?;
        }
    }
}

impl Store {
    /// The answer to what hashes to `asked`, if there is one and all that it rests on is as it was.
    pub fn recall(&self, asked: &Digest) -> Result<Option<Fresh>, StoreError> {
        let mut file = match fs_err::File::open(self.fresh_path(asked)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some((facts, length, digest)) = read_facts(&mut file) else {
            tracing::debug!("a remembered answer is damaged or of another version");
            return Ok(None);
        };
        let root = fs_err::File::open(&self.root)?;
        let head = holds(&facts, &root)?.map(<[u8]>::to_vec);
        Ok(head.map(|head| Fresh { head, file, length, digest }))
    }

    /// Remembers an answer: `head` and `body`, which rest on what is watched and on artifacts that were found whole. Those
    /// without a seal (they are too young) keep it from being remembered.
    pub fn remember(
        &self,
        asked: &Digest,
        watched: &[Watch],
        artifacts: &BTreeSet<Digest>,
        stamps: &Stamps,
        head: &[u8],
        body: &[u8],
    ) -> Result<(), StoreError> {
        let mut facts = Vec::new();
        facts.extend((watched.len() as u32).to_le_bytes());
        watched.iter().for_each(|watch| watch.write(&mut facts));
        let mut seals: Vec<u8> = Vec::new();
        for artifact in artifacts {
            let Some(seal) = stamps.seal(artifact).filter(|seal| files(seal).next().is_some()) else { return Ok(()) };
            seals.extend((seal.len() as u32).to_le_bytes());
            seals.extend(seal);
        }
        facts.extend((seals.len() as u64).to_le_bytes());
        facts.extend(seals);
        facts.extend(head);
        let mut bytes = Vec::with_capacity(facts.len() + body.len() + 128);
        bytes.extend(MAGIC);
        bytes.extend(Digest::of(&facts).as_bytes());
        bytes.extend((facts.len() as u64).to_le_bytes());
        bytes.extend(facts);
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(Digest::of(body).as_bytes());
        bytes.extend(body);
        self.write(&self.fresh_path(asked), &bytes)?;
        self.forget_oldest()
    }

    /// Removes all answers: something else than what they rest on has changed, such as the records.
    pub fn forget_answers(&self) -> Result<(), StoreError> {
        // Not the directory: a run that goes on may just be adding to it.
        fs::list(&self.root.join("fresh"))?.iter().try_for_each(|path| Ok(fs::remove_file(path)?))
    }

    fn forget_oldest(&self) -> Result<(), StoreError> {
        let all = fs::list(&self.root.join("fresh"))?;
        if all.len() <= MOST {
            return Ok(());
        }
        let age = |path: PathBuf| Some((fs_err::metadata(&path).and_then(|file| file.modified()).ok()?, path));
        let mut aged: Vec<_> = all.into_iter().filter_map(age).collect();
        aged.sort_unstable();
        let surplus = aged.len().saturating_sub(MOST);
        aged[..surplus].iter().try_for_each(|(_, path)| Ok(fs::remove_file(path)?))
    }

    fn fresh_path(&self, asked: &Digest) -> PathBuf {
        self.root.join("fresh").join(asked.to_string())
    }
}

/// The facts, checked, and length and digest of the body, which comes next; `None` if anything is not as it should be.
fn read_facts(file: &mut fs_err::File) -> Option<(Vec<u8>, u64, Digest)> {
    let mut front = [0; 16 + 32 + 8];
    file.read_exact(&mut front).ok()?;
    let (magic, rest) = front.split_first_chunk::<16>()?;
    let (digest, length) = rest.split_first_chunk::<32>()?;
    let length = u64::from_le_bytes(length.try_into().ok()?);
    if magic != MAGIC || length > LONGEST {
        return None;
    }
    let mut facts = vec![0; usize::try_from(length).ok()?];
    file.read_exact(&mut facts).ok()?;
    let mut front = [0; 8 + 32];
    file.read_exact(&mut front).ok()?;
    let (length, body) = front.split_first_chunk::<8>()?;
    let whole = Digest::of(&facts).as_bytes() == digest;
    whole.then(|| Some((facts, u64::from_le_bytes(*length), Digest::from_bytes(body.try_into().ok()?))))?
}

/// The head behind facts that all hold; `None` if one does not.
fn holds<'a>(mut facts: &'a [u8], root: &fs_err::File) -> Result<Option<&'a [u8]>, StoreError> {
    let Some((count, rest)) = facts.split_first_chunk::<4>() else { return Ok(None) };
    facts = rest;
    for _ in 0..u32::from_le_bytes(*count) {
        let Some(watch) = Watch::read(&mut facts) else { return Ok(None) };
        if !watch.holds()? {
            tracing::debug!("a remembered answer is void: {watch:?}");
            return Ok(None);
        }
    }
    let Some((length, rest)) = facts.split_first_chunk::<8>() else { return Ok(None) };
    let Some((seals, head)) =
        usize::try_from(u64::from_le_bytes(*length)).ok().and_then(|at| rest.split_at_checked(at))
    else {
        return Ok(None);
    };
    let mut rest = seals;
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let Some((seal, more)) = more.split_at_checked(u32::from_le_bytes(*length) as usize) else { return Ok(None) };
        rest = more;
        for file in files(seal) {
            if Stamp::within(root.file(), file.path)? != Some(file.stamp) {
                tracing::debug!("a remembered answer is void: `{}` changed", file.path);
                return Ok(None);
            }
        }
    }
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::record::tests::record;
    use super::*;
    use crate::fs::Aspect;

    #[test]
    fn an_answer_holds_until_anything_that_it_rests_on_changes() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("cache")).unwrap();
        let made: Vec<_> = ["one", "two"].map(|text| record(&store, text, text).unwrap().artifact).into();
        let read = directory.path().join("p.toml");
        fs_err::write(&read, "x").unwrap();
        let asked = Digest::of(b"asked");
        let remember = || {
            let mut stamps = Stamps::default();
            made.iter().for_each(|id| drop(store.health(id, &mut stamps).unwrap()));
            let watched: Vec<_> = Watch::of(&read, Aspect::Content).unwrap().into_iter().collect();
            let artifacts = made.iter().copied().collect();
            store.remember(&asked, &watched, &artifacts, &stamps, b"head", b"body").unwrap();
        };
        let recall = || {
            let mut fresh = store.recall(&asked).unwrap()?;
            let mut body = Vec::new();
            let whole = fresh.copy_body(&mut body).unwrap();
            Some((String::from_utf8(fresh.head).unwrap(), String::from_utf8(body).unwrap(), whole))
        };
        let anew = || {
            std::thread::sleep(Duration::from_millis(60));
            remember();
            assert_eq!(recall(), Some(("head".to_owned(), "body".to_owned(), true)));
        };
        anew();
        fs_err::write(&read, "y").unwrap();
        assert_eq!(recall(), None);
        for id in &made {
            anew();
            let file = store.files(id).unwrap()["rows.jsonl"].clone();
            fs_err::rename(&file, directory.path().join("aside")).unwrap();
            assert_eq!(recall(), None);
            fs_err::copy(directory.path().join("aside"), &file).unwrap();
            assert_eq!(recall(), None, "another file, until its bytes were looked at");
            anew();
            let manifest = store.manifest_path(id);
            let bytes = fs_err::read(&manifest).unwrap();
            fs_err::remove_file(&manifest).unwrap();
            assert_eq!(recall(), None);
            fs_err::write(&manifest, bytes).unwrap();
        }
        anew();
        let path = store.fresh_path(&asked);
        let whole = fs_err::read(&path).unwrap();
        for at in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            fs_err::write(&path, &torn).unwrap();
            assert!(recall().is_none_or(|(_, _, whole)| !whole), "byte {at}");
            fs_err::write(&path, &whole[..at]).unwrap();
            assert!(recall().is_none_or(|(_, _, whole)| !whole), "cut at {at}");
        }
        fs_err::write(&path, &whole).unwrap();
        assert!(recall().is_some());
        store.forget_answers().unwrap();
        assert_eq!(recall(), None);
    }

    #[test]
    fn the_oldest_answers_go() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        for number in 0..MOST + 3 {
            let asked = Digest::of(&number.to_le_bytes());
            store.remember(&asked, &[], &BTreeSet::new(), &Stamps::default(), b"", b"").unwrap();
        }
        assert_eq!(fs::list(&directory.path().join("fresh")).unwrap().len(), MOST);
    }
}
