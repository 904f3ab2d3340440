//! A short run of the fuzz targets, without a fuzzer: the corpora of `tests/fuzz/corpus` and what a simple mutator with a
//! fixed seed makes of them. `SAMI_TEST_FUZZ=1000000` makes it a long one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sami::digest::Digest;
use sami::{env, fuzz};

/// What one input may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Texts that mean something to one parser or another.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "${",
    "{{",
    "}}",
    "{%",
    "%}",
    "\"",
    "'",
    "\"\"\"",
    "=",
    ",",
    ":",
    ".",
    "..",
    "../",
    "/",
    "\\u0000",
    "\\ud800",
    "\0",
    "\n",
    "\u{feff}",
    "\u{202e}",
    "é",
    "null",
    "true",
    "-1",
    "0",
    "1e309",
    "9223372036854775808",
    "18446744073709551615",
    "nan",
    "iteration",
    "range(99999999)",
    " * 99999999",
    "kind = \"command\"",
    "[nodes.a]",
    "[loop]",
    "[when.n.2]",
    "matrix = {",
    "inputs = {",
    "file = \"/dev/zero\"",
    "a@1",
    "a[x=1]",
    "data_offsets",
    "shape",
    "F32",
    "__metadata__",
    "vocab",
    "merges",
    "added_tokens",
    "special_tokens",
    "type",
    "files",
    "digest",
    "size",
];

/// The same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }

    fn range(&mut self, length: usize) -> (usize, usize) {
        let (a, b) = (self.below(length + 1), self.below(length.min(64) + 1));
        (a, (a + b).min(length))
    }
}

fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let length = bytes.len();
        let at = random.below(length + 1);
        match random.below(9) {
            0 if at < length => bytes[at] ^= 1 << random.below(8),
            1 if at < length => bytes[at] = random.below(256) as u8,
            2 => {
                let (from, to) = random.range(length);
                bytes.drain(from..to);
            }
            3 => {
                let (from, to) = random.range(length);
                let piece = bytes[from..to].to_vec();
                let times = 1 + random.below(3);
                for _ in 0..times {
                    bytes.splice(at.min(bytes.len())..at.min(bytes.len()), piece.iter().copied());
                }
            }
            4 => {
                let word = WORDS[random.below(WORDS.len())].as_bytes();
                let to = if random.below(2) == 0 { at } else { (at + word.len()).min(length) };
                bytes.splice(at..to, word.iter().copied());
            }
            5 => {
                let other = &corpus[random.below(corpus.len())];
                let (from, to) = random.range(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            6 => bytes.truncate(at),
            7 if length - at >= 8 => {
                let number = [0, 1, u64::MAX, 1 << 31, 1 << 62, length as u64][random.below(6)];
                bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            // Deep, now and then.
            _ => {
                let open = [b"[".as_slice(), b"{\"a\":", b"(", b"a.", b"-", b"not "][random.below(6)];
                let depth = if random.below(50) == 0 { 20_000 } else { random.below(40) };
                bytes.splice(at..at, open.repeat(depth));
            }
        }
    }
    bytes.truncate(1 << 20);
    bytes
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut folders = vec![root.join("tests/fuzz/corpus").join(name)];
    if name == "pipeline" {
        folders.push(root.join("pipelines"));
    }
    for folder in folders {
        let entries = fs_err::read_dir(folder).expect("there is a corpus");
        paths.extend(entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()));
    }
    paths.sort();
    paths.iter().map(|path| fs_err::read(path).expect("reads")).collect()
}

/// Feeds a target its corpus and `count` mutations of it. What makes it panic or hang is kept in `target/fuzz`.
fn drive(name: &'static str, target: fuzz::Target, count: usize) {
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "the corpus of {name} is empty");
    let seed = u64::from_le_bytes(Digest::of(name.as_bytes()).as_bytes()[..8].try_into().expect("eight bytes"));
    let mut random = Random(seed);
    let current = Arc::new(Mutex::new((Instant::now(), Vec::new())));
    let keep = |bytes: &[u8]| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
        fs_err::create_dir_all(&folder).expect("a folder");
        let path = folder.join(format!("{name}-{}", Digest::of(bytes).short()));
        fs_err::write(&path, bytes).expect("writes");
        path
    };
    let (done, over) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watched = Arc::clone(&current);
        scope.spawn(move || {
            while over.recv_timeout(Duration::from_secs(1)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let (since, bytes) = watched.lock().expect("no panic").clone();
                if since.elapsed() > PATIENCE {
                    let _ = writeln!(std::io::stderr(), "{name} hangs on {}", keep(&bytes).display());
                    std::process::abort();
                }
            }
        });
        let begin = Instant::now();
        let mut failed = None;
        for at in 0..corpus.len() + count {
            let bytes = if at < corpus.len() { corpus[at].clone() } else { mutate(&mut random, &corpus) };
            *current.lock().expect("no panic") = (Instant::now(), bytes.clone());
            if std::panic::catch_unwind(|| target(&bytes)).is_err() {
                failed = Some(keep(&bytes));
                break;
            }
        }
        drop(done);
        fuzz::clean();
        assert!(failed.is_none(), "{name} panics on {}", failed.unwrap_or_default().display());
        let _ = writeln!(
            std::io::stderr(),
            "{name}: {} inputs in {:.1} s",
            corpus.len() + count,
            begin.elapsed().as_secs_f64()
        );
    });
}

fn count(default: usize) -> usize {
    env::TEST_FUZZ.get().and_then(|count| count.parse().ok()).unwrap_or(default)
}

#[test]
fn the_corpora_and_a_little_more() {
    for (name, target) in fuzz::TARGETS {
        drive(name, *target, 200);
    }
}

#[test]
#[ignore = "slow: fifty thousand inputs a target"]
fn a_short_run_of_every_target() {
    let next = Mutex::new(fuzz::TARGETS.iter());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((name, target)) = next.lock().expect("no panic").next() else { break };
                    drive(name, *target, count(50_000));
                }
            });
        }
    });
}
