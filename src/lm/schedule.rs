//! The learning rate over the steps.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// `schedule = { … }`: a warm-up in a line, then a shape; or the name of a preset.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub name: ScheduleName,
    /// Steps over which the rate rises to its value; the first step already moves.
    pub warmup: u64,
    /// Share of the rate left at the end (linear, cosine).
    pub floor: f64,
    /// The warm-up begins at 0, so that the first step does nothing.
    #[serde(skip_serializing_if = "is_false")]
    pub from_zero: bool,
    /// Steps that the shape is stretched over; without it those of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
}

/// Steps that a shape is stretched over, however many are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a number of steps, or \"epoch\"")]
pub enum Span {
    /// So many.
    Steps(u64),
    /// Those in which every example comes up once.
    Named(SpanName),
}

/// Spans with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SpanName {
    /// The steps in which every example comes up once; a last one of fewer examples does not count.
    Epoch,
}

impl Span {
    /// In steps, where so many make an epoch.
    pub fn steps(self, epoch: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Named(SpanName::Epoch) => epoch,
        }
    }
}

impl Schedule {
    /// That of the runs behind SAMI's paper: 0, 1, 13/14, 12/14, … for the 15 updates of an epoch, of which 2 to 6 were done.
    pub fn authors_2024() -> Self {
        let span = Some(Span::Named(SpanName::Epoch));
        Self { name: ScheduleName::Linear, warmup: 1, floor: 0.0, from_zero: true, span }
    }
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Table {
    /// Shape after the warm-up.
    name: ScheduleName,
    /// Steps over which the rate rises to its value.
    warmup: u64,
    /// Share of the rate left at the end.
    floor: f64,
    /// The warm-up begins at 0, so that the first step does nothing.
    from_zero: bool,
    /// Steps that the shape is stretched over, or `epoch`; those of the run without it.
    span: Option<Span>,
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = Schedule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table with `name`, `warmup`, `floor`, `from_zero` and `span`, or \"authors-2024\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Schedule, E> {
                match text {
                    "authors-2024" => Ok(Schedule::authors_2024()),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Schedule, A::Error> {
                let Table { name, warmup, floor, from_zero, span } =
                    Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Schedule { name, warmup, floor, from_zero, span })
            }
        }
        deserializer.deserialize_any(Written)
    }
}

impl JsonSchema for Schedule {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Schedule".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = generator.subschema_for::<Table>();
        schema.insert("type".to_owned(), serde_json::json!(["object", "string"]));
        schema.insert("pattern".to_owned(), "^authors-2024$".into());
        schema
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Shapes of the learning rate over the steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// the last, so that with a floor of 0 the last step still moves; so does the first, but with `from_zero`, where the
    /// full rate is reached one step later.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return (step + u64::from(!self.from_zero)) as f64 / self.warmup as f64;
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
        let schedule = Schedule { name, warmup, floor, ..Schedule::default() };
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
    fn authors_schedule_is_that_of_their_logs() {
        let schedule: Schedule = serde_json::from_str(r#""authors-2024""#).expect("reads");
        let steps = schedule.span.expect("an epoch").steps(2000 / 128);
        assert_eq!(steps, 15);
        let factors: Vec<f64> = (0..17).map(|step| (schedule.factor(step, steps) * 1e3).round() / 1e3).collect();
        assert_eq!(factors[..6], [0.0, 1.0, 0.929, 0.857, 0.786, 0.714]);
        assert_eq!(factors[14..], [0.071, 0.0, 0.0]);
        // Spelt out it is the same.
        let table = r#"{"name": "linear", "warmup": 1, "from_zero": true, "span": "epoch"}"#;
        assert_eq!(serde_json::from_str::<Schedule>(table).expect("reads"), schedule);
        let written = serde_json::to_string(&schedule).expect("writes");
        assert_eq!(serde_json::from_str::<Schedule>(&written).expect("reads"), schedule);
    }

    #[test]
    fn reads_what_a_pipeline_says() {
        let read: Schedule = serde_json::from_str(r#"{"name": "cosine", "warmup": 30}"#).expect("reads");
        assert_eq!(read, Schedule { name: ScheduleName::Cosine, warmup: 30, ..Schedule::default() });
        let read: Schedule = serde_json::from_str(r#"{"name": "linear", "span": 15}"#).expect("reads");
        assert_eq!(read.span, Some(Span::Steps(15)));
        for (wrong, what) in [
            (r#"{"warm": 30}"#, "unknown field `warm`"),
            (r#""authors-2023""#, "or \"authors-2024\""),
            (r#"{"span": "year"}"#, "a number of steps, or \"epoch\""),
            ("3", "a table with `name`"),
        ] {
            let error = serde_json::from_str::<Schedule>(wrong).expect_err(wrong).to_string();
            assert!(error.contains(what), "{error}");
        }
        // What the older fields say is written as before.
        assert_eq!(json(&Schedule::default()), r#"{"name":"constant","warmup":0,"floor":0.0}"#);
    }

    fn json(schedule: &Schedule) -> String {
        serde_json::to_string(schedule).expect("writes")
    }
}
