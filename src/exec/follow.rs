//! The events of a run as they stand in its `events.jsonl`: read beside the run as it goes on, or long after.

use std::io::{self, Read};

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
    pub fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let at = value.get("at").and_then(Value::as_f64);
        Some(Self { at, event: serde_json::from_value(value).ok()? })
    }
}

/// Reads what a run tells, from its beginning on.
#[derive(Debug)]
pub struct Follower {
    file: fs_err::File,
    /// A line whose end is not there yet.
    rest: Vec<u8>,
    /// Whether it is too long, so that its end is only waited for.
    too_long: bool,
}

impl Follower {
    /// Of a run, which need not have ended. Errs if it left no events.
    pub fn of(store: &Store, run: &str) -> io::Result<Self> {
        let file = fs::open(&store.run_dir(run).join("events.jsonl"))?;
        Ok(Self { file, rest: Vec::new(), too_long: false })
    }

    /// Gives `see` each line that was written since this was called last.
    pub fn news(&mut self, see: &mut dyn FnMut(&str)) -> io::Result<()> {
        let mut block = vec![0; 64 << 10];
        loop {
            let read = match self.file.read(&mut block) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                return Ok(());
            }
            let mut parts = block[..read].split(|byte| *byte == b'\n');
            let mut part = parts.next().unwrap_or_default();
            for next in parts {
                self.rest.extend(part);
                if !std::mem::take(&mut self.too_long) {
                    see(&String::from_utf8_lossy(&self.rest));
                }
                self.rest.clear();
                part = next;
            }
            self.rest.extend(part);
            if self.rest.len() > LONGEST {
                self.too_long = true;
                self.rest.clear();
            }
        }
    }

    /// Whether the run goes on: its process holds the file. `None` on a file system without locks.
    pub fn goes_on(&self) -> Option<bool> {
        fs::is_held(&self.file)
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
        let mut lines: Vec<String> = Vec::new();
        let stop = Event::NodeStop { node: "a \u{2028}é".into(), seconds: 1.5 };
        journal.write(&stop).unwrap();
        follower.news(&mut |line| lines.push(line.to_owned())).unwrap();
        assert!(lines.is_empty(), "it is still in the writer's buffer");
        journal.flush().unwrap();
        follower.news(&mut |line| lines.push(line.to_owned())).unwrap();
        let told = Told::parse(&lines[0]).unwrap();
        assert!(told.event == stop && told.at.is_some_and(|at| (0.0..60.0).contains(&at)), "{told:?}");
        assert_eq!((follower.goes_on(), goes_on(&store, journal.run())), (Some(true), Some(true)));
        drop(journal);
        assert_eq!(follower.goes_on(), Some(false));
        assert_eq!(goes_on(&store, "none"), None);
    }

    #[test]
    fn lines_come_whole_whatever_pieces_they_are_written_in() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        fs_err::create_dir_all(store.run_dir("r")).unwrap();
        let path = store.run_dir("r").join("events.jsonl");
        let long = "x".repeat(200_000);
        let mut seen: Vec<String> = Vec::new();
        fs_err::write(&path, "one\nt").unwrap();
        let mut follower = Follower::of(&store, "r").unwrap();
        for piece in ["", "wo\n", &long, "\n\nend"] {
            fs::append(&path, piece.as_bytes()).unwrap();
            follower.news(&mut |line| seen.push(line.to_owned())).unwrap();
        }
        assert_eq!(seen, ["one", "two", &long, ""]);
    }

    #[test]
    fn lines_of_other_versions_are_left_out_or_read_as_far_as_they_are_known() {
        assert_eq!(Told::parse("{\"event\":\"node-dream\",\"node\":\"a\"}"), None);
        assert_eq!(Told::parse("{"), None);
        let old =
            Told::parse("{\"event\":\"start\",\"run\":\"r\",\"pipeline\":\"p\",\"nodes\":2,\"hits\":1,\"threads\":4}");
        let Some(Told { at: None, event: Event::Start { nodes: 2, likely, .. } }) = old else { panic!("{old:?}") };
        assert!(likely.is_empty());
    }
}
