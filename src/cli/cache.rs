//! `sami cache …`: looking into the store and tidying it.

use std::io;

use serde_json::json;

use super::{
    CacheCommand, CommandResult, Context, DONE, archive, artifact, checkout, context, du, find, forget, gc, ls, memo,
    pin, verify,
};
use crate::diag::{Diagnostic, did_you_mean};
use crate::pieces;
use crate::store::{Index, Store};

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
        CacheCommand::Ls(args) => ls::run(context, store, args),
        CacheCommand::Show { id } => artifact::show(context, store, &Index::open(store)?, id),
        CacheCommand::Cat { id, file } => cat(store, id, file.as_deref()),
        CacheCommand::Rows(args) => memo::run(context, store, args),
        CacheCommand::Du { what } => du::run(context, store, what),
        CacheCommand::Forget(args) => forget::run(context, store, args),
        CacheCommand::Verify(args) => verify::run(context, store, args),
        CacheCommand::Gc(args) => gc::run(context, store, args),
        CacheCommand::Pin { id } => pin::pin(context, store, id, true),
        CacheCommand::Unpin { id } => pin::pin(context, store, id, false),
        CacheCommand::Pins => pin::list(context, store),
        CacheCommand::Rebuild => rebuild(context, store),
        CacheCommand::Checkout { id, dir, link, force } => checkout::run(context, store, id, dir, *link, *force),
    }
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

fn rebuild(context: &Context, store: &Store) -> CommandResult {
    let index = Index::rebuild(store)?;
    let (nodes, runs) = (index.node_count(), store.run_ids()?.len());
    if context.json() {
        context::print_json(&json!({"nodes": nodes, "runs": runs}))?;
    } else {
        context::print(&format!("index made again from {nodes} node records and {runs} runs\n"))?;
    }
    Ok(DONE)
}
