//! The row memo as kinds see it: typed results of single rows, kept across attempts, nodes and pipelines.
//!
//! A *space* holds the rows of one computation (models by content, fields that decide results, class of device); within it a
//! row goes by the digest of what else decides its result (prompt text and seed). [`crate::store::rows`] keeps them.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Cx, NodeError};
use crate::digest::{Digest, Hasher};
use crate::store::Store;
use crate::store::rows::{About, NewRow, RowSpace};

/// Raised when equal rows would give other results.
const VERSION: u64 = 1;
/// The class of device that is not in a space's id: rows that were kept before there were classes are of it.
const DEFAULT_CLASS: &str = "cpu";
/// Letters of the beginning and of the end of what was asked that are kept with a result.
const SHOWN: usize = 60;

/// A computation whose rows are remembered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Space {
    /// What its rows are kept under.
    pub(super) id: Digest,
    /// The same for people.
    pub(super) about: About,
}

impl Space {
    /// What is computed here on a class of device with these models, by content, and fields.
    pub(super) fn here(what: &str, models: &[&Digest], fields: Value, class: &str) -> Self {
        Self::new(what, models, fields, Some(class.to_owned()))
    }

    /// What an endpoint says; its rows cost money.
    pub(super) fn called(what: &str, endpoint: &Digest, model: &str, fields: Value) -> Self {
        let mut space = Self::new(what, &[endpoint], fields, None);
        space.about.paid = true;
        space.about.model = Some(model.to_owned());
        space
    }

    fn new(what: &str, models: &[&Digest], fields: Value, class: Option<String>) -> Self {
        let mut hasher = Hasher::new();
        hasher.text(what).number(VERSION).digest(&Digest::of_value(&fields));
        for model in models {
            hasher.digest(model);
        }
        if let Some(class) = class.as_ref().filter(|class| *class != DEFAULT_CLASS) {
            hasher.text("class").text(class);
        }
        let models = models.iter().map(|model| **model).collect();
        let about = About { what: what.to_owned(), models, fields, class, paid: false, model: None };
        Self { id: hasher.finish(), about }
    }
}

/// An open space; one that remembers nothing where a node is audited.
pub(super) struct RowMemo {
    space: Option<RowSpace>,
    added: bool,
}

impl RowMemo {
    /// Opens a space for a node.
    pub(super) fn open(cx: &Cx<'_>, space: &Space) -> Result<Self, NodeError> {
        let space = if cx.afresh { None } else { Some(cx.store.open_rows(&space.id, space.about.clone())?) };
        Ok(Self { space, added: false })
    }

    /// The results of rows, where they are known.
    pub(super) fn find<V: DeserializeOwned>(&mut self, keys: &[Digest]) -> Result<Vec<Option<V>>, NodeError> {
        let mut values: Vec<Option<V>> = keys.iter().map(|_| None).collect();
        if let Some(space) = &mut self.space {
            space.read(keys, |at, value| {
                values[at] = serde_json::from_str(value).ok();
                values[at].is_some()
            })?;
        }
        Ok(values)
    }

    /// Adds the results of a batch, each with a word on what was asked; once this returns they survive anything.
    pub(super) fn add<V: Serialize>(&mut self, batch: &[(Digest, V, String)]) -> Result<(), NodeError> {
        let Some(space) = &mut self.space else { return Ok(()) };
        let mut values = Vec::with_capacity(batch.len());
        for (_, value, _) in batch {
            let value = serde_json::to_string(value);
            values.push(value.map_err(|error| NodeError::failed(format!("a row's result cannot be kept: {error}")))?);
        }
        let rows = batch.iter().zip(&values);
        let rows: Vec<NewRow<'_>> =
            rows.map(|((key, _, note), value)| NewRow { key: *key, value, note: Some(note) }).collect();
        space.add(&rows)?;
        self.added = true;
        crate::fs::kill_point("batch");
        Ok(())
    }

    /// Ends the use of the space, by a node of this name.
    pub(super) fn finish(self, store: &Store, node: &str) {
        if let Some(space) = self.space {
            space.finish(node);
        }
        if self.added {
            store.bound_rows();
        }
    }
}

/// The beginning and the end of a text, to be shown beside a result.
pub(super) fn note(text: &str) -> String {
    let count = text.chars().count();
    if count <= 2 * SHOWN + 3 {
        return text.to_owned();
    }
    let begin: String = text.chars().take(SHOWN).collect();
    let end: String = text.chars().skip(count - SHOWN).collect();
    format!("{begin} … {end}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whatever_decides_results_is_in_the_id_and_the_cpu_is_not() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let space =
            |what: &str, models: &[&Digest], fields: Value, class: &str| Space::here(what, models, fields, class).id;
        let base = space("kl", &[&a, &b], json!({"top_p": 1.0}), "cpu");
        let others = [
            space("sample", &[&a, &b], json!({"top_p": 1.0}), "cpu"),
            space("kl", &[&b, &a], json!({"top_p": 1.0}), "cpu"),
            space("kl", &[&a], json!({"top_p": 1.0}), "cpu"),
            space("kl", &[&a, &b], json!({"top_p": 0.9}), "cpu"),
            space("kl", &[&a, &b], json!({"top_p": 1.0}), "cuda:sm_90"),
            space("kl", &[&a, &b], json!({"top_p": 1.0}), "cuda:sm_80"),
        ];
        for (at, other) in others.iter().enumerate() {
            assert!(*other != base && !others[..at].contains(other), "{at}");
        }
        // As spaces were named before there were classes.
        let mut hasher = Hasher::new();
        hasher.text("kl").number(1).digest(&Digest::of_value(&json!({"top_p": 1.0}))).digest(&a).digest(&b);
        assert_eq!(base, hasher.finish());
        // What is called is the same wherever it is called from.
        let mut hasher = Hasher::new();
        hasher.text("speak").number(1).digest(&Digest::of_value(&json!({}))).digest(&a);
        let called = Space::called("speak", &a, "gpt", json!({}));
        assert_eq!((called.id, called.about.paid), (hasher.finish(), true));
    }

    #[test]
    fn notes_show_both_ends() {
        assert_eq!(note("why?"), "why?");
        let long = format!("rules{}why?", "ü".repeat(200));
        let note = note(&long);
        assert!(note.starts_with("rulesü") && note.contains(" … ") && note.ends_with("üwhy?"));
        assert_eq!(note.chars().count(), 2 * SHOWN + 3);
    }
}
