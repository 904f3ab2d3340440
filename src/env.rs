//! Every environment variable that is read, each with its documentation; `docs/env.md` is made from this table.

use std::ffi::OsString;

/// An environment variable and what it does.
#[derive(Debug)]
pub struct Variable {
    /// The name to set.
    pub name: &'static str,
    /// What it does, for the documentation.
    pub doc: &'static str,
}

/// Where artifacts land.
pub const CACHE: Variable = Variable {
    name: "SAMI_CACHE",
    doc: "The cache directory. `--cache` wins over it; without both it is `cache/` beside the nearest `sami.toml` or `pipelines/`.",
};

/// How much room row memos may take.
pub const ROWS_LIMIT: Variable = Variable {
    name: "SAMI_ROWS_LIMIT",
    doc: "How many bytes the row memo may take, such as `50GB`, `500MiB` or `none`. Nodes that add rows evict what was used least recently above it; answers of endpoints stay unless `sami cache rows --evict --paid SPACE` names them. Default `20GB`.",
};

/// What the log says.
pub const LOG: Variable = Variable {
    name: "SAMI_LOG",
    doc: "What `sami` logs to standard error, in the syntax of tracing's `EnvFilter`, such as `debug` or `sami::exec=trace`. Default `warn`; a worker's default is `info`, into its attempt's log.",
};

/// From which size on files of tensors are kept in pieces.
pub const THIN: Variable = Variable {
    name: "SAMI_THIN",
    doc: "Bytes from which on a file of safetensors is kept tensor by tensor, so that models share those that did not change; `off`: none is. Default 64 MiB. It changes no key and no artifact id.",
};

/// Where CUDA's libraries are.
pub const CUDA_LIBS: Variable = Variable {
    name: "SAMI_CUDA_LIBS",
    doc: "Directories, separated by `:`, where the driver and CUDA's libraries (`libcublas.so.13`, `libcurand.so.10`) are looked for before the usual ones. For a build with CUDA, on machines whose loader does not know them; `sami doctor` says what was found.",
};

/// Whether kernels of our own compute.
pub const KERNELS: Variable = Variable {
    name: "SAMI_KERNELS",
    doc: "For a build with CUDA, separated by `,`. `off`: candle's operations compute everything on GPUs, no kernel of `sami`'s own does; to compare the two. `-NAME`: that kernel does not; `sami doctor` names them. `unchecked`: the kernels compute without being held to plain operations first; for tests. Default: those compute that the check finds right.",
};

/// Whether steps of decoding are recorded.
pub const GRAPHS: Variable = Variable {
    name: "SAMI_GRAPHS",
    doc: "For a build with CUDA. `on`: the launches of a step of sampling are recorded as a CUDA graph, if that gives what they give one by one. Default: they are launched one by one, until recorded steps were seen on a GPU.",
};

/// Whether workers keep weights.
pub const KEEP_WEIGHTS: Variable = Variable {
    name: "SAMI_KEEP_WEIGHTS",
    doc: "`off`: every attempt has a worker of its own, which loads weights anew. Default: a worker is left with a model's weights while a node waits that uses the same model on the same device. It changes no result.",
};

/// Where the model hub's files are kept.
pub const HF_HOME: Variable = Variable {
    name: "HF_HOME",
    doc: "Where Python's `huggingface_hub` keeps its things, shared with it. Default `$XDG_CACHE_HOME/huggingface`, or else `~/.cache/huggingface`.",
};

/// Where what was downloaded is kept.
pub const HF_HUB_CACHE: Variable = Variable {
    name: "HF_HUB_CACHE",
    doc: "The cache of models and datasets that `hf:` sources download, shared with Python's `huggingface_hub`. Default `$HF_HOME/hub`.",
};

/// Where caches are kept.
pub const XDG_CACHE_HOME: Variable =
    Variable { name: "XDG_CACHE_HOME", doc: "Decides the default of `HF_HOME`. Default `~/.cache`." };

/// What lets private and gated models be read.
pub const HF_TOKEN: Variable = Variable {
    name: "HF_TOKEN",
    doc: "The token for private and gated models and datasets of `hf:` sources. Sent to the hub's own host only; it is in no key, log or artifact.",
};

/// Where the token is.
pub const HF_TOKEN_PATH: Variable = Variable {
    name: "HF_TOKEN_PATH",
    doc: "A file with the token, used without `HF_TOKEN`. Default `$HF_HOME/token`, where `hf auth login` puts it.",
};

/// Where the hub is.
pub const HF_ENDPOINT: Variable =
    Variable { name: "HF_ENDPOINT", doc: "The address of the hub or of a mirror. Default `https://huggingface.co`." };

/// Whether the hub may be asked.
pub const HF_HUB_OFFLINE: Variable = Variable {
    name: "HF_HUB_OFFLINE",
    doc: "Set to `1`: `hf:` sources come from the cache, and nothing is asked over the network.",
};

/// What OpenAI's own models are paid with.
pub const OPENAI_API_KEY: Variable = Variable {
    name: "OPENAI_API_KEY",
    doc: "The key of `openai:` models without `base_url`, or of those whose `api_key_env` names it; `api_key_env` may name any other variable. Sent to the model's `base_url` only; it is in no key, log, job or artifact.",
};

/// Who speaks to S3.
pub const AWS_ACCESS_KEY_ID: Variable = Variable {
    name: "AWS_ACCESS_KEY_ID",
    doc: "With `AWS_SECRET_ACCESS_KEY`: credentials for a remote cache at `s3://`. Sent to that server only; they are in no key, log, manifest or event.",
};

/// What that one signs with.
pub const AWS_SECRET_ACCESS_KEY: Variable = Variable {
    name: "AWS_SECRET_ACCESS_KEY",
    doc: "See `AWS_ACCESS_KEY_ID`; requests are signed with it, it is never sent.",
};

/// What goes with credentials that are lent.
pub const AWS_SESSION_TOKEN: Variable =
    Variable { name: "AWS_SESSION_TOKEN", doc: "The token of credentials that are lent for a time." };

/// Where the bucket is.
pub const AWS_REGION: Variable = Variable {
    name: "AWS_REGION",
    doc: "The region of the bucket, if `sami.toml` names none; also `AWS_DEFAULT_REGION`. Default `us-east-1`. Of Amazon's other variables those for roles of machines and containers (`AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`, `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`) and `AWS_ENDPOINT_URL` are read; profiles in `~/.aws` are not.",
};

/// The account that speaks to Google's storage.
pub const GOOGLE_SERVICE_ACCOUNT: Variable = Variable {
    name: "GOOGLE_SERVICE_ACCOUNT",
    doc: "The file of a service account's key, for a remote cache at `gs://`; `GOOGLE_SERVICE_ACCOUNT_KEY` is its content. A machine of Google's needs none: it is asked for its own. `GOOGLE_BASE_URL` names another server of Google's protocol.",
};

/// The content of that account's file.
pub const GOOGLE_SERVICE_ACCOUNT_KEY: Variable =
    Variable { name: "GOOGLE_SERVICE_ACCOUNT_KEY", doc: "See `GOOGLE_SERVICE_ACCOUNT`." };

/// Credentials as Google's own tools leave them.
pub const GOOGLE_APPLICATION_CREDENTIALS: Variable = Variable {
    name: "GOOGLE_APPLICATION_CREDENTIALS",
    doc: "The file of credentials for `gs://`, as `gcloud auth application-default login` writes it.",
};

/// What lets an MLflow server be told of runs.
pub const MLFLOW_TRACKING_TOKEN: Variable = Variable {
    name: "MLFLOW_TRACKING_TOKEN",
    doc: "The token for the server that `mlflow` in `sami.toml` names; it wins over user and password. Sent to that server only; it is in no log, event or artifact.",
};

/// Who tells it.
pub const MLFLOW_TRACKING_USERNAME: Variable = Variable {
    name: "MLFLOW_TRACKING_USERNAME",
    doc: "With `MLFLOW_TRACKING_PASSWORD`: user and password for that server.",
};

/// With which password.
pub const MLFLOW_TRACKING_PASSWORD: Variable =
    Variable { name: "MLFLOW_TRACKING_PASSWORD", doc: "See `MLFLOW_TRACKING_USERNAME`." };

/// Where ranks on other machines reach this one.
pub const RANKS_ADDRESS: Variable = Variable {
    name: "SAMI_RANKS_ADDRESS",
    doc: "For data-parallel training under Slurm: the name or address of this machine that the other ranks are to connect to, where it has several networks. Read by rank 0. Default: `SLURMD_NODENAME` and the machine's own name.",
};

/// Whether ranks on GPUs use NCCL.
pub const RANKS_NCCL: Variable = Variable {
    name: "SAMI_RANKS_NCCL",
    doc: "For data-parallel training on GPUs. `off`: gradients go through the memory of the hosts, as they do where `libnccl.so.2` is not found. One rank that says so is enough. Default: NCCL adds them up on the GPUs.",
};

/// A task's number.
pub const SLURM_PROCID: Variable = Variable {
    name: "SLURM_PROCID",
    doc: "Set by `srun`: the number of this task in its step, which is its rank in data-parallel training.",
};

/// How many tasks there are.
pub const SLURM_NTASKS: Variable = Variable {
    name: "SLURM_NTASKS",
    doc: "Set by Slurm: how many tasks there are, where `SLURM_STEP_NUM_TASKS` does not say it of the step.",
};

/// How many tasks a step has.
pub const SLURM_STEP_NUM_TASKS: Variable =
    Variable { name: "SLURM_STEP_NUM_TASKS", doc: "Set by `srun`: how many tasks the step has." };

/// A step.
pub const SLURM_STEP_ID: Variable = Variable {
    name: "SLURM_STEP_ID",
    doc: "Set by `srun`: with it a process is a task of a step, and its ranks are the step's tasks; without it, as in a batch script, it starts the other ranks itself.",
};

/// A job.
pub const SLURM_JOB_ID: Variable = Variable {
    name: "SLURM_JOB_ID",
    doc: "Set by Slurm: with the step and `SLURM_RESTART_COUNT` it names the file through which ranks find each other.",
};

/// How often a job was started again.
pub const SLURM_RESTART_COUNT: Variable =
    Variable { name: "SLURM_RESTART_COUNT", doc: "Set by Slurm once a job was requeued; see `SLURM_JOB_ID`." };

/// What Slurm calls this machine.
pub const SLURMD_NODENAME: Variable =
    Variable { name: "SLURMD_NODENAME", doc: "Set by Slurm: this machine's name; see `SAMI_RANKS_ADDRESS`." };

/// Optional real models and data.
pub const TEST_DATA: Variable = Variable {
    name: "SAMI_TEST_DATA",
    doc: "An optional directory of real models and data. Tests that need it skip with a printed reason where it is absent. Read by tests and benchmarks only.",
};

/// A Python with `torch` and `transformers`, for tests.
pub const TEST_PYTHON: Variable = Variable {
    name: "SAMI_TEST_PYTHON",
    doc: "For tests: a Python that has `torch`, `transformers` and `peft`, which the language model is compared with, and `tensorboard`, which reads event files back. Tests that need it skip with a printed reason without it; `.ci/run` makes one.",
};

/// A Python with MLflow's server, for tests.
pub const TEST_MLFLOW: Variable = Variable {
    name: "SAMI_TEST_MLFLOW",
    doc: "For tests: a Python that has `mlflow` and what its server needs; a server is started with it and told of runs. Tests that need it skip with a printed reason without it; `.ci/run` makes one.",
};

/// A real Ray, for tests.
pub const TEST_RAY: Variable = Variable {
    name: "SAMI_TEST_RAY",
    doc: "For tests: the directory of the program `ray`, with its job server; the profile for Ray that the documents show is run on it. Tests that need it skip with a printed reason without it; `.ci/run` makes one.",
};

/// The real `taplo`.
pub const TEST_TAPLO: Variable = Variable {
    name: "SAMI_TEST_TAPLO",
    doc: "For tests: the program `taplo`, which the schemas are tested with. Tests that need it skip with a printed reason without it; `.ci/run` installs it.",
};

/// How long tests feed the fuzz targets.
pub const TEST_FUZZ: Variable = Variable {
    name: "SAMI_TEST_FUZZ",
    doc: "For tests: how many inputs the slow tier feeds to each fuzz target. Default 50000.",
};

/// A Python with `torch` and `transformers`, for benchmarks.
pub const BENCH_PYTHON: Variable = Variable {
    name: "SAMI_BENCH_PYTHON",
    doc: "For benchmarks: a Python that has `torch` and `transformers`, to be compared with. Default `python3`.",
};

/// A Python with llama.cpp, for benchmarks.
pub const BENCH_LLAMA: Variable = Variable {
    name: "SAMI_BENCH_LLAMA",
    doc: "For benchmarks: a Python that has `llama-cpp-python`, `gguf` and `numpy`. Without it llama.cpp is left out.",
};

/// How many kills a test makes.
pub const TEST_KILLS: Variable = Variable {
    name: "SAMI_TEST_KILLS",
    doc: "For tests: how many runs the test of the slow tier kills that kills runs at random times. Default 1000.",
};

/// A binary with CUDA.
pub const TEST_CUDA_BIN: Variable = Variable {
    name: "SAMI_TEST_CUDA_BIN",
    doc: "A `sami` that was built with the feature `cuda`. Tests run it on a driver that does nothing (`tests/fake_cuda`), and skip with a printed reason where it is not set. Read by tests only.",
};

/// Where a test makes the process fail.
pub const FAULT: Variable = Variable {
    name: "SAMI_FAULT",
    doc: "For tests: makes the process stop or fail at a named point, such as `store-op:12` (the twelfth change to the disk fails; `store-op:12:eio`, also `enospc`, `eintr`, `short` and `kill`, says how, `store-op:12:eio:FILE` counts those of all processes together), `read-op:12:eio` (the twelfth read of a file of the store) or `kill:batch:3` (the process is killed after its third batch; also `checkpoint`, `progress`, `send`, `arrive`, `submitted`, and `rank N step` of a rank); `room:1000` has the disk say that a thousand bytes are free; `crash-log:DIRECTORY` writes down what the disk would have after the power went. Several are separated by commas.",
};

/// Whether tests write the documents that they check.
pub const BLESS: Variable = Variable {
    name: "SAMI_BLESS",
    doc: "For tests: writes the documents that are made from the code (`docs/cli.md`, `docs/env.md`, `docs/errors.md`, `docs/kinds.md`) instead of comparing them.",
};

/// How people read.
pub const PLAIN: Variable = Variable {
    name: "SAMI_PLAIN",
    doc: "Set to anything but the empty string: as `--plain` on every command line. Lines of words, one after another, for screen readers and braille displays: no columns, no pictures, no colours, nothing that is drawn anew.",
};

/// What the terminal is.
pub const TERM: Variable = Variable {
    name: "TERM",
    doc: "The terminal's name. Without it, or with `dumb`, nothing is drawn anew: a run tells its story line by line.",
};

/// What letters the terminal has.
pub const LC_ALL: Variable = Variable {
    name: "LC_ALL",
    doc: "With `LC_CTYPE` and `LANG`, of which the first that is set counts: the locale, which says what letters the terminal shows. Where that is not UTF-8, what goes to a terminal is ASCII. Without all three it is taken for UTF-8.",
};

/// See [`LC_ALL`].
pub const LC_CTYPE: Variable = Variable { name: "LC_CTYPE", doc: "See `LC_ALL`." };

/// See [`LC_ALL`].
pub const LANG: Variable = Variable { name: "LANG", doc: "See `LC_ALL`." };

/// Whether colour is wanted.
pub const NO_COLOR: Variable = Variable {
    name: "NO_COLOR",
    doc: "Set to anything but the empty string: no colour. Nothing is ever said by colour alone.",
};

/// Whether words are to be completed.
pub const COMPLETE: Variable = Variable {
    name: "SAMI_COMPLETE",
    doc: "Set by the scripts that `sami completions` prints, to the name of their shell: words are completed instead of carried out.",
};

/// GPUs that the driver shows.
pub const VISIBLE: Variable = Variable {
    name: "CUDA_VISIBLE_DEVICES",
    doc: "Read by NVIDIA's driver: which GPUs a process sees, and in which order; `cuda:0` is the first of these. `sami doctor` shows it, and what a run tells of the memory of `cuda:N` goes by it.",
};

/// All of them, in the order of the documentation.
pub const ALL: &[&Variable] = &[
    &CACHE,
    &ROWS_LIMIT,
    &LOG,
    &NO_COLOR,
    &PLAIN,
    &TERM,
    &LC_ALL,
    &LC_CTYPE,
    &LANG,
    &COMPLETE,
    &HF_HUB_CACHE,
    &HF_HOME,
    &XDG_CACHE_HOME,
    &HF_TOKEN,
    &HF_TOKEN_PATH,
    &HF_ENDPOINT,
    &HF_HUB_OFFLINE,
    &OPENAI_API_KEY,
    &THIN,
    &AWS_ACCESS_KEY_ID,
    &AWS_SECRET_ACCESS_KEY,
    &AWS_SESSION_TOKEN,
    &AWS_REGION,
    &GOOGLE_SERVICE_ACCOUNT,
    &GOOGLE_SERVICE_ACCOUNT_KEY,
    &GOOGLE_APPLICATION_CREDENTIALS,
    &MLFLOW_TRACKING_TOKEN,
    &MLFLOW_TRACKING_USERNAME,
    &MLFLOW_TRACKING_PASSWORD,
    &CUDA_LIBS,
    &KERNELS,
    &GRAPHS,
    &KEEP_WEIGHTS,
    &VISIBLE,
    &RANKS_ADDRESS,
    &RANKS_NCCL,
    &SLURM_PROCID,
    &SLURM_NTASKS,
    &SLURM_STEP_NUM_TASKS,
    &SLURM_STEP_ID,
    &SLURM_JOB_ID,
    &SLURM_RESTART_COUNT,
    &SLURMD_NODENAME,
    &TEST_DATA,
    &TEST_CUDA_BIN,
    &TEST_PYTHON,
    &TEST_MLFLOW,
    &TEST_KILLS,
    &TEST_FUZZ,
    &TEST_RAY,
    &TEST_TAPLO,
    &FAULT,
    &BLESS,
    &BENCH_PYTHON,
    &BENCH_LLAMA,
];

/// Variables that a program of kind `command` always gets, if they are set: who it works for, and where programs,
/// libraries and temporary files are. None of them is in a key; none of them should be a secret.
pub const PASSED_ON: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TERM",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "LC_COLLATE",
    "LC_MESSAGES",
    "LC_NUMERIC",
    "LC_TIME",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "CONDA_DEFAULT_ENV",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

impl Variable {
    /// The value, if it is set to something that is valid Unicode and not empty.
    pub fn get(&self) -> Option<String> {
        named(self.name)
    }
}

/// All variables that are set.
pub fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os()
}

/// Whether a text can be the name of a variable.
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !text.is_empty() && text.bytes().all(plain) && !text.as_bytes()[0].is_ascii_digit()
}

/// Names that [`value`] was asked for.
static ASKED: std::sync::Mutex<std::collections::BTreeSet<String>> =
    std::sync::Mutex::new(std::collections::BTreeSet::new());

/// The variables that pipelines and their nodes have asked for so far, in order: what was made of them rests on these.
pub fn asked() -> Vec<String> {
    ASKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().cloned().collect()
}

/// The value of a variable, whatever its bytes; `None` if it is not set.
pub fn value(name: &str) -> Option<OsString> {
    let mut asked = ASKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !asked.contains(name) {
        asked.insert(name.to_owned());
    }
    drop(asked);
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    std::env::var_os(name)
}

/// The value of a variable that a user named, if it is set to something that is valid Unicode and not empty.
pub fn named(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_once() {
        let mut names: Vec<&str> = ALL.iter().map(|variable| variable.name).collect();
        names.sort_unstable();
        assert_eq!(names.windows(2).find(|two| two[0] == two[1]), None);
    }
}
