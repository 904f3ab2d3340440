//! Every file of a store is damaged in every way: verification finds it and says what will run again, that is what runs
//! again, the artifacts are the same, and nothing damaged was used.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use sami::digest::Digest;
use sami::store::{Finding, State, Store, StoreError, Verification};

use super::sandbox::{Done, Sandbox};
use super::store_faults::project;

/// A way in which a file goes bad.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Damage {
    /// One bit of the byte at this part of the file, in thousandths.
    Flip(u64),
    CutInHalf,
    Emptied,
    Grown,
    Deleted,
    /// It gets the content of another file of its directory, or of the next.
    Swapped,
    Directory,
    /// A link to a file with other bytes.
    Link,
    DeadLink,
    /// A file beside it that no store has.
    Foreign,
}

const ALL: &[Damage] = &[
    Damage::Flip(0),
    Damage::Flip(137),
    Damage::Flip(500),
    Damage::Flip(861),
    Damage::Flip(1000),
    Damage::CutInHalf,
    Damage::Emptied,
    Damage::Grown,
    Damage::Deleted,
    Damage::Swapped,
    Damage::Directory,
    Damage::Link,
    Damage::DeadLink,
    Damage::Foreign,
];

impl Damage {
    /// Does it; `None` if that leaves all as it was.
    fn strike(self, path: &Path, all: &[PathBuf]) -> Option<()> {
        let before = fs_err::read(path).expect("reads");
        let mut bytes = before.clone();
        match self {
            Self::Flip(part) => {
                let at = (bytes.len().checked_sub(1)? as u64 * part / 1000) as usize;
                bytes[at] ^= 1 << (Digest::of(path.as_os_str().as_encoded_bytes()).as_bytes()[0] % 7);
            }
            Self::CutInHalf => bytes.truncate(before.len() / 2),
            Self::Emptied => bytes.clear(),
            Self::Grown => bytes.push(b'x'),
            Self::Swapped => {
                let part = |path: &Path| path.ancestors().nth(2).map(Path::to_owned);
                let other = all.iter().find(|other| *other != path && part(other) == part(path))?;
                bytes = fs_err::read(other).expect("reads");
            }
            Self::Foreign => {
                fs_err::write(path.with_file_name("stray"), "x").expect("writes");
                return Some(());
            }
            Self::Deleted | Self::Directory | Self::Link | Self::DeadLink => {}
        }
        fs_err::remove_file(path).expect("it goes");
        match self {
            Self::Deleted => {}
            Self::Directory => fs_err::create_dir(path).expect("a directory"),
            Self::Link => {
                let elsewhere = path.with_extension("elsewhere");
                fs_err::write(&elsewhere, "other bytes").expect("writes");
                fs_err::os::unix::fs::symlink(elsewhere, path).expect("a link");
            }
            Self::DeadLink => fs_err::os::unix::fs::symlink("/nowhere/at/all", path).expect("a link"),
            _ if bytes == before => return None,
            _ => fs_err::write(path, bytes).expect("writes"),
        }
        Some(())
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").args(["-a".as_ref(), from.as_os_str(), to.as_os_str()]).status();
    assert!(copied.expect("there is a `cp`").success());
}

fn verification(root: &Path) -> Verification {
    let store = Store::open_existing(root).expect("it opens");
    store.verify(&mut |_, _| {}).expect("it can be read")
}

/// Whether a damaged file of this part must be found whatever was done to it.
fn must_be_found(part: &str, damage: Damage, name: &str) -> bool {
    match part {
        "objects" | "nodes" | "external" => true,
        // That a source was read is remembered by no one but those who took it.
        "artifacts" => damage != Damage::Deleted && damage != Damage::DeadLink,
        "runs" => name == "run.json" && damage != Damage::Foreign,
        "pins" => damage == Damage::Foreign,
        // Logs are for people, and the index is a view.
        _ => false,
    }
}

struct Project {
    sandbox: Sandbox,
    files: Vec<PathBuf>,
    undisturbed: Done,
}

impl Project {
    fn new() -> Self {
        let sandbox = project();
        let undisturbed = sandbox.run(&["--cache", "whole"], 0);
        let store = Store::open_existing(&sandbox.path("whole")).expect("it opens");
        store.pin(&undisturbed.nodes[0].artifact.as_deref().expect("it ran").parse().expect("a digest")).expect("pins");
        drop(store);
        assert!(verification(&sandbox.path("whole")).is_whole());
        let root = sandbox.path("whole");
        let scratch = ["tmp", "locks", "partial", "live"];
        let mut files: Vec<PathBuf> = sandbox.files("whole");
        files
            .retain(|path| !scratch.iter().any(|part| path.starts_with(root.join(part))) && !path.ends_with("VERSION"));
        Self { sandbox, files, undisturbed }
    }

    fn trial(&self, number: usize, file: &Path, damage: Damage, verified: bool) {
        let whole = self.sandbox.path("whole");
        let cache = format!("cache-{number}");
        let root = self.sandbox.path(&cache);
        copy(&whole, &root);
        let inside = file.strip_prefix(&whole).expect("it was found there");
        let path = root.join(inside);
        let all: Vec<PathBuf> =
            self.files.iter().map(|file| root.join(file.strip_prefix(&whole).expect("there"))).collect();
        if damage.strike(&path, &all).is_none() {
            return fs_err::remove_dir_all(&root).expect("it goes");
        }
        let what = format!("{damage:?} of {}", inside.display());
        let part = inside.iter().next().and_then(|part| part.to_str()).expect("UTF-8");
        let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        let mut again: Option<BTreeSet<String>> = None;
        if verified {
            let seen = verification(&root);
            let about = |found: &&PathBuf| found.starts_with(&path) || found.parent() == path.parent();
            let found = seen.findings.iter().map(|finding| &finding.path).filter(about).count();
            assert!(found > 0 || !must_be_found(part, damage, name), "{what} is not found: {:?}", seen.findings);
            again = Some(seen.findings.iter().flat_map(|finding| finding.nodes.clone()).collect());
        }
        let done = self.sandbox.run(&["--cache", &cache], 0);
        assert_eq!(done.results(), self.undisturbed.results(), "{what}");
        if let Some(again) = again {
            let ran: BTreeSet<String> = done.names("ran").iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(ran, again, "{what}: what ran is not what was said to run");
        }
        // What the run needed is whole now; the rest is moved aside, and then all is.
        let seen = verification(&root);
        let rests = |what: &str| ["object", "manifest", "node", "external"].contains(&what);
        // What came from outside is read again when a node needs it.
        let needed = |finding: &Finding| !finding.nodes.is_empty() || finding.takers.is_empty();
        let mut left = seen.findings.iter().filter(|finding| rests(finding.what) && finding.state != State::Foreign);
        let left = left.find(|finding| needed(finding));
        assert!(left.is_none() || !verified, "{what}: {left:?}");
        // A process that another thread just started holds the lock for a moment, too.
        while let Err(error) = Store::open_existing(&root).expect("it opens").repair(&seen, &mut || {}) {
            assert!(matches!(error, StoreError::InUse), "{what}: {error}");
        }
        let seen = verification(&root);
        assert!(seen.findings.iter().all(|finding| finding.state == State::Missing), "{what}: {:?}", seen.findings);
        let done = self.sandbox.run(&["--cache", &cache], 0);
        assert_eq!(done.results(), self.undisturbed.results(), "{what}");
        assert!(verification(&root).is_whole(), "{what}");
        fs_err::remove_dir_all(&root).expect("it goes");
    }

    fn trials(&self, step: usize) -> usize {
        let of_file = |file| ALL.iter().map(move |damage| (file, *damage));
        let trials: Vec<_> = self.files.iter().flat_map(of_file).step_by(step).collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let number = next.fetch_add(1, Ordering::Relaxed)
                        && let Some((file, damage)) = trials.get(number)
                    {
                        // Every fifth without a look by `verify` before.
                        self.trial(number, file, *damage, number % 5 > 0);
                    }
                });
            }
        });
        trials.len()
    }
}

#[test]
fn some_damage_is_found_and_mended() {
    assert!(Project::new().trials(23) > 10);
}

#[test]
#[ignore = "slow: each file of a store, damaged in fourteen ways"]
fn any_damage_is_found_and_mended() {
    assert!(Project::new().trials(1) > 250);
}

#[test]
fn a_version_that_was_damaged_is_refused_and_nothing_is_touched() {
    let project = Project::new();
    let bytes = |sandbox: &Sandbox| -> Vec<(PathBuf, Vec<u8>)> {
        sandbox.files("whole").into_iter().map(|path| (path.clone(), fs_err::read(path).expect("reads"))).collect()
    };
    for version in ["", "0\n", "q\n", "1x", "2\n", "4294967295\n", "99999999999999\n", "-1"] {
        project.sandbox.write("whole/VERSION", version);
        let before = bytes(&project.sandbox);
        for args in
            [&["run", "p.toml"][..], &["plan", "p.toml"], &["status", "p.toml"], &["cache", "verify"], &["cache", "gc"]]
        {
            let output = project.sandbox.sami(&[args, &["--cache", "whole"]].concat()).exits(3);
            assert!(output.stderr.contains("whole") && output.stderr.contains("help"), "{version:?}: {output:?}");
        }
        assert_eq!(bytes(&project.sandbox), before);
    }
    project.sandbox.write("whole/VERSION", "1\n");
    assert_eq!(project.sandbox.run(&["--cache", "whole"], 0).hits, 3);
}
