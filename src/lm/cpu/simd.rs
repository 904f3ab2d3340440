//! Rows of numbers: what the processor can do, and the sums and functions over a row.
//!
//! Every sum runs in one order, whatever the processor: thirty-two running sums, then those in order, then the rest. Rust
//! never contracts a product and a sum into one operation by itself, so that these functions give the same bits for all
//! levels.

#![expect(clippy::inline_always, reason = "what is not inlined into a level's function is not compiled for the level")]

use std::sync::OnceLock;

/// What the processor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// What the compiler's target says.
    Generic,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// The best level of this processor.
pub(super) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (fma, wide) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        (false, _) => Level::Generic,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Generic
}

/// Compiles a function once for each level and calls the one for this processor.
macro_rules! for_each_level {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        #[cfg(target_arch = "x86_64")]
        $vis fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($argument: $type),*) $(-> $result)? $body
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn avx512($($argument: $type),*) $(-> $result)? { body($($argument),*) }
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) $(-> $result)? { body($($argument),*) }
            match level() {
                #[expect(unsafe_code, reason = "the compiler cannot know what `level` found")]
                // SAFETY: `level` has found these features.
                Level::Avx512 => unsafe { avx512($($argument),*) },
                #[expect(unsafe_code, reason = "the compiler cannot know what `level` found")]
                // SAFETY: `level` has found these features.
                Level::Avx2 => unsafe { avx2($($argument),*) },
                Level::Generic => body($($argument),*),
            }
        }
        $(#[$doc])*
        #[cfg(not(target_arch = "x86_64"))]
        $vis fn $name($($argument: $type),*) $(-> $result)? $body
    };
}

/// e^x by operations that are the same on every platform (Cephes' polynomial), within 2 units in the last place.
///
/// Below −87 it is e^−87, above 88 it is e^88: results are never subnormal or infinite.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding and taking away 1.5 · 2²³ rounds to a whole number.
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    y * f32::from_bits((((n as i32) + 127) << 23) as u32)
}

const LANES: usize = 32;

/// Folds a row into one number in the module's order.
#[inline(always)]
fn fold(x: &[f32], start: f32, take: impl Fn(f32, f32) -> f32, merge: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = take(*lane, *value);
        }
    }
    let total = lanes.into_iter().fold(start, merge);
    rest.iter().fold(total, |total, value| take(total, *value))
}

#[inline(always)]
fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    fold(x, 0.0, |total, value| total + of(value), |a, b| a + b)
}

#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let max = |a: f32, b: f32| if b > a { b } else { a };
    fold(x, f32::NEG_INFINITY, max, max)
}

/// The sum of the products of two rows, in the module's order.
#[inline(always)]
fn dot_of(x: &[f32], y: &[f32], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = (x.len() / LANES * LANES, x.len());
    for (x, y) in x[..whole].chunks_exact(LANES).zip(y[..whole].chunks_exact(LANES)) {
        for lane in 0..LANES {
            lanes[lane] += of(x[lane], y[lane]);
        }
    }
    let total: f32 = lanes.into_iter().sum();
    x[whole..rest].iter().zip(&y[whole..rest]).fold(total, |total, (x, y)| total + of(*x, *y))
}

for_each_level! {
    /// Σ x·y.
    pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
        dot_of(x, y, |x, y| x * y)
    }
}

for_each_level! {
    /// y += x.
    pub(super) fn add(y: &mut [f32], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += *x;
        }
    }
}

for_each_level! {
    /// y += x · factor.
    pub(super) fn add_times(y: &mut [f32], x: &[f32], factor: f32) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += *x * factor;
        }
    }
}

for_each_level! {
    /// x · factor, in place.
    pub(super) fn scale(x: &mut [f32], factor: f32) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

for_each_level! {
    /// Makes softmax(x · scale) of x, in place.
    pub(super) fn softmax(x: &mut [f32], scale: f32) {
        let top = largest(x) * scale;
        for value in x.iter_mut() {
            *value = exp(*value * scale - top);
        }
        let inverse = 1.0 / sum(x, |value| value);
        for value in x.iter_mut() {
            *value *= inverse;
        }
    }
}

for_each_level! {
    /// Makes e^((x − the largest) · scale) of x, in place.
    pub(in crate::lm) fn exp_all(x: &mut [f32], scale: f32) {
        let top = largest(x);
        for value in x.iter_mut() {
            *value = exp((*value - top) * scale);
        }
    }
}

for_each_level! {
    /// The largest of a row; not a number if one of them is none.
    pub(in crate::lm) fn top(x: &[f32]) -> f32 {
        let broken = |broken: f32, value: f32| if value.is_nan() { value } else { broken };
        largest(x) + fold(x, 0.0, broken, |a, b| if a.is_nan() { a } else { b })
    }
}

for_each_level! {
    /// ln Σ e^x.
    pub(super) fn log_sum_exp(x: &[f32]) -> f32 {
        let top = largest(x);
        top + sum(x, |value| exp(value - top)).ln()
    }
}

for_each_level! {
    /// Σ p · (ln p − ln q) for ln p = x − of_x and ln q = y − of_y.
    pub(super) fn kl(x: &[f32], of_x: f32, y: &[f32], of_y: f32) -> f32 {
        let offset = of_y - of_x;
        dot_of(x, y, |x, y| exp(x - of_x) * (x - y + offset))
    }
}

for_each_level! {
    /// The gradient of `weight` · ln p(target) to the logits x, in place, without the target's own part: −weight · p.
    pub(super) fn logprob_backward(x: &mut [f32], of_x: f32, weight: f32) {
        for value in x.iter_mut() {
            *value = -weight * exp(*value - of_x);
        }
    }
}

for_each_level! {
    /// As [`logprob_backward`], and the gradient of `kl_weight` · KL: kl_weight · p · (ln p − ln q − KL).
    pub(super) fn kl_backward(x: &mut [f32], of_x: f32, y: &[f32], of_y: f32, weight: f32, kl_weight: f32, kl: f32) {
        let offset = of_y - of_x - kl;
        for (value, y) in x.iter_mut().zip(y) {
            *value = exp(*value - of_x) * (kl_weight * (*value - *y + offset) - weight);
        }
    }
}

for_each_level! {
    /// One row of RMS normalisation.
    pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let inverse = 1.0 / (sum(x, |value| value * value) / x.len() as f32 + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = *x * inverse * *weight;
        }
    }
}

for_each_level! {
    /// Adds the gradient to x to `dx`, and that to the weight to `dweight`.
    pub(super) fn rms_norm_backward(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        gradient: &[f32],
        dx: &mut [f32],
        dweight: &mut [f32],
    ) {
        let n = x.len();
        let (weight, gradient, dx, dweight) = (&weight[..n], &gradient[..n], &mut dx[..n], &mut dweight[..n]);
        let inverse = 1.0 / (sum(x, |value| value * value) / n as f32 + eps).sqrt();
        let mut lanes = [0.0; LANES];
        let whole = n / LANES * LANES;
        for start in (0..whole).step_by(LANES) {
            for lane in 0..LANES {
                lanes[lane] += gradient[start + lane] * weight[start + lane] * x[start + lane];
            }
        }
        let along = (whole..n).fold(lanes.into_iter().sum(), |total: f32, at| total + gradient[at] * weight[at] * x[at]);
        let back = along * inverse * inverse * inverse / n as f32;
        for at in 0..n {
            dx[at] += gradient[at] * weight[at] * inverse - x[at] * back;
            dweight[at] += gradient[at] * x[at] * inverse;
        }
    }
}

for_each_level! {
    /// Turns the pairs of one head by the angles of a position; by the opposite angles with `sign` −1.
    pub(super) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        let (first, second) = head.split_at_mut(half);
        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
            let sin = *sin * sign;
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

for_each_level! {
    /// silu(gate) · up.
    pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = *gate / (1.0 + exp(-*gate)) * *up;
        }
    }
}

for_each_level! {
    /// Writes the gradients to gate and up, and silu(gate) · up in place of the gradient to it.
    pub(super) fn swiglu_backward(gate: &[f32], up: &[f32], gradient: &mut [f32], to_gate: &mut [f32], to_up: &mut [f32]) {
        let n = gradient.len();
        let (gate, up, to_gate, to_up) = (&gate[..n], &up[..n], &mut to_gate[..n], &mut to_up[..n]);
        for at in 0..n {
            let sigmoid = 1.0 / (1.0 + exp(-gate[at]));
            let silu = gate[at] * sigmoid;
            to_gate[at] = gradient[at] * up[at] * (sigmoid + silu * (1.0 - sigmoid));
            to_up[at] = gradient[at] * silu;
            gradient[at] = silu * up[at];
        }
    }
}

for_each_level! {
    /// The gradient through a softmax of x · scale, in place of the gradient to its result.
    ///
    /// `along` is Σ probabilities · gradient, which for attention is the product of output and its gradient.
    pub(super) fn softmax_backward(probabilities: &[f32], gradient: &mut [f32], along: f32, scale: f32) {
        for (gradient, probability) in gradient.iter_mut().zip(probabilities) {
            *gradient = *probability * (*gradient - along) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units_in_the_last_place() {
        for step in -8700..8800 {
            let x = step as f32 / 100.0 + 0.0037;
            if !(-87.0..88.0).contains(&x) {
                continue;
            }
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "e^{x}: relative error {error}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e30) > 0.0 && exp(1e30).is_finite());
    }

    #[test]
    fn the_largest_of_a_row_is_found_and_what_is_no_number() {
        let mut row: Vec<f32> = (0..71).map(|at| ((at * 37) % 71) as f32 - 40.0).collect();
        assert_eq!(top(&row), 30.0);
        row[3] = f32::NEG_INFINITY;
        assert_eq!(top(&row), 30.0);
        for at in [0, 31, 32, 63, 64, 70] {
            let mut broken = row.clone();
            broken[at] = f32::NAN;
            assert!(top(&broken).is_nan(), "at {at}");
        }
        assert_eq!(top(&[-3.0, -2.0]), -2.0);
    }

    #[test]
    fn log_sum_exp_of_a_row_that_is_no_multiple_of_the_lanes() {
        let row: Vec<f32> = (0..71).map(|at| ((at * 37) % 19) as f32 / 3.0).collect();
        let exact = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        assert!((f64::from(log_sum_exp(&row)) - exact).abs() < 1e-5);
    }
}
