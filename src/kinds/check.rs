//! Checks that several kinds make of their fields.

use crate::pipeline::{ArtifactType, Input, InputField, Problem};

/// A problem at a field.
pub(super) fn problem(path: &str, what: impl Into<String>, help: impl Into<String>) -> Problem {
    Problem { path: path.to_owned(), what: what.into(), help: help.into() }
}

/// Adds a problem unless `holds`.
pub(super) fn require(problems: &mut Vec<Problem>, holds: bool, path: &str, what: &str, help: &str) {
    if !holds {
        problems.push(problem(path, what, help));
    }
}

/// An input field.
pub(super) fn input(path: &str, input: &Input, accepts: &'static [ArtifactType]) -> InputField {
    InputField { path: path.to_owned(), input: input.clone(), accepts }
}

/// Checks the fields that say how text is sampled.
pub(super) fn sampling(
    problems: &mut Vec<Problem>,
    max_new_tokens: usize,
    temperature: f64,
    top_p: f64,
    stop: &[String],
) {
    require(problems, max_new_tokens >= 1, "max_new_tokens", "a response of no tokens", "give at least 1");
    let warm = temperature.is_finite() && temperature >= 0.0;
    require(
        problems,
        warm,
        "temperature",
        "the temperature is not a number from 0 up",
        "0 is greedy, 1 samples from the model",
    );
    let mass = top_p > 0.0 && top_p <= 1.0;
    require(problems, mass, "top_p", "`top_p` is not in (0, 1]", "1 keeps every token");
    require(
        problems,
        stop.iter().all(|text| !text.is_empty()),
        "stop",
        "an empty stop string would stop every response at once",
        "remove it",
    );
}
