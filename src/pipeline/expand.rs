//! Unrolls the loop and the matrices: declarations become plain nodes.
//!
//! Approach: first each declaration is typed once per iteration and cell of its own matrix ([`Draft`]). Where no node
//! has a matrix, drafts are nodes. Else cells travel down: in topological order, each draft is multiplied by the cells
//! of what it refers to, joined on the variables they share (see [`super::matrix`]).

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::ops::Range;
use std::sync::Arc;

use super::declare::{Declaration, Declarations};
use super::expr::{Evaluator, Scope};
use super::findings::Findings;
use super::include::Includer;
use super::kind::{InputField, KindSpec, Spec};
use super::matrix::{self, Axis};
use super::reference::{self, Cell, Reference, Resolved};
use super::tree::{Entry, Tree, TreeError, TreeErrorKind, TreeValue, from_tree};
use super::{Link, Node, RunFields, Shards, Target, Tolerance};
use crate::diag::Diagnostic;

/// More nodes than this are a slip of the pen.
pub(super) const MOST_NODES: usize = 100_000;

/// What every node may have beside the fields of its kind, as it stands in the file.
#[derive(Clone)]
struct Common {
    run: Option<Entry>,
    tolerance: Option<Entry>,
}

/// A declaration in one iteration and one cell of its own matrix.
pub(super) struct Draft {
    /// Index into [`Declarations::nodes`].
    pub(super) declaration: usize,
    /// From 1; 0 outside of the loop.
    pub(super) iteration: usize,
    /// Its own cell.
    pub(super) own: Cell,
    /// Its inputs, where they stand and what they mean.
    pub(super) references: Vec<(InputField, Range<usize>, Option<Resolved>)>,
    spec: Arc<dyn Spec>,
    run: Arc<RunFields>,
    tolerance: Option<Tolerance>,
}

impl Draft {
    /// The name without the cell.
    fn base_name<'a>(&self, declared: &'a Declarations) -> Cow<'a, str> {
        let name = &declared.nodes[self.declaration].name;
        if self.iteration == 0 { name.into() } else { format!("{name}@{}", self.iteration).into() }
    }
}

/// A declaration in messages.
struct Owner<'a> {
    declaration: &'a Declaration,
    with_kind: bool,
}

impl Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Declaration { name, kind, .. } = self.declaration;
        match (name.strip_prefix("models."), self.with_kind) {
            (Some(model), true) => write!(f, "model `{model}` (init)"),
            (Some(model), false) => write!(f, "model `{model}`"),
            (None, true) => write!(f, "node `{name}` (kind `{}`)", kind.name),
            (None, false) => write!(f, "node `{name}`"),
        }
    }
}

/// The tools that typing a node takes.
pub(super) struct Expander<'a> {
    pub(super) evaluator: &'a mut Evaluator,
    pub(super) includer: &'a mut Includer,
    pub(super) findings: &'a mut Findings,
    /// The execution fields of a node that says nothing of them.
    pub(super) plain: Arc<RunFields>,
}

impl Expander<'_> {
    /// Makes plain nodes of all declarations; what is wrong is reported and left out.
    pub(super) fn expand(mut self, declared: &mut Declarations) -> Vec<Node> {
        reference::check_carries(declared, self.findings);
        let mut drafts = Vec::with_capacity(declared.nodes.len());
        let mut loop_done = false;
        for at in 0..declared.nodes.len() {
            let node = &mut declared.nodes[at];
            if !node.in_loop {
                // Used once and let go of: ten thousand of these tables are most of what is held.
                let tree = std::mem::replace(&mut node.tree, Tree { span: 0..0, value: TreeValue::Hole });
                self.draft(at, tree, 0, &declared.scope, declared, &mut drafts);
            } else if !loop_done {
                // The whole loop stands where its first node does, iteration by iteration.
                loop_done = true;
                let members: Vec<usize> = (at..declared.nodes.len()).filter(|&at| declared.nodes[at].in_loop).collect();
                if members.len() * declared.times > MOST_NODES {
                    self.too_many(&declared.nodes[at].span);
                    return Vec::new();
                }
                // Without iterations one is still looked at, for its errors.
                let mut unused = Vec::new();
                for iteration in 1..=declared.times.max(1) {
                    let scope = declared.scope.in_iteration(iteration);
                    let kept = if declared.times == 0 { &mut unused } else { &mut drafts };
                    for &member in &members {
                        let tree = declared.nodes[member].tree.clone();
                        self.draft(member, tree, iteration, &scope, declared, kept);
                    }
                }
            }
            if drafts.len() > MOST_NODES {
                self.too_many(&declared.nodes[at].span);
                return Vec::new();
            }
        }
        let Some(cells) = matrix::cells(&drafts, declared, self.findings) else {
            self.too_many(&declared.nodes.first().map_or(0..0, |node| node.span.clone()));
            return Vec::new();
        };
        assemble(drafts, &cells, declared)
    }

    fn too_many(&mut self, span: &Range<usize>) {
        let source = Arc::clone(&self.findings.source);
        self.findings.add(
            Diagnostic::error("pipeline::too-many-nodes", format!("the pipeline has more than {MOST_NODES} nodes"))
                .label(&source, span.clone(), "too many with this one")
                .help("lower `[loop] times` or shorten the lists of `matrix`"),
        );
    }

    /// Types a declaration in an iteration, once per cell of its own matrix.
    fn draft(
        &mut self,
        at: usize,
        mut tree: Tree,
        iteration: usize,
        scope: &Scope,
        declared: &Declarations,
        drafts: &mut Vec<Draft>,
    ) {
        let declaration = &declared.nodes[at];
        let mut take = |key: &str| tree.table_mut().and_then(|table| table.shift_remove(key));
        let common = Common { run: take("run"), tolerance: take("tolerance") };
        let Some(matrix) = take("matrix") else {
            self.type_draft(at, iteration, tree, common, scope, Cell::new(), declared, drafts);
            return;
        };
        let mut matrix = matrix.value;
        self.evaluator.evaluate(&mut matrix, scope, self.findings);
        let what = format!("node `{}`", declaration.name);
        let Some(axes) = matrix::axes(&what, &matrix, self.findings) else { return };
        let rows = axes.iter().map(|axis| axis.values.len()).fold(1, usize::saturating_mul);
        if rows.saturating_add(drafts.len()) > MOST_NODES {
            self.too_many(&matrix.span);
            return;
        }
        let fields: Vec<bool> = axes.iter().map(|axis| has_field(declaration.kind, axis)).collect();
        let mut used = vec![false; axes.len()];
        for row in 0..rows {
            let mut tree = tree.clone();
            let mut scope = scope.clone();
            let mut own = Cell::new();
            let mut rest = row;
            let mut choice = Vec::with_capacity(axes.len());
            for axis in axes.iter().rev() {
                choice.push(rest % axis.values.len());
                rest /= axis.values.len();
            }
            choice.reverse();
            for ((axis, &chosen), &is_field) in axes.iter().zip(&choice).zip(&fields) {
                let (name, value) = &axis.values[chosen];
                scope = scope.with(&axis.variable, value);
                own.push((axis.variable.clone(), name.clone()));
                if is_field && let Some(table) = tree.table_mut() {
                    let entry = Entry { key_span: axis.span.clone(), value: value.clone() };
                    table.insert(axis.variable.clone(), entry);
                }
            }
            self.evaluator.used.clear();
            self.type_draft(at, iteration, tree, common.clone(), &scope, own, declared, drafts);
            for ((used, axis), &is_field) in used.iter_mut().zip(&axes).zip(&fields) {
                *used |= is_field || self.evaluator.used.contains(&axis.variable);
            }
        }
        for (axis, _) in axes.iter().zip(used).filter(|(_, used)| !used) {
            let source = Arc::clone(&self.findings.source);
            self.findings.add(
                Diagnostic::error("pipeline::unused-variable", format!("{what} does not use `{}`", axis.variable))
                    .label(&source, axis.span.clone(), "all its values would give the same node")
                    .help(format!("use `${{{}}}` in a field of the node, or remove it", axis.variable)),
            );
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is a different thing, and there is one caller")]
    fn type_draft(
        &mut self,
        at: usize,
        iteration: usize,
        mut tree: Tree,
        common: Common,
        scope: &Scope,
        own: Cell,
        declared: &Declarations,
        drafts: &mut Vec<Draft>,
    ) {
        let declaration = &declared.nodes[at];
        let source = Arc::clone(&self.findings.source);
        self.evaluator.evaluate(&mut tree, scope, self.findings);
        self.includer.include(&mut tree, self.findings);
        let tolerance = common.tolerance.and_then(|entry| self.tolerance(entry.value, scope, &declaration.name));
        let mut ranks_at = None;
        let plain = Arc::clone(&self.plain);
        let run = common.run.map_or(plain, |entry| {
            let mut run = entry.value;
            self.evaluator.evaluate(&mut run, scope, self.findings);
            let what = format!("`run` of node `{}`", declaration.name);
            let (fields, sound) = self.findings.fit(&what, &mut run, from_tree::<RunFields>);
            let fields = fields.unwrap_or_default();
            if sound {
                self.check_run(&fields, &run, &what, declaration.kind);
            }
            ranks_at = Some(run.place("ranks"));
            Arc::new(fields)
        });
        let owner = &Owner { declaration, with_kind: false };
        let holed = has_hole(&tree);
        let what = Owner { declaration, with_kind: true };
        let (spec, sound) = self.findings.fit(&what, &mut tree, declaration.kind.parse);
        let Some(spec) = spec else { return };
        if sound && !holed {
            for problem in spec.validate() {
                let title = format!("{owner}: {}", problem.what);
                let place = tree.place(&problem.path);
                self.findings.add(
                    Diagnostic::error("pipeline::bad-field", title)
                        .label(&source, place, format!("`{}`", problem.path))
                        .help(problem.help),
                );
            }
        }
        if let (Some(ranks), Some(place), true) = (run.ranks.filter(|ranks| *ranks > spec.ranks()), ranks_at, sound) {
            let (help, at) = match spec.ranks() {
                1 => ("leave it out: only a `finetune` of several queries has ranks".to_owned(), "not for this node"),
                most => (format!("give {most} or fewer: a step has no more queries, or they are too many"), "too many"),
            };
            let title = format!("`ranks` in `run` of node `{}` is {ranks}", declaration.name);
            self.findings.add(Diagnostic::error("pipeline::bad-run", title).label(&source, place, at).help(help));
        }
        let references = spec
            .inputs()
            .into_iter()
            .map(|field| {
                let span = tree.place_of_reference(&field.path);
                let reference = Reference { owner, text: &field.input.from, span: &span, iteration };
                let resolved = reference::resolve(&reference, declared, self.findings);
                (field, span, resolved)
            })
            .collect();
        drafts.push(Draft { declaration: at, iteration, own, references, spec, run, tolerance });
    }

    /// The `tolerance` of a node.
    fn tolerance(&mut self, mut tree: Tree, scope: &Scope, node: &str) -> Option<Tolerance> {
        self.evaluator.evaluate(&mut tree, scope, self.findings);
        let what = format!("`tolerance` of node `{node}`");
        let (tolerance, sound) = self.findings.fit(&what, &mut tree, from_tree::<Tolerance>);
        let tolerance = tolerance?;
        if sound && !tolerance.is_sound() {
            let source = Arc::clone(&self.findings.source);
            self.findings.add(
                Diagnostic::error("pipeline::bad-tolerance", format!("{what} does not fit"))
                    .label(&source, tree.span.clone(), "not a distance")
                    .help("give a number of 0 or more, such as `1e-4`, or `{ relative = 1e-4, absolute = 1e-6 }`"),
            );
        }
        Some(tolerance)
    }

    fn check_run(&mut self, run: &RunFields, tree: &Tree, what: &str, kind: &KindSpec) {
        let device = run.device.as_deref().is_none_or(|device| {
            matches!(device, "auto" | "cpu" | "cuda")
                || device.strip_prefix("cuda:").is_some_and(|n| n.parse::<u32>().is_ok())
        });
        let zero = |value: Option<usize>| value == Some(0);
        let faults = [
            (!device, "device", "give `auto`, `cpu`, `cuda` or `cuda:N`"),
            (zero(run.threads), "threads", "give 1 or more"),
            (zero(run.micro_batch), "micro_batch", "give 1 or more"),
            (run.shards == Some(Shards::Count(0)), "shards", "give 1 or more, or \"auto\""),
            (zero(run.ranks), "ranks", "give 1 or more"),
            (
                run.shards.is_some() && !kind.row_wise,
                "shards",
                "leave it out: of this kind there are no rows to share out, as there are of `generate`, `score` and `evaluate`",
            ),
            (
                run.reproducible.is_some() && kind.name != "command",
                "reproducible",
                "leave it out: of all kinds but `command` it is known",
            ),
        ];
        for (_, key, help) in faults.into_iter().filter(|(fault, ..)| *fault) {
            let source = Arc::clone(&self.findings.source);
            self.findings.add(
                Diagnostic::error("pipeline::bad-run", format!("`{key}` in {what} does not fit"))
                    .label(&source, tree.place(key), "not a value that it can have")
                    .help(help),
            );
        }
    }
}

fn has_hole(tree: &Tree) -> bool {
    match &tree.value {
        TreeValue::Hole => true,
        TreeValue::Array(items) => items.iter().any(has_hole),
        TreeValue::Table(table) => table.values().any(|entry| has_hole(&entry.value)),
        _ => false,
    }
}

/// Whether a kind has a field of a variable's name: it is asked to read a table with nothing else.
fn has_field(kind: &KindSpec, axis: &Axis) -> bool {
    let value = Tree { span: axis.span.clone(), value: TreeValue::Hole };
    let entry = Entry { key_span: axis.span.clone(), value };
    let table = [(axis.variable.clone(), entry)].into_iter().collect();
    let probe = Tree { span: 0..0, value: TreeValue::Table(table) };
    match (kind.parse)(&probe) {
        Err(TreeError { what: TreeErrorKind::UnknownKey { key, .. }, .. }) => key != axis.variable,
        _ => true,
    }
}

/// Makes the nodes: one per draft and cell, with every reference resolved to a node, model or dataset.
fn assemble(drafts: Vec<Draft>, cells: &matrix::Cells, declared: &Declarations) -> Vec<Node> {
    let mut nodes = Vec::with_capacity(cells.nodes());
    for (at, draft) in drafts.into_iter().enumerate() {
        let base = draft.base_name(declared);
        let declaration = &declared.nodes[draft.declaration];
        let target = |resolved: &Option<Resolved>, cell: &Cell| {
            Some(match resolved.as_ref()? {
                Resolved::Model(name) => Target::Model(name.clone()),
                Resolved::Dataset(name) => Target::Dataset(name.clone()),
                Resolved::Group { declaration, iteration, fixed } => {
                    Target::Node(cells.find((*declaration, *iteration), fixed, cell)?)
                }
            })
        };
        let spec = draft.spec;
        let mut node = |cell: &Cell, links: Vec<Link>| {
            nodes.push(Node {
                name: matrix::name(&base, cell),
                kind: declaration.kind,
                spec: Arc::clone(&spec),
                links,
                run: Arc::clone(&draft.run),
                tolerance: draft.tolerance,
                span: declaration.span.clone(),
            });
        };
        let Some((last, others)) = cells.of(at).split_last() else { continue };
        for cell in others {
            let link = |(field, span, resolved): &(InputField, Range<usize>, Option<Resolved>)| {
                Some(Link { field: field.clone(), target: target(resolved, cell)?, span: span.clone() })
            };
            node(cell, draft.references.iter().filter_map(link).collect());
        }
        let link = |(field, span, resolved)| Some(Link { field, target: target(&resolved, last)?, span });
        node(last, draft.references.into_iter().filter_map(link).collect());
    }
    nodes
}
