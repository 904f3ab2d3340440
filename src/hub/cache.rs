//! The cache directory, in the form of Python's `huggingface_hub`:
//!
//! ```text
//! models--ORG--NAME/               datasets--ORG--NAME/ of a dataset
//!   blobs/ETAG                     files by the digest that the hub names them by
//!   blobs/ETAG.incomplete          what has arrived of one
//!   refs/REVISION                  the commit that a branch or tag stood for
//!   snapshots/COMMIT/NAME          links to the blobs
//!   .no_exist/COMMIT/NAME          empty: the commit has no such file
//!   .sami/COMMIT.json              our own: the names of all files that a dataset has at the commit
//! .locks/models--ORG--NAME/ETAG.lock
//! ```

use std::io;
use std::path::{Component, Path, PathBuf};

use super::repo::is_commit;
use super::{Repo, Snapshot, select};
use crate::fs;

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
}

/// The right to download a file, until it is dropped or the process dies.
pub(super) struct Lock {
    _file: fs_err::File,
}

/// Writes a small file, unless it holds that already.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if fs_err::read_to_string(path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        fs::create_directory(directory)?;
    }
    fs::write_atomic(path, text.as_bytes())
}

/// Whether a name stays inside of the directory that it is joined to.
pub(super) fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

impl Cache {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn repo(&self, repo: &Repo) -> PathBuf {
        self.root.join(repo.folder())
    }

    /// The directory of a snapshot.
    pub(super) fn directory(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.repo(repo).join("snapshots").join(commit)
    }

    /// Where a file of a snapshot is.
    pub(super) fn pointer(&self, repo: &Repo, commit: &str, name: &str) -> PathBuf {
        self.directory(repo, commit).join(name)
    }

    pub(super) fn blob(&self, repo: &Repo, etag: &str) -> PathBuf {
        self.repo(repo).join("blobs").join(etag)
    }

    /// The commit that a revision stands for, as far as the cache knows.
    pub(super) fn commit(&self, repo: &Repo) -> io::Result<Option<String>> {
        if repo.is_commit() {
            return Ok(Some(repo.revision.clone()));
        }
        match fs_err::read_to_string(self.repo(repo).join("refs").join(&repo.revision)) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|commit| is_commit(commit))),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A model at a commit, if all its files are there.
    pub(super) fn snapshot(&self, repo: &Repo, commit: &str) -> io::Result<Option<Snapshot>> {
        let directory = std::path::absolute(self.directory(repo, commit))?;
        let Some(names) = select::of_snapshot(&directory)? else { return Ok(None) };
        let files = names.into_iter().map(|name| (name.clone(), directory.join(name))).collect();
        Ok(Some(Snapshot { commit: commit.to_owned(), directory, files }))
    }

    /// Whether it is known of every file that a model may have whether this one has it. Python downloads by need.
    pub(super) fn knows_all(&self, repo: &Repo, snapshot: &Snapshot) -> bool {
        let absent = self.repo(repo).join(".no_exist").join(&snapshot.commit);
        select::OPTIONAL.iter().all(|name| snapshot.files.contains_key(*name) || absent.join(name).exists())
    }

    /// Notes what the hub said of a revision: its commit, and which files it does not have.
    pub(super) fn remember(&self, repo: &Repo, commit: &str, names: &[&str]) -> io::Result<()> {
        for name in select::OPTIONAL.iter().filter(|name| !names.contains(*name)) {
            write(&self.repo(repo).join(".no_exist").join(commit).join(name), "")?;
        }
        self.remember_commit(repo, commit)
    }

    fn remember_commit(&self, repo: &Repo, commit: &str) -> io::Result<()> {
        if repo.is_commit() {
            return Ok(());
        }
        write(&self.repo(repo).join("refs").join(&repo.revision), commit)
    }

    /// Notes what the hub said of a dataset's revision: its commit, and the names of all its files.
    pub(super) fn note(&self, repo: &Repo, commit: &str, names: &[&str]) -> io::Result<()> {
        write(&self.noted(repo, commit), &serde_json::json!(names).to_string())?;
        self.remember_commit(repo, commit)
    }

    fn noted(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.repo(repo).join(".sami").join(format!("{commit}.json"))
    }

    /// The names of all files that a dataset has at a commit, if they were noted.
    pub(super) fn listing(&self, repo: &Repo, commit: &str) -> io::Result<Option<Vec<String>>> {
        match fs_err::read(self.noted(repo, commit)) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names of the files of a snapshot that are there.
    pub(super) fn names(&self, repo: &Repo, commit: &str) -> io::Result<Vec<String>> {
        let directory = self.directory(repo, commit);
        let inside = |path: &PathBuf| Some(path.strip_prefix(&directory).ok()?.to_str()?.to_owned());
        Ok(fs::walk(&directory)?.iter().filter_map(inside).collect())
    }

    /// Bytes of a content that are there.
    pub(super) fn arrived(&self, repo: &Repo, etag: &str) -> u64 {
        let whole = self.blob(repo, etag);
        let part = whole.with_file_name(format!("{etag}.incomplete"));
        [whole, part].iter().filter_map(|path| std::fs::metadata(path).ok()).map(|file| file.len()).max().unwrap_or(0)
    }

    /// Waits until no other process downloads the file, ours or Python's.
    pub(super) fn lock(&self, repo: &Repo, etag: &str) -> io::Result<Lock> {
        let directory = self.root.join(".locks").join(repo.folder());
        fs::create_directory(&directory)?;
        let file = fs::create(&directory.join(format!("{etag}.lock")))?;
        file.file().lock()?;
        Ok(Lock { _file: file })
    }

    /// Puts a blob into a snapshot under a name.
    pub(super) fn link(&self, repo: &Repo, commit: &str, name: &str, etag: &str) -> io::Result<()> {
        let pointer = self.pointer(repo, commit, name);
        let directory = pointer.parent().unwrap_or(Path::new("."));
        fs::create_directory(directory)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let unfinished = fs::unfinished(directory);
        std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &unfinished)?;
        let renamed = fs::rename(&unfinished, &pointer);
        if renamed.is_err() {
            fs::discard(&unfinished);
        }
        renamed
    }
}
