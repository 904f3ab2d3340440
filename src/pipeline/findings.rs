//! Findings collected while a pipeline is read, each once however many iterations or cells meet it.

use std::collections::HashSet;
use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use super::tree::{Tree, TreeError, TreeErrorKind};
use super::typed;
use crate::diag::{Diagnostic, Source, did_you_mean};

/// The findings so far and the text that they point into.
#[derive(Debug)]
pub(super) struct Findings {
    /// The pipeline file.
    pub(super) source: Arc<Source>,
    list: Vec<Diagnostic>,
    seen: HashSet<(&'static str, Range<usize>, String)>,
}

impl Findings {
    /// None yet.
    pub(super) fn new(source: &Arc<Source>) -> Self {
        Self { source: Arc::clone(source), list: Vec::new(), seen: HashSet::new() }
    }

    /// Adds a finding with its primary place, unless it was added before.
    pub(super) fn add(&mut self, finding: Diagnostic) {
        let span = finding.labels.first().map_or(0..0, |label| label.span.clone());
        if self.seen.insert((finding.id, span, finding.title.clone())) {
            self.list.push(finding);
        }
    }

    /// All of them, in the order of the file.
    pub(super) fn into_list(mut self) -> Vec<Diagnostic> {
        let source = Arc::clone(&self.source);
        // Findings elsewhere (the command line, a data file) come first, as they were found.
        self.list.sort_by_key(|finding| {
            finding.labels.first().filter(|label| Arc::ptr_eq(&label.source, &source)).map(|label| label.span.start)
        });
        self.list
    }

    /// Reads a typed value and reports everything that does not fit. `what` names the owner: "node `x`". Returns
    /// the value and whether none of it is made up; see [`typed::fit`].
    pub(super) fn fit<T>(
        &mut self,
        what: &dyn Display,
        tree: &mut Tree,
        parse: impl Fn(&Tree) -> Result<T, TreeError>,
    ) -> (Option<T>, bool) {
        typed::fit(tree, parse, |error| self.add_tree_error(what, error))
    }

    /// Adds what a type said.
    fn add_tree_error(&mut self, what: &dyn Display, error: TreeError) {
        let source = Arc::clone(&self.source);
        self.add(match error.what {
            TreeErrorKind::UnknownKey { key, expected } => {
                let finding = Diagnostic::error("pipeline::unknown-key", format!("{what} has no key `{key}`")).label(
                    &source,
                    error.span,
                    "unknown key",
                );
                unknown(finding, &key, "key", expected.iter().map(String::as_str))
            }
            TreeErrorKind::MissingKey(key) => {
                Diagnostic::error("pipeline::missing-key", format!("{what} lacks the key `{key}`"))
                    .label(&source, error.span, format!("no `{key}` here"))
                    .help(format!("add `{key} = …`"))
            }
            TreeErrorKind::UnknownWord { word, expected } => {
                let finding = Diagnostic::error("pipeline::unknown-word", format!("{what} knows no `{word}` here"))
                    .label(&source, error.span, "unknown word");
                unknown(finding, &word, "word", expected.iter().map(String::as_str))
            }
            TreeErrorKind::WrongType(message) => {
                let finding = Diagnostic::error(
                    "pipeline::wrong-type",
                    format!("a value of {what} has the wrong type"),
                )
                .label(&source, error.span, message.as_str());
                match message.split_once(", found ") {
                    Some((wanted, found)) => finding.help(fix_of_type(wanted, found)),
                    None => finding.help("give a value of that type"),
                }
            }
            TreeErrorKind::Other(message) => {
                Diagnostic::error("pipeline::bad-value", format!("a value of {what} does not fit"))
                    .label(&source, error.span, message)
                    .help("give a value that fits")
            }
        });
    }
}

fn fix_of_type(wanted: &str, found: &str) -> String {
    let wanted = wanted.trim_start_matches("expected ");
    let text = found.strip_prefix("the string \"").and_then(|text| text.strip_suffix('"'));
    match text {
        Some(text) if wanted.contains("number") && text.parse::<f64>().is_ok() => {
            format!("write {text} without quotes")
        }
        Some(text @ ("true" | "false")) if wanted == "true or false" => format!("write {text} without quotes"),
        _ if wanted == "a string" && !found.starts_with("a ") && !found.starts_with("an ") => {
            "put the value between quotes".to_owned()
        }
        _ => format!("give {wanted}"),
    }
}

/// Adds the fix for a name that is not known: the one that was meant, or all there are.
pub(super) fn unknown<'a>(
    finding: Diagnostic,
    name: &str,
    noun: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Diagnostic {
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(near) = did_you_mean(name, known.iter().copied()) {
        if noun == "name" {
            return finding.help(format!("a similar name is declared: `{near}`"));
        }
        return finding.help(format!("a {noun} with a similar name exists: `{near}`"));
    }
    if known.is_empty() {
        return finding.help(format!("there is no {noun} yet; declare one"));
    }
    let shown: Vec<String> = known.iter().take(20).map(|name| format!("`{name}`")).collect();
    let rest =
        if known.len() > shown.len() { format!(" and {} more", known.len() - shown.len()) } else { String::new() };
    let verb = if known.len() == 1 { format!("the only {noun} is") } else { format!("the {noun}s are") };
    finding.help(format!("{verb} {}{rest}", shown.join(", ")))
}
