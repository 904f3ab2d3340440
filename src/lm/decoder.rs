//! The decoder and its weights: Llama's, and what the families that came after it changed.
//!
//! What it computes stands in `plain.rs`, on one screen; `cpu/` computes the same fast.

mod joined;
mod layer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use self::layer::layer;
pub(super) use self::layer::{Dense, Layer, Linear, Mlp};
use super::adapter::{Adapters, Noise};
use super::decode::{Decoding, Entering};
use super::gguf::Gguf;
use super::prefixes::Prefixes;
use super::random::Stream;
use super::{Config, Files, LmError, adapter, cpu, weights};

/// What computes a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// `cpu/`: the fastest on a CPU, in f32.
    Cpu,
    /// `gpu/`: candle's operations over packed tokens, on any device and in any type of floating point.
    Tensors,
    /// `plain.rs`: the measure of the others.
    Plain,
}

/// A decoder with its weights, frozen or trainable.
///
/// Frozen weights build no graph. Trainable ones are [`Var`]s: what is computed from them has gradients, and changing
/// one in place changes the model.
///
/// A clone is the same model: it shares the weights.
#[derive(Debug, Clone)]
pub struct Model {
    config: Arc<Config>,
    device: Device,
    engine: Engine,
    weights: Arc<BTreeMap<String, Tensor>>,
    /// Of the linear layers, by their names.
    adapters: Arc<Adapters>,
    pub(super) embedding: Tensor, // (V, D)
    pub(super) layers: Arc<Vec<Layer>>,
    pub(super) norm: Tensor, // (D)
    pub(super) head: Tensor, // (V, D)
    /// What the CPU's passes keep from one to the next.
    pub(super) kept: Arc<cpu::Kept>,
}

impl Model {
    /// Loads a frozen model, with its adapter where it has one.
    pub fn load(files: &Files, device: &Device) -> Result<Self, LmError> {
        let config = Config::load(files)?;
        let weights = weights::load(files, &config, device)?;
        let adapters = adapter::load(files, &config, device)?;
        let model = Self::new(config, weights)?;
        adapters.map_or(Ok(model.clone()), |adapters| model.adapted(adapters))
    }

    /// Loads a frozen model that samples and scores, and nothing else: its weights are held once, as the passes want them.
    /// On the CPU [`Self::weights`] then lacks most of them, and it cannot be saved.
    pub fn load_to_use(files: &Files, device: &Device) -> Result<Self, LmError> {
        if !device.is_cpu() {
            return Self::load(files, device)?.joined();
        }
        if Gguf::of(files)?.is_some() {
            return Self::load(files, device);
        }
        let config = Config::load(files)?;
        config.check()?;
        let outside =
            weights::load_some(DType::F32, files, &config, device, |name| !name.starts_with("model.layers."))?;
        let (embedding, norm) = (outside["model.embed_tokens.weight"].clone(), outside["model.norm.weight"].clone());
        let head = outside.get("lm_head.weight").cloned().unwrap_or_else(|| embedding.clone());
        drop(outside);
        let mut packing = cpu::Packing::new(&norm, &head)?;
        drop(head);
        let adapters = adapter::load(files, &config, device)?.unwrap_or_default();
        let mut adapted = 0;
        for index in 0..config.num_hidden_layers {
            let prefix = format!("model.layers.{index}.");
            let weights = weights::load_some(DType::F32, files, &config, device, |name| name.starts_with(&prefix))?;
            let mut layer = layer(&config, &weights, index);
            for linear in layer.linears_mut() {
                if let Some(adapter) = adapters.get(&linear.name) {
                    linear.adapt(adapter)?;
                    adapted += 1;
                }
            }
            packing.add(&layer)?;
        }
        if adapted < adapters.len() {
            // One is of no linear layer; this names it.
            return Self::load(files, device);
        }
        Ok(Self {
            layers: Arc::default(),
            engine: Engine::Cpu,
            device: device.clone(),
            weights: Arc::new(BTreeMap::from([("model.embed_tokens.weight".to_owned(), embedding.clone())])),
            // Packed as the head is, nobody reads it here.
            head: embedding.clone(),
            embedding,
            norm,
            config: Arc::new(config),
            adapters: Arc::new(adapters),
            kept: Arc::new(packing.finish()),
        })
    }

    /// A frozen model with random weights; the same seed gives the same weights everywhere.
    ///
    /// The embedding has a standard deviation of 0.05, other matrices of one over the square root of their inputs, and
    /// those that write into the residual stream less by the square root of their number, so that its variance does not
    /// grow with the depth (Radford et al. 2019). Biases are zero.
    pub fn random(config: Config, seed: u64, device: &Device) -> Result<Self, LmError> {
        config.check()?;
        let residual = 1.0 / (2.0 * config.num_hidden_layers as f32).sqrt();
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.tensors() {
            let count: usize = shape.iter().product();
            let scale = match shape.as_slice() {
                _ if name.ends_with("embed_tokens.weight") => 0.05,
                [_, inputs] => {
                    let writes =
                        ["o_proj", "down_proj", "w2"].iter().any(|part| name.ends_with(&format!("{part}.weight")));
                    (1.0 / *inputs as f32).sqrt() * if writes { residual } else { 1.0 }
                }
                _ => 0.0,
            };
            let mut values = Vec::new();
            values.try_reserve_exact(count).map_err(|_| LmError::Config {
                field: "hidden_size",
                what: format!("makes a model of {} parameters, which do not fit the memory", config.parameters()),
            })?;
            let mut stream = Stream::new(seed, &name);
            if shape.len() == 1 {
                values.resize(count, if name.contains("norm") { 1.0 } else { 0.0 });
            } else {
                values.extend((0..count).map(|_| stream.normal() * scale));
            }
            tensors.insert(name, Tensor::from_vec(values, shape, device)?);
        }
        Self::new(config, tensors)
    }

    /// A frozen model of copies of weights, so that nothing that happens to them later changes it.
    ///
    /// Names and shapes are those of `transformers`. Errs if one is missing or of another shape.
    pub fn frozen(config: Config, weights: BTreeMap<String, Tensor>) -> Result<Self, LmError> {
        let copied = |(name, tensor): (String, Tensor)| Ok((name, tensor.copy()?.detach()));
        Self::new(config, weights.into_iter().map(copied).collect::<Result<_, candle_core::Error>>()?)
    }

    /// A model whose weights are all variables, copied from `weights`, and the variables by name.
    pub fn trainable(
        config: Config,
        mut weights: BTreeMap<String, Tensor>,
    ) -> Result<(Self, BTreeMap<String, Var>), LmError> {
        let mut variables = BTreeMap::new();
        for (name, _) in config.tensors() {
            // One after the other, so that there are not two models at a time.
            if let Some(tensor) = weights.remove(&name) {
                variables.insert(name, Var::from_tensor(&tensor.detach())?);
            }
        }
        let tensors = variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
        Ok((Self::new(config, tensors)?, variables))
    }

    /// A model of weights as they are: they may be variables, constants, or computed from either. What is computed from
    /// them has gradients where they do. Constants must not be changed in place afterwards.
    ///
    /// Errs if a weight is missing or of another shape, or of another type than f32 on the CPU and than the others
    /// elsewhere.
    pub fn new(config: Config, weights: BTreeMap<String, Tensor>) -> Result<Self, LmError> {
        let on_cpu = weights.values().next().is_none_or(|weight| weight.device().is_cpu());
        Self::computed_by(if on_cpu { Engine::Cpu } else { Engine::Tensors }, config, weights)
    }

    /// As [`Model::new`], computed in a way that is not the usual one of its device. [`Engine::Tensors`] computes in bf16
    /// and f16 too, on a CPU as well.
    pub fn computed_by(engine: Engine, config: Config, mut weights: BTreeMap<String, Tensor>) -> Result<Self, LmError> {
        config.check()?;
        let shapes: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        weights.retain(|name, _| shapes.contains_key(name));
        let mut device = None;
        let dtype = match (engine, weights.get("model.embed_tokens.weight").map(Tensor::dtype)) {
            (Engine::Tensors, Some(dtype @ (DType::BF16 | DType::F16))) => dtype,
            _ => DType::F32,
        };
        for (name, shape) in &shapes {
            let tensor = weights.get_mut(name).ok_or_else(|| LmError::MissingTensor { name: name.clone() })?;
            if tensor.dims() != shape.as_slice() || tensor.dtype() != dtype {
                return Err(LmError::TensorForm {
                    name: name.clone(),
                    found: format!("{:?} of {:?}", tensor.dims(), tensor.dtype()),
                    expected: format!("{shape:?} of {dtype:?}"),
                });
            }
            if !tensor.is_contiguous() {
                *tensor = tensor.contiguous()?;
            }
            device.get_or_insert_with(|| tensor.device().clone());
        }
        let take = |name: &str| weights[name].clone();
        let layers: Vec<Layer> = (0..config.num_hidden_layers).map(|index| layer(&config, &weights, index)).collect();
        let embedding = take("model.embed_tokens.weight");
        let head = if config.tie_word_embeddings { embedding.clone() } else { take("lm_head.weight") };
        Ok(Self {
            engine,
            layers: Arc::new(layers),
            norm: take("model.norm.weight"),
            device: device.unwrap_or(Device::Cpu),
            embedding,
            head,
            config: Arc::new(config),
            weights: Arc::new(weights),
            adapters: Arc::default(),
            kept: Arc::default(),
        })
    }

    /// The model with adapters on some of its linear layers. The weights are shared.
    ///
    /// Errs on an adapter of a layer that the model does not have, and on one that does not fit it.
    pub fn adapted(mut self, adapters: Adapters) -> Result<Self, LmError> {
        let mut layers = (*self.layers).clone();
        let mut linears: BTreeMap<String, &mut Linear> = BTreeMap::new();
        for linear in layers.iter_mut().flat_map(Layer::linears_mut) {
            linears.insert(linear.name.clone(), linear);
        }
        for (name, adapter) in &adapters {
            let linear =
                linears.get_mut(name).ok_or_else(|| LmError::MissingTensor { name: format!("{name}.weight") })?;
            linear.adapt(adapter)?;
        }
        self.layers = Arc::new(layers);
        self.adapters = Arc::new(adapters);
        self.kept = Arc::default();
        Ok(self)
    }

    /// The adapters, by the names of their linear layers.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// The model as a step of training sees it, with dropout on what its adapters see. The weights are shared.
    pub(super) fn noisy(&self, seed: u64) -> Self {
        let mut layers = (*self.layers).clone();
        for linear in layers.iter_mut().flat_map(Layer::linears_mut) {
            if let Some(adapter) = linear.adapter.as_mut().filter(|adapter| adapter.dropout > 0.0) {
                let seed = Stream::new(seed, &linear.name).bits();
                adapter.noise = Some(Noise { seed, share: adapter.dropout });
            }
        }
        Self { layers: Arc::new(layers), kept: Arc::new(self.kept.beside()), ..self.clone() }
    }

    /// What has gradients, by name: variables, and what was computed from some.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let adapters = self.adapters.iter().flat_map(|(name, adapter)| adapter.named(name));
        let weights = self.weights.iter().map(|(name, weight)| (name.clone(), weight));
        weights.chain(adapters).filter(|(_, tensor)| tensor.track_op())
    }

    /// The form.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type of its numbers.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// What computes it.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Whether `cpu/` computes it.
    pub(super) fn on_cpu(&self) -> bool {
        self.engine == Engine::Cpu
    }

    /// The weights by name, variables or not; of a model that was loaded to use, only some.
    pub fn weights(&self) -> &BTreeMap<String, Tensor> {
        &self.weights
    }

    /// From now on what passes on the CPU take beside the weights is so many bytes at most. Work that can be done in smaller
    /// parts then is; [`LmError::OutOfMemory`] or [`LmError::RowOutOfMemory`] where even the smallest does not fit.
    pub fn limit_buffers(&self, bytes: Option<u64>) {
        self.kept.limit(bytes);
    }

    /// The logits of the token after each prompt: V numbers each. Builds no graph. Errs as [`super::sampling::sample`] does.
    pub fn next_logits(&self, prompts: &[&[u32]]) -> Result<Vec<Vec<f32>>, LmError> {
        self.check_prompts(prompts)?;
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let prefixes = Arc::new(Prefixes::of(prompts));
        let entering: Vec<Entering<'_>> =
            prompts.iter().enumerate().map(|(prompt, ids)| Entering { ids, prompt, room: 0 }).collect();
        let mut logits = Vec::new();
        Decoding::new(self, &prefixes, cpu::TOKENS_PER_PASS)?.step(self, &[], &[], &entering, &mut logits)?;
        Ok(logits.chunks(self.config.vocab_size).map(<[f32]>::to_vec).collect())
    }

    /// Errs on a prompt without tokens, with a token that the model does not have, or without room for one more.
    pub(super) fn check_prompts(&self, prompts: &[&[u32]]) -> Result<(), LmError> {
        let positions = self.config.max_position_embeddings;
        for (row, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(LmError::Sequence { row, what: "is an empty prompt".to_owned() });
            }
            if prompt.len() >= positions {
                return Err(LmError::TooLong { row, tokens: prompt.len() + 1, positions });
            }
            if let Some(token) = prompt.iter().find(|token| **token as usize >= self.config.vocab_size) {
                let what = format!("has the token {token}, the model has {}", self.config.vocab_size);
                return Err(LmError::Sequence { row, what });
            }
        }
        Ok(())
    }

    /// Writes `config.json`, `generation_config.json` and `model.safetensors` into a directory that exists. Errs on a model
    /// that was loaded to use only.
    pub fn save(&self, directory: &Path) -> Result<(), LmError> {
        if let Some((name, _)) = self.config.tensors().into_iter().find(|(name, _)| !self.weights.contains_key(name)) {
            return Err(LmError::MissingTensor { name });
        }
        let write =
            |name: &str, json: serde_json::Value| crate::fs::write(&directory.join(name), format!("{json:#}\n"));
        write("config.json", self.config.to_json())?;
        write("generation_config.json", self.config.generation_json())?;
        weights::save(&directory.join("model.safetensors"), &self.weights)
    }
}
