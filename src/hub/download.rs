//! The download of one file.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::Sender;

use fs_err::File;
use ureq::http::StatusCode;

use super::cache::Cache;
use super::digest::Digest;
use super::http::{Again, Client, Content, FileInfo, TRIES, header};
use super::{HubError, Repo};
use crate::fs;

/// What happens to a file.
#[derive(Debug)]
pub(super) enum Event {
    /// It will be downloaded and has so many bytes.
    Begins { size: u64 },
    /// So many more bytes are there.
    Has { bytes: u64 },
    /// So many bytes have to be downloaded again.
    Lost { bytes: u64 },
}

/// How often a file that arrives damaged is downloaded from its start.
const WHOLE_TRIES: u32 = 2;

/// Downloads a file into the cache, or links it if the cache has its content already.
pub(super) fn file(
    client: &Client,
    cache: &Cache,
    repo: &Repo,
    commit: &str,
    name: &str,
    events: &Sender<Event>,
) -> Result<(), HubError> {
    let path = repo.file_path(commit, name);
    let info = client.head(repo, &path)?;
    let _lock = cache.lock(repo, &info.etag)?;
    let blob = cache.blob(repo, &info.etag);
    let is_there = std::fs::metadata(&blob).is_ok_and(|found| info.size.is_none_or(|size| found.len() == size));
    if !is_there {
        if let Some(directory) = blob.parent() {
            fs::create_directory(directory)?;
        }
        let incomplete = blob.with_file_name(format!("{}.incomplete", info.etag));
        let transfer = Transfer { client, repo, path: &path, name, info: &info, events };
        transfer.begin();
        let mut tries = WHOLE_TRIES;
        loop {
            transfer.receive(&incomplete)?;
            match transfer.fault(&incomplete)? {
                None => break,
                Some(what) => {
                    let bytes = fs_err::metadata(&incomplete)?.len();
                    fs::remove_file(&incomplete)?;
                    transfer.tell(Event::Lost { bytes });
                    tries -= 1;
                    if tries == 0 {
                        return Err(HubError::Damaged { repo: repo.clone(), file: name.to_owned(), what });
                    }
                }
            }
        }
        fs::rename(&incomplete, &blob)?;
    }
    Ok(cache.link(repo, commit, name, &info.etag)?)
}

struct Transfer<'a> {
    client: &'a Client,
    repo: &'a Repo,
    path: &'a str,
    name: &'a str,
    info: &'a FileInfo,
    events: &'a Sender<Event>,
}

impl Transfer<'_> {
    fn tell(&self, event: Event) {
        // Nobody listens once another file has failed.
        let _ = self.events.send(event);
    }

    fn begin(&self) {
        if let Some(size) = self.info.size {
            tracing::info!("downloading {} of {}: {size} bytes", self.name, self.repo);
            self.tell(Event::Begins { size });
        }
    }

    /// Receives until the connection ends with all bytes there, however often it has to be made again.
    fn receive(&self, incomplete: &Path) -> Result<(), HubError> {
        let mut file =
            fs_err::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(incomplete)?;
        let mut have = file.metadata()?.len();
        if self.info.size.is_some_and(|size| have > size) {
            file.set_len(0)?;
            have = 0;
        }
        self.tell(Event::Has { bytes: have });
        let mut patience = self.client.patience(TRIES);
        while self.info.size != Some(have) || have == 0 {
            let before = have;
            let (what, after) = match self.client.content(self.repo, self.path, have) {
                Ok(Content::Comes(response)) => {
                    // A server that does not know ranges begins at the start.
                    if have > 0 && !continues(&response, have) {
                        self.tell(Event::Lost { bytes: have });
                        have = 0;
                        file.set_len(0)?;
                    }
                    file.seek(SeekFrom::Start(have))?;
                    let ended = self.copy(response.into_body().into_reader(), &mut file, &mut have)?;
                    match (ended, self.info.size) {
                        (Ok(()), None) => break,
                        (Ok(()), Some(size)) if have >= size => break,
                        (Ok(()), Some(size)) => (format!("`{}` ended after {have} of {size} bytes", self.name), None),
                        (Err(error), _) => (format!("`{}` broke off: {error}", self.name), None),
                    }
                }
                Ok(Content::Again(Again { what, after })) => (what, after),
                // What is there is no beginning of the file.
                Err(HubError::Status { status: 416, .. }) if have > 0 => {
                    self.tell(Event::Lost { bytes: have });
                    have = 0;
                    file.set_len(0)?;
                    (format!("`{}` cannot be continued", self.name), None)
                }
                Err(error) => return Err(error),
            };
            if have > before {
                patience = self.client.patience(TRIES);
            }
            patience.wait(what, after)?;
        }
        Ok(fs::sync(&file)?)
    }

    /// Writes what arrives. The outer error is the disk's, the inner one the connection's.
    fn copy(&self, mut body: impl Read, file: &mut File, have: &mut u64) -> io::Result<io::Result<()>> {
        let mut block = vec![0; 1 << 18];
        loop {
            match body.read(&mut block) {
                Ok(0) => return Ok(Ok(())),
                Ok(read) => {
                    file.write_all(&block[..read])?;
                    *have += read as u64;
                    self.tell(Event::Has { bytes: read as u64 });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// What is wrong with a file that has arrived.
    fn fault(&self, incomplete: &Path) -> io::Result<Option<String>> {
        let found = fs_err::metadata(incomplete)?.len();
        if let Some(size) = self.info.size.filter(|size| *size != found) {
            return Ok(Some(format!("it has {found} bytes, not {size}")));
        }
        let mut digest = Digest::of(&self.info.etag, found);
        fs::each_block(&mut File::open(incomplete)?, |block| {
            digest.update(block);
            Ok(())
        })?;
        let differs = digest.finish().filter(|digest| *digest != self.info.etag);
        Ok(differs.map(|digest| format!("its digest is {digest}, not {}", self.info.etag)))
    }
}

/// Whether an answer goes on at byte `from`.
fn continues(response: &ureq::http::Response<ureq::Body>, from: u64) -> bool {
    let range = header(response.headers(), "content-range").unwrap_or_default();
    response.status() == StatusCode::PARTIAL_CONTENT && range.trim_start().starts_with(&format!("bytes {from}-"))
}
