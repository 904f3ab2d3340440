//! The integration tests: one binary, because each would link the language model again.

mod bad_cache;
mod bad_input;
mod behaviour;
mod docs;
mod gradients;
mod keys;
mod kill;
mod layers;
mod lm_golden;
mod pictures;
mod real;
mod sandbox;
mod scheduler;
