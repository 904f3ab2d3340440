//! What went wrong with a request, as a page that says so and what to do.

use std::io;

use serde::Serialize;

use crate::diag::Diagnostic;
use crate::exec::ExecError;
use crate::store::StoreError;

/// Why a page cannot be shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Problem {
    /// The status of HTTP.
    pub status: u16,
    /// What is wrong, one or more findings.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// The id of its page in `docs/errors.md`; empty of what is about the request alone.
    pub id: String,
    /// What is, in a phrase.
    pub title: String,
    /// Where, as `FILE:LINE:COLUMN`.
    pub places: Vec<String>,
    /// Facts.
    pub notes: Vec<String>,
    /// What to do.
    pub help: Vec<String>,
}

impl Problem {
    /// Of a status, with what is wrong and what to do.
    pub fn new(status: u16, title: impl Into<String>, help: impl Into<String>) -> Self {
        let (places, notes) = (Vec::new(), Vec::new());
        let finding = Finding { id: String::new(), title: title.into(), places, notes, help: vec![help.into()] };
        Self { status, findings: vec![finding] }
    }

    /// The address is at fault.
    pub fn request(title: impl Into<String>) -> Self {
        Self::new(400, title, "go back, or begin at the overview")
    }

    /// What is asked for is not there, or not any more.
    pub fn absent(title: impl Into<String>) -> Self {
        Self::new(404, title, "it may have been removed since the page was made: reload that one")
    }
}

impl From<Vec<Diagnostic>> for Problem {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        let place = |label: &crate::diag::Label| {
            let (line, column) = label.source.position(label.span.start);
            let what = if label.text.is_empty() { String::new() } else { format!(": {}", label.text) };
            format!("{}:{line}:{column}{what}", label.source.path)
        };
        let finding = |diagnostic: Diagnostic| Finding {
            id: diagnostic.id.to_owned(),
            title: diagnostic.title,
            places: diagnostic.labels.iter().map(place).collect(),
            notes: diagnostic.notes,
            help: diagnostic.help,
        };
        Self { status: 500, findings: diagnostics.into_iter().map(finding).collect() }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let status = match &error {
            StoreError::NoArtifact(_) | StoreError::Unknown(_) => 404,
            StoreError::Ambiguous { .. } | StoreError::BadName(_) => 400,
            StoreError::Absent { .. } | StoreError::InUse => 503,
            // Moved away between two looks: what a gc does.
            StoreError::Io(error) if error.kind() == io::ErrorKind::NotFound => 404,
            _ => 500,
        };
        Self { status, ..vec![error.diagnostic()].into() }
    }
}

impl From<ExecError> for Problem {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Store(error) => error.into(),
            other => other.diagnostics().into(),
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        StoreError::from(error).into()
    }
}
