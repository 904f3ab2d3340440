//! `sami`: language-model alignment pipelines as a content-hashed DAG of cached steps.
//!
//! # Layout
//! In layer order; `tests/it/layers.rs` holds each module to what it may import.
//! - [`diag`], [`digest`], [`mod@env`]: findings, content hashes, environment variables. [`fs`]: the door to the disk.
//!   [`secret`]: what must not be seen.
//! - [`pieces`]: files whose bytes lie in several.
//! - [`pipeline`]: TOML to typed nodes. [`graph`]: nodes to a DAG with keys.
//! - [`store`]: artifacts on disk. [`lm`]: the language model. [`hub`]: models from the Hugging Face Hub.
//! - [`compare`]: what differs between rows, tensors and texts.
//! - [`endpoint`]: models that are spoken to over HTTP.
//! - [`settings`]: `sami.toml`. [`remote`]: artifacts shared in buckets and directories.
//! - [`archive`]: artifacts in one file.
//! - [`kinds`]: what each node kind does, on top of those.
//! - [`schema`]: what editors know of pipelines and `sami.toml`.
//! - [`collective`]: processes that compute one thing together.
//! - [`inspect`]: what people ask of a cache. [`plot`]: pictures. [`ui`]: both as a web page.
//! - [`exec`]: what to run and running it. [`trackers`]: how that goes, told to TensorBoard and MLflow. [`cli`]: what people type and see.
//!
//! Reading order: `docs/architecture.md`.

pub mod amount;
pub mod archive;
pub mod cli;
pub mod collective;
pub mod compare;
pub mod depth;
pub mod diag;
pub mod digest;
pub mod endpoint;
pub mod env;
pub mod exec;
pub mod fs;
#[doc(hidden)]
pub mod fuzz;
pub mod graph;
pub mod hub;
pub mod inspect;
pub mod kinds;
pub mod lm;
pub mod pieces;
pub mod pipeline;
pub mod plot;
pub mod remote;
pub mod schema;
pub mod secret;
pub mod settings;
pub mod shell;
pub mod store;
pub mod trackers;
pub mod ui;
