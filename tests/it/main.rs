//! The integration tests: one binary, because each would link the language model again.

mod behaviour;
mod docs;
mod keys;
mod kill;
mod layers;
mod lm_golden;
mod pictures;
mod real;
mod sandbox;
mod scheduler;
