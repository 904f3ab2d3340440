//! Rotary positions: their frequencies, and how a model stretches them to texts longer than it was first made for.

use serde_json::{Value, json};

use super::Config;
use super::fields::Fields;
use crate::lm::LmError;

/// How the frequencies of rotary positions are changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// All divided by a factor (Chen et al. 2023, "Extending context window of large language models via positional
    /// interpolation").
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Slow ones divided by a factor, fast ones left as they are, those between changed in between: Llama 3.1's.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Frequencies that turn less often than this over the first length are slow.
        low_freq_factor: f64,
        /// Frequencies that turn more often than this over the first length are fast; above `low_freq_factor`.
        high_freq_factor: f64,
        /// The length that the model was first made for, in tokens.
        original_max_position_embeddings: usize,
    },
}

const SUPPORTED: &str = "`default`, `linear` and `llama3`";

impl RopeScaling {
    /// The base of the frequencies and how they are scaled, in both forms that there are: `rope_scaling` beside
    /// `rope_theta`, and `rope_parameters` with all of it.
    pub(super) fn read(fields: &Fields, theta: f64, positions: usize) -> Result<(f64, Option<Self>), LmError> {
        let field = if fields.get("rope_scaling").is_some_and(|scaling| scaling != &json!({})) {
            "rope_scaling"
        } else {
            "rope_parameters"
        };
        let none = json!({});
        let parameters = fields.get(field).unwrap_or(&none);
        let malformed = |what: String| LmError::Config { field, what };
        let Some(table) = parameters.as_object() else {
            return Err(malformed(format!("is {parameters}, not a table")));
        };
        if table.values().any(Value::is_object) {
            return Err(LmError::Unsupported {
                what: format!("`{field}` for single kinds of layers"),
                supported: "one form of positions for all layers",
            });
        }
        let whole = fields.get("partial_rotary_factor").or_else(|| table.get("partial_rotary_factor"));
        if whole.is_some_and(|part| part.as_f64() != Some(1.0)) {
            return Err(LmError::Unsupported {
                what: "`partial_rotary_factor`".to_owned(),
                supported: "heads that turn as a whole",
            });
        }
        let number = |name: &str| -> Result<Option<f64>, LmError> {
            match table.get(name).filter(|value| !value.is_null()) {
                None => Ok(None),
                Some(value) => {
                    let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
                    number.map(Some).ok_or_else(|| malformed(format!("has `{name}` = {value}, not a number above 0")))
                }
            }
        };
        let required = |name: &str| number(name)?.ok_or_else(|| malformed(format!("has no `{name}`")));
        let theta = match number("rope_theta")? {
            Some(theta) => theta,
            None => fields.number("rope_theta", theta)?,
        };
        let kind = table.get("rope_type").or_else(|| table.get("type")).filter(|kind| !kind.is_null());
        let scaling = match kind.map(|kind| kind.as_str().unwrap_or_default()) {
            None | Some("default") => None,
            Some("linear") => Some(Self::Linear { factor: required("factor")? }),
            Some("llama3") => Some(Self::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_max_position_embeddings: match fields
                    .size("original_max_position_embeddings", u32::MAX.into())?
                {
                    Some(length) => length,
                    None => number("original_max_position_embeddings")?.map_or(positions, |length| length as usize),
                },
            }),
            Some(_) => {
                let what = format!("`{field}` of type {}", kind.unwrap_or(&Value::Null));
                return Err(LmError::Unsupported { what, supported: SUPPORTED });
            }
        };
        Ok((theta, scaling))
    }

    /// Errs on factors that mean nothing.
    pub(super) fn check(&self) -> Result<(), LmError> {
        let fail = |what: String| Err(LmError::Config { field: "rope_scaling", what });
        let (Self::Linear { factor } | Self::Llama3 { factor, .. }) = self;
        if !factor.is_finite() || *factor < 1.0 {
            return fail(format!("has `factor` = {factor}, which is less than 1"));
        }
        if let Self::Llama3 { low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings, .. } =
            self
        {
            if !(*low > 0.0 && high > low && high.is_finite()) {
                return fail(format!(
                    "has `low_freq_factor` = {low} and `high_freq_factor` = {high}; the second is the larger"
                ));
            }
            if *original_max_position_embeddings == 0 {
                return fail("has `original_max_position_embeddings` = 0".to_owned());
            }
        }
        Ok(())
    }

    /// As `config.json` has it.
    pub(super) fn to_json(self) -> Value {
        match self {
            Self::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        }
    }

    fn apply(&self, frequency: f64) -> f64 {
        match self {
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let turns = *original_max_position_embeddings as f64 * frequency / std::f64::consts::TAU;
                let fast = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - fast) * frequency / factor + fast * frequency
            }
        }
    }
}

impl Config {
    /// The angle between two neighbouring positions of one pair of a head's numbers, in radians.
    pub(in crate::lm) fn frequency(&self, pair: usize) -> f32 {
        let frequency = 1.0 / self.rope_theta.powf(2.0 * pair as f64 / self.head_dim as f64);
        self.rope_scaling.map_or(frequency, |scaling| scaling.apply(frequency)) as f32
    }
}
