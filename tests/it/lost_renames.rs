//! The power goes: what the disk had not been told to keep is gone, whatever the order in which it wrote the rest. From
//! the log of a whole run the tree is made that a crash at each point could have left; it is a whole cache, all that the
//! user was told is done is in it, and the same command ends in the same artifacts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use sami::digest::Digest;
use sami::store::Store;

use super::sandbox::{Done, Output, Sandbox};
use super::store_faults::project;

/// What of the names that were not settled is on the disk all the same.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kept {
    /// Nothing.
    None,
    /// All of them: names come before what is in the files.
    All,
    /// Those of every other directory.
    Some,
}

/// A file or directory, as the log knows it.
type Names = BTreeMap<PathBuf, (u64, bool)>;

/// The tree as processes saw it, and as the disk was told to keep it.
#[derive(Debug, Default)]
struct Disk {
    seen: Names,
    kept: Names,
    /// Copies of files as they were when they were synced.
    bytes: HashMap<u64, PathBuf>,
    /// Files of which a sync failed.
    failed: BTreeSet<u64>,
}

impl Disk {
    fn apply(&mut self, log: &Path, line: &Value) {
        let path = |name: &str| PathBuf::from(line[name].as_str().unwrap_or_default());
        let inode = line["inode"].as_u64().unwrap_or_default();
        let is_directory = line["directory"].as_bool().unwrap_or_default();
        match line["op"].as_str().expect("each line has one") {
            "made" => {
                remove(&mut self.seen, &path("path"));
                self.seen.insert(path("path"), (inode, is_directory));
                // An inode may have been another file's.
                self.bytes.remove(&inode);
                self.failed.remove(&inode);
            }
            "renamed" => {
                remove(&mut self.seen, &path("from"));
                remove(&mut self.seen, &path("to"));
                self.seen.insert(path("to"), (inode, is_directory));
            }
            "removed" => {
                let gone = path("path");
                // Its inode may be that of the next file, of whose making a program that a node runs tells nothing.
                let inodes: Vec<u64> = self
                    .seen
                    .iter()
                    .filter(|(name, _)| name.starts_with(&gone))
                    .map(|(_, (inode, _))| *inode)
                    .collect();
                remove(&mut self.seen, &gone);
                inodes.iter().for_each(|inode| _ = self.failed.remove(inode));
            }
            "synced" if !self.failed.contains(&inode) => {
                self.bytes.insert(inode, log.join(path("bytes")));
            }
            "failed" => _ = self.failed.insert(inode),
            "settled" => settle(&mut self.kept, &self.seen, &path("path")),
            _ => {}
        }
    }

    /// Makes the tree below `root` that is on the disk.
    fn lay_out(&self, root: &Path, place: &Path, kept: Kept) {
        let mut names = self.kept.clone();
        let directories: BTreeSet<&Path> =
            self.seen.keys().chain(self.kept.keys()).filter_map(|path| path.parent()).collect();
        for directory in directories {
            let odd = Digest::of(directory.as_os_str().as_encoded_bytes()).as_bytes()[0] % 2 == 1;
            if kept == Kept::All || kept == Kept::Some && odd {
                settle(&mut names, &self.seen, directory);
            }
        }
        fs_err::create_dir(place).expect("a directory");
        for (path, (inode, is_directory)) in names.range(root.to_owned()..) {
            let Ok(inside) = path.strip_prefix(root) else { break };
            let to = place.join(inside);
            // What is in a directory that is not there is not there.
            if path == root || !to.parent().is_some_and(Path::is_dir) {
                continue;
            }
            match (is_directory, self.bytes.get(inode)) {
                (true, _) => fs_err::create_dir(to).expect("a directory"),
                (false, Some(bytes)) => _ = fs_err::copy(bytes, to).expect("a file"),
                (false, None) => fs_err::write(to, "").expect("a file"),
            }
        }
    }
}

fn remove(names: &mut Names, path: &Path) {
    names.retain(|name, _| !name.starts_with(path));
}

/// The names in a directory become as they are seen.
fn settle(names: &mut Names, seen: &Names, directory: &Path) {
    let within = |names: &Names| -> Names {
        let inside = names.range(directory.to_owned()..).take_while(|(path, _)| path.starts_with(directory));
        inside.filter(|(path, _)| path.parent() == Some(directory)).map(|(path, what)| (path.clone(), *what)).collect()
    };
    let now = within(seen);
    for (path, what) in within(names) {
        if now.get(&path) != Some(&what) {
            remove(names, &path);
        }
    }
    names.extend(now);
}

/// A run whose changes to the disk were written down.
struct Logged {
    sandbox: Sandbox,
    lines: Vec<Value>,
    done: Done,
}

fn logged(more: &str) -> Logged {
    let sandbox = project();
    fs_err::create_dir(sandbox.path("log")).expect("a directory");
    let mut command = sandbox.command(&["run", "p.toml", "--json"]);
    command.env("SAMI_FAULT", format!("crash-log:{}{more}", sandbox.path("log").display()));
    let output = Output::from(command.output().expect("the binary starts"));
    // A run in which something failed is made again, in the same log.
    let done = if more.is_empty() {
        output.exits(0).done()
    } else {
        // What failed may be one on which nothing rests.
        let code = output.code;
        assert!([0, 1].contains(&code), "{output:?}");
        command.env("SAMI_FAULT", format!("crash-log:{}", sandbox.path("log").display()));
        if code == 0 {
            output.done()
        } else {
            Output::from(command.output().expect("the binary starts")).exits(0).done()
        }
    };
    let lines = sandbox.read("log/log").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    Logged { sandbox, lines, done }
}

impl Logged {
    /// A crash after the first `n` lines.
    fn crash(&self, n: usize, kept: Kept) {
        let (log, root) = (self.sandbox.path("log"), self.sandbox.path("cache"));
        let mut disk = Disk::default();
        let mut told: BTreeSet<String> = BTreeSet::new();
        for line in &self.lines[..n] {
            disk.apply(&log, line);
            if line["op"] == "told" {
                let event: Value = serde_json::from_str(line["text"].as_str().expect("text")).expect("an event");
                if event["event"] == "node-finish" || event["event"] == "node-hit" {
                    told.insert(event["node"].as_str().expect("a name").to_owned());
                }
            }
        }
        let cache = format!("crash-{n}-{kept:?}");
        disk.lay_out(&root, &self.sandbox.path(&cache), kept);
        if self.sandbox.path(&cache).join("VERSION").exists() {
            // A name may be on the disk before what is in the file is. Then it is found, and nothing told rests on it.
            let store = Store::open_existing(&self.sandbox.path(&cache)).expect("it opens");
            let seen = store.verify(&mut |_, _| {}).expect("it can be read");
            assert!(kept != Kept::None || seen.is_whole(), "{cache}: {:?}", seen.findings);
            let lost = seen.findings.iter().find(|finding| finding.nodes.iter().any(|node| told.contains(node)));
            assert!(lost.is_none(), "{cache}: {lost:?}");
        }
        let done = self.sandbox.run(&["--cache", &cache], 0);
        let line = &self.lines[n - 1];
        assert_eq!(done.results(), self.done.results(), "{cache}, after {line}");
        for node in &told {
            assert!(done.names("hit").contains(&node.as_str()), "`{node}` was done and is lost: {cache}, after {line}");
        }
        self.sandbox.verify_here(&cache);
        fs_err::remove_dir_all(self.sandbox.path(&cache)).expect("it goes");
    }

    fn crashes(&self, step: usize) {
        let next = AtomicUsize::new(self.lines.len());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Ok(n) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(step)) {
                        if n > 0 {
                            [Kept::None, Kept::All, Kept::Some].into_iter().for_each(|kept| self.crash(n, kept));
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn after_a_crash_what_was_told_is_there() {
    let logged = logged("");
    assert!(logged.lines.len() > 100, "only {} lines", logged.lines.len());
    logged.crashes(31);
}

#[test]
#[ignore = "slow: three runs for each change to the disk of a run"]
fn after_a_crash_anywhere_what_was_told_is_there() {
    logged("").crashes(1);
}

/// A sync fails, and the kernel forgets what it could not write. What is done afterwards rests on none of it.
#[test]
fn after_a_sync_that_failed_nothing_rests_on_that_file() {
    let (calm, mut failed) = (logged(""), 0);
    let syncs = calm.lines.iter().filter(|line| line["op"] == "synced").count();
    for n in (1..=syncs as u64).step_by(3) {
        let again = logged(&format!(",sync-op:{n}:eio:{}", calm.sandbox.path(format!("count-{n}")).display()));
        assert_eq!(again.done.nodes.len(), calm.done.nodes.len());
        failed += again.lines.iter().filter(|line| line["op"] == "failed").count();
        [Kept::None, Kept::All].into_iter().for_each(|kept| again.crash(again.lines.len(), kept));
    }
    assert!(failed >= 2, "only {failed} syncs failed");
}
