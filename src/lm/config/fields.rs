//! `config.json`, read field by field.

use serde_json::Value;

use crate::fs;
use crate::lm::gguf::Gguf;
use crate::lm::{Files, LmError};

/// A configuration is smaller by far.
const LARGEST_JSON: u64 = 16 << 20;

/// A file of JSON in a model's directory, which names a value to every field.
pub(super) struct Fields(Value);

impl Fields {
    pub(super) fn new(value: Value) -> Self {
        Self(value)
    }

    pub(super) fn of(files: &Files, name: &str) -> Result<Option<Self>, LmError> {
        let Some(path) = files.get(name) else {
            // A GGUF file says it all, the end tokens too.
            let gguf = if name == "config.json" { Gguf::of(files)? } else { None };
            return gguf.map(|mut gguf| Ok(Self(gguf.config()?))).transpose();
        };
        let text = fs::read(path, LARGEST_JSON)?;
        let malformed = |what: String| LmError::Malformed { file: name.to_owned(), what };
        let value: Value = serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        if !value.is_object() {
            return Err(malformed("it is no JSON object".to_owned()));
        }
        Ok(Some(Self(value)))
    }

    /// A field that is there and not null.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    /// Whether a field is there, and null.
    pub(super) fn is_null(&self, field: &str) -> bool {
        self.0.get(field).is_some_and(Value::is_null)
    }

    pub(super) fn size(&self, field: &'static str, most: u64) -> Result<Option<usize>, LmError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if (1..=most).contains(&size) => Ok(Some(size as usize)),
            _ => Err(LmError::Config { field, what: format!("is {value}, not a whole number of 1 to {most}") }),
        }
    }

    pub(super) fn required(&self, field: &'static str, most: u64) -> Result<usize, LmError> {
        self.size(field, most)?.ok_or_else(|| LmError::Config { field, what: "is missing".to_owned() })
    }

    pub(super) fn number(&self, field: &'static str, default: f64) -> Result<f64, LmError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| number.is_finite() && *number > 0.0)
                .ok_or_else(|| LmError::Config { field, what: format!("is {value}, not a number above 0") }),
        }
    }

    pub(super) fn flag(&self, field: &'static str) -> Result<bool, LmError> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => {
                value.as_bool().ok_or_else(|| LmError::Config { field, what: format!("is {value}, not true or false") })
            }
        }
    }

    /// One token or a list of them.
    pub(super) fn tokens(&self, field: &'static str) -> Result<Vec<u32>, LmError> {
        let one = |value: &Value| {
            let token = value.as_u64().and_then(|token| u32::try_from(token).ok());
            token.ok_or_else(|| LmError::Config { field, what: format!("is {value}, not a token") })
        };
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }
}
