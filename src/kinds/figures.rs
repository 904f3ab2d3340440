//! Figures over rows: contrasts of log-probabilities.

use serde_json::{Map, Value, json};

use super::NodeError;
use super::policy::Sum;
use super::responses::own;
use super::stats::{Interval, mean_interval};
use crate::lm::loss::Contrast;

/// The contrast figures of C×CM matrices of summed log-probabilities.
#[derive(Debug, Default)]
pub(super) struct ContrastFigures {
    matrices: Vec<Contrast>,
    constitutions: usize,
    /// Those of all matrices.
    responses: usize,
    /// Tokens of the responses on the diagonals.
    tokens: usize,
}

impl ContrastFigures {
    /// Adds the matrix of a query, row by row (constitutions), each cell the sum over a response's tokens.
    pub(super) fn add(&mut self, cells: &[Sum]) -> Result<(), NodeError> {
        self.add_of(cells, 1)
    }

    /// The same with `each` responses to a constitution.
    pub(super) fn add_of(&mut self, cells: &[Sum], each: usize) -> Result<(), NodeError> {
        let nats: Vec<f64> = cells.iter().map(|cell| cell.nats).collect();
        self.matrices.push(Contrast::with(&nats, &nats, each)?);
        self.constitutions = (cells.len() / each).isqrt();
        self.responses += self.constitutions * each;
        self.tokens += own(cells, self.constitutions, each).map(|cell| cell.tokens).sum::<usize>();
        Ok(())
    }

    /// The mean bound and its 95% interval, where each `size` matrices in a row are samples of one query: their mean is one
    /// trial.
    pub(super) fn bound_of_groups(&self, size: usize) -> (f64, Option<Interval>) {
        let mean = |matrices: &[Contrast]| Contrast::mean(matrices).map_or(0.0, |mean| mean.bound);
        let bounds: Vec<f64> = self.matrices.chunks(size.max(1)).map(mean).collect();
        (mean(&self.matrices), mean_interval(&bounds))
    }

    /// Means over the matrices, with `suffix` after each name; nothing of none.
    pub(super) fn metrics(&self, suffix: &str) -> Map<String, Value> {
        let Some(mean) = Contrast::mean(&self.matrices) else { return Map::new() };
        Map::from_iter([
            (format!("bound{suffix}"), json!(mean.bound)),
            ("bound_ceiling".to_owned(), json!((self.constitutions as f64).ln())),
            (format!("gap{suffix}"), json!(mean.gap)),
            (format!("accuracy_row{suffix}"), json!(mean.accuracy_row)),
            (format!("accuracy_column{suffix}"), json!(mean.accuracy_column)),
            (format!("mean_length{suffix}"), json!(self.tokens as f64 / self.responses as f64)),
        ])
    }
}

/// How many times as long as those of another model a model's responses may be before that is told.
const LONGER: f64 = 1.5;

/// The models whose responses are much longer than those of `against`, by their metrics `mean_length.NAME`: as it goes where
/// training makes responses longer, which many judges like.
pub(super) fn longer(metrics: &Map<String, Value>, against: &str) -> Vec<String> {
    let length = |metric: &str| metrics.get(metric).and_then(Value::as_f64);
    let Some(limit) = length(&format!("mean_length.{against}")).map(|length| LONGER * length) else {
        return Vec::new();
    };
    let names = metrics.keys().filter_map(|metric| metric.strip_prefix("mean_length."));
    names
        .filter(|name| length(&format!("mean_length.{name}")).is_some_and(|length| length > limit))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_have_become_long_winded_are_named() {
        let metrics: Map<String, Value> = [("base", 20.0), ("a", 30.0), ("b", 30.1), ("c", 10.0)]
            .map(|(name, length)| (format!("mean_length.{name}"), json!(length)))
            .into_iter()
            .collect();
        assert_eq!(longer(&metrics, "base"), ["b"]);
        assert!(longer(&metrics, "unknown").is_empty());
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
