//! An object from there to here. What arrives waits in `tmp/arriving/` under its digest, also when the process dies, and
//! is gone on with. It gets its place when its digest is right, and not before.

use std::io::{Seek, SeekFrom};
use std::path::Path;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;

use super::client::Client;
use super::{Moving, RemoteError, Tell, names};
use crate::fs;
use crate::store::{Blob, Store};

/// Larger objects come in ranges of this size,
const RANGE: u64 = 8 << 20;
/// so many of them asked for at once.
const AHEAD: usize = 4;
/// How often an object that arrives wrong is fetched from its start.
const WHOLE_TRIES: u32 = 2;

/// Brings an object here, unless it is here. Errs with [`RemoteError::WrongBytes`] if what arrives is never right.
pub(super) fn object(client: &Client, store: &Store, blob: &Blob, tell: Tell<'_>) -> Result<(), RemoteError> {
    if store.keeps_object(blob)? {
        tell(Moving::Bytes(blob.size));
        return Ok(());
    }
    let waiting = store.arrival(&blob.digest)?;
    let file = open(&waiting)?;
    // Another process may be at it; what it has fetched need not be fetched again.
    file.file().lock()?;
    if store.keeps_object(blob)? {
        fs::discard(&waiting);
        tell(Moving::Bytes(blob.size));
        return Ok(());
    }
    let name = names::object(&blob.digest);
    let mut tried = 1;
    loop {
        let what = match receive(client, &name, blob, &waiting, tell)? {
            Some(what) => what,
            None => match wrong(&waiting, blob)? {
                None => return Ok(store.take_object(&waiting, blob)?),
                Some(what) => what,
            },
        };
        let came = fs_err::metadata(&waiting)?.len();
        tell(Moving::Lost(came));
        if came > 0 {
            store.set_aside(&waiting)?;
        }
        if tried == WHOLE_TRIES {
            return Err(RemoteError::WrongBytes { name, what });
        }
        tried += 1;
    }
}

fn open(path: &Path) -> std::io::Result<fs_err::File> {
    fs_err::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)
}

/// Fetches until all bytes are there, however often the connection breaks while it makes progress. Returns what is
/// wrong with what the server has, if that shows before all is here.
fn receive(
    client: &Client,
    name: &str,
    blob: &Blob,
    waiting: &Path,
    tell: Tell<'_>,
) -> Result<Option<String>, RemoteError> {
    let mut file = open(waiting)?;
    let mut have = file.metadata()?.len();
    if have > blob.size {
        file.set_len(0)?;
        have = 0;
    }
    tell(Moving::Bytes(have));
    let mut tried = 0;
    while have < blob.size || blob.size == 0 {
        let before = have;
        file.seek(SeekFrom::Start(have))?;
        let mut sink = Sink { file: &mut file, have: &mut have, most: blob.size, tell };
        let came = if blob.size - before <= RANGE {
            one_piece(client, name, blob, before, &mut sink)
        } else {
            ranges(client, name, blob, before, &mut sink)
        };
        match came {
            Ok(Came::All) if blob.size == 0 => break,
            Ok(Came::All) => {}
            Ok(Came::Wrong(what)) => return Ok(Some(what)),
            Ok(Came::NoRanges) => {
                // From the start, then, and in one piece.
                tell(Moving::Lost(have));
                file.set_len(0)?;
                file.seek(SeekFrom::Start(0))?;
                have = 0;
                let mut sink = Sink { file: &mut file, have: &mut have, most: blob.size, tell };
                if let Came::Wrong(what) = whole(client, name, blob, &mut sink)? {
                    return Ok(Some(what));
                }
            }
            Err(error @ (RemoteError::Unreachable { .. } | RemoteError::Answer { .. })) => {
                // A range beyond the end of what is there is refused in many words.
                if let Ok(Some(size)) = client.size(name)
                    && size != blob.size
                {
                    return Ok(Some(sizes(size, blob)));
                }
                tried = if have > before { 1 } else { tried + 1 };
                if tried >= client.tries {
                    return Err(error);
                }
                tracing::debug!("`{name}` broke off at {have} of {} bytes: {error}", blob.size);
                Client::pause(tried);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// How a piece came.
enum Came {
    /// As asked for.
    All,
    /// The server does not know ranges.
    NoRanges,
    /// The server has something else; what.
    Wrong(String),
}

/// Where bytes go.
struct Sink<'a> {
    file: &'a mut fs_err::File,
    have: &'a mut u64,
    most: u64,
    tell: Tell<'a>,
}

impl Sink<'_> {
    /// Writes a block. Returns whether it was one too many.
    fn write(&mut self, block: &[u8]) -> Result<bool, RemoteError> {
        if *self.have + block.len() as u64 > self.most {
            return Ok(true);
        }
        fs::write_all(self.file, block)?;
        *self.have += block.len() as u64;
        (self.tell)(Moving::Bytes(block.len() as u64));
        fs::kill_point("arrive");
        Ok(false)
    }
}

fn one_piece(client: &Client, name: &str, blob: &Blob, from: u64, sink: &mut Sink<'_>) -> Result<Came, RemoteError> {
    let range = (from > 0).then_some(from..blob.size);
    let Some(found) = client.open(name, range)? else { return Ok(Came::NoRanges) };
    drain(client, name, blob, found, sink)
}

fn whole(client: &Client, name: &str, blob: &Blob, sink: &mut Sink<'_>) -> Result<Came, RemoteError> {
    let Some(found) = client.open(name, None)? else { return Ok(Came::NoRanges) };
    drain(client, name, blob, found, sink)
}

fn drain(
    client: &Client,
    name: &str,
    blob: &Blob,
    found: object_store::GetResult,
    sink: &mut Sink<'_>,
) -> Result<Came, RemoteError> {
    if found.meta.size != blob.size {
        return Ok(Came::Wrong(sizes(found.meta.size, blob)));
    }
    let mut blocks = found.into_stream();
    while let Some(block) = client.block_on(blocks.try_next()).map_err(|error| Client::fault(&error))? {
        if sink.write(&block)? {
            return Ok(Came::Wrong(format!("it goes on after {} bytes", blob.size)));
        }
    }
    if *sink.have < blob.size {
        let what = format!("`{name}` ended after {} of {} bytes", *sink.have, blob.size);
        return Err(RemoteError::Unreachable { what });
    }
    Ok(Came::All)
}

fn ranges(client: &Client, name: &str, blob: &Blob, from: u64, sink: &mut Sink<'_>) -> Result<Came, RemoteError> {
    // The first range tells the size, and whether ranges are known at all.
    let first = from..(from + RANGE).min(blob.size);
    let Some(found) = client.open(name, Some(first.clone()))? else { return Ok(Came::NoRanges) };
    if found.meta.size != blob.size {
        return Ok(Came::Wrong(sizes(found.meta.size, blob)));
    }
    let mut blocks = found.into_stream();
    while let Some(block) = client.block_on(blocks.try_next()).map_err(|error| Client::fault(&error))? {
        if sink.write(&block)? {
            return Ok(Came::Wrong(format!("it goes on after {} bytes", blob.size)));
        }
    }
    let (remote, path) = (client.store().clone(), client.path(name));
    let starts: Vec<u64> = (first.end..blob.size).step_by(RANGE as usize).collect();
    let mut rest = stream::iter(starts)
        .map(|start| {
            let (remote, path, end) = (remote.clone(), path.clone(), (start + RANGE).min(blob.size));
            async move { remote.get_range(&path, start..end).await }
        })
        .buffered(AHEAD);
    while let Some(block) = client.block_on(rest.next()) {
        let block = block.map_err(|error| Client::fault(&error))?;
        if sink.write(&block)? {
            return Ok(Came::Wrong(format!("it goes on after {} bytes", blob.size)));
        }
    }
    if *sink.have < blob.size {
        let what = format!("`{name}` ended after {} of {} bytes", *sink.have, blob.size);
        return Err(RemoteError::Unreachable { what });
    }
    Ok(Came::All)
}

fn sizes(found: u64, blob: &Blob) -> String {
    format!("it has {found} bytes, not {}", blob.size)
}

/// What is wrong with all the bytes that came.
fn wrong(path: &Path, blob: &Blob) -> Result<Option<String>, RemoteError> {
    let Blob { digest, size } = Blob::of_file(path)?;
    Ok(if size != blob.size {
        Some(sizes(size, blob))
    } else if digest != blob.digest {
        Some(format!("its digest is {}, not {}", digest.short(), blob.digest.short()))
    } else {
        None
    })
}
