//! Two artifacts of a type: how they were made, what was measured, and what is in their files.

use serde::Serialize;
use serde_json::Value;

use super::super::context::Failure;
use super::super::figures::{bytes, count, cut, plural};
use super::super::screen::Screen;
use super::super::table::Table;
use super::Side;
use super::files::{self, Content, FileChange, State};
use super::metrics;
use crate::compare::{Differing, RowChanges, TensorChanges};
use crate::diag::Diagnostic;
use crate::graph::key::{self, Change};
use crate::inspect::metric::{MetricChange, changes};
use crate::store::{Index, Store};

/// Changes of a recipe or a JSON file that are shown.
const CHANGES: usize = 16;
/// Metrics that are shown.
const METRICS: usize = 24;
/// Tensors that are shown.
const TENSORS: usize = 12;

/// What differs between two artifacts.
#[derive(Debug, Serialize)]
pub(super) struct ArtifactDiff {
    before: Value,
    after: Value,
    /// Whether they are one artifact.
    same: bool,
    /// What differs in how they were made, if that is known of both.
    recipe: Option<Vec<Change>>,
    metrics: Vec<MetricChange>,
    files: Vec<FileChange>,
    #[serde(skip)]
    sides: [Side; 2],
}

/// Compares; `rows` is how many rows of each kind of difference are wanted.
pub(super) fn diff(store: &Store, sides: [Side; 2], rows: usize) -> Result<ArtifactDiff, Failure> {
    let [before, after] = &sides;
    if before.manifest.kind != after.manifest.kind {
        let [old, new] = [before, after].map(|side| format!("{} is of type {}", side.id.short(), side.manifest.kind));
        return Err(Diagnostic::error("cli::diff-types", format!("{old} and {new}: they have nothing to compare"))
            .help("give two artifacts of a type; `sami cache ls --type TYPE` lists them")
            .into());
    }
    let records = before.record.as_ref().zip(after.record.as_ref());
    Ok(ArtifactDiff {
        before: before.json(),
        after: after.json(),
        same: before.id == after.id,
        recipe: records.map(|(before, after)| super::recipe(before, after)),
        metrics: records.map(|(before, after)| changes(&before.metrics, &after.metrics)).unwrap_or_default(),
        files: if before.id == after.id { Vec::new() } else { files::changes(store, before, after, rows)? },
        sides,
    })
}

/// Draws it.
pub(super) fn text(diff: &ArtifactDiff, index: &Index, screen: Screen) -> String {
    let [before, after] = &diff.sides;
    let mut page =
        vec![screen.fit(&format!("before  {}", before.line())), screen.fit(&format!("after   {}", after.line()))];
    if diff.same {
        page.push("        the same artifact".to_owned());
    }
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            page.extend([String::new(), screen.bold(title)]);
            page.extend(lines);
        }
    };
    let recipe = match &diff.recipe {
        Some(changes) if changes.is_empty() && !diff.same => {
            vec!["  the same: what it does is not the same each time".to_owned()]
        }
        Some(changes) => changed(changes, Some(index), screen),
        None => Vec::new(),
    };
    section("recipe", recipe);
    let told = diff.metrics.iter().map(|change| ("", change));
    section("metrics", metrics::table(told, METRICS).lines().map(|line| screen.fit(&format!("  {line}"))).collect());
    for file in &diff.files {
        section(&file.title(), file_lines(file, screen));
    }
    page.join("\n") + "\n"
}

/// Changes, a few lines each; of inputs, what made them.
fn changed(changes: &[Change], index: Option<&Index>, screen: Screen) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for change in changes.iter().take(CHANGES) {
        let mut told = screen.change(change, 2);
        let maker = |id: &Option<Value>| {
            let id = id.as_ref()?.as_str()?.parse().ok()?;
            Some(index?.makers(&id).first()?.node.clone())
        };
        if change.path.starts_with("input ")
            && let Some(maker) = maker(&change.new)
            && let Some(line) = told.first_mut()
        {
            *line = screen.fit(&format!("{line}  ({maker})"));
        }
        lines.append(&mut told);
    }
    if changes.len() > CHANGES {
        lines.push(format!("  … {} more; `--json` has all", count((changes.len() - CHANGES) as u64)));
    }
    lines
}

fn file_lines(file: &FileChange, screen: Screen) -> Vec<String> {
    match (&file.state, &file.content) {
        (State::Changed, Some(Content::Rows(rows))) => row_lines(rows, screen),
        (State::Changed, Some(Content::Tensors(tensors))) => tensor_lines(tensors, screen),
        (State::Changed, Some(Content::Values(changes))) => changed(changes, None, screen),
        (State::Changed, Some(Content::Text { before, after })) => screen.texts(before, after, 2),
        _ => vec![format!("  {}", file.size())],
    }
}

/// Which rows came, went and changed, with samples.
pub(in crate::cli) fn row_lines(rows: &RowChanges, screen: Screen) -> Vec<String> {
    let mut head = format!("  {} -> {}", plural(rows.before, "row"), count(rows.after));
    for (number, word) in [(rows.added, "added"), (rows.removed, "removed"), (rows.changed, "changed")] {
        if number > 0 {
            head.push_str(&format!(", {} {word}", count(number)));
        }
    }
    if rows.moved {
        head.push_str(", in another order");
    } else if rows.is_none() {
        head.push_str(", the same rows written otherwise");
    }
    let mut lines = vec![screen.fit(&head)];
    let mut fields: Vec<_> = rows.fields.iter().collect();
    fields.sort_by_key(|(_, number)| std::cmp::Reverse(**number));
    if !fields.is_empty() {
        let told: Vec<String> = fields.iter().map(|(name, number)| format!("{name} in {}", count(**number))).collect();
        lines.push(screen.fit(&format!("  fields  {}", told.join(" · "))));
    }
    for sample in &rows.samples {
        lines.push(String::new());
        lines.extend(sample_lines(sample, screen));
    }
    lines
}

/// A row that differs: its changed fields, or what came or went.
fn sample_lines(sample: &Differing, screen: Screen) -> Vec<String> {
    let id = cut(&sample.id, 60);
    let (sign, row) = match (&sample.before, &sample.after) {
        (Some(before), Some(after)) => {
            let changes = key::changes(before, after);
            let mut lines = vec![screen.fit(&format!("  row {id}"))];
            lines.extend(changes.iter().take(CHANGES).flat_map(|change| screen.change(change, 4)));
            if changes.len() > CHANGES {
                lines.push(format!("    … {} more", changes.len() - CHANGES));
            }
            return lines;
        }
        (Some(row), None) => ("-", row),
        (None, Some(row)) => ("+", row),
        (None, None) => return Vec::new(),
    };
    let mut lines = vec![screen.fit(&format!("{sign} row {id}"))];
    let told = super::super::rows::lines(&row.to_string());
    lines.extend(told.iter().map(|line| screen.fit(&format!("    {line}"))));
    lines
}

fn tensor_lines(tensors: &TensorChanges, screen: Screen) -> Vec<String> {
    let TensorChanges { same, added, removed, changed, relative } = tensors;
    let numbers = [changed.len(), added.len(), removed.len(), *same as usize];
    let parts = numbers.iter().zip(["changed", "added", "removed", "the same"]).filter(|(number, _)| **number > 0);
    let parts: Vec<String> = parts.map(|(number, word)| format!("{} {word}", count(*number as u64))).collect();
    let mut lines = vec![format!("  tensors: {}", parts.join(", "))];
    if let Some(relative) = relative {
        lines.push(format!("  relative norm of the difference {relative:.3e}, of all that both have"));
    }
    let mut table = Table::new(["tensor", "before", "after", "max", "relative"], &[3, 4]);
    let mut sorted: Vec<_> = changed.iter().collect();
    sorted.sort_by(|one, other| other.relative.unwrap_or(f64::MAX).total_cmp(&one.relative.unwrap_or(f64::MAX)));
    let form = |form: &crate::compare::Form| format!("{} {:?}", form.dtype, form.shape);
    let figure = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.3e}"));
    for one in sorted.iter().take(TENSORS) {
        let after = if one.before == one.after { String::new() } else { form(&one.after) };
        table.row([one.name.clone(), form(&one.before), after, figure(one.max), figure(one.relative)]);
    }
    for (sign, forms) in [("+", added), ("-", removed)] {
        for (name, is) in forms.iter().take(TENSORS) {
            table.row([format!("{sign} {name}"), form(is)]);
        }
    }
    if !table.is_empty() {
        lines.extend(table.text().lines().map(|line| screen.fit(&format!("  {line}"))));
    }
    let longest = [changed.len(), added.len(), removed.len()].map(|number| number.saturating_sub(TENSORS));
    let more: usize = longest.iter().sum();
    if more > 0 {
        lines.push(format!("  … {} more; `--json` has all", count(more as u64)));
    }
    lines
}

impl FileChange {
    fn title(&self) -> String {
        let word = match self.state {
            State::Added => " (added)",
            State::Removed => " (removed)",
            State::Changed => "",
        };
        format!("{}{word}", self.name)
    }

    fn size(&self) -> String {
        match (self.before, self.after) {
            (Some(before), Some(after)) => format!("{} -> {}", bytes(before), bytes(after)),
            (Some(size), None) | (None, Some(size)) => bytes(size),
            (None, None) => String::new(),
        }
    }
}
