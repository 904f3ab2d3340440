//! Judges: who says which of two responses follows a constitution better.

pub(super) mod model;
pub(super) mod prompt;
pub mod rules;
pub(super) mod verdict;
