//! Deciding what has to run, and running it.
//!
//! Reading order: [`plan()`] (graph × store → hit, run or unknown), `source` (datasets and models from outside),
//! `scheduler` (the states of a node and the loop over them), `job` (what scheduler and worker tell each other),
//! `local` (starting a worker), [`work`] (what every attempt is), [`Event`] (what a run tells while it goes on).

mod error;
mod event;
mod plan;
mod scheduler;
mod worker;

pub use error::ExecError;
pub use event::Event;
pub use plan::{Plan, PlanOptions, Reason, State, plan};
pub use scheduler::{RunOptions, Summary, run};
pub use worker::work;
