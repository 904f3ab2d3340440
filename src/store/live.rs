//! What living processes need: how runs and gc go on beside each other.
//!
//! A process that puts things or goes by what it found (a hit) has a *live file*, `live/HOST-PROCESS-…`, locked as long
//! as the process lives, in which it names the keys and artifacts that it needs. What happens to the store happens in
//! *sections*: a put from its first look at what is there to its manifest, a record's commit, a plan from its first look
//! to the naming of its hits. Sections hold `locks/store` shared, so any number of them go on at once; gc holds it alone
//! while it reads the live files and moves things away. Hence each section comes wholly before such a step of gc, which
//! then sees what the section named and leaves it, or wholly after it, and then sees what is gone. [`Sharing`] is a section.
//!
//! A process that ends takes its live file away, unless a gc goes on (`locks/gc` is held): that gc may have read the
//! records before this process wrote its own, and goes by the live file. What a killed process left is removed by the
//! next gc before it reads anything else: from then on what the dead one recorded is there to be read.
//!
//! `flock` lets newcomers in while someone waits to be alone. So gc closes `locks/gate` while it waits, and sections
//! that begin wait at the gate, for a moment each time; never for good, because a section may have to begin for another
//! one to end.

use std::cell::RefCell;
use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::lock::has_no_locks;
use super::{Store, StoreError};
use crate::digest::Digest;
use crate::fs;

/// How long the gate is closed at most, and how long a section waits at it.
const GATE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries at a lock.
const TICK: Duration = Duration::from_millis(1);

thread_local! {
    /// Sections in which this thread is: one within another one is the same.
    static SECTIONS: RefCell<Vec<Weak<Section>>> = const { RefCell::new(Vec::new()) };
}

/// A section, until it is dropped. Of this thread alone.
#[derive(Debug, Clone)]
pub struct Sharing {
    _section: Rc<Section>,
}

#[derive(Debug)]
struct Section {
    root: PathBuf,
    /// Absent in a store that cannot be written.
    _lock: Option<fs_err::File>,
}

/// The open live file of a process, or that of the run that it works for.
#[derive(Debug)]
pub(super) struct Live {
    path: PathBuf,
    file: fs_err::File,
    /// Whether this store made it, hence takes it away.
    own: bool,
}

/// What a live file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A record and its artifact.
    Key(Digest),
    /// An artifact.
    Artifact(Digest),
    /// An object that an artifact will stand on.
    Object(Digest),
}

impl Need {
    fn line(self) -> String {
        match self {
            Self::Key(key) => format!("k {key}\n"),
            Self::Artifact(id) => format!("a {id}\n"),
            Self::Object(id) => format!("o {id}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        match line.split_at_checked(2)? {
            ("k ", key) => key.parse().ok().map(Self::Key),
            ("a ", id) => id.parse().ok().map(Self::Artifact),
            ("o ", id) => id.parse().ok().map(Self::Object),
            _ => None,
        }
    }
}

impl Store {
    /// Begins a section: until it is dropped, gc moves nothing away. Waits while gc does.
    pub fn sharing(&self) -> Result<Sharing, StoreError> {
        let open = SECTIONS.with_borrow_mut(|sections| {
            sections.retain(|section| section.strong_count() > 0);
            sections.iter().filter_map(Weak::upgrade).find(|section| section.root == self.root)
        });
        if let Some(section) = open {
            return Ok(Sharing { _section: section });
        }
        let section = Rc::new(Section { root: self.root.clone(), _lock: self.enter()? });
        SECTIONS.with_borrow_mut(|sections| sections.push(Rc::downgrade(&section)));
        Ok(Sharing { _section: section })
    }

    fn enter(&self) -> Result<Option<fs_err::File>, StoreError> {
        let (Some(gate), Some(store)) = (self.lock_named("gate")?, self.lock_named("store")?) else { return Ok(None) };
        let mut since = None;
        while let Err(TryLockError::WouldBlock) = gate.file().try_lock_shared() {
            if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(TICK);
        }
        drop(gate);
        match store.file().lock_shared() {
            Ok(()) => Ok(Some(store)),
            // No gc can be alone on such a file system either.
            Err(error) if has_no_locks(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until no section is open, and keeps new ones from beginning until the file is dropped. `waiting` is called once
    /// if that takes long.
    pub(super) fn alone(&self, waiting: &mut dyn FnMut()) -> Result<fs_err::File, StoreError> {
        let read_only = || io::Error::new(io::ErrorKind::PermissionDenied, "the cache directory cannot be written");
        let (Some(gate), Some(store)) = (self.lock_named("gate")?, self.lock_named("store")?) else {
            return Err(read_only().into());
        };
        let began = Instant::now();
        let mut told = false;
        loop {
            let closed = match gate.file().try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(error)) => return Err(error.into()),
            };
            let turn = Instant::now();
            while turn.elapsed() < GATE {
                match store.file().try_lock() {
                    Ok(()) => return Ok(store),
                    Err(TryLockError::WouldBlock) => std::thread::sleep(TICK),
                    Err(TryLockError::Error(error)) => return Err(error.into()),
                }
            }
            if closed {
                gate.file().unlock()?;
            }
            if began.elapsed() > PATIENCE && !told {
                told = true;
                waiting();
            }
            std::thread::sleep(GATE);
        }
    }

    /// Makes this process the only gc. Waits for another one, which `waiting` is called for.
    pub(super) fn only_gc(&self, waiting: &mut dyn FnMut()) -> Result<fs_err::File, StoreError> {
        let Some(file) = self.lock_named("gc")? else {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the cache directory cannot be written").into());
        };
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.file().lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(file)
    }

    /// Opens the file of a lock that has a name, making it if absent; `None` if the store cannot be written.
    fn lock_named(&self, name: &str) -> Result<Option<fs_err::File>, StoreError> {
        let path = self.root.join("locks").join(name);
        let mut open = fs_err::OpenOptions::new();
        open.read(true).write(true);
        let made = match open.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_directory(&self.root.join("locks")).and_then(|()| fs::create(&path))
            }
            other => other,
        };
        match made {
            Ok(file) => Ok(Some(file)),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Tells gc of keys whose records and artifacts this process goes by. To be called in the section in which they were
    /// found.
    pub fn need_hits(&self, hits: impl IntoIterator<Item = (Digest, Digest)>) -> Result<(), StoreError> {
        self.need(hits.into_iter().flat_map(|(key, artifact)| [Need::Key(key), Need::Artifact(artifact)]))
    }

    /// Tells gc of artifacts that this process goes by. To be called in the section in which they were found or put.
    pub fn need_artifacts(&self, ids: impl IntoIterator<Item = Digest>) -> Result<(), StoreError> {
        self.need(ids.into_iter().map(Need::Artifact))
    }

    /// Tells gc of objects of an artifact that is to be put later. To be called in the section in which they were found or put.
    pub fn need_objects(&self, ids: impl IntoIterator<Item = Digest>) -> Result<(), StoreError> {
        self.need(ids.into_iter().map(Need::Object))
    }

    fn need(&self, needs: impl Iterator<Item = Need>) -> Result<(), StoreError> {
        let text: String = needs.map(Need::line).collect();
        if text.is_empty() {
            return Ok(());
        }
        let mut live = self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let live = match &mut *live {
            Some(live) => live,
            none => match self.make_live() {
                Ok(live) => none.insert(live),
                // Nothing can be moved away either, by us.
                Err(error) if error.is_read_only() => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        Ok(fs::write_all(&mut live.file, text.as_bytes())?)
    }

    /// The live file of this process, made if absent, for the workers that it starts: see [`Store::join`].
    pub fn live_file(&self) -> Result<PathBuf, StoreError> {
        let mut live = self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(match &mut *live {
            Some(live) => live.path.clone(),
            none => none.insert(self.make_live()?).path.clone(),
        })
    }

    /// Names what this process needs in the live file of another one, which lives on when this one has ended. Without that
    /// file (the other one is gone) this process gets its own.
    pub fn join(&self, live: &Path) {
        let mut joined = self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if joined.as_ref().is_some_and(|joined| joined.path == live) {
            return;
        }
        if let Ok(file) = fs_err::OpenOptions::new().append(true).open(live) {
            *joined = Some(Live { path: live.to_owned(), file, own: false });
        }
    }

    /// Made and locked beside its place, so that no one finds it unlocked.
    fn make_live(&self) -> Result<Live, StoreError> {
        let (directory, tmp) = (self.root.join("live"), self.tmp());
        fs::create_directory(&directory)?;
        fs::create_directory(&tmp)?;
        let unfinished = fs::unfinished(&tmp);
        let name = format!("{}{}", fs::now().as_nanosecond(), super::name(&unfinished).replace('.', "-"));
        let path = directory.join(name);
        let made = (|| {
            drop(fs::create(&unfinished)?);
            let file = fs_err::OpenOptions::new().append(true).open(&unfinished)?;
            match file.file().lock() {
                Err(error) if !has_no_locks(&error) => return Err(error),
                _ => {}
            }
            fs::rename_soon(&unfinished, &path)?;
            Ok::<_, io::Error>(file)
        })();
        if made.is_err() {
            fs::discard(&unfinished);
        }
        Ok(Live { path, file: made?, own: true })
    }

    /// Removes the live files of processes that are dead. Only gc may, before it reads what they recorded.
    pub(super) fn bury_the_dead(&self) -> Result<(), StoreError> {
        for path in fs::list(&self.root.join("live"))? {
            let Ok(file) = fs_err::OpenOptions::new().read(true).write(true).open(&path) else { continue };
            if file.file().try_lock().is_ok() {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Keys and artifacts that living processes need now.
    pub(super) fn living(&self) -> Result<std::collections::BTreeSet<Digest>, StoreError> {
        let id = |need| match need {
            Need::Key(id) | Need::Artifact(id) | Need::Object(id) => id,
        };
        Ok(Listener::default().news(self)?.into_iter().map(id).collect())
    }

    /// Whether there are live files.
    pub(super) fn has_living(&self) -> Result<bool, StoreError> {
        Ok(!fs::list(&self.root.join("live"))?.is_empty())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.own {
            return;
        }
        let locks = self.path.parent().and_then(Path::parent).map(|root| root.join("locks/gc"));
        let gc = locks.and_then(|path| fs_err::OpenOptions::new().read(true).write(true).open(path).ok());
        // No such file: there never was a gc; one that begins now removes this file as one of the dead.
        if gc.is_none_or(|gc| gc.file().try_lock_shared().is_ok()) {
            fs::discard(&self.path);
        }
    }
}

/// Reads live files as they grow.
#[derive(Debug, Default)]
pub(super) struct Listener {
    /// Bytes read, by file.
    read: std::collections::BTreeMap<PathBuf, u64>,
}

impl Listener {
    /// What was named since the last call. To be called alone.
    pub(super) fn news(&mut self, store: &Store) -> Result<Vec<Need>, StoreError> {
        use std::io::{Read, Seek, SeekFrom};
        let mut needs = Vec::new();
        for path in fs::list(&store.root.join("live"))? {
            let mut file = match fs_err::File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            let read = self.read.entry(path).or_default();
            file.seek(SeekFrom::Start(*read))?;
            let mut text = String::new();
            *read += file.read_to_string(&mut text)? as u64;
            needs.extend(text.lines().filter_map(Need::parse));
        }
        Ok(needs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn what_the_living_need_is_told_and_what_the_dead_needed_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (Store::open(directory.path()).unwrap(), Store::open(directory.path()).unwrap());
        let [a, b, c] = ["a", "b", "c"].map(|text| Digest::of(text.as_bytes()));
        assert!(!one.has_living().unwrap());
        one.need([Need::Key(a)].into_iter()).unwrap();
        two.join(&one.live_file().unwrap());
        two.need_artifacts([b]).unwrap();
        let mut listener = Listener::default();
        assert_eq!(listener.news(&one).unwrap(), [Need::Key(a), Need::Artifact(b)]);
        one.need([Need::Key(c)].into_iter()).unwrap();
        assert_eq!(listener.news(&one).unwrap(), [Need::Key(c)]);
        // A worker's end takes nothing away.
        drop(two);
        one.bury_the_dead().unwrap();
        assert!(one.has_living().unwrap());
        let live = one.live_file().unwrap();
        drop(one);
        assert!(!live.exists());

        // A killed one: its lock is gone, its file is not.
        let store = Store::open(directory.path()).unwrap();
        fs_err::write(&live, "k 00\nnonsense\n\n").unwrap();
        assert_eq!(Listener::default().news(&store).unwrap(), []);
        store.bury_the_dead().unwrap();
        assert!(!live.exists());
    }

    #[test]
    fn who_ends_while_gc_goes_on_leaves_word() {
        let directory = tempfile::tempdir().unwrap();
        let (gc, run) = (Store::open(directory.path()).unwrap(), Store::open(directory.path()).unwrap());
        let lock = gc.only_gc(&mut || panic!("it is the only one")).unwrap();
        run.need_artifacts([Digest::of(b"a")]).unwrap();
        drop(run);
        assert_eq!(Listener::default().news(&gc).unwrap().len(), 1);
        drop(lock);
        gc.bury_the_dead().unwrap();
        assert!(!gc.has_living().unwrap());
    }

    #[test]
    fn sections_go_on_together_and_gc_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (inside, outside) = (store.sharing().unwrap(), store.sharing().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| drop(store.sharing().unwrap()));
        });
        let open = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let gc = scope.spawn(|| {
                drop(store.alone(&mut || {}).unwrap());
                assert!(!open.load(Ordering::SeqCst));
            });
            std::thread::sleep(Duration::from_millis(60));
            drop(inside);
            std::thread::sleep(Duration::from_millis(60));
            open.store(false, Ordering::SeqCst);
            drop(outside);
            gc.join().unwrap();
        });
        // While gc is alone no section begins.
        let alone = store.alone(&mut || {}).unwrap();
        let moving = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let section = scope.spawn(|| {
                drop(store.sharing().unwrap());
                assert!(!moving.load(Ordering::SeqCst));
            });
            std::thread::sleep(Duration::from_millis(60));
            moving.store(false, Ordering::SeqCst);
            drop(alone);
            section.join().unwrap();
        });
    }

    #[test]
    fn gc_gets_its_turn_beside_sections_that_overlap_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let section = store.sharing().unwrap();
                        std::thread::sleep(Duration::from_millis(10));
                        drop(section);
                    }
                });
            }
            for _ in 0..3 {
                drop(store.alone(&mut || {}).unwrap());
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
