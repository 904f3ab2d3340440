//! The attempts at a node that runs left: their logs, and how they ended.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::story::Story;
use crate::exec::attempt_directory;
use crate::fs;
use crate::store::{Store, StoreError};

/// Largest result that is read.
const LARGEST: u64 = 64 << 20;
/// Attempts in a run that are looked for.
const MOST: u32 = 1000;

/// An attempt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attempt {
    /// The run's id.
    pub run: String,
    /// Its number in the run, from 1.
    pub number: u32,
    /// `done`, `failed`, `interrupted`, `running`, or empty if that was not told.
    pub state: String,
    /// Why it failed.
    pub error: String,
    /// Its log.
    #[serde(skip)]
    pub log: PathBuf,
    /// Whether that is there.
    pub has_log: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outcome {
    state: String,
    error: Option<serde_json::Value>,
}

/// The attempts at a node in a run, the last one first. `goes_on` is what the run told so far, if it goes on.
pub fn of(store: &Store, run: &str, node: &str, goes_on: Option<&Story>) -> Result<Vec<Attempt>, StoreError> {
    let told = goes_on.and_then(|story| story.told.get(node));
    let mut attempts = Vec::new();
    for number in 1..MOST {
        let name = attempt_directory(node, number);
        let directory = store.run_dir(run).join(&name);
        let flat = store.run_dir(run).join(name + ".log");
        let is_flat = !directory.is_dir();
        if is_flat && !flat.is_file() {
            break;
        }
        let outcome = outcome(&directory.join("result.json"));
        let log = if is_flat { flat } else { directory.join("log.txt") };
        let runs = told.is_some_and(|told| told.state == "running" && told.attempt == number);
        attempts.push(Attempt {
            run: run.to_owned(),
            number,
            state: if runs && outcome.state.is_empty() { "running".to_owned() } else { outcome.state },
            error: match outcome.error {
                None | Some(serde_json::Value::Null) => String::new(),
                Some(serde_json::Value::String(error)) => error,
                Some(other) => other.to_string(),
            },
            has_log: log.is_file(),
            log,
        });
    }
    attempts.reverse();
    Ok(attempts)
}

/// What an attempt wrote down of how it ended: nothing if it was killed, or if that cannot be read.
fn outcome(path: &std::path::Path) -> Outcome {
    let bytes = fs::read(path, LARGEST).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_found_in_directories_and_in_flat_logs() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for (name, text) in [
            ("a.1/log.txt", "x"),
            ("a.1/result.json", "{\"state\":\"failed\",\"error\":\"no <room>\"}"),
            ("a.2/log.txt", "y"),
            ("a.2/result.json", "damaged"),
            ("flat.1.log", ""),
        ] {
            let path = store.run_dir("r").join(name);
            fs::create_directory(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        }
        let found = of(&store, "r", "a", None).unwrap();
        let told: Vec<(u32, &str, &str)> =
            found.iter().map(|one| (one.number, one.state.as_str(), one.error.as_str())).collect();
        assert_eq!(told, [(2, "", ""), (1, "failed", "no <room>")]);
        assert!(of(&store, "r", "flat", None).unwrap()[0].has_log);
        assert_eq!(of(&store, "r", "../r/a", None).unwrap(), []);
        assert_eq!(of(&store, "none", "a", None).unwrap(), []);
    }
}
