//! Where an artifact comes from, and what it went into.

mod follow;
mod walk;

pub use follow::{Follow, Rows, first_ids, is_rows, stances};
pub use walk::{Item, Lineage, Link, Made, Way, walk, walk_some};
