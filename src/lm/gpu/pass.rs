//! A pass through all layers, and the way back.

use candle_core::{DType, Result, Tensor};

use super::attention::{Attention, Heads, Mixed};
use super::experts::{self, Trace};
use super::linear::{Gradients, linear, linear_back, queries_keys_values, wants};
use super::ops::{Turn, add_rms_norm, rms_norm, rms_norm_back};
use crate::lm::Model;
use crate::lm::cpu::Keep;
use crate::lm::decoder::Layer;
use crate::lm::layout::Layout;

/// What does not change from layer to layer.
pub(super) struct Context {
    pub(super) heads: Heads,
    pub(super) eps: f64,
    pub(super) attention: Attention,
    turn: Turn,
    /// (N)
    ids: Tensor,
    /// (M)
    chosen: Tensor,
    /// Which of the chosen each token is, M for those that are none: (N).
    places: Tensor,
}

/// The turn of positions.
pub(super) fn turn(model: &Model, positions: &[u32]) -> Result<Turn> {
    let half = model.config().head_dim / 2;
    let frequencies: Vec<f32> = (0..half).map(|pair| model.config().frequency(pair)).collect();
    let angles = positions
        .iter()
        .flat_map(|position| frequencies.iter().map(move |frequency| f64::from(*position as f32 * frequency)));
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
    let tensor =
        |values: Vec<f32>| Tensor::from_vec(values, (positions.len(), half), model.device())?.to_dtype(model.dtype());
    Turn::new(tensor(cos)?, tensor(sin)?, 1.0 / (model.config().head_dim as f64).sqrt())
}

impl Context {
    pub(super) fn new(model: &Model, layout: &Layout) -> Result<Self> {
        let (config, device) = (model.config(), model.device());
        let heads = Heads::of(config);
        let turn = turn(model, &layout.positions)?;
        let windows: Vec<Option<usize>> = model.layers.iter().map(|layer| layer.window).collect();
        let mut places = vec![layout.chosen.len() as u32; layout.ids.len()];
        for (place, token) in layout.chosen.iter().enumerate() {
            places[*token] = place as u32;
        }
        let chosen: Vec<u32> = layout.chosen.iter().map(|token| *token as u32).collect();
        Ok(Self {
            heads,
            eps: config.rms_norm_eps,
            attention: Attention::new(layout, heads, &windows, model.dtype(), device)?,
            turn,
            ids: Tensor::new(layout.ids.as_slice(), device)?,
            chosen: Tensor::new(chosen.as_slice(), device)?,
            places: Tensor::new(places.as_slice(), device)?,
        })
    }
}

/// A layer's queries, keys and values.
struct Projected {
    normed: Tensor,
    /// Before their norm, if there is one: (N, H, E).
    query: Tensor,
    key: Tensor,
    /// Turned, and scaled: (N, H, E).
    turned_query: Tensor,
    turned_key: Tensor,
    /// (N, K, E)
    value: Tensor,
}

/// What a layer's gradient is made from.
struct LayerTrace {
    projected: Projected,
    mixed: Mixed,
    /// The same, of the rows that the second half is for.
    mixed_rows: Tensor,
    /// The residual stream after attention.
    middle: Tensor,
    second: Trace,
}

fn project(context: &Context, layer: &Layer, x: &Tensor) -> Result<Projected> {
    let normed = rms_norm(x, &layer.attention_norm.detach(), context.eps)?;
    let [query, key, value] = queries_keys_values(&normed, layer, context.heads)?;
    let norms = [layer.query_norm.as_ref(), layer.key_norm.as_ref()];
    let [turned_query, turned_key, value] = context.turn.apply([&query, &key, &value], norms, context.eps)?;
    Ok(Projected { normed, query, key, turned_query, turned_key, value })
}

/// A layer: (N, D) to (N, D), or to the chosen rows only if it is the last. `see` gets keys and values.
fn layer(
    context: &Context,
    layer: &Layer,
    x: &Tensor,
    last: bool,
    see: impl FnOnce(&Tensor, &Tensor) -> Result<()>,
) -> Result<(Tensor, LayerTrace)> {
    let projected = project(context, layer, x)?;
    see(&projected.turned_key, &projected.value)?;
    let inputs = [&projected.turned_query, &projected.turned_key, &projected.value];
    let mixed = context.attention.forward(inputs, layer.window)?;
    let pick = |x: &Tensor| if last { x.index_select(&context.chosen, 0) } else { Ok(x.clone()) };
    let (x, mixed_rows) = (pick(x)?, pick(&mixed.mixed)?);
    let change = linear(&mixed_rows, &layer.output)?;
    let (middle, normed) = add_rms_norm(&x, &change, &layer.mlp_norm.detach(), context.eps)?;
    let (change, second) = experts::forward(&normed, &layer.mlp)?;
    Ok(((&middle + change)?, LayerTrace { projected, mixed, mixed_rows, middle, second }))
}

/// A norm's gradients: that to its weight goes into `gradients`, that to x is added to `residual`.
fn norm_back(
    context: &Context,
    x: &Tensor,
    (name, weight): (String, &Tensor),
    gradient: &Tensor,
    residual: Option<&Tensor>,
    gradients: &mut Gradients,
) -> Result<Tensor> {
    let (to_x, to_weight) = rms_norm_back(x, &weight.detach(), context.eps, gradient, residual, wants(weight))?;
    if let Some(to_weight) = to_weight {
        gradients.add(&name, to_weight)?;
    }
    Ok(to_x)
}

/// Of chosen rows (M, …) all tokens', zero where they are none: (N, …).
fn spread(context: &Context, rows: &Tensor) -> Result<Tensor> {
    Tensor::cat(&[rows, &rows.narrow(0, 0, 1)?.zeros_like()?], 0)?.index_select(&context.places, 0)
}

/// The gradient to a layer's input from that to its result.
fn layer_back(
    context: &Context,
    (model, index): (&Model, usize),
    x: &Tensor,
    trace: LayerTrace,
    gradient: Tensor,
    gradients: &mut Gradients,
) -> Result<Tensor> {
    let layer = &model.layers[index];
    let last = index + 1 == model.layers.len();
    let name = |part: &str| format!("model.layers.{index}.{part}.weight");
    let Heads { queries, keys, width } = context.heads;
    let LayerTrace { projected, mixed, mixed_rows, middle, second } = trace;

    let router = name(model.config().router_name());
    let to_normed = experts::backward(&layer.mlp, &router, &second, &gradient, gradients)?;
    drop(second);
    let norm = (name("post_attention_layernorm"), &layer.mlp_norm);
    let to_middle = norm_back(context, &middle, norm, &to_normed, Some(&gradient), gradients)?;
    drop((middle, to_normed, gradient));
    let to_mixed = linear_back(&mixed_rows, &layer.output, &to_middle, gradients)?;
    let (to_mixed, to_x) =
        if last { (spread(context, &to_mixed)?, spread(context, &to_middle)?) } else { (to_mixed, to_middle) };

    let Projected { normed, query, key, turned_query, turned_key, value } = projected;
    let [to_query, to_key, to_value] =
        context.attention.backward([&turned_query, &turned_key, &value], &mixed, &to_mixed, layer.window)?;
    drop((mixed, to_mixed, turned_query, turned_key, value));
    let [to_query, to_key] = context.turn.back(&to_query, &to_key)?;
    let mut of_heads = |gradient: Tensor, x: &Tensor, norm: Option<&Tensor>, name: String, heads| {
        let gradient = match norm {
            Some(norm) => norm_back(context, x, (name, norm), &gradient, None, gradients)?,
            None => gradient,
        };
        gradient.reshape(((), heads * width))
    };
    let to_query = of_heads(to_query, &query, layer.query_norm.as_ref(), name("self_attn.q_norm"), queries)?;
    let to_key = of_heads(to_key, &key, layer.key_norm.as_ref(), name("self_attn.k_norm"), keys)?;
    let to_value = to_value.reshape(((), keys * width))?;
    let mut to_normed = linear_back(&normed, &layer.query, &to_query, gradients)?;
    to_normed = (to_normed + linear_back(&normed, &layer.key, &to_key, gradients)?)?;
    to_normed = (to_normed + linear_back(&normed, &layer.value, &to_value, gradients)?)?;
    let norm = (name("input_layernorm"), &layer.attention_norm);
    norm_back(context, x, norm, &to_normed, Some(&to_x), gradients)
}

/// A pass up to the normalised hidden states of the chosen tokens.
pub(super) struct Pass {
    context: Context,
    /// Each layer's input, and what else was kept of it.
    kept: Vec<(Tensor, Option<LayerTrace>)>,
    /// The residual stream after the last layer: (M, D).
    x: Tensor,
    /// (M, D)
    pub(super) hidden: Tensor,
}

impl Pass {
    /// `see` gets each layer's keys and values: (N, K, E) each.
    pub(super) fn new(
        model: &Model,
        layout: &Layout,
        keep: Keep,
        mut see: impl FnMut(usize, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<Self> {
        let context = Context::new(model, layout)?;
        let mut x = model.embedding.detach().index_select(&context.ids, 0)?;
        let mut kept = Vec::new();
        for (index, weights) in model.layers.iter().enumerate() {
            let last = index + 1 == model.layers.len();
            let (out, trace) = layer(&context, weights, &x, last, |keys, values| see(index, keys, values))?;
            let before = std::mem::replace(&mut x, out);
            match keep {
                Keep::Nothing => {}
                Keep::Inputs => kept.push((before, None)),
                Keep::Everything => kept.push((before, Some(trace))),
            }
        }
        let hidden = rms_norm(&x, &model.norm.detach(), context.eps)?;
        Ok(Self { context, kept, x, hidden })
    }

    /// Adds the gradients of all weights that want one, from that to the hidden states (M, D). What was kept goes on the
    /// way.
    pub(super) fn backward(self, model: &Model, gradient: &Tensor, gradients: &mut Gradients) -> Result<()> {
        let Self { context, kept, x, .. } = self;
        let norm = ("model.norm.weight".to_owned(), &model.norm);
        let mut gradient = norm_back(&context, &x, norm, gradient, None, gradients)?;
        drop(x);
        // Below the lowest weight that wants a gradient there is nothing to do.
        let embedding = wants(&model.embedding);
        let lowest = if embedding {
            0
        } else {
            let first = model.layers.iter().position(|layer| layer.weights().any(wants));
            first.unwrap_or(model.layers.len())
        };
        for (index, (x, trace)) in kept.into_iter().enumerate().rev() {
            if index < lowest {
                return Ok(());
            }
            let last = index + 1 == model.layers.len();
            let trace = match trace {
                Some(trace) => trace,
                None => layer(&context, &model.layers[index], &x, last, |_, _| Ok(()))?.1,
            };
            gradient = layer_back(&context, (model, index), &x, trace, gradient, gradients)?;
        }
        if embedding {
            // Tokens stand in a batch many times: their gradients are added up in f32.
            let zeros = Tensor::zeros(model.embedding.shape(), DType::F32, model.device())?;
            let sum = zeros.index_add(&context.ids, &gradient.to_dtype(DType::F32)?, 0)?;
            gradients.add("model.embed_tokens.weight", sum.to_dtype(model.embedding.dtype())?)?;
        }
        Ok(())
    }
}
