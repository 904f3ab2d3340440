//! What can go wrong with a remote, and how to mend it. No message holds a credential.

use std::io;

use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::secret;
use crate::store::StoreError;

/// What can go wrong with a remote.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// No answer, or one that says to come back later; it was tried several times.
    #[error("the remote cache cannot be reached: {what}")]
    Unreachable {
        /// The last thing that went wrong.
        what: String,
    },
    /// It does not let this be done.
    #[error("the remote cache does not allow it: {what}")]
    Denied {
        /// What it said.
        what: String,
    },
    /// Any other answer that is none.
    #[error("the remote cache fails: {what}")]
    Answer {
        /// What it said.
        what: String,
    },
    /// Nothing can be written there.
    #[error("the remote cache `{url}` can only be read")]
    ReadOnly {
        /// Its URL.
        url: String,
    },
    /// There is nothing of ours.
    #[error("there is no remote cache at `{url}`")]
    Absent {
        /// Its URL.
        url: String,
    },
    /// There are other things, or the marker is damaged.
    #[error("`{url}` is no remote cache: {what}")]
    NotOurs {
        /// Its URL.
        url: String,
        /// What is there.
        what: String,
    },
    /// Written by a later version.
    #[error("the remote cache has format version {found}, this program knows versions up to {known}")]
    NewerFormat {
        /// Its version.
        found: u64,
        /// The latest version that this program knows.
        known: u64,
    },
    /// What arrived is not what its name says, twice.
    #[error("`{name}` arrives from the remote cache with wrong bytes: {what}")]
    WrongBytes {
        /// Its name there.
        name: String,
        /// Digests or sizes.
        what: String,
    },
    /// A record or a manifest whose bytes are not there.
    #[error("the remote cache lacks `{name}`, which {of} needs")]
    Incomplete {
        /// The name of what is not there.
        name: String,
        /// What needs it.
        of: String,
    },
    /// A name or a prefix that means nothing there.
    #[error("the remote cache has no artifact, key, run or node called `{0}`")]
    Unknown(String),
    /// A prefix that means several things.
    #[error("`{prefix}` begins {} ids in the remote cache: {}", .ids.len(), .ids.iter().take(5).map(Digest::short).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// As typed.
        prefix: String,
        /// What it begins.
        ids: Vec<Digest>,
    },
    /// What is in the environment or in `sami.toml` makes no client.
    #[error("the remote cache cannot be used: {what}")]
    Setup {
        /// What is wrong with it.
        what: String,
    },
    /// The local store's fault.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl From<io::Error> for RemoteError {
    fn from(error: io::Error) -> Self {
        Self::Store(error.into())
    }
}

impl RemoteError {
    /// As data that the command line draws.
    pub fn diagnostic(&self) -> Diagnostic {
        let diagnostic = |id| Diagnostic::error(id, self.to_string());
        match self {
            Self::Unreachable { .. } => diagnostic("remote::unreachable")
                .help("try again: what has been moved is not moved again; `--no-remote` runs without it"),
            Self::Denied { .. } => diagnostic("remote::denied").help(
                "set the credentials in the environment (`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or \
                 `GOOGLE_APPLICATION_CREDENTIALS`), and see that they may read, list and write there",
            ),
            Self::Answer { .. } => diagnostic("remote::answer").help("`sami remote` says what works there"),
            Self::ReadOnly { .. } => {
                diagnostic("remote::read-only").help("push to `s3://`, `gs://` (with an account) or `file:///`")
            }
            Self::Absent { .. } => diagnostic("remote::absent").help("`sami push` makes one; else check the URL"),
            Self::NotOurs { .. } => {
                diagnostic("remote::not-a-cache").help("name an empty prefix, such as `s3://BUCKET/sami`")
            }
            Self::NewerFormat { .. } => {
                diagnostic("remote::newer-format").help("use the version of `sami` that wrote it, or another prefix")
            }
            Self::WrongBytes { .. } => diagnostic("remote::wrong-bytes")
                .note("nothing wrong was put into the cache; what arrived is in its `quarantine/`")
                .help("push it again from a cache that has it: `sami push --again WHAT`"),
            Self::Incomplete { .. } => diagnostic("remote::incomplete")
                .help("push it again from a cache that has it: `sami push --again WHAT`"),
            Self::Unknown(_) => diagnostic("remote::unknown").help("`sami pull --list` lists what is there"),
            Self::Ambiguous { .. } => diagnostic("remote::ambiguous").help("type more of it"),
            Self::Setup { .. } => {
                diagnostic("remote::setup").help("see `[remote]` in `sami.toml`, and docs/sharing.md")
            }
            Self::Store(error) => error.diagnostic(),
        }
    }

    /// Whether the remote is to be left alone for a while: it is not there, or not for us.
    pub fn is_down(&self) -> bool {
        !matches!(self, Self::WrongBytes { .. } | Self::Incomplete { .. } | Self::Store(_))
    }
}

/// A message without secrets, on one line and not too long: servers answer with whole pages.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 400;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = secret::redact(&text);
    if text.chars().count() > MOST { text.chars().take(MOST).chain("…".chars()).collect() } else { text.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_and_on_a_line() {
        assert_eq!(shown("key\n  is bad"), "key is bad");
        assert!(shown(&"x ".repeat(10_000)).chars().count() <= 401);
    }
}
