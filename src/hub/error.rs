//! What can go wrong with the hub, and how to mend it.

use std::io;
use std::path::PathBuf;

use super::Repo;
use crate::diag::Diagnostic;

/// What can go wrong with the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No answer, or one that says to come back later; it was tried several times.
    #[error("the hub cannot be reached: {what}")]
    Network {
        /// The last thing that went wrong.
        what: String,
    },
    /// Nothing may be asked, and the cache does not have it.
    #[error("`{repo}` is not in the cache `{}`, and HF_HUB_OFFLINE forbids to ask the hub", .cache.display())]
    Offline {
        /// The repository.
        repo: Repo,
        /// The cache directory.
        cache: PathBuf,
    },
    /// There is no such repository, or it is private.
    #[error("the hub has no {} `{}`{}", .repo.kind.noun(), .repo.name, if *.token { " that the token may see" } else { ", or it is private" })]
    NoRepo {
        /// The repository.
        repo: Repo,
        /// Whether a token was sent.
        token: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error("`{}` has no revision `{}`", .repo.name, .repo.revision)]
    NoRevision {
        /// The repository.
        repo: Repo,
    },
    /// The owner wants terms to be accepted.
    #[error("`{}` is gated: its owner lets only those have it who accepted the terms", .repo.name)]
    Gated {
        /// The repository.
        repo: Repo,
        /// Whether a token was sent.
        token: bool,
    },
    /// The token is not valid, or does not allow it.
    #[error("the hub does not let `{}` be read: {what}", .repo.name)]
    Denied {
        /// The repository.
        repo: Repo,
        /// What the hub said.
        what: String,
    },
    /// Any other answer that is none.
    #[error("the hub answers {status} to `{path}`{what}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        path: String,
        /// What the hub said, after a colon, if it said something.
        what: String,
    },
    /// An answer that is not what a hub says.
    #[error("the hub's answer cannot be understood: {what}")]
    Malformed {
        /// What is strange in it.
        what: String,
    },
    /// The repository has no model that can be used.
    #[error("`{repo}` cannot be used: {what}")]
    NoModel {
        /// The repository.
        repo: Repo,
        /// What is missing.
        what: String,
    },
    /// The repository has not the rows that are asked for.
    #[error("`{repo}` cannot be used: {what}")]
    NoRows {
        /// The repository.
        repo: Repo,
        /// What is missing.
        what: String,
        /// What to write instead.
        help: String,
    },
    /// The disk has not the room for it.
    #[error("`{repo}` needs {} in `{}`, where {} are free", sized(*.needed), .cache.display(), sized(*.free))]
    NoRoom {
        /// The repository.
        repo: Repo,
        /// Bytes that are to be downloaded.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// The cache directory.
        cache: PathBuf,
    },
    /// What was downloaded is not what the hub said it would be, twice.
    #[error("`{file}` of `{repo}` arrives damaged: {what}")]
    Damaged {
        /// The repository.
        repo: Repo,
        /// The file.
        file: String,
        /// Digests or sizes.
        what: String,
    },
    /// `HF_ENDPOINT` is no address.
    #[error("HF_ENDPOINT is `{endpoint}`, which is no address")]
    Endpoint {
        /// As set.
        endpoint: String,
    },
    /// The disk said no; the message names the path.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Bytes in the unit that suits downloads.
fn sized(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1024.0 { format!("{mebibytes:.1} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

impl HubError {
    /// As data that the command line draws.
    pub fn diagnostic(&self) -> Diagnostic {
        let diagnostic = |id| Diagnostic::error(id, self.to_string());
        match self {
            Self::Network { .. } => diagnostic("hub::network")
                .help("try again: what was downloaded is kept; or give the path of files that you have"),
            Self::Offline { .. } => {
                diagnostic("hub::offline").help("unset HF_HUB_OFFLINE, or name the cache that has it with HF_HUB_CACHE")
            }
            Self::NoRepo { token: true, .. } => diagnostic("hub::no-repo")
                .help("check the name, and that the token in HF_TOKEN belongs to who may read it"),
            Self::NoRepo { .. } => diagnostic("hub::no-repo").help("check the name; for a private one set HF_TOKEN"),
            Self::NoRevision { .. } => {
                diagnostic("hub::no-revision").help("name a branch, a tag or a commit, or none for `main`")
            }
            Self::Gated { repo, token: true } => {
                diagnostic("hub::gated").help(format!("accept the terms at {} with the token's account", repo.page()))
            }
            Self::Gated { repo, .. } => {
                diagnostic("hub::gated").help(format!("accept the terms at {} and set HF_TOKEN", repo.page()))
            }
            Self::Denied { .. } => {
                diagnostic("hub::denied").help("set HF_TOKEN to a token that is valid and may read it")
            }
            Self::Status { .. } => diagnostic("hub::status"),
            Self::Malformed { .. } => diagnostic("hub::malformed").help("check HF_ENDPOINT"),
            Self::NoModel { .. } => diagnostic("hub::no-model"),
            Self::NoRows { help, .. } => diagnostic("hub::no-rows").help(help),
            Self::NoRoom { .. } => {
                diagnostic("hub::no-room").help("make room, or name a cache on a larger disk with HF_HUB_CACHE")
            }
            Self::Damaged { .. } => diagnostic("hub::damaged").help("try again later, or over another network"),
            Self::Endpoint { .. } => {
                diagnostic("hub::endpoint").help("set it to an address such as `https://HOST`, or unset it")
            }
            Self::Io(_) => diagnostic("hub::io"),
        }
    }
}
