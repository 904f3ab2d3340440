//! Two candidates on the same queries.

use super::interval::{Interval, bootstrap};

/// How one candidate did beside another one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::kinds) struct Paired {
    /// Mean over queries of what the one won less what the other won.
    pub(in crate::kinds) difference: f64,
    /// Its bootstrap interval.
    pub(in crate::kinds) interval: Option<Interval>,
    /// Queries on which the one won more.
    pub(in crate::kinds) better: usize,
    /// Queries on which the other won more.
    pub(in crate::kinds) worse: usize,
    /// Two-sided p of the exact sign test over those queries; with wins and losses only it is McNemar's exact test.
    pub(in crate::kinds) p: f64,
}

/// Compares two candidates by what each won on each query, in the same order of queries.
pub(in crate::kinds) fn paired(one: &[f64], other: &[f64], seed: u64) -> Paired {
    let differences: Vec<f64> = one.iter().zip(other).map(|(one, other)| one - other).collect();
    let count = differences.len();
    let mean = |sum: f64| sum / count.max(1) as f64;
    let better = differences.iter().filter(|difference| **difference > 0.0).count();
    let worse = differences.iter().filter(|difference| **difference < 0.0).count();
    Paired {
        difference: mean(differences.iter().sum()),
        interval: bootstrap(count, seed, |drawn| Some(mean(drawn.iter().map(|at| differences[*at]).sum()))),
        better,
        worse,
        p: sign_test(better, worse),
    }
}

/// The probability that a fair coin falls at least as unevenly as this.
fn sign_test(heads: usize, tails: usize) -> f64 {
    let (count, fewer) = (heads + tails, heads.min(tails));
    // ln of the binomial coefficient, from one to the next.
    let mut coefficient = 0.0;
    let mut tail = 0.0;
    for at in 0..=fewer {
        tail += (coefficient - count as f64 * std::f64::consts::LN_2).exp();
        coefficient += ((count - at) as f64 / (at + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_test_gives_known_values() {
        for (heads, tails, p) in [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (5, 0, 0.0625),
            (8, 2, 0.109_375),
            (2, 8, 0.109_375),
            (10, 10, 1.0),
            (60, 40, 0.056_887_933_640_980_77),
        ] {
            assert!((sign_test(heads, tails) - p).abs() < 1e-12, "{heads}:{tails} {}", sign_test(heads, tails));
        }
        assert!(sign_test(900, 2_100) < 1e-100 && sign_test(1_500, 1_500) > 0.99);
    }

    #[test]
    fn pairing_sees_what_two_intervals_do_not() {
        // The one wins where the other wins, and on ten more of 200.
        let other: Vec<f64> = (0..200).map(|n| f64::from(u8::from(n % 2 == 0))).collect();
        let one: Vec<f64> = other.iter().enumerate().map(|(n, win)| if n % 20 == 1 { 1.0 } else { *win }).collect();
        let found = paired(&one, &other, 3);
        assert_eq!((found.difference, found.better, found.worse), (0.05, 10, 0));
        assert!((found.p - 2.0 / 1024.0).abs() < 1e-12);
        let (low, high) = found.interval.expect("has one");
        assert!(low > 0.0 && low < 0.03 && high > 0.07 && high < 0.1, "[{low}, {high}]");
        let same = paired(&one, &one, 3);
        assert_eq!((same.difference, same.interval, same.p), (0.0, Some((0.0, 0.0)), 1.0));
    }
}
