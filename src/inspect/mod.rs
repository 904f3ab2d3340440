//! What people ask of a cache, as data: `cli` and `ui` show the same answers.
//!
//! Nothing here prints, and nothing writes to the cache.

pub mod lineage;
pub mod rows;
