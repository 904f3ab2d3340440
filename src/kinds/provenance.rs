//! Who wrote the principles, where a model had a hand in them.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// How principles came about that a model wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Content id of the model's artifact.
    pub writer: String,
    /// Its name at the endpoint, if it has no weights here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it was asked and answered, the last answer being the one that was taken.
    pub attempts: Vec<Attempt>,
    /// Whose each text is, by principle.
    pub principles: IndexMap<String, Sources>,
}

/// A question to the writer, and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1.
    pub attempt: usize,
    /// Seed of the answer.
    pub seed: u64,
    /// Digest of what was said to the writer, system message included.
    pub prompt: String,
    /// What it answered.
    pub reply: String,
    /// Why that could not be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// Whose the texts of a principle are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The definition's.
    pub definition: Source,
    /// The antithesis's.
    pub antithesis: Source,
}

/// Who wrote a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// It stands in the pipeline.
    Given,
    /// The writer.
    Written,
}
