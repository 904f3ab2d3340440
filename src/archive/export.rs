//! Writing an archive. Every byte is held to its digest on the way: an archive that was written is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::{ArchiveError, FORMAT, Head, Name, Packer, Packing};
use crate::digest::Digest;
use crate::fs;
use crate::pieces::{self, Pieces};
use crate::store::{Blob, Store, StoreError};

/// What is to be in an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Node records, each with its artifact and those of its inputs that are copied in here.
    pub keys: Vec<Digest>,
    /// Artifacts.
    pub artifacts: Vec<Digest>,
    /// Runs.
    pub runs: Vec<String>,
}

/// Writes an archive, whole or not at all; how it is packed its name says. `tell` is told of bytes: done, and all.
pub fn export(
    store: &Store,
    contents: &Contents,
    file: &Path,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<Head, ArchiveError> {
    let packing = Packing::of_name(file)?;
    let gathered = Gathered::of(store, contents)?;
    let file = &std::path::absolute(file)?;
    let directory = file.parent().unwrap_or(Path::new("/"));
    let unfinished = fs::unfinished(directory);
    let written = (|| {
        let packer = Packer::new(packing, BufWriter::with_capacity(1 << 20, fs::create(&unfinished)?))?;
        let packer = gathered.write(packer, tell)?;
        let sink = packer.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        fs::sync(&sink)?;
        fs::rename(&unfinished, file)?;
        Ok(gathered.head)
    })();
    if written.is_err() {
        fs::discard(&unfinished);
    }
    written
}

/// All that goes into an archive, sorted.
struct Gathered {
    head: Head,
    objects: BTreeMap<Digest, (Blob, PathBuf)>,
    /// Manifests, records and runs, in order.
    rest: Vec<(Name, Vec<u8>)>,
}

impl Gathered {
    fn of(store: &Store, contents: &Contents) -> Result<Self, ArchiveError> {
        let mut artifacts: BTreeSet<Digest> = contents.artifacts.iter().copied().collect();
        let (mut nodes, mut manifests, mut objects) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for key in &contents.keys {
            let Some(record) = store.node(key)? else {
                return Err(StoreError::Unknown(key.to_string()).into());
            };
            artifacts.insert(record.artifact);
            // Those that were left where they are belong to this machine.
            let inputs = record.inputs.values().filter(|id| {
                store.manifest(id).is_ok_and(|manifest| manifest.files.values().all(|blob| store.has_object(blob)))
            });
            artifacts.extend(inputs);
            nodes.insert(*key, store.node_bytes(key)?);
        }
        for id in artifacts {
            let files = store.files(&id)?;
            for (name, blob) in store.manifest(&id)?.files {
                objects.insert(blob.digest, (blob, files[&name].clone()));
            }
            manifests.insert(id, store.manifest_bytes(&id)?);
        }
        let mut runs = BTreeMap::new();
        for run in &contents.runs {
            runs.extend(store.run_bytes(run)?.map(|bytes| (run.clone(), bytes)));
        }
        let mut head = Head {
            format: FORMAT,
            objects: objects.len() as u64,
            artifacts: manifests.len() as u64,
            nodes: nodes.len() as u64,
            runs: runs.len() as u64,
            bytes: objects.values().map(|(blob, _)| blob.size).sum(),
        };
        let manifests = manifests.into_iter().map(|(id, bytes)| (Name::Artifact(id), bytes));
        let nodes = nodes.into_iter().map(|(key, bytes)| (Name::Node(key), bytes));
        let runs = runs.into_iter().map(|(run, bytes)| (Name::Run(run), bytes));
        let rest: Vec<_> = manifests.chain(nodes).chain(runs).collect();
        head.bytes += rest.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        Ok(Self { head, objects, rest })
    }

    fn write<W: Write>(&self, packer: Packer<W>, tell: &mut dyn FnMut(u64, u64)) -> Result<Packer<W>, ArchiveError> {
        let mut builder = tar::Builder::new(packer);
        let head = serde_json::to_vec(&self.head).map_err(StoreError::from)?;
        builder.append(&header(&Name::Head, head.len() as u64)?, &head[..])?;
        let mut done = 0;
        for (digest, (blob, path)) in &self.objects {
            let mut reading = Hashing { source: pieces::open(path)?, hasher: blake3::Hasher::new(), size: 0 };
            builder.append(&header(&Name::Object(*digest), blob.size)?, (&mut reading).take(blob.size))?;
            // One more byte would be one too many.
            let more = reading.read(&mut [0])?;
            if more > 0 || reading.size != blob.size || Digest::from(reading.hasher.finalize()) != *digest {
                let what = format!("`{}`: its bytes are not those of its name", path.display());
                return Err(StoreError::Damaged { what }.into());
            }
            done += blob.size;
            tell(done, self.head.bytes);
        }
        for (name, bytes) in &self.rest {
            builder.append(&header(name, bytes.len() as u64)?, &bytes[..])?;
        }
        Ok(builder.into_inner()?)
    }
}

/// A file's header, in which nothing but name and size differs.
fn header(name: &Name, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name.text())?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

/// Hashes what is read.
struct Hashing {
    source: Pieces,
    hasher: blake3::Hasher,
    size: u64,
}

impl Read for Hashing {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(block)?;
        self.hasher.update(&block[..read]);
        self.size += read as u64;
        Ok(read)
    }
}
