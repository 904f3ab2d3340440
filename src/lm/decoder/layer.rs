//! The weights of a layer.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::super::adapter::Adapter;
use super::super::{Config, LmError};
use super::joined::Joined;

/// The weights of one layer.
#[derive(Debug, Clone)]
pub(in crate::lm) struct Layer {
    pub(in crate::lm) attention_norm: Tensor,     // (D)
    pub(in crate::lm) query: Linear,              // D to H·E
    pub(in crate::lm) key: Linear,                // D to K·E
    pub(in crate::lm) value: Linear,              // D to K·E
    pub(in crate::lm) output: Linear,             // H·E to D
    pub(in crate::lm) query_norm: Option<Tensor>, // (E)
    pub(in crate::lm) key_norm: Option<Tensor>,   // (E)
    pub(in crate::lm) mlp_norm: Tensor,           // (D)
    pub(in crate::lm) mlp: Mlp,
    /// Queries, keys and values in one product, where their weights lie side by side.
    pub(in crate::lm) joined: Option<Joined>,
    /// How many tokens a token sees, itself among them; `None`: all.
    pub(in crate::lm) window: Option<usize>,
}

/// A linear layer: y = x · Wᵀ + b, and what an adapter adds.
#[derive(Debug, Clone)]
pub(in crate::lm) struct Linear {
    /// As `transformers` has it, without `.weight` and `.bias`.
    pub(in crate::lm) name: String,
    pub(in crate::lm) weight: Tensor,       // (out, in)
    pub(in crate::lm) bias: Option<Tensor>, // (out)
    pub(in crate::lm) adapter: Option<Adapter>,
}

/// What stands after attention.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there are as many as layers, and most are of the larger kind")]
pub(in crate::lm) enum Mlp {
    /// A feed-forward layer.
    Dense(Dense),
    /// Several, of which each token uses some (Jiang et al. 2024, "Mixtral of experts").
    Experts {
        router: Tensor, // (X, D)
        experts: Vec<Dense>,
        per_token: usize,
        /// Whether the weights of those that a token uses are made to add up to 1.
        normalise: bool,
    },
}

/// A gated feed-forward layer: down(silu(gate(x)) · up(x)).
#[derive(Debug, Clone)]
pub(in crate::lm) struct Dense {
    pub(in crate::lm) gate: Linear, // D to F
    pub(in crate::lm) up: Linear,   // D to F
    pub(in crate::lm) down: Linear, // F to D
    /// Gate and up in one product, where their weights lie side by side.
    pub(in crate::lm) joined: Option<Joined>,
}

impl Layer {
    /// All its weights.
    pub(in crate::lm) fn weights(&self) -> impl Iterator<Item = &Tensor> {
        let norms =
            [Some(&self.attention_norm), Some(&self.mlp_norm), self.query_norm.as_ref(), self.key_norm.as_ref()];
        let router = match &self.mlp {
            Mlp::Dense(_) => None,
            Mlp::Experts { router, .. } => Some(router),
        };
        let mut linears = vec![&self.query, &self.key, &self.value, &self.output];
        match &self.mlp {
            Mlp::Dense(dense) => linears.extend([&dense.gate, &dense.up, &dense.down]),
            Mlp::Experts { experts, .. } => {
                linears.extend(experts.iter().flat_map(|dense| [&dense.gate, &dense.up, &dense.down]));
            }
        }
        linears.into_iter().flat_map(Linear::weights).chain(norms).chain([router]).flatten()
    }

    /// Its linear layers, but for the router.
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = vec![&mut self.query, &mut self.key, &mut self.value, &mut self.output];
        match &mut self.mlp {
            Mlp::Dense(dense) => all.extend(dense.linears_mut()),
            Mlp::Experts { experts, .. } => all.extend(experts.iter_mut().flat_map(Dense::linears_mut)),
        }
        all
    }
}

impl Linear {
    /// Puts an adapter on it; errs on one that does not fit.
    pub(super) fn adapt(&mut self, adapter: &Adapter) -> Result<(), LmError> {
        let ((outputs, inputs), rank) = (self.weight.dims2()?, adapter.a.dim(0)?);
        let fits = adapter.a.dims() == [rank, inputs] && adapter.b.dims() == [outputs, rank];
        if !fits || adapter.a.dtype() != DType::F32 || adapter.b.dtype() != DType::F32 {
            return Err(LmError::TensorForm {
                name: format!("{}.lora_A.weight", self.name),
                found: format!("{:?}, with B {:?}", adapter.a, adapter.b),
                expected: format!("[r, {inputs}], with B [{outputs}, r], of F32"),
            });
        }
        self.adapter = Some(adapter.clone());
        Ok(())
    }

    fn weights(&self) -> [Option<&Tensor>; 4] {
        let adapter = self.adapter.as_ref();
        let (a, b) = (adapter.map(|adapter| &adapter.a), adapter.map(|adapter| &adapter.b));
        [Some(&self.weight), self.bias.as_ref(), a, b]
    }
}

impl Dense {
    fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate, &mut self.up, &mut self.down]
    }
}

/// A layer's weights by their names.
pub(super) fn layer(config: &Config, weights: &BTreeMap<String, Tensor>, index: usize) -> Layer {
    let full = |name: &str| format!("model.layers.{index}.{name}");
    let norm = |name: &str| weights.get(&format!("{}.weight", full(name))).cloned();
    let linear = |name: &str| {
        let name = full(name);
        let weight = weights[&format!("{name}.weight")].clone();
        Linear { weight, bias: weights.get(&format!("{name}.bias")).cloned(), adapter: None, name }
    };
    let dense = |expert| {
        let [gate, up, down] = config.dense_names(expert).map(|name| linear(&name));
        Dense { gate, up, down, joined: None }
    };
    Layer {
        attention_norm: norm("input_layernorm").expect("all weights are there"),
        query: linear("self_attn.q_proj"),
        key: linear("self_attn.k_proj"),
        value: linear("self_attn.v_proj"),
        output: linear("self_attn.o_proj"),
        query_norm: norm("self_attn.q_norm"),
        key_norm: norm("self_attn.k_norm"),
        mlp_norm: norm("post_attention_layernorm").expect("all weights are there"),
        mlp: match config.experts {
            None => Mlp::Dense(dense(None)),
            Some(form) => Mlp::Experts {
                router: weights[&format!("{}.weight", full(config.router_name()))].clone(),
                experts: (0..form.num_local_experts).map(|expert| dense(Some(expert))).collect(),
                per_token: form.num_experts_per_tok,
                normalise: form.norm_topk_prob,
            },
        },
        joined: None,
        window: config.window(index),
    }
}
