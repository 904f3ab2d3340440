//! Runs that are told to TensorBoard and MLflow, and to servers that are away, slow or say no; the real programs read what was told.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sami::env;
use serde_json::Value;

use super::sandbox::{Output, Sandbox, free_port, skipped, wait_until};
use super::tracker_server::{Manner, Server};

/// A training of a few thousand numbers; what waits for it starts when it is done.
const PIPELINE: &str = r#"
[params]
rate = 0.03
steps = 12
wait = 0
[datasets.documents]
make = { rows = 16, seed = 1, template = '{"text": "{{ choose(["yes it is .", "no it is not ."]) }}"}' }
[models.blank]
init = { hidden_size = 8, layers = 1, heads = 1, max_positions = 32, tokenizer = { from = "documents" } }
[nodes.base]
kind = "finetune"
objective = "lm"
model = "blank"
examples = "documents"
steps = "${steps}"
batch_queries = 4
checkpoint_every = 5
optimizer = { lr = "${rate}" }
[nodes.after]
kind = "command"
program = "sh"
args = ["-c", "sleep ${wait}; cp {input.model}/train.jsonl {output}/"]
inputs = { model = "base" }
"#;

fn sandbox(settings: &str) -> Sandbox {
    let sandbox = Sandbox::with(PIPELINE);
    sandbox.write("sami.toml", settings);
    sandbox
}

/// `sami run p.toml base …` to its end, which must be a good one, and how long it took.
#[track_caller]
fn train(sandbox: &Sandbox, args: &[&str], variables: &[(&str, &str)]) -> (Output, Duration) {
    let began = Instant::now();
    let mut command = sandbox.command(&["run", "p.toml", "base"]);
    command.args(args).envs(variables.iter().copied());
    let output: Output = command.output().expect("it starts").into();
    (output.exits(0), began.elapsed())
}

fn mlflow(server: &Server) -> String {
    format!("[mlflow]\nurl = \"{}\"\ntimeout = 2\n", server.address)
}

fn all(steps: u64) -> Vec<u64> {
    (1..=steps).collect()
}

#[test]
fn a_server_is_told_of_training_while_the_run_goes_on() {
    let server = Server::start(Manner::Well);
    let sandbox = sandbox(&mlflow(&server));
    sandbox.sami(&["run", "p.toml", "--set", "wait=3"]).exits(0);
    let state = server.state();
    assert_eq!((state.experiments.clone(), state.runs.len()), (vec!["p".to_owned()], 1));
    let run = &state.runs[0];
    assert_eq!(run.status, "FINISHED");
    assert!(run.params.contains(&("rate".to_owned(), "0.03".to_owned())), "{:?}", run.params);
    assert_eq!(run.steps("train/base/loss"), all(12), "every step, though words are seldom");
    assert_eq!(run.steps("train/base/gradient_norm"), all(12));
    assert_eq!(run.steps("base/loss"), [0]);
    let ahead = run.ended.expect("an end").duration_since(run.first.expect("steps"));
    assert!(ahead >= Duration::from_secs(1), "steps came {ahead:?} before the end");
    drop(state);
    // All is fresh: there is nothing to tell.
    sandbox.sami(&["run", "p.toml", "--set", "wait=3"]).exits(0);
    assert_eq!(server.state().runs.len(), 1);
}

#[test]
fn a_run_that_was_killed_goes_on_as_the_same_one() {
    let server = Server::start(Manner::Well);
    let sandbox = sandbox(&format!("tensorboard = true\n{}", mlflow(&server)));
    // The worker is killed at step 10, then the run itself while its last node waits.
    let args = ["run", "p.toml", "--set", "wait=5"];
    let failed: Output =
        sandbox.command(&args).env("SAMI_FAULT", "kill:checkpoint:2").output().expect("it runs").into();
    failed.exits(1);
    assert_eq!(server.state().runs[0].status, "FAILED");
    let mut child = sandbox.command(&args).stderr(Stdio::null()).spawn().expect("it starts");
    wait_until("a result comes", Duration::from_secs(100), || !server.state().runs[0].steps("base/loss").is_empty());
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    assert_eq!(server.state().runs[0].status, "RUNNING");
    sandbox.sami(&args).exits(0);
    let state = server.state();
    assert_eq!((state.runs.len(), state.runs[0].status.as_str()), (1, "FINISHED"));
    assert_eq!(state.runs[0].steps("train/base/loss"), all(12), "no step twice");
    assert_eq!(state.runs[0].steps("base/loss"), [0], "nor a metric");
    drop(state);
    let folders = || fs_err::read_dir(sandbox.path("cache/tensorboard")).expect("event files").count();
    assert_eq!(folders(), 1);
    // What comes after is another one.
    train(&sandbox, &["--set", "steps=3"], &[]);
    assert_eq!((server.state().runs.len(), folders()), (2, 2));
    sandbox.verify();
}

#[test]
fn a_server_that_is_away_costs_a_warning() {
    let sandbox = sandbox(&format!("mlflow = \"http://127.0.0.1:{}\"\n", free_port()));
    let (output, _) = train(&sandbox, &[], &[]);
    assert!(output.stderr.contains("warning[trackers::mlflow-away]"), "{}", output.stderr);
    assert!(output.stderr.contains("warning[trackers::mlflow-incomplete]"), "{}", output.stderr);
    assert_eq!(output.stderr.matches("trackers::").count(), 2, "once each: {}", output.stderr);
}

#[test]
fn a_server_that_comes_back_gets_all() {
    let server = Server::start(Manner::Status(503, 2));
    let sandbox = sandbox(&mlflow(&server));
    let (output, _) = train(&sandbox, &[], &[]);
    let state = server.state();
    assert_eq!((state.runs.len(), state.runs[0].status.as_str()), (1, "FINISHED"), "{}", output.stderr);
    assert_eq!(state.runs[0].steps("train/base/loss"), all(12));
    assert!(output.stderr.contains("trackers::mlflow-away"), "{}", output.stderr);
    assert!(!output.stderr.contains("trackers::mlflow-incomplete"), "{}", output.stderr);
}

#[test]
fn a_slow_server_does_not_slow_the_run() {
    let plain = sandbox("");
    let (_, alone) = train(&plain, &[], &[]);
    let server = Server::start(Manner::Slow(60_000));
    let sandbox = sandbox(&mlflow(&server));
    let (output, beside) = train(&sandbox, &[], &[]);
    // The machine may be busy; a request takes a minute.
    assert!(beside < alone * 3 + Duration::from_secs(12), "{beside:?}, and {alone:?} without");
    assert!(output.stderr.contains("trackers::mlflow-"), "{}", output.stderr);
}

#[test]
fn what_is_no_mlflow_server_is_said_to_be_none() {
    for (manner, said) in [
        (Manner::Page, "no MLflow server"),
        (Manner::Status(404, 99), "(404)"),
        (Manner::Status(307, 99), "it leads to"),
    ] {
        let server = Server::start(manner);
        let sandbox = sandbox(&mlflow(&server));
        let (output, _) = train(&sandbox, &["--set", "steps=1"], &[]);
        assert!(output.stderr.contains("warning[trackers::mlflow-refused]"), "{manner:?}: {}", output.stderr);
        assert!(output.stderr.contains(said), "{manner:?}: {}", output.stderr);
        assert_eq!(server.state().requests, 1, "it is left alone");
    }
}

#[test]
fn credentials_come_from_the_environment_and_are_never_shown() {
    let server = Server::start(Manner::Status(401, 99));
    let sandbox = sandbox(&mlflow(&server));
    let args = ["--set", "steps=1"];
    let (output, _) = train(&sandbox, &args, &[("MLFLOW_TRACKING_TOKEN", "hunter2hunter2")]);
    assert!(output.stderr.contains("set `MLFLOW_TRACKING_TOKEN`"), "{}", output.stderr);
    assert_eq!(server.state().credentials, ["Bearer hunter2hunter2"]);
    let user = [("MLFLOW_TRACKING_USERNAME", "me"), ("MLFLOW_TRACKING_PASSWORD", "hunter2hunter2")];
    let (again, _) = train(&sandbox, &["--set", "steps=2"], &user);
    assert_eq!(server.state().credentials.last().map(String::as_str), Some("Basic bWU6aHVudGVyMmh1bnRlcjI="));
    for text in [&output.stdout, &output.stderr, &again.stdout, &again.stderr] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    for file in sandbox.files("cache") {
        let bytes = fs_err::read(&file).expect("a file");
        let has = |secret: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
        assert!(!has(b"hunter2") && !has(b"bWU6aHVu"), "{}", file.display());
    }
}

#[test]
fn a_wrong_address_is_an_error_before_anything_is_done() {
    for settings in ["mlflow = \"localhost:5000\"\n", "mlflow = \"https://me:hunter2@h\"\n", "tensorboard = 3\n"] {
        let sandbox = sandbox(settings);
        let output = sandbox.sami(&["run", "p.toml"]).exits(2);
        assert!(output.stderr.contains("error[settings::"), "{}", output.stderr);
        assert!(output.stderr.contains("sami.toml:1:"), "{}", output.stderr);
        assert!(!output.stderr.contains("hunter2") && !sandbox.path("cache").exists(), "{}", output.stderr);
    }
}

#[test]
fn event_files_that_cannot_be_written_cost_a_warning() {
    let sandbox = sandbox("tensorboard = \"file/below\"\n");
    sandbox.write("file", "");
    let (output, _) = train(&sandbox, &["--set", "steps=1"], &[]);
    assert!(output.stderr.contains("warning[trackers::tensorboard-unwritten]"), "{}", output.stderr);
    assert_eq!(output.stderr.matches("trackers::").count(), 1, "{}", output.stderr);
}

#[test]
fn two_runs_at_once_are_two_for_a_tracker() {
    let server = Server::start(Manner::Well);
    let sandbox = sandbox(&format!("tensorboard = true\n{}", mlflow(&server)));
    // One waits for the key of the other, and then takes what that made.
    let args = ["run", "p.toml", "base", "--set", "steps=60"];
    let other = ["run", "p.toml", "base", "--set", "steps=40"];
    let start = |args: &[&str]| sandbox.command(args).stderr(Stdio::null()).spawn().expect("it starts");
    for child in [start(&args), start(&args), start(&other)] {
        assert!({ child }.wait().expect("it ends").success());
    }
    let state = server.state();
    let mut names: Vec<&str> = state.runs.iter().map(|run| run.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), state.runs.len(), "each has its own name");
    let whole = |steps| state.runs.iter().filter(|run| run.steps("train/base/loss") == all(steps)).count();
    assert_eq!((whole(60), whole(40)), (1, 1));
    drop(state);
    sandbox.verify();
}

#[test]
fn a_run_that_is_over_can_be_told_of_and_is_told_once() {
    let server = Server::start(Manner::Well);
    let sandbox = sandbox("");
    train(&sandbox, &[], &[]);
    assert!(sandbox.sami(&["track"]).exits(2).stderr.contains("cli::no-tracker"));
    sandbox.write("sami.toml", &format!("tensorboard = true\n{}", mlflow(&server)));
    let tell = |args: &[&str]| {
        let said = sandbox.sami(&[&["track"], args].concat()).exits(0);
        assert_eq!(said.stdout.matches("tracked: ").count(), 2, "{said:?}");
        let files: Vec<_> = sandbox.files("cache/tensorboard");
        (files.iter().map(|file| (file.clone(), fs_err::read(file).expect("a file"))).collect::<Vec<_>>(), said)
    };
    let (files, _) = tell(&[]);
    assert_eq!(files.len(), 2, "the run's and that of its training");
    {
        let state = server.state();
        let run = &state.runs[0];
        assert_eq!((state.runs.len(), run.status.as_str()), (1, "FINISHED"));
        assert_eq!((run.steps("train/base/loss"), run.steps("base/loss")), (all(12), vec![0]));
        assert!(run.params.contains(&("rate".to_owned(), "0.03".to_owned())), "{:?}", run.params);
    }
    let before = server.state().runs[0].metrics.clone();
    let id = server.state().runs[0].name.clone();
    let (again, _) = tell(&[&id[..id.len() - 1]]);
    assert_eq!(again, files, "what is there stays");
    let metrics = |run: usize| server.state().runs[run].metrics.clone();
    let runs = || server.state().runs.len();
    assert_eq!((runs(), metrics(0)), (1, before), "nothing twice");
    // One that was told of as it went is known, too; where another run went on with it, that one's end stays.
    train(&sandbox, &["--set", "steps=3"], &[]);
    assert_eq!(runs(), 2);
    let told = metrics(1);
    tell(&[]);
    assert_eq!((runs(), metrics(1)), (2, told));
    let tag = ("sami.runs".to_owned(), format!("{id} a-later-one"));
    {
        let mut state = server.state();
        state.runs[0].tags = vec![tag];
        state.runs[0].status = "RUNNING".to_owned();
    }
    tell(&[&id]);
    assert_eq!(server.state().runs[0].status, "RUNNING");
    // What an interrupt left half told is no hindrance.
    fs_err::remove_dir_all(sandbox.path("cache/tensorboard")).expect("it goes");
    sandbox.write(&format!("cache/tensorboard/{id}.unfinished/base/old"), "");
    assert_eq!(tell(&[&id]).0.len(), 2);
    assert!(sandbox.sami(&["track", "none"]).exits(2).stderr.contains("cli::unknown-run"));
}

#[test]
fn who_cannot_be_told_of_a_run_that_is_over_is_named() {
    let sandbox = sandbox("");
    train(&sandbox, &["--set", "steps=1"], &[]);
    sandbox.write("sami.toml", &format!("mlflow = \"http://127.0.0.1:{}\"\n", free_port()));
    let said = sandbox.sami(&["track"]).exits(1);
    assert!(said.stderr.contains("trackers::mlflow-incomplete") && said.stdout.is_empty(), "{said:?}");
}

/// Reads all event files below a directory with TensorBoard's own reader, and prints tags with their steps and values.
const READ: &str = r"
import glob, json, os, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = {}
for folder in sorted({os.path.dirname(f) for f in glob.glob(sys.argv[1] + '/**/events*', recursive=True)}):
    events = EventAccumulator(folder, size_guidance={'scalars': 0})
    events.Reload()
    name = os.path.relpath(folder, sys.argv[1]).partition('/')[2]
    for tag in events.Tags()['scalars']:
        found[name + ':' + tag] = [[e.step, e.value if e.value == e.value else 'NaN'] for e in events.Scalars(tag)]
    for tag in events.Tags()['tensors']:
        found[name + ':' + tag] = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
print(json.dumps(found))
";

/// What TensorBoard finds; `None` where there is none, which is said.
fn tensorboard(sandbox: &Sandbox) -> Option<Value> {
    let python = env::TEST_PYTHON.get()?;
    let reader = Command::new(python).args(["-c", READ]).arg(sandbox.path("cache/tensorboard")).output().ok()?;
    let said = String::from_utf8_lossy(&reader.stderr);
    if said.contains("No module named 'tensorboard'") {
        return None;
    }
    assert!(reader.status.success(), "{said}");
    serde_json::from_slice(&reader.stdout).ok()
}

#[test]
fn the_real_tensorboard_reads_what_a_killed_and_resumed_training_wrote() {
    let sandbox = sandbox("tensorboard = true\n");
    let args = ["run", "p.toml", "base", "--set", "steps=18"];
    // The worker is killed after its second checkpoint, at step 10: the next attempt goes on from there.
    sandbox.command(&args).env("SAMI_FAULT", "kill:checkpoint:2").output().expect("it starts");
    let (output, _) = train(&sandbox, &["--set", "steps=18"], &[]);
    assert!(output.stderr.contains("tracked: tensorboard --logdir cache/tensorboard"), "{}", output.stderr);
    let files = sandbox.files("cache/tensorboard");
    assert_eq!(files.iter().filter(|file| file.parent().is_some_and(|folder| folder.ends_with("base"))).count(), 2);
    let Some(found) = tensorboard(&sandbox) else {
        return skipped("SAMI_TEST_PYTHON names no Python with tensorboard");
    };
    let steps: Vec<u64> =
        found["base:train/loss"].as_array().expect("a curve").iter().filter_map(|event| event[0].as_u64()).collect();
    assert_eq!(steps, all(18), "one curve, no step twice");
    let records = sandbox.sami(&["cache", "cat", "base", "train.jsonl"]).exits(0);
    let last: Value = serde_json::from_str(records.stdout.lines().last().expect("lines")).expect("JSON");
    let shown = found["base:train/loss"][17][1].as_f64().expect("a number");
    assert!((shown - last["loss"].as_f64().expect("a number")).abs() < 1e-6, "{shown} and {last}");
    assert_eq!(found[":base/steps"][0][1], 18.0);
    assert!(found[":run"].as_str().expect("a text").contains("| rate | 0.03 |"), "{found}");
}

/// A server of MLflow's own, ended when dropped.
struct Real {
    child: Child,
    address: String,
}

impl Real {
    fn start(sandbox: &Sandbox) -> Option<Self> {
        let python = env::TEST_MLFLOW.get()?;
        let port = free_port();
        let store = format!("sqlite:///{}", sandbox.path("mlflow.db").display());
        let log = fs_err::File::create(sandbox.path("mlflow.log")).expect("a log").into_parts().0;
        let child = {
            use std::os::unix::process::CommandExt;
            Command::new(python)
                .args(["-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1", "--port"])
                .arg(port.to_string())
                .args(["--backend-store-uri", &store])
                .current_dir(sandbox.path(""))
                .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
                .stdout(log.try_clone().expect("a log"))
                .stderr(log)
                .process_group(0)
                .spawn()
                .expect("it starts")
        };
        let server = Self { child, address: format!("http://127.0.0.1:{port}") };
        let began = Instant::now();
        while ureq::get(format!("{}/health", server.address)).call().is_err() {
            assert!(began.elapsed() < Duration::from_secs(180), "{}", sandbox.read("mlflow.log"));
            std::thread::sleep(Duration::from_millis(200));
        }
        Some(server)
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}/api/2.0/mlflow/{path}", self.address);
        ureq::post(url).send_json(body).expect("an answer").body_mut().read_json().expect("JSON")
    }

    fn history(&self, run: &str, key: &str) -> Vec<(u64, Value)> {
        let url = format!("{}/api/2.0/mlflow/metrics/get-history", self.address);
        let asked = ureq::get(url).query("run_id", run).query("metric_key", key).query("max_results", "5000");
        let found: Value = asked.call().expect("an answer").body_mut().read_json().expect("JSON");
        let metrics = found["metrics"].as_array().cloned().unwrap_or_default();
        metrics.iter().map(|metric| (metric["step"].as_u64().unwrap_or(0), metric["value"].clone())).collect()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // With what it started: it leads a process group.
        let group = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Adds a figure that is no number to each step and result in what the latest run told.
fn add_no_numbers(sandbox: &Sandbox) {
    let files = sandbox.files("cache/runs").into_iter();
    let told = files.filter(|file| file.ends_with("events.jsonl")).max().expect("a run");
    let line = |line: &str| {
        let mut event: Value = serde_json::from_str(line).expect("JSON");
        if event["event"] == "node-finish" {
            event["metrics"]["none"] = Value::Null;
        }
        let steps = event.get_mut("steps").and_then(Value::as_array_mut);
        steps.into_iter().flatten().for_each(|step| step["none"] = Value::Null);
        event.to_string() + "\n"
    };
    let text: String = fs_err::read_to_string(&told).expect("text").lines().map(line).collect();
    fs_err::write(&told, text).expect("writes");
}

#[test]
#[ignore = "slow: starts MLflow's server"]
fn the_real_mlflow_shows_a_killed_and_resumed_training_as_one_run() {
    let sandbox = sandbox("");
    let Some(server) = Real::start(&sandbox) else {
        return skipped("SAMI_TEST_MLFLOW names no Python with mlflow");
    };
    sandbox.write("sami.toml", &format!("mlflow = \"{}\"\n", server.address));
    let args = ["run", "p.toml", "base", "--set", "steps=18"];
    sandbox.command(&args).env("SAMI_FAULT", "kill:checkpoint:2").output().expect("it starts");
    let find = || server.post("runs/search", &serde_json::json!({"experiment_ids": ["1"]}))["runs"].clone();
    let failed = find();
    assert_eq!(failed[0]["info"]["status"], "FAILED", "{failed}");
    let (output, _) = train(&sandbox, &["--set", "steps=18"], &[]);
    assert!(!output.stderr.contains("trackers::"), "{}", output.stderr);
    let runs = find();
    assert_eq!(runs.as_array().map(Vec::len), Some(1), "{runs}");
    assert_eq!(runs[0]["info"]["status"], "FINISHED");
    assert!(runs[0]["data"]["params"].to_string().contains("0.03"), "{runs}");
    let run = runs[0]["info"]["run_id"].as_str().expect("an id");
    assert!(output.stderr.contains(run), "where it is shown: {}", output.stderr);
    let mut steps: Vec<u64> = server.history(run, "train/base/loss").iter().map(|(step, _)| *step).collect();
    steps.sort_unstable();
    assert_eq!(steps, all(18));
    // That is how numbers are told that are none.
    let nan = serde_json::json!({"run_id": run, "metrics": [
        {"key": "nan", "value": "NaN", "step": 1, "timestamp": 1},
        {"key": "up", "value": "Infinity", "step": 1, "timestamp": 1}]});
    server.post("runs/log-batch", &nan);
    assert_eq!(server.history(run, "nan")[0].1, "NaN");
    // A run that was not told of as it went, with figures that are no numbers.
    sandbox.write("sami.toml", "");
    train(&sandbox, &["--set", "steps=3"], &[]);
    add_no_numbers(&sandbox);
    sandbox.write("sami.toml", &format!("mlflow = \"{}\"\n", server.address));
    for _ in 0..2 {
        sandbox.sami(&["track"]).exits(0);
        let runs = find();
        assert_eq!(runs.as_array().map(Vec::len), Some(2), "{runs}");
        let later = runs.as_array().into_iter().flatten().find(|run| run["data"].to_string().contains("base/none"));
        let later = later.expect("it is told of");
        assert_eq!(later["info"]["status"], "FINISHED", "{later}");
        let id = later["info"]["run_id"].as_str().expect("an id");
        assert_eq!(server.history(id, "base/none"), [(0, Value::from("NaN"))]);
        assert_eq!(
            server.history(id, "train/base/none"),
            all(3).into_iter().map(|step| (step, Value::from("NaN"))).collect::<Vec<_>>()
        );
        assert_eq!(server.history(id, "train/base/loss").len(), 3);
    }
    // What is refused there is said here.
    server.post("experiments/delete", &serde_json::json!({"experiment_id": "1"}));
    let (output, _) = train(&sandbox, &["--set", "steps=2"], &[]);
    assert!(output.stderr.contains("was deleted there"), "{}", output.stderr);
}
