//! What people ask of a cache, as data: the command line and the web page draw from it.
//!
//! Nothing here prints, and nothing writes to the cache.

pub mod contrast;
pub(crate) mod figures;
pub mod lineage;
pub mod rows;
