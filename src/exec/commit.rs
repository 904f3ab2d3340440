//! Makes the results of attempts durable, those that ended together together: a wait for the disk is for all of them.
//!
//! Order is what keeps a record from being there without its artifact: first the disk is waited for as to objects and
//! manifests, then records are written, then it is waited for as to these. Only then is a node told to be done.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use super::local::Message;
use crate::digest::Digest;
use crate::fs;
use crate::store::{NodeRecord, Store, StoreError};

/// An attempt that succeeded and is not durable yet.
#[derive(Debug)]
pub(super) struct Made {
    /// Which.
    pub(super) attempt: u64,
    /// What is recorded of it.
    pub(super) record: NodeRecord,
    /// What the disk is to be waited for first.
    pub(super) unsettled: Vec<PathBuf>,
    /// When it ended.
    pub(super) since: Instant,
}

/// Commits batches until no more can come; each is answered.
pub(super) fn commit_all(store: &Store, batches: &Receiver<Vec<Made>>, outbox: &Sender<Message>) {
    for batch in batches {
        let attempts = batch.iter().map(|made| made.attempt).collect();
        let done = commit(store, batch);
        // Without a scheduler there is no one to tell.
        let _ = outbox.send(Message::Committed { attempts, done: Box::new(done) });
    }
}

/// Makes the records of a batch durable. Returns the records that hold, which are others where others were first, each with
/// the artifact that the attempt made.
fn commit(store: &Store, mut batch: Vec<Made>) -> Result<Vec<(NodeRecord, Digest)>, StoreError> {
    let unsettled: Vec<PathBuf> = batch.iter_mut().flat_map(|made| std::mem::take(&mut made.unsettled)).collect();
    if let Err(error) = fs::settle(&unsettled) {
        // What could not be synced is gone; a manifest that lists it goes, too.
        batch.iter().for_each(|made| store.withdraw(&made.record.artifact));
        return Err(error.into());
    }
    let put = |made: Made| {
        let artifact = made.record.artifact;
        Ok((store.put_node(&made.record)?.unwrap_or(made.record), artifact))
    };
    let (records, unsettled) =
        fs::deferred(|| batch.into_iter().map(put).collect::<Result<Vec<(NodeRecord, Digest)>, StoreError>>());
    let records = records?;
    fs::settle(&unsettled)?;
    records.iter().try_for_each(|(record, _)| store.clear_partial(&record.key))?;
    Ok(records)
}
