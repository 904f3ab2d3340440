//! Dropout on what adapters see of a linear layer's input.
//!
//! What is left out of a row is a function of a seed and of the row's own bits, which do not depend on the rest of the
//! batch, on threads or on how a step is cut into passes. So the backward pass leaves out the same without having kept
//! anything.

use crate::lm::adapter::Noise;
use crate::lm::random::hash;

/// Writes rows (N, width) with a share of their numbers set to 0, the others grown by what that takes away on average.
pub(super) fn drop_some(noise: Noise, x: &[f32], width: usize, out: &mut [f32]) {
    each(noise, x, width, |at, factor| out[at] = x[at] * factor);
}

/// Adds to the gradient to rows `x` (N, width) that to what was left of them.
pub(super) fn add_back(noise: Noise, x: &[f32], width: usize, gradient: &[f32], to: &mut [f32]) {
    each(noise, x, width, |at, factor| to[at] += gradient[at] * factor);
}

/// Calls with each number's place and what it is multiplied with.
fn each(noise: Noise, x: &[f32], width: usize, mut of: impl FnMut(usize, f32)) {
    let kept = (1.0 / (1.0 - noise.share)) as f32;
    // Of 2³²; a draw below is left out.
    let below = (noise.share * 4_294_967_296.0) as u64;
    for (row, x) in x.chunks_exact(width).enumerate() {
        let key = x.iter().fold(noise.seed, |key, number| hash(key, u64::from(number.to_bits())));
        for pair in 0..width.div_ceil(2) {
            let bits = hash(key, pair as u64);
            let first = row * width + 2 * pair;
            of(first, if (bits & 0xffff_ffff) < below { 0.0 } else { kept });
            if 2 * pair + 1 < width {
                of(first + 1, if (bits >> 32) < below { 0.0 } else { kept });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_left_out_and_the_mean_stays() {
        let noise = Noise { seed: 3, share: 0.3 };
        let (rows, width) = (400, 61);
        let x: Vec<f32> = (0..rows * width).map(|at| 1.0 + (at as f32 * 0.37).sin() * 0.1).collect();
        let mut out = vec![0.0; x.len()];
        drop_some(noise, &x, width, &mut out);
        let gone = out.iter().filter(|number| **number == 0.0).count() as f64 / out.len() as f64;
        assert!((gone - 0.3).abs() < 0.01, "{gone}");
        let factor = (1.0 / 0.7) as f32;
        assert!(out.iter().zip(&x).all(|(out, x)| *out == 0.0 || *out == x * factor));
        // The same rows among others, and another seed.
        let mut one = vec![0.0; width];
        drop_some(noise, &x[7 * width..8 * width], width, &mut one);
        assert_eq!(one, out[7 * width..8 * width]);
        drop_some(Noise { seed: 4, ..noise }, &x[7 * width..8 * width], width, &mut one);
        assert_ne!(one, out[7 * width..8 * width]);
        let mut to = vec![1.0; x.len()];
        add_back(noise, &x, width, &vec![2.0; x.len()], &mut to);
        assert!(to.iter().zip(&out).all(|(to, out)| *to == if *out == 0.0 { 1.0 } else { 1.0 + 2.0 * factor }));
    }
}
