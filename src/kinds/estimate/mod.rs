//! What a node will come to, before it runs: rows, tokens, steps, memory, disk, calls.
//!
//! Reading order: [`Amount`] (a number, and how sure it is), [`Facts`] (what is known of an artifact before it is there),
//! [`Known`] (what a kind is told), [`Estimate`] (what it says). The kinds' own sums are in `rowwise` and `training`.
//!
//! Nothing here is exact unless it says so. Prompts are filled in for a few rows; a token is four letters where the
//! tokenizer is not at hand; what a model writes is bounded by what it may.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Serialize;

pub use crate::lm::{Footprint, Place};
use crate::pipeline::RunFields;

mod amount;
mod facts;
mod rowwise;
mod training;

pub use amount::{Amount, How};
pub use facts::{Facts, ModelFacts, Principles};
pub(super) use rowwise::{constitutions, evaluate, generate, probe, score};
pub(super) use training::{finetune, init};

/// Letters of a token, roughly, where no tokenizer is at hand.
const LETTERS_PER_TOKEN: u64 = 4;

/// What a node will come to. What is `None` does not apply, or is not known.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Estimate {
    /// Rows that are worked on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<Amount>,
    /// Tokens that models read; what many sequences begin with is counted once where it is read once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_read: Option<Amount>,
    /// Tokens that models write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_written: Option<Amount>,
    /// Steps of the optimiser.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Amount>,
    /// Tokens that are trained on, in all steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_trained: Option<Amount>,
    /// The device's memory at the peak, by what holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Footprint>,
    /// Where it holds that.
    #[serde(skip)]
    pub place: Option<Place>,
    /// Bytes that are kept: the artifact, and rows that are remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Amount>,
    /// Bytes that lie beside it while it is made: checkpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<Amount>,
    /// Questions to a judge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge_calls: Option<Amount>,
    /// Questions to a writer of principles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer_calls: Option<Amount>,
    /// Calls to endpoints of any kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_calls: Option<Amount>,
    /// What endpoints with prices take for it at most, in their currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Why something is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// What is known of what it makes.
    #[serde(skip)]
    pub made: Facts,
}

impl Estimate {
    /// That nothing can be said, and why.
    pub fn unknown(why: impl Into<String>) -> Self {
        let why = why.into();
        Self { made: Facts::unknown(why.clone()), unknown: Some(why), ..Self::default() }
    }
}

/// What a kind is told about a node.
#[derive(Debug)]
pub struct Known<'a> {
    /// What is known of the inputs, by field path, sliced as the reference says.
    pub inputs: BTreeMap<&'a str, Facts>,
    /// Execution fields.
    pub run: &'a RunFields,
    /// Where it will run.
    pub place: Place,
}

impl Known<'_> {
    fn input(&self, path: &str) -> &Facts {
        static NOTHING: LazyLock<Facts> = LazyLock::new(Facts::default);
        self.inputs.get(path).unwrap_or(&NOTHING)
    }

    /// Why something about some inputs is not known.
    fn why(&self, paths: &[&str]) -> Option<String> {
        paths.iter().find_map(|path| self.input(path).unknown.clone())
    }
}

#[cfg(test)]
mod tests;
