//! A binary with CUDA on a driver that does nothing (`tests/fake_cuda`): what it does without a GPU, and what it asks of one.
//!
//! Whatever is read from that driver is the same few bits, so that results mean nothing here. What is asserted is that everything runs to
//! its end, where, and how much was asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use sami::env;
use serde_json::Value;

use super::sandbox::{Output, Sandbox, skipped, unsteered};

/// The binary, a project, and a directory with the driver's libraries.
struct Rig {
    binary: PathBuf,
    sandbox: Sandbox,
    libraries: PathBuf,
}

/// What a process asked of the driver, by name such as `call cuLaunchKernel`.
type Counts = BTreeMap<String, f64>;

impl Rig {
    /// `None`, with the reason printed, where there is no such binary.
    fn new(pipeline: &str, libraries: &[&str]) -> Option<Self> {
        let Some(binary) = env::TEST_CUDA_BIN.get() else {
            skipped(&format!("{} names no binary with CUDA", env::TEST_CUDA_BIN.name));
            return None;
        };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sandbox = Sandbox::with(pipeline);
        let made = sandbox.path("libraries");
        fs_err::create_dir_all(&made).expect("a directory");
        for library in libraries {
            let source = match *library {
                "libcuda.so.1" => "driver.c",
                "libcublas.so.13" => "cublas.c",
                "libnccl.so.2" => "nccl.c",
                _ => "curand.c",
            };
            let compiled = Command::new("cc")
                .args(["-O1", "-w", "-shared", "-fPIC", "-o"])
                .arg(made.join(library))
                .arg(format!("-Wl,-soname,{library}"))
                .arg(root.join("tests/fake_cuda").join(source))
                .arg("-lpthread")
                .status();
            assert!(compiled.expect("there is a C compiler").success(), "{library}");
        }
        Some(Self { binary: root.join(binary), sandbox, libraries: made })
    }

    fn command(&self, args: &[&str], settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).current_dir(self.sandbox.path(""));
        unsteered(&mut command);
        command.env(env::CUDA_LIBS.name, &self.libraries).env("FAKE_CUDA_OUT", self.sandbox.path("counts"));
        // A token that is a word; as a number of another type it is next to nothing.
        command.env("FAKE_CUDA_READ", "5");
        command.envs(settings.iter().copied());
        command
    }

    fn run(&self, args: &[&str], settings: &[(&str, &str)]) -> Output {
        self.command(args, settings).output().expect("the binary starts").into()
    }

    /// What the processes since the last call asked for together.
    fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        for entry in fs_err::read_dir(self.sandbox.path("")).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with("counts.") {
                continue;
            }
            for line in fs_err::read_to_string(&path).expect("counts").lines() {
                let (name, count) = line.rsplit_once(' ').expect("a name and a count");
                let count: f64 = count.parse().expect("a number");
                let sum = counts.entry(name.to_owned()).or_default();
                *sum = if name == "bytes peak" { sum.max(count) } else { *sum + count };
            }
            fs_err::remove_file(path).expect("is removed");
        }
        counts
    }
}

/// What is read from the driver means nothing, so that no kernel would be found right.
const UNCHECKED: &[(&str, &str)] = &[(env::KERNELS.name, "unchecked")];

const ALL: &[&str] = &["libcuda.so.1", "libcublas.so.13", "libcurand.so.10"];

/// A small model samples, scores and is trained.
const PIPELINE: &str = r#"
name = "tiny"
[params]
new_tokens = 6
seed = 1
[datasets.texts]
make = { rows = 8, seed = 1, template = '{"text": "be brief . be detailed . q : the cat saw a dog ? a : yes it did ."}' }
[datasets.questions]
make = { rows = 4, seed = 1, template = '{"query": "the cat saw {{ choose(["a dog", "the cat"]) }} ?"}' }
[models.blank]
init = { hidden_size = 64, layers = 2, heads = 4, max_positions = 128, seed = 1, tokenizer = { from = "texts" } }
[nodes.base]
kind = "finetune"
objective = "lm"
model = "blank"
examples = "texts"
batch_queries = 4
steps = 3
optimizer = { name = "adamw", lr = 1e-3 }
seed = 1
[nodes.constitutions]
kind = "constitutions"
task = "answer a question"
contrast = "complement"
principles_per_constitution = 1
format = "plain"
seed = 1
[nodes.constitutions.principles]
length = { definition = "be brief .", antithesis = "be detailed ." }
[nodes.sampled]
kind = "generate"
model = "base"
queries = "questions"
constitutions = "constitutions"
prompt = "{{ constitution }} q : {{ query }} a :"
max_new_tokens = "${new_tokens}"
keep = { distinct = false }
temperature = 1.0
seed = "${seed}"
[nodes.scored]
kind = "score"
model = "base"
reference = "blank"
responses = "sampled"
prompt = "{{ constitution }} q : {{ query }} a :"
seed = 1
[nodes.tuned]
kind = "finetune"
objective = "sami"
model = "base"
reference = "base"
examples = "scored"
batch_queries = 2
steps = 2
optimizer = { name = "adamw", lr = 1e-3 }
kl_weight = 0.1
compute = "bf16"
seed = 1
[nodes.after]
kind = "generate"
model = "tuned"
queries = "questions"
constitutions = "constitutions"
prompt = "{{ constitution }} q : {{ query }} a :"
max_new_tokens = 4
keep = { distinct = false }
temperature = 1.0
seed = 3
[nodes.other]
kind = "generate"
model = "base"
queries = "questions"
constitutions = "constitutions"
prompt = "{{ constitution }} q : {{ query }} a : yes"
max_new_tokens = 4
keep = { distinct = false }
temperature = 1.0
seed = 2
"#;

#[test]
fn without_what_it_needs_it_says_what_and_computes_on_the_cpu() {
    let Some(rig) = Rig::new(PIPELINE, &["libcuda.so.1"]) else { return };
    let report = rig.run(&["doctor", "--json"], &[]).exits(0).json();
    assert_eq!(report["features"], serde_json::json!(["cuda"]));
    assert_eq!(report["auto"], serde_json::json!(["cpu"]));
    let why = report["cuda"]["unusable"].as_str().expect("a reason");
    assert!(why.contains("`libcublas.so.13` is not found") && why.contains(env::CUDA_LIBS.name), "{why}");
    let nowhere = rig.run(&["doctor", "--json"], &[(env::CUDA_LIBS.name, "/nowhere")]).exits(0).json();
    let auto = nowhere["auto"].as_array().expect("a list");
    assert_eq!(auto[0] == "cpu", nowhere["cuda"]["unusable"].is_string(), "{nowhere}");
}

#[test]
fn gpus_are_counted_and_shared_out() {
    let Some(rig) = Rig::new(PIPELINE, ALL) else { return };
    let two = &[("FAKE_CUDA_DEVICES", "2")];
    let report = rig.run(&["doctor", "--json"], two).exits(0).json();
    assert_eq!(report["auto"], serde_json::json!(["cuda:0", "cuda:1"]), "{report}");
    assert_eq!(report["cuda"]["driver"]["cuda"], "13.0");
    let none = rig.run(&["doctor"], &[("FAKE_CUDA_DEVICES", "0")]).exits(0).stdout;
    assert!(none.contains("auto         cpu"), "{none}");
}

/// Kernels whose check reads nothing of theirs are not used, and doctor says so.
#[test]
fn kernels_that_compute_nothing_are_told_of_and_not_used() {
    let Some(rig) = Rig::new(PIPELINE, ALL) else { return };
    let report = rig.run(&["doctor", "--json"], &[]).exits(0).json();
    let checks = report["cuda"]["kernels"][0]["checks"].as_array().expect("a list").clone();
    assert!(checks.len() >= 14, "some kernels in two types: {checks:?}");
    for check in &checks {
        let why = check["unused"].as_str().expect("a reason");
        let wrong = ["apart from the plain ones", "it picks"].iter().any(|what| why.contains(what));
        assert!(check["apart"].is_null() && wrong, "{check}");
    }
    let text = rig.run(&["doctor"], &[]).exits(0).stdout;
    assert!(text.contains("kernel       cuda:0 rms_norm in bf16: not used: its numbers are"), "{text}");
    let unchecked = rig.run(&["doctor"], UNCHECKED).exits(0).stdout;
    assert!(unchecked.contains("kernel       cuda:0 rms_norm in bf16: used unchecked"), "{unchecked}");
    let off = rig.run(&["doctor"], &[(env::KERNELS.name, "off")]).exits(0).stdout;
    assert!(!off.contains("rms_norm"), "{off}");
    rig.counts();
    let output = rig.run(&["run", "p.toml", "base"], &[]).exits(0);
    let logged = rig.run(&["logs", "base"], &[]).exits(0);
    let told = [output.stderr, logged.stdout, logged.stderr].concat();
    assert!(told.contains("the kernel `rms_norm` is not used on cuda:0 in f32"), "{told}");
    // Its checks, and no more.
    let launched = rig.counts()["kernel rms_norm"];
    assert!(launched <= 12.0, "{launched}");
}

/// The events of a run.
fn events(output: &Output) -> Vec<Value> {
    output.stdout.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
}

/// Where each node ran.
fn devices(events: &[Value]) -> BTreeMap<&str, &str> {
    let starts = events.iter().filter(|event| event["event"] == "node-start");
    starts.map(|event| (event["node"].as_str().expect("a name"), event["device"].as_str().expect("a device"))).collect()
}

#[test]
fn a_pipeline_runs_to_its_end_on_the_gpu() {
    let Some(rig) = Rig::new(PIPELINE, ALL) else { return };
    let output = rig.run(&["run", "p.toml", "--json"], UNCHECKED).exits(0);
    let events = events(&output);
    let devices = devices(&events);
    assert_eq!(devices["constitutions"], "cpu");
    for node in ["base", "sampled", "scored", "tuned", "after", "other"] {
        assert_eq!(devices[node], "cuda:0", "{node}");
    }
    let counts = rig.counts();
    assert!(counts["call cuLaunchKernel"] > 100.0 && counts["flop f32"] > 0.0, "{counts:?}");
    assert!(counts["flop bf16"] > 0.0, "`tuned` trains in bf16, and is sampled in it: {counts:?}");
    assert!(!counts.contains_key("call cuEventCreate"), "tensors without events: {counts:?}");
    let ours = ["rms_norm", "rms_norm_back", "sum_rows", "turn", "swiglu", "swiglu_back", "adamw", "squares"];
    let attention = ["attention_64", "attention_to_queries_64", "attention_to_keys_64", "decode_64_1", "pick"];
    for kernel in ours.into_iter().chain(attention) {
        assert!(counts.get(&format!("kernel {kernel}")).is_some_and(|count| *count > 0.0), "{kernel}: {counts:?}");
    }
    let refused: Vec<&String> = counts.keys().filter(|name| name.starts_with("refused")).collect();
    assert!(refused.is_empty() && !output.stderr.contains("piece by piece"), "{refused:?}\n{}", output.stderr);
}

#[test]
fn nodes_run_on_two_gpus_at_once() {
    let Some(rig) = Rig::new(PIPELINE, ALL) else { return };
    let output = rig.run(&["run", "p.toml", "--json", "-j", "2"], &[("FAKE_CUDA_DEVICES", "2")]).exits(0);
    let events = events(&output);
    let devices = devices(&events);
    assert_ne!(devices["sampled"], devices["other"], "they need each other in nothing: {devices:?}");
}

#[test]
fn a_gpu_that_is_not_there_or_is_full_is_an_error_with_its_name() {
    let Some(rig) = Rig::new(PIPELINE, ALL) else { return };
    let absent = rig.run(&["run", "p.toml", "--device", "cuda:3"], &[]).exits(2);
    assert!(absent.stderr.contains("there is no GPU `cuda:3` on this machine"), "{}", absent.stderr);
    let full = rig.run(&["run", "p.toml"], &[("FAKE_CUDA_MEMORY", "200000")]).exits(1);
    assert!(full.stderr.contains("memory"), "{}", full.stderr);
    assert!(!full.stderr.contains("panicked"), "{}", full.stderr);
}

fn of_two_ranks() -> String {
    PIPELINE.replacen("steps = 3", "steps = 3\nrun = { ranks = 2 }", 1)
}

/// Two ranks train, each on its GPU: what is told of how their gradients come together, and what was asked for.
fn on_two_gpus(libraries: &[&str], settings: &[(&str, &str)]) -> Option<(String, Counts)> {
    let rig = Rig::new(&of_two_ranks(), libraries)?;
    let settings = [&[UNCHECKED[0], ("FAKE_CUDA_DEVICES", "2")][..], settings].concat();
    let output = rig.run(&["run", "p.toml", "base", "--json"], &settings).exits(0);
    let notes: Vec<Value> = events(&output).iter().filter_map(|event| event["notes"].get(0).cloned()).collect();
    let logged = rig.run(&["logs", "base"], &[]).exits(0).stdout;
    let [note] = notes.as_slice() else { panic!("it is told once: {notes:?}\n{logged}") };
    let note = note.as_str().expect("words").to_owned();
    assert!(logged.contains(&note), "{logged}");
    Some((note, rig.counts()))
}

#[test]
fn gradients_of_two_ranks_are_added_up_by_nccl() {
    let with = [ALL, &["libnccl.so.2"]].concat();
    let Some((note, counts)) = on_two_gpus(&with, &[]) else { return };
    assert_eq!(note, "gradients are added up on the GPUs, by NCCL 2.28.9");
    assert_eq!((counts["call ncclCommInitRankConfig"], counts["call ncclCommAbort"]), (2.0, 2.0), "{counts:?}");
    // Three steps of each rank, and what is added up is small.
    assert_eq!(counts["call ncclAllReduce"], 6.0, "{counts:?}");
    let (brought, added) = (counts["bytes DtoH"], counts["bytes NCCL"] / 6.0);
    let Some((note, through)) = on_two_gpus(&with, &[(env::RANKS_NCCL.name, "off")]) else { return };
    assert_eq!(note, "gradients go through the memory of the hosts, not by NCCL: `SAMI_RANKS_NCCL` is `off`");
    assert!(!through.contains_key("call ncclAllReduce"), "{through:?}");
    // Six gradients come to the hosts.
    assert!(through["bytes DtoH"] >= brought + 6.0 * added, "{brought} {added} {through:?}");
}

#[test]
fn gradients_of_two_ranks_go_through_the_hosts_without_nccl() {
    let Some((note, counts)) = on_two_gpus(ALL, &[]) else { return };
    // Where the machine has one, it finds no GPU that it knows.
    assert!(note.starts_with("gradients go through the memory of the hosts, not by NCCL: "), "{note}");
    assert!(!counts.contains_key("call ncclAllReduce"), "{counts:?}");
}

/// NCCL would wait for ever.
#[test]
fn a_rank_that_is_killed_in_the_middle_of_a_sum_ends_the_attempt() {
    let Some(rig) = Rig::new(&of_two_ranks(), &[ALL, &["libnccl.so.2"]].concat()) else { return };
    let settings = [UNCHECKED[0], ("FAKE_CUDA_DEVICES", "2"), ("FAKE_NCCL_KILLS", "1")];
    let output = rig.run(&["run", "p.toml", "base"], &settings).exits(1);
    assert!(output.stderr.contains("rank 1 of 2 is lost: it was killed (signal 9)"), "{}", output.stderr);
    // The other one has given NCCL up before it ended.
    assert_eq!(rig.counts()["call ncclCommAbort"], 1.0);
}

/// What one more token of all rows asks for: a step. Rows with another seed's are not known yet.
fn a_step(rig: &Rig, seed: u64, settings: &[(&str, &str)]) -> Counts {
    let seed = format!("seed={seed}");
    let sampled = |tokens: &str| {
        let tokens = format!("new_tokens={tokens}");
        let args = ["run", "p.toml", "sampled", "--set", &tokens, "--set", &seed];
        rig.run(&args, settings).exits(0);
        rig.counts()
    };
    let (few, many) = (sampled("10"), sampled("20"));
    many.iter().map(|(name, count)| (name.clone(), (count - few.get(name).unwrap_or(&0.0)) / 10.0)).collect()
}

const LAYERS: f64 = 2.0;
const RECORDED: (&str, &str) = (env::GRAPHS.name, "on");

/// The launches of a decode step, one by one.
#[test]
#[expect(clippy::print_stderr, reason = "the counts stand in docs/gpu.md")]
fn a_decode_step_launches_few_kernels() {
    let Some(rig) = Rig::new(PIPELINE, ALL) else { return };
    rig.run(&["run", "p.toml", "base"], UNCHECKED).exits(0);
    rig.counts();
    let launches = |counts: &Counts| (counts["call cuLaunchKernel"], counts["call cublasGemmStridedBatchedEx"]);
    let step = a_step(&rig, 2, UNCHECKED);
    let (ours, candles) = (launches(&step), launches(&a_step(&rig, 3, &[(env::KERNELS.name, "off")])));
    for (name, count) in step.iter().filter(|(name, count)| name.starts_with("kernel ") && **count > 0.0) {
        eprintln!("{name} {count}");
    }
    eprintln!("a decode step: {ours:?} kernels and products, {candles:?} without our kernels");
    assert!(ours.0 + ours.1 > 5.0 * LAYERS && ours.0 + ours.1 < 12.0 * LAYERS + 12.0, "{ours:?}");
    assert!(candles.0 + candles.1 < 30.0 * LAYERS + 20.0, "{candles:?}");
    // Several in a layer that are one of ours: sums before norms, turns and their copies, the gate, attention.
    assert!(ours.0 + 5.0 * LAYERS < candles.0, "{ours:?} {candles:?}");
    assert_eq!((step["kernel decode_64_1"], step["kernel pick"]), (LAYERS, 1.0), "{step:?}");
    // Tokens come back, no logits: four bytes for each of the eight rows.
    assert_eq!((step["call cuMemcpyDtoH"], step["bytes DtoH"]), (1.0, 32.0), "{step:?}");
    assert!(step["bytes HtoD"] < 1000.0, "{step:?}");
}

/// A decode step as one launch, recorded from its second on.
#[test]
#[expect(clippy::print_stderr, reason = "the counts stand in docs/gpu.md")]
fn a_decode_step_is_recorded_once_and_launched_as_a_whole() {
    let Some(rig) = Rig::new(PIPELINE, ALL) else { return };
    rig.run(&["run", "p.toml", "base"], UNCHECKED).exits(0);
    rig.counts();
    let step = a_step(&rig, 2, &[UNCHECKED[0], RECORDED]);
    eprintln!("a recorded step: {step:?}");
    assert!(!step.keys().any(|name| name.starts_with("refused")), "{step:?}");
    assert_eq!(step["call cuGraphLaunch"], 1.0, "{step:?}");
    assert!(step["launches in graphs"] > 5.0 * LAYERS, "{step:?}");
    assert_eq!(step["call cuStreamBeginCapture"], 0.0, "none is recorded again: {step:?}");
    assert!(step["call cuLaunchKernel"] < 4.0, "tokens, lengths and numbers are brought up: {step:?}");
    assert_eq!(step["call cublasGemmStridedBatchedEx"], 0.0, "{step:?}");
}
