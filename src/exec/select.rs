//! From names as people type them to nodes.

use std::collections::BTreeSet;

use super::ExecError;
use crate::diag::did_you_mean;
use crate::pipeline::Pipeline;

/// Names listed when none is like what was typed.
const LISTED: usize = 12;

/// Which iteration a name without one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare {
    /// The last, as everywhere outside of the loop.
    Last,
    /// Every one.
    All,
}

/// The parts of a name: `finetune@2[lr=1e-7,seed=0]`.
#[derive(Debug, PartialEq, Eq)]
struct Parts<'a> {
    base: &'a str,
    iteration: Option<usize>,
    cell: BTreeSet<&'a str>,
}

/// The nodes that names mean, each once, in ascending order. A name may leave out the iteration (see [`Bare`]) and
/// variables of a matrix (then all cells are meant), and `models.` before the name of an `init` model.
pub fn select(pipeline: &Pipeline, names: &[String], bare: Bare) -> Result<Vec<usize>, ExecError> {
    let mut selected = BTreeSet::new();
    for name in names {
        selected.extend(find(pipeline, name, bare).ok_or_else(|| unknown(pipeline, name))?);
    }
    Ok(selected.into_iter().collect())
}

fn find(pipeline: &Pipeline, name: &str, bare: Bare) -> Option<Vec<usize>> {
    if let Some(exact) = pipeline.nodes.iter().position(|node| node.name == name) {
        return Some(vec![exact]);
    }
    let wanted = parts(name)?;
    let mut found: Vec<(usize, Option<usize>)> = Vec::new();
    for prefix in ["", "models."] {
        let base = format!("{prefix}{}", wanted.base);
        for (at, node) in pipeline.nodes.iter().enumerate() {
            let Some(node) = parts(&node.name).filter(|node| node.base == base) else { continue };
            let turn = wanted.iteration.is_none_or(|iteration| node.iteration == Some(iteration));
            if turn && wanted.cell.is_subset(&node.cell) {
                found.push((at, node.iteration));
            }
        }
        if !found.is_empty() {
            break;
        }
    }
    if bare == Bare::Last {
        let last = found.iter().map(|(_, iteration)| *iteration).max();
        found.retain(|(_, iteration)| Some(*iteration) == last);
    }
    (!found.is_empty()).then(|| found.into_iter().map(|(node, _)| node).collect())
}

fn parts(name: &str) -> Option<Parts<'_>> {
    let (rest, cell) = match name.split_once('[') {
        Some((rest, cell)) => (rest, cell.strip_suffix(']')?.split(',').collect()),
        None => (name, BTreeSet::new()),
    };
    let (base, iteration) = match rest.split_once('@') {
        Some((base, iteration)) => (base, Some(iteration.parse().ok()?)),
        None => (rest, None),
    };
    Some(Parts { base, iteration, cell })
}

fn unknown(pipeline: &Pipeline, name: &str) -> ExecError {
    let mut seen = BTreeSet::new();
    let bases = pipeline.nodes.iter().map(|node| node.name.split(['@', '[']).next().unwrap_or(&node.name));
    let bases: Vec<&str> = bases.filter(|base| seen.insert(*base)).collect();
    let all = bases.iter().copied().chain(pipeline.nodes.iter().map(|node| node.name.as_str()));
    let near = did_you_mean(name, all).map(str::to_owned);
    let known = bases.into_iter().take(LISTED).map(str::to_owned).collect();
    ExecError::UnknownNode { name: name.to_owned(), near, known }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::toy;

    #[test]
    fn names_may_leave_out_iteration_and_cell() {
        let pipeline = toy::load(
            "[nodes.a]\nkind = \"command\"\nprogram = \"true\"\n
            [loop]\ntimes = 2\n
            [loop.nodes.b]\nkind = \"command\"\nprogram = \"true\"\nargs = [\"${x}${y}\"]\nmatrix = { x = [1, 2], y = [3] }\n",
        );
        let names = |name: &str, bare| {
            let found = select(&pipeline, &[name.to_owned()], bare).unwrap();
            found.into_iter().map(|node| pipeline.nodes[node].name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(names("a", Bare::Last), ["a"]);
        assert_eq!(names("b", Bare::Last), ["b@2[x=1,y=3]", "b@2[x=2,y=3]"]);
        assert_eq!(names("b", Bare::All).len(), 4);
        assert_eq!(names("b@1", Bare::Last), ["b@1[x=1,y=3]", "b@1[x=2,y=3]"]);
        assert_eq!(names("b[x=2]", Bare::Last), ["b@2[x=2,y=3]"]);
        assert_eq!(names("b@1[y=3,x=2]", Bare::All), ["b@1[x=2,y=3]"]);
        for wrong in ["c", "b@3", "b[x=9]", "b[x=1", "b@x", ""] {
            assert!(select(&pipeline, &[wrong.to_owned()], Bare::All).is_err(), "{wrong}");
        }
        let error = select(&pipeline, &["aa".to_owned()], Bare::Last).unwrap_err();
        assert_eq!(error.diagnostics()[0].help, ["a node with a similar name exists: `a`"]);
    }
}
