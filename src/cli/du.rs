//! `sami cache du`: what takes how much room, and what a deletion would free.

use serde_json::json;

use super::figures::{bytes, count, plural, some};
use super::page::{LISTED, Page};
use super::selection::select;
use super::table::Table;
use super::{CommandResult, Context, DONE, context};
use crate::store::{Forgetting, Index, Share, Store};

/// Shows what takes how much room; of `what`, if that names something, what it takes and what forgetting it would free.
pub(super) fn run(context: &Context, store: &Store, what: &[String]) -> CommandResult {
    let mut index = Index::open(store)?;
    if what.is_empty() {
        let usage = store.shares(&mut index)?;
        if context.json() {
            context::print_json(&usage)?;
            return Ok(DONE);
        }
        let mut text = shares("part", "files", &usage.parts, Some(usage.bytes));
        for (title, list) in [("pipeline", &usage.pipelines), ("kind", &usage.kinds)] {
            // One line would say what the total says.
            if list.len() > 1 {
                text.push('\n');
                text.push_str(&shares(title, "artifacts", list, None));
            }
        }
        context::print(&text)?;
        return Ok(DONE);
    }
    index.catch_up(store)?;
    let selection = select(store, &index, what)?;
    let forgetting = store.preview_forget(&mut index, &selection)?;
    if context.json() {
        context::print_json(&json!({"what": what, "bytes": forgetting.bytes, "frees": forgetting.plan.garbage,
            "types": forgetting.plan.types, "largest": forgetting.plan.largest, "nodes": forgetting.nodes,
            "pinned": forgetting.pinned}))?;
    } else {
        context::print(&page(&what.join(" "), &forgetting))?;
    }
    Ok(DONE)
}

fn page(what: &str, forgetting: &Forgetting) -> String {
    let mut page = Page::default();
    page.line("of", what);
    page.line("takes", &bytes(forgetting.bytes));
    let garbage = &forgetting.plan.garbage;
    let counts = [
        (garbage.artifacts, "artifact"),
        (garbage.objects, "object"),
        (garbage.nodes, "node record"),
        (garbage.runs, "run"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(number, _)| *number > 0).map(|(number, noun)| plural(*number, noun)).collect();
    let frees = if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") };
    page.line("frees", &format!("{}: {frees}", bytes(garbage.bytes)));
    if garbage.bytes < forgetting.bytes {
        page.line("", "the rest is needed by others, pinned or in use");
    }
    page.line("nodes", &some(&forgetting.nodes, ", ", LISTED));
    if !forgetting.pinned.is_empty() {
        let pinned: Vec<String> = forgetting.pinned.iter().map(crate::digest::Digest::short).collect();
        page.line("pinned", &some(&pinned, ", ", LISTED));
    }
    page.into_text()
}

fn shares(title: &str, files: &str, list: &[Share], total: Option<u64>) -> String {
    let mut table = Table::new([title, files, "size"], &[1, 2]);
    for share in list {
        table.row([share.part.clone(), count(share.files), bytes(share.bytes)]);
    }
    if let Some(total) = total {
        table.row(["total".to_owned(), count(list.iter().map(|share| share.files).sum()), bytes(total)]);
    }
    table.text()
}
