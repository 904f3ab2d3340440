//! What a run costs when nothing is to be done, and what a node costs, against peers that are on the `PATH`.
//!
//! `cargo bench --bench noop -- [NODES…]` (default 100 1000). The graph is "mixed": per 25 nodes a head, a chain of 5, a
//! fan-out of 18 and a join, in four lanes; 1,680 edges per 1,000 nodes. Every node writes its name with `sh`.
//! Figures are CPU seconds (user and system, the whole process tree), the least of five runs for no-op passes.
//! Peers, where found: `ninja` and `dvc`, each with the same graph and the same commands.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Passes of which the cheapest counts.
const PASSES: usize = 5;

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

/// CPU seconds of all children so far.
fn children_seconds() -> f64 {
    // SAFETY: `usage` is a plain structure that the call fills in.
    #[expect(unsafe_code, reason = "the standard library has no call for the CPU time of children")]
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Runs a command and returns its CPU seconds; `None` if it fails or is not there.
fn cost(directory: &Path, program: &str, args: &[&str]) -> Option<f64> {
    let before = children_seconds();
    let status = Command::new(program)
        .args(args)
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env("DVC_NO_ANALYTICS", "1")
        .status();
    let after = children_seconds();
    status.is_ok_and(|status| status.success()).then_some(after - before)
}

/// The first, full run and the cheapest run after it.
fn measure(directory: &Path, program: &str, args: &[&str], passes: usize) -> Option<(f64, f64)> {
    let full = cost(directory, program, args)?;
    // Files are trusted without a look once they have not changed for some milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(100));
    let passes: Option<Vec<f64>> = (0..passes).map(|_| cost(directory, program, args)).collect();
    Some((full, passes?.into_iter().fold(f64::INFINITY, f64::min)))
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
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{:>6}  {:<6} {:>14} {:>12} {:>10} {:>10}",
        "nodes", "tool", "full run, s", "no-op, s", "x sami", "peak, MB"
    )?;
    for nodes in if sizes.is_empty() { vec![100, 1000] } else { sizes } {
        let graph = mixed(nodes);
        let folder = tempfile::tempdir()?;
        let directory = folder.path();
        fs_err::write(directory.join("p.toml"), for_sami(&graph))?;
        fs_err::write(directory.join("build.ninja"), for_ninja(&graph))?;
        fs_err::write(directory.join("dvc.yaml"), for_dvc(&graph))?;
        let sami = env!("CARGO_BIN_EXE_sami");
        let args = ["run", "p.toml", "--cache", "cache"];
        let Some(own) = measure(directory, sami, &args, PASSES) else {
            writeln!(out, "{nodes:>6}  sami failed")?;
            continue;
        };
        let line = |tool: &str, (full, noop): (f64, f64), peak: Option<f64>| {
            let peak = peak.map_or_else(|| "-".to_owned(), |peak| format!("{peak:.0}"));
            format!("{nodes:>6}  {tool:<6} {full:>14.2} {noop:>12.4} {:>10.2} {peak:>10}", noop / own.1)
        };
        writeln!(out, "{}", line("sami", own, peak(directory, sami, &args)))?;
        match measure(directory, "ninja", &["-j2"], PASSES) {
            Some(ninja) => writeln!(out, "{}", line("ninja", ninja, peak(directory, "ninja", &["-j2"])))?,
            None => writeln!(out, "{nodes:>6}  ninja  not found on the PATH")?,
        }
        if nodes > MOST_FOR_DVC {
            writeln!(
                out,
                "{nodes:>6}  dvc    its full run would take minutes; see the figures at {MOST_FOR_DVC} nodes"
            )?;
            continue;
        }
        let started = cost(directory, "dvc", &["init", "--no-scm", "-q"]).is_some();
        match started.then(|| measure(directory, "dvc", &["repro", "-q"], 1)).flatten() {
            Some(dvc) => writeln!(out, "{}", line("dvc", dvc, peak(directory, "dvc", &["repro", "-q"])))?,
            None => writeln!(out, "{nodes:>6}  dvc    not found on the PATH")?,
        }
    }
    Ok(())
}
