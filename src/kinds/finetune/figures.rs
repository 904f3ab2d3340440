//! What a training run says of itself: while it goes on, and in the end.

use serde_json::{Map, Value, json};

use crate::lm::train::StepRecord;

/// Steps that a mean is taken over.
const STEPS: usize = 10;

/// How far the log-probability of the responses that are trained on may fall, nats a token.
const FALL: f64 = 0.25;

/// Tells once if the responses that are trained on grow less likely under their own constitutions: the contrast may go on
/// rising meanwhile, and what is sampled falls apart.
#[derive(Debug, Default)]
pub(super) struct Watch {
    told: bool,
}

impl Watch {
    /// Looks at all records so far.
    pub(super) fn look(&mut self, records: &[StepRecord]) {
        if let Some(fall) = fall(records).filter(|fall| *fall > FALL && !self.told) {
            self.told = true;
            let step = records.len();
            tracing::warn!(
                "by step {step} the log-probability of the responses that are trained on, under their own constitutions, \
                 has fallen by {fall:.2} nats a token since the first steps: text may be falling apart; give `kl_weight` \
                 or `kl_budget`, fewer steps or a lower rate"
            );
        }
    }
}

/// How much less likely responses are under their own constitutions in the last steps than in the first ones, nats a token;
/// `None` before there are twice as many steps as go into a mean of two at least.
fn fall(records: &[StepRecord]) -> Option<f64> {
    let steps = (records.len() / 2).min(STEPS);
    let mean = |records: &[StepRecord]| -> Option<f64> {
        let values: Option<Vec<f64>> = records.iter().map(|record| record.logprob_diagonal).collect();
        values.filter(|values| values.len() > 1).map(|values| values.iter().sum::<f64>() / values.len() as f64)
    };
    Some(mean(&records[..steps])? - mean(&records[records.len() - steps..])?)
}

/// All figures of a step: a line of `train.jsonl`.
pub(super) fn line(record: &StepRecord) -> Map<String, Value> {
    match json!(record) {
        Value::Object(line) => line,
        _ => Map::new(),
    }
}

/// What is worth a look while it trains.
pub(super) fn watched(record: &StepRecord) -> Map<String, Value> {
    let all = [
        ("loss", Some(record.loss)),
        ("bound", record.bound),
        ("reward_margin", record.reward_margin),
        ("kl", record.kl.or(record.probe_kl)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))).collect()
}

/// Means over the last steps, at most ten.
pub(super) fn metrics(records: &[StepRecord]) -> Map<String, Value> {
    let last = &records[records.len().saturating_sub(STEPS)..];
    let mean = |figure: fn(&StepRecord) -> Option<f64>| {
        let values: Option<Vec<f64>> = last.iter().map(figure).collect();
        values.filter(|values| !values.is_empty()).map(|values| values.iter().sum::<f64>() / values.len() as f64)
    };
    let figures: [(&str, Option<f64>); 11] = [
        ("loss", mean(|record| Some(record.loss))),
        ("mean_length", mean(|record| Some(record.mean_length))),
        ("bound", mean(|record| record.bound)),
        ("gap", mean(|record| record.gap)),
        ("accuracy_row", mean(|record| record.accuracy_row)),
        ("accuracy_column", mean(|record| record.accuracy_column)),
        ("logprob_diagonal", mean(|record| record.logprob_diagonal)),
        ("reward_margin", mean(|record| record.reward_margin)),
        ("reward_chosen", mean(|record| record.reward_chosen)),
        ("accuracy", mean(|record| record.accuracy)),
        ("kl", mean(|record| record.kl)),
    ];
    let mut metrics: Map<String, Value> =
        figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))).collect();
    if let Some(kl) = records.iter().rev().find_map(|record| record.probe_kl) {
        metrics.insert("probe_kl".to_owned(), json!(kl));
    }
    if let Some(fall) = fall(records) {
        metrics.insert("logprob_diagonal_change".to_owned(), json!(-fall));
    }
    metrics.insert("steps".to_owned(), json!(records.len()));
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fall_of_the_diagonal_is_from_the_first_steps_to_the_last() {
        let records = |values: &[f64]| -> Vec<StepRecord> {
            let record = |value: &f64| StepRecord { logprob_diagonal: Some(*value), ..StepRecord::default() };
            values.iter().map(record).collect()
        };
        assert_eq!(fall(&records(&[-0.5, -0.9, -0.9])), None);
        let two = fall(&records(&[-0.5, -0.7, -0.9, -1.5])).expect("two and two");
        assert!((two - 0.6).abs() < 1e-12);
        let mut long = vec![-0.5; 10];
        long.extend([-3.0; 7]);
        long.extend([-0.4; 10]);
        assert!((fall(&records(&long)).expect("ten and ten") + 0.1).abs() < 1e-12, "what was between does not matter");
        assert_eq!(fall(&vec![StepRecord::default(); 9]), None, "a likelihood has no such figure");
    }
}
