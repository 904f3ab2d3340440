//! The remote cache in a run: asked before nodes run, and given what they made. That it is down, slow or not for us costs
//! a warning; the run goes on without.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::context::{self, Failure};
use super::push::faults;
use super::transfer::{Transfer, line};
use super::{DONE, FAILED};
use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::exec::{Elsewhere, Summary};
use crate::remote::{Access, Found, Moved, Moving, Patience, Remote, RemoteError, Wanted};
use crate::settings::RemoteSettings;
use crate::store::Store;

/// What a run takes from the remote cache.
pub(super) struct Source {
    settings: RemoteSettings,
    store: Store,
    /// Opened when it is first asked.
    remote: Mutex<Option<Remote>>,
    found: Mutex<HashMap<Digest, Found>>,
    moved: Mutex<Moved>,
    down: AtomicBool,
    /// Whether the run draws on the terminal by now.
    quiet: AtomicBool,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({})", self.settings.url)
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source {
    /// `store` is where things come to; a handle of its own, for it is used by another thread.
    pub(super) fn new(settings: RemoteSettings, store: Store) -> Self {
        let (remote, found, moved) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { settings, store, remote, found, moved, down: AtomicBool::new(false), quiet: AtomicBool::new(false) }
    }

    /// Does something with the remote; what goes wrong is told once, and then it is left alone.
    fn with<T: Default>(&self, work: impl FnOnce(&Remote) -> Result<T, RemoteError>) -> T {
        if self.down.load(Ordering::Relaxed) {
            return T::default();
        }
        let mut remote = held(&self.remote);
        let open = || {
            let remote = Remote::open(&self.settings, Patience::Short, Access::Read)?;
            remote.marker()?;
            Ok(remote)
        };
        let result = match &*remote {
            Some(remote) => work(remote),
            None => open().and_then(|opened| work(remote.insert(opened))),
        };
        result.unwrap_or_else(|error| {
            self.down.store(true, Ordering::Relaxed);
            // Nobody has pushed yet: nothing to warn of.
            if !matches!(error, RemoteError::Absent { .. }) {
                warn(&error, "the run goes on without it: what is not here is made here");
            }
            T::default()
        })
    }

    /// Tells what came, if something did. From then on nothing is drawn while things come.
    pub(super) fn report(&self) {
        self.quiet.store(true, Ordering::Relaxed);
        let moved = std::mem::take(&mut *held(&self.moved));
        if moved.nodes + moved.artifacts + moved.objects > 0 {
            say(&format!("pulled {} from {}", line(&moved), self.settings.url));
        }
        context::complain(&as_warnings(&moved));
    }
}

impl Elsewhere for Source {
    fn look(&self, keys: &[Digest]) -> HashMap<Digest, Digest> {
        let found = self.with(|remote| remote.find(keys));
        let artifacts = found.iter().map(|found| (found.record.key, found.record.artifact)).collect();
        held(&self.found).extend(found.into_iter().map(|found| (found.record.key, found)));
        artifacts
    }

    fn bring(&self, keys: &[Digest]) {
        let found: Vec<Found> = {
            let all = held(&self.found);
            keys.iter().filter_map(|key| all.get(key).cloned()).collect()
        };
        // What has a record here and has to run all the same may be damaged.
        let known = |found: &Found| !matches!(self.store.node(&found.record.key), Ok(None));
        let thorough = found.iter().any(known);
        let transfer = (!self.quiet.load(Ordering::Relaxed)).then(|| Transfer::new("pulling"));
        let tell = |moving: Moving| transfer.iter().for_each(|transfer| transfer.tell(moving));
        let pulled = self.with(|remote| remote.take(&self.store, &found, &[], thorough, &tell));
        transfer.iter().for_each(Transfer::end);
        held(&self.moved).add(pulled.moved);
    }
}

/// Sends what a run made. Returns the exit code that this asks for: if the user did not ask for it, what goes wrong is a
/// warning.
pub(super) fn push(settings: &RemoteSettings, store: &Store, summary: &Summary, asked: bool) -> Result<u8, Failure> {
    let made = summary.nodes.iter().filter(|node| node.state == "ran" && node.artifact.is_some());
    let keys: Vec<Digest> = made.filter_map(|node| node.key).collect();
    // A run that was asked to push sends what it used, too; it is looked at, not sent, if it is there.
    let hits = summary.nodes.iter().filter(|node| asked && node.state == "hit").filter_map(|node| node.key);
    let wanted = Wanted { keys: keys.iter().copied().chain(hits).collect(), ..Wanted::default() };
    if wanted.keys.is_empty() {
        return Ok(DONE);
    }
    let wanted = Wanted { runs: vec![summary.run.clone()], ..wanted };
    let patience = if asked { Patience::Long } else { Patience::Short };
    let transfer = Transfer::new("pushing");
    let pushed = Remote::open(settings, patience, Access::Write)
        .and_then(|remote| remote.push(store, &wanted, false, &|moving| transfer.tell(moving)));
    transfer.end();
    match pushed {
        Ok(moved) => {
            say(&format!("pushed {} to {}", line(&moved), settings.url));
            context::complain(&if asked { faults(&moved) } else { as_warnings(&moved) });
            Ok(if asked && !moved.failed.is_empty() { FAILED } else { DONE })
        }
        Err(error) if asked => Err(error.into()),
        Err(error) => {
            warn(&error, &format!("what the run made is here; `sami push {}` sends it", summary.run));
            Ok(DONE)
        }
    }
}

fn as_warnings(moved: &Moved) -> Vec<Diagnostic> {
    faults(moved).into_iter().map(Diagnostic::as_warning).collect()
}

fn warn(error: &RemoteError, note: &str) {
    context::complain(&[error.diagnostic().as_warning().note(note)]);
}

/// A line for people, on standard error: standard output may be a stream of events.
fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
