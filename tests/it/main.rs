//! The integration tests: one binary, because each would link the language model again.

mod docs;
mod keys;
mod layers;
mod lm_golden;
mod pictures;
mod real;
mod sandbox;
