//! Reading an archive that anyone may have made.
//!
//! Nothing in it decides where something is written: an entry has one of the names that [`super::Name`] knows, or the archive is
//! refused, whole. Links, directories, devices, extended headers and long names are refused with it. Objects wait in `tmp/`
//! under names of our own until every entry has been read: each object has the digest that it is named by, each manifest
//! and record is what its name says and needs nothing that is neither in the archive nor here, and there is as much as
//! the head announced. Only then do they get their places, objects first and runs last.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ArchiveError, FORMAT, Head, Name, Packing};
use crate::digest::Digest;
use crate::fs;
use crate::store::{Blob, Manifest, NodeRecord, RunRecord, Store, StoreError};

/// Manifests, records and runs are held in memory until all is read; so much of them at most,
const MOST_HELD: u64 = 1 << 30;
/// and each of them so large.
const MOST_EACH: u64 = 256 << 20;
/// What may follow the end of an archive: its writer filled the last block with zeros.
const MOST_PADDING: u64 = 1 << 20;

/// What came out of an archive.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Imported {
    /// Objects that were not here.
    pub objects: u64,
    /// Artifacts that were not here.
    pub artifacts: u64,
    /// Node records that were not here.
    pub nodes: u64,
    /// Runs that were not here.
    pub runs: u64,
    /// Bytes of the objects that were not here.
    pub bytes: u64,
    /// Keys whose record here names another artifact, which stays, by node name.
    pub others: BTreeMap<String, Digest>,
    /// The records that stand here now, for the index.
    #[serde(skip)]
    pub records: Vec<NodeRecord>,
    /// The runs that came, for the index.
    #[serde(skip)]
    pub run_records: Vec<RunRecord>,
}

/// Takes what is in an archive into the store; with `dry_run` only reads it. `tell` is told of bytes: done, and all.
pub fn import(
    store: &Store,
    file: &Path,
    dry_run: bool,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<Imported, ArchiveError> {
    let mut source = BufReader::with_capacity(1 << 20, fs::open(file)?);
    let packing = Packing::of_bytes(source.fill_buf()?);
    let reader = packing.reader(source)?;
    let mut reading = Reading { store, file, dry_run, staged: Staged::default(), held: Held::default(), size: 0 };
    let head = reading.read(reader, tell)?;
    reading.check(&head)?;
    reading.take()
}

/// Objects that wait in `tmp/`; removed if they still do when this is dropped.
#[derive(Default)]
struct Staged(BTreeMap<Digest, (Blob, PathBuf)>);

impl Drop for Staged {
    fn drop(&mut self) {
        for (_, path) in self.0.values() {
            fs::discard(path);
        }
    }
}

/// What is held in memory.
#[derive(Default)]
struct Held {
    /// Objects of the archive with their sizes, those that are here already, too.
    objects: BTreeMap<Digest, u64>,
    artifacts: BTreeMap<Digest, Manifest>,
    nodes: BTreeMap<Digest, (NodeRecord, Vec<u8>)>,
    runs: BTreeMap<String, (RunRecord, Vec<u8>)>,
    bytes: u64,
}

struct Reading<'a> {
    store: &'a Store,
    file: &'a Path,
    dry_run: bool,
    staged: Staged,
    held: Held,
    /// Bytes of entries until now.
    size: u64,
}

fn refused(entry: impl ToString, what: impl Into<String>) -> ArchiveError {
    // Names may hold anything, and are shown.
    let shown: String = entry.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).take(120).collect();
    ArchiveError::Refused { entry: shown, what: what.into() }
}

/// What an error while reading means: the file ends, or its packing is damaged.
fn broken(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated { what: "in the middle of a file".to_owned() },
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ArchiveError::Io(error),
        _ if error.raw_os_error().is_some() => ArchiveError::Io(error),
        _ => refused("the file", format!("is damaged: {error}")),
    }
}

impl Reading<'_> {
    fn read(&mut self, reader: Box<dyn Read + '_>, tell: &mut dyn FnMut(u64, u64)) -> Result<Head, ArchiveError> {
        let mut archive = tar::Archive::new(reader);
        let mut head: Option<Head> = None;
        // Raw: no entry changes what another one means.
        for entry in archive.entries().map_err(broken)?.raw(true) {
            let mut entry = entry
                .map_err(|error| if head.is_none() { self.not_ours(&error.to_string()) } else { broken(error) })?;
            let bytes = entry.path_bytes().into_owned();
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            let name = self.name(&entry, &bytes, &shown, head.is_some())?;
            let size = entry.header().entry_size().map_err(|error| refused(&shown, error.to_string()))?;
            let Some(head) = &head else {
                head = Some(self.head(&mut entry, size)?);
                continue;
            };
            self.size = self.size.saturating_add(size);
            if self.size > head.bytes {
                return Err(refused(&shown, "is more than the archive's head announces"));
            }
            match name {
                Name::Head => return Err(refused(&shown, "is there twice")),
                Name::Object(digest) => self.object(&mut entry, &shown, digest, size)?,
                name => self.small(&mut entry, &shown, name, size)?,
            }
            tell(self.size, head.bytes);
        }
        let mut reader = archive.into_inner();
        let mut padding = Vec::new();
        reader.by_ref().take(MOST_PADDING + 1).read_to_end(&mut padding).map_err(broken)?;
        if padding.len() as u64 > MOST_PADDING || padding.iter().any(|byte| *byte != 0) {
            return Err(refused("the file", "goes on after its end"));
        }
        head.ok_or_else(|| self.not_ours("it is empty"))
    }

    fn not_ours(&self, what: &str) -> ArchiveError {
        ArchiveError::NotOurs { file: self.file.to_owned(), what: what.to_owned() }
    }

    /// What an entry is, if it may be in an archive at all.
    fn name<R: Read>(
        &self,
        entry: &tar::Entry<'_, R>,
        bytes: &[u8],
        shown: &str,
        begun: bool,
    ) -> Result<Name, ArchiveError> {
        let kind = entry.header().entry_type();
        let name = Name::parse(bytes);
        if !begun && (name != Some(Name::Head) || kind != tar::EntryType::Regular) {
            return Err(self.not_ours(&format!("it does not begin with `{}`", super::HEAD)));
        }
        if kind != tar::EntryType::Regular {
            let what = match kind {
                tar::EntryType::Symlink | tar::EntryType::Link => "is a link",
                tar::EntryType::Directory => "is a directory",
                tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => "is a device",
                _ => "is no plain file",
            };
            return Err(refused(shown, what));
        }
        name.ok_or_else(|| {
            let leads_out = shown.starts_with('/') || shown.split('/').any(|part| part == "..");
            refused(shown, if leads_out { "leads out of the cache" } else { "is no name of something in a cache" })
        })
    }

    fn head<R: Read>(&self, entry: &mut R, size: u64) -> Result<Head, ArchiveError> {
        let bytes = exactly(entry, size.min(1 << 16))?;
        let head: Head = serde_json::from_slice(&bytes).map_err(|error| {
            let found: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
            match found.and_then(|found| found.get("format")?.as_u64()) {
                Some(format) if format > FORMAT => self.not_ours(&format!("it has format version {format}")),
                _ => self.not_ours(&format!("its head cannot be read: {error}")),
            }
        })?;
        if head.format > FORMAT {
            return Err(self.not_ours(&format!("it has format version {}, this program knows {FORMAT}", head.format)));
        }
        match fs::free(self.store.root()) {
            Some(free) if !self.dry_run && free < head.bytes => Err(ArchiveError::NoRoom { needed: head.bytes, free }),
            _ => Ok(head),
        }
    }

    fn object<R: Read>(&mut self, entry: &mut R, shown: &str, digest: Digest, size: u64) -> Result<(), ArchiveError> {
        if self.held.objects.insert(digest, size).is_some() {
            return Err(refused(shown, "is there twice"));
        }
        let blob = Blob { digest, size };
        let mut hasher = blake3::Hasher::new();
        let mut came = 0;
        let mut see = |block: &[u8]| {
            hasher.update(block);
            came += block.len() as u64;
        };
        let mut entry = entry.take(size);
        if self.dry_run || self.store.keeps_object(&blob)? && self.store.has_whole(&blob)? {
            let read = fs::each_block(&mut entry, |block| {
                see(block);
                Ok(())
            });
            read.map_err(broken)?;
        } else {
            fs::create_directory(&self.store.root().join("tmp"))?;
            let path = fs::unfinished(&self.store.root().join("tmp"));
            self.staged.0.insert(digest, (blob, path.clone()));
            fs::copy_to(&mut entry, &path, see).map_err(broken)?;
        }
        if came != size {
            return Err(ArchiveError::Truncated { what: format!("`{shown}` has {came} of {size} bytes") });
        }
        if Digest::from(hasher.finalize()) != digest {
            return Err(refused(shown, "does not have the bytes that its name says"));
        }
        Ok(())
    }

    fn small<R: Read>(&mut self, entry: &mut R, shown: &str, name: Name, size: u64) -> Result<(), ArchiveError> {
        self.held.bytes = self.held.bytes.saturating_add(size);
        if size > MOST_EACH || self.held.bytes > MOST_HELD {
            return Err(refused(shown, "is too large"));
        }
        let bytes = exactly(entry, size)?;
        let wrong = |error: StoreError| refused(shown, format!("is not what its name says: {error}"));
        let known = match name {
            Name::Artifact(id) => {
                let manifest = Store::arrived_manifest(&id, &bytes).map_err(wrong)?;
                self.held.artifacts.insert(id, manifest).is_some()
            }
            Name::Node(key) => {
                let record = Store::arrived_node(&key, &bytes).map_err(wrong)?;
                self.held.nodes.insert(key, (record, bytes)).is_some()
            }
            Name::Run(run) => match serde_json::from_slice::<RunRecord>(&bytes) {
                Ok(record) if record.run == run => self.held.runs.insert(run, (record, bytes)).is_some(),
                _ => return Err(refused(shown, "is no record of that run")),
            },
            Name::Head | Name::Object(_) => true,
        };
        if known { Err(refused(shown, "is there twice")) } else { Ok(()) }
    }

    /// Whether all is there that was announced and that something needs.
    fn check(&self, head: &Head) -> Result<(), ArchiveError> {
        let held = &self.held;
        let count = |len: usize| len as u64;
        let found = Head {
            format: head.format,
            objects: count(held.objects.len()),
            artifacts: count(held.artifacts.len()),
            nodes: count(held.nodes.len()),
            runs: count(held.runs.len()),
            bytes: self.size,
        };
        if found != *head {
            let what = format!(
                "it has {} objects, {} artifacts, {} node records, {} runs and {} bytes, and announces {}, {}, {}, {} and {}",
                found.objects,
                found.artifacts,
                found.nodes,
                found.runs,
                found.bytes,
                head.objects,
                head.artifacts,
                head.nodes,
                head.runs,
                head.bytes
            );
            return Err(ArchiveError::Truncated { what });
        }
        let mut used: BTreeSet<Digest> = BTreeSet::new();
        for (id, manifest) in &held.artifacts {
            for (name, blob) in &manifest.files {
                used.insert(blob.digest);
                let there = match held.objects.get(&blob.digest) {
                    Some(size) => *size == blob.size,
                    None if self.dry_run => self.store.has_object(blob) && self.store.has_whole(blob)?,
                    None => self.store.keeps_object(blob)? && self.store.has_whole(blob)?,
                };
                if !there {
                    let what = format!("needs `{name}`, which is neither in the archive nor here, or has another size");
                    return Err(refused(Name::Artifact(*id).text(), what));
                }
            }
        }
        for (key, (record, _)) in &held.nodes {
            if !held.artifacts.contains_key(&record.artifact) && self.store.manifest(&record.artifact).is_err() {
                let what =
                    format!("needs artifact {}, which is neither in the archive nor here", record.artifact.short());
                return Err(refused(Name::Node(*key).text(), what));
            }
        }
        match held.objects.keys().find(|digest| !used.contains(digest)) {
            Some(digest) => Err(refused(Name::Object(*digest).text(), "belongs to nothing in the archive")),
            None => Ok(()),
        }
    }

    /// Gives everything its place.
    fn take(mut self) -> Result<Imported, ArchiveError> {
        let mut imported = Imported::default();
        if self.dry_run {
            return Ok(imported);
        }
        while let Some((_, (blob, path))) = self.staged.0.pop_first() {
            let taken = self.store.take_object(&path, &blob);
            if taken.is_err() {
                fs::discard(&path);
            }
            taken?;
            imported.objects += 1;
            imported.bytes += blob.size;
        }
        for (id, manifest) in &self.held.artifacts {
            let known = self.store.manifest(id).is_ok();
            // One that is there is named to gc by that.
            self.store.put_manifest(manifest)?;
            imported.artifacts += u64::from(!known);
        }
        for (record, bytes) in std::mem::take(&mut self.held.nodes).into_values() {
            let known = self.store.node(&record.key)?.is_some_and(|known| known.artifact == record.artifact);
            let stays = self.store.take_node(&record, &bytes)?;
            if stays != record.artifact {
                imported.others.insert(record.node.clone(), stays);
                continue;
            }
            imported.nodes += u64::from(!known);
            imported.records.push(record);
        }
        for (record, bytes) in std::mem::take(&mut self.held.runs).into_values() {
            if self.store.take_run(&record, &bytes)? {
                imported.runs += 1;
                imported.run_records.push(record);
            }
        }
        Ok(imported)
    }
}

/// So many bytes, or the archive ends early.
fn exactly(reader: &mut impl Read, size: u64) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    reader.take(size).read_to_end(&mut bytes).map_err(broken)?;
    if bytes.len() as u64 == size {
        return Ok(bytes);
    }
    Err(ArchiveError::Truncated { what: format!("a file has {} of {size} bytes", bytes.len()) })
}
