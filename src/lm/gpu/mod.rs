//! The decoder on devices other than the CPU: what `plain.rs` computes, in candle's operations over packed tokens.
//!
//! - `ops.rs`, `linear.rs`: the parts of a layer, each with the gradient that belongs to it. `kernels/`: CUDA kernels of our
//!   own for some; `plain.rs`: the same in candle's operations.
//! - `attention.rs`: queries over the keys of their sequences; `gathered.rs`: the same in padded batches. `experts.rs`: mixtures.
//! - `pass.rs`: all layers, forward and backward. `head.rs`: from hidden states to log-probabilities, in chunks.
//! - `scored.rs`: a pass over a batch. `decode.rs`: token by token; `replay.rs`: as CUDA graphs.
//!
//! No graph is built inside of it: weights are used detached, and gradients are made by hand. candle's own would start
//! each as zeros and add to it, make those of frozen weights too, and keep all activations. A layer's activations are made
//! again on the way back, from its input.
//!
//! It computes in the type of the model's weights; norms, softmax and sums over the vocabulary in f32. It runs on any of
//! candle's devices: the tests hold it to `plain.rs` on the CPU.

mod attention;
mod decode;
mod experts;
mod gathered;
mod head;
pub(super) mod kernels;
mod linear;
mod ops;
mod pass;
mod plain;
mod replay;
mod scored;

#[cfg(test)]
mod tests;

pub(super) use decode::{Decoding, picks};
pub(super) use kernels::NONE;
pub(super) use linear::Gradients;
pub(super) use scored::Scored;
