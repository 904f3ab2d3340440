//! What people ask of a cache: runs, what differs between them, curves, rates, samples. Data only; the terminal, the web page and the
//! report draw it.

pub mod diff;
pub mod figures;
pub mod metric;
pub mod run;
#[cfg(test)]
pub(crate) mod sample;
