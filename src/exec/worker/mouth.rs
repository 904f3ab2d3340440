//! What a worker says: to the scheduler's socket, or, detached, into a file beside its job.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::endpoint::{Allowance, Purse, Spent};
use crate::exec::job::Word;
use crate::fs;
use crate::kinds::Progress;

/// The least time between two words of progress, over a socket and into a file.
const BEAT: Duration = Duration::from_millis(100);
const FILE_BEAT: Duration = Duration::from_millis(500);

/// Who hears it.
enum Outlet {
    /// No one: the job was started by hand.
    Nobody,
    Socket(UnixStream),
    /// Whoever reads the file. It is opened and closed for each word: only then do other hosts see it on NFS.
    File(PathBuf),
}

/// What the worker says.
pub(super) struct Mouth {
    outlet: Outlet,
    last: Option<Instant>,
    /// Progress that was too soon after the last to be said, with all steps and notes since.
    held: Option<Progress>,
    pub(super) purse: Arc<Purse>,
    /// What was said to be spent.
    told: Spent,
}

impl Mouth {
    /// To a scheduler on a socket, if there is one.
    pub(super) fn new(socket: Option<UnixStream>) -> Self {
        Self::to(socket.map_or(Outlet::Nobody, Outlet::Socket))
    }

    /// Into a file.
    pub(super) fn file(path: PathBuf) -> Self {
        Self::to(Outlet::File(path))
    }

    fn to(outlet: Outlet) -> Self {
        let purse = Arc::new(Purse::new(Allowance::default()));
        Self { outlet, last: None, held: None, purse, told: Spent::default() }
    }

    /// Begins with another attempt.
    pub(super) fn begin(&mut self, allowance: Allowance) {
        (self.last, self.purse, self.told) = (None, Arc::new(Purse::new(allowance)), Spent::default());
    }

    pub(super) fn progress(&mut self, mut progress: Progress) {
        fs::kill_point("progress");
        if let Some(mut held) = self.held.take() {
            held.steps.append(&mut progress.steps);
            progress.steps = held.steps;
            held.notes.append(&mut progress.notes);
            progress.notes = held.notes;
        }
        let beat = if matches!(self.outlet, Outlet::File(_)) { FILE_BEAT } else { BEAT };
        let due = self.last.is_none_or(|last| last.elapsed() >= beat);
        if due || progress.done >= progress.total {
            self.last = Some(Instant::now());
            self.account();
            self.say(&Word::Progress(progress));
        } else {
            self.held = Some(progress);
        }
    }

    /// Says what is held of steps: none is kept for itself.
    pub(super) fn catch_up(&mut self) {
        if let Some(held) = self.held.take().filter(|held| !held.steps.is_empty()) {
            self.say(&Word::Progress(held));
        }
    }

    /// Says what was spent since it was said last.
    pub(super) fn account(&mut self) {
        let spent = self.purse.spent();
        if spent != self.told {
            self.told = spent;
            self.say(&Word::Spent(spent));
        }
    }

    /// Says a word. Of a word that cannot be said nothing is lost but that someone hears it: without a scheduler on the
    /// socket the lifeline ends this process, and a result is in a file, too.
    pub(super) fn say(&mut self, word: &Word) {
        let Ok(mut line) = serde_json::to_vec(word) else { return };
        line.push(b'\n');
        let said = match &mut self.outlet {
            Outlet::Nobody => Ok(()),
            Outlet::Socket(socket) => socket.write_all(&line),
            Outlet::File(path) => fs::append_unsynced(path, &line),
        };
        if let Err(error) = said {
            tracing::debug!("a word is not heard: {error}");
        }
    }
}
