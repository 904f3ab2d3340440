//! Changes of low rank to a model's linear layers (Hu et al. 2021, "LoRA"), and their files in the form of Python's `peft`.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::random::Stream;
use super::{Config, Files, LmError, weights};
use crate::fs;

/// The folder of a model's files that holds an adapter which is not part of the weights.
pub const FOLDER: &str = "adapter";
/// The folder of a model's files that holds an adapter which is part of the weights already.
pub const MERGED: &str = "merged-adapter";
const CONFIG: &str = "adapter_config.json";
/// A configuration is smaller by far.
const LARGEST: u64 = 16 << 20;
const WEIGHTS: &str = "adapter_model.safetensors";
/// What `peft` puts before a layer's name.
const PREFIX: &str = "base_model.model.";

/// `lora = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraSettings {
    /// Rank of the change to a layer.
    #[serde(default = "rank")]
    pub rank: usize,
    /// The change is multiplied with this over the rank.
    #[serde(default = "alpha")]
    pub alpha: f64,
    /// Share of a layer's inputs that the adapter does not see in a step of training.
    #[serde(default)]
    pub dropout: f64,
    /// The layers that get one.
    #[serde(default)]
    pub targets: Targets,
}

/// Linear layers of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Targets {
    /// `"all-linear"`.
    All(All),
    /// By the last part of their names, such as `q_proj`.
    Named(Vec<String>),
}

/// All linear layers but the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum All {
    /// As `peft` calls them.
    #[serde(rename = "all-linear")]
    Linear,
}

impl Default for Targets {
    fn default() -> Self {
        Self::All(All::Linear)
    }
}

fn rank() -> usize {
    16
}

fn alpha() -> f64 {
    32.0
}

impl Default for LoraSettings {
    fn default() -> Self {
        Self { rank: rank(), alpha: alpha(), dropout: 0.0, targets: Targets::default() }
    }
}

/// A change of low rank to a linear layer: y += scale · (drop(x) · Aᵀ) · Bᵀ.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// (r, in)
    pub a: Tensor,
    /// (out, r)
    pub b: Tensor,
    /// α/r.
    pub scale: f64,
    /// Share of the numbers of x that are left out in training; the others grow by what that takes away.
    pub dropout: f64,
    /// What is left out in a pass; none but in a step of training.
    pub(super) noise: Option<Noise>,
}

/// Dropout in a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Noise {
    /// Of the step and the layer.
    pub(super) seed: u64,
    /// Of the numbers that are left out.
    pub(super) share: f64,
}

/// Adapters by the names of their linear layers, such as `model.layers.0.self_attn.q_proj`.
pub type Adapters = BTreeMap<String, Adapter>;

impl Adapter {
    /// A and B with their names.
    pub(super) fn named(&self, name: &str) -> [(String, &Tensor); 2] {
        [(format!("{name}.lora_A.weight"), &self.a), (format!("{name}.lora_B.weight"), &self.b)]
    }

    /// What it adds to the layer's weight: scale · B · A (out, in).
    fn product(&self) -> Result<Tensor, LmError> {
        Ok((self.b.detach().matmul(&self.a.detach())? * self.scale)?)
    }
}

/// Adapters that change nothing yet, and their variables by name.
///
/// As in `peft`: A uniform in ±1/√in (Kaiming's with a = √5), B zero. The same seed gives the same numbers everywhere.
/// Errs on a target that the model has no layer of.
pub fn fresh(
    settings: &LoraSettings,
    config: &Config,
    seed: u64,
    device: &Device,
) -> Result<(Adapters, BTreeMap<String, Var>), LmError> {
    let linears = config.linears();
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    if let Targets::Named(targets) = &settings.targets {
        let mut known: Vec<String> = linears.iter().map(|(name, _)| last(name)).collect();
        known.sort();
        known.dedup();
        if let Some(target) = targets.iter().find(|target| !known.contains(target)) {
            let what = format!("has `{target}`, the model has {}", known.join(", "));
            return Err(LmError::Setting { field: "lora.targets", what });
        }
    }
    let (mut adapters, mut variables) = (Adapters::new(), BTreeMap::new());
    for (name, [outputs, inputs]) in linears {
        if matches!(&settings.targets, Targets::Named(targets) if !targets.contains(&last(&name))) {
            continue;
        }
        let bound = (1.0 / inputs as f64).sqrt();
        let mut stream = Stream::new(seed, &format!("{name}.lora_A.weight"));
        let a: Vec<f32> =
            (0..settings.rank * inputs).map(|_| ((2.0 * stream.uniform() - 1.0) * bound) as f32).collect();
        let a = Var::from_vec(a, (settings.rank, inputs), device)?;
        let b = Var::zeros((outputs, settings.rank), candle_core::DType::F32, device)?;
        let adapter = Adapter {
            a: a.as_tensor().clone(),
            b: b.as_tensor().clone(),
            scale: settings.alpha / settings.rank as f64,
            dropout: settings.dropout,
            noise: None,
        };
        let [(name_of_a, _), (name_of_b, _)] = adapter.named(&name);
        variables.insert(name_of_a, a);
        variables.insert(name_of_b, b);
        adapters.insert(name, adapter);
    }
    Ok((adapters, variables))
}

/// Adds what adapters change to the weights.
pub fn merge(weights: &mut BTreeMap<String, Tensor>, adapters: &Adapters) -> Result<(), LmError> {
    for (name, adapter) in adapters {
        let weight = format!("{name}.weight");
        let sum = weights.get_mut(&weight).ok_or(LmError::MissingTensor { name: weight })?;
        *sum = (sum.detach() + adapter.product()?.to_dtype(sum.dtype())?)?;
    }
    Ok(())
}

/// Writes `adapter_config.json` and `adapter_model.safetensors` into a directory that exists.
///
/// `base` is what Python is told to load first; it may be empty.
pub fn save(directory: &Path, settings: &LoraSettings, adapters: &Adapters, base: &str) -> Result<(), LmError> {
    let mut targets: Vec<&str> = adapters.keys().filter_map(|name| name.rsplit('.').next()).collect();
    targets.sort_unstable();
    targets.dedup();
    let config = json!({
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": settings.rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    crate::fs::write(&directory.join(CONFIG), format!("{config:#}\n"))?;
    let named = adapters.iter().flat_map(|(name, adapter)| adapter.named(name));
    let tensors = named.map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.clone())).collect();
    weights::save(&directory.join(WEIGHTS), &tensors)
}

/// Loads the adapters among a model's files that are not part of the weights, as `peft` writes them; `None` if there are
/// none.
///
/// Errs on kinds of adapters other than plain LoRA.
pub fn load(files: &Files, config: &Config, device: &Device) -> Result<Option<Adapters>, LmError> {
    #[derive(Deserialize)]
    struct Form {
        peft_type: String,
        r: usize,
        lora_alpha: f64,
        #[serde(default)]
        use_dora: bool,
        #[serde(default)]
        use_rslora: bool,
        #[serde(default)]
        fan_in_fan_out: bool,
        #[serde(default)]
        modules_to_save: Value,
        #[serde(default)]
        rank_pattern: Value,
        #[serde(default)]
        alpha_pattern: Value,
    }
    let (config_name, weights_name) = (format!("{FOLDER}/{CONFIG}"), format!("{FOLDER}/{WEIGHTS}"));
    let Some(path) = files.get(&config_name) else { return Ok(None) };
    let malformed = |what: String| LmError::Malformed { file: config_name.clone(), what };
    let form: Form = serde_json::from_slice(&fs::read(path, LARGEST)?).map_err(|error| malformed(error.to_string()))?;
    let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
    let plain = form.peft_type == "LORA"
        && !(form.use_dora || form.use_rslora || form.fan_in_fan_out)
        && [&form.modules_to_save, &form.rank_pattern, &form.alpha_pattern].into_iter().all(empty);
    if !plain || form.r == 0 {
        return Err(malformed("it is not LoRA of one rank on linear layers alone".to_owned()));
    }
    let path = files.get(&weights_name).ok_or_else(|| LmError::MissingFile { name: weights_name.clone() })?;
    let mut shapes = Vec::new();
    let mut found = Vec::new();
    let names = weights::names(&weights_name, path)?;
    for (name, [outputs, inputs]) in config.linears() {
        let [a, b] = ["A", "B"].map(|part| format!("{PREFIX}{name}.lora_{part}.weight"));
        if names.contains(&a) {
            shapes.extend([(a, vec![form.r, inputs]), (b, vec![outputs, form.r])]);
            found.push(name);
        }
    }
    if let Some(name) = names.iter().find(|name| !shapes.iter().any(|(known, _)| known == *name)) {
        return Err(LmError::TensorForm {
            name: name.clone(),
            found: "there".to_owned(),
            expected: "no adapter of such a layer".to_owned(),
        });
    }
    let mut tensors = weights::read(&weights_name, path, &shapes, device)?;
    let mut adapters = Adapters::new();
    for name in found {
        let [a, b] = ["A", "B"]
            .map(|part| tensors.remove(&format!("{PREFIX}{name}.lora_{part}.weight")).expect("it was just read"));
        adapters.insert(name, Adapter { a, b, scale: form.lora_alpha / form.r as f64, dropout: 0.0, noise: None });
    }
    Ok(Some(adapters))
}

#[cfg(test)]
mod tests;
