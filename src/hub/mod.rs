//! Models and datasets from the Hugging Face Hub: what a repository has at a revision, downloads, and the cache on disk
//! that is shared with Python's `huggingface_hub`.
//!
//! # Layout
//! - [`repo`]: `ORG/NAME@REVISION` as people write it.
//! - `select`: which files of a repository make a model. `rows`: which hold the rows of a dataset; `dataset` gets them.
//! - `http`: requests: the token, redirects, retries. `download`: one file, resumed where it was cut off and checked.
//! - `cache`: the directory. `digest`: the two digests that the hub names files by.
//!
//! A branch is asked for at every [`Hub::fetch`]; a commit, and anything in offline mode, only of the cache.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use crate::{env, fs, secret};

mod cache;
mod dataset;
mod digest;
mod download;
mod error;
mod http;
pub mod repo;
mod rows;
mod select;

use cache::Cache;
pub use dataset::RowFiles;
pub use error::HubError;
use http::Client;
pub use http::Token;
pub use repo::{Repo, RepoKind};
pub use rows::Part;
use select::Selection;

/// Files that are downloaded at once.
const STREAMS: usize = 4;
/// Where the hub is without `HF_ENDPOINT`.
const ENDPOINT: &str = "https://huggingface.co";

/// Where the hub is and how it is talked to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its address, without a slash at the end.
    pub endpoint: String,
    /// Sent to the endpoint's host and to nobody else.
    pub token: Option<Token>,
    /// The cache directory, which holds `models--ORG--NAME` and `datasets--ORG--NAME` directories.
    pub cache: PathBuf,
    /// Whether nothing may be asked over the network.
    pub offline: bool,
    /// Before the first retry; doubles with each.
    pub pause: Duration,
}

/// The hub, with its cache.
#[derive(Debug)]
pub struct Hub {
    client: Client,
    cache: Cache,
    offline: bool,
}

/// A model's files at a commit, all of them there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit, 40 hex digits.
    pub commit: String,
    /// Where the files are under their names.
    pub directory: PathBuf,
    /// The files that make the model, by name.
    pub files: BTreeMap<String, PathBuf>,
}

/// How far a download is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Downloaded {
    /// There, those of earlier attempts included.
    pub done: u64,
    /// All that is downloaded, as far as the sizes are known by now.
    pub total: u64,
}

/// What the hub says about a repository at a revision.
#[derive(Debug, Clone, Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

/// A file; all but its name is told when asked for with `blobs=true`.
#[derive(Debug, Clone, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Large>,
}

/// What is told of a large file besides.
#[derive(Debug, Clone, Deserialize)]
struct Large {
    sha256: Option<String>,
}

impl Listing {
    fn names(&self) -> Vec<&str> {
        self.siblings.iter().map(|one| one.rfilename.as_str()).collect()
    }
}

impl Sibling {
    /// The name of its content.
    fn etag(&self) -> Option<&str> {
        self.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref()).or(self.blob.as_deref())
    }
}

/// The name that the hub gives a content: SHA-256 of a large file, git's digest of a small one.
pub fn etag(content: &[u8], large: bool) -> String {
    let mut digest = digest::Digest::of(&"0".repeat(if large { 64 } else { 40 }), content.len() as u64);
    digest.update(content);
    digest.finish().unwrap_or_default()
}

impl Settings {
    /// As the environment says, with the names and defaults of Python's `huggingface_hub`.
    pub fn from_env() -> Result<Self, HubError> {
        let endpoint = env::HF_ENDPOINT.get().unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(HubError::Endpoint { endpoint });
        }
        let home = || std::env::home_dir().unwrap_or_default();
        let expanded = |text: String| match text.strip_prefix("~/") {
            Some(rest) => home().join(rest),
            None => PathBuf::from(text),
        };
        let above = || env::XDG_CACHE_HOME.get().map_or_else(|| home().join(".cache"), expanded);
        let own = env::HF_HOME.get().map_or_else(|| above().join("huggingface"), expanded);
        let token = match env::HF_TOKEN.get() {
            Some(token) => Token::new(&token),
            None => {
                let path = env::HF_TOKEN_PATH.get().map_or_else(|| own.join("token"), expanded);
                let text = fs_err::read_to_string(path).ok();
                text.inspect(|text| secret::add("HF_TOKEN_PATH's file", text)).and_then(|text| Token::new(&text))
            }
        };
        let offline = env::HF_HUB_OFFLINE
            .get()
            .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()));
        let cache = env::HF_HUB_CACHE.get().map_or_else(|| own.join("hub"), expanded);
        Ok(Self { endpoint, token, cache, offline, pause: Duration::from_millis(500) })
    }
}

impl Hub {
    /// A hub and its cache; nothing is asked or written yet.
    pub fn new(settings: Settings) -> Self {
        let Settings { endpoint, token, cache, offline, pause } = settings;
        Self { client: Client::new(endpoint, token, pause), cache: Cache::new(cache), offline }
    }

    /// What the cache has of a model, if that is whole. Asks nobody.
    pub fn cached(&self, repo: &Repo) -> io::Result<Option<Snapshot>> {
        match self.cache.commit(repo)? {
            Some(commit) => self.cache.snapshot(repo, &commit),
            None => Ok(None),
        }
    }

    /// How many bytes [`Self::fetch`] would download, as far as the hub tells.
    ///
    /// Errs as `fetch` does, so that what would fail there shows before.
    pub fn to_download(&self, repo: &Repo) -> Result<Option<u64>, HubError> {
        if self.offline {
            return Err(self.is_offline(repo));
        }
        let listing = self.listing(repo, 1)?;
        let selection = Selection::of(repo, listing.names().into_iter())?;
        let files: Vec<String> =
            listing.names().iter().filter(|name| selection.counts(name)).map(|name| (*name).to_owned()).collect();
        Ok(self.missing(repo, &listing, &files))
    }

    /// What `config.json` says of a model that is not here: from the cache if that has this one file, else from the hub.
    pub fn config(&self, repo: &Repo) -> Result<serde_json::Value, HubError> {
        let here = self.cache.commit(repo)?.map(|commit| self.cache.pointer(repo, &commit, "config.json"));
        if let Some(config) = here.and_then(|path| serde_json::from_slice(&fs_err::read(path).ok()?).ok()) {
            return Ok(config);
        }
        if self.offline {
            return Err(self.is_offline(repo));
        }
        let commit = self.listing(repo, 1)?.sha;
        self.client.json(repo, &repo.file_path(&commit, "config.json"), 1)
    }

    /// The size of those of some files that are not there; `None` if the hub does not tell.
    fn missing(&self, repo: &Repo, listing: &Listing, files: &[String]) -> Option<u64> {
        let wanted = listing.siblings.iter().filter(|one| {
            files.contains(&one.rfilename) && !self.cache.pointer(repo, &listing.sha, &one.rfilename).exists()
        });
        wanted.map(|one| one.size).sum()
    }

    /// Errs if the disk has not the room for those of some files that are not there, as far as sizes are known.
    fn has_room(&self, repo: &Repo, listing: &Listing, files: &[String]) -> Result<(), HubError> {
        let Some(free) = fs::free(self.cache.root()) else { return Ok(()) };
        let wanted = listing.siblings.iter().filter(|one| {
            files.contains(&one.rfilename) && !self.cache.pointer(repo, &listing.sha, &one.rfilename).exists()
        });
        let needed = wanted.map(|one| {
            let there = one.etag().map_or(0, |etag| self.cache.arrived(repo, etag));
            one.size.unwrap_or(0).saturating_sub(there)
        });
        let needed: u64 = needed.sum();
        if needed > free {
            let cache = self.cache.root().to_owned();
            return Err(HubError::NoRoom { repo: repo.clone(), needed, free, cache });
        }
        Ok(())
    }

    fn is_offline(&self, repo: &Repo) -> HubError {
        HubError::Offline { repo: repo.clone(), cache: self.cache.root().to_owned() }
    }

    /// Sees to it that a model is in the cache at the commit that its revision stands for now, and whole.
    ///
    /// Without a network, what the cache has is used, with a warning; in offline mode without asking. Errs where the
    /// repository is not to be had, has no model in it that can be used, or a file does not have the digest that the hub names.
    pub fn fetch(&self, repo: &Repo, progress: &mut dyn FnMut(Downloaded)) -> Result<Snapshot, HubError> {
        let cached = self.cached(repo)?;
        if self.offline {
            return cached.ok_or_else(|| self.is_offline(repo));
        }
        // What a commit has does not change.
        if let Some(cached) = &cached
            && repo.is_commit()
            && self.cache.knows_all(repo, cached)
        {
            return Ok(cached.clone());
        }
        let listing = match (self.listing(repo, if cached.is_some() { 2 } else { http::TRIES }), cached) {
            (Ok(listing), _) => listing,
            (Err(error @ HubError::Network { .. }), Some(cached)) => {
                tracing::warn!("{error}; the cache's {repo} at commit {} is used", cached.commit);
                return Ok(cached);
            }
            (Err(error), _) => return Err(error),
        };
        let commit = &listing.sha;
        let names = listing.names();
        let selection = Selection::of(repo, names.iter().copied())?;
        let all: Vec<String> =
            names.iter().filter(|name| selection.counts(name)).map(|name| (*name).to_owned()).collect();
        self.has_room(repo, &listing, &all)?;
        let (first, weights): (Vec<&str>, Vec<&str>) =
            names.iter().copied().filter(|name| selection.counts(name)).partition(|name| !select::is_weights(name));
        self.files(repo, commit, &first, progress)?;
        // Which weights count, the index says.
        let weights = match select::shards(&self.cache.pointer(repo, commit, select::INDEX))? {
            Some(shards) if selection.is_sharded() => {
                if let Some(absent) = shards.iter().find(|shard| !names.contains(&shard.as_str())) {
                    let what = format!("its {} names `{absent}`, which it does not have", select::INDEX);
                    return Err(HubError::NoModel { repo: repo.clone(), what });
                }
                shards
            }
            _ => weights.into_iter().map(str::to_owned).collect(),
        };
        let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
        self.files(repo, commit, &weights, progress)?;
        self.cache.remember(repo, commit, &names)?;
        self.cache.snapshot(repo, commit)?.ok_or_else(|| {
            let what = format!("the download to `{}` is not whole", self.cache.directory(repo, commit).display());
            HubError::NoModel { repo: repo.clone(), what }
        })
    }

    fn listing(&self, repo: &Repo, tries: u32) -> Result<Listing, HubError> {
        let listing: Listing = self.client.json(repo, &repo.listing_path(), tries)?;
        let names = listing.names().into_iter();
        let strange = names.chain([listing.sha.as_str()]).find(|name| !cache::is_inside(name));
        match strange {
            Some(name) => Err(HubError::Malformed { what: format!("a file is called {name:?}") }),
            None => Ok(listing),
        }
    }

    /// Downloads files that are not there, a few at a time.
    fn files(
        &self,
        repo: &Repo,
        commit: &str,
        names: &[&str],
        progress: &mut dyn FnMut(Downloaded),
    ) -> Result<(), HubError> {
        let missing: VecDeque<&str> =
            names.iter().copied().filter(|name| !self.cache.pointer(repo, commit, name).exists()).collect();
        let streams = missing.len().min(STREAMS);
        let queue = Mutex::new(missing);
        let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..streams)
                .map(|_| {
                    let sender = sender.clone();
                    scope.spawn(|| {
                        let sender = sender;
                        while let Some(name) = next() {
                            let fetched = download::file(&self.client, &self.cache, repo, commit, name, &sender);
                            if fetched.is_err() {
                                // The others go on with what they have, and begin nothing.
                                while next().is_some() {}
                                return fetched;
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            drop(sender);
            let mut so_far = Downloaded { done: 0, total: 0 };
            for event in receiver {
                match event {
                    download::Event::Begins { size } => so_far.total += size,
                    download::Event::Has { bytes } => so_far.done += bytes,
                    download::Event::Lost { bytes } => so_far.done = so_far.done.saturating_sub(bytes),
                }
                progress(so_far);
            }
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }
}
