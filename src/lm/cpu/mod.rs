//! The decoder on a CPU: what `plain.rs` computes, many times faster.
//!
//! - `tile.rs`, `matmul.rs`, `simd.rs`: products and rows of numbers. `pool.rs`: memory that is used again.
//! - `layout.rs`: a batch as one row of tokens without padding. `packed.rs`: weights as products want them.
//! - `forward.rs`, `attention.rs`, `head.rs`: the passes. `backward.rs`, `gradients.rs`: their gradients. `scored.rs`: both
//!   together; `graph.rs`: the same in candle's graph.
//! - `decode.rs`: token by token.
//!
//! Two rules hold everywhere. Results do not depend on the number of threads: sums run in fixed blocks that are added in
//! order. A row's result does not depend on the other rows, to the bit: every number of a product is one chain over the
//! depth (`tile.rs`), and every other sum runs over one row only.

mod attention;
mod backward;
mod decode;
mod forward;
mod gradients;
mod graph;
mod head;
mod layout;
mod matmul;
mod packed;
mod pool;
mod scored;
mod simd;
mod tile;

#[cfg(test)]
mod tests;

pub(super) use decode::Decoding;
pub(super) use gradients::Gradients;
pub(super) use graph::{in_pool, scores_of};
pub(super) use packed::{Kept, can};
pub(super) use scored::{Keep, Recalled, Scored};
pub(super) use simd::exp_all;
