//! `sami cache …`: looking into the store and tidying it.

use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};

use super::figures::{bytes, clock, count, some};
use super::page::LISTED;
use super::table::Table;
use super::{CacheCommand, CommandResult, Context, DAMAGED, DONE, archive, artifact, checkout, context, find};
use crate::diag::{Diagnostic, did_you_mean};
use crate::digest::Digest;
use crate::pieces;
use crate::store::{Index, NodeRecord, Store, Use};

/// Dispatches a command on the cache.
pub(crate) fn run(context: &Context, command: &CacheCommand) -> CommandResult {
    let directory = context.cache_directory(None)?;
    let store = &match command {
        // Into a cache that may not be there yet.
        CacheCommand::Import(_) => Store::open(&directory)?,
        _ => Store::open_existing(&directory)?,
    };
    match command {
        CacheCommand::Import(args) => archive::import(context, store, args),
        CacheCommand::Export(args) => archive::export(context, store, args),
        CacheCommand::Ls { kind, last } => list(context, store, kind.as_deref(), *last),
        CacheCommand::Show { id } => artifact::show(context, store, &Index::open(store)?, id),
        CacheCommand::Cat { id, file } => cat(store, id, file.as_deref()),
        CacheCommand::Du => usage(context, store),
        CacheCommand::Verify => verify(context, store),
        CacheCommand::Gc { dry_run, keep_runs } => gc(context, store, *keep_runs, *dry_run),
        CacheCommand::Rebuild => rebuild(context, store),
        CacheCommand::Checkout { id, dir, link, force } => checkout::run(context, store, id, dir, *link, *force),
    }
}

/// What is known of an artifact at a glance.
struct Line {
    id: Digest,
    kind: String,
    size: u64,
    files: usize,
    maker: Option<NodeRecord>,
    /// Who took it, if no one made it.
    user: Option<Use>,
}

fn list(context: &Context, store: &Store, kind: Option<&str>, last: usize) -> CommandResult {
    let index = Index::open(store)?;
    let mut lines = Vec::new();
    for id in store.artifact_ids()? {
        // `verify` tells of manifests that are damaged.
        let Ok(manifest) = store.manifest(&id) else { continue };
        if kind.is_none_or(|kind| manifest.kind == kind) {
            let maker = index.makers(&id).first().map(|maker| store.node(&maker.key)).transpose()?.flatten();
            let user = if maker.is_none() { index.users(&id).into_iter().next() } else { None };
            let (size, files) = (manifest.size(), manifest.files.len());
            lines.push(Line { id, size, files, kind: manifest.kind, maker, user });
        }
    }
    // By run, then time within it: ids of runs are in order even if the clock was not.
    let age = |line: &Line| line.maker.as_ref().map(|maker| (maker.run.clone(), maker.started.clone()));
    lines.sort_by_cached_key(|line| std::cmp::Reverse((age(line), line.id)));
    let all = lines.len();
    lines.truncate(last);
    if context.json() {
        let rows: Vec<_> = lines.iter().map(line_json).collect();
        context::print_json(&rows)?;
        return Ok(DONE);
    }
    let mut table = Table::new(["artifact", "type", "size", "files", "made by", "when"], &[2, 3]);
    for line in &lines {
        let (node, when) = match (&line.maker, &line.user) {
            (Some(maker), _) => (format!("{}/{}", maker.pipeline, maker.node), clock(&maker.started)),
            (None, Some(user)) => (format!("(source of {}/{})", user.pipeline, user.node), String::new()),
            (None, None) => ("(source)".to_owned(), String::new()),
        };
        table.row([line.id.short(), line.kind.clone(), bytes(line.size), line.files.to_string(), node, when]);
    }
    let mut text = table.text();
    if table.is_empty() {
        text.replace_range(.., "no artifacts\n");
    } else if all > lines.len() {
        text.push_str(&format!("{} more; `--last {all}` lists all\n", all - lines.len()));
    }
    context::print(&text)?;
    Ok(DONE)
}

fn line_json(line: &Line) -> Value {
    let maker = line.maker.as_ref();
    json!({
        "artifact": line.id,
        "type": line.kind,
        "size": line.size,
        "files": line.files,
        "node": maker.map(|maker| &maker.node),
        "pipeline": maker.map(|maker| &maker.pipeline),
        "key": maker.map(|maker| maker.key),
        "run": maker.map(|maker| &maker.run),
        "started": maker.map(|maker| &maker.started),
    })
}

fn cat(store: &Store, what: &str, file: Option<&str>) -> CommandResult {
    let id = find::artifact(store, &Index::open(store)?, what)?;
    let files = store.files(&id)?;
    let names = || files.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let Some(file) = file.map(str::to_owned).or(store.main_file(&id)?) else {
        return Err(Diagnostic::error("cli::which-file", format!("artifact {} has {} files", id.short(), files.len()))
            .note(format!("they are {}", names()))
            .help("name one of them after the id")
            .into());
    };
    let Some(path) = files.get(&file) else {
        let fault = Diagnostic::error("cli::no-such-file", format!("artifact {} has no file `{file}`", id.short()));
        return Err(match did_you_mean(&file, files.keys().map(String::as_str)) {
            Some(near) => fault.help(format!("a file with a similar name exists: `{near}`")),
            None => fault.note(format!("its files are {}", names())),
        }
        .into());
    };
    let mut file = pieces::open(path)?;
    context::write_out(|stdout| io::copy(&mut file, stdout).map(drop))?;
    Ok(DONE)
}

fn usage(context: &Context, store: &Store) -> CommandResult {
    let shares = store.usage()?;
    let total = shares.iter().map(|share| share.bytes).sum();
    if context.json() {
        context::print_json(&json!({"bytes": total, "parts": shares}))?;
        return Ok(DONE);
    }
    let mut table = Table::new(["part", "files", "size"], &[1, 2]);
    for share in &shares {
        table.row([share.part.clone(), count(share.files), bytes(share.bytes)]);
    }
    table.row(["total".to_owned(), count(shares.iter().map(|share| share.files).sum()), bytes(total)]);
    context::print(&table.text())?;
    Ok(DONE)
}

fn verify(context: &Context, store: &Store) -> CommandResult {
    let terminal = io::stderr().is_terminal();
    let mut shown = 0;
    let seen = store.verify(&mut |done, total| {
        let percent = done * 100 / total.max(1);
        if terminal && percent != shown {
            shown = percent;
            // Progress that cannot be shown is no failure.
            let _ = write!(io::stderr(), "\rverifying {percent}% of {}", bytes(total));
        }
    })?;
    if terminal {
        let _ = write!(io::stderr(), "\r\u{1b}[K");
    }
    let code = if seen.is_whole() { DONE } else { DAMAGED };
    if context.json() {
        context::print_json(&json!({"ok": seen.is_whole(), "verification": seen}))?;
        return Ok(code);
    }
    let mut text = String::new();
    for finding in &seen.findings {
        let nodes = if finding.nodes.is_empty() { "no node".to_owned() } else { some(&finding.nodes, ", ", LISTED) };
        text.push_str(&format!("{} {}: {}  (of {nodes})\n", finding.state, finding.what, finding.path.display()));
    }
    text.push_str(&format!(
        "{} objects ({}), {} artifacts, {} node records: ",
        count(seen.objects),
        bytes(seen.bytes),
        count(seen.artifacts),
        count(seen.nodes)
    ));
    match seen.findings.len() {
        0 => text.push_str("all whole\n"),
        found => text.push_str(&format!("{found} not as they should be; `sami run` makes them again\n")),
    }
    context::print(&text)?;
    Ok(code)
}

fn gc(context: &Context, store: &Store, keep_runs: usize, dry_run: bool) -> CommandResult {
    let garbage = store.gc(keep_runs, dry_run)?;
    if context.json() {
        context::print_json(&json!({"dry_run": dry_run, "removed": garbage}))?;
        return Ok(DONE);
    }
    context::print(&format!(
        "{} {}: {} artifacts, {} objects, {} node records, {} runs, {} other files\n",
        if dry_run { "would free" } else { "freed" },
        bytes(garbage.bytes),
        garbage.artifacts,
        garbage.objects,
        garbage.nodes,
        garbage.runs,
        garbage.files
    ))?;
    Ok(DONE)
}

fn rebuild(context: &Context, store: &Store) -> CommandResult {
    let index = Index::rebuild(store)?;
    let (nodes, runs) = (index.artifacts_by_key().len(), store.run_ids()?.len());
    if context.json() {
        context::print_json(&json!({"nodes": nodes, "runs": runs}))?;
    } else {
        context::print(&format!("index made again from {nodes} node records and {runs} runs\n"))?;
    }
    Ok(DONE)
}
