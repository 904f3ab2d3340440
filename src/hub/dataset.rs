//! Datasets of the hub: the files that hold the rows which are asked for, in the same cache as models.
//!
//! Of a repository whose files do not tell, the copy is taken that the hub converts to Parquet and keeps on a branch.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::rows::{Lack, Part, choose};
use super::{Downloaded, Hub, HubError, Listing, Repo, http};

/// The branch of the hub's own copy in Parquet.
const CONVERTED: &str = "refs/convert/parquet";

/// The files of some rows, all of them there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFiles {
    /// The commit, 40 hex digits.
    pub commit: String,
    /// Names in the repository and places, in the order of the rows.
    pub files: Vec<(String, PathBuf)>,
}

/// Where the rows are, as the hub says.
struct Found {
    repo: Repo,
    listing: Listing,
    files: Vec<String>,
    /// What else was looked at on the way.
    passed: Option<(Repo, Listing)>,
}

impl Hub {
    /// What the cache has of a dataset's rows, if that is whole. Asks nobody.
    pub fn cached_rows(&self, repo: &Repo, part: &Part) -> io::Result<Option<RowFiles>> {
        for repo in places(repo, part) {
            let Some(commit) = self.cache.commit(&repo)? else { continue };
            let names = match self.cache.listing(&repo, &commit)? {
                Some(names) => names,
                // Python has no listing; what it downloaded is all there is to go by.
                None => self.cache.names(&repo, &commit)?,
            };
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let Ok(chosen) = choose(&names, part) else { continue };
            return self.rows_at(&repo, &commit, chosen);
        }
        Ok(None)
    }

    /// Rows at a commit, if all their files are there.
    fn rows_at(&self, repo: &Repo, commit: &str, names: Vec<String>) -> io::Result<Option<RowFiles>> {
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let path = std::path::absolute(self.cache.pointer(repo, commit, &name))?;
            if !path.is_file() {
                return Ok(None);
            }
            files.push((name, path));
        }
        Ok(Some(RowFiles { commit: commit.to_owned(), files }))
    }

    /// How many bytes [`Self::fetch_rows`] would download, as far as the hub tells.
    ///
    /// Errs as `fetch_rows` does, so that what would fail there shows before.
    pub fn rows_to_download(&self, repo: &Repo, part: &Part) -> Result<Option<u64>, HubError> {
        if self.offline {
            return Err(self.is_offline(repo));
        }
        let found = self.find_rows(repo, part, 1)?;
        Ok(self.missing(&found.repo, &found.listing, &found.files))
    }

    /// Sees to it that rows are in the cache as the hub has them now, and whole. What holds of [`Self::fetch`] holds of
    /// networks and revisions here.
    pub fn fetch_rows(
        &self,
        repo: &Repo,
        part: &Part,
        progress: &mut dyn FnMut(Downloaded),
    ) -> Result<RowFiles, HubError> {
        let cached = self.cached_rows(repo, part)?;
        if self.offline {
            return cached.ok_or_else(|| self.is_offline(repo));
        }
        // What a commit has does not change; what Python has of it may be a part.
        if let Some(cached) = &cached
            && repo.is_commit()
            && self.cache.listing(repo, &cached.commit)?.is_some()
        {
            return Ok(cached.clone());
        }
        let found = match (self.find_rows(repo, part, if cached.is_some() { 2 } else { http::TRIES }), cached) {
            (Ok(found), _) => found,
            (Err(error @ HubError::Network { .. }), Some(cached)) => {
                tracing::warn!("{error}; the cache's {repo} at commit {} is used", cached.commit);
                return Ok(cached);
            }
            (Err(error), _) => return Err(error),
        };
        let Found { repo, listing, files, passed } = found;
        self.has_room(&repo, &listing, &files)?;
        let names: Vec<&str> = files.iter().map(String::as_str).collect();
        self.files(&repo, &listing.sha, &names, progress)?;
        for (repo, listing) in passed.iter().chain([&(repo.clone(), listing.clone())]) {
            self.cache.note(repo, &listing.sha, &listing.names())?;
        }
        self.rows_at(&repo, &listing.sha, files)?.ok_or_else(|| HubError::NoRows {
            what: format!("the download to `{}` is not whole", self.cache.directory(&repo, &listing.sha).display()),
            help: "run it again".to_owned(),
            repo,
        })
    }

    fn find_rows(&self, repo: &Repo, part: &Part, tries: u32) -> Result<Found, HubError> {
        let listing = self.listing(repo, tries)?;
        let lack = match choose(&listing.names(), part) {
            Ok(files) => return Ok(Found { repo: repo.clone(), listing, files, passed: None }),
            Err(lack) => lack,
        };
        let Some(converted) = places(repo, part).nth(1) else { return Err(lacks(repo, &listing, lack, part)) };
        let copy = match self.listing(&converted, tries) {
            Ok(copy) => copy,
            Err(HubError::NoRevision { .. } | HubError::NoRepo { .. } | HubError::Status { status: 404, .. }) => {
                return Err(lacks(repo, &listing, lack, part));
            }
            Err(error) => return Err(error),
        };
        match choose(&copy.names(), part) {
            Ok(files) => Ok(Found { repo: converted, listing: copy, files, passed: Some((repo.clone(), listing)) }),
            Err(of_copy) if lack == Lack::Rows => Err(lacks(repo, &copy, of_copy, part)),
            Err(_) => Err(lacks(repo, &listing, lack, part)),
        }
    }
}

/// Where to look, in this order: only of a branch that moves along is there a copy.
fn places(repo: &Repo, part: &Part) -> impl Iterator<Item = Repo> {
    let converted = (repo.revision == "main" && part.files.is_empty()).then(|| repo.at(CONVERTED));
    [repo.clone()].into_iter().chain(converted)
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<String> = names.into_iter().take(20).map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The error that a repository has not what is asked for.
fn lacks(repo: &Repo, listing: &Listing, lack: Lack, part: &Part) -> HubError {
    let names = listing.names();
    let script =
        names.iter().find(|name| !name.contains('/') && Path::new(name).extension().is_some_and(|end| end == "py"));
    let (what, help) = match lack {
        Lack::Rows if script.is_some() && repo.revision == "main" => (
            format!(
                "its rows are made by the script `{}`, which is not run, and the hub has no converted copy of them",
                script.unwrap_or(&"")
            ),
            "run the script in Python, and give the path of a file of its rows".to_owned(),
        ),
        Lack::Rows if script.is_some() => (
            format!("its rows are made by the script `{}`, which is not run", script.unwrap_or(&"")),
            format!("the hub may have a converted copy of them: write `hf:datasets/{}@{CONVERTED}`", repo.name),
        ),
        Lack::Rows => (
            "it has no .parquet, .jsonl, .json, .csv or .txt file".to_owned(),
            "give a dataset that has rows in one of these formats".to_owned(),
        ),
        Lack::File(pattern) => {
            let known: BTreeMap<usize, String> = names.iter().map(|name| (*name).to_owned()).enumerate().collect();
            (
                format!("it has no file of rows called `{pattern}`"),
                format!("name some of its files in `data_files`; it has {}", quoted(known.values())),
            )
        }
        Lack::Config(found) => {
            let what = match &part.config {
                Some(config) => format!("it has no configuration `{config}`"),
                None => "it has several configurations".to_owned(),
            };
            (what, format!("name one with `config`: {}", quoted(&found)))
        }
        Lack::Split(found) => (
            format!("it has no split `{}`", part.split.as_deref().unwrap_or("train")),
            format!("name one with `split`: {}, or files with `data_files`", quoted(&found)),
        ),
        Lack::Shard(absent, of) => (
            format!("of the {of} files of split {absent} is missing"),
            "name the files that are there with `data_files`".to_owned(),
        ),
    };
    HubError::NoRows { repo: repo.clone(), what, help }
}
