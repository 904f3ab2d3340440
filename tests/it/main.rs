//! The integration tests: one binary, because each would link the language model again.

mod bad_cache;
mod bad_input;
mod bad_model;
mod behaviour;
mod cli;
mod cuda;
mod docs;
mod doctor;
mod explain;
mod gradients;
mod hub;
mod hub_server;
mod keys;
mod kill;
mod layers;
mod lm_golden;
mod pictures;
mod quickstart;
mod real;
mod resume;
mod sandbox;
mod scheduler;
