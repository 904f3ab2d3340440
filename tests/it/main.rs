//! The integration tests: one binary, because each would link the language model again.

mod adapters;
mod bad_cache;
mod bad_input;
mod bad_model;
mod behaviour;
mod chat;
mod cli;
mod docs;
mod doctor;
mod explain;
mod gguf;
mod gradients;
mod hub;
mod hub_server;
mod keys;
mod kill;
mod layers;
mod lm_families;
mod lm_golden;
mod parity;
mod pictures;
mod quickstart;
mod real;
mod resume;
mod sandbox;
mod scheduler;
