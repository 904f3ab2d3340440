//! Pictures: data in, SVG out. What is in them that came from elsewhere is escaped here, so that a page may take them as they are.
//!
//! Colours are the page's (`--series-N`, `--ink`, `--faint`, `--line`), with others where it has none, so that a picture can stand
//! alone. Nothing is said by colour alone.

pub mod axis;
pub mod bars;
pub mod curve;
pub mod svg;
