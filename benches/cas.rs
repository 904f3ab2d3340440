//! What it costs to get large files into the store, to look at them there, and to get them out again; against peers that
//! are on the `PATH`.
//!
//! `cargo bench --bench cas -- [MIB]` (default 2048). Needs five times as much room under `TMPDIR`. Figures are CPU seconds
//! (user and system, the whole process tree), wall seconds, and bytes read and written by calls of this process. The page
//! cache holds the file except where "cold" is said, and `cold` drops this file's pages only.
//! Peers, where found: `b3sum`, `cp`, `dvc`.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use sami::store::{Blob, Health, Link, Manifest, Stamps, Store};

#[path = "common/cpu.rs"]
mod cpu;

/// Passes of which the cheapest counts.
const PASSES: usize = 3;
/// Tensors of the model; one in twenty is changed in the second.
const TENSORS: usize = 60;

#[derive(Clone, Copy, Default)]
struct Cost {
    cpu: f64,
    wall: f64,
    read: u64,
    written: u64,
}

/// CPU seconds of this process and of its children that ended.
fn cpu_seconds() -> f64 {
    cpu::seconds(libc::RUSAGE_SELF) + cpu::seconds(libc::RUSAGE_CHILDREN)
}

/// Bytes that calls of this process read and wrote.
fn bytes() -> (u64, u64) {
    let text = fs_err::read_to_string("/proc/self/io").unwrap_or_default();
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0);
    (value("rchar:"), value("wchar:"))
}

fn once(work: impl FnOnce()) -> Cost {
    let (cpu, (read, written), began) = (cpu_seconds(), bytes(), Instant::now());
    work();
    let wall = began.elapsed().as_secs_f64();
    let (now_read, now_written) = bytes();
    Cost { cpu: cpu_seconds() - cpu, wall, read: now_read - read, written: now_written - written }
}

/// The cheapest of some passes; `before` is done anew for each and not counted.
fn least<T>(mut before: impl FnMut() -> T, mut work: impl FnMut(T)) -> Cost {
    let costs = (0..PASSES).map(|_| {
        let given = before();
        once(|| work(given))
    });
    costs.min_by(|a, b| a.cpu.total_cmp(&b.cpu)).unwrap_or_default()
}

fn tell(what: &str, cost: Cost) {
    let mib = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
    let _ = writeln!(
        std::io::stdout(),
        "{what:<58}{:>8.2}{:>8.2}{:>10}{:>10}",
        cost.cpu,
        cost.wall,
        mib(cost.read),
        mib(cost.written)
    );
}

/// Bytes that do not compress and differ by seed.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Writes a file of safetensors of `size` bytes; in another `version` a twentieth of the tensors differ.
fn model(path: &Path, size: usize, version: u64) {
    let each = size / TENSORS;
    let entry = |at: usize| {
        format!(r#""t{at:03}":{{"dtype":"U8","shape":[{each}],"data_offsets":[{},{}]}}"#, at * each, (at + 1) * each)
    };
    let header = format!("{{{}}}", (0..TENSORS).map(entry).collect::<Vec<_>>().join(","));
    let mut file = std::io::BufWriter::new(fs_err::File::create(path).expect("a file"));
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("writes");
    file.write_all(header.as_bytes()).expect("writes");
    for at in 0..TENSORS {
        let seed = if at % 20 == 7 { version * 1000 + at as u64 } else { at as u64 };
        file.write_all(&noise(seed, each)).expect("writes");
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error).expect("writes").sync_all().expect("syncs");
}

/// Has the page cache forget a file.
fn forget(path: &Path) {
    let file = fs_err::File::open(path).expect("a file");
    file.sync_all().expect("syncs");
    // SAFETY: takes plain numbers and touches no memory of this process.
    #[expect(unsafe_code, reason = "the standard library has no such call")]
    unsafe {
        libc::posix_fadvise(file.file().as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
    }
}

fn peer(program: &str, args: &[&str], directory: &Path) -> bool {
    let quiet =
        Command::new(program).args(args).current_dir(directory).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}

fn held(directory: &Path) -> u64 {
    sami::fs::walk(directory)
        .expect("a directory")
        .iter()
        .map(|path| fs_err::metadata(path).expect("a file").len())
        .sum()
}

fn main() {
    let mib: usize = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(2048);
    let size = mib << 20;
    let folder = tempfile::tempdir().expect("a directory");
    let root = folder.path();
    let source = root.join("source.bin");
    fs_err::write(&source, noise(1, size)).expect("writes");
    fs_err::File::open(&source).and_then(|file| file.sync_all()).expect("syncs");
    let _ = writeln!(
        std::io::stdout(),
        "{mib} MiB{:<50}{:>8}{:>8}{:>10}{:>10}",
        "",
        "CPU s",
        "wall s",
        "MiB read",
        "written"
    );

    let hash = |path: PathBuf| {
        Blob::of_file(&path).expect("reads");
    };
    tell("hash where it is (a model in a directory), warm", least(|| source.clone(), hash));
    let cold = || {
        forget(&source);
        source.clone()
    };
    tell("hash where it is, cold", least(cold, hash));
    if peer("b3sum", &["--version"], root) {
        let theirs = |()| assert!(peer("b3sum", &["source.bin"], root));
        tell("b3sum, warm", least(|| (), theirs));
        tell(
            "b3sum --num-threads 1, warm",
            least(|| (), |()| assert!(peer("b3sum", &["--num-threads", "1", "source.bin"], root))),
        );
    }

    // What a node made is moved; what is elsewhere is cloned or copied.
    let fresh = || {
        let _ = fs_err::remove_dir_all(root.join("cache"));
        let store = Store::open(&root.join("cache")).expect("a store");
        let staged = root.join("cache/tmp/made");
        fs_err::rename(&source, &staged).expect("moves");
        (store, staged)
    };
    let take = |(store, staged): (Store, PathBuf)| {
        let blob = store.put_file(&staged).expect("puts");
        let object = store.blob_path(&blob.digest);
        fs_err::rename(object, &source).expect("moves");
    };
    tell("put what a node made (moved)", least(fresh, take));
    let empty = || {
        let _ = fs_err::remove_dir_all(root.join("cache"));
        Store::open(&root.join("cache")).expect("a store")
    };
    let copy = |store: Store| _ = store.put_file(&source).expect("puts");
    tell("put a file from elsewhere (cloned or copied)", least(empty, copy));
    tell("cp", least(|| root.join("copy"), |to| assert!(peer("cp", &["source.bin", &to.to_string_lossy()], root))));
    let _ = fs_err::remove_file(root.join("copy"));

    let store = Store::open(&root.join("cache")).expect("a store");
    let blob = store.put_file(&source).expect("puts");
    let manifest = Manifest { kind: "files".into(), files: [("source.bin".to_owned(), blob)].into() };
    let id = store.put_manifest(&manifest).expect("puts");
    tell("look again, stamps as they were", {
        let mut stamps = Stamps::default();
        assert_eq!(store.health(&id, &mut stamps).expect("reads"), Health::Whole);
        least(|| (), |()| _ = store.health(&id, &mut stamps).expect("reads"))
    });
    let strange = || Store::open(store.root()).expect("a store");
    let look = |store: Store| assert_eq!(store.health(&id, &mut Stamps::default()).expect("reads"), Health::Whole);
    tell("look again, stamps not known: read and hashed", least(strange, look));
    tell("verify the store", least(strange, |store| assert!(store.verify(&mut |_, _| {}).expect("reads").is_whole())));
    for link in [Link::Reflink, Link::Hard, Link::Symlink, Link::Copy] {
        let out = root.join("out");
        let before = || _ = fs_err::remove_dir_all(&out);
        let mut can = true;
        let cost = least(before, |()| can &= store.checkout(&id, &out, link).is_ok());
        if can {
            tell(&format!("checkout --link {}", format!("{link:?}").to_lowercase()), cost);
        }
        let _ = fs_err::remove_dir_all(&out);
    }
    drop(store);
    let _ = fs_err::remove_dir_all(root.join("cache"));
    if peer("dvc", &["--version"], root) && peer("dvc", &["init", "--no-scm"], root) {
        tell("dvc add", once(|| assert!(peer("dvc", &["add", "source.bin"], root))));
        tell("dvc add, unchanged", once(|| assert!(peer("dvc", &["add", "source.bin"], root))));
        let _ = fs_err::remove_dir_all(root.join(".dvc"));
    }
    let _ = fs_err::remove_file(&source);

    // Two models of which a twentieth differs.
    let store = Store::open(&root.join("cache")).expect("a store");
    let objects = root.join("cache/objects");
    for (version, what) in [(1, "put a model in pieces, all new"), (2, "put a model of which 5% changed")] {
        let staged = root.join("cache/tmp/model");
        model(&staged, size, version);
        let before = held(&objects);
        let cost = once(|| _ = store.put_file(&staged).expect("puts"));
        tell(&format!("{what}: {} MiB added", (held(&objects) - before) >> 20), cost);
    }
}
