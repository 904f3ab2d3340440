//! The decoder on a CPU: what `plain.rs` computes, many times faster.
//!
//! - `tile.rs`, `matmul.rs`, `simd.rs`: products and rows of numbers. `pool.rs`: memory that is used again.
//! - `layout.rs`: a batch as one row of tokens without padding. `packed.rs`: weights as products want them.
//! - `forward.rs`, `attention.rs`, `linear.rs`, `dropout.rs`, `experts.rs`, `head.rs`: the passes. `backward.rs`, `gradients.rs`: their
//!   gradients. `scored.rs`: both together.
//! - `decode.rs`, `attend.rs`, `cache.rs`: prompts and what follows them, token by token.
//!
//! Two rules hold everywhere. Results do not depend on the number of threads: sums run in fixed blocks that are added in
//! order. A row's result does not depend on the other rows, to the bit: every number of a product is one chain over the
//! depth (`tile.rs`), and every other sum runs over one row only.

use super::layout;

mod attend;
mod attention;
mod backward;
mod cache;
mod decode;
mod dropout;
mod experts;
mod forward;
mod gradients;
mod head;
mod linear;
mod matmul;
mod packed;
mod pool;
mod scored;
mod simd;
mod tile;

#[cfg(test)]
pub(in crate::lm) mod tests;

pub(super) use decode::{Decoding, TOKENS_PER_PASS};
pub(super) use gradients::Gradients;
pub(super) use packed::{Kept, Packing};
pub(super) use scored::{Keep, Recalled, Scored, in_pool};
pub(super) use simd::{exp_all, top};

/// Whether products are chains of fused operations, as on all processors but old ones; results differ from those.
pub(super) fn fuses() -> bool {
    simd::level() > simd::Level::Generic || cfg!(any(target_arch = "aarch64", target_feature = "fma"))
}

/// The instructions that this processor has and the passes use.
pub(super) fn instructions() -> &'static str {
    match simd::level() {
        simd::Level::Generic => "those of every processor of this kind",
        simd::Level::Avx2 => "AVX2, FMA",
        simd::Level::Avx512 => "AVX-512",
    }
}
