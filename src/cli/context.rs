//! What every command is given, what it gives back, and the way out to standard output.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::{DAMAGED, FAILED, Global, PipelineArgs, USAGE, live, render, terminal};
use crate::diag::{Diagnostic, Severity};
use crate::exec::ExecError;
use crate::graph::{self, Graph};
use crate::pipeline::{self, KindSpec, Pipeline};
use crate::settings::{RemoteSettings, Settings};
use crate::store::{Index, Store, StoreError};
use crate::{env, kinds, secret, settings};

/// The exit code of a command, or why it could not be carried out.
pub(crate) type CommandResult = Result<u8, Failure>;

/// Why a command could not be carried out: the exit code and what to tell.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// What to tell; drawn on standard error.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl From<Vec<Diagnostic>> for Failure {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        Self { code: USAGE, diagnostics }
    }
}

impl From<Diagnostic> for Failure {
    fn from(diagnostic: Diagnostic) -> Self {
        vec![diagnostic].into()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match error {
            // The directory or the name that was typed is at fault, not the store.
            StoreError::Absent { .. }
            | StoreError::NotAStore { .. }
            | StoreError::NotADirectory { .. }
            | StoreError::NoArtifact(_)
            | StoreError::Unknown(_)
            | StoreError::Ambiguous { .. } => USAGE,
            // A full or read-only disk is no damage, nor is another process at work.
            StoreError::Io(_) | StoreError::InUse => FAILED,
            _ => DAMAGED,
        };
        Self { code, diagnostics: vec![error.diagnostic()] }
    }
}

impl From<ExecError> for Failure {
    fn from(error: ExecError) -> Self {
        let code = match error {
            ExecError::Store(error) => return error.into(),
            ExecError::Spawn(_) | ExecError::Audit { .. } => FAILED,
            // The pipeline or what was typed is at fault.
            ExecError::Sources(_)
            | ExecError::Cluster(_)
            | ExecError::UnknownNode { .. }
            | ExecError::BadDevice { .. }
            | ExecError::NoGpu { .. }
            | ExecError::TooManyRanks { .. }
            | ExecError::BadJob { .. } => USAGE,
        };
        Self { code, diagnostics: error.diagnostics() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { code: FAILED, diagnostics: vec![Diagnostic::error("cli::io", error.to_string())] }
    }
}

/// The global options, resolved.
#[derive(Debug)]
pub(crate) struct Context {
    cache: Option<PathBuf>,
    json: bool,
    kinds: Vec<&'static KindSpec>,
}

impl Context {
    /// From the options and the environment.
    pub(crate) fn new(global: &Global) -> Self {
        let cache = global.cache.clone().or_else(|| env::CACHE.get().map(PathBuf::from));
        Self { cache, json: global.json, kinds: kinds::specs() }
    }

    /// The same, with its cache at `root`.
    pub(crate) fn at(&self, root: &Path) -> Self {
        Self { cache: Some(root.to_owned()), json: self.json, kinds: self.kinds.clone() }
    }

    /// Whether JSON is wanted.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// The kinds that pipelines may use.
    pub(crate) fn kinds(&self) -> &[&'static KindSpec] {
        &self.kinds
    }

    /// Reads a pipeline and its graph; warnings go to standard error.
    pub(crate) fn load(&self, args: &PipelineArgs) -> Result<(Pipeline, Graph), Failure> {
        let (pipeline, mut findings) = pipeline::examine(&args.pipeline, &args.set, &self.kinds);
        let built = pipeline.map(|pipeline| (graph::build(&pipeline), pipeline));
        let sound = findings.iter().all(|finding| finding.severity == Severity::Warning);
        match built {
            Some((Ok(graph), mut pipeline)) if sound => {
                complain(&findings);
                // Warnings are told every time: an answer that leaves them out is not to be remembered.
                pipeline.read.extend(findings.first().map(|_| None));
                Ok((pipeline, graph))
            }
            Some((Err(faults), _)) => {
                findings.extend(faults);
                Err(findings.into())
            }
            _ => Err(findings.into()),
        }
    }

    /// The cache directory: what was asked for, or else `cache/` beside the nearest `sami.toml` or `pipelines/` above
    /// the pipeline file or, for want of one, above the working directory; without any, `cache/` in that.
    pub(crate) fn cache_directory(&self, pipeline: Option<&Path>) -> Result<PathBuf, Failure> {
        if let Some(cache) = &self.cache {
            return Ok(cache.clone());
        }
        Ok(project_of(pipeline)?.join("cache"))
    }

    /// What `sami.toml` says, the one beside the cache that is used without `--cache`.
    pub(crate) fn settings(pipeline: Option<&Path>) -> Result<Settings, Failure> {
        let path = project_of(pipeline)?.join("sami.toml");
        // Named as people would type it, where that is shorter.
        let short = std::env::current_dir()?;
        Ok(Settings::read(path.strip_prefix(&short).unwrap_or(&path))?)
    }

    /// The remote cache: that of a URL that was typed, or else of the settings.
    pub(crate) fn remote(url: Option<&str>, pipeline: Option<&Path>) -> Result<Option<RemoteSettings>, Failure> {
        let settings = Self::settings(pipeline)?.remote;
        let Some(url) = url else { return Ok(settings) };
        let allow_http = settings.as_ref().is_some_and(|settings| settings.allow_http);
        let place = settings::parse_url(url, allow_http)?;
        Ok(Some(match settings {
            Some(settings) => RemoteSettings { url: url.to_owned(), place, ..settings },
            None => RemoteSettings::at(url, place),
        }))
    }

    /// Opens the cache, which must be there, and its index.
    pub(crate) fn open_existing(&self) -> Result<(Store, Index), Failure> {
        let store = Store::open_existing(&self.cache_directory(None)?)?;
        let index = Index::open(&store)?;
        Ok((store, index))
    }
}

/// The root of the project that a pipeline file is in or, for want of one, the working directory; that itself without
/// any.
pub(super) fn project_of(pipeline: Option<&Path>) -> Result<PathBuf, Failure> {
    let here = std::env::current_dir()?;
    let beside = pipeline.and_then(|file| {
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        // Ancestors of `../x` are no directories above it until links and `..` are resolved.
        directory.map_or_else(|| Some(here.clone()), |directory| fs_err::canonicalize(directory).ok())
    });
    let root = beside.as_deref().and_then(project).or_else(|| project(&here));
    Ok(root.unwrap_or(&here).to_owned())
}

/// The nearest directory from `start` upwards that has a `sami.toml` or a `pipelines/`.
fn project(start: &Path) -> Option<&Path> {
    start.ancestors().find(|directory| directory.join("sami.toml").is_file() || directory.join("pipelines").is_dir())
}

/// Writes text for people to standard output, as they can read it. That the reader went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let text = terminal::shown(text, io::stdout().is_terminal());
    write_out(|stdout| stdout.write_all(text.as_bytes()))
}

/// Writes a value as JSON to standard output: on a line, or for the eye if that is a terminal.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        if io::stdout().is_terminal() { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    let text = text.map_err(io::Error::from)? + "\n";
    write_out(|stdout| stdout.write_all(text.as_bytes()))
}

/// Lets `write` write to standard output, buffered and as it is. That the reader went away is no error.
pub(crate) fn write_out(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let written = write(&mut stdout).and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // What is left in the buffer has no reader: it must not be tried again when it is dropped.
            drop(stdout.into_parts());
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Draws diagnostics on standard error. Where that cannot be written there is no one to tell. On a terminal, people are told
/// once where it says what errors mean.
pub(crate) fn complain(diagnostics: &[Diagnostic]) {
    static POINTED: AtomicBool = AtomicBool::new(false);
    if diagnostics.is_empty() {
        return;
    }
    let mut drawn = render::render(diagnostics);
    if io::stderr().is_terminal()
        && let Some(pointer) = render::pointer(diagnostics)
        && !POINTED.swap(true, Ordering::Relaxed)
    {
        drawn.push_str(&pointer);
    }
    live::above(&secret::redact(&drawn));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_beside_the_nearest_project() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs_err::canonicalize(folder.path()).unwrap();
        fs_err::create_dir_all(root.join("a/pipelines/b")).unwrap();
        fs_err::create_dir_all(root.join("a/c")).unwrap();
        fs_err::write(root.join("a/c/sami.toml"), "").unwrap();
        let context = Context { cache: None, json: false, kinds: Vec::new() };
        let cache = |file: &str| context.cache_directory(Some(&root.join(file))).unwrap();
        assert_eq!(cache("a/pipelines/x.toml"), root.join("a/cache"));
        assert_eq!(cache("a/pipelines/b/x.toml"), root.join("a/cache"));
        assert_eq!(cache("a/c/x.toml"), root.join("a/c/cache"));
        assert_eq!(cache("a/c/../x.toml"), root.join("a/cache"));
        let asked = Context { cache: Some("elsewhere".into()), ..context };
        assert_eq!(asked.cache_directory(None).unwrap(), Path::new("elsewhere"));
    }

    #[test]
    fn exit_codes_tell_what_is_at_fault() {
        assert_eq!(Failure::from(StoreError::Absent { directory: "x".into() }).code, USAGE);
        assert_eq!(Failure::from(StoreError::Damaged { what: "x".into() }).code, DAMAGED);
        assert_eq!(Failure::from(Diagnostic::error("a::b", "x")).code, USAGE);
        assert_eq!(Failure::from(io::Error::other("x")).code, FAILED);
    }
}
