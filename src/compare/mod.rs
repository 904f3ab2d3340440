//! What differs between two things: rows by id, tensors by name, texts word by word.
//!
//! Approach: everything is read as a stream, so that a million rows and a model of any size are compared in bounded
//! memory. Nothing here knows what is compared for; `cli` draws it.

mod rows;
mod tensors;
mod words;

pub use rows::{Differing, RowChanges, rows};
pub use tensors::{Form, Opening, TensorChange, TensorChanges, tensors};
pub use words::{Piece, lines, words};
