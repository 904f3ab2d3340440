//! A screen of labelled lines: what is told of a node record, in `sami show` and `sami cache show` alike.

use super::breakdown;
use super::figures::{clock, cut, figure, seconds};
use super::screen::Screen;
use super::table::wrapped;
use crate::inspect::origin::fields;
use crate::store::{Index, NodeRecord, Store};

/// Widest line; what is longer is cut.
pub(super) const WIDTH: usize = 100;
/// Columns of labels.
const LABEL: usize = 10;
/// Parts of a list that are told, so that all fits a screen.
pub(super) const LISTED: usize = 8;

/// The lines so far.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    /// Adds a line under a label; an empty label goes on with the one above.
    pub(super) fn line(&mut self, label: &str, rest: &str) {
        let screen = Screen::of_stdout();
        let whole = cut(&format!("{label:<9} {rest}"), if screen.plain { screen.width } else { WIDTH });
        let (label, rest) = whole.split_at_checked(LABEL).unwrap_or((&whole, ""));
        let room = screen.width.min(WIDTH).saturating_sub(LABEL);
        let rest = if screen.room.is_some() { wrapped(rest, room) } else { vec![rest.to_owned()] };
        for (number, part) in rest.iter().enumerate() {
            let label = if number == 0 { label } else { "          " };
            self.text.push_str(format!("{label}{part}").trim_end());
            self.text.push('\n');
        }
    }

    /// Adds lines under one label.
    pub(super) fn lines<T: AsRef<str>>(&mut self, label: &str, lines: impl IntoIterator<Item = T>) {
        for (number, line) in lines.into_iter().enumerate() {
            self.line(if number == 0 { label } else { "" }, line.as_ref());
        }
    }

    /// Adds parts that are joined by `between` and go on in the next line where they do not fit.
    pub(super) fn flow(&mut self, label: &str, parts: &[String], between: &str) {
        let width = Screen::of_stdout().width.min(WIDTH);
        let mut lines: Vec<String> = Vec::new();
        for part in parts {
            match lines.last_mut() {
                Some(line) if LABEL + line.chars().count() + between.len() + part.chars().count() <= width => {
                    line.push_str(between);
                    line.push_str(part);
                }
                _ => lines.push(part.clone()),
            }
        }
        self.lines(label, lines);
    }

    /// Adds the first parts of a list, and how many more there are.
    pub(super) fn list(&mut self, label: &str, parts: &[String]) {
        let mut told = parts[..parts.len().min(LISTED)].to_vec();
        if parts.len() > LISTED {
            told.push(format!("… {} more", parts.len() - LISTED));
        }
        self.flow(label, &told, ", ");
    }

    /// Adds text as it is.
    pub(super) fn append(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// The lines.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// Adds what a record says: node, key, when and where it was made, inputs, recipe, metrics; `tables` if an evaluation's tables
    /// follow.
    pub(super) fn record(&mut self, store: &Store, index: &Index, record: &NodeRecord, tables: bool) {
        self.line("node", &format!("{}  of pipeline {}, kind {}", record.node, record.pipeline, record.kind));
        self.line("key", &record.key.to_string());
        let (when, took) = (clock(&record.started), seconds(record.seconds));
        self.line("made", &format!("{when} in {took} on {} ({}), sami {}", record.host, record.device, record.version));
        if record.usage.is_some_and(|usage| usage.weights_kept > Some(0)) {
            self.line("weights", "in memory from the node before, not read again");
        }
        match &record.class {
            Some(class) => self.line("again", &class.to_string()),
            None => self.line("again", "not known what would come out: made by an older version"),
        }
        if let Some(equal) = &record.equal_to_within {
            let (artifact, tolerance) = (equal.artifact.short(), &equal.tolerance);
            self.lines(
                "counts as",
                [format!("{artifact} for what is below, by a tolerance of {tolerance}"), equal.worst.to_string()],
            );
        }
        self.line("run", &format!("{} attempt {}", record.run, record.attempt));
        self.inputs(store, index, record);
        self.recipe(record);
        self.metrics(record, tables);
    }

    /// The metrics; with tables those that they do not tell better.
    fn metrics(&mut self, record: &NodeRecord, tables: bool) {
        let told = record.metrics.iter().filter(|(name, _)| !tables || !breakdown::tells(name));
        let mut metrics: Vec<_> = told.map(|(name, value)| format!("{name} {}", figure(value))).collect();
        let more = metrics.len().saturating_sub(4 * LISTED);
        metrics.truncate(4 * LISTED);
        metrics.extend((more > 0).then(|| format!("… {more} more; `--json` has all")));
        self.flow("metrics", &metrics, " · ");
    }

    fn inputs(&mut self, store: &Store, index: &Index, record: &NodeRecord) {
        let told = record.inputs.iter().take(LISTED).map(|(field, id)| {
            let kind = store.manifest(id).map_or_else(|_| "removed".to_owned(), |manifest| manifest.kind);
            let from = index.makers(id).first().map_or_else(String::new, |maker| format!(" of {}", maker.node));
            format!("{field} = {}  {kind}{from}", id.short())
        });
        let more = record.inputs.len().saturating_sub(LISTED);
        self.lines("inputs", told.chain((more > 0).then(|| format!("… {more} more"))));
    }

    fn recipe(&mut self, record: &NodeRecord) {
        let fields = fields(&record.preimage);
        let told = fields.iter().take(2 * LISTED).map(|(name, value)| format!("{name} = {value}"));
        let more = fields.len().saturating_sub(2 * LISTED);
        self.lines("recipe", told.chain((more > 0).then(|| format!("… {more} more; `--json` has all"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_flow_over_lines_under_one_label() {
        let mut page = Page::default();
        let parts: Vec<String> = (0..20).map(|n| format!("metric_{n} 0.5")).collect();
        page.flow("metrics", &parts, " · ");
        page.flow("none", &[], " · ");
        let text = page.into_text();
        assert_eq!(text.lines().count(), 4);
        assert!(text.starts_with("metrics   metric_0 0.5 · metric_1 0.5"));
        assert!(text.lines().skip(1).all(|line| line.starts_with("          metric_")));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
    }
}
