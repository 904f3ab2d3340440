//! What people ask of a cache, as data: the command line, the web page and the report draw from it.

pub mod diff;
pub mod figures;
pub mod metric;
pub mod run;
#[cfg(test)]
pub(crate) mod sample;
