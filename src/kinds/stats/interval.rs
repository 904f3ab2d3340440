//! 95% intervals.

use crate::kinds::draw::Draw;

/// The 97.5th percentile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Resamples of a bootstrap: the ends of an interval move by less than a tenth of its width from seed to seed.
const RESAMPLES: usize = 2_000;

/// The two ends.
pub(in crate::kinds) type Interval = (f64, f64);

/// Wilson's interval for a rate of successes among trials; ties may count as half a success, which makes the interval
/// too wide and never too narrow. Without trials everything is possible.
///
/// Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
pub(in crate::kinds) fn wilson(successes: f64, trials: usize) -> Interval {
    if trials == 0 {
        return (0.0, 1.0);
    }
    let n = trials as f64;
    let rate = successes / n;
    let centre = rate + Z * Z / (2.0 * n);
    let spread = Z * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
}

/// The interval that the paper prints, `rate ± 1.96 √(rate (1 − rate) / trials)`: too narrow near 0 and 1, here for
/// comparison.
pub(in crate::kinds) fn wald(rate: f64, trials: usize) -> Interval {
    let spread = Z * (rate * (1.0 - rate) / trials.max(1) as f64).sqrt();
    (rate - spread, rate + spread)
}

/// The 95% interval of the mean of values, by Student's t; fewer than two have none.
///
/// Source of the quantile: its expansion in the degrees of freedom, Abramowitz and Stegun 26.7.5.
pub(in crate::kinds) fn mean_interval(values: &[f64]) -> Option<Interval> {
    let n = values.len() as f64;
    if values.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let spread = t_quantile(values.len() - 1) * (variance / n).sqrt();
    Some((mean - spread, mean + spread))
}

/// The 97.5th percentile of Student's t.
fn t_quantile(freedom: usize) -> f64 {
    // The expansion starts to hold at three.
    match freedom {
        1 => return 12.706_205,
        2 => return 4.302_653,
        _ => {}
    }
    let (v, z) = (freedom as f64, Z);
    z + (z.powi(3) + z) / (4.0 * v)
        + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * v.powi(2))
        + (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * v.powi(3))
}

/// The percentile bootstrap interval of a figure over `queries` queries: each resample draws as many with replacement.
/// None where the figure has no value in a tenth of the resamples or more.
///
/// Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
pub(in crate::kinds) fn bootstrap(
    queries: usize,
    seed: u64,
    figure: impl Fn(&[usize]) -> Option<f64>,
) -> Option<Interval> {
    let mut draw = Draw::new(seed);
    let mut drawn = vec![0; queries];
    let mut values = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        drawn.fill_with(|| draw.below(queries));
        values.extend(figure(&drawn));
    }
    if queries == 0 || values.len() * 10 <= RESAMPLES * 9 {
        return None;
    }
    values.sort_by(f64::total_cmp);
    Some((percentile(&values, 0.025), percentile(&values, 0.975)))
}

/// A percentile of sorted values, between two of them in proportion.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_of_means_are_students() {
        // Quantiles of Student's t as tables give them.
        for (freedom, quantile, off) in [
            (1, 12.706, 1e-3),
            (2, 4.303, 1e-3),
            (3, 3.182, 0.03),
            (5, 2.571, 0.01),
            (10, 2.228, 1e-3),
            (30, 2.042, 1e-3),
        ] {
            assert!((t_quantile(freedom) - quantile).abs() < off, "{freedom}: {}", t_quantile(freedom));
        }
        let (low, high) = mean_interval(&[1.0, 2.0, 3.0]).expect("three");
        let spread = 4.302_653 / 3f64.sqrt();
        assert!((low - 2.0 + spread).abs() < 1e-9 && (high - 2.0 - spread).abs() < 1e-9);
        assert_eq!(mean_interval(&[0.5, 0.5]), Some((0.5, 0.5)));
        assert_eq!(mean_interval(&[1.0]), None);
    }

    #[test]
    fn wilson_gives_published_values() {
        // Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29.
        for (successes, trials, low, high) in [
            (81.0, 263, 0.2553, 0.3662),
            (15.0, 148, 0.0624, 0.1605),
            (0.0, 20, 0.0, 0.1611),
            (1.0, 29, 0.0061, 0.1718),
        ] {
            let (found_low, found_high) = wilson(successes, trials);
            assert!((found_low - low).abs() < 5e-5 && (found_high - high).abs() < 5e-5, "{successes}/{trials}");
        }
        assert_eq!(wilson(0.0, 0), (0.0, 1.0));
    }

    #[test]
    fn wald_gives_the_papers_intervals() {
        // Tables 2 of the paper: 54.15 [48.0, 60.3] and 74.75 [69.4, 80.1], each of 250.
        for (rate, low, high) in [(0.5415, 0.480, 0.603), (0.7475, 0.694, 0.801)] {
            let (found_low, found_high) = wald(rate, 250);
            assert!((found_low - low).abs() < 1e-3 && (found_high - high).abs() < 1e-3, "{rate}");
        }
    }

    #[test]
    fn the_bootstrap_of_a_mean_is_as_wide_as_theory_says_and_as_seeded() {
        let values: Vec<f64> = (0..400).map(|n| f64::from(u8::from(n % 4 == 0))).collect();
        let mean = |drawn: &[usize]| Some(drawn.iter().map(|at| values[*at]).sum::<f64>() / drawn.len() as f64);
        let (low, high) = bootstrap(400, 1, mean).expect("has a value");
        let (wald_low, wald_high) = wald(0.25, 400);
        assert!((low - wald_low).abs() < 0.006 && (high - wald_high).abs() < 0.006, "[{low}, {high}]");
        assert_eq!(bootstrap(400, 1, mean), Some((low, high)));
        let spread = |seed| bootstrap(400, seed, |drawn| Some(drawn.iter().sum::<usize>() as f64));
        assert_ne!(spread(1), spread(2));
        assert_eq!(bootstrap(0, 1, |_| Some(1.0)), None);
        assert_eq!(bootstrap(4, 1, |drawn| (drawn[0] > 0).then_some(1.0)), None, "a quarter has no value");
    }

    #[test]
    fn percentiles_lie_between_values() {
        let sorted = [0.0, 10.0, 20.0];
        assert_eq!([0.0, 0.25, 0.5, 0.975].map(|share| percentile(&sorted, share)), [0.0, 5.0, 10.0, 19.5]);
    }
}
