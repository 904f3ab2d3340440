//! What it saves that a worker stays with a model's weights for the next node.
//!
//! `cargo bench --bench kept -- [NODES] [LAYERS] [DEVICE]` (default 6 16 cpu): so many nodes sample a few short responses each with the same
//! random model of so many layers of 1,024, one after the other; with kept weights, and with `SAMI_KEEP_WEIGHTS=off`, by turns, three times
//! each. The model is made before, so its file is in memory where that has room: from a cold or distant disk more is saved. Wall
//! seconds of the whole run, and CPU seconds of the whole process tree. Both must make the same artifacts.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use sami::env;
use serde_json::Value;

#[path = "common/cpu.rs"]
mod cpu;
#[path = "common/world.rs"]
mod world;

use world::{PROMPT, world};

/// How often each way is measured.
const TIMES: usize = 3;

fn pipeline(nodes: usize, layers: usize, device: &str) -> String {
    let mut text = world(64, &format!("hidden_size = 1024, layers = {layers}, heads = 16"));
    for node in 0..nodes {
        let _ = write!(
            text,
            r#"
[nodes.generate{node}]
kind = "generate"
model = "blank"
queries = {{ from = "all", take = 4 }}
constitutions = "constitutions"
prompt = "{PROMPT}"
max_new_tokens = 8
seed = {node}
temperature = 1.0
keep = {{ distinct = false }}
run = {{ device = "{device}" }}
"#
        );
    }
    text
}

/// What a run took: wall seconds, CPU seconds, how often weights were there; and what every node made.
struct Measured {
    wall: f64,
    cpu: f64,
    kept: u64,
    artifacts: Vec<Value>,
}

fn run(directory: &Path, keep: bool, args: &[&str]) -> Measured {
    let (before, began) = (cpu::seconds(libc::RUSAGE_CHILDREN), Instant::now());
    let mut command = Command::new(env!("CARGO_BIN_EXE_sami"));
    command.args(["run", "p.toml", "--json", "-j", "1"]).args(args).current_dir(directory).stdin(Stdio::null());
    if !keep {
        command.env(env::KEEP_WEIGHTS.name, "off");
    }
    let output = command.output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu::seconds(libc::RUSAGE_CHILDREN) - before);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let finished = lines.iter().filter(|line| line["event"] == "node-finish");
    let kept = finished.filter_map(|line| line["weights_kept"].as_u64()).sum();
    let nodes = lines.last().expect("a line")["nodes"].as_array().expect("a list");
    Measured { wall, cpu, kept, artifacts: nodes.iter().map(|node| node["artifact"].clone()).collect() }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let number = |at: usize, otherwise: usize| words.get(at).map_or(otherwise, |word| word.parse().expect("a number"));
    let (nodes, layers) = (number(0, 6), number(1, 16));
    let device = words.get(2).map_or("cpu", String::as_str);
    println(&format!("{nodes} nodes, {layers} layers of 1,024, {device}"));
    let mut expected = None;
    for keep in [false, true].repeat(TIMES) {
        // A cache of its own, in which nothing but the model is made.
        let folder = tempfile::tempdir().expect("a folder");
        fs_err::write(folder.path().join("sami.toml"), "").expect("writes");
        fs_err::write(folder.path().join("p.toml"), pipeline(nodes, layers, device)).expect("writes");
        run(folder.path(), true, &["models.blank", "constitutions"]);
        let measured = run(folder.path(), keep, &[]);
        println(&format!(
            "{}: {:.2} s, {:.2} CPU s; weights were there {} times",
            if keep { "kept" } else { "read anew" },
            measured.wall,
            measured.cpu,
            measured.kept
        ));
        assert_eq!(*expected.get_or_insert_with(|| measured.artifacts.clone()), measured.artifacts);
    }
}

#[expect(clippy::print_stdout, reason = "this is what a benchmark is for")]
fn println(line: &str) {
    println!("{line}");
}
