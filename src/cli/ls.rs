//! `sami cache ls`: artifacts, a page at a time.

use serde_json::{Value, json};

use super::figures::{bytes, clock, count};
use super::table::Table;
use super::{CommandResult, Context, DONE, LsArgs, context};
use crate::fs;
use crate::store::{Index, Line, Order, Store, Wanted};

/// Lists artifacts.
pub(super) fn run(context: &Context, store: &Store, args: &LsArgs) -> CommandResult {
    let mut index = Index::open(store)?;
    index.catch_up(store)?;
    let ago = |time: &jiff::SignedDuration| fs::now().checked_sub(*time).unwrap_or(jiff::Timestamp::MIN);
    let page = index.list(&Wanted {
        kind: args.kind.clone(),
        pipeline: args.pipeline.clone(),
        node: args.node.clone(),
        like: None,
        larger: args.larger,
        smaller: args.smaller,
        since: args.younger.as_ref().map(ago),
        before: args.older.as_ref().map(ago),
        order: args.sort,
        skip: args.skip,
        last: args.last,
    });
    if context.json() {
        let rows: Vec<_> = page.lines.iter().map(|line| line_json(store, line)).collect();
        context::print_json(&rows)?;
        return Ok(DONE);
    }
    let mut table = Table::new(["artifact", "type", "size", "files", "made by", "when"], &[2, 3]);
    for line in &page.lines {
        let (node, when) = match &line.maker {
            Some(maker) => (format!("{}/{}", maker.pipeline, maker.node), clock(&maker.started)),
            None => match index.users(&line.id).first() {
                Some(user) => (format!("(source of {}/{})", user.pipeline, user.node), String::new()),
                None => ("(source)".to_owned(), String::new()),
            },
        };
        table.row([line.id.short(), line.kind.clone(), bytes(line.size), line.files.to_string(), node, when]);
    }
    let mut text = if table.is_empty() { "no artifacts\n".to_owned() } else { table.text() };
    let seen = args.skip + page.lines.len() as u64;
    match (page.more, page.more_than) {
        (0, _) => {}
        (more, false) => text.push_str(&format!("{} more; `--last {}` lists all\n", count(more), seen + more)),
        (more, true) => text.push_str(&format!("more than {} more; `--skip {seen}` goes on\n", count(more - 1))),
    }
    context::print(&text)?;
    Ok(DONE)
}

fn line_json(store: &Store, line: &Line) -> Value {
    let maker = line.maker.as_ref();
    let record = maker.and_then(|maker| store.node(&maker.key).ok().flatten());
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
        "class": record.and_then(|record| record.class),
    })
}

/// An order of artifacts, as typed.
pub(super) fn order(text: &str) -> Result<Order, String> {
    match text {
        "age" => Ok(Order::Age),
        "size" => Ok(Order::Size),
        _ => Err("it is `age` (newest first) or `size` (largest first)".to_owned()),
    }
}
