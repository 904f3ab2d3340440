//! GPUs shared out among nodes. The GPUs are made up: programs tell which they were given, and a worker of our own says that its
//! memory is full.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use sami::exec::budget::{Budget, Needs};
use sami::exec::{self, Event, ExecError, Gpu, PlanOptions, RunOptions, Summary};
use sami::store::{Index, Store};
use sami::{graph, kinds, pipeline};

use super::resume::PIPELINE;
use super::sandbox::Sandbox;

const GIB: u64 = 1 << 30;

fn gpus(gib: &[u64]) -> Vec<Gpu> {
    let gpu = |(at, gib): (usize, &u64)| Gpu { device: format!("cuda:{at}"), memory: Some(gib * GIB) };
    gib.iter().enumerate().map(gpu).collect()
}

/// Runs the pipeline of a sandbox on made-up GPUs; `needs` are bytes of their memory by name of node.
pub(crate) fn run(
    sandbox: &Sandbox,
    gpus: Vec<Gpu>,
    needs: &BTreeMap<String, u64>,
    program: Option<PathBuf>,
) -> Result<(Summary, Vec<Event>), ExecError> {
    let pipeline = pipeline::load(&sandbox.path("p.toml"), &[], &kinds::specs()).expect("a pipeline");
    let graph = graph::build(&pipeline).expect("a graph");
    let store = Store::open(&sandbox.path("cache")).expect("a store");
    let mut index = Index::open(&store).expect("an index");
    let wanted = PlanOptions { put_sources: true, ..PlanOptions::default() };
    let mut plan = exec::plan(&pipeline, &graph, &store, &mut index, &wanted).expect("a plan");
    let needs: HashMap<usize, Needs> = pipeline
        .nodes
        .iter()
        .enumerate()
        .filter_map(|(at, node)| Some((at, Needs::of_gpu_memory(*needs.get(&node.name)?))))
        .collect();
    let options = RunOptions {
        file: "p.toml".to_owned(),
        program: program.unwrap_or_else(|| env!("CARGO_BIN_EXE_sami").into()),
        jobs: Some(16),
        threads: 16,
        device: "auto".to_owned(),
        gpus,
        keep_going: false,
        keep_weights: true,
        elsewhere: None,
        budget: Budget::default(),
        away: None,
        invocation: None,
        needs,
    };
    let mut events = Vec::new();
    let mut tell = |event: &Event| events.push(event.clone());
    let summary = exec::run(&pipeline, &graph, &store, &mut index, &mut plan, &options, &mut tell)?;
    Ok((summary, events))
}

#[test]
fn programs_get_gpus_by_need_and_are_told_which() {
    let sandbox = Sandbox::new();
    let notes = sandbox.path("notes").display().to_string();
    let mut text = String::new();
    let mut needs = BTreeMap::new();
    for at in 0..9u64 {
        // Of the last three nothing is known.
        if at < 6 {
            needs.insert(format!("n{at}"), (8 + 8 * (at % 4)) * GIB);
        }
        let _ = writeln!(
            text,
            "[nodes.n{at}]\nkind = \"command\"\nprogram = \"sh\"\nrun = {{ device = \"cuda\" }}\nargs = [\"-c\", '''
             echo + n{at} $CUDA_VISIBLE_DEVICES >> {notes}; sleep 0.2
             echo - n{at} $CUDA_VISIBLE_DEVICES >> {notes}; echo n{at} $CUDA_VISIBLE_DEVICES > out''']"
        );
    }
    text.push_str("[nodes.none]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo none > out\"]\n");
    sandbox.write("p.toml", &text);
    let (summary, events) = run(&sandbox, gpus(&[40, 24]), &needs, None).expect("it runs");
    assert!(summary.ok());
    let mut given = BTreeMap::new();
    for event in &events {
        if let Event::NodeStart { node, device, .. } = event {
            given.insert(node.clone(), device.clone());
        }
    }
    // As the programs tell it: an attempt is over before that is recorded.
    let (mut on, mut most) = (BTreeMap::<String, Vec<String>>::new(), 0);
    for line in sandbox.read("notes").lines() {
        let [sign, node, number] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!(given[node], format!("cuda:{number}"), "{node}");
        let beside = on.entry(number.to_owned()).or_default();
        if sign == "-" {
            beside.retain(|other| other != node);
            continue;
        }
        beside.push(node.to_owned());
        most = most.max(beside.len());
        let memory = if number == "0" { 40 } else { 24 };
        let sum: Option<u64> = beside.iter().map(|node| needs.get(node)).sum();
        assert!(beside.len() == 1 || sum.is_some_and(|sum| sum < memory * GIB), "{number}: {beside:?}");
    }
    assert!(most > 1 && on.len() == 2, "both are used, and one of them is shared: {given:?}");
    let store = Store::open_existing(&sandbox.path("cache")).expect("a store");
    for node in summary.nodes.iter().filter(|node| node.name != "none") {
        let files = store.files(&node.artifact.expect("an artifact")).expect("files");
        let told = fs_err::read_to_string(&files["out"]).expect("a file");
        assert_eq!(told, format!("{} {}\n", node.name, &given[&node.name]["cuda:".len()..]));
    }
}

#[test]
fn a_gpu_that_is_not_there_is_refused_before_anything_starts() {
    let sandbox = Sandbox::with(
        "[nodes.a]\nkind = \"command\"\nprogram = \"true\"\n[nodes.b]\nkind = \"command\"\nprogram = \"true\"\n\
         run = { device = \"cuda:7\" }\n",
    );
    let error = run(&sandbox, gpus(&[24, 24]), &BTreeMap::new(), None).expect_err("there is none");
    let finding = error.diagnostics().remove(0);
    assert_eq!((finding.id, finding.title.as_str()), ("exec::no-gpu", "there is no GPU `cuda:7` on this machine"));
    assert!(finding.help[0].contains("cuda:0, cuda:1"));
}

#[test]
fn a_node_whose_memory_is_full_needs_less_and_then_gets_more() {
    let text = PIPELINE.split("[nodes.constitutions]").next().expect("a beginning").replace("steps = 30", "steps = 2");
    let one = Sandbox::with(&text).run(&[], 0);
    let sandbox = Sandbox::with(&(text.trim_end().to_owned() + "\nrun = { device = \"cuda\" }\n"));
    let sami = env!("CARGO_BIN_EXE_sami");
    // Nothing fits the first GPU; the second is, in truth, the CPU.
    let script = format!(
        "#!/bin/sh\n[ $# = 2 ] || exec {sami} \"$@\"\ngrep -o '\"micro_batch\": [a-z0-9]*\\|cuda:.' $2 | tr '\\n' ' ' >> tries\n\
         echo >> tries\nif grep -q cuda:0 $2; then\nprintf '{{\"full\":{{\"row\":false}}}}\\n' >&0\n\
         printf '{{\"result\":{{\"state\":\"failed\",\"what\":\"full\",\"help\":null}}}}\\n' >&0\nexit 1\nfi\n\
         sed s/cuda:1/cpu/ $2 > $2.cpu\nexec {sami} worker $2.cpu\n"
    )
    .replace("tries", &sandbox.path("tries").display().to_string());
    sandbox.write("worker.sh", &script);
    let program = sandbox.path("worker.sh");
    fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("it may be run");
    let needs = BTreeMap::from([("base".to_owned(), 10 * GIB)]);
    let (summary, events) = run(&sandbox, gpus(&[24, 80]), &needs, Some(program.clone())).expect("it runs");
    let told: Vec<&str> = events
        .iter()
        .filter_map(|event| match event {
            Event::NodeFail { node, retry: true, error, .. } if node == "base" => Some(error.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(
        told,
        [
            "full; with `micro_batch = 8` next",
            "full; with `micro_batch = 2` next",
            "full; with `micro_batch = 1` next",
            "full; on a GPU with more memory next",
        ]
    );
    assert!(summary.ok(), "{}", sandbox.read("tries"));
    assert!(sandbox.read("tries").contains("cuda:1 \"micro_batch\": 1"), "{}", sandbox.read("tries"));
    assert_eq!(one.nodes.len(), summary.nodes.len());

    // Without a larger one it fails in the end, and says what was tried last.
    let alone = Sandbox::with(&sandbox.read("p.toml"));
    let (summary, events) = run(&alone, gpus(&[24]), &needs, Some(program)).expect("it runs");
    assert_eq!(summary.count("failed"), 1);
    let tries = events.iter().filter(|event| matches!(event, Event::NodeFail { retry: true, .. })).count();
    assert_eq!(tries, 3);
}
