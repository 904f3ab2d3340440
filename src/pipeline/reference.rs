//! References between nodes: `name`, `name@2`, `name@prev`, `name[lr=1e-7,seed=0]`.

use std::fmt::Display;
use std::ops::Range;

use super::declare::{Declarations, Named};
use super::findings::{Findings, unknown};
use crate::diag::Diagnostic;

/// Matrix variables and their values as they stand in node names.
pub(super) type Cell = Vec<(String, String)>;

/// What a reference means, before matrix cells are matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resolved {
    /// A model from outside.
    Model(String),
    /// A dataset.
    Dataset(String),
    /// The cells of a node in an iteration (0 outside of the loop).
    Group {
        /// Index into [`Declarations::nodes`].
        declaration: usize,
        /// From 1; 0 outside of the loop.
        iteration: usize,
        /// The variables that the reference itself fixes.
        fixed: Cell,
    },
}

/// A reference and where it stands.
pub(super) struct Reference<'a> {
    /// Whose it is, for messages: "node `score`".
    pub(super) owner: &'a dyn Display,
    /// The reference as written.
    pub(super) text: &'a str,
    /// Its place.
    pub(super) span: &'a Range<usize>,
    /// The iteration that it is seen from, 0 outside of the loop.
    pub(super) iteration: usize,
}

enum Turn {
    Here,
    Previous,
    Number(usize),
}

/// Resolves a reference. `None` if it is at fault, which is reported, or if what it names is.
pub(super) fn resolve(reference: &Reference<'_>, declared: &Declarations, findings: &mut Findings) -> Option<Resolved> {
    let Reference { owner, text, span, iteration } = *reference;
    if text.is_empty() {
        return None;
    }
    let source = std::sync::Arc::clone(&findings.source);
    let mut fault = |what: &str, label: &str, help: String| {
        let title = format!("{owner} refers to `{text}`, {what}");
        findings
            .add(Diagnostic::error("pipeline::bad-reference", title).label(&source, span.clone(), label).help(help));
        None
    };
    let Some((name, turn, fixed)) = parse(text) else {
        return fault(
            "which is no reference",
            "cannot be read",
            "write `name`, `name@2`, `name@prev` or `name[variable=value]`".to_owned(),
        );
    };
    let qualified = !matches!(turn, Turn::Here) || !fixed.is_empty();
    match declared.named(name) {
        None => {
            let finding = Diagnostic::error(
                "pipeline::unknown-reference",
                format!("{owner} refers to `{name}`, which is not declared"),
            )
            .label(&source, span.clone(), "no model, dataset or node has this name");
            findings.add(unknown(finding, name, "name", declared.all_names()));
            None
        }
        Some(Named::Broken) => None,
        Some(Named::Model) if !qualified => Some(Resolved::Model(name.to_owned())),
        Some(Named::Dataset) if !qualified => Some(Resolved::Dataset(name.to_owned())),
        Some(Named::Model | Named::Dataset) => {
            fault("but only nodes have iterations and cells", "not a node", format!("write `{name}`"))
        }
        Some(Named::Node(declaration)) if !declared.nodes[declaration].in_loop => match turn {
            Turn::Here => Some(Resolved::Group { declaration, iteration: 0, fixed }),
            _ => fault("which stands outside of the loop", "has no iterations", format!("write `{name}`")),
        },
        Some(Named::Node(declaration)) => {
            let times = declared.times;
            let at = match turn {
                Turn::Here if iteration > 0 => iteration,
                Turn::Here if times == 0 => {
                    return fault(
                        "but the loop has no iterations",
                        "made in the loop only",
                        "raise `[loop] times`, or refer to a name that the loop carries".to_owned(),
                    );
                }
                Turn::Here => times,
                Turn::Previous if iteration > 1 => iteration - 1,
                Turn::Previous if iteration == 0 => {
                    return fault(
                        "but only the loop has an iteration before",
                        "stands outside of the loop",
                        format!("write `{name}` for the last iteration, or `{name}@N`"),
                    );
                }
                Turn::Previous => {
                    // A node that is carried has a value before its first iteration: what the carry starts with.
                    let mut starts = declared.carries.iter().filter(|carry| parse_name(&carry.next.0) == name);
                    let Some(carry) = starts.next() else {
                        return fault(
                            "but iteration 1 has none before it",
                            "nothing comes before",
                            format!(
                                "add `[loop] carry.NAME = {{ first = \"…\", next = \"{name}\" }}` and refer to NAME"
                            ),
                        );
                    };
                    return outside(&carry.first.0, span, declared, findings);
                }
                Turn::Number(number) if (1..=times).contains(&number) => number,
                Turn::Number(_) => {
                    return fault(
                        "which is no iteration of the loop",
                        "no such iteration",
                        format!("the loop has {times}; write `{name}@1` to `{name}@{times}`"),
                    );
                }
            };
            Some(Resolved::Group { declaration, iteration: at, fixed })
        }
        Some(Named::Carry(carry)) => {
            let at = match turn {
                Turn::Here if iteration > 0 => iteration,
                Turn::Here => declared.times + 1,
                Turn::Previous if iteration > 0 => iteration - 1,
                Turn::Number(number) if number >= 1 && number <= declared.times + 1 => number,
                Turn::Previous | Turn::Number(_) => {
                    return fault(
                        "which is no iteration of the loop",
                        "no such iteration",
                        format!("write `{name}` for the last one"),
                    );
                }
            };
            carried(carry, at, fixed, span, declared, findings)
        }
    }
}

/// What a carried name is in an iteration; one past the last is what the loop leaves behind.
fn carried(
    carry: usize,
    iteration: usize,
    mut fixed: Cell,
    span: &Range<usize>,
    declared: &Declarations,
    findings: &mut Findings,
) -> Option<Resolved> {
    let carry = &declared.carries[carry];
    if iteration <= 1 {
        return outside(&carry.first.0, span, declared, findings);
    }
    let (name, _, by_carry) = parse(&carry.next.0)?;
    let Some(Named::Node(declaration)) = declared.named(name) else { return None };
    if !declared.nodes[declaration].in_loop {
        return None;
    }
    fixed.extend(by_carry);
    Some(Resolved::Group { declaration, iteration: iteration - 1, fixed })
}

/// What `first` of a carry names. Its own faults are reported at its own place, by [`check_carries`].
fn outside(text: &str, span: &Range<usize>, declared: &Declarations, findings: &Findings) -> Option<Resolved> {
    let (name, _, _) = parse(text)?;
    if starts_in_loop(name, declared) {
        return None;
    }
    let mut silent = Findings::new(&findings.source);
    resolve(&Reference { owner: &"the loop", text, span, iteration: 0 }, declared, &mut silent)
}

fn starts_in_loop(name: &str, declared: &Declarations) -> bool {
    match declared.named(name) {
        Some(Named::Node(node)) => declared.nodes[node].in_loop,
        Some(Named::Carry(_)) => true,
        _ => false,
    }
}

/// Reports carries that start inside the loop, go on outside of it, or name what is not there.
pub(super) fn check_carries(declared: &Declarations, findings: &mut Findings) {
    let source = std::sync::Arc::clone(&findings.source);
    for carry in &declared.carries {
        let (text, span) = &carry.first;
        if parse(text).is_some_and(|(name, _, _)| starts_in_loop(name, declared)) {
            findings.add(
                Diagnostic::error("pipeline::carry", format!("the loop starts with `{text}`, which it makes itself"))
                    .label(&source, span.clone(), "is not there before the first iteration")
                    .help("name a model, or a node outside of the loop"),
            );
        } else {
            resolve(&Reference { owner: &"the loop", text, span, iteration: 0 }, declared, findings);
        }
        let (text, span) = &carry.next;
        let in_loop: Vec<&str> =
            declared.nodes.iter().filter(|node| node.in_loop).map(|node| node.name.as_str()).collect();
        let parsed = parse(text).filter(|(_, turn, _)| matches!(turn, Turn::Here)).map(|(name, _, _)| name);
        match parsed.and_then(|name| declared.named(name)) {
            Some(Named::Broken) => {}
            Some(Named::Node(node)) if declared.nodes[node].in_loop => {}
            _ => {
                let finding = Diagnostic::error(
                    "pipeline::carry",
                    format!("the loop goes on with `{text}`, no node of the loop"),
                )
                .label(&source, span.clone(), "not in `[loop.nodes]`");
                findings.add(unknown(finding, text, "node of the loop", in_loop));
            }
        }
    }
}

fn parse_name(text: &str) -> &str {
    text.split(['@', '[']).next().unwrap_or(text)
}

/// Cuts a reference into name, iteration and cell.
fn parse(text: &str) -> Option<(&str, Turn, Cell)> {
    let (head, cell) = match text.split_once('[') {
        Some((head, rest)) => (head, Some(rest.strip_suffix(']')?)),
        None => (text, None),
    };
    let (name, turn) = match head.split_once('@') {
        None => (head, Turn::Here),
        Some((name, "prev")) => (name, Turn::Previous),
        Some((name, number)) => (name, Turn::Number(number.parse().ok()?)),
    };
    let mut fixed = Cell::new();
    for part in cell.into_iter().flat_map(|cell| cell.split(',')) {
        let (variable, value) = part.split_once('=')?;
        fixed.push((variable.trim().to_owned(), canonical(value.trim())));
    }
    (!name.is_empty()).then_some((name, turn, fixed))
}

/// A matrix value as it stands in names: `1e-07` and `1e-7` are the same.
pub(super) fn canonical(value: &str) -> String {
    if value.parse::<i64>().is_ok() {
        return value.to_owned();
    }
    value.parse::<f64>().map_or_else(|_| value.to_owned(), |number| format!("{number:?}"))
}
