//! Principles, the constitutions that are made of them, and the rule by which they are drawn.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::draw::Draw;
use super::provenance::Provenance;

mod drawer;
mod size;
#[cfg(test)]
mod tests;

pub use drawer::Drawer;
pub use size::Size;

/// A principle: what a response that follows it is like, and what one that goes against it is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principle {
    /// The principle itself.
    pub definition: String,
    /// Its opposite.
    pub antithesis: String,
}

/// Which constitutions are held against each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Contrast {
    /// The first is all positive; each other has at least one antithesis.
    #[default]
    PositiveVsAntithesis,
    /// Pairs of which the second flips every principle of the first.
    Complement,
    /// Distinct polarities, all alike.
    Uniform,
}

/// How principles become a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `1. …`, a line each.
    #[default]
    Numbered,
    /// A line each.
    Lines,
    /// Joined by a space.
    Plain,
}

/// What training never sees: a share of the combinations, or whole principles.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HoldOut {
    /// A share of all combinations.
    pub share: f64,
    /// Names of principles: training draws from the others only, and held-out constitutions have no others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principles: Vec<String>,
}

/// The part of the combinations that constitutions are drawn from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Those not held out.
    #[default]
    Train,
    /// Those held out.
    HeldOut,
    /// All.
    All,
}

/// Whether a constitution wants a principle or its opposite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Polarity {
    /// The definition.
    Definition,
    /// The antithesis.
    Antithesis,
}

/// A principle in a constitution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stance {
    /// The principle's name.
    pub name: String,
    /// For or against it.
    pub polarity: Polarity,
    /// The wording.
    pub text: String,
}

/// A constitution drawn for a query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constitution {
    /// The text as it goes into a prompt.
    pub text: String,
    /// How the text is made of the principles.
    pub format: Format,
    /// The principles in order.
    pub principles: Vec<Stance>,
}

impl Constitution {
    /// A constitution of these principles in this order.
    pub fn new(format: Format, principles: Vec<Stance>) -> Self {
        let parts = principles.iter().map(|stance| stance.text.trim());
        let text = match format {
            Format::Numbered => {
                parts.enumerate().map(|(i, part)| format!("{}. {part}", i + 1)).collect::<Vec<_>>().join("\n")
            }
            Format::Lines => parts.collect::<Vec<_>>().join("\n"),
            Format::Plain => parts.collect::<Vec<_>>().join(" "),
        };
        Self { text, format, principles }
    }

    /// The same principles in another order; a text that was not made of principles stays as it is.
    pub fn shuffled(&self, seed: u64) -> Self {
        if self.principles.is_empty() {
            return self.clone();
        }
        let mut principles = self.principles.clone();
        Draw::new(seed).shuffle(&mut principles);
        Self::new(self.format, principles)
    }
}

/// `constitutions.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Constitutions {
    /// What the principles are for.
    pub task: Option<String>,
    /// Which constitutions are held against each other.
    pub contrast: Contrast,
    /// Constitutions for a query.
    pub per_query: usize,
    /// Principles in a constitution.
    pub size: Size,
    /// What training never sees.
    pub hold_out: HoldOut,
    /// Principles that are in every constitution, flipped in each but the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must_flip: Vec<String>,
    /// How principles become a text.
    pub format: Format,
    /// Seed of all draws.
    pub seed: u64,
    /// Principles by name.
    pub principles: IndexMap<String, Principle>,
    /// Who wrote them, if a model had a hand in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

impl Constitutions {
    /// A principle alone: the constitution of its definition, and that of its antithesis.
    pub fn alone(&self, name: &str) -> Option<[Constitution; 2]> {
        let principle = self.principles.get(name)?;
        let one = |polarity, text: &String| {
            let stance = Stance { name: name.to_owned(), polarity, text: text.clone() };
            Constitution::new(self.format, vec![stance])
        };
        Some([one(Polarity::Definition, &principle.definition), one(Polarity::Antithesis, &principle.antithesis)])
    }
}
