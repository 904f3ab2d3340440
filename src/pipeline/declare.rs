//! The tables of a pipeline file: from one tree to declarations by name.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use serde_json::Value;

use super::dataset::DatasetSpec;
use super::expr::{Evaluator, Scope};
use super::findings::{Findings, unknown};
use super::include::Includer;
use super::source::{self, ModelDeclaration};
use super::tree::{Entry, Table, Tree, TreeValue};
use super::{KindSpec, ModelSource, overlay, params};
use crate::diag::Diagnostic;

/// The format that this version reads.
pub(super) const SCHEMA: i64 = 1;
/// More iterations than this are a slip of the pen.
pub(super) const MOST_ITERATIONS: i64 = 100_000;
/// The keys of the file.
pub(super) const KEYS: &[&str] =
    &["schema", "name", "description", "params", "models", "datasets", "nodes", "loop", "when"];

/// The keys of `[loop]`.
pub(super) const LOOP_KEYS: &[&str] = &["times", "carry", "nodes"];

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// A model from outside.
    Model,
    /// A dataset.
    Dataset,
    /// Index into [`Declarations::nodes`].
    Node(usize),
    /// Index into [`Declarations::carries`].
    Carry(usize),
    /// Declared, but at fault; that was reported, and references to it are not at fault for it.
    Broken,
}

/// A node as declared.
#[derive(Debug)]
pub(super) struct Declaration {
    /// `generate`, or `models.base` for a model with `init`.
    pub(super) name: String,
    /// Place of the name.
    pub(super) span: Range<usize>,
    /// Its kind.
    pub(super) kind: &'static KindSpec,
    /// Its table without `kind`.
    pub(super) tree: Tree,
    /// Whether it stands in `[loop.nodes]`.
    pub(super) in_loop: bool,
}

/// `carry.NAME = { first, next }`.
#[derive(Debug)]
pub(super) struct Carry {
    /// What it is in the first iteration: a reference as seen from outside the loop, and its place.
    pub(super) first: (String, Range<usize>),
    /// Of which node it is the output in later iterations, and the place of that.
    pub(super) next: (String, Range<usize>),
}

/// All of a file.
#[derive(Debug, Default)]
pub(super) struct Declarations {
    pub(super) name: Option<String>,
    pub(super) description: String,
    pub(super) params: BTreeMap<String, Value>,
    pub(super) scope: Scope,
    pub(super) models: IndexMap<String, ModelSource>,
    pub(super) datasets: IndexMap<String, DatasetSpec>,
    /// Models with `init` first, then in the order of the file.
    pub(super) nodes: Vec<Declaration>,
    pub(super) carries: Vec<Carry>,
    pub(super) times: usize,
    names: HashMap<String, (Named, Range<usize>), RandomState>,
}

impl Declarations {
    /// What a name stands for.
    pub(super) fn named(&self, name: &str) -> Option<Named> {
        self.names.get(name).map(|(named, _)| *named)
    }

    /// All names, in order.
    pub(super) fn all_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.names.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Makes a name that was taken stand for something.
    fn call(&mut self, name: &str, named: Named) {
        if let Some((known, _)) = self.names.get_mut(name) {
            *known = named;
        }
    }
}

/// What reading needs besides the tree.
pub(super) struct Reader<'a> {
    pub(super) kinds: &'a [&'static KindSpec],
    pub(super) sets: &'a [String],
    pub(super) evaluator: &'a mut Evaluator,
    pub(super) includer: &'a mut Includer,
    pub(super) findings: &'a mut Findings,
    /// Whether the file declares any node, sound or not.
    pub(super) met_node: bool,
}

impl Reader<'_> {
    /// Reads all tables; what is wrong is reported, the rest is in the result.
    pub(super) fn read(mut self, mut tree: Tree) -> Declarations {
        let mut top = tree.table_mut().map(std::mem::take).unwrap_or_default();
        let mut declared = Declarations::default();
        self.check_schema(&top);
        for (key, entry) in &top {
            if !KEYS.contains(&key.as_str()) {
                let finding = Diagnostic::error("pipeline::unknown-key", format!("a pipeline has no key `{key}`"))
                    .label(&self.findings.source, entry.key_span.clone(), "unknown key");
                self.findings.add(unknown(finding, key, "key", KEYS.iter().copied()));
            }
        }
        overlay::lay(&mut top, self.sets, self.includer, self.findings);
        let params = self.table(top.shift_remove("params"), "params");
        (declared.params, declared.scope) = params::read(params, self.sets, self.evaluator, self.findings);
        declared.name = self.text(top.shift_remove("name"), "name", &declared.scope);
        declared.description =
            self.text(top.shift_remove("description"), "description", &declared.scope).unwrap_or_default();
        for (name, entry) in self.table(top.shift_remove("models"), "models") {
            self.model(name, entry, &mut declared);
        }
        for (name, entry) in self.table(top.shift_remove("datasets"), "datasets") {
            self.dataset(name, entry, &mut declared);
        }
        let from = declared.nodes.len();
        let nodes = self.table(top.shift_remove("nodes"), "nodes");
        declared.names.reserve(nodes.len());
        declared.nodes.reserve(nodes.len());
        for (name, entry) in nodes {
            self.node(name, entry, false, &mut declared);
        }
        if let Some(entry) = top.shift_remove("loop") {
            self.turns(entry, &mut declared);
        }
        let own = &mut declared.nodes[from..];
        // To sort takes as much memory again, and they mostly are.
        if !own.is_sorted_by_key(|node| node.span.start) {
            own.sort_by_key(|node| node.span.start);
        }
        for (at, node) in declared.nodes.iter().enumerate() {
            let name = node.name.strip_prefix("models.").unwrap_or(&node.name);
            if let Some((named, _)) = declared.names.get_mut(name) {
                *named = Named::Node(at);
            }
        }
        if !self.met_node {
            let finding = Diagnostic::error("pipeline::no-nodes", "the pipeline has no nodes")
                .label(&self.findings.source, 0..0, "nothing to run")
                .help("add `[nodes.NAME]` with a `kind`; `sami help` lists the kinds");
            self.findings.add(finding);
        }
        declared
    }

    fn check_schema(&mut self, top: &Table) {
        let Some(entry) = top.get("schema") else { return };
        if matches!(entry.value.value, TreeValue::Integer(SCHEMA)) {
            return;
        }
        let found = entry.value.describe();
        let finding = Diagnostic::error("pipeline::schema", format!("the pipeline's schema is {found}")).label(
            &self.findings.source,
            entry.value.span.clone(),
            format!("this version of sami reads schema {SCHEMA}"),
        );
        self.findings.add(if matches!(entry.value.value, TreeValue::Integer(schema) if schema > SCHEMA) {
            finding.help("update sami")
        } else {
            finding.help(format!("write `schema = {SCHEMA}`"))
        });
    }

    fn wrong_type(&mut self, what: &str, wanted: &str, tree: &Tree) {
        if matches!(tree.value, TreeValue::Hole) {
            return;
        }
        let finding = Diagnostic::error("pipeline::wrong-type", format!("`{what}` has the wrong type"))
            .label(&self.findings.source, tree.span.clone(), format!("expected {wanted}, found {}", tree.describe()))
            .help(format!("give {wanted}"));
        self.findings.add(finding);
    }

    fn table(&mut self, entry: Option<Entry>, what: &str) -> Table {
        let Some(mut entry) = entry else { return Table::default() };
        if let Some(table) = entry.value.table_mut() {
            return std::mem::take(table);
        }
        self.wrong_type(what, "a table", &entry.value);
        self.met_node |= what.ends_with("nodes");
        Table::default()
    }

    fn text(&mut self, entry: Option<Entry>, what: &str, scope: &Scope) -> Option<String> {
        let mut value = entry?.value;
        self.evaluator.evaluate(&mut value, scope, self.findings);
        if value.text().is_none() {
            self.wrong_type(what, "a string", &value);
        }
        value.text().map(str::to_owned)
    }

    /// Takes a name, unless it is taken or cannot be one.
    fn name(&mut self, name: &str, span: &Range<usize>, named: Named, declared: &mut Declarations) -> bool {
        let source = Arc::clone(&self.findings.source);
        let plain = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'_' || letter == b'-';
        if name.is_empty() || !name.bytes().all(plain) {
            self.findings.add(
                Diagnostic::error("pipeline::bad-name", format!("`{name}` cannot be a name"))
                    .label(&source, span.clone(), "not a plain name")
                    .help("use letters, digits, `_` and `-`"),
            );
            return false;
        }
        if let Some((_, first)) = declared.names.get(name) {
            self.findings.add(
                Diagnostic::error("pipeline::duplicate-name", format!("the name `{name}` is given twice"))
                    .label(&source, span.clone(), "given again")
                    .label(&source, first.clone(), "first given here")
                    .help("models, datasets, nodes and carried names share one set of names: rename one"),
            );
            return false;
        }
        declared.names.insert(name.to_owned(), (named, span.clone()));
        true
    }

    fn model(&mut self, name: String, mut entry: Entry, declared: &mut Declarations) {
        if !self.name(&name, &entry.key_span, Named::Broken, declared) {
            return;
        }
        self.evaluator.evaluate(&mut entry.value, &declared.scope, self.findings);
        self.includer.include(&mut entry.value, self.findings);
        match source::model(&name, &entry.key_span, entry.value, self.findings) {
            Some(ModelDeclaration::Source(source)) => {
                declared.call(&name, Named::Model);
                declared.models.insert(name, *source);
            }
            Some(ModelDeclaration::Init(tree)) => {
                if let Some(kind) = self.kinds.iter().find(|kind| kind.name == "init") {
                    let name = format!("models.{name}");
                    declared.nodes.push(Declaration { name, span: entry.key_span, kind, tree, in_loop: false });
                }
            }
            None => {}
        }
    }

    fn dataset(&mut self, name: String, mut entry: Entry, declared: &mut Declarations) {
        if !self.name(&name, &entry.key_span, Named::Broken, declared) {
            return;
        }
        self.evaluator.evaluate(&mut entry.value, &declared.scope, self.findings);
        self.includer.include(&mut entry.value, self.findings);
        if let Some(spec) = source::dataset(&name, &entry.key_span, entry.value, self.findings) {
            declared.call(&name, Named::Dataset);
            declared.datasets.insert(name, spec);
        }
    }

    fn node(&mut self, name: String, entry: Entry, in_loop: bool, declared: &mut Declarations) {
        let Entry { key_span: span, value: mut tree } = entry;
        self.met_node = true;
        if !self.name(&name, &span, Named::Broken, declared) {
            return;
        }
        let source = Arc::clone(&self.findings.source);
        let header = tree.span.clone();
        let Some(table) = tree.table_mut() else {
            self.wrong_type(&name, "a table", &tree);
            return;
        };
        let Some(mut kind) = table.shift_remove("kind").map(|entry| entry.value) else {
            let help = format!("add `kind = \"…\"`: {}", self.kind_names().collect::<Vec<_>>().join(", "));
            self.findings.add(
                Diagnostic::error("pipeline::missing-key", format!("node `{name}` lacks the key `kind`"))
                    .label(&source, header, "no `kind` here")
                    .help(help),
            );
            return;
        };
        self.evaluator.evaluate(&mut kind, &declared.scope, self.findings);
        let Some(text) = kind.text() else {
            self.wrong_type("kind", "a string", &kind);
            return;
        };
        let Some(kind) = self.kinds.iter().find(|spec| spec.public && spec.name == text) else {
            let finding = Diagnostic::error("pipeline::unknown-kind", format!("node `{name}` is of no known kind"))
                .label(&source, kind.span.clone(), "unknown kind");
            let finding = unknown(finding, text, "kind", self.kind_names());
            self.findings.add(finding);
            return;
        };
        declared.nodes.push(Declaration { name, span, kind, tree, in_loop });
    }

    fn kind_names(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.iter().filter(|kind| kind.public).map(|kind| kind.name)
    }

    /// Reads `[loop]`.
    fn turns(&mut self, entry: Entry, declared: &mut Declarations) {
        let source = Arc::clone(&self.findings.source);
        let span = entry.value.span.clone();
        let mut table = self.table(Some(entry), "loop");
        match table.shift_remove("times") {
            None => self.findings.add(
                Diagnostic::error("pipeline::missing-key", "`[loop]` lacks the key `times`")
                    .label(&source, span, "no `times` here")
                    .help("add `times = N`, the number of iterations"),
            ),
            Some(Entry { mut value, .. }) => {
                self.evaluator.evaluate(&mut value, &declared.scope, self.findings);
                match value.value {
                    TreeValue::Integer(times @ 0..=MOST_ITERATIONS) => declared.times = times as usize,
                    _ => self.wrong_type("times", &format!("a whole number from 0 to {MOST_ITERATIONS}"), &value),
                }
            }
        }
        for (name, mut entry) in self.table(table.shift_remove("carry"), "carry") {
            if !self.name(&name, &entry.key_span, Named::Broken, declared) {
                continue;
            }
            self.evaluator.evaluate(&mut entry.value, &declared.scope, self.findings);
            let part = |key: &str| {
                let tree = &entry.value.table()?.get(key)?.value;
                Some((tree.text()?.to_owned(), tree.span.clone()))
            };
            let keys_fit = entry.value.table().is_some_and(|table| table.len() == 2);
            match (part("first"), part("next")) {
                (Some(first), Some(next)) if keys_fit => {
                    declared.call(&name, Named::Carry(declared.carries.len()));
                    declared.carries.push(Carry { first, next });
                }
                _ => self.findings.add(
                    Diagnostic::error("pipeline::carry", format!("`carry.{name}` does not say what is carried"))
                        .label(&source, entry.value.span.clone(), "expected exactly `first` and `next`, both names")
                        .help(format!("write `carry.{name} = {{ first = \"MODEL\", next = \"NODE\" }}`")),
                ),
            }
        }
        for (name, entry) in self.table(table.shift_remove("nodes"), "loop.nodes") {
            self.node(name, entry, true, declared);
        }
        for (key, entry) in table {
            let finding = Diagnostic::error("pipeline::unknown-key", format!("`[loop]` has no key `{key}`")).label(
                &source,
                entry.key_span,
                "unknown key",
            );
            self.findings.add(unknown(finding, &key, "key", LOOP_KEYS.iter().copied()));
        }
    }
}
