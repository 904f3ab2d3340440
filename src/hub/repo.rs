//! A repository at a revision.

use std::fmt;
use std::str::FromStr;

/// What a repository holds. The hub keeps the names of models and datasets apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A dataset.
    Dataset,
}

impl RepoKind {
    /// What people call it.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }
}

/// A repository of the hub, and which revision of it is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repo {
    /// What it holds.
    pub kind: RepoKind,
    /// `ORG/NAME`, or `NAME` alone for a few old ones.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl FromStr for Repo {
    type Err = String;

    /// Reads `NAME`, `ORG/NAME` or either with `@REVISION`, of a model; after `datasets/` of a dataset. The revision is
    /// `main` without it. The error says what is wrong.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, text) = match text.strip_prefix("datasets/") {
            Some(rest) => (RepoKind::Dataset, rest),
            None => (RepoKind::Model, text),
        };
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let part = |part: &str| {
            let plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            !part.is_empty() && part.len() <= 96 && plain && !part.starts_with('.')
        };
        let parts: Vec<&str> = name.split('/').collect();
        // Two hyphens would make two repositories one directory of the cache.
        if parts.len() > 2 || !parts.iter().all(|one| part(one)) || name.contains("--") || name.contains("..") {
            return Err(format!("`{name}` is no name of a repository; one is `ORGANISATION/NAME`"));
        }
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#%\\:*<>|\"".contains(&byte);
        let inside = !revision.split('/').any(|part| part.is_empty() || part.starts_with('.'));
        if !inside || revision.len() > 200 || !revision.bytes().all(plain) {
            return Err(format!("`{revision}` is no revision; one is a branch, a tag or a commit"));
        }
        Ok(Self { kind, name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.prefix())?;
        f.write_str(&self.name)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

impl Repo {
    /// Whether the revision is a commit, which cannot move.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }

    /// The same at another revision.
    pub(super) fn at(&self, revision: &str) -> Self {
        Self { revision: revision.to_owned(), ..self.clone() }
    }

    /// What its name begins with in addresses; those of models begin with nothing.
    fn prefix(&self) -> &'static str {
        match self.kind {
            RepoKind::Model => "",
            RepoKind::Dataset => "datasets/",
        }
    }

    /// Where people read about it.
    pub(super) fn page(&self) -> String {
        format!("https://huggingface.co/{}{}", self.prefix(), self.name)
    }

    /// Where the hub lists its files.
    pub(super) fn listing_path(&self) -> String {
        format!("/api/{}s/{}/revision/{}?blobs=true", self.kind.noun(), self.name, encoded(&self.revision, ""))
    }

    /// Where the hub has a file.
    pub(super) fn file_path(&self, commit: &str, name: &str) -> String {
        format!("/{}{}/resolve/{commit}/{}", self.prefix(), self.name, encoded(name, "/"))
    }

    /// The name of its directory in the cache.
    pub(super) fn folder(&self) -> String {
        format!("{}s--{}", self.kind.noun(), self.name.replace('/', "--"))
    }
}

/// Whether a text is a commit: 40 hex digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Percent-encodes all but letters, digits, `-._~` and what is in `plain`.
fn encoded(text: &str, plain: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || plain.as_bytes().contains(&byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_revisions_are_read() {
        let repo: Repo = "mistralai/Mistral-7B-v0.1".parse().expect("a repository");
        assert_eq!((repo.name.as_str(), repo.revision.as_str()), ("mistralai/Mistral-7B-v0.1", "main"));
        assert_eq!(repo.folder(), "models--mistralai--Mistral-7B-v0.1");
        assert_eq!(repo.to_string(), "mistralai/Mistral-7B-v0.1");
        let repo: Repo = "gpt2@refs/pr/1".parse().expect("a repository");
        assert_eq!(repo.listing_path(), "/api/models/gpt2/revision/refs%2Fpr%2F1?blobs=true");
        assert_eq!(repo.file_path("abc", "a b/c.json"), "/gpt2/resolve/abc/a%20b/c.json");
        assert_eq!(repo.to_string(), "gpt2@refs/pr/1");
        assert!(!repo.is_commit());
        let repo: Repo = "datasets/Anthropic/hh-rlhf".parse().expect("a repository");
        assert_eq!((repo.kind, repo.name.as_str()), (RepoKind::Dataset, "Anthropic/hh-rlhf"));
        assert_eq!(repo.folder(), "datasets--Anthropic--hh-rlhf");
        assert_eq!(repo.listing_path(), "/api/datasets/Anthropic/hh-rlhf/revision/main?blobs=true");
        assert_eq!(repo.file_path("abc", "a/b.gz"), "/datasets/Anthropic/hh-rlhf/resolve/abc/a/b.gz");
        assert_eq!(repo.to_string(), "datasets/Anthropic/hh-rlhf");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert!(format!("a/b@{commit}").parse::<Repo>().expect("a repository").is_commit());
    }

    #[test]
    fn what_would_leave_the_cache_is_no_name() {
        for text in [
            "",
            "a/b/c",
            "a//b",
            "../b",
            "a/..",
            "a/b@",
            "a/b@../x",
            "a/b@a/../b",
            "a b/c",
            "a--b/c",
            "a/b@x?y",
            "@main",
            "datasets/",
            "datasets/a/b/c",
        ] {
            assert!(text.parse::<Repo>().is_err(), "{text:?}");
        }
    }
}
