//! Why a node is stale, in sentences with the changes that they rest on.

use serde::Serialize;

use super::figures::{bytes, some};
use crate::exec::{Finding, Reason, Step};
use crate::graph::key::Change;

/// Inputs that are named in a sentence.
const INPUTS: usize = 4;
/// Longest value that is told of a change.
const LONGEST: usize = 400;

/// A step of an explanation: about which node or source, what is so, and what changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// The node; for a source the name of the dataset or model.
    pub name: String,
    /// Whether `name` is a node's.
    pub is_node: bool,
    /// What is so, without the name.
    pub sentence: String,
    /// What changed.
    pub changes: Vec<Changed>,
}

/// A field or input that changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changed {
    /// The field, `input NAME`, `kind` or `version`.
    pub path: String,
    /// What it was; `None` if it was not there.
    pub old: Option<String>,
    /// What it is; `None` if it is no longer there.
    pub new: Option<String>,
}

impl From<&Change> for Changed {
    fn from(change: &Change) -> Self {
        let told = |value: &serde_json::Value| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            match text.char_indices().nth(LONGEST) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        };
        Self { path: change.path.clone(), old: change.old.as_ref().map(told), new: change.new.as_ref().map(told) }
    }
}

/// A step in words.
pub fn told(step: &Step) -> Told {
    let all = |changes: &[Change]| changes.iter().map(Changed::from).collect::<Vec<_>>();
    let (sentence, changes) = match &step.finding {
        Finding::Fresh { .. } => ("is fresh".to_owned(), Vec::new()),
        Finding::Runs { reason: Reason::Changed(changes), .. } => {
            ("has to run: its recipe changed".to_owned(), all(changes))
        }
        Finding::Runs { reason, like: Some((cell, changes)), .. } => {
            (format!("has to run: {reason}; it is most like {cell}, from which it differs in"), all(changes))
        }
        Finding::Runs { reason, .. } => (format!("has to run: {reason}"), Vec::new()),
        Finding::Waits { inputs, changes } => {
            let names: Vec<&str> = inputs.iter().map(|(_, name)| name.as_str()).collect();
            let fields: Vec<&str> = inputs.iter().map(|(input, _)| input.as_str()).collect();
            let (names, fields) = (some(&names, ", ", INPUTS), some(&fields, ", ", INPUTS));
            let known = if changes.is_empty() { "" } else { "; whatever that gives, it has to run, for it changed in" };
            let (are, give) = if inputs.len() == 1 { ("is", "gives") } else { ("are", "give") };
            (format!("is known only when {names} {are} there, which {give} its {fields}{known}"), all(changes))
        }
        Finding::Remade { changes } => ("made that anew, for it changed in".to_owned(), all(changes)),
        Finding::Differs => {
            ("made that anew from the same inputs and fields, with another result".to_owned(), Vec::new())
        }
        Finding::Source { old, new, taken } => {
            let change = Changed {
                path: format!("input {}", taken.1),
                old: Some(old.short()),
                new: new.as_ref().map(crate::digest::Digest::short),
            };
            ("comes from outside and is not what it was".to_owned(), vec![change])
        }
        Finding::Absent { bytes: size } => {
            let size = size.map_or_else(String::new, |size| format!(" ({})", bytes(size)));
            (format!("is not downloaded yet{size}"), Vec::new())
        }
    };
    let is_node = !matches!(step.finding, Finding::Source { .. } | Finding::Absent { .. });
    Told { name: step.name.clone(), is_node, sentence, changes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_step_is_told_with_its_changes() {
        let change = Change { path: "optimizer.lr".into(), old: Some(json!(1e-6)), new: Some(json!("x".repeat(999))) };
        let finding = Finding::Remade { changes: vec![change] };
        let step = told(&Step { name: "train".into(), finding });
        assert_eq!((step.changes[0].old.as_deref(), step.is_node), (Some("1e-6"), true));
        assert_eq!(step.changes[0].new.as_ref().map(|new| new.chars().count()), Some(LONGEST + 1));
        let waits = Finding::Waits { inputs: vec![("model".into(), "base".into())], changes: Vec::new() };
        let step = told(&Step { name: "train".into(), finding: waits });
        assert_eq!(step.sentence, "is known only when base is there, which gives its model");
    }
}
