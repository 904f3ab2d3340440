//! Diagnostics as plain data: what is wrong, where, and how to mend it. Drawing them is `cli/render.rs`'s job.

use std::ops::Range;
use std::sync::Arc;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Stops the command before any work starts.
    Error,
    /// Worth a look; work goes on.
    Warning,
}

/// A text that labels can point into.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// The path as the user would type it.
    pub path: String,
    /// The whole text, or an excerpt that begins at `first_line`; label spans are byte ranges of it.
    pub text: String,
    /// The number of the first line of `text` in the file, from 1.
    pub first_line: usize,
}

impl Source {
    /// A whole text.
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into(), first_line: 1 }
    }

    /// The line, from 1, and the column in characters, from 1, of a byte of the text.
    pub fn position(&self, byte: usize) -> (usize, usize) {
        let mut byte = byte.min(self.text.len());
        while !self.text.is_char_boundary(byte) {
            byte -= 1;
        }
        let before = &self.text[..byte];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let newlines = before.bytes().filter(|letter| *letter == b'\n').count();
        (self.first_line + newlines, before[line_start..].chars().count() + 1)
    }
}

/// A place in a [`Source`] and what to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The text that `span` indexes.
    pub source: Arc<Source>,
    /// Byte range of the place.
    pub span: Range<usize>,
    /// What to say under the caret; may be empty.
    pub text: String,
}

/// One finding, ready to be drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// `layer::kebab-name`, listed in `docs/errors.md`.
    pub id: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// A lowercase phrase without full stop that says what is, names in backticks.
    pub title: String,
    /// The first label is the primary one; the rest give context.
    pub labels: Vec<Label>,
    /// Facts that do not fit under a caret.
    pub notes: Vec<String>,
    /// Imperatives that name the fix.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// Starts an error.
    pub fn error(id: &'static str, title: impl Into<String>) -> Self {
        Self {
            id,
            severity: Severity::Error,
            title: title.into(),
            labels: Vec::new(),
            notes: Vec::new(),
            help: Vec::new(),
        }
    }

    /// Starts a warning.
    pub fn warning(id: &'static str, title: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(id, title) }
    }

    /// The same, work going on all the same.
    pub fn as_warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    /// Adds a labelled place; the first one added is the primary one.
    pub fn label(mut self, source: &Arc<Source>, span: Range<usize>, text: impl Into<String>) -> Self {
        self.labels.push(Label { source: Arc::clone(source), span, text: text.into() });
        self
    }

    /// Adds a fact.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Adds a fix.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }
}

/// Returns the candidate most like `word`, if one is near enough to be what was meant.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, candidate)| *likeness > 0.8 || strsim::levenshtein(word, candidate) <= 2)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_near() {
        let keys = ["temperature", "top_k", "seed"];
        assert_eq!(did_you_mean("tempreature", keys), Some("temperature"));
        assert_eq!(did_you_mean("queries", keys), None);
    }
}
