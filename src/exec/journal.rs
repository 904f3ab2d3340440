//! What a run leaves behind: `runs/RUN/` with `run.json`, `events.jsonl` and a directory per attempt.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Event, ExecError};
use crate::digest::{Digest, Hasher};
use crate::fs;
use crate::store::{RunNode, RunRecord, Store};

/// In a run's directory: how it was asked for, if its jobs may go on without it.
pub const INVOCATION: &str = "invocation.json";

/// Longest name of an attempt's directory before it is cut.
const LONGEST: usize = 100;

/// The journal of a run that goes on.
pub(super) struct Journal {
    record: RunRecord,
    directory: PathBuf,
    /// `None` in a store that cannot be written: what needs no work needs no journal.
    events: Option<io::BufWriter<fs::Writer>>,
    began: Instant,
}

impl Journal {
    /// Makes the run's directory and records that it began.
    pub(super) fn begin(
        pipeline: &str,
        params: &BTreeMap<String, Value>,
        store: &Store,
        file: &str,
    ) -> Result<Self, ExecError> {
        let begun = new_id(store).and_then(|run| {
            let events = fs::writer(&store.run_dir(&run).join("events.jsonl"))?;
            events.hold()?;
            Ok((run, Some(io::BufWriter::new(events))))
        });
        let (run, events) = match begun {
            Err(ExecError::Store(error)) if error.is_read_only() => ("unwritten".to_owned(), None),
            begun => begun?,
        };
        let directory = store.run_dir(&run);
        let record = RunRecord {
            run,
            pipeline: pipeline.to_owned(),
            file: file.to_owned(),
            params: params.clone(),
            started: fs::now().to_string(),
            finished: None,
            ok: None,
            nodes: Vec::new(),
        };
        Ok(Self { record, directory, events, began: Instant::now() })
    }

    /// The run's id.
    pub(super) fn run(&self) -> &str {
        &self.record.run
    }

    /// The run's record, as far as it is.
    pub(super) fn record(&self) -> &RunRecord {
        &self.record
    }

    /// Seconds since the run began.
    pub(super) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Writes the record, as far as it is.
    pub(super) fn save(&self, store: &Store) -> Result<(), ExecError> {
        Ok(store.put_run(&self.record)?)
    }

    /// Keeps how the run was asked for.
    pub(super) fn keep(&self, invocation: &Value) -> Result<(), ExecError> {
        let bytes = serde_json::to_vec_pretty(invocation).map_err(crate::store::StoreError::from)?;
        Ok(fs::write_atomic(&self.directory.join(INVOCATION), &bytes)?)
    }

    /// Writes an event down, with `at`: seconds since the run began. The last one goes without the nodes, which are in `run.json`.
    pub(super) fn write(&mut self, event: &Event) -> Result<(), ExecError> {
        let without_nodes;
        let event = match event {
            Event::Done { ok, ran, hits, failed, .. } => {
                let (ok, ran, hits, failed, nodes) = (*ok, *ran, *hits, *failed, Vec::new());
                without_nodes = Event::Done { ok, ran, hits, failed, nodes };
                &without_nodes
            }
            other => other,
        };
        fs::told(|| serde_json::to_string(event).unwrap_or_default());
        let at = self.seconds();
        let Some(events) = &mut self.events else { return Ok(()) };
        let text = serde_json::to_string(event).map_err(io::Error::from)?;
        // An event is an object.
        Ok(writeln!(events, "{{\"at\":{at:.3},{}", text.trim_start_matches('{'))?)
    }

    /// Lets followers of `events.jsonl` see what was written down.
    pub(super) fn flush(&mut self) -> Result<(), ExecError> {
        Ok(self.events.as_mut().map_or(Ok(()), Write::flush)?)
    }

    /// Makes the directory of an attempt.
    pub(super) fn attempt(&self, node: &str, attempt: u32) -> Result<PathBuf, ExecError> {
        let directory = self.directory.join(attempt_directory(node, attempt));
        fs::create_directory(&directory)?;
        Ok(directory)
    }

    /// The log of an attempt that has no directory.
    pub(super) fn log(&self, node: &str, attempt: u32) -> PathBuf {
        self.directory.join(attempt_directory(node, attempt) + ".log")
    }

    /// Records that the run is over.
    pub(super) fn end(&mut self, store: &Store, ok: bool, nodes: &mut Vec<RunNode>) -> Result<(), ExecError> {
        if self.events.is_none() {
            return Ok(());
        }
        self.record.finished = Some(fs::now().to_string());
        self.record.ok = Some(ok);
        // Lent: there may be many.
        std::mem::swap(&mut self.record.nodes, nodes);
        let saved = self.save(store);
        std::mem::swap(&mut self.record.nodes, nodes);
        saved
    }
}

impl Journal {
    /// As [`Journal::end`] of a run in which all went well, with the text of its nodes written by `nodes`; that returns
    /// whether the text is what it should be. If not, nothing is recorded.
    pub(super) fn end_with(
        &mut self,
        store: &Store,
        nodes: &mut dyn FnMut(&mut dyn Write) -> io::Result<bool>,
    ) -> Result<bool, ExecError> {
        const NONE: &[u8] = b"[]\n}";
        if self.events.is_none() {
            return Ok(nodes(&mut io::sink())?);
        }
        self.record.finished = Some(fs::now().to_string());
        self.record.ok = Some(true);
        let front = serde_json::to_vec_pretty(&self.record).map_err(crate::store::StoreError::from)?;
        let front = front.strip_suffix(NONE).unwrap_or(&front);
        let mut write = |out: &mut dyn Write| {
            out.write_all(front)?;
            out.write_all(b"[")?;
            let whole = nodes(out)?;
            out.write_all(b"\n  ]\n}")?;
            Ok(whole)
        };
        Ok(fs::write_if(&store.root().join("tmp"), &self.directory.join("run.json"), &mut write)?)
    }

    /// Removes what is there of a run that was none.
    pub(super) fn undo(self) -> Result<(), ExecError> {
        if self.events.is_none() { Ok(()) } else { Ok(fs::remove_directory(&self.directory)?) }
    }
}

/// A fresh id, which sorts after those of earlier runs; its directory is made.
fn new_id(store: &Store) -> Result<String, ExecError> {
    fs::create_directory(&store.root().join("runs"))?;
    let mut number = 0;
    loop {
        let mut time = store.run_time()?;
        let name = |time: jiff::Timestamp| time.strftime("%Y%m%d-%H%M%S").to_string();
        let latest = store.run_ids()?.pop().unwrap_or_default();
        if latest.starts_with(&name(time)) {
            time = time.checked_add(jiff::SignedDuration::from_secs(1)).unwrap_or(time);
        }
        let mut hasher = Hasher::new();
        hasher.number(u64::from(std::process::id())).text(&fs::now().to_string()).number(number);
        let run = format!("{}-{}", name(time), &hasher.finish().short()[..4]);
        number += 1;
        match fs::create_new_directory(&store.run_dir(&run)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => {
                other?;
                return Ok(run);
            }
        }
    }
}

/// The name of an attempt's directory within its run's: the node's name where it is a plain file name, `.` and the
/// attempt's number.
pub fn attempt_directory(node: &str, attempt: u32) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.+@[]=,#".contains(letter);
    let mut name: String = node.chars().map(|letter| if plain(letter) { letter } else { '_' }).take(LONGEST).collect();
    if name.starts_with('.') {
        name.replace_range(..1, "_");
    }
    if name != node {
        // Two names must not become one.
        name = format!("{name}-{}", &Digest::of(node.as_bytes()).short()[..8]);
    }
    format!("{name}.{attempt}")
}

/// Removes what processes that were killed left in `tmp/`, and in `partial/` for keys that are done. Whoever is at a key holds its lock; a file that is being
/// written is younger than an hour by the file system's own clock, which the run's directory has just been told.
pub(super) fn sweep(store: &Store, journal: &Journal) -> Result<(), ExecError> {
    const HOUR: Duration = Duration::from_secs(3600);
    let now = fs_err::metadata(&journal.directory)?.modified()?;
    for path in fs::list(&store.root().join("tmp"))? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Ok(key) = name.parse::<Digest>() {
            if let Some(_lock) = store.try_lock_key(&key)? {
                fs::remove_directory(&path)?;
            }
            continue;
        }
        let writer = name.strip_prefix('.').and_then(|name| name.split_once('-')).map(|(process, _)| process);
        let Some(writer) = writer.filter(|writer| writer.parse::<u32>().is_ok()) else { continue };
        let written = fs_err::metadata(&path).and_then(|file| file.modified());
        let old = written.is_ok_and(|written| now.duration_since(written).is_ok_and(|age| age > HOUR));
        if old && !Path::new("/proc").join(writer).exists() {
            fs::remove_file(&path)?;
        }
    }
    for path in fs::list(&store.root().join("partial"))? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Ok(key) = name.parse::<Digest>()
            && let Some(_lock) = store.try_lock_key(&key)?
            && store.node(&key)?.is_some()
        {
            store.clear_partial(&key)?;
        }
    }
    Ok(())
}

/// Removes the directories of light workers whose scheduler was killed: those that no one has locked.
pub(super) fn sweep_slots(store: &Store) -> Result<(), ExecError> {
    for path in fs::list(&store.tmp())? {
        if is_slot(path.file_name().and_then(|name| name.to_str()).unwrap_or_default()) {
            let lock = match fs_err::File::open(&path) {
                // Its worker has ended in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            if lock.file().try_lock().is_ok() {
                fs::remove_directory(&path)?;
            }
        }
    }
    Ok(())
}

/// Whether a directory in `tmp/` is called as those of light workers are: `RUN.NUMBER`.
fn is_slot(name: &str) -> bool {
    let parts = name.split_once('.').map(|(run, number)| (run.split('-').count(), number.parse::<u64>().is_ok()));
    parts == Some((3, true))
}

/// The last lines of a log, for a message.
pub(super) fn tail(log: &Path, lines: usize) -> Vec<String> {
    use std::io::{Read, Seek, SeekFrom};
    const BYTES: i64 = 16 << 10;
    let read = || -> io::Result<String> {
        let mut file = fs_err::File::open(log)?;
        let length = file.metadata()?.len() as i64;
        file.seek(SeekFrom::End(-length.min(BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_attempts_are_plain_and_distinct() {
        assert_eq!(attempt_directory("finetune@2[lr=1e-7,seed=0]", 3), "finetune@2[lr=1e-7,seed=0].3");
        assert!(attempt_directory("../x", 1).starts_with("_._x-"));
        assert_ne!(attempt_directory("a/b", 1), attempt_directory("a b", 1));
        assert!(attempt_directory(&"x".repeat(1000), 1).len() < 120);
    }

    #[test]
    fn ids_of_runs_are_fresh_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let ids: Vec<String> = (0..3).map(|_| new_id(&store).unwrap()).collect();
        assert!(ids.is_sorted() && ids[0] != ids[1], "{ids:?}");
        assert_eq!(store.run_ids().unwrap(), ids);
    }

    #[test]
    fn what_the_dead_left_is_swept_and_what_is_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let tmp = directory.path().join("tmp");
        let (dead, used) = (Digest::of(b"dead"), Digest::of(b"used"));
        let slots = ["20260101-000000-aaaa.1", "20260101-000000-aaaa.2"].map(|name| tmp.join(name));
        slots.iter().for_each(|slot| fs_err::create_dir_all(slot.join("out")).unwrap());
        let held = fs_err::File::open(&slots[1]).unwrap();
        held.file().lock().unwrap();
        for key in [dead, used] {
            fs_err::create_dir_all(tmp.join(key.to_string()).join("run.1")).unwrap();
        }
        let _lock = store.try_lock_key(&used).unwrap();
        // No process has such a number; the first of these is the only one that is both old and orphaned.
        let (old, young, ours) = (".4294967295-0", ".4294967295-1", format!(".{}-0", std::process::id()));
        for name in [old, young, &ours, "else"] {
            fs_err::write(tmp.join(name), "").unwrap();
        }
        for name in [old, &ours, "else"] {
            let file = fs_err::OpenOptions::new().write(true).open(tmp.join(name)).unwrap();
            file.file().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        sweep(&store, &Journal::begin("toy", &BTreeMap::new(), &store, "toy.toml").unwrap()).unwrap();
        sweep_slots(&store).unwrap();
        let left: Vec<String> = fs::list(&tmp)
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        let mut expected =
            vec![young.to_owned(), ours, "else".to_owned(), used.to_string(), "20260101-000000-aaaa.2".to_owned()];
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines_with_text() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log.txt");
        assert!(tail(&log, 3).is_empty());
        fs_err::write(&log, format!("{}\na\n\nb\nc\n", "x".repeat(100_000))).unwrap();
        assert_eq!(tail(&log, 2), ["b", "c"]);
    }
}
