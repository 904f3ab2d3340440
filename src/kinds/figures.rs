//! Figures over rows: contrasts of log-probabilities, win rates with their intervals.

use serde_json::{Map, Value, json};

use super::policy::Sum;
use crate::lm::loss::Contrast;

/// The 97.5th percentile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Means of the contrast figures of C×C matrices of summed log-probabilities.
#[derive(Debug, Default)]
pub(super) struct ContrastFigures {
    matrices: usize,
    constitutions: usize,
    bound: f64,
    gap: f64,
    accuracy_row: f64,
    accuracy_column: f64,
    /// Tokens of the responses on the diagonal.
    tokens: usize,
}

impl ContrastFigures {
    /// Adds the matrix of a query, row by row (constitutions), each cell the sum over a response's tokens.
    pub(super) fn add(&mut self, cells: &[Sum]) {
        let nats: Vec<f64> = cells.iter().map(|cell| cell.nats).collect();
        let contrast = Contrast::of(&nats);
        self.constitutions = cells.len().isqrt();
        self.matrices += 1;
        self.bound += contrast.bound;
        self.gap += contrast.gap;
        self.accuracy_row += contrast.accuracy_row;
        self.accuracy_column += contrast.accuracy_column;
        self.tokens += cells.iter().step_by(self.constitutions + 1).map(|cell| cell.tokens).sum::<usize>();
    }

    /// The means, with `suffix` after each name.
    pub(super) fn metrics(&self, suffix: &str) -> Map<String, Value> {
        let mean = |sum: f64| json!(sum / self.matrices.max(1) as f64);
        Map::from_iter([
            (format!("bound{suffix}"), mean(self.bound)),
            ("bound_ceiling".to_owned(), json!((self.constitutions.max(1) as f64).ln())),
            (format!("gap{suffix}"), mean(self.gap)),
            (format!("accuracy_row{suffix}"), mean(self.accuracy_row)),
            (format!("accuracy_column{suffix}"), mean(self.accuracy_column)),
            (format!("mean_length{suffix}"), mean(self.tokens as f64 / self.constitutions.max(1) as f64)),
        ])
    }
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
        for (successes, trials, low, high) in
            [(81.0, 263, 0.2553, 0.3662), (15.0, 148, 0.0624, 0.1605), (0.0, 20, 0.0, 0.1611), (1.0, 29, 0.0061, 0.1718)]
        {
            let (found_low, found_high) = wilson(successes, trials);
            assert!((found_low - low).abs() < 5e-5 && (found_high - high).abs() < 5e-5, "{successes}/{trials}");
        }
        assert_eq!(wilson(0.0, 0), (0.0, 1.0));
    }

    #[test]
    fn figures_are_means_over_matrices() {
        let cells = |nats: [f64; 4]| nats.map(|nats| Sum { nats, tokens: 10 });
        let mut figures = ContrastFigures::default();
        figures.add(&cells([-40.0, -75.0, -46.0, -70.0]));
        let metrics = figures.metrics(".base");
        assert!((metrics["gap.base"].as_f64().expect("a number") - 2.75).abs() < 1e-9);
        assert!((metrics["bound.base"].as_f64().expect("a number") - 0.688_552).abs() < 1e-6);
        assert!((metrics["bound_ceiling"].as_f64().expect("a number") - 2f64.ln()).abs() < 1e-12);
        assert_eq!(metrics["mean_length.base"], json!(10.0));
    }
}
