//! What people ask of a cache, as data: the command line, the web page and the report draw from it.
//!
//! Nothing here prints, and nothing writes to the cache.

pub mod artifact;
pub mod attempts;
pub mod compare;
pub mod contrast;
pub mod dag;
pub mod diff;
pub mod evaluation;
pub mod figures;
pub mod lineage;
pub mod metric;
pub mod name;
pub mod origin;
pub mod reasons;
pub mod rows;
pub mod run;
#[cfg(test)]
pub(crate) mod sample;
pub mod samples;
pub mod story;
pub mod training;
