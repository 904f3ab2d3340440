//! `sami cache pin`, `unpin`, `pins`: artifacts that gc keeps.

use serde_json::json;

use super::figures::bytes;
use super::table::Table;
use super::{CommandResult, Context, DONE, context, find};
use crate::store::{Index, Store};

/// Pins an artifact, or undoes that.
pub(super) fn pin(context: &Context, store: &Store, what: &str, pinned: bool) -> CommandResult {
    // One that is gone can still be unpinned, by its whole id.
    let id = match what.parse() {
        Ok(id) if !pinned => id,
        _ => find::artifact(store, &Index::open(store)?, what)?,
    };
    let before = store.pins()?.contains(&id);
    if pinned {
        store.pin(&id)?;
    } else {
        store.unpin(&id)?;
    }
    if context.json() {
        context::print_json(&json!({"artifact": id, "pinned": pinned, "changed": before != pinned}))?;
        return Ok(DONE);
    }
    let did = match (before, pinned) {
        (false, true) => "pinned: gc keeps it, and what its nodes took",
        (true, true) => "was pinned already",
        (true, false) => "unpinned",
        (false, false) => "was not pinned",
    };
    context::print(&format!("{} {did}\n", id.short()))?;
    Ok(DONE)
}

/// Lists what is pinned.
pub(super) fn list(context: &Context, store: &Store) -> CommandResult {
    let pins = store.pins()?;
    let index = Index::open(store)?;
    if context.json() {
        context::print_json(&pins)?;
        return Ok(DONE);
    }
    let mut table = Table::new(["artifact", "type", "size", "made by"], &[2]);
    for id in &pins {
        let (kind, size) = match store.manifest(id) {
            Ok(manifest) => (manifest.kind.clone(), bytes(manifest.size())),
            Err(_) => ("not in the cache".to_owned(), String::new()),
        };
        let maker = index.makers(id).into_iter().next();
        let maker = maker.map_or_else(String::new, |maker| format!("{}/{}", maker.pipeline, maker.node));
        table.row([id.short(), kind, size, maker]);
    }
    context::print(&if table.is_empty() { "nothing is pinned\n".to_owned() } else { table.text() })?;
    Ok(DONE)
}
