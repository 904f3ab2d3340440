//! The events of a run as they stand in its `events.jsonl`: read beside the run as it goes on, or long after.

use std::io;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use super::Event;
use crate::fs;
use crate::store::Store;

/// Longer lines are left out; no event is as long.
const LONGEST: usize = 64 << 20;

/// An event and when it was written down.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Seconds since the run began; not known of runs of older versions.
    pub at: Option<f64>,
    /// What happened.
    pub event: Event,
}

impl Told {
    /// From a line of `events.jsonl`; none of what this version does not know.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(line).ok()?;
        let at = value.get("at").and_then(Value::as_f64);
        Some(Self { at, event: serde_json::from_value(value).ok()? })
    }
}

/// Reads what a run tells, from its beginning on. All who look at events read them with this: a line that is still being
/// written comes once it is whole, and what is too long for an event does not; whether a line is one its reader has to see.
#[derive(Debug)]
pub struct Follower(fs::Lines);

impl Follower {
    /// Of a run, which need not have ended. Errs if it left no events.
    pub fn of(store: &Store, run: &str) -> io::Result<Self> {
        Self::of_most(store, run, u64::MAX)
    }

    /// As [`Follower::of`], of the first `most` bytes.
    pub fn of_most(store: &Store, run: &str, most: u64) -> io::Result<Self> {
        let file = fs::open(&store.run_dir(run).join("events.jsonl"))?;
        Ok(Self(fs::Lines::of(file, LONGEST, most)))
    }

    /// Gives `see` each line that was written since this was called last. Returns whether those were all, rather than the
    /// most that are to be read.
    pub fn news(&mut self, see: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        self.0.news(see)
    }

    /// Seconds since the run said something.
    pub fn silent(&self) -> io::Result<i64> {
        Ok(fs::now().as_second() - self.0.file().metadata()?.mtime())
    }

    /// Whether the run goes on: its process holds the file. `None` on a file system without locks.
    pub fn goes_on(&self) -> Option<bool> {
        fs::is_held(self.0.file())
    }
}

/// Whether a run goes on, on this machine or another one that locks the same files. `None` if it left no events, or on a file
/// system without locks.
pub fn goes_on(store: &Store, run: &str) -> Option<bool> {
    Follower::of(store, run).ok()?.goes_on()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::journal::Journal;
    use super::*;

    #[test]
    fn a_reader_beside_a_run_sees_what_was_written_and_when_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut journal = Journal::begin("toy", &BTreeMap::new(), &store, "toy.toml").unwrap();
        let mut follower = Follower::of(&store, journal.run()).unwrap();
        let mut lines: Vec<Vec<u8>> = Vec::new();
        let stop = Event::NodeStop { node: "a \u{2028}é".into(), seconds: 1.5 };
        journal.write(&stop).unwrap();
        follower.news(&mut |line| lines.push(line.to_vec())).unwrap();
        assert!(lines.is_empty(), "it is still in the writer's buffer");
        journal.flush().unwrap();
        follower.news(&mut |line| lines.push(line.to_vec())).unwrap();
        let told = Told::parse(&lines[0]).unwrap();
        assert!(told.event == stop && told.at.is_some_and(|at| (0.0..60.0).contains(&at)), "{told:?}");
        assert_eq!((follower.goes_on(), goes_on(&store, journal.run())), (Some(true), Some(true)));
        drop(journal);
        assert_eq!(follower.goes_on(), Some(false));
        assert_eq!(goes_on(&store, "none"), None);
    }

    #[test]
    fn lines_of_other_versions_are_left_out_or_read_as_far_as_they_are_known() {
        assert_eq!(Told::parse(b"{\"event\":\"node-dream\",\"node\":\"a\"}"), None);
        assert_eq!((Told::parse(b"{"), Told::parse(b"{\"event\":\"\xff\"}")), (None, None));
        let old =
            Told::parse(b"{\"event\":\"start\",\"run\":\"r\",\"pipeline\":\"p\",\"nodes\":2,\"hits\":1,\"threads\":4}");
        let Some(Told { at: None, event: Event::Start { nodes: 2, likely, .. } }) = old else { panic!("{old:?}") };
        assert!(likely.is_empty());
    }
}
