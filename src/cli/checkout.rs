//! `sami cache checkout`: an artifact's files, where one wants them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::figures::{plural, some};
use super::page::LISTED;
use super::{CommandResult, Context, DONE, Linking, context, find};
use crate::diag::Diagnostic;
use crate::store::{Health, Index, Link, Store, StoreError};

/// Puts the files of an artifact, each verified, into a directory.
pub(super) fn run(
    context: &Context,
    store: &Store,
    what: &str,
    directory: &Path,
    link: Linking,
    force: bool,
) -> CommandResult {
    let mut index = Index::open(store)?;
    let id = find::artifact(store, &index, what)?;
    if !force && !Store::is_free(directory)? {
        let what = format!("`{}` is not an empty directory", directory.display());
        return Err(Diagnostic::error("cli::not-empty", what)
            .help("name a directory that is new or empty, or replace files of the same names with `--force`")
            .into());
    }
    let mut stamps = index.stamps();
    let health = store.health(&id, &mut stamps)?;
    index.save_stamps(&stamps);
    let wrong = |file: &str, how| {
        Err(StoreError::Damaged { what: format!("`{file}` of artifact {} {how}", id.short()) }.into())
    };
    match health {
        Health::Whole => {}
        Health::Missing(file) => return wrong(&file, "is not there"),
        Health::Damaged(file) => return wrong(&file, "is not what it was"),
    }
    let made = store.checkout(&id, directory, link.into())?;
    if made.values().any(|link| *link == Link::Hard) {
        tracing::warn!(
            "hard links are the cache's own files: who writes to one of them damages the cache, which then makes it again"
        );
    }
    let names: Vec<&String> = made.keys().collect();
    if context.json() {
        context::print_json(&json!({"artifact": id, "directory": directory, "files": names, "how": made}))?;
    } else {
        let text = format!("{}: {} ({})\n", directory.display(), some(&names, ", ", LISTED), ways(&made));
        context::print(&text)?;
    }
    Ok(DONE)
}

/// How the files got there, in words.
fn ways(made: &BTreeMap<String, Link>) -> String {
    let mut counts: BTreeMap<Link, u64> = BTreeMap::new();
    for link in made.values() {
        *counts.entry(*link).or_default() += 1;
    }
    let word = |link: Link| match link {
        Link::Reflink => "cloned",
        Link::Hard => "linked",
        Link::Symlink => "linked symbolically",
        Link::Copy | Link::Auto => "copied",
    };
    let parts: Vec<String> = match counts.len() {
        1 => counts.keys().map(|link| word(*link).to_owned()).collect(),
        _ => counts.iter().map(|(link, count)| format!("{} {}", plural(*count, "file"), word(*link))).collect(),
    };
    parts.join(", ")
}

impl From<Linking> for Link {
    fn from(linking: Linking) -> Self {
        match linking {
            Linking::Auto => Self::Auto,
            Linking::Reflink => Self::Reflink,
            Linking::Hard => Self::Hard,
            Linking::Symlink => Self::Symlink,
            Linking::Copy => Self::Copy,
        }
    }
}
