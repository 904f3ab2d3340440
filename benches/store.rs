//! A large store: what it costs to look into one of very many artifacts.
//!
//! `cargo bench --bench store -- 1000000 [DIRECTORY]` writes a store of so many artifacts (records, manifests, objects and runs
//! in the store's own formats, without waiting for the disk, else it would take hours), then times commands on it: wall
//! and CPU seconds and peak memory of the whole process, the best of three. With a directory the store stays there and is
//! found again; without one it is made in a temporary one and removed.
//!
//! The store is that of 50 pipelines of 1,000 nodes that ran again and again, each time with other results: chains of ten, each
//! node's artifact a file of some hundred bytes, one in fifty taken over from the run before.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use sami::digest::Digest;
use sami::store::{Blob, Manifest, NodeRecord, RunNode, RunRecord, Store};
use serde_json::{Map, json};

const PIPELINES: usize = 50;
const NODES: usize = 1000;
const PASSES: usize = 3;

/// Writes a file of the store, and the directory that it is in.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    match std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path) {
        Ok(mut file) => file.write_all(bytes),
        Err(_) => {
            fs_err::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            fs_err::OpenOptions::new().write(true).create(true).truncate(true).open(path)?.write_all(bytes)
        }
    }
}

/// A record as the store writes it: names in order, and with its own digest.
fn checked(record: &impl serde::Serialize) -> std::io::Result<Vec<u8>> {
    let mut value = serde_json::to_value(record)?;
    value["check"] = json!(Digest::of_value(&value));
    Ok(serde_json::to_vec_pretty(&value)?)
}

fn sharded(root: &Path, folder: &str, id: &Digest, suffix: &str) -> std::path::PathBuf {
    let hex = id.to_string();
    root.join(folder).join(&hex[..2]).join(format!("{}{suffix}", &hex[2..]))
}

/// A record with all that does not differ between them.
fn template() -> NodeRecord {
    let empty = Digest::of(b"");
    serde_json::from_value(json!({
        "format": 1, "key": empty, "node": "", "pipeline": "", "kind": "command", "artifact": empty, "preimage": {},
        "inputs": {}, "metrics": {}, "run": "", "attempt": 1, "started": "", "seconds": 1.0, "host": "bench",
        "device": "cpu", "version": "0.1.0",
    }))
    .expect("it is a record")
}

/// A run of one pipeline: its files.
fn write_run(root: &Path, number: usize, nodes: usize) -> std::io::Result<()> {
    let pipeline = format!("pipeline-{:02}", number % PIPELINES);
    let begun: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let begun = begun + Duration::from_secs(number as u64 * 600);
    let run = format!("{}-{:04x}", begun.strftime("%Y%m%d-%H%M%S"), number & 0xffff);
    let mut listed = Vec::with_capacity(nodes);
    let mut last: Option<Digest> = None;
    for node in 0..nodes {
        let name = format!("node-{node:03}");
        // One in fifty has the result of the run before.
        let turn = if node % 50 == 7 && number >= PIPELINES { number - PIPELINES } else { number };
        let text = format!("{{\"id\": {turn}, \"node\": {node}}}\n").repeat(5 + node % 40);
        let blob = Blob { digest: Digest::of(text.as_bytes()), size: text.len() as u64 };
        let files = BTreeMap::from([("rows.jsonl".to_owned(), blob)]);
        let kind = ["responses", "scores", "model", "files"][node % 4].to_owned();
        let manifest = Manifest { kind, files };
        let artifact = manifest.id();
        let inputs: BTreeMap<String, Digest> =
            last.filter(|_| node % 10 > 0).map(|id| ("data".to_owned(), id)).into_iter().collect();
        let preimage = json!({
            "kind": "command", "version": 1, "inputs": inputs,
            "fields": {"program": "sh", "args": ["-c", format!("make {name} in turn {turn} of {pipeline}")]},
        });
        let metrics = Map::from_iter([("rows".to_owned(), json!(5 + node % 40)), ("loss".to_owned(), json!(0.125))]);
        let record = NodeRecord {
            key: Digest::of_value(&preimage),
            node: name.clone(),
            pipeline: pipeline.clone(),
            artifact,
            inputs,
            metrics: metrics.clone(),
            run: run.clone(),
            started: (begun + Duration::from_millis(node as u64 * 100)).to_string(),
            seconds: 0.5 + (node % 17) as f64,
            preimage,
            ..template()
        };
        if turn == number {
            write(&sharded(root, "objects", &blob.digest, ""), text.as_bytes())?;
            write(&sharded(root, "artifacts", &artifact, ".json"), &serde_json::to_vec(&manifest)?)?;
            write(&sharded(root, "nodes", &record.key, ".json"), &checked(&record)?)?;
        }
        listed.push(RunNode {
            name,
            kind: "command".to_owned(),
            state: if turn == number { "ran" } else { "hit" }.to_owned(),
            key: Some(record.key),
            artifact: Some(artifact),
            seconds: record.seconds,
            metrics,
        });
        last = Some(artifact);
    }
    let record = RunRecord {
        file: format!("{pipeline}.toml"),
        pipeline,
        params: BTreeMap::new(),
        started: begun.to_string(),
        finished: Some((begun + Duration::from_secs(500)).to_string()),
        ok: Some(true),
        nodes: listed,
        run: run.clone(),
    };
    write(&root.join("runs").join(run).join("run.json"), &checked(&record)?)
}

fn generate(root: &Path, artifacts: usize) -> std::io::Result<()> {
    let made = root.join("generated");
    if made.exists() {
        return Ok(());
    }
    drop(Store::open(root).map_err(std::io::Error::other)?);
    let runs = artifacts.div_ceil(NODES);
    (0..runs).into_par_iter().try_for_each(|run| write_run(root, run, NODES.min(artifacts - run * NODES)))?;
    write(&made, b"")
}

/// How a command went.
#[derive(Debug, Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
    /// Peak resident memory in MB.
    peak: f64,
}

/// Runs `sami` on the store to its end.
fn cost(root: &Path, args: &[&str]) -> std::io::Result<Cost> {
    let begun = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sami"))
        .args(args)
        .arg("--cache")
        .arg(root)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()?;
    // SAFETY: `usage` and `status` are plain data that the call fills in, and the child is waited for here alone.
    #[expect(unsafe_code, reason = "the standard library has no call for what one child used")]
    let (status, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let mut status = 0;
        libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut usage);
        (status, usage)
    };
    let wall = begun.elapsed().as_secs_f64();
    // Reaped above: this only tells the standard library.
    let _ = child.try_wait();
    if status != 0 {
        return Err(std::io::Error::other(format!("`sami {}` failed", args.join(" "))));
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    Ok(Cost { wall, cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime), peak: usage.ru_maxrss as f64 / 1000.0 })
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let artifacts: usize = args.first().and_then(|arg| arg.parse().ok()).unwrap_or(10_000);
    let temporary = tempfile::tempdir()?;
    let root = args.get(1).map_or_else(|| temporary.path().join("cache"), std::path::PathBuf::from);
    let mut out = std::io::stdout();
    let begun = Instant::now();
    generate(&root, artifacts)?;
    writeln!(out, "{artifacts} artifacts written in {:.0} s", begun.elapsed().as_secs_f64())?;
    writeln!(out, "{:<52} {:>9} {:>9} {:>9}", "", "wall, s", "CPU, s", "peak, MB")?;
    let mut time = |args: &[&str], passes: usize| -> std::io::Result<()> {
        let costs: std::io::Result<Vec<Cost>> = (0..passes).map(|_| cost(&root, args)).collect();
        let costs = costs?;
        let best = costs.iter().min_by(|a, b| a.wall.total_cmp(&b.wall)).copied().unwrap_or(costs[0]);
        let peak = costs.iter().map(|cost| cost.peak).fold(0.0, f64::max);
        writeln!(out, "{:<52} {:>9.3} {:>9.3} {peak:>9.0}", format!("sami {}", args.join(" ")), best.wall, best.cpu)
    };
    time(&["cache", "rebuild"], 1)?;
    // Not all keys: a child's peak counts what its parent held when it was started.
    let shard = sami::fs::list(&root.join("nodes/80"))?;
    let some = shard.first().and_then(|path| Some(format!("80{}", path.file_stem()?.to_str()?)));
    let some = some.ok_or_else(|| std::io::Error::other("no record begins with 80: write more artifacts"))?;
    for args in [
        &["cache", "ls"][..],
        &["cache", "ls", "--json"],
        &["cache", "ls", "--sort", "size"],
        &["cache", "ls", "--type", "model"],
        &["cache", "ls", "--sort", "size", "--type", "model"],
        &["cache", "ls", "--pipeline", "pipeline-07"],
        &["cache", "ls", "--node", "node-123", "--older", "1d"],
        &["show", "node-123"],
        &["show", &some[..12]],
        &["cache", "show", "node-123"],
        &["cache", "show", &some[..12]],
        &["cache", "du"],
        &["cache", "gc", "--dry-run"],
        &["cache", "gc", "--dry-run", "--keep", "100MB"],
    ] {
        time(args, PASSES)?;
    }
    // Only of a store that nobody wants to keep.
    if args.get(1).is_none() {
        time(&["cache", "gc", "--yes"], 1)?;
        time(&["cache", "ls"], 1)?;
    }
    Ok(())
}
