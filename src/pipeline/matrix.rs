//! `matrix = { lr = [1e-7, 5e-7], seed = [0, 1] }`: one node per combination, and of all that depends on it.
//!
//! A node's cells are the natural join of its own matrix and the cells of what it refers to: variables of the same
//! name are one variable. So in a loop, `finetune@2[lr=1e-7]` goes on from `finetune@1[lr=1e-7]` and from no other.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::RandomState;
use indexmap::IndexSet;

use super::declare::Declarations;
use super::expand::{Draft, MOST_NODES};
use super::findings::Findings;
use super::params::is_identifier;
use super::reference::{Cell, Resolved, canonical};
use super::tree::{Tree, TreeValue};
use crate::diag::Diagnostic;

/// A variable of a matrix and its values, each with its form in names.
#[derive(Debug)]
pub(super) struct Axis {
    pub(super) variable: String,
    pub(super) values: Vec<(String, Tree)>,
    pub(super) span: Range<usize>,
}

/// Reads a `matrix` table; what is wrong is reported.
pub(super) fn axes(what: &str, tree: &Tree, findings: &mut Findings) -> Option<Vec<Axis>> {
    let source = Arc::clone(&findings.source);
    let mut fault = |span: &Range<usize>, label: &str| {
        findings.add(
            Diagnostic::error("pipeline::bad-matrix", format!("the matrix of {what} does not fit"))
                .label(&source, span.clone(), label)
                .help("write `matrix = { variable = [value, …], … }`, each list with different values"),
        );
    };
    let Some(table) = tree.table() else {
        if !matches!(tree.value, TreeValue::Hole) {
            fault(&tree.span, "expected a table of lists");
        }
        return None;
    };
    let mut axes = Vec::with_capacity(table.len());
    let mut sound = !table.is_empty();
    if !sound {
        fault(&tree.span, "no variables");
    }
    for (variable, entry) in table {
        let TreeValue::Array(items) = &entry.value.value else {
            if !matches!(entry.value.value, TreeValue::Hole) {
                fault(&entry.value.span, "expected a list");
            }
            sound = false;
            continue;
        };
        if !is_identifier(variable) || variable == "iteration" {
            fault(&entry.key_span, "cannot be used in `${…}`: use letters, digits and `_`");
            sound = false;
        }
        if items.is_empty() {
            fault(&entry.value.span, "an empty list");
            sound = false;
        }
        let mut values: Vec<(String, Tree)> = Vec::with_capacity(items.len());
        // There may be thousands: a value is compared with those alone that look like it.
        let mut alike: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, item) in items.iter().enumerate() {
            let alike = alike.entry(looks(&item.value)).or_default();
            if alike.iter().any(|earlier| items[*earlier].value == item.value) {
                fault(&item.span, "given twice");
                sound = false;
            }
            alike.push(at);
            values.push((value_name(item, at), item.clone()));
        }
        axes.push(Axis { variable: variable.clone(), values, span: entry.key_span.clone() });
    }
    sound.then_some(axes)
}

/// What equal values have in common, and few others.
fn looks(value: &TreeValue) -> String {
    match value {
        TreeValue::String(text) => text.clone(),
        TreeValue::Integer(number) => number.to_string(),
        // 0 and -0 are equal.
        TreeValue::Float(number) => (number + 0.0).to_string(),
        TreeValue::Boolean(flag) => flag.to_string(),
        _ => String::new(),
    }
}

/// How a value stands in a node's name; texts that would not read well, lists and tables are numbered.
fn value_name(value: &Tree, at: usize) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-.+".contains(letter);
    match &value.value {
        TreeValue::Integer(number) => number.to_string(),
        TreeValue::Float(number) => format!("{number:?}"),
        TreeValue::Boolean(flag) => flag.to_string(),
        TreeValue::String(text) if !text.is_empty() && text.len() <= 40 && text.chars().all(plain) => canonical(text),
        _ => format!("#{at}"),
    }
}

/// The name of a node's cell.
pub(super) fn name(base: &str, cell: &Cell) -> String {
    if cell.is_empty() {
        return base.to_owned();
    }
    format!("{base}[{}]", text(cell))
}

fn text(cell: &Cell) -> String {
    cell.iter().map(|(variable, value)| format!("{variable}={value}")).collect::<Vec<_>>().join(",")
}

/// A declaration and an iteration.
type Group = (usize, usize);

/// The cells of every draft, and the nodes they become.
pub(super) struct Cells {
    /// `None` where no draft has any.
    by_draft: Option<Vec<Vec<Cell>>>,
    groups: HashMap<Group, GroupCells, RandomState>,
    nodes: usize,
}

/// What a draft has that has no cells.
const ALONE: &[Cell] = &[Cell::new()];

struct GroupCells {
    /// The first of its nodes; where it has no variables, the only one.
    first: usize,
    /// Boxed, as most have none.
    cells: Option<Box<Variables>>,
}

#[derive(Default)]
struct Variables {
    /// Its sets of variables (mostly one), sorted.
    variables: Vec<Vec<String>>,
    /// Node by cell, the cell's variables sorted.
    nodes: HashMap<Cell, usize>,
}

impl Cells {
    /// How many nodes there are.
    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    /// The cells of a draft.
    pub(super) fn of(&self, draft: usize) -> &[Cell] {
        self.by_draft.as_ref().map_or(ALONE, |cells| &cells[draft])
    }

    /// The node of a group that a reference from a cell means.
    pub(super) fn find(&self, group: Group, fixed: &Cell, from: &Cell) -> Option<usize> {
        let group = self.groups.get(&group)?;
        let Some(cells) = &group.cells else { return Some(group.first) };
        for variables in &cells.variables {
            let wanted: Option<Cell> = variables
                .iter()
                .map(|variable| fixed.iter().chain(from).find(|(name, _)| name == variable).cloned())
                .collect();
            if let Some(&node) = wanted.as_ref().and_then(|cell| cells.nodes.get(cell)) {
                return Some(node);
            }
        }
        // Only in a cycle, which is reported elsewhere, can a cell be without its counterpart.
        Some(group.first)
    }

    fn new(by_draft: Option<Vec<Vec<Cell>>>, drafts: &[Draft]) -> Self {
        let groups = HashMap::with_capacity_and_hasher(drafts.len(), RandomState::default());
        let mut all = Self { by_draft, groups, nodes: 0 };
        let Self { by_draft, groups, nodes } = &mut all;
        for (at, draft) in drafts.iter().enumerate() {
            let cells = by_draft.as_ref().map_or(ALONE, |cells| &cells[at]);
            let group = groups
                .entry((draft.declaration, draft.iteration))
                .or_insert_with(|| GroupCells { first: *nodes, cells: None });
            for cell in cells {
                let node = *nodes;
                *nodes += 1;
                if cell.is_empty() && cells.len() == 1 {
                    continue;
                }
                let group = group.cells.get_or_insert_default();
                let mut sorted = cell.clone();
                sorted.sort();
                let variables: Vec<String> = sorted.iter().map(|(name, _)| name.clone()).collect();
                if !group.variables.contains(&variables) {
                    group.variables.push(variables);
                }
                group.nodes.insert(sorted, node);
            }
        }
        all
    }
}

/// Finds the cells of all drafts. `None` if there would be too many.
pub(super) fn cells(drafts: &[Draft], declared: &Declarations, findings: &mut Findings) -> Option<Cells> {
    if drafts.iter().all(|draft| draft.own.is_empty()) {
        // A cell fixed by a reference where there is none is still wrong.
        for draft in drafts {
            for (_, span, resolved) in &draft.references {
                if let Some(Resolved::Group { declaration, fixed, .. }) = resolved
                    && !fixed.is_empty()
                {
                    no_such_cell(draft, *declaration, fixed, &[], span, declared, findings);
                }
            }
        }
        return Some(Cells::new(None, drafts));
    }
    let mut cells: Vec<Vec<Cell>> = drafts.iter().map(|draft| vec![draft.own.clone()]).collect();
    let mut members: HashMap<Group, Vec<usize>> = HashMap::new();
    for (at, draft) in drafts.iter().enumerate() {
        members.entry((draft.declaration, draft.iteration)).or_default().push(at);
    }
    let mut total = 0usize;
    for group in in_order(drafts, &members) {
        for &at in &members[&group] {
            let draft = &drafts[at];
            let mut joined = vec![draft.own.clone()];
            let mut met: IndexSet<(Group, &Cell)> = IndexSet::new();
            for (_, span, resolved) in &draft.references {
                let Some(Resolved::Group { declaration, iteration, fixed }) = resolved else { continue };
                let target = (*declaration, *iteration);
                let Some(sources) = members.get(&target) else { continue };
                if !met.insert((target, fixed)) {
                    continue;
                }
                let all: Vec<&Cell> = sources.iter().flat_map(|&source| &cells[source]).collect();
                let part = project(&all, fixed);
                if part.is_empty() {
                    no_such_cell(draft, *declaration, fixed, &all, span, declared, findings);
                    continue;
                }
                let product = join(&joined, &part)?;
                if product.is_empty() {
                    disjoint(draft, *declaration, span, declared, findings);
                    continue;
                }
                joined = product;
            }
            total = total.saturating_add(joined.len());
            if total > MOST_NODES {
                return None;
            }
            cells[at] = joined;
        }
    }
    Some(Cells::new(Some(cells), drafts))
}

/// All groups, each after those that it refers to; members of a cycle, which is reported elsewhere, come last.
fn in_order(drafts: &[Draft], members: &HashMap<Group, Vec<usize>>) -> Vec<Group> {
    let groups: IndexSet<Group> = drafts.iter().map(|draft| (draft.declaration, draft.iteration)).collect();
    let mut waiting = vec![0usize; groups.len()];
    let mut dependants = vec![Vec::new(); groups.len()];
    for (at, group) in groups.iter().enumerate() {
        let mut inputs = IndexSet::new();
        for (_, _, resolved) in members[group].iter().flat_map(|&draft| &drafts[draft].references) {
            if let Some(Resolved::Group { declaration, iteration, .. }) = resolved
                && let Some(input) = groups.get_index_of(&(*declaration, *iteration))
            {
                inputs.insert(input);
            }
        }
        waiting[at] = inputs.len();
        inputs.into_iter().for_each(|input| dependants[input].push(at));
    }
    let mut order = Vec::with_capacity(groups.len());
    let mut done = vec![false; groups.len()];
    let mut ready: VecDeque<usize> = (0..groups.len()).filter(|&at| waiting[at] == 0).collect();
    while let Some(at) = ready.pop_front() {
        order.push(groups[at]);
        done[at] = true;
        for &dependant in &dependants[at] {
            waiting[dependant] -= 1;
            if waiting[dependant] == 0 {
                ready.push_back(dependant);
            }
        }
    }
    order.extend((0..groups.len()).filter(|&at| !done[at]).map(|at| groups[at]));
    order
}

/// The cells that agree with `fixed`, without its variables, each once.
fn project(cells: &[&Cell], fixed: &Cell) -> Vec<Cell> {
    let agrees = |cell: &&&Cell| fixed.iter().all(|pair| cell.contains(pair));
    let rest = |cell: &&Cell| -> Cell {
        cell.iter().filter(|(name, _)| fixed.iter().all(|(fixed, _)| fixed != name)).cloned().collect()
    };
    let distinct: IndexSet<Cell> = cells.iter().filter(agrees).map(rest).collect();
    distinct.into_iter().collect()
}

/// The natural join: all pairs that agree on the variables they share. `None` if there are too many.
fn join(left: &[Cell], right: &[Cell]) -> Option<Vec<Cell>> {
    let has = |cell: &Cell, name: &str| cell.iter().any(|(other, _)| other == name);
    let (Some(a), Some(b)) = (left.first(), right.first()) else { return Some(Vec::new()) };
    let shared: Vec<&str> = a.iter().map(|(name, _)| name.as_str()).filter(|name| has(b, name)).collect();
    let values = |cell: &Cell| -> Vec<Option<String>> {
        shared.iter().map(|name| cell.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())).collect()
    };
    let mut by_shared: HashMap<Vec<Option<String>>, Vec<&Cell>> = HashMap::new();
    for cell in right {
        by_shared.entry(values(cell)).or_default().push(cell);
    }
    let mut joined = Vec::new();
    for cell in left {
        for other in by_shared.get(&values(cell)).into_iter().flatten() {
            let agrees = other.iter().all(|(name, value)| cell.iter().all(|(n, v)| n != name || v == value));
            if !agrees {
                continue;
            }
            let mut both = cell.clone();
            both.extend(other.iter().filter(|(name, _)| !has(cell, name)).cloned());
            joined.push(both);
            if joined.len() > MOST_NODES {
                return None;
            }
        }
    }
    Some(joined)
}

fn no_such_cell(
    draft: &Draft,
    target: usize,
    fixed: &Cell,
    cells: &[&Cell],
    span: &Range<usize>,
    declared: &Declarations,
    findings: &mut Findings,
) {
    let source = Arc::clone(&findings.source);
    let (owner, target) = (&declared.nodes[draft.declaration].name, &declared.nodes[target].name);
    let shown: Vec<String> =
        cells.iter().filter(|cell| !cell.is_empty()).take(8).map(|cell| format!("`{}`", name(target, cell))).collect();
    let help = if shown.is_empty() {
        format!("`{target}` has no matrix: write `{target}`")
    } else {
        format!("there {} {}", if shown.len() == 1 { "is" } else { "are" }, shown.join(", "))
    };
    findings.add(
        Diagnostic::error(
            "pipeline::unknown-cell",
            format!("node `{owner}` refers to `{target}[{}]`, which is no cell of its matrix", text(fixed)),
        )
        .label(&source, span.clone(), "no such cell")
        .help(help),
    );
}

fn disjoint(draft: &Draft, target: usize, span: &Range<usize>, declared: &Declarations, findings: &mut Findings) {
    let source = Arc::clone(&findings.source);
    let (owner, target) = (&declared.nodes[draft.declaration].name, &declared.nodes[target].name);
    findings.add(
        Diagnostic::error(
            "pipeline::disjoint-matrix",
            format!("no cell of `{target}` goes with cell `{}` of node `{owner}`", text(&draft.own)),
        )
        .label(&source, span.clone(), "variables of the same name are one variable")
        .help("give both the same values, rename a variable, or name the cell: `node[variable=value]`"),
    );
}
