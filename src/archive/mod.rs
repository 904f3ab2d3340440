//! Archives: artifacts, records and runs in one file, to carry or to keep.
//!
//! An archive is a tar file, plain or compressed, with the names of a store, in this order and each sorted:
//!
//! ```text
//! sami-archive.json         {"format", "objects", "artifacts", "nodes", "runs", "bytes"}: how much is to come
//! objects/ab/cdef…          artifacts/ab/cdef….json   nodes/ab/cdef….json   runs/RUN/run.json
//! ```
//!
//! Times, owners and modes are the same in all of them, so the same things make the same bytes. What is read is trusted in
//! nothing: `import` says how. Reading order: this file, `export`, `import`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::store::StoreError;

mod export;
mod import;

pub use export::{Contents, export};
pub use import::{Imported, import};

/// The format that this program writes; it reads every one up to it.
const FORMAT: u64 = 1;
const HEAD: &str = "sami-archive.json";

/// The first file: what is to come. An archive that ends early has less.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Format version.
    pub format: u64,
    /// Objects.
    pub objects: u64,
    /// Manifests.
    pub artifacts: u64,
    /// Node records.
    pub nodes: u64,
    /// Runs.
    pub runs: u64,
    /// Bytes of all these files together.
    pub bytes: u64,
}

/// What can go wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The name says nothing of how to write it.
    #[error("`{}` is no name of an archive", .0.display())]
    Name(PathBuf),
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is none, or of a later version.
    #[error("`{}` is no archive of `sami`: {what}", .file.display())]
    NotOurs {
        /// The file.
        file: PathBuf,
        /// What is in it instead.
        what: String,
    },
    /// Something in it must not be there, or is not what it says.
    #[error("the archive is refused: `{entry}` {what}")]
    Refused {
        /// The name in the archive, as far as it can be shown.
        entry: String,
        /// What about it.
        what: String,
    },
    /// It ends before all is there.
    #[error("the archive ends early: {what}")]
    Truncated {
        /// What is missing.
        what: String,
    },
    /// The disk has not the room for it.
    #[error("the archive holds {needed} bytes, and {free} are free where the cache is")]
    NoRoom {
        /// Bytes of its files.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The store's fault.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl ArchiveError {
    /// As data that the command line draws.
    pub fn diagnostic(&self) -> Diagnostic {
        let diagnostic = |id| Diagnostic::error(id, self.to_string());
        const NOTHING: &str = "nothing was taken from it: the cache is as it was";
        match self {
            Self::Name(_) => diagnostic("archive::name").help("end it in `.tar`, `.tar.zst` or `.tar.gz`"),
            Self::Io(_) => diagnostic("archive::io").help("see that the file is there, can be read, and has room"),
            Self::NotOurs { .. } => diagnostic("archive::not-ours").help("`sami cache export` writes archives"),
            Self::Refused { .. } => diagnostic("archive::refused")
                .note(NOTHING)
                .help("ask whoever made it for one from `sami cache export`"),
            Self::Truncated { .. } => diagnostic("archive::truncated").note(NOTHING).help("fetch or write it again"),
            Self::NoRoom { .. } => diagnostic("archive::no-room").note(NOTHING).help("make room, or use `--cache DIR`"),
            Self::Store(error) => error.diagnostic(),
        }
    }
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Zstd,
    Gzip,
}

impl Packing {
    fn of_name(path: &Path) -> Result<Self, ArchiveError> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let ends = |ends: &[&str]| ends.iter().any(|end| name.len() > end.len() && name.ends_with(end));
        match () {
            () if ends(&[".tar"]) => Ok(Self::Plain),
            () if ends(&[".tar.zst", ".tzst"]) => Ok(Self::Zstd),
            () if ends(&[".tar.gz", ".tgz"]) => Ok(Self::Gzip),
            () => Err(ArchiveError::Name(path.to_owned())),
        }
    }

    /// By the first bytes, whatever the name says.
    fn of_bytes(first: &[u8]) -> Self {
        match first {
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x1f, 0x8b, ..] => Self::Gzip,
            _ => Self::Plain,
        }
    }

    fn reader<'a>(self, source: impl io::BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(source),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(source)?),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        })
    }
}

/// Where the bytes of an archive go.
enum Packer<W: Write> {
    Plain(W),
    Zstd(Box<zstd::Encoder<'static, W>>),
    Gzip(Box<flate2::write::GzEncoder<W>>),
}

impl<W: Write> Packer<W> {
    fn new(packing: Packing, sink: W) -> io::Result<Self> {
        Ok(match packing {
            Packing::Plain => Self::Plain(sink),
            // With a checksum of its own, so that damage is found where it is.
            Packing::Zstd => {
                let mut encoder = zstd::Encoder::new(sink, 3)?;
                encoder.include_checksum(true)?;
                Self::Zstd(Box::new(encoder))
            }
            Packing::Gzip => {
                let encoder = flate2::GzBuilder::new().mtime(0).write(sink, flate2::Compression::default());
                Self::Gzip(Box::new(encoder))
            }
        })
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(sink) => Ok(sink),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(sink) => sink.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(sink) => sink.flush(),
            Self::Zstd(encoder) => encoder.flush(),
            Self::Gzip(encoder) => encoder.flush(),
        }
    }
}

/// What a name in an archive stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Head,
    Object(Digest),
    Artifact(Digest),
    Node(Digest),
    Run(String),
}

impl Name {
    /// Only names that [`Name::text`] makes mean something: so no path can lead anywhere else.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let sharded = |rest: &str, suffix: &str| -> Option<Digest> {
            let (shard, rest) = rest.strip_suffix(suffix)?.split_once('/')?;
            format!("{shard}{rest}").parse().ok()
        };
        let name = if text == HEAD {
            Self::Head
        } else if let Some(rest) = text.strip_prefix("objects/") {
            Self::Object(sharded(rest, "")?)
        } else if let Some(rest) = text.strip_prefix("artifacts/") {
            Self::Artifact(sharded(rest, ".json")?)
        } else if let Some(rest) = text.strip_prefix("nodes/") {
            Self::Node(sharded(rest, ".json")?)
        } else {
            let run = text.strip_prefix("runs/")?.strip_suffix("/run.json")?;
            let plain = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || byte == b'-';
            (!run.is_empty() && run.len() <= 64 && run.bytes().all(plain)).then(|| Self::Run(run.to_owned()))?
        };
        // What is written otherwise, in capitals for example, is another name.
        (name.text() == text).then_some(name)
    }

    fn text(&self) -> String {
        let sharded = |folder: &str, id: &Digest, suffix: &str| {
            let hex = id.to_string();
            format!("{folder}/{}/{}{suffix}", &hex[..2], &hex[2..])
        };
        match self {
            Self::Head => HEAD.to_owned(),
            Self::Object(digest) => sharded("objects", digest, ""),
            Self::Artifact(id) => sharded("artifacts", id, ".json"),
            Self::Node(key) => sharded("nodes", key, ".json"),
            Self::Run(run) => format!("runs/{run}/run.json"),
        }
    }
}

#[cfg(test)]
mod tests;
