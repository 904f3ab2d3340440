//! What is trained, and the model that the passes compute with.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor, Var};

use super::super::decoder::Engine;
use super::super::{Config, LmError, Model, adapter};
use super::TrainSettings;
use super::settings::{Compute, Weights};

/// A model in training.
#[derive(Debug)]
pub(super) struct Policy {
    /// What the passes compute with.
    pub(super) model: Model,
    /// What the optimiser changes, in f32, by name.
    pub(super) parameters: BTreeMap<String, Var>,
    /// The weights of the passes where those are of another type: the parameters, rounded after each update.
    rounded: Option<BTreeMap<String, Var>>,
    weights: Weights,
}

impl Compute {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// A frozen model of such weights. It shares them where they are of the type already, if `shared`.
    pub(super) fn frozen(
        self,
        config: Config,
        weights: &BTreeMap<String, Tensor>,
        shared: bool,
    ) -> Result<Model, LmError> {
        let own = |(name, weight): (&String, &Tensor)| -> Result<(String, Tensor), LmError> {
            let weight = weight.detach();
            let own = weight.to_dtype(self.dtype())?;
            Ok((name.clone(), if shared || weight.dtype() != self.dtype() { own } else { own.copy()? }))
        };
        self.model(config, weights.iter().map(own).collect::<Result<_, _>>()?)
    }

    fn model(self, config: Config, weights: BTreeMap<String, Tensor>) -> Result<Model, LmError> {
        match self {
            Self::F32 => Model::new(config, weights),
            // On a CPU too, if slowly.
            Self::Bf16 => Model::computed_by(Engine::Tensors, config, weights),
        }
    }
}

impl Weights {
    /// A parameter as it is kept, in f32.
    fn of(self, parameter: &Tensor) -> Result<Tensor, LmError> {
        Ok(match self {
            Self::F32 => parameter.clone(),
            Self::Bf16 => parameter.to_dtype(DType::BF16)?.to_dtype(DType::F32)?,
        })
    }
}

impl Policy {
    /// Takes weights in f32.
    pub(super) fn new(
        config: Config,
        weights: BTreeMap<String, Tensor>,
        settings: &TrainSettings,
    ) -> Result<Self, LmError> {
        let compute = settings.compute;
        let keep = settings.weights;
        let weights = weights.into_iter().map(|(name, weight)| Ok((name, keep.of(&weight.detach())?)));
        let weights: BTreeMap<String, Tensor> = weights.collect::<Result<_, LmError>>()?;
        if let Some(lora) = &settings.lora {
            let model = compute.frozen(config, &weights, true)?;
            if lora.dropout > 0.0 && !model.on_cpu() {
                let what = "is not 0, and made for the CPU in f32 only".to_owned();
                return Err(LmError::Setting { field: "lora.dropout", what });
            }
            let (adapters, parameters) = adapter::fresh(lora, model.config(), settings.seed, model.device())?;
            return Ok(Self { model: model.adapted(adapters)?, parameters, rounded: None, weights: keep });
        }
        if compute == Compute::F32 {
            let (model, parameters) = Model::trainable(config, weights)?;
            return Ok(Self { model, parameters, rounded: None, weights: keep });
        }
        let (mut parameters, mut rounded) = (BTreeMap::new(), BTreeMap::new());
        // One after the other, so that there are not three models at a time.
        for (name, weight) in weights {
            let weight = weight.detach();
            rounded.insert(name.clone(), Var::from_tensor(&weight.to_dtype(compute.dtype())?)?);
            parameters.insert(name, Var::from_tensor(&weight)?);
        }
        let weights = rounded.iter().map(|(name, weight)| (name.clone(), weight.as_tensor().clone())).collect();
        Ok(Self { model: compute.model(config, weights)?, parameters, rounded: Some(rounded), weights: keep })
    }

    /// The variables that gradients come for.
    pub(super) fn variables(&self) -> &BTreeMap<String, Var> {
        self.rounded.as_ref().unwrap_or(&self.parameters)
    }

    /// What the passes compute with, where it is the parameters as an update leaves them, in another type.
    pub(super) fn copies(&self) -> Option<&BTreeMap<String, Var>> {
        self.rounded.as_ref().filter(|_| self.weights == Weights::F32)
    }

    /// Brings what the passes compute with up to the parameters.
    pub(super) fn follow(&self) -> Result<(), LmError> {
        if self.weights != Weights::F32 {
            for parameter in self.parameters.values() {
                parameter.set(&self.weights.of(&parameter.as_detached_tensor())?)?;
            }
        }
        for (name, weight) in self.rounded.iter().flatten() {
            weight.set(&self.parameters[name].as_detached_tensor().to_dtype(weight.dtype())?)?;
        }
        Ok(())
    }

    /// Writes the model, in f32: the parameters, or the weights with the adapters in them if `merged`.
    pub(super) fn save(&self, directory: &Path, merged: bool) -> Result<(), LmError> {
        if self.rounded.is_none() && self.model.adapters().is_empty() {
            return self.model.save(directory);
        }
        let mut weights = BTreeMap::new();
        for (name, weight) in self.model.weights() {
            let parameter = self.parameters.get(name).map(Var::as_detached_tensor);
            weights.insert(name.clone(), parameter.unwrap_or_else(|| weight.detach()).to_dtype(DType::F32)?);
        }
        if merged {
            adapter::merge(&mut weights, self.model.adapters())?;
        }
        // What is trained in a type is sampled in it.
        let config = Config { dtype: self.model.dtype(), ..self.model.config().clone() };
        Model::new(config, weights)?.save(directory)
    }
}
