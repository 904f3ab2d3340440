//! `sami cache ls`: artifacts, a page at a time.

use clap::Args;
use serde_json::{Value, json};

use super::figures::{bytes, clock, count};
use super::table::Table;
use super::{CommandResult, Context, DONE, context};
use crate::store::{Index, Line, Order, Store, Wanted};
use crate::{amount, fs};

/// Types of artifacts.
const TYPES: [&str; 7] = ["dataset", "constitutions", "responses", "scores", "model", "evaluation", "files"];

/// Arguments of `cache ls`.
#[derive(Debug, Clone, Args)]
pub struct LsArgs {
    /// Only artifacts of this type
    #[arg(long = "type", value_name = "TYPE", value_parser = TYPES)]
    pub kind: Option<String>,
    /// Only what a pipeline of this name made
    #[arg(long, value_name = "NAME")]
    pub pipeline: Option<String>,
    /// Only what a node of this name made
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Only artifacts of this size or larger, such as 200MB or 1.5GiB
    #[arg(long, value_name = "SIZE", value_parser = amount::size)]
    pub larger: Option<u64>,
    /// Only artifacts smaller than this
    #[arg(long, value_name = "SIZE", value_parser = amount::size)]
    pub smaller: Option<u64>,
    /// Only what was made in a run that began within this time, such as 12h, 30d or 8w
    #[arg(long, value_name = "TIME", value_parser = amount::time)]
    pub younger: Option<jiff::SignedDuration>,
    /// Only what was made in a run that began longer ago
    #[arg(long, value_name = "TIME", value_parser = amount::time)]
    pub older: Option<jiff::SignedDuration>,
    /// In which order: age (newest first) or size (largest first)
    #[arg(long, value_name = "ORDER", value_parser = order, default_value = "age")]
    pub sort: Order,
    /// How many to leave out at the beginning
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: u64,
    /// How many to list
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub last: u64,
}

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
