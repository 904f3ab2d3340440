//! Judges: who says which of two responses follows a constitution better.

pub mod rules;
