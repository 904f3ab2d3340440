//! What the row memo costs, and what it saves.
//!
//! `cargo bench --bench rows -- [ROWS…]` (default 100000 1000000): a space of so many rows as `score` keeps them, in 16
//! segments; it is opened, and 100,000 rows in an order by chance are looked up and read. Figures are wall seconds and bytes
//! in memory a row. Then a dataset of 2,000 queries and one that has 10% more through `generate` and `score`, in CPU seconds of
//! the whole process tree: all of the larger one in an empty cache, and what is new of it where the smaller one was done.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use sami::digest::Digest;
use sami::store::Store;
use sami::store::rows::{About, NewRow};

#[path = "common/cpu.rs"]
mod cpu;
#[path = "common/world.rs"]
mod world;

use world::{PROMPT, world};

/// Rows that are looked up.
const LOOKED_UP: u64 = 100_000;
/// Queries of the smaller dataset.
const QUERIES: usize = 2000;

fn key(n: u64) -> Digest {
    Digest::of(&n.to_le_bytes())
}

fn about() -> About {
    About {
        what: "logprobs".into(),
        models: Vec::new(),
        fields: serde_json::Value::Null,
        class: None,
        paid: false,
        model: None,
    }
}

/// Rows as `score` keeps them, looked up.
fn memo(rows: u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().join("cache")).expect("a store");
    let space = Digest::of(b"space");
    let note = format!(
        "{} … {}",
        "rules : be brief and be kind to everyone who asks you for it",
        "→ well then, here is what I would say about this"
    );
    for part in 0..16 {
        let mut open = store.open_rows(&space, about()).expect("opens");
        let all: Vec<u64> = (0..rows).filter(|n| n % 16 == part).collect();
        for batch in all.chunks(10_000) {
            let batch: Vec<NewRow<'_>> = batch
                .iter()
                .map(|n| NewRow { key: key(*n), value: "{\"nats\":-123.45678901234,\"tokens\":57}", note: Some(&note) })
                .collect();
            open.add(&batch).expect("adds");
        }
        open.finish("bench");
    }
    let began = Instant::now();
    let mut open = store.open_rows(&space, about()).expect("opens");
    let opened = began.elapsed().as_secs_f64();
    let keys: Vec<Digest> = (0..LOOKED_UP).map(|n| key(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % rows)).collect();
    let began = Instant::now();
    let mut found = 0;
    open.read(&keys, |_, value| {
        found += usize::from(serde_json::from_str::<serde_json::Value>(value).is_ok());
        true
    })
    .expect("reads");
    let took = began.elapsed().as_secs_f64();
    assert_eq!(found as u64, LOOKED_UP);
    let absent: Vec<Digest> = (0..LOOKED_UP).map(|n| key(rows + n)).collect();
    let began = Instant::now();
    open.read(&absent, |_, _| true).expect("reads");
    let missed = began.elapsed().as_secs_f64();
    let known = open.len();
    println(&format!(
        "{rows} rows: opened in {:.1} ms; {:.0} known rows/s looked up and read, {:.0} unknown ones/s; {:.1} bytes of index a row",
        opened * 1e3,
        LOOKED_UP as f64 / took,
        LOOKED_UP as f64 / missed,
        open.index_bytes() as f64 / known as f64
    ));
}

fn pipeline(queries: usize) -> String {
    let world = world(4000, "hidden_size = 128, layers = 4, heads = 4");
    format!(
        r#"{world}[nodes.generate]
kind = "generate"
model = "blank"
queries = {{ from = "all", take = {queries} }}
constitutions = "constitutions"
prompt = "{PROMPT}"
max_new_tokens = 48
temperature = 1.0
keep = {{ distinct = false }}
[nodes.score]
kind = "score"
model = "blank"
responses = "generate"
prompt = "{PROMPT}"
"#
    )
}

/// CPU seconds of a run; prints what it said of rows.
fn run(directory: &Path, queries: usize) -> f64 {
    fs_err::write(directory.join("p.toml"), pipeline(queries)).expect("writes");
    let before = cpu::seconds(libc::RUSAGE_CHILDREN);
    let output = Command::new(env!("CARGO_BIN_EXE_sami"))
        .args(["run", "p.toml"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .expect("starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    for line in told.lines().filter(|line| line.contains("reused")) {
        println(&format!("    {line}"));
    }
    cpu::seconds(libc::RUSAGE_CHILDREN) - before
}

fn growth() {
    let folder = || {
        let folder = tempfile::tempdir().expect("a folder");
        fs_err::write(folder.path().join("sami.toml"), "").expect("writes");
        folder
    };
    let (full, grown) = (folder(), folder());
    let more = QUERIES + QUERIES / 10;
    println(&format!("{more} queries in an empty cache:"));
    let all = run(full.path(), more);
    run(grown.path(), QUERIES);
    println(&format!("{more} queries after {QUERIES}:"));
    let new = run(grown.path(), more);
    println(&format!("{new:.2} of {all:.2} CPU seconds: {:.1}%", 100.0 * new / all));
}

#[expect(clippy::print_stdout, reason = "this is what a benchmark is for")]
fn println(text: &str) {
    println!("{text}");
}

fn main() {
    let mut sizes: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![100_000, 1_000_000];
    }
    sizes.into_iter().for_each(memo);
    growth();
}
