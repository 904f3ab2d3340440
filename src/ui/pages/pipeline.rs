//! `/pipeline`: the graph of a pipeline, drawn and as a list, with the state of each node.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::inspect::dag::{Dag, Folded, Group, Item, Open};
use crate::inspect::figures;
use crate::plot::dag::{Block, picture};
use crate::ui::html::{Page, Tab};
use crate::ui::query::{Query, encode};
use crate::ui::{Problem, Site};

/// Nodes in a page of the list.
const LISTED: usize = 200;
/// Iterations that have a button each.
const BUTTONS: usize = 40;

/// A button that folds or unfolds an iteration.
#[derive(Debug, Serialize)]
struct Button {
    word: String,
    state: &'static str,
    href: String,
    open: bool,
}

/// The page.
pub(super) fn page(site: &Site, query: &Query) -> Result<Page, Problem> {
    let (store, mut index) = site.open()?;
    let known = site.known_as(&store, &index, query.need("name")?)?;
    let planned = site.planned(&store, &mut index, &known, query.get("params") == Some("run"))?;
    let dag = &planned.dag;
    let open = wanted(query)?;
    let folded = dag.fold(&open);
    let (nodes, found, first) = listed(dag, query)?;
    let title = planned.pipeline.as_ref().map_or(known.name.as_str(), |pipeline| pipeline.name.as_str());
    let description = planned.pipeline.as_ref().map(|pipeline| pipeline.description.clone()).unwrap_or_default();
    let number = dag.items.iter().filter(|item| !item.is_source).count();
    let page = Page::new(Tab::Pipeline, title, "pipeline.html")
        .with("name", &known.name)
        .with("description", &description)
        .with("file", &known.file)
        .with("run", &known.latest.as_ref().map(|run| run.run.as_str()))
        .with("goes_on", &planned.story.is_some())
        .with("differs", &planned.differs)
        .with("as_run", &planned.as_run)
        .with("problem", &planned.problem)
        .with("planned", &planned.plan.is_some())
        .with("counts", &dag.counts())
        .with("number", &number)
        .with("buttons", &buttons(dag, &folded, query))
        .with("iterations", &dag.iterations().len())
        .with("too_much", &folded.too_much)
        .with("cells", &has_cells(dag, &folded))
        .with("all", &query.with("all", "1"))
        .with("nodes", &nodes)
        .with("found", &found)
        .with("first", &first)
        .with("last", &(first + nodes.len()))
        .with("state", &query.get("state"))
        .with("text", &query.get("q"))
        .with("open", &query.get("open"))
        .with("before", &first.checked_sub(LISTED).map(|skip| query.with("skip", &skip.to_string())))
        .with("after", &(first + LISTED < found).then(|| query.with("skip", &(first + LISTED).to_string())))
        .picture("picture", drawn(title, dag, &folded, query));
    // To free ten thousand nodes one by one takes as long as to plan them; but this process goes on, so they are freed.
    Ok(page)
}

/// What is asked to be unfolded.
fn wanted(query: &Query) -> Result<Open, Problem> {
    let iterations = match query.get("open") {
        None => None,
        Some("none") => Some(BTreeSet::new()),
        Some(list) => {
            let numbers: Result<_, _> = list.split(',').map(str::parse).collect();
            Some(numbers.map_err(|_| Problem::request(format!("`open={list}` is no list of iterations")))?)
        }
    };
    Ok(Open { all: query.get("all").is_some(), iterations, base: query.get("cells").map(str::to_owned) })
}

fn drawn(title: &str, dag: &Dag, folded: &Folded, query: &Query) -> String {
    let blocks: Vec<Block> =
        folded.boxes.iter().map(|(group, members)| block(dag, folded, group, members, query)).collect();
    picture(&format!("The graph of {title}"), &blocks, &folded.arrows)
}

fn block(dag: &Dag, folded: &Folded, group: &Group, members: &[usize], query: &Query) -> Block {
    if let Group::One(at) = group {
        return single(&dag.items[*at], query);
    }
    let shares = dag.counts_of(members);
    let told: Vec<String> =
        shares.iter().map(|(state, count)| format!("{} {state}", figures::count(*count as u64))).collect();
    let told = told.join(" · ");
    let (name, href) = match group {
        Group::Cells(base, iteration) => {
            let name = iteration.map_or_else(|| base.clone(), |iteration| format!("{base}@{iteration}"));
            (format!("{name} ×{}", figures::count(members.len() as u64)), query.with("cells", base))
        }
        Group::Iterations(first, last) => {
            let name =
                if first == last { format!("iteration {first}") } else { format!("iterations {first}–{last}") };
            let is_done = |at: &&usize| matches!(dag.items[**at].state, "fresh" | "ran" | "hit" | "");
            let worth =
                members.iter().find(|at| !is_done(at)).and_then(|at| dag.items[*at].iteration).unwrap_or(*first);
            (name, toggled(&folded.open, worth, query))
        }
        Group::One(_) => (String::new(), String::new()),
    };
    Block {
        title: format!("{name}: {told}; unfold"),
        what: if told.is_empty() { figures::plural(members.len() as u64, "node") } else { told },
        state: shares.first().map_or("", |(state, _)| *state),
        href: Some(format!("/pipeline?{href}")),
        name,
        shares,
        ..Block::default()
    }
}

fn single(item: &Item, query: &Query) -> Block {
    let what = if item.state.is_empty() { item.kind.clone() } else { format!("{} · {}", item.kind, item.state) };
    let done = item.share.map(|share| format!(", {:.0} % done", 100.0 * share)).unwrap_or_default();
    let why = if item.why.is_empty() { String::new() } else { format!(": {}", item.why) };
    Block {
        title: format!("{} ({what}{done}){why}", item.name),
        name: item.name.clone(),
        what: item.share.map_or_else(|| what.clone(), |share| format!("{what} {:.0} %", 100.0 * share)),
        state: item.state,
        href: (!item.is_source).then(|| node_address(query, &item.name)),
        done: item.share,
        is_source: item.is_source,
        ..Block::default()
    }
}

/// The address of a node's page.
pub(super) fn node_address(query: &Query, node: &str) -> String {
    let params = query.get("params").map(|params| ("params", params));
    let pairs = [("pipeline", query.get("name").unwrap_or_default()), ("name", node)].into_iter().chain(params);
    format!("/node?{}", encode(pairs))
}

/// The rest of an address with an iteration opened, or closed if it is open.
fn toggled(open: &BTreeSet<u64>, iteration: u64, query: &Query) -> String {
    let mut next = open.clone();
    if !next.remove(&iteration) {
        next.insert(iteration);
    }
    let list: Vec<String> = next.iter().map(u64::to_string).collect();
    let query =
        Query::parse(&query.with("open", if list.is_empty() { "none".to_owned() } else { list.join(",") }.as_str()));
    query.without("all")
}

fn buttons(dag: &Dag, folded: &Folded, query: &Query) -> Vec<Button> {
    let iterations = dag.iterations();
    let button = |(iteration, members): (&u64, &Vec<usize>)| Button {
        word: iteration.to_string(),
        state: dag.counts_of(members).first().map_or("", |(state, _)| *state),
        href: format!("/pipeline?{}", toggled(&folded.open, *iteration, query)),
        open: folded.open.contains(iteration),
    };
    iterations.iter().take(BUTTONS).map(button).collect()
}

/// Whether cells are folded, or those of one node are not.
fn has_cells(dag: &Dag, folded: &Folded) -> bool {
    folded.boxes.iter().any(|(group, _)| matches!(group, Group::Cells(..))) && dag.items.iter().any(|item| item.is_cell)
}

/// A page of the nodes that are looked for, how many these are in all, and how many are before.
fn listed<'a>(dag: &'a Dag, query: &Query) -> Result<(Vec<&'a Item>, usize, usize), Problem> {
    let (state, text) = (query.get("state"), query.get("q").map(str::to_lowercase));
    let is_wanted = |item: &&Item| {
        !item.is_source
            && state.is_none_or(|state| item.state == state)
            && text.as_ref().is_none_or(|text| {
                [&item.name, &item.kind, &item.why].iter().any(|told| told.to_lowercase().contains(text.as_str()))
            })
    };
    let all: Vec<&Item> = dag.items.iter().filter(is_wanted).collect();
    let skip = query.number("skip", 0_usize)?.min(all.len());
    Ok((all.iter().skip(skip).take(LISTED).copied().collect(), all.len(), skip))
}
