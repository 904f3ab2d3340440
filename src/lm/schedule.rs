//! The learning rate over the steps.

use serde::{Deserialize, Serialize};

/// `schedule = { … }`: a warm-up in a line, then a shape.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub name: ScheduleName,
    /// Steps over which the rate rises to its value; the first step already moves.
    pub warmup: u64,
    /// Share of the rate left at the end (linear, cosine).
    pub floor: f64,
}

/// Shapes of the learning rate over the steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// Stays.
    #[default]
    Constant,
    /// Falls in a line.
    Linear,
    /// Falls in half a cosine.
    Cosine,
}

impl Schedule {
    /// What the learning rate is multiplied by at `step` (from 0) of `steps`.
    ///
    /// The warm-up ends with the full rate at step `warmup` − 1. The shape would reach `floor` at step `steps`, one past
    /// the last, so that with a floor of 0 the last step still moves; so does the first, unlike in the authors' runs,
    /// where a warm-up from 0 made it do nothing.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        let progress = (step - self.warmup) as f64 / steps.saturating_sub(self.warmup).max(1) as f64;
        let left = match self.name {
            ScheduleName::Constant => return 1.0,
            ScheduleName::Linear => 1.0 - progress.min(1.0),
            ScheduleName::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()),
        };
        self.floor + (1.0 - self.floor) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(name: ScheduleName, warmup: u64, floor: f64, steps: u64) -> Vec<f64> {
        let schedule = Schedule { name, warmup, floor };
        (0..steps).map(|step| (schedule.factor(step, steps) * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn shapes_by_hand() {
        assert_eq!(factors(ScheduleName::Constant, 0, 0.0, 3), [1.0, 1.0, 1.0]);
        assert_eq!(factors(ScheduleName::Constant, 4, 0.0, 5), [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert_eq!(factors(ScheduleName::Linear, 0, 0.0, 4), [1.0, 0.75, 0.5, 0.25]);
        assert_eq!(factors(ScheduleName::Linear, 2, 0.2, 6), [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]);
        // cos(0), cos(π/4), cos(π/2), cos(3π/4): 1, .707107, 0, −.707107.
        assert_eq!(factors(ScheduleName::Cosine, 0, 0.0, 4), [1.0, 0.853_553, 0.5, 0.146_447]);
        assert_eq!(factors(ScheduleName::Cosine, 0, 0.1, 4), [1.0, 0.868_198, 0.55, 0.231_802]);
    }

    #[test]
    fn every_step_moves_and_none_exceeds_the_rate() {
        for name in [ScheduleName::Constant, ScheduleName::Linear, ScheduleName::Cosine] {
            for (warmup, steps) in [(0, 1), (1, 1), (1, 10), (5, 5), (9, 3), (3, 100)] {
                let all = factors(name, warmup, 0.0, steps);
                assert!(all.iter().all(|factor| *factor > 0.0 && *factor <= 1.0), "{name:?} {warmup} {steps}: {all:?}");
            }
        }
    }

    #[test]
    fn reads_what_a_pipeline_says() {
        let read: Schedule = serde_json::from_str(r#"{"name": "cosine", "warmup": 30}"#).expect("reads");
        assert_eq!(read, Schedule { name: ScheduleName::Cosine, warmup: 30, floor: 0.0 });
        assert!(serde_json::from_str::<Schedule>(r#"{"warm": 30}"#).is_err());
    }
}
