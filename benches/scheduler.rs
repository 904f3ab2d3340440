//! The scheduler with many nodes and many jobs, on a simulated cluster (`tests/it/simulated.rs`): the loop, the watcher, the records and
//! the cache's files are the real ones; jobs are not executed, but leave what a worker leaves.
//!
//! `cargo bench --bench scheduler -- [NODES] [JOBS]` (default 100000 2000), in four parts:
//! - `hold`: JOBS jobs run for long; what the scheduler's threads cost while nothing happens, of one core.
//! - `slurm`: jobs are submitted one by one for 12 ms each, as `sbatch` takes, and run for 5 to 15 s; what the threads cost.
//! - `flow`: all NODES, which do not need each other and end as soon as they begin; batches are submitted in calls of 12 ms. Nodes per second from the first to the last,
//!   and the memory at its peak.
//! - `storm`: a fifth of NODES, which need each other as those of `noop` do, where one job of twenty and one call of a hundred goes wrong.
//!
//! CPU seconds are those of all threads but the cluster's own.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sami::exec::{self, Away, Event, PlanOptions};
use sami::settings::{OnInterrupt, Profile};
use sami::store::{Index, Store};
use sami::{graph, pipeline};

#[path = "../tests/it/simulated.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod simulated;

use simulated::{Cluster, Fate, Manner, Trouble, options, profile};

/// How long is watched what costs little.
const WATCHED: Duration = Duration::from_secs(30);

/// As in `noop`: per 25 nodes a head, a chain of 5, a fan-out of 18 and a join; in so many lanes.
fn mixed(nodes: usize, lanes: usize) -> String {
    let mut text = "name = \"many\"\n".to_owned();
    let mut add = |name: &str, needs: &[String]| {
        let inputs: Vec<String> = needs.iter().map(|need| format!("{need} = \"{need}\"")).collect();
        let _ = writeln!(
            text,
            "[nodes.{name}]\nkind = \"command\"\nprogram = \"make\"\nargs = [\"{name}\"]\ninputs = {{ {} }}",
            inputs.join(", ")
        );
    };
    for group in 0..nodes.div_ceil(25) {
        let name = |part: String| format!("g{group}{part}");
        let above: Vec<String> = group.checked_sub(lanes).map(|before| format!("g{before}join")).into_iter().collect();
        add(&name("head".into()), &above);
        let mut last = name("head".into());
        for link in 0..5 {
            add(&name(format!("chain{link}")), &[last]);
            last = name(format!("chain{link}"));
        }
        let fan: Vec<String> = (0..18).map(|leaf| name(format!("leaf{leaf}"))).collect();
        fan.iter().for_each(|leaf| add(leaf, std::slice::from_ref(&last)));
        add(&name("join".into()), &fan);
    }
    text
}

/// Nodes that do not need each other.
fn flat(nodes: usize) -> String {
    let mut text = "name = \"many\"\n".to_owned();
    for node in 0..nodes {
        let _ = writeln!(text, "[nodes.n{node}]\nkind = \"command\"\nprogram = \"make\"\nargs = [\"n{node}\"]");
    }
    text
}

/// CPU seconds so far of all threads that there are but the simulated cluster's.
fn cpu() -> f64 {
    let mut ticks = 0.0;
    for task in fs_err::read_dir("/proc/self/task").expect("threads").flatten() {
        let stat = fs_err::read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        if !name.ends_with("(simulated") {
            let times = rest.split_whitespace().skip(11).take(2);
            ticks += times.filter_map(|time| time.parse::<f64>().ok()).sum::<f64>();
        }
    }
    ticks / 100.0
}

/// The most memory so far, in MB.
fn peak() -> f64 {
    let status = fs_err::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1000.0
}

struct Part<'a> {
    name: &'a str,
    pipeline: String,
    jobs: usize,
    manner: Manner,
    /// Whether it is ended when it was watched for a while.
    watched: bool,
}

#[expect(clippy::print_stdout, reason = "this is what a benchmark is for")]
fn measure(part: Part<'_>) {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("p.toml");
    fs_err::write(&path, &part.pipeline).expect("writes");
    let pipeline = pipeline::load(&path, &[], &sami::kinds::specs()).expect("it is sound");
    let graph = graph::build(&pipeline).expect("it has no cycle");
    let store = Store::open(&folder.path().join("cache")).expect("a store");
    let mut index = Index::open(&store).expect("an index");
    let mut plan = exec::plan(&pipeline, &graph, &store, &mut index, &PlanOptions::default()).expect("a plan");
    let cluster = Cluster::start(store.root(), part.manner);
    let profile = Profile {
        on_interrupt: OnInterrupt::Leave,
        ..profile(Duration::from_secs(5), Duration::from_secs(30), part.jobs)
    };
    let options = options(Away { profile, engine: Arc::new(cluster.clone()), program: "sami".into() });
    let (submitted, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = part.watched.then(|| {
        let (submitted, over, jobs, name) =
            (Arc::clone(&submitted), Arc::clone(&over), part.jobs, part.name.to_owned());
        std::thread::spawn(move || {
            while submitted.load(Ordering::Relaxed) < jobs && !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
            }
            std::thread::sleep(Duration::from_secs(2));
            let (before, began) = (cpu(), Instant::now());
            std::thread::sleep(WATCHED);
            let share = 100.0 * (cpu() - before) / began.elapsed().as_secs_f64();
            println!("{name}: {jobs} jobs at once: {share:.1}% of a core, {:.0} MB", peak());
            // As by Ctrl-C, twice: what is left is of no interest.
            for _ in 0..2 {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT)
                    .expect("a signal");
                std::thread::sleep(Duration::from_millis(300));
            }
        })
    });
    let (before, began) = (cpu(), Instant::now());
    let mut failed = 0;
    let summary = exec::run(&pipeline, &graph, &store, &mut index, &mut plan, &options, &mut |event| match event {
        Event::NodeJob { state, .. } if state == "submitted" => _ = submitted.fetch_add(1, Ordering::Relaxed),
        Event::NodeFail { .. } => failed += 1,
        _ => {}
    });
    let (seconds, used) = (began.elapsed().as_secs_f64(), cpu() - before);
    over.store(true, Ordering::Relaxed);
    let summary = summary.expect("it goes on");
    let ran = summary.count("ran");
    if let Some(watch) = watch {
        watch.join().expect("it watched");
    } else {
        let (doubled, most) = cluster.account(|account| (account.doubled.len() + account.reused.len(), account.most));
        println!(
            "{}: {ran} of {} nodes in {seconds:.1} s: {:.0} a second, {:.2} CPU ms each, {most} jobs at once at most; {failed} attempts failed, \
             {doubled} were doubled; {:.0} MB",
            part.name,
            summary.nodes.len(),
            ran as f64 / seconds,
            1e3 * used / ran.max(1) as f64,
            peak()
        );
    }
    cluster.end();
}

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let nodes = numbers.first().copied().unwrap_or(100_000);
    let jobs = numbers.get(1).copied().unwrap_or(2_000);
    let instant = Manner {
        submit: (Duration::from_millis(12), Duration::ZERO),
        poll: Duration::from_millis(30),
        queue: Duration::ZERO,
        work: (Duration::ZERO, Duration::ZERO),
        machines: jobs,
        trouble: Trouble::default(),
        seed: 1,
    };
    let long = (Duration::from_secs(3600), Duration::from_secs(3600));
    let one_by_one = (Duration::ZERO, Duration::from_millis(12));
    let fates = vec![Fate::Lost, Fate::Vanishes, Fate::Preempted, Fate::TimeLimit];
    let storm = Manner { trouble: Trouble { fates, jobs: 5, calls: 1 }, ..instant.clone() };
    let short = (Duration::from_secs(5), Duration::from_secs(15));
    let part = |name, pipeline, manner, watched| Part { name, pipeline, jobs, manner, watched };
    let parts = [
        part("hold", flat(jobs), Manner { work: long, ..instant.clone() }, true),
        part("slurm", flat(20 * jobs), Manner { work: short, submit: one_by_one, ..instant.clone() }, true),
        part("flow", flat(nodes), instant, false),
        part("storm", mixed(nodes / 5, jobs / 20), storm, false),
    ];
    let named = ["hold", "slurm", "flow", "storm"].iter().any(|name| wanted.iter().any(|word| word == name));
    for part in parts.into_iter().filter(|part| !named || wanted.iter().any(|word| word == part.name)) {
        measure(part);
    }
}
