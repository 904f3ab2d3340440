//! A binary with CUDA on a driver that does nothing (`tests/fake_cuda`): what it does without a GPU, and what it asks of one.
//!
//! Whatever is read from that driver is zero, so that results mean nothing here. What is asserted is that everything runs to
//! its end, where, and how much was asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use sami::env;
use serde_json::Value;

use super::sandbox::{Output, Sandbox};

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
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn new(pipeline: &str, libraries: &[&str]) -> Option<Self> {
        let Some(binary) = env::TEST_CUDA_BIN.get() else {
            eprintln!("skipped: {} names no binary with CUDA", env::TEST_CUDA_BIN.name);
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
                _ => "curand.c",
            };
            let compiled = Command::new("cc")
                .args(["-O1", "-w", "-shared", "-fPIC", "-o"])
                .arg(made.join(library))
                .arg(format!("-Wl,-soname,{library}"))
                .arg(root.join("tests/fake_cuda").join(source))
                .status();
            assert!(compiled.expect("there is a C compiler").success(), "{library}");
        }
        Some(Self { binary: root.join(binary), sandbox, libraries: made })
    }

    fn command(&self, args: &[&str], settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).current_dir(self.sandbox.path(""));
        for variable in env::ALL {
            command.env_remove(variable.name);
        }
        command.env(env::CUDA_LIBS.name, &self.libraries).env("FAKE_CUDA_OUT", self.sandbox.path("counts"));
        // What is read back is zero, which no check would pass.
        command.env(env::KERNELS.name, "unchecked").envs(settings.iter().copied());
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

const ALL: &[&str] = &["libcuda.so.1", "libcublas.so.13", "libcurand.so.10"];

/// A small model samples, scores and is trained.
const PIPELINE: &str = r#"
name = "tiny"
[params]
new_tokens = 6
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
temperature = 1.0
seed = 1
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
temperature = 1.0
seed = 3
[nodes.other]
kind = "generate"
model = "base"
queries = "questions"
constitutions = "constitutions"
prompt = "{{ constitution }} q : {{ query }} a : yes"
max_new_tokens = 4
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
    let output = rig.run(&["run", "p.toml", "--json"], &[]).exits(0);
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
    for kernel in ["attention_64", "attention_to_queries_64", "attention_to_keys_64", "decode_64_1", "pick"] {
        assert!(counts[&format!("kernel {kernel}")] > 0.0, "{kernel}: {counts:?}");
    }
    let refused: Vec<&String> = counts.keys().filter(|name| name.starts_with("refused")).collect();
    assert!(refused.is_empty() && !output.stderr.contains("WARN"), "{refused:?}\n{}", output.stderr);
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
    let absent = rig.run(&["run", "p.toml", "--device", "cuda:3"], &[]).exits(1);
    assert!(absent.stderr.contains("this machine has one GPU, `cuda:0`"), "{}", absent.stderr);
    let full = rig.run(&["run", "p.toml"], &[("FAKE_CUDA_MEMORY", "200000")]).exits(1);
    assert!(full.stderr.contains("memory"), "{}", full.stderr);
    assert!(!full.stderr.contains("panicked"), "{}", full.stderr);
}

/// What is asked for to sample ten more tokens: that is ten steps more.
fn ten_steps(rig: &Rig, settings: &[(&str, &str)]) -> Counts {
    let sampled = |tokens: &str| {
        let set = format!("new_tokens={tokens}");
        rig.run(&["run", "p.toml", "sampled", "--set", &set], settings).exits(0);
        rig.counts()
    };
    let (few, many) = (sampled("10"), sampled("20"));
    let of = |counts: &Counts, name: &str| counts.get(name).copied().unwrap_or(0.0);
    many.keys().map(|name| (name.clone(), of(&many, name) - of(&few, name))).collect()
}

const LAYERS: f64 = 2.0;

/// The launches of a decode step, one by one.
#[test]
fn a_decode_step_launches_few_kernels() {
    let Some(rig) = Rig::new(PIPELINE, ALL) else { return };
    rig.run(&["run", "p.toml", "base"], &[]).exits(0);
    rig.counts();
    let counts = ten_steps(&rig, &[(env::GRAPHS.name, "off")]);
    let of = |name: &str| counts.get(name).copied().unwrap_or(0.0) / 10.0;
    let a_step = of("call cuLaunchKernel") + of("call cublasGemmStridedBatchedEx");
    assert!(
        a_step > 8.0 * LAYERS && a_step < 16.0 * LAYERS + 20.0,
        "{a_step} launches for {LAYERS} layers: {counts:?}"
    );
    assert_eq!(of("kernel decode_64_1"), LAYERS, "{counts:?}");
    assert_eq!(of("kernel pick"), 1.0, "{counts:?}");
    // Tokens come back, no logits: four bytes for each of the eight rows.
    assert_eq!((of("call cuMemcpyDtoH"), of("bytes DtoH")), (1.0, 32.0), "{counts:?}");
    assert!(of("bytes HtoD") < 1000.0, "{counts:?}");
}

/// A decode step as one launch, recorded from its second on.
#[test]
fn a_decode_step_is_recorded_once_and_launched_as_a_whole() {
    let Some(rig) = Rig::new(PIPELINE, ALL) else { return };
    rig.run(&["run", "p.toml", "base"], &[]).exits(0);
    rig.counts();
    let counts = ten_steps(&rig, &[]);
    let of = |name: &str| counts.get(name).copied().unwrap_or(0.0) / 10.0;
    assert_eq!(of("call cuGraphLaunch"), 1.0, "{counts:?}");
    assert!(of("launches in graphs") > 5.0 * LAYERS, "{counts:?}");
    assert_eq!(of("call cuStreamBeginCapture"), 0.0, "none is recorded again: {counts:?}");
    assert!(of("call cuLaunchKernel") < 4.0, "tokens, lengths and numbers are brought up: {counts:?}");
    assert_eq!(of("call cublasGemmStridedBatchedEx"), 0.0, "{counts:?}");
}
