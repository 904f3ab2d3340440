//! The schema of `sami.toml`: what its readers ask for.

use serde_json::{Map, Value, json};

use super::DRAFT;
use crate::settings::{self, Form, TableForm};

/// What tables and keys are for, by `TABLE` or `TABLE.KEY`.
const ABOUT: &[(&str, &str)] = &[
    ("remote", "Where artifacts are shared."),
    ("remote.url", "The place: `s3://BUCKET/PREFIX`, `gs://…`, `file:///DIRECTORY`, or `https://…` to read only."),
    ("remote.push", "When a run sends what it made: `never` by itself, or `on-success`. Default: never"),
    ("remote.pull", "Whether a run takes from there what it would have to make. Default: false"),
    ("remote.endpoint", "The address of a server that speaks S3, if it is not Amazon's."),
    ("remote.region", "The region of a bucket of S3."),
    ("remote.allow_http", "Whether the server may be spoken to without TLS. Default: false"),
    ("remote.anonymous", "Whether requests go without credentials. Default: false"),
    ("remote.concurrency", "Requests at once. Default: 16"),
    (
        "remote.timeout",
        "Seconds that a run waits for answers about what is there before it goes on without. Default: 10",
    ),
    (
        "tensorboard",
        "Whether runs write event files for TensorBoard into `tensorboard/` of the cache, or the directory for them.",
    ),
    ("mlflow", "The MLflow server that is told how runs go: its address, or a table."),
    ("mlflow.url", "The address of the server, such as `http://localhost:5000`."),
    ("mlflow.allow_http", "Whether a server elsewhere may be spoken to without TLS. Default: false"),
    ("mlflow.experiment", "The experiment that runs belong to. Default: the pipeline's name"),
    ("profiles", "Where a run's attempts execute: `sami run --profile NAME`."),
    (
        "profiles.executor",
        "What executes them: processes of this machine, Slurm, hosts by ssh, or any programs. Default: local",
    ),
    ("profiles.submit", "Line of shell that submits `{script}` and prints the job's id last."),
    ("profiles.poll", "Line of shell that prints a line `ID STATE [HOST [WHY]]` for each of `{ids}` that is known."),
    ("profiles.cancel", "Line of shell that ends `{ids}`."),
    ("profiles.find", "Line of shell that prints a line `MARK ID` for each of `{marks}` that is known."),
    ("profiles.look", "What a person types to see the job in `{ids}`. Default: `poll`, if that is one line"),
    ("profiles.hosts", "Hosts that `ssh` reaches."),
    ("profiles.slots", "Jobs at once on each host; where a GPU is asked for, the GPUs of each. Default: 1"),
    ("profiles.ssh", "The program `ssh`, with its first arguments. Default: ssh"),
    (
        "profiles.run_on",
        "Where a node executes: `here`, or in a `job`. Default: commands and what computes on weights in a job",
    ),
    ("profiles.partition", "Slurm partition."),
    ("profiles.account", "Account that is charged."),
    ("profiles.qos", "Quality of service."),
    ("profiles.constraint", "Features that the machine must have."),
    ("profiles.gres", "Generic resources, such as `gpu:1`."),
    ("profiles.device", "Device of nodes that name none. Default: `cuda:0` if a GPU is asked for, else `cpu`"),
    ("profiles.cpus", "CPUs, and threads of the worker."),
    ("profiles.memory", "Memory, such as `16GB`."),
    ("profiles.time", "Time limit, such as `4h`."),
    ("profiles.setup", "Lines of shell before the worker starts, such as `module load cuda`."),
    (
        "profiles.container",
        "The command that the worker is started with, word by word, such as `apptainer`, `exec`, `--nv`, `image.sif`.",
    ),
    ("profiles.extra", "Further arguments of `sbatch`."),
    ("profiles.kinds", "What nodes of a kind ask for, by the kind's name."),
    ("profiles.nodes", "What nodes ask for, by their name, in which `*` stands for anything."),
    (
        "profiles.on_interrupt",
        "What the first interrupt does to jobs: they save and `stop`, they go on (`leave`), or `cancel`. Default: stop",
    ),
    ("profiles.interval", "Between two looks at the jobs. Default: 5s"),
    ("profiles.lag", "How long a file may take to be seen that another machine has written. Default: 30s"),
    ("profiles.notice", "How long before its time limit a job is told to save. Default: 2m"),
    ("profiles.jobs", "Jobs at once, waiting ones included. Default: 500"),
    (
        "profiles.retries",
        "How often an attempt is made again that was preempted, lost, or ran out of memory. Default: 3",
    ),
    ("profiles.memory_growth", "By what the memory grows after an attempt that ran out of it. Default: 1.5"),
    ("profiles.memory_limit", "Memory up to which it grows, such as `64GB`."),
    ("profiles.program", "The program `sami` there. Default: the path of the one that runs here"),
    ("profiles.probe", "Whether a small job looks first whether all is as it must be. Default: true"),
    ("profiles.probe_wait", "How long that job is waited for. Default: 2m"),
    ("mlflow.timeout", "Seconds that the server may keep an answer back, and a run at its end. Default: 10"),
];

/// What a table or a key is for.
pub(super) fn about(path: &str) -> Option<&'static str> {
    ABOUT.iter().find(|(known, _)| *known == path).map(|(_, about)| *about)
}

/// The JSON Schema of `sami.toml`.
pub fn project() -> Value {
    let mut tables: Map<String, Value> =
        settings::forms().iter().map(|form| (form.name.clone(), table(form))).collect();
    // These two may be written in one line.
    let text = json!({ "type": "string", "minLength": 1 });
    let mlflow = tables.remove("mlflow");
    tables.insert("mlflow".to_owned(), json!({ "description": about("mlflow"), "anyOf": [text, mlflow] }));
    let (here, flag) = (about("tensorboard"), json!({ "type": "boolean" }));
    tables.insert("tensorboard".to_owned(), json!({ "description": here, "anyOf": [flag, text] }));
    let profile = tables.remove("profiles");
    tables.insert(
        "profiles".to_owned(),
        json!({ "description": "Where runs' attempts execute, by the name that `--profile` takes.",
                "type": "object", "additionalProperties": profile }),
    );
    json!({
        "$schema": DRAFT,
        "title": "sami.toml",
        "description": "What belongs to a machine or a lab and not to a pipeline; nothing in it is part of any key.",
        "type": "object",
        "additionalProperties": false,
        "properties": tables,
    })
}

fn table(form: &TableForm) -> Value {
    let keys: Map<String, Value> =
        form.keys.iter().map(|(key, of)| (key.clone(), value(&form.name, key, of))).collect();
    let mut schema = json!({ "type": "object", "additionalProperties": false, "properties": keys });
    if !form.required.is_empty() {
        schema["required"] = json!(form.required);
    }
    if let Some(about) = about(&form.name) {
        schema["description"] = about.into();
    }
    schema
}

fn value(table: &str, key: &str, form: &Form) -> Value {
    let mut schema = match form {
        Form::Text => json!({ "type": "string", "minLength": 1 }),
        Form::Flag => json!({ "type": "boolean" }),
        Form::Number(range) => json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() }),
        Form::Word(words) => json!({ "enum": words }),
        Form::Real(least) => json!({ "type": "number", "minimum": least }),
        Form::Texts => {
            json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
        }
        Form::Tables(form) => json!({ "type": "object", "additionalProperties": self::table(form) }),
    };
    // What kinds and nodes ask for is called as what the profile does.
    let table = table.split('.').next().unwrap_or(table);
    if let Some(about) = about(&format!("{table}.{key}")) {
        schema["description"] = about.into();
    }
    schema
}
