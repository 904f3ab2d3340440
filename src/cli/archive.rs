//! `sami cache export` and `sami cache import`: archives.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::context::Failure;
use super::figures::{bytes, plural};
use super::{CommandResult, Context, DAMAGED, DONE, FAILED, context, push, terminal};
use crate::archive::{self, ArchiveError, Contents};
use crate::diag::Diagnostic;
use crate::store::{Index, Store};

/// Arguments of `cache export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Run id, node name or key, artifact id, prefix of one, pipeline name, or `latest` run (default: latest)
    pub what: Vec<String>,
    /// File to write: `.tar`, `.tar.zst` or `.tar.gz`
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Export all that the cache has records of, and all runs
    #[arg(long, conflicts_with = "what")]
    pub all: bool,
}

/// Arguments of `cache import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// Archive to read
    pub file: PathBuf,
    /// Read and check it, take nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        let code = match error {
            ArchiveError::Store(error) => return error.into(),
            ArchiveError::Name(_) | ArchiveError::NotOurs { .. } => return error.diagnostic().into(),
            ArchiveError::Refused { .. } | ArchiveError::Truncated { .. } => DAMAGED,
            ArchiveError::Io(_) | ArchiveError::NoRoom { .. } => FAILED,
        };
        Self { code, diagnostics: vec![error.diagnostic()] }
    }
}

/// Draws how far it is, where someone looks.
pub(super) fn progress(verb: &'static str) -> impl FnMut(u64, u64) {
    let terminal = terminal::can_redraw();
    let mut shown = 0;
    move |done, total| {
        let percent = done.saturating_mul(100) / total.max(1);
        if terminal && percent != shown {
            shown = percent;
            // Progress that cannot be shown is no failure.
            let _ = write!(io::stderr(), "\r{verb} {percent}% of {}\u{1b}[K", bytes(total));
        }
    }
}

/// Takes away what [`progress`] drew.
pub(super) fn clear() {
    if terminal::can_redraw() {
        let _ = write!(io::stderr(), "\r\u{1b}[K");
    }
}

/// Writes an archive.
pub(super) fn export(context: &Context, store: &Store, args: &ExportArgs) -> CommandResult {
    let contents = if args.all {
        Contents { keys: store.node_keys()?, artifacts: Vec::new(), runs: store.run_ids()? }
    } else {
        let wanted = push::here(store, &Index::open(store)?, &args.what)?;
        Contents { keys: wanted.keys, artifacts: wanted.artifacts, runs: wanted.runs }
    };
    let written = archive::export(store, &contents, &args.output, &mut progress("exporting"));
    clear();
    let head = written?;
    if context.json() {
        context::print_json(&json!({"file": args.output, "exported": head}))?;
        return Ok(DONE);
    }
    let size = fs_err::metadata(&args.output)?.len();
    context::print(&format!(
        "{}: {}, {}, {}, {}, {} in {}\n",
        args.output.display(),
        plural(head.nodes, "node record"),
        plural(head.artifacts, "artifact"),
        plural(head.objects, "object"),
        plural(head.runs, "run"),
        bytes(head.bytes),
        bytes(size)
    ))?;
    Ok(DONE)
}

/// Reads an archive.
pub(super) fn import(context: &Context, store: &Store, args: &ImportArgs) -> CommandResult {
    let read = archive::import(store, &args.file, args.dry_run, &mut progress("importing"));
    clear();
    let imported = read?;
    if !args.dry_run {
        let mut index = Index::open(store)?;
        imported.records.iter().for_each(|record| index.add_node(record));
        imported.run_records.iter().for_each(|run| index.add_run(run));
    }
    if !imported.others.is_empty() {
        let what = format!("{} keys had another artifact already, which stays", imported.others.len());
        let notes = imported.others.iter().take(20).map(|(node, stays)| format!("{node}: {}", stays.short()));
        let fault = notes.fold(Diagnostic::warning("cli::other-artifact", what), Diagnostic::note);
        context::complain(&[fault]);
    }
    if context.json() {
        context::print_json(&json!({"file": args.file, "dry_run": args.dry_run, "imported": imported}))?;
        return Ok(DONE);
    }
    if args.dry_run {
        context::print("the archive is whole; nothing was taken from it\n")?;
        return Ok(DONE);
    }
    context::print(&format!(
        "new here: {}, {}, {} ({}), {}\n",
        plural(imported.nodes, "node record"),
        plural(imported.artifacts, "artifact"),
        plural(imported.objects, "object"),
        bytes(imported.bytes),
        plural(imported.runs, "run")
    ))?;
    Ok(DONE)
}
