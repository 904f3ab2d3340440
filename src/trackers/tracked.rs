//! Which run in a tracker a run belongs to: one that was killed, interrupted or failed and the one that goes on with it
//! are the same there.
//!
//! `trackers/ID.json` in the cache says under which name an unfinished run was told of; ID stands for what the pipeline
//! asks for. It is locked while such a run goes on: a second one at the same time has a name of its own. When all is done
//! it is removed.

use std::fs::TryLockError;
use std::io::{self, Read};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::About;
use crate::fs;

/// Under which name a run is told of, and where.
#[derive(Debug)]
pub(super) struct Tracked {
    path: PathBuf,
    /// Locked; none before the run begins, and where nothing can be written or another run has it.
    file: Option<fs_err::File>,
    state: State,
    /// Whether the run is over, and no other one goes on with it.
    again: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    /// Ids of runs that went on with each other.
    runs: Vec<String>,
    /// The run on an MLflow server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mlflow: Option<Remote>,
}

/// A run on a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remote {
    /// The server's address.
    pub(super) url: String,
    /// The experiment as named, or the pipeline's name.
    pub(super) experiment: String,
    /// Its id there.
    pub(super) run: String,
}

impl Tracked {
    pub(super) fn new(about: &About) -> Self {
        let path = about.cache.join("trackers").join(format!("{}.json", about.identity));
        Self { path, file: None, state: State::default(), again: about.again }
    }

    /// The name that a run is told of under, and the ids of those that it goes on with, its own last.
    pub(super) fn begin(&mut self, run: &str) -> (String, Vec<String>) {
        if self.again {
            return (run.to_owned(), vec![run.to_owned()]);
        }
        self.file = open(&self.path).unwrap_or_else(|error| {
            tracing::debug!("a run that goes on with this one will be told of as another one: {error}");
            None
        });
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file
            && file.read_to_end(&mut bytes).is_ok()
        {
            // What a kill left half written is of no use.
            self.state = serde_json::from_slice(&bytes).unwrap_or_default();
        }
        self.state.runs.push(run.to_owned());
        self.save();
        (self.state.runs[0].clone(), self.state.runs.clone())
    }

    /// The run on an MLflow server that this one goes on with.
    pub(super) fn mlflow(&self) -> Option<&Remote> {
        self.state.mlflow.as_ref()
    }

    /// Keeps in mind which run on an MLflow server this one is.
    pub(super) fn set_mlflow(&mut self, remote: Remote) {
        self.state.mlflow = Some(remote);
        self.save();
    }

    /// All is done: the next run is another one.
    pub(super) fn over(&mut self) {
        if self.file.take().is_some()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!("the next run will be told of as this one: {error}");
        }
    }

    fn save(&self) {
        let (Some(file), Ok(bytes)) = (&self.file, serde_json::to_vec(&self.state)) else { return };
        if let Err(error) = fs::overwrite(file, &bytes) {
            tracing::debug!("a run that goes on with this one will be told of as another one: {error}");
        }
    }
}

/// Opens and locks the file; `None` if another run has it.
fn open(path: &std::path::Path) -> io::Result<Option<fs_err::File>> {
    fs::create_directory(path.parent().unwrap_or(path))?;
    let file = fs::open_or_create(path)?;
    match file.file().try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::Digest;

    #[test]
    fn a_run_goes_on_as_the_one_before_until_all_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let about = |what: &str| About {
            cache: folder.path().to_owned(),
            file: "p.toml".to_owned(),
            params: BTreeMap::new(),
            identity: Digest::of(what.as_bytes()),
            again: false,
        };
        let remote = Remote { url: "u".into(), experiment: "e".into(), run: "r".into() };
        let mut first = Tracked::new(&about("p"));
        assert_eq!(first.begin("a"), ("a".to_owned(), vec!["a".to_owned()]));
        first.set_mlflow(remote.clone());
        let mut beside = Tracked::new(&about("p"));
        assert_eq!(beside.begin("b").0, "b", "the first one has it");
        assert_eq!(beside.mlflow(), None);
        assert_eq!(Tracked::new(&about("q")).begin("c").0, "c", "another pipeline");
        // Killed.
        drop((first, beside));
        let mut second = Tracked::new(&about("p"));
        assert_eq!(second.begin("d"), ("a".to_owned(), vec!["a".to_owned(), "d".to_owned()]));
        assert_eq!(second.mlflow(), Some(&remote));
        second.over();
        drop(second);
        assert_eq!(Tracked::new(&about("p")).begin("e").0, "e");
    }

    #[test]
    fn a_torn_file_and_a_directory_that_cannot_be_made_cost_the_name_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let about =
            About { cache, file: String::new(), params: BTreeMap::new(), identity: Digest::of(b"p"), again: false };
        fs_err::write(folder.path().join("cache"), "a file").unwrap();
        assert_eq!(Tracked::new(&about).begin("a").0, "a");
        fs_err::remove_file(folder.path().join("cache")).unwrap();
        drop(Tracked::new(&about).begin("b"));
        let path = folder.path().join("cache/trackers").join(format!("{}.json", about.identity));
        fs_err::write(&path, "{\"runs\": [\"b").unwrap();
        assert_eq!(Tracked::new(&about).begin("c").0, "c");
    }
}
