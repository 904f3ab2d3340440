//! Figures over rows: contrasts of log-probabilities, win rates with their intervals.

use serde_json::{Map, Value, json};

use super::NodeError;
use super::policy::Sum;
use crate::lm::loss::Contrast;

/// The 97.5th percentile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The contrast figures of C×C matrices of summed log-probabilities.
#[derive(Debug, Default)]
pub(super) struct ContrastFigures {
    matrices: Vec<Contrast>,
    constitutions: usize,
    /// Tokens of the responses on the diagonals.
    tokens: usize,
}

impl ContrastFigures {
    /// Adds the matrix of a query, row by row (constitutions), each cell the sum over a response's tokens.
    pub(super) fn add(&mut self, cells: &[Sum]) -> Result<(), NodeError> {
        let nats: Vec<f64> = cells.iter().map(|cell| cell.nats).collect();
        self.matrices.push(Contrast::of_sums(&nats)?);
        self.constitutions = cells.len().isqrt();
        self.tokens += cells.iter().step_by(self.constitutions + 1).map(|cell| cell.tokens).sum::<usize>();
        Ok(())
    }

    /// The mean bound and its 95% interval, where each `size` matrices in a row are samples of one query: their mean is one
    /// trial.
    pub(super) fn bound_of_groups(&self, size: usize) -> (f64, Option<(f64, f64)>) {
        let mean = |matrices: &[Contrast]| Contrast::mean(matrices).map_or(0.0, |mean| mean.bound);
        let bounds: Vec<f64> = self.matrices.chunks(size.max(1)).map(mean).collect();
        (mean(&self.matrices), mean_interval(&bounds))
    }

    /// Means over the matrices, with `suffix` after each name; nothing of none.
    pub(super) fn metrics(&self, suffix: &str) -> Map<String, Value> {
        let Some(mean) = Contrast::mean(&self.matrices) else { return Map::new() };
        let responses = self.matrices.len() * self.constitutions;
        Map::from_iter([
            (format!("bound{suffix}"), json!(mean.bound)),
            ("bound_ceiling".to_owned(), json!((self.constitutions as f64).ln())),
            (format!("gap{suffix}"), json!(mean.gap)),
            (format!("accuracy_row{suffix}"), json!(mean.accuracy_row)),
            (format!("accuracy_column{suffix}"), json!(mean.accuracy_column)),
            (format!("mean_length{suffix}"), json!(self.tokens as f64 / responses as f64)),
        ])
    }
}

/// The 95% interval of the mean of values, by Student's t; fewer than two have none.
///
/// Source of the quantile: its expansion in the degrees of freedom, Abramowitz and Stegun 26.7.5.
pub(super) fn mean_interval(values: &[f64]) -> Option<(f64, f64)> {
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

/// Wilson's 95% interval for a rate of successes among trials; ties may count as half a success, which makes the
/// interval too wide and never too narrow. Without trials everything is possible.
///
/// Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
pub(super) fn wilson(successes: f64, trials: usize) -> (f64, f64) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn figures_are_means_over_matrices() {
        let cells = |nats: [f64; 4]| nats.map(|nats| Sum { nats, tokens: 10 });
        let mut figures = ContrastFigures::default();
        figures.add(&cells([-40.0, -75.0, -46.0, -70.0])).expect("a square");
        let metrics = figures.metrics(".base");
        assert!((metrics["gap.base"].as_f64().expect("a number") - 2.75).abs() < 1e-9);
        assert!((metrics["bound.base"].as_f64().expect("a number") - 0.688_552).abs() < 1e-6);
        assert!((metrics["bound_ceiling"].as_f64().expect("a number") - 2f64.ln()).abs() < 1e-12);
        assert_eq!(metrics["mean_length.base"], json!(10.0));
        figures.add(&cells([-40.0, -40.0, -40.0, -40.0])).expect("a square");
        let (bound, interval) = figures.bound_of_groups(1);
        let (low, high) = interval.expect("two");
        assert!((bound - 0.688_552 / 2.0).abs() < 1e-6 && low < 0.0 && high > 0.6, "{bound} {low} {high}");
        assert_eq!(figures.bound_of_groups(2).1, None, "two samples of one query are one trial");
    }
}
