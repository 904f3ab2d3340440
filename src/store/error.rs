//! What can go wrong with the store, and how to mend it.

use std::io;
use std::path::PathBuf;

use crate::diag::Diagnostic;
use crate::digest::Digest;

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The index could not be made, not even in memory.
    #[error("the index cannot be made: {0}")]
    Index(#[from] rusqlite::Error),
    /// A value that cannot be written as JSON.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a later version.
    #[error("the cache `{}` has format version {found}, this program knows versions up to {known}", .directory.display())]
    NewerFormat {
        /// The cache directory.
        directory: PathBuf,
        /// Its version.
        found: u32,
        /// The latest version that this program knows.
        known: u32,
    },
    /// A directory of other things.
    #[error("the directory `{}` is no cache: it has files but no VERSION", .directory.display())]
    NotAStore {
        /// The directory.
        directory: PathBuf,
    },
    /// A file.
    #[error("`{}` is a file, a cache is a directory", .file.display())]
    NotADirectory {
        /// The file.
        file: PathBuf,
    },
    /// There is none.
    #[error("there is no cache at `{}`", .directory.display())]
    Absent {
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// An artifact that the store does not have.
    #[error("the cache has no artifact {}", .0.short())]
    NoArtifact(Digest),
    /// A file that is not what its name says.
    #[error("damaged: {what}")]
    Damaged {
        /// What, and how.
        what: String,
    },
    /// A file name that an artifact must not have.
    #[error("`{0}` cannot be a file of an artifact: names are relative and have no `..`")]
    BadName(String),
    /// A prefix that means several things.
    #[error("`{prefix}` begins {} ids: {}", .ids.len(), .ids.iter().take(5).map(Digest::short).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// As typed.
        prefix: String,
        /// What it begins.
        ids: Vec<Digest>,
    },
    /// A name or a prefix that means nothing.
    #[error("no artifact, key or node in the cache is called `{0}`")]
    Unknown(String),
    /// A way to get files out that the file system does not have.
    #[error("`{}` cannot be checked out that way: the file system has no {} from there to here", .file.display(), match .link { super::Link::Hard => "hard link", _ => "clone" })]
    NoLink {
        /// The way that was asked for.
        link: super::Link,
        /// The file.
        file: PathBuf,
    },
    /// A setting of the environment that is none.
    #[error("`{name}` is `{value}`, which is no number of bytes")]
    Setting {
        /// The variable.
        name: &'static str,
        /// What it says.
        value: String,
    },
    /// Another process uses the store.
    #[error("another process uses the cache")]
    InUse,
}

impl StoreError {
    /// Whether it is that the store cannot be written.
    pub fn is_read_only(&self) -> bool {
        let Self::Io(error) = self else { return false };
        matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
    }

    /// As data that the command line draws.
    pub fn diagnostic(&self) -> Diagnostic {
        let diagnostic = |id| Diagnostic::error(id, self.to_string());
        match self {
            Self::Io(error) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    diagnostic("store::full").note("what was in the cache before is whole").help(
                        "make room (`sami cache gc` removes what no recent run uses), then run the same command again",
                    )
                }
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => diagnostic("store::read-only")
                    .help("give write permission to the cache directory, or name another one with `--cache DIR`"),
                _ => diagnostic("store::io").help(
                    "see that the cache directory is there and can be written, or name another one with `--cache DIR`",
                ),
            },
            Self::Index(_) => diagnostic("store::index").help("delete `index.sqlite` in the cache: it is made again"),
            Self::Json(_) => diagnostic("store::json"),
            Self::NewerFormat { .. } => diagnostic("store::newer-format")
                .help("use the version of `sami` that wrote it, or another `--cache DIR`"),
            Self::NotAStore { .. } => diagnostic("store::not-a-cache").help("name an empty directory or a new one"),
            Self::NotADirectory { .. } => {
                diagnostic("store::not-a-directory").help("name another directory with `--cache DIR`")
            }
            Self::Absent { .. } => {
                diagnostic("store::absent").help("`sami run` makes one; `--cache DIR` names one that is elsewhere")
            }
            Self::NoArtifact(_) => diagnostic("store::no-artifact").help("`sami cache ls` lists what there is"),
            Self::Damaged { .. } => diagnostic("store::damaged")
                .help("`sami run` makes again what is damaged; `sami cache verify` finds all of it"),
            Self::BadName(_) => diagnostic("store::bad-name"),
            Self::Ambiguous { .. } => diagnostic("store::ambiguous").help("type more of it"),
            Self::Unknown(_) => diagnostic("store::unknown").help("`sami cache ls` lists what there is"),
            Self::InUse => diagnostic("store::in-use").help("wait for the other `sami` to end, then try again"),
            Self::NoLink { .. } => diagnostic("store::no-link").help("give `--link copy`, or leave it out"),
            Self::Setting { .. } => diagnostic("store::setting").help("give a number of bytes, or `off`"),
        }
    }
}
