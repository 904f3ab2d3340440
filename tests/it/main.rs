//! The integration tests: one binary, because each would link the language model again.

mod bad_cache;
mod bad_input;
mod docs;
mod keys;
mod layers;
mod lm_golden;
mod pictures;
mod real;
mod sandbox;
