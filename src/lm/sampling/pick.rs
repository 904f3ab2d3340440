//! Picking the next token.

use super::SamplingSettings;
use crate::lm::cpu::{exp_all, top};
use crate::lm::random::Stream;

/// The likeliest token, the first of several; `None` if a logit is not a number.
pub(super) fn likeliest(logits: &[f32]) -> Option<u32> {
    let top = top(logits);
    let found = logits.iter().position(|logit| *logit == top);
    found.filter(|_| top.is_finite()).map(|token| token as u32)
}

/// Picks the next token of a row; `None` if a logit is not a number.
pub(super) fn pick(settings: &SamplingSettings, logits: &[f32], stream: &mut Stream) -> Option<u32> {
    // One number for every token, whatever the settings.
    let number = stream.uniform();
    if settings.temperature == 0.0 {
        return likeliest(logits);
    }
    let mut weights = logits.to_vec();
    exp_all(&mut weights, inverse(settings.temperature));
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    if !total.is_finite() {
        return None;
    }
    let total = narrow(settings, &mut weights).unwrap_or(total);
    let mut left = number * total;
    for (token, weight) in weights.iter().enumerate() {
        left -= f64::from(*weight);
        if left < 0.0 {
            return Some(token as u32);
        }
    }
    // Rounding may leave a rest; the last token that can be has it.
    weights.iter().rposition(|weight| *weight > 0.0).map(|token| token as u32)
}

/// What logits are multiplied by.
fn inverse(temperature: f64) -> f32 {
    (1.0 / temperature).min(f64::from(f32::MAX)) as f32
}

/// How a device may pick by itself, in numbers as [`pick`] has them: what logits are multiplied by, 0 for the likeliest.
/// `None` where tokens must be brought into order first.
pub(super) fn on_device(settings: &SamplingSettings, vocabulary: usize) -> Option<f32> {
    if settings.temperature == 0.0 {
        return Some(0.0);
    }
    let all = (settings.top_k == 0 || settings.top_k >= vocabulary) && settings.top_p >= 1.0;
    all.then(|| inverse(settings.temperature)).filter(|inverse| *inverse > 0.0)
}

/// Makes the weights zero that `top_k` and `top_p` do not want, and returns the sum of the others, if any did not want
/// some. Of equally likely tokens the first stays.
fn narrow(settings: &SamplingSettings, weights: &mut [f32]) -> Option<f64> {
    let all = weights.len();
    let few = settings.top_k > 0 && settings.top_k < all;
    if !few && settings.top_p >= 1.0 {
        return None;
    }
    let mut order: Vec<(f32, u32)> = weights.iter().copied().zip(0..).collect();
    let likelier = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let mut kept = all;
    if few {
        kept = settings.top_k;
        order.select_nth_unstable_by(kept - 1, likelier);
    }
    let sum = |weights: &[(f32, u32)]| -> f64 { weights.iter().map(|(weight, _)| f64::from(*weight)).sum() };
    if settings.top_p < 1.0 {
        order[..kept].sort_unstable_by(likelier);
        let enough = settings.top_p * sum(&order[..kept]);
        let mut before = 0.0;
        let wanted = order[..kept].iter().take_while(|(weight, _)| {
            let needed = before < enough;
            before += f64::from(*weight);
            needed
        });
        kept = wanted.count().max(1);
    }
    for (_, token) in &order[kept..] {
        weights[*token as usize] = 0.0;
    }
    Some(weights.iter().map(|weight| f64::from(*weight)).sum())
}
