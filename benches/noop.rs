//! What a run costs when nothing is to be done, what it costs to ask, and what a node costs, against peers that are on the
//! `PATH`.
//!
//! `cargo bench --bench noop -- [NODES…]` (default 100 1000). The graph is "mixed": per 25 nodes a head, a chain of 5, a
//! fan-out of 18 and a join, in four lanes; 1,680 edges per 1,000 nodes. Every node writes its name with `sh`, two at once.
//! Figures are CPU seconds (user and system, the whole process tree), the least of five runs for all but the full one.
//! Of our own, what is asked is asked twice: at first, and again when the answer is remembered. What a worker costs is the
//! cost of a node that has one to itself and tallies two verdicts: start, work, verified output, record. Waits for the disk are counted
//! by `strace` in a full run of 25 nodes. Peers, where found: `ninja`, `n2`, `doit` and `dvc`, each with the same graph and the
//! same commands; a long chain and nested diamonds are planned by ours alone.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

#[path = "common/cpu.rs"]
mod cpu;

/// Passes of which the cheapest counts.
const PASSES: usize = 5;

/// Nodes of a run in which each has a worker of its own.
const WORKERS: usize = 200;

/// DVC runs stages one after another and takes about 180 ms of CPU time for each.
const MOST_FOR_DVC: usize = 100;

/// A node's name and the names of those that it needs.
type Graph = Vec<(String, Vec<String>)>;

fn mixed(nodes: usize) -> Graph {
    let mut graph = Graph::new();
    for group in 0..nodes.div_ceil(25) {
        let name = |part: String| format!("g{group}{part}");
        let above = group.checked_sub(4).map(|before| vec![format!("g{before}join")]);
        graph.push((name("head".into()), above.unwrap_or_default()));
        let mut last = name("head".into());
        for link in 0..5 {
            graph.push((name(format!("chain{link}")), vec![last]));
            last = name(format!("chain{link}"));
        }
        let fan: Vec<String> = (0..18).map(|leaf| name(format!("leaf{leaf}"))).collect();
        graph.extend(fan.iter().map(|leaf| (leaf.clone(), vec![last.clone()])));
        graph.push((name("join".into()), fan));
    }
    graph
}

fn for_sami(graph: &Graph) -> String {
    let mut text = String::new();
    for (name, needs) in graph {
        let inputs: Vec<String> = needs.iter().map(|need| format!("{need} = \"{need}\"")).collect();
        let _ = writeln!(
            text,
            "[nodes.{name}]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo {name} > out\"]\ninputs = {{ {} }}",
            inputs.join(", ")
        );
    }
    text
}

fn for_ninja(graph: &Graph) -> String {
    let mut text = String::from("rule node\n  command = echo $short > $out\n");
    for (name, needs) in graph {
        let _ = writeln!(text, "build {name}: node {}\n  short = {name}", needs.join(" "));
    }
    text
}

fn for_dvc(graph: &Graph) -> String {
    let mut text = String::from("stages:\n");
    for (name, needs) in graph {
        let _ = writeln!(text, "  {name}:\n    cmd: echo {name} > {name}\n    outs: [{name}]");
        if !needs.is_empty() {
            let _ = writeln!(text, "    deps: [{}]", needs.join(", "));
        }
    }
    text
}

fn for_doit(graph: &Graph) -> String {
    let mut text = String::from("NODES = {\n");
    for (name, needs) in graph {
        let _ = writeln!(text, "    {name:?}: {needs:?},");
    }
    text.push_str(
        "}\ndef task_node():\n    for name, needs in NODES.items():\n        yield {'name': name, 'actions': [f'echo {name} > {name}'], \
         'targets': [name], 'file_dep': needs}\n",
    );
    text
}

/// Verdicts that take no time to tally.
const JUDGED: &str = "{\"id\": 1, \"candidate\": \"a\", \"win\": 1}\n{\"id\": 2, \"candidate\": \"a\", \"win\": 0}\n";

/// Nodes that each start a worker of their own, which does next to nothing: a tally of two verdicts.
fn tallies(nodes: usize) -> String {
    let mut text = String::from("[datasets.judged]\nsource = \"judged.jsonl\"\n");
    for node in 0..nodes {
        let _ = writeln!(text, "[nodes.t{node}]\nkind = \"tally\"\nverdicts = \"judged\"\nseed = {node}");
    }
    text
}

/// A chain: every node needs the one before.
fn chain(nodes: usize) -> Graph {
    let name = |at: usize| format!("n{at}");
    (0..nodes).map(|at| (name(at), at.checked_sub(1).map(name).into_iter().collect())).collect()
}

/// Diamonds in a row, each eighteen nodes wide.
fn diamonds(deep: usize) -> Graph {
    let mut graph: Graph = vec![("d0".into(), Vec::new())];
    for level in 1..=deep {
        let fan: Vec<String> = (0..18).map(|at| format!("d{level}x{at}")).collect();
        graph.extend(fan.iter().map(|node| (node.clone(), vec![format!("d{}", level - 1)])));
        graph.push((format!("d{level}"), fan));
    }
    graph
}

/// Runs a command and returns its CPU seconds; `None` if it fails or is not there.
fn cost(directory: &Path, program: &str, args: &[&str]) -> Option<f64> {
    let before = cpu::seconds(libc::RUSAGE_CHILDREN);
    let status = Command::new(program)
        .args(args)
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env("DVC_NO_ANALYTICS", "1")
        .status();
    let after = cpu::seconds(libc::RUSAGE_CHILDREN);
    status.is_ok_and(|status| status.success()).then_some(after - before)
}

/// The cheapest of some runs.
fn least(directory: &Path, program: &str, args: &[&str], passes: usize) -> Option<f64> {
    let passes: Option<Vec<f64>> = (0..passes).map(|_| cost(directory, program, args)).collect();
    Some(passes?.into_iter().fold(f64::INFINITY, f64::min))
}

/// The first, full run and the cheapest run after it.
fn measure(directory: &Path, program: &str, args: &[&str], passes: usize) -> Option<(f64, f64)> {
    let full = cost(directory, program, args)?;
    // Files are trusted without a look once they have not changed for some milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(100));
    Some((full, least(directory, program, args, passes)?))
}

/// Waits for the disk in a full run, by `strace`; `None` where that is missing.
fn waits(directory: &Path, program: &str, args: &[&str]) -> Option<usize> {
    let report = directory.join("waits");
    let mut all = vec!["-f", "-o", report.to_str()?, "-e", "trace=fsync,fdatasync,syncfs,sync", program];
    all.extend(args);
    cost(directory, "strace", &all)?;
    let text = fs_err::read_to_string(&report).ok()?;
    Some(text.lines().filter(|line| line.contains("sync") && !line.contains("resumed")).count())
}

/// What a program says its version is.
fn version(program: &str) -> String {
    let said = Command::new(program).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).lines().next().unwrap_or_default().trim().to_owned()
}

/// Peak resident memory of a run, in MB, by `/usr/bin/time` of Debian's `time`; `None` where that is missing.
fn peak(directory: &Path, program: &str, args: &[&str]) -> Option<f64> {
    let report = directory.join("peak");
    let report_name = report.to_str()?;
    let mut all = vec!["-f", "%M", "-o", report_name, program];
    all.extend(args);
    cost(directory, "/usr/bin/time", &all)?;
    let text = fs_err::read_to_string(&report).ok()?;
    Some(text.trim().parse::<f64>().ok()? / 1000.0)
}

fn main() -> std::io::Result<()> {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![100, 1000] } else { sizes };
    let sami = env!("CARGO_BIN_EXE_sami");
    let mut out = std::io::stdout();
    for peer in ["ninja", "n2", "doit", "dvc"] {
        writeln!(out, "{peer}: {}", Some(version(peer)).filter(|text| !text.is_empty()).unwrap_or("not found".into()))?;
    }
    writeln!(
        out,
        "\n{:>6}  {:<6} {:>12} {:>10} {:>10} {:>8} {:>9}",
        "nodes", "tool", "full run, s", "ms a node", "no-op, ms", "x sami", "peak, MB"
    )?;
    for &nodes in &sizes {
        let graph = mixed(nodes);
        let folder = tempfile::tempdir()?;
        let mut own = None;
        let peers: [(&str, &str, String, &[&str], usize); 5] = [
            ("sami", "p.toml", for_sami(&graph), &["run", "p.toml", "--cache", "cache", "-j", "2"], PASSES),
            ("ninja", "build.ninja", for_ninja(&graph), &["-j2"], PASSES),
            ("n2", "build.ninja", for_ninja(&graph), &["-j2"], PASSES),
            ("doit", "dodo.py", for_doit(&graph), &["-n2", "-v0"], 3),
            ("dvc", "dvc.yaml", for_dvc(&graph), &["repro", "-q"], 1),
        ];
        for (tool, file, text, args, passes) in peers {
            let directory = folder.path().join(tool);
            fs_err::create_dir(&directory)?;
            fs_err::write(directory.join(file), text)?;
            let program = if tool == "sami" { sami } else { tool };
            if tool == "dvc" && (nodes > MOST_FOR_DVC || cost(&directory, "dvc", &["init", "--no-scm", "-q"]).is_none())
            {
                continue;
            }
            let Some((full, noop)) = measure(&directory, program, args, passes) else { continue };
            let peak = peak(&directory, program, args).map_or_else(|| "-".to_owned(), |peak| format!("{peak:.0}"));
            let (each, times) = (full * 1e3 / nodes as f64, noop / *own.get_or_insert(noop));
            let noop = noop * 1e3;
            writeln!(out, "{nodes:>6}  {tool:<6} {full:>12.2} {each:>10.2} {noop:>10.1} {times:>8.2} {peak:>9}")?;
        }
    }
    writeln!(out, "\n{:>6}  {:<22} {:>9} {:>9}", "nodes", "asked", "first, ms", "again, ms")?;
    for &nodes in &sizes {
        let folder = tempfile::tempdir()?;
        let directory = folder.path();
        fs_err::write(directory.join("p.toml"), for_sami(&mixed(nodes)))?;
        cost(directory, sami, &["run", "p.toml", "--cache", "cache"]);
        std::thread::sleep(std::time::Duration::from_millis(100));
        // Brings the index up to date.
        cost(directory, sami, &["plan", "p.toml", "--cache", "cache", "--json"]);
        let last = format!("g{}join", nodes.div_ceil(25) - 1);
        let asks: [(&str, &[&str]); 5] = [
            ("check", &["check", "p.toml"]),
            ("run", &["run", "p.toml", "--cache", "cache"]),
            ("status", &["status", "p.toml", "--cache", "cache"]),
            ("plan", &["plan", "p.toml", "--cache", "cache"]),
            ("why (fresh)", &["why", "p.toml", &last, "--cache", "cache"]),
        ];
        let mut line = |asked: &str, args: &[&str]| {
            // Nothing is remembered at first.
            let first = (0..3).filter_map(|_| {
                let _ = fs_err::remove_dir_all(directory.join("cache/fresh"));
                cost(directory, sami, args)
            });
            let first = first.fold(f64::INFINITY, f64::min) * 1e3;
            let again = least(directory, sami, args, PASSES).unwrap_or(f64::NAN) * 1e3;
            writeln!(out, "{nodes:>6}  {asked:<22} {first:>9.1} {again:>9.1}")
        };
        for (asked, args) in asks {
            line(asked, args)?;
        }
        // The first of all that the last one needs.
        let first = format!("echo g{}head", (nodes.div_ceil(25) - 1) % 4);
        let text = fs_err::read_to_string(directory.join("p.toml"))?;
        fs_err::write(directory.join("p.toml"), text.replacen(&first, &format!("{first} again"), 1))?;
        line("why (stale)", &["why", "p.toml", &last, "--cache", "cache"])?;
    }
    writeln!(out, "\n{:>6}  {:<22} {:>9}", "nodes", "planned from nothing", "ms")?;
    for (what, graph) in [
        ("chain", chain(25_000)),
        ("chain", chain(50_000)),
        ("chain", chain(100_000)),
        ("diamonds, 20 deep", diamonds(20)),
    ] {
        let folder = tempfile::tempdir()?;
        fs_err::write(folder.path().join("p.toml"), for_sami(&graph))?;
        let planned = least(folder.path(), sami, &["plan", "p.toml", "--cache", "cache"], 2).unwrap_or(f64::NAN);
        writeln!(out, "{:>6}  {what:<22} {:>9.1}", graph.len(), planned * 1e3)?;
    }
    let folder = tempfile::tempdir()?;
    fs_err::write(folder.path().join("judged.jsonl"), JUDGED)?;
    fs_err::write(folder.path().join("p.toml"), tallies(WORKERS))?;
    let full = cost(folder.path(), sami, &["run", "p.toml", "--cache", "cache", "-j", "2"]).unwrap_or(f64::NAN);
    writeln!(
        out,
        "\na node in a worker of its own: {:.2} ms, of {WORKERS} in a full run",
        full * 1e3 / WORKERS as f64
    )?;
    let folder = tempfile::tempdir()?;
    fs_err::write(folder.path().join("p.toml"), for_sami(&mixed(25)))?;
    match waits(folder.path(), sami, &["run", "p.toml", "--cache", "cache", "-j", "2"]) {
        Some(waits) => writeln!(out, "\nwaits for the disk: {:.2} a node of 25", waits as f64 / 25.0)?,
        None => writeln!(out, "\nwaits for the disk: `strace` was not found")?,
    }
    Ok(())
}
