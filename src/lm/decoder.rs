//! The decoder: Llama's, and Mistral's with its sliding window.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::{Config, Files, LmError};

/// A decoder with its weights, frozen or trainable.
///
/// Frozen weights build no graph. Trainable ones are [`Var`]s: what is computed from them has gradients, and changing
/// one in place changes the model.
#[derive(Debug)]
pub struct Model {
    config: Config,
    weights: BTreeMap<String, Tensor>,
    device: Device,
}

impl Model {
    /// Loads a frozen model.
    pub fn load(files: &Files, device: &Device) -> Result<Self, LmError> {
        let config = Config::load(files)?;
        let weights = super::weights::load(files, &config, device)?;
        Self::frozen(config, weights)
    }

    /// A frozen model with random weights; the same seed gives the same weights everywhere.
    pub fn random(config: Config, seed: u64, device: &Device) -> Result<Self, LmError> {
        let _ = (config, seed, device);
        Err(LmError::Mismatch { what: "not built".to_owned() })
    }

    /// A frozen model of weights; those that are variables are copied, so that later steps do not change it.
    ///
    /// Names and shapes are those of `transformers`. Errs if one is missing or of another shape.
    pub fn frozen(config: Config, weights: BTreeMap<String, Tensor>) -> Result<Self, LmError> {
        let _ = (config, weights);
        Err(LmError::Mismatch { what: "not built".to_owned() })
    }

    /// A model whose weights are all variables, copied from `weights`, and the variables by name.
    pub fn trainable(
        config: Config,
        weights: BTreeMap<String, Tensor>,
    ) -> Result<(Self, BTreeMap<String, Var>), LmError> {
        let _ = (config, weights);
        Err(LmError::Mismatch { what: "not built".to_owned() })
    }

    /// The form.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The weights by name, variables or not.
    pub fn weights(&self) -> &BTreeMap<String, Tensor> {
        &self.weights
    }

    /// Writes `config.json`, `generation_config.json` and `model.safetensors` into a directory that exists.
    pub fn save(&self, directory: &Path) -> Result<(), LmError> {
        let _ = directory;
        Err(LmError::Mismatch { what: "not built".to_owned() })
    }
}
