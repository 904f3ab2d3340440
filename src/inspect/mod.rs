//! What people ask of a cache, as data: the command line and the web page draw from it.

pub(crate) mod figures;
