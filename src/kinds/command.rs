//! Kind `command`: runs a program on artifact files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::check::{input, problem, require};
use super::environment::Environment;
use super::{Cx, InputArtifact, NodeError, NodeKind, Outputs, Setting, rows};
use crate::env;
use crate::fs;
use crate::pieces::Recipe;
use crate::pipeline::{ArtifactType, Input, InputField, Problem, Spec};
use crate::secret::{Redacting, Secrets};
use crate::store::{self, Reproduces};

/// How often an interrupt is looked for while a program runs.
const POLL: Duration = Duration::from_millis(20);

/// The fields of kind `command`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    program: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    inputs: IndexMap<String, Input, foldhash::fast::RandomState>,
    #[serde(default = "files")]
    output: ArtifactType,
    #[serde(default)]
    script: Option<String>,
    #[serde(default)]
    env: Environment,
}

fn files() -> ArtifactType {
    ArtifactType::Files
}

const ANY: &[ArtifactType] = &[
    ArtifactType::Dataset,
    ArtifactType::Constitutions,
    ArtifactType::Responses,
    ArtifactType::Scores,
    ArtifactType::Model,
    ArtifactType::Evaluation,
    ArtifactType::Files,
];

impl Spec for Command {
    fn inputs(&self) -> Vec<InputField> {
        self.inputs.iter().map(|(name, from)| input(&["inputs.", name].concat(), from, ANY)).collect()
    }

    fn output(&self) -> ArtifactType {
        self.output
    }

    fn fields(&self) -> Value {
        json!(self)
    }

    fn depends_on_environment(&self) -> bool {
        self.env.passes_on()
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        require(&mut problems, !self.program.is_empty(), "program", "no program", "give its name or path");
        for name in self.inputs.keys() {
            let plain = name.bytes().all(|letter| letter.is_ascii_alphanumeric() || letter == b'_' || letter == b'-');
            if !plain || name.is_empty() {
                let help = "use letters, digits, `_` and `-`";
                problems.push(problem(&format!("inputs.{name}"), "not a plain name", help));
            }
        }
        require(
            &mut problems,
            self.output != ArtifactType::Endpoint,
            "output",
            "a program makes no endpoint",
            "declare it: `[models.NAME]` with `source = \"openai:MODEL\"`",
        );
        let uses_script = self
            .args
            .iter()
            .chain([&self.program])
            .any(|text| text.as_bytes().contains(&b'{') && text.contains("{script}"));
        require(
            &mut problems,
            self.script.is_some() || !uses_script,
            "args",
            "`{script}` without a `script`",
            "give `script = { file = \"…\" }`",
        );
        require(
            &mut problems,
            self.script.is_none() || uses_script,
            "script",
            "the script is not used",
            "put `{script}` among `args`",
        );
        problems.extend(self.env.problems());
        problems
    }
}

impl NodeKind for Command {
    const NAME: &'static str = "command";
    const VERSION: u32 = 1;
    const DOC: &'static str = r#"Runs a program on artifact files, for what the other kinds do not cover.

| field | meaning | default |
|---|---|---|
| `program` | a name on the `PATH`, or an absolute path | |
| `args` | its arguments | `[]` |
| `inputs` | what it reads, by name | `{}` |
| `output` | what it makes: `"files"`, `"dataset"`, `"model"`, … | `"files"` |
| `script` | text of a script, usually `{ file = "x.py" }`; being part of the key, a changed script runs again | |
| `env` | environment variables: `["NAME", …]` passes them on, `{ NAME = "value", OTHER = true }` sets one and passes one on | `{}` |

In `program`, `args` and `env`, `{input.NAME}` is the directory with the files of an input, `{output}` the empty directory in which
the program runs and leaves its files, `{script}` the script's path. The program also finds them in the variables
`SAMI_INPUT_NAME` (upper case, `-` as `_`) and `SAMI_OUTPUT`. A dataset is `rows.jsonl`, an object per line, each with a unique `id`;
rows sliced by `skip` and `take` are cut before. What the program prints goes to the log; a status other than 0 is a failure,
and so is an empty output. A file `metrics.json` in the output, an object of numbers, becomes the node's metrics.

The program's environment is short: of yours it gets `PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, `TERM`, `LANG`, `LANGUAGE`, `LC_ALL`, `LC_CTYPE`, `LC_COLLATE`,
`LC_MESSAGES`, `LC_NUMERIC`, `LC_TIME`, `TZ`, `TMPDIR`, `LD_LIBRARY_PATH`, `PYTHONPATH`, `VIRTUAL_ENV`, `CONDA_PREFIX`, `CONDA_DEFAULT_ENV`, `CUDA_HOME`,
`CUDA_VISIBLE_DEVICES`, `NVIDIA_VISIBLE_DEVICES`, `XDG_CACHE_HOME`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `SSL_CERT_FILE` and `SSL_CERT_DIR`, none of which is in the key,
and besides `RAYON_NUM_THREADS` what `env` passes on or sets. What it sets stands in the key as it is; what it passes on, by name and a digest of the value, so
that a node runs again when the value changes. So a secret is passed on, never written down: `env = ["HF_TOKEN"]`. Where the program prints a value that was passed on because
`env` names it, the log has `[value of NAME]`.

With `run = { device = "cuda" }`, or `cuda:N`, a program has a GPU: `CUDA_VISIBLE_DEVICES` names it alone, and no other node is on it meanwhile.

What a program makes counts as not reproducible, so that `sami audit` skips it; `run = { reproducible = true }` says that it makes the same bytes
from the same inputs.

```toml
[nodes.count]
kind = "command"
program = "sh"
args = ["-c", "wc -l < {input.rows}/rows.jsonl > {output}/count.txt"]
inputs = { rows = "generate" }
```
"#;

    fn reproduces(&self, given: &Setting<'_>) -> Reproduces {
        match given.said {
            Some(true) => Reproduces::BitExact,
            _ => Setting::no("a program, of which `run.reproducible` does not say that it is"),
        }
    }

    fn run(&self, cx: &mut Cx<'_>) -> Result<Outputs, NodeError> {
        let mut places = BTreeMap::from([("{output}".to_owned(), display(&cx.staging))]);
        let mut variables = BTreeMap::from([("SAMI_OUTPUT".to_owned(), display(&cx.staging))]);
        for (number, name) in self.inputs.keys().enumerate() {
            let directory = cx.scratch.join(input_place(number));
            let place = display(&lay_out(cx.input(&format!("inputs.{name}"))?, &directory)?);
            variables.insert(format!("SAMI_INPUT_{}", name.to_uppercase().replace('-', "_")), place.clone());
            places.insert(format!("{{input.{name}}}"), place);
        }
        if let Some(script) = &self.script {
            let path = cx.scratch.join("script");
            fs::write(&path, script)?;
            places.insert("{script}".to_owned(), display(&path));
        }
        let fill = |text: &String| places.iter().fold(text.clone(), |text, (place, path)| text.replace(place, path));
        let program = fill(&self.program);
        variables.insert("RAYON_NUM_THREADS".to_owned(), cx.threads.to_string());
        if let Some(number) = cx.device.strip_prefix("cuda:") {
            variables.insert(env::VISIBLE.name.to_owned(), visible(number, env::VISIBLE.get()));
        }
        let environment = self.env.of_program(variables, fill);
        let found = found_on(environment.get(OsStr::new("PATH")), &program);
        let mut process = Process::new(found.as_deref().unwrap_or(Path::new(&program)));
        process.arg0(&program).args(self.args.iter().map(fill)).current_dir(&cx.staging).stdin(Stdio::null());
        process.env_clear().envs(environment);
        let ended = run_to_end(cx, process, &program, self.env.secrets());
        // What was laid out may be large, and an attempt that failed leaves its scratch.
        let laid_out = cx.scratch.join("inputs");
        let cleared = if laid_out.exists() { fs::remove_directory(&laid_out) } else { Ok(()) };
        ended?;
        cleared?;
        let mut outputs = Outputs { files: collect(&cx.staging)?, metrics: Map::new() };
        if outputs.files.is_empty() {
            return Err(NodeError::with_help(
                format!("`{program}` left no files"),
                "write the output into `{output}`, the directory the program runs in",
            ));
        }
        if let Some(path) = outputs.files.get("metrics.json") {
            outputs.metrics = metrics(path)?;
        }
        let rows_wanted = matches!(
            self.output,
            ArtifactType::Dataset | ArtifactType::Responses | ArtifactType::Scores | ArtifactType::Evaluation
        );
        if rows_wanted {
            let path = outputs.files.get("rows.jsonl").ok_or_else(|| {
                NodeError::with_help(
                    format!("`{program}` left no `rows.jsonl`, which a {} is made of", self.output),
                    "write an object per line to `{output}/rows.jsonl`",
                )
            })?;
            let count = rows::read(path)?.len();
            outputs.metrics.entry("rows").or_insert_with(|| json!(count));
        }
        let named = match self.output {
            ArtifactType::Model => Some("config.json"),
            ArtifactType::Constitutions => Some("constitutions.json"),
            _ => None,
        };
        if let Some(name) = named.filter(|name| !outputs.files.contains_key(*name)) {
            return Err(NodeError::failed(format!("`{program}` left no `{name}`, which a {} has", self.output)));
        }
        Ok(outputs)
    }
}

/// What makes one GPU visible, by its number among those that are visible here.
fn visible(number: &str, here: Option<String>) -> String {
    let own = |here: &String| Some(here.split(',').nth(number.parse().ok()?)?.trim().to_owned());
    here.as_ref().and_then(own).unwrap_or_else(|| number.to_owned())
}

/// Where a program is found that is named without a path: started from there, it costs neither a copy of this process nor a
/// try in each directory. `None` where that is better left to the system, which also says what is wrong.
fn found_on(path: Option<&OsString>, program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let is_program = |file: &Path| {
        std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let directories = std::env::split_paths(path?).take_while(|directory| directory.is_absolute());
    let named = !program.is_empty() && !program.contains('/');
    directories.map(|directory| directory.join(program)).find(|file| named && is_program(file))
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// Starts the program and waits; an interrupt ends it. Of what it prints `secrets` are left out.
fn run_to_end(cx: &Cx<'_>, mut process: Process, program: &str, secrets: Secrets) -> Result<(), NodeError> {
    let printed = if secrets.is_empty() { None } else { Some(Printed::of(&mut process, secrets)?) };
    let mut child = process.spawn().map_err(|error| {
        NodeError::with_help(
            format!("`{program}` cannot be started: {error}"),
            "give a program on the PATH or an absolute path; a script goes into `script`",
        )
    })?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if cx.check_interrupt().is_err() {
            // It may be gone already; waiting tells.
            let _ = child.kill();
            child.wait()?;
            return Err(NodeError::Interrupted);
        }
        rest(&child);
    };
    // It holds the writing end, too.
    drop(process);
    if let Some(printed) = printed {
        printed.wait();
    }
    if status.success() {
        return Ok(());
    }
    Err(NodeError::with_help(
        format!("`{program}` failed: {status}"),
        "what it printed is in the log: `sami logs NODE`",
    ))
}

/// Waits until a program has ended, but no longer than [`POLL`].
fn rest(child: &Child) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let ended = Pid::from_raw(child.id().cast_signed()).and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok());
    match &ended {
        Some(ended) => {
            let limit = Timespec { tv_sec: 0, tv_nsec: POLL.as_nanos() as i64 };
            // Whatever it says, the program is looked after next.
            let _ = poll(&mut [PollFd::new(ended, PollFlags::IN)], Some(&limit));
        }
        // A kernel without such descriptors.
        None => std::thread::sleep(POLL),
    }
}

/// Where the files of an input are laid out in the scratch directory.
pub(crate) fn input_place(number: usize) -> String {
    format!("inputs/{number}")
}

/// What a program prints, on its way to the log.
struct Printed(Receiver<()>);

impl Printed {
    fn of(process: &mut Process, secrets: Secrets) -> std::io::Result<Self> {
        let (mut reader, writer) = std::io::pipe()?;
        process.stdout(writer.try_clone()?).stderr(writer);
        let (over, end) = channel();
        std::thread::Builder::new().name("printed".to_owned()).spawn(move || {
            let mut log = Redacting::new(std::io::stderr(), secrets);
            // A log that cannot be written, on a disk that is full, does not keep the program from going on.
            let copied = std::io::copy(&mut reader, &mut log).is_ok() && log.finish().is_ok();
            if !copied {
                _ = std::io::copy(&mut reader, &mut std::io::sink());
            }
            _ = over.send(());
        })?;
        Ok(Self(end))
    }

    /// Waits until the program has printed its last; not for long, for what it left running may print forever.
    fn wait(self) {
        _ = self.0.recv_timeout(Duration::from_secs(1));
    }
}

/// Puts the files of an input into a directory of their own, rows sliced.
fn lay_out(input: &InputArtifact, directory: &Path) -> Result<PathBuf, NodeError> {
    // It is there and empty if another attempt had one before.
    fs::empty_directory(directory)?;
    fs::create_directory(directory)?;
    for (name, path) in &input.files {
        let place = directory.join(name);
        if let Some(parent) = place.parent() {
            fs::create_directory(parent)?;
        }
        if name == "rows.jsonl" && (input.skip > 0 || input.take.is_some()) {
            rows::write(&place, &rows::read_input(input)?)?;
        } else if Recipe::is_at(path) {
            // No program but ours reads a file in pieces.
            store::copy(path, &place)?;
            let size = fs_err::metadata(&place)?.len();
            tracing::info!("`{name}` is kept in pieces: laid out as one file of {size} bytes for the program");
        } else {
            fs::symlink(path, &place)?;
        }
    }
    Ok(directory.to_owned())
}

/// All files under a directory by their relative names.
pub(super) fn collect(root: &Path) -> Result<BTreeMap<String, PathBuf>, NodeError> {
    let mut files = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs_err::read_dir(&directory)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(root).ok().and_then(Path::to_str).map(str::to_owned);
            let name = name.ok_or_else(|| {
                NodeError::failed(format!("the output {} has a name that is not UTF-8", path.display()))
            })?;
            if !kind.is_file() {
                return Err(NodeError::with_help(
                    format!("the output `{name}` is not a plain file"),
                    "copy what a link points to",
                ));
            }
            files.insert(name, path);
        }
    }
    Ok(files)
}

fn metrics(path: &Path) -> Result<Map<String, Value>, NodeError> {
    let wrong = |what: String| NodeError::with_help(format!("`metrics.json`: {what}"), "write an object of numbers");
    let metrics: Map<String, Value> =
        serde_json::from_str(&fs_err::read_to_string(path)?).map_err(|error| wrong(error.to_string()))?;
    match metrics.iter().find(|(_, value)| !value.is_number()) {
        Some((name, _)) => Err(wrong(format!("`{name}` is not a number"))),
        None => Ok(metrics),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_gpu_is_named_as_the_system_has_it() {
        let visible = |number: &str, here: Option<&str>| super::visible(number, here.map(ToOwned::to_owned));
        assert_eq!(visible("1", None), "1");
        assert_eq!(visible("1", Some("2,5")), "5");
        assert_eq!(visible("0", Some("GPU-3f, MIG-1")), "GPU-3f");
        assert_eq!(visible("3", Some("2,5")), "3");
    }
}
