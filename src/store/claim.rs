//! Who works at a key, as its lock file says: for file systems on which a `flock` is not seen by other hosts, or not to be
//! had at all.
//!
//! On one machine the kernel decides, and a claim is for people: it says whom one waits for. Another machine's claim is
//! heeded as long as its heart beats: the holder has the file's modification time set to the file system's own now. What
//! is compared with it is a file written now on the same file system, and how long one has seen no beat oneself; no
//! clocks of two machines are ever compared. A holder that was thought dead and goes on (it was suspended, or cut off)
//! costs work done twice and nothing else: whatever is written is named by its content, and the first record stays.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use fs_err::File;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use serde::{Deserialize, Serialize};

use crate::fs;

/// Between two beats.
const BEAT: Duration = Duration::from_secs(10);
/// After so long without a beat a holder on another machine is taken for dead.
const PATIENCE: Duration = Duration::from_secs(60);
/// A claim is a line; what is longer is none.
const LONGEST: usize = 1024;

/// A process, told apart from all others on all machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The machine's name, for people.
    pub host: String,
    /// The process's number.
    pub process: u32,
    /// When the machine started: which is it, and since when.
    boot: String,
    /// When the process started, in ticks since then: numbers are given again.
    started: u64,
    /// Within what the number counts: containers have numbers of their own.
    namespace: String,
}

impl Holder {
    /// This process.
    pub(super) fn me() -> &'static Self {
        static ME: OnceLock<Holder> = OnceLock::new();
        ME.get_or_init(|| {
            let read = |path: &str| fs_err::read_to_string(path).unwrap_or_default().trim().to_owned();
            let process = std::process::id();
            let namespace = fs_err::read_link("/proc/self/ns/pid").unwrap_or_default();
            Self {
                host: read("/proc/sys/kernel/hostname"),
                process,
                boot: read("/proc/sys/kernel/random/boot_id"),
                started: started(process).unwrap_or(0),
                namespace: namespace.display().to_string(),
            }
        })
    }

    /// Whether it can be seen from here that it lives or not.
    fn is_near(&self) -> bool {
        let me = Self::me();
        !me.boot.is_empty() && self.boot == me.boot && self.namespace == me.namespace
    }

    /// Whether it lives; of use only for one that is near.
    fn lives(&self) -> bool {
        started(self.process) == Some(self.started)
    }

    /// Whether it lives, as far as that can be seen from here: of one on another machine it cannot.
    pub fn may_live(&self) -> bool {
        !self.is_near() || self.lives()
    }

    /// For people: `process 4711`, with the machine where it is another one.
    pub fn name(&self) -> String {
        if self.boot == Self::me().boot {
            format!("process {}", self.process)
        } else {
            format!("process {} on {}", self.process, self.host)
        }
    }
}

/// When a process started, if it lives: the 22nd field of `/proc/PID/stat`, of which the second may hold anything.
fn started(process: u32) -> Option<u64> {
    let status = fs_err::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let rest = status.rsplit(')').next()?;
    let mut fields = rest.split_whitespace();
    // A zombie holds nothing any more.
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whose claim a lock file holds, if that can be read.
pub(super) fn holder(file: &File) -> Option<Holder> {
    let mut bytes = vec![0; LONGEST];
    let length = file.file().read_at(&mut bytes, 0).ok()?;
    serde_json::from_slice(&bytes[..length]).ok()
}

/// The one whose claim must be heeded, if there is one. `locked`: this process has the file's `flock`; without it the file
/// system has none to give. `probe`: a directory on the same file system for a file that is written now.
pub(super) fn heeded(file: &File, path: &Path, locked: bool, probe: &Path) -> io::Result<Option<Holder>> {
    let Some(holder) = holder(file) else { return Ok(None) };
    let same_kernel = !Holder::me().boot.is_empty() && holder.boot == Holder::me().boot;
    if same_kernel && locked || holder.is_near() && !holder.lives() {
        return Ok(None);
    }
    if holder.is_near() {
        // Our own, of another thread or left when it was let go of.
        let held = holder != *Holder::me()
            || beating().iter().any(|file| file.upgrade().is_some_and(|file| file.path() == path));
        return Ok(held.then_some(holder));
    }
    let silent = silence(file, path, probe)?;
    if silent < PATIENCE {
        return Ok(Some(holder));
    }
    tracing::warn!("{} has been silent for {} s: its lock is taken over", holder.name(), silent.as_secs());
    Ok(None)
}

/// When a file's last beat was seen, and how old it was then.
struct Seen {
    beat: SystemTime,
    age: Duration,
    at: Instant,
}

/// For how long a holder has given no sign.
fn silence(file: &File, path: &Path, probe: &Path) -> io::Result<Duration> {
    static SEEN: Mutex<Option<HashMap<PathBuf, Seen>>> = Mutex::new(None);
    let beat = file.metadata()?.modified()?;
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = seen.get_or_insert_default();
    if let Some(last) = seen.get(path).filter(|last| last.beat == beat) {
        return Ok(last.age + last.at.elapsed());
    }
    // A beat in the future is one that is just now: then the file system's clock was set back.
    let age = now_at(probe)?.duration_since(beat).unwrap_or_default();
    seen.insert(path.to_owned(), Seen { beat, age, at: Instant::now() });
    Ok(age)
}

/// The time by the clock of a directory's file system.
fn now_at(directory: &Path) -> io::Result<SystemTime> {
    let probe = fs::unfinished(directory);
    let now = fs::create(&probe).and_then(|file| {
        touch(&file)?;
        file.metadata()?.modified()
    });
    fs::discard(&probe);
    now
}

/// Sets the modification time to the file system's now: of a server's file that is the server's.
fn touch(file: &File) -> io::Result<()> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    Ok(rustix::fs::futimens(file.as_fd(), &Timestamps { last_access: omit, last_modification: now })?)
}

/// Lock files that this process holds.
fn beating() -> MutexGuard<'static, Vec<Weak<File>>> {
    static BEATING: Mutex<Vec<Weak<File>>> = Mutex::new(Vec::new());
    BEATING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes this process's claim into a lock file, whose heart beats until it is dropped.
pub(super) fn claim(file: &Arc<File>) -> io::Result<()> {
    let mut line = serde_json::to_vec(Holder::me())?;
    line.push(b'\n');
    fs::overwrite(file, &line)?;
    let mut files = beating();
    files.retain(|file| file.strong_count() > 0);
    files.push(Arc::downgrade(file));
    drop(files);
    static HEART: Once = Once::new();
    HEART.call_once(|| {
        let heart = std::thread::Builder::new().name("heart".to_owned()).stack_size(1 << 16).spawn(|| {
            loop {
                std::thread::sleep(BEAT);
                let files: Vec<Arc<File>> = beating().iter().filter_map(Weak::upgrade).collect();
                for file in files {
                    // One that cannot be touched is taken over some time, and then its work is done twice.
                    let _ = touch(&file);
                }
            }
        });
        if let Err(error) = heart {
            tracing::debug!("no heart beats: {error}");
        }
    });
    Ok(())
}

/// Takes this process's claim back, if it is still there: someone else may have taken the lock over.
pub(super) fn disclaim(file: &File) {
    if holder(file).is_some_and(|holder| holder == *Holder::me()) {
        // Not by the door where tests have writes fail: no one would be told. A claim that stays does no harm, its process
        // ends some time.
        let _ = file.file().set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock_file(directory: &Path, holder: &Holder) -> (PathBuf, File) {
        let path = directory.join("lock");
        fs_err::write(&path, serde_json::to_vec(holder).unwrap()).unwrap();
        (path.clone(), fs_err::OpenOptions::new().read(true).write(true).open(&path).unwrap())
    }

    fn silent(file: &File, seconds: u64) {
        let then = file.metadata().unwrap().modified().unwrap() - Duration::from_secs(seconds);
        file.file().set_modified(then).unwrap();
    }

    #[test]
    fn another_machine_is_heeded_while_its_heart_beats() {
        let directory = tempfile::tempdir().unwrap();
        let other = Holder { boot: "another".into(), host: "far".into(), process: 1, ..Holder::me().clone() };
        let (path, file) = lock_file(directory.path(), &other);
        let heeded = |locked| super::heeded(&file, &path, locked, directory.path()).unwrap();
        assert_eq!((heeded(true), heeded(false)), (Some(other.clone()), Some(other.clone())));
        assert_eq!(other.name(), "process 1 on far");
        silent(&file, 59);
        assert!(heeded(true).is_some());
        silent(&file, 2);
        assert_eq!((heeded(true), heeded(false)), (None, None));
        touch(&file).unwrap();
        assert!(heeded(true).is_some(), "it was not dead");
        // Its clock is ahead, or the file system's was set back.
        file.file().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(9_000_000_000)).unwrap();
        assert!(heeded(true).is_some());
        assert!(fs::list(directory.path()).unwrap() == [path.clone()], "probes are removed");
    }

    #[test]
    fn on_this_machine_the_kernel_decides_and_where_it_cannot_the_list_of_processes() {
        let directory = tempfile::tempdir().unwrap();
        let check = |holder: &Holder, locked| {
            let (path, file) = lock_file(directory.path(), holder);
            heeded(&file, &path, locked, directory.path()).unwrap().is_some()
        };
        let me = Holder::me().clone();
        // Process 1 lives, and did not start when it says here.
        let dead = Holder { process: 1, started: u64::MAX, ..me.clone() };
        let parent = std::os::unix::process::parent_id();
        let living = Holder { process: parent, started: started(parent).unwrap(), ..me.clone() };
        assert_eq!((check(&dead, true), check(&living, true), check(&me, true)), (false, false, false));
        assert_eq!((check(&dead, false), check(&living, false), check(&me, false)), (false, true, false));
        let contained = Holder { namespace: "pid:[1]".into(), ..dead };
        assert_eq!((check(&contained, true), check(&contained, false)), (false, true), "it cannot be seen from here");
        // Damage, or a claim of a version to come.
        let path = directory.path().join("lock");
        for bytes in [&b""[..], b"{", b"{\"host\": 1}", &[b' '; 5000]] {
            fs_err::write(&path, bytes).unwrap();
            assert_eq!(heeded(&File::open(&path).unwrap(), &path, true, directory.path()).unwrap(), None);
        }
    }

    #[test]
    fn a_claim_is_there_until_it_is_taken_back_and_no_one_elses_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let open = || Arc::new(fs::open_or_create(&path).unwrap());
        let file = open();
        claim(&file).unwrap();
        assert_eq!(holder(&file).as_ref(), Some(Holder::me()));
        let (other, none) = (open(), open());
        assert!(heeded(&other, &path, false, directory.path()).unwrap().is_some(), "of another thread");
        disclaim(&file);
        assert_eq!(holder(&none), None);
        let other = Holder { process: 1, ..Holder::me().clone() };
        fs_err::write(&path, serde_json::to_vec(&other).unwrap()).unwrap();
        disclaim(&file);
        assert_eq!(holder(&none), Some(other));
    }
}
