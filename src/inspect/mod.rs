//! What people ask of a cache, as data: the command line and the web page draw from it.

pub mod dag;
pub(crate) mod figures;
pub mod story;
