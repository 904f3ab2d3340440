//! Pictures: data in, text out. Knows nothing of runs, stores or terminals.

pub mod text;
