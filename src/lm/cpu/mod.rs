//! The decoder on a CPU.

pub(super) mod simd;
