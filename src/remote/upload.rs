//! An object from here to there. It is read once, hashed on the way, and what is not what its name says is not left
//! there. A large one goes in parts; where the server allows it, an upload that was killed is gone on with.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use object_store::multipart::PartId;
use object_store::{ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::{Moving, RemoteError, Tell, names};
use crate::digest::Digest;
use crate::fs;
use crate::pieces::{self, Pieces};
use crate::store::{Blob, Store, StoreError};

/// Objects up to this size go in one request.
const WHOLE: u64 = 16 << 20;
/// Parts that are on their way at once.
const AHEAD: usize = 4;
/// Servers take ten thousand parts.
const MOST_PARTS: u64 = 9_000;

/// Sends an object whose bytes lie in a file.
///
/// Errs with [`StoreError::Damaged`] if the file is not what the blob says; then nothing is left there.
pub(super) fn object(
    client: &Client,
    store: &Store,
    blob: &Blob,
    file: &Path,
    tell: Tell<'_>,
) -> Result<(), RemoteError> {
    let name = names::object(&blob.digest);
    if blob.size <= WHOLE {
        let mut bytes = Vec::with_capacity(blob.size as usize);
        pieces::open(file)?.take(WHOLE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != blob.size || Digest::of(&bytes) != blob.digest {
            return Err(damaged(file).into());
        }
        client.put(&name, bytes)?;
        tell(Moving::Bytes(blob.size));
        return Ok(());
    }
    if client.parts().is_some() {
        in_parts(client, store, blob, file, &name, tell)
    } else {
        streamed(client, blob, file, &name, tell)
    }
}

fn damaged(file: &Path) -> StoreError {
    StoreError::Damaged { what: format!("`{}`: its bytes are not those of its name", file.display()) }
}

fn part_size(size: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    WHOLE.max(size.div_ceil(MOST_PARTS).div_ceil(MIB) * MIB)
}

/// Reads a file in parts of one size, hashing.
struct Parts {
    file: Pieces,
    hasher: blake3::Hasher,
    size: u64,
}

impl Parts {
    fn of(file: &Path, size: u64) -> Result<Self, RemoteError> {
        Ok(Self { file: pieces::open(file)?, hasher: blake3::Hasher::new(), size })
    }

    /// The next part; empty at the end.
    fn next(&mut self) -> std::io::Result<Vec<u8>> {
        let mut part = Vec::with_capacity(self.size as usize);
        self.file.by_ref().take(self.size).read_to_end(&mut part)?;
        self.hasher.update(&part);
        Ok(part)
    }

    fn is(&self, blob: &Blob) -> bool {
        Digest::from(self.hasher.finalize()) == blob.digest
    }
}

/// Sends a file through one upload, which ends with this process.
fn streamed(client: &Client, blob: &Blob, file: &Path, name: &str, tell: Tell<'_>) -> Result<(), RemoteError> {
    let path = client.path(name);
    let fault = |error| Client::fault(&error);
    let mut upload = client.block_on(client.store().put_multipart(&path)).map_err(fault)?;
    let mut parts = Parts::of(file, part_size(blob.size))?;
    let sent = (|| {
        loop {
            let part = parts.next()?;
            if part.is_empty() {
                return if parts.is(blob) { Ok(()) } else { Err(damaged(file).into()) };
            }
            let size = part.len() as u64;
            let sending = upload.put_part(PutPayload::from(part));
            client.block_on(sending).map_err(fault)?;
            tell(Moving::Bytes(size));
            fs::kill_point("send");
        }
    })();
    if sent.is_err() {
        // What went wrong is told already.
        let _ = client.block_on(upload.abort());
        return sent;
    }
    client.block_on(upload.complete()).map(drop).map_err(fault)
}

/// What is known of an upload in parts: the first line of its journal, and a line for each part that is there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Begun { upload: String, part_size: u64 },
    Sent { part: usize, content: String },
}

/// The journal of an upload, held by this process alone.
struct Journal {
    path: PathBuf,
    _lock: fs_err::File,
    upload: Option<(String, u64)>,
    sent: Vec<Option<String>>,
}

impl Journal {
    /// Opens the journal of an object's upload to a place; `None` if another process is at it.
    fn open(store: &Store, url: &str, blob: &Blob) -> Result<Option<Self>, RemoteError> {
        let place = Digest::of(url.as_bytes()).short();
        let path = store.arrival(&blob.digest)?.with_file_name(format!("{}.to-{place}", blob.digest));
        let mut file = fs_err::OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        if file.file().try_lock().is_err() {
            return Ok(None);
        }
        let mut text = String::new();
        // What is no text was written by no one.
        if file.seek(SeekFrom::Start(0)).is_err() || file.read_to_string(&mut text).is_err() {
            text.clear();
        }
        let (mut upload, mut sent) = (None, Vec::new());
        for line in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            match line {
                Line::Begun { upload: id, part_size } => (upload, sent) = (Some((id, part_size)), Vec::new()),
                Line::Sent { part, content } if upload.is_some() && part <= MOST_PARTS as usize + 1 => {
                    sent.resize(sent.len().max(part + 1), None);
                    sent[part] = Some(content);
                }
                Line::Sent { .. } => {}
            }
        }
        Ok(Some(Self { path, _lock: file, upload, sent }))
    }

    fn write(&self, line: &Line) -> Result<(), RemoteError> {
        let mut bytes = serde_json::to_vec(line).map_err(StoreError::from)?;
        bytes.push(b'\n');
        Ok(fs::append(&self.path, &bytes)?)
    }
}

/// Sends a file in parts that outlive this process.
fn in_parts(
    client: &Client,
    store: &Store,
    blob: &Blob,
    file: &Path,
    name: &str,
    tell: Tell<'_>,
) -> Result<(), RemoteError> {
    let Some(mut journal) = Journal::open(store, client.url(), blob)? else {
        return streamed(client, blob, file, name, tell);
    };
    let resumed = journal.upload.is_some();
    let sent = send_parts(client, blob, file, name, &mut journal, tell);
    let sent = match sent {
        // The server has forgotten the upload: from the start.
        Err(RemoteError::Incomplete { .. } | RemoteError::Answer { .. }) if resumed => {
            (journal.upload, journal.sent) = (None, Vec::new());
            tell(Moving::Lost(blob.size));
            send_parts(client, blob, file, name, &mut journal, tell)
        }
        other => other,
    };
    if sent.is_ok() || matches!(sent, Err(RemoteError::Store(StoreError::Damaged { .. }))) {
        fs::remove_file(&journal.path)?;
    }
    sent
}

fn send_parts(
    client: &Client,
    blob: &Blob,
    file: &Path,
    name: &str,
    journal: &mut Journal,
    tell: Tell<'_>,
) -> Result<(), RemoteError> {
    let Some(remote) = client.parts() else { return Ok(()) };
    let path = client.path(name);
    let fault = |error| Client::fault(&error);
    let (upload, size) = match journal.upload.clone() {
        Some(begun) => begun,
        None => {
            let upload = client.block_on(remote.create_multipart(&path)).map_err(fault)?;
            let size = part_size(blob.size);
            journal.write(&Line::Begun { upload: upload.clone(), part_size: size })?;
            (upload, size)
        }
    };
    let mut parts = Parts::of(file, size.clamp(1, 5 << 30))?;
    let mut sending: FuturesUnordered<BoxFuture<'_, _>> = FuturesUnordered::new();
    let mut number = 0;
    let mut at_end = false;
    loop {
        while !at_end && sending.len() < AHEAD {
            let part = parts.next()?;
            if part.is_empty() {
                at_end = true;
                break;
            }
            let (this, length) = (number, part.len() as u64);
            number += 1;
            journal.sent.resize(journal.sent.len().max(number), None);
            if journal.sent[this].is_some() {
                tell(Moving::Bytes(length));
                continue;
            }
            let (path, upload) = (&path, &upload);
            sending.push(Box::pin(async move {
                let sent = remote.put_part(path, upload, this, PutPayload::from(part)).await;
                (this, length, sent)
            }));
        }
        let Some((this, length, sent)) = client.block_on(sending.next()) else { break };
        let content = sent.map_err(fault)?.content_id;
        journal.write(&Line::Sent { part: this, content: content.clone() })?;
        journal.sent[this] = Some(content);
        tell(Moving::Bytes(length));
        fs::kill_point("send");
    }
    if !parts.is(blob) {
        let _ = client.block_on(remote.abort_multipart(&path, &upload));
        return Err(damaged(file).into());
    }
    let all = journal.sent.iter().take(number).flatten();
    let all = all.map(|content| PartId { content_id: content.clone() }).collect();
    client.block_on(remote.complete_multipart(&path, &upload, all)).map(drop).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough() {
        for size in [WHOLE + 1, 1 << 30, 1 << 40] {
            assert!(size.div_ceil(part_size(size)) <= MOST_PARTS);
        }
        assert_eq!(part_size(1 << 30), WHOLE);
    }

    #[test]
    fn a_journal_is_read_back_and_held_by_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let blob = Blob { digest: Digest::of(b"x"), size: 1 };
        let journal = Journal::open(&store, "s3://a", &blob).unwrap().unwrap();
        assert!(journal.upload.is_none());
        journal.write(&Line::Begun { upload: "u".into(), part_size: 7 }).unwrap();
        journal.write(&Line::Sent { part: 2, content: "c".into() }).unwrap();
        fs::append(&journal.path, b"{\"part\":").unwrap();
        assert!(Journal::open(&store, "s3://a", &blob).unwrap().is_none());
        assert!(Journal::open(&store, "s3://b", &blob).unwrap().unwrap().upload.is_none());
        drop(journal);
        let again = Journal::open(&store, "s3://a", &blob).unwrap().unwrap();
        assert_eq!(again.upload, Some(("u".to_owned(), 7)));
        assert_eq!(again.sent, [None, None, Some("c".to_owned())]);
    }
}
