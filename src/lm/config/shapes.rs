//! The weights that a model of some form has.

use super::{Config, Family};

/// What the names of linear layers end in, over all families, but for the head and the routers.
pub const LINEAR_NAMES: [&str; 10] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"];

impl Config {
    /// Names and shapes of all weights, as `transformers` has them in its files.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let width = self.hidden_size;
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, width])];
        for layer in 0..self.num_hidden_layers {
            self.put_layer(&mut tensors, &format!("model.layers.{layer}."));
        }
        tensors.push(("model.norm.weight".to_owned(), vec![width]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, width]));
        }
        tensors
    }

    fn put_layer(&self, tensors: &mut Vec<(String, Vec<usize>)>, layer: &str) {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let norm = |name: &str, width: usize| (format!("{layer}{name}.weight"), vec![width]);
        tensors.push(norm("input_layernorm", width));
        for (name, out, inputs, bias) in [
            ("q_proj", queries, width, self.has_qkv_bias()),
            ("k_proj", keys, width, self.has_qkv_bias()),
            ("v_proj", keys, width, self.has_qkv_bias()),
            ("o_proj", width, queries, self.attention_bias),
        ] {
            put_linear(tensors, &format!("{layer}self_attn.{name}"), out, inputs, bias);
        }
        if self.model_type.normalises_heads() {
            tensors.push(norm("self_attn.q_norm", self.head_dim));
            tensors.push(norm("self_attn.k_norm", self.head_dim));
        }
        tensors.push(norm("post_attention_layernorm", width));
        let mut put_dense = |names: [String; 3]| {
            for (name, (out, inputs)) in names.iter().zip([(inner, width), (inner, width), (width, inner)]) {
                put_linear(tensors, &format!("{layer}{name}"), out, inputs, self.mlp_bias);
            }
        };
        match self.experts {
            None => put_dense(self.dense_names(None)),
            Some(experts) => {
                for expert in 0..experts.num_local_experts {
                    put_dense(self.dense_names(Some(expert)));
                }
                let router = format!("{layer}{}.weight", self.router_name());
                tensors.push((router, vec![experts.num_local_experts, width]));
            }
        }
    }

    /// Names, without `.weight`, and shapes (out, in) of the linear layers, but for the head and the routers.
    pub fn linears(&self) -> Vec<(String, [usize; 2])> {
        let router = format!(".{}.weight", self.router_name());
        let linear = |(name, shape): (String, Vec<usize>)| match shape[..] {
            [out, inputs] if name.starts_with("model.layers.") && !name.ends_with(&router) => {
                Some((name.strip_suffix(".weight")?.to_owned(), [out, inputs]))
            }
            _ => None,
        };
        self.tensors().into_iter().filter_map(linear).collect()
    }

    /// Whether queries, keys and values have biases.
    pub fn has_qkv_bias(&self) -> bool {
        self.attention_bias || self.model_type == Family::Qwen2
    }

    /// Names of gate, up and down in a layer, those of an expert where there are any; without `.weight` and `.bias`.
    pub(in crate::lm) fn dense_names(&self, expert: Option<usize>) -> [String; 3] {
        match (expert, self.model_type) {
            (None, _) => ["gate_proj", "up_proj", "down_proj"].map(|name| format!("mlp.{name}")),
            (Some(expert), Family::Mixtral) => {
                ["w1", "w3", "w2"].map(|name| format!("block_sparse_moe.experts.{expert}.{name}"))
            }
            (Some(expert), _) => {
                ["gate_proj", "up_proj", "down_proj"].map(|name| format!("mlp.experts.{expert}.{name}"))
            }
        }
    }

    /// Name of the router in a layer, without `.weight`.
    pub(in crate::lm) fn router_name(&self) -> &'static str {
        if self.model_type == Family::Mixtral { "block_sparse_moe.gate" } else { "mlp.gate" }
    }

    /// How many weights there are.
    pub fn parameters(&self) -> u64 {
        let count = |shape: &[usize]| shape.iter().map(|size| *size as u64).product::<u64>();
        self.tensors().iter().map(|(_, shape)| count(shape)).fold(0, u64::saturating_add)
    }
}

fn put_linear(tensors: &mut Vec<(String, Vec<usize>)>, name: &str, out: usize, inputs: usize, bias: bool) {
    tensors.push((format!("{name}.weight"), vec![out, inputs]));
    if bias {
        tensors.push((format!("{name}.bias"), vec![out]));
    }
}
