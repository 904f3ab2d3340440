//! `sami push`, `sami pull` and `sami remote`: artifacts shared with other machines.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};

use clap::Args;
use serde_json::json;

use super::context::Failure;
use super::figures::{bytes, clock, count};
use super::find::{self, Found};
use super::table::Table;
use super::transfer::{self, Transfer};
use super::{CommandResult, Context, DAMAGED, DONE, FAILED, context};
use crate::diag::Diagnostic;
use crate::digest::Digest;
use crate::remote::{Access, Moved, Patience, Remote, RemoteError, Wanted};
use crate::store::{Index, Store};

/// Differences and failures that are listed.
const LISTED: usize = 20;

/// Which remote cache.
#[derive(Debug, Clone, Args)]
pub struct RemoteArgs {
    /// Remote cache (default: `url` of `[remote]` in sami.toml)
    #[arg(long, value_name = "URL")]
    pub remote: Option<String>,
}

/// Arguments of `push`.
#[derive(Debug, Clone, Args)]
pub struct PushArgs {
    /// Run id, node name or key, artifact id, prefix of one, pipeline name, or `latest` run (default: latest)
    pub what: Vec<String>,
    /// Which remote cache.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Push all that the cache has records of
    #[arg(long, conflicts_with = "what")]
    pub all: bool,
    /// Send what is there already once more, in place of what may be damaged
    #[arg(long)]
    pub again: bool,
}

/// Arguments of `pull`.
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// Run id, node name or key, artifact id, prefix of one, pipeline name, or `latest` run (default: latest)
    pub what: Vec<String>,
    /// Which remote cache.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Pull all that is there
    #[arg(long, conflicts_with = "what")]
    pub all: bool,
    /// List the node records that are there, newest first; bring nothing
    #[arg(long, conflicts_with_all = ["what", "all"])]
    pub list: bool,
}

/// Arguments of `remote`.
#[derive(Debug, Clone, Args)]
pub struct SurveyArgs {
    /// Which remote cache.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Read every byte there and hold it to its digest
    #[arg(long)]
    pub verify: bool,
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Store(error) => error.into(),
            RemoteError::Absent { .. }
            | RemoteError::NotOurs { .. }
            | RemoteError::ReadOnly { .. }
            | RemoteError::Setup { .. }
            | RemoteError::Unknown(_)
            | RemoteError::Ambiguous { .. } => error.diagnostic().into(),
            RemoteError::NewerFormat { .. } => Self { code: DAMAGED, diagnostics: vec![error.diagnostic()] },
            _ => Self { code: FAILED, diagnostics: vec![error.diagnostic()] },
        }
    }
}

/// No remote cache is named.
pub(super) fn unnamed() -> Diagnostic {
    Diagnostic::error("cli::no-remote", "no remote cache is named")
        .help("name one in `sami.toml`: `[remote]` with `url = \"s3://BUCKET/PREFIX\"`; `push` and `pull` take `--remote URL`")
}

/// The remote of the command line or of the settings; errs if neither names one.
fn open(args: &RemoteArgs, access: Access) -> Result<Remote, Failure> {
    let Some(settings) = Context::remote(args.remote.as_deref(), None)? else {
        return Err(unnamed().into());
    };
    Ok(Remote::open(&settings, Patience::Long, access)?)
}

/// Sends artifacts to the remote cache.
pub(crate) fn push(context: &Context, args: &PushArgs) -> CommandResult {
    let (store, index) = context.open_existing()?;
    let wanted = if args.all {
        Wanted { keys: store.node_keys()?, artifacts: Vec::new(), runs: Vec::new() }
    } else {
        here(&store, &index, &args.what)?
    };
    let remote = open(&args.remote, Access::Write)?;
    let transfer = Transfer::new("pushing");
    let moved = remote.push(&store, &wanted, args.again, &|moving| transfer.tell(moving));
    transfer.end();
    report(context, "pushed", remote.url(), &moved?)
}

/// Brings artifacts from the remote cache.
pub(crate) fn pull(context: &Context, args: &PullArgs) -> CommandResult {
    let remote = open(&args.remote, Access::Read)?;
    remote.marker()?;
    if args.list {
        return list(context, &remote);
    }
    let latest = ["latest".to_owned()];
    let wanted = match (&args.what[..], args.all) {
        (_, true) => remote.all()?,
        ([], _) => remote.resolve(&latest)?,
        (what, _) => remote.resolve(what)?,
    };
    let store = Store::open(&context.cache_directory(None)?)?;
    let mut index = Index::open(&store)?;
    let transfer = Transfer::new("pulling");
    let pulled = remote.pull(&store, &wanted, &|moving| transfer.tell(moving));
    transfer.end();
    let pulled = pulled?;
    pulled.records.iter().for_each(|record| index.add_node(record));
    for run in wanted.runs.iter().filter_map(|run| store.run(run).transpose()) {
        index.add_run(&run?);
    }
    report(context, "pulled", remote.url(), &pulled.moved)
}

/// What there is under the names that people type.
pub(super) fn here(store: &Store, index: &Index, what: &[String]) -> Result<Wanted, Failure> {
    let (mut keys, mut artifacts, mut runs) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let latest = ["latest".to_owned()];
    for what in if what.is_empty() { &latest } else { what } {
        let run = match what.as_str() {
            "latest" => {
                let Some(run) = find::latest_run(store, |run| !run.nodes.is_empty())? else {
                    return Err(Diagnostic::error("cli::unknown-run", "the cache has no run that ended")
                        .help("name what to send, or `--all`")
                        .into());
                };
                Some(run)
            }
            _ => {
                let pipeline = index.latest_keys(what);
                if !pipeline.is_empty() {
                    keys.extend(pipeline.into_values());
                    continue;
                }
                match find::run_or_node(store, index, what) {
                    Ok(Found::Run(run)) => Some(run),
                    Ok(Found::Node(record)) => {
                        keys.insert(record.key);
                        None
                    }
                    // Not a run and not a node; it may be an artifact.
                    Err(fault) => match find::artifact(store, index, what) {
                        Ok(id) => {
                            let makers: Vec<Digest> = index.makers(&id).into_iter().map(|maker| maker.key).collect();
                            artifacts.extend(makers.is_empty().then_some(id));
                            keys.extend(makers);
                            None
                        }
                        Err(_) => return Err(fault),
                    },
                }
            }
        };
        if let Some(run) = run {
            keys.extend(run.nodes.iter().filter(|node| node.artifact.is_some()).filter_map(|node| node.key));
            runs.push(run.run);
        }
    }
    Ok(Wanted { keys: keys.into_iter().collect(), artifacts: artifacts.into_iter().collect(), runs })
}

/// Tells what was moved.
fn report(context: &Context, done: &str, url: &str, moved: &Moved) -> CommandResult {
    let code = if moved.failed.is_empty() { DONE } else { FAILED };
    context::complain(&faults(moved));
    if context.json() {
        context::print_json(&json!({"ok": code == DONE, "remote": url, done: moved}))?;
    } else {
        context::print(&format!("{done} {}\n", transfer::line(moved)))?;
    }
    Ok(code)
}

/// What of a transfer people should know.
pub(super) fn faults(moved: &Moved) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    if !moved.others.is_empty() {
        let what = format!("{} keys had another artifact already, which stays", count(moved.others.len() as u64));
        let mut fault = Diagnostic::warning("cli::other-artifact", what);
        for other in moved.others.iter().take(LISTED) {
            let (ours, stays) = (other.artifact.short(), other.stays.short());
            fault =
                fault.note(format!("{} ({}): {ours} was not recorded, {stays} stays", other.node, other.key.short()));
        }
        faults.push(fault.help(
            "the same work gave other bytes here and there: its kind is not deterministic, or a device was another",
        ));
    }
    if !moved.failed.is_empty() {
        let what = format!("{} things could not be moved", count(moved.failed.len() as u64));
        let mut fault = Diagnostic::error("cli::not-moved", what);
        for failed in moved.failed.iter().take(LISTED) {
            fault = fault.note(format!("{}: {}", failed.what, failed.why));
        }
        faults.push(
            fault.help("`sami cache verify` finds what is damaged here, `sami remote --verify` what is damaged there"),
        );
    }
    faults
}

fn list(context: &Context, remote: &Remote) -> CommandResult {
    let records = remote.records()?;
    if context.json() {
        let rows: Vec<_> = records
            .iter()
            .map(|found| {
                let record = &found.record;
                json!({
                    "pipeline": record.pipeline, "node": record.node, "kind": record.kind, "key": record.key,
                    "artifact": record.artifact, "run": record.run, "started": record.started, "host": record.host,
                    "seconds": record.seconds, "device": record.device,
                })
            })
            .collect();
        context::print_json(&rows)?;
        return Ok(DONE);
    }
    let mut table = Table::new(["key", "artifact", "node", "kind", "host", "when"], &[]);
    for found in &records {
        let record = &found.record;
        let node = format!("{}/{}", record.pipeline, record.node);
        let (key, artifact) = (record.key.short(), record.artifact.short());
        table.row([key, artifact, node, record.kind.clone(), record.host.clone(), clock(&record.started)]);
    }
    context::print(&if table.is_empty() { "no node records\n".to_owned() } else { table.text() })?;
    Ok(DONE)
}

/// Shows what the remote cache has.
pub(crate) fn survey(context: &Context, args: &SurveyArgs) -> CommandResult {
    // What can only be read is looked at all the same.
    let remote = open(&args.remote, Access::Read)?;
    let transfer = Transfer::new("reading");
    let survey = remote.survey(args.verify, &|moving| transfer.tell(moving));
    transfer.end();
    let survey = survey?;
    let code = if survey.flaws.iter().any(|flaw| flaw.state != "foreign") { DAMAGED } else { DONE };
    if context.json() {
        context::print_json(&json!({"ok": code == DONE, "remote": remote.url(), "survey": survey}))?;
        return Ok(code);
    }
    let mut table = Table::new(["part", "files", "size"], &[1, 2]);
    for folder in &survey.folders {
        table.row([folder.name.to_owned(), count(folder.files), bytes(folder.bytes)]);
    }
    let mut text = format!("{}, format {}\n{}", remote.url(), survey.marker.format, table.text());
    text.push_str(match survey.conditional_put {
        Some(true) => "of two writers of one record the second is refused\n",
        Some(false) => {
            "the server lets a second writer replace a record: what was recorded first is looked at, and may be missed\n"
        }
        None => "it can only be read\n",
    });
    for flaw in &survey.flaws {
        text.push_str(&format!("{} {}: {}\n", flaw.state, flaw.name, flaw.what));
    }
    match (args.verify, survey.flaws.is_empty()) {
        (true, true) => text.push_str("every byte is as it should be\n"),
        (true, false) => text.push_str("`sami push --again WHAT` replaces what is damaged, from a cache that has it\n"),
        (false, _) if io::stdout().is_terminal() => text.push_str("`--verify` reads every byte\n"),
        (false, _) => {}
    }
    context::print(&text)?;
    Ok(code)
}
