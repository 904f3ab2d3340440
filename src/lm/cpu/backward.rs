//! The backward pass: from gradients to log-probabilities and divergences to gradients to the weights.
//!
//! Cheap intermediate results (norms, silu(gate) · up, attention weights, logits) are made again rather than kept. Sums
//! over tokens run in fixed blocks that are added in order: the result does not depend on the number of threads.

use candle_core::Tensor;
use rayon::prelude::*;

use super::attention;
use super::experts::{Gradient, PackedExperts};
use super::forward::{BLOCK, Context, Saved, Share, Trace, Traces, again, heads_and_norms, normalise, swiglu, turn};
use super::gradients::{Columns, Gradients, in_order};
use super::head::{Hidden, logits, rows_of_a_task};
use super::layout::Layout;
use super::linear::Backwards;
use super::matmul::{Panels, transposed_product};
use super::packed::{PackedLayer, PackedMlp, view};
use super::pool::Buffer;
use super::scored::attend;
use super::simd;
use crate::lm::decoder::{Dense, Layer, Mlp};
use crate::lm::{LmError, Model};

const EMBEDDING: &str = "model.embed_tokens.weight";
/// Numbers of logits whose gradients are in memory at once.
const LOGITS: usize = 1 << 22;

/// A forward pass that gradients are wanted of.
pub(super) struct Pass<'a> {
    pub(super) context: &'a Context,
    pub(super) model: &'a Model,
    pub(super) layout: &'a Layout,
    pub(super) reference: Option<(&'a Context, &'a Hidden)>,
}

impl Pass<'_> {
    /// Adds the gradients to all weights that want one, from those to log-probabilities and divergences (outputs each).
    ///
    /// `x` is the residual stream after the last layer: (M, D).
    pub(super) fn backward(
        &self,
        traces: Traces,
        x: Buffer,
        mut hidden: Hidden,
        (logprobs, kls): (&[f32], &[f32]),
        gradients: &mut Gradients,
    ) -> Result<(), LmError> {
        let to_hidden = self.head(&mut hidden, logprobs, kls, gradients)?;
        drop(hidden);
        let mut dx = self.context.pool.zeros(x.len());
        let to_norm = self.norm(&x, &self.context.packed.norm, &to_hidden, &mut dx);
        self.put(gradients, "model.norm.weight", &to_norm);
        drop((x, to_hidden));
        let mut traces = traces.layers;
        while let Some(trace) = traces.pop() {
            let index = traces.len();
            let saved = match trace {
                Trace::Whole(saved) => saved,
                Trace::Input(x) => again(self.context, self.layout, index, x, &mut attend(self.context, self.layout)),
            };
            dx = self.layer(index, &self.model.layers[index], &saved, dx, gradients)?;
        }
        if self.wanted(EMBEDDING) {
            let width = self.context.width;
            let (sum, _) = gradients.of(EMBEDDING, self.model.embedding.elem_count());
            for (dx, id) in dx.chunks_exact(width).zip(&self.layout.ids) {
                simd::add(&mut sum[*id as usize * width..][..width], dx);
            }
        }
        Ok(())
    }

    fn wanted(&self, name: &str) -> bool {
        self.model.weights()[name].track_op()
    }

    fn put(&self, gradients: &mut Gradients, name: &str, values: &[f32]) {
        if self.wanted(name) {
            gradients.add(name, values);
        }
    }

    /// The head: adds to the gradient to its weight, and returns that to the normalised hidden states (M, D).
    fn head(
        &self,
        hidden: &mut Hidden,
        logprobs: &[f32],
        kls: &[f32],
        gradients: &mut Gradients,
    ) -> Result<Buffer, LmError> {
        let (context, pool) = (self.context, &self.context.pool);
        let (width, vocabulary) = (context.width, context.packed.head.columns());
        let weight = Panels::stacked(pool, &[&view(&self.model.head)?], width);
        let mut to_hidden = pool.take(hidden.rows.len());
        let name = if self.model.config().tie_word_embeddings { EMBEDDING } else { "lm_head.weight" };
        let mut sum = self.wanted(name).then(|| gradients.of(name, vocabulary * width));
        let rows = self.layout.chosen.len();
        let mut kept = hidden.logits.take();
        // What is there need not be gone through in parts.
        let most = if kept.is_some() { rows } else { LOGITS / vocabulary };
        let chunk = most.clamp(BLOCK, rows.max(BLOCK));
        let task = rows_of_a_task(vocabulary);
        for start in (0..rows).step_by(chunk) {
            let here = start..(start + chunk).min(rows);
            let again = kept.is_none();
            let mut to_logits = kept.take().unwrap_or_else(|| pool.take(here.len() * vocabulary));
            to_logits
                .par_chunks_mut(task * vocabulary)
                .zip(to_hidden[here.start * width..here.end * width].par_chunks_mut(task * width))
                .enumerate()
                .for_each(|(index, (to_logits, to_hidden))| {
                    let first = here.start + index * task;
                    if again {
                        let count = to_logits.len() / vocabulary;
                        let rows = &hidden.rows[first * width..(first + count) * width];
                        context.packed.head.multiply(rows, to_logits, false);
                    }
                    self.logits_of_a_task(hidden, first, to_logits, logprobs, kls);
                    weight.multiply(to_logits, to_hidden, false);
                });
            if let Some((sum, there)) = &mut sum {
                let x = Panels::stacked(pool, &[&hidden.rows[here.start * width..here.end * width]], width);
                let to = Columns { values: &to_logits, row: vocabulary, from: 0, count: vocabulary };
                transposed_product(&x, to, sum, *there || start > 0);
            }
        }
        Ok(to_hidden)
    }

    /// Makes of the logits of some rows from `first` on the gradients to them: (rows, V).
    fn logits_of_a_task(&self, hidden: &Hidden, first: usize, out: &mut [f32], logprobs: &[f32], kls: &[f32]) {
        let vocabulary = self.context.packed.head.columns();
        let rows = out.len() / vocabulary;
        let theirs = self.reference.map(|(context, hidden)| {
            let rows = &hidden.rows[first * context.width..(first + rows) * context.width];
            (logits(context, rows), hidden)
        });
        for (row, line) in out.chunks_exact_mut(vocabulary).enumerate() {
            let predictions = &self.layout.predictions[first + row];
            let total = hidden.totals[first + row];
            let weight: f32 = predictions.iter().map(|(output, _)| logprobs[*output]).sum();
            match &theirs {
                None => simd::logprob_backward(line, total, weight),
                Some((theirs, their_hidden)) => {
                    let kl_weight: f32 = predictions.iter().map(|(output, _)| kls[*output]).sum();
                    let (theirs, their_total) =
                        (&theirs[row * vocabulary..][..vocabulary], their_hidden.totals[first + row]);
                    let kl = simd::kl(line, total, theirs, their_total);
                    simd::kl_backward(line, total, theirs, their_total, weight, kl_weight, kl);
                }
            }
            for (output, token) in predictions {
                line[*token as usize] += logprobs[*output];
            }
        }
    }

    /// Adds the gradient through a norm of `x` to `dx`; returns that to its weight.
    fn norm(&self, x: &[f32], weight: &[f32], gradient: &[f32], dx: &mut [f32]) -> Vec<f32> {
        let rows = BLOCK * self.context.width;
        let parts: Vec<Vec<f32>> = x
            .par_chunks(rows)
            .zip(gradient.par_chunks(rows))
            .zip(dx.par_chunks_mut(rows))
            .map(|((x, gradient), dx)| self.norm_of_a_block(x, weight, gradient, dx))
            .collect();
        in_order(&parts, self.context.width)
    }

    fn norm_of_a_block(&self, x: &[f32], weight: &[f32], gradient: &[f32], dx: &mut [f32]) -> Vec<f32> {
        let width = self.context.width;
        let mut to_weight = vec![0.0; width];
        for ((x, gradient), dx) in
            x.chunks_exact(width).zip(gradient.chunks_exact(width)).zip(dx.chunks_exact_mut(width))
        {
            simd::rms_norm_backward(x, weight, self.context.eps, gradient, dx, &mut to_weight);
        }
        to_weight
    }

    /// From the gradient to a layer's output to that to its input: both (N, D), the last layer's output (M, D).
    fn layer(
        &self,
        index: usize,
        layer: &Layer,
        saved: &Saved,
        dx: Buffer,
        gradients: &mut Gradients,
    ) -> Result<Buffer, LmError> {
        let (context, pool) = (self.context, &self.context.pool);
        let (width, queries) = (context.width, context.shape.queries());
        let (middle, to_mixed) = self.second_half(index, layer, saved, dx, gradients)?;
        let last = index + 1 == self.model.layers.len();
        let (mut dx, to_mixed) =
            if last { (self.scatter(&middle, width), self.scatter(&to_mixed, queries)) } else { (middle, to_mixed) };
        let mut to_qkv = pool.take(saved.qkv.len());
        let batch = attention::Backward { qkv: &saved.qkv, mixed: &saved.mixed, gradient: &to_mixed };
        attention::backward(
            &context.shape.seeing(context.packed.layers[index].window),
            &self.layout.groups,
            &batch,
            &mut to_qkv,
            pool,
        );
        self.first_half(index, layer, saved, &mut to_qkv, &mut dx, gradients)?;
        Ok(dx)
    }

    /// Rows of the chosen tokens among those of all, which are zero elsewhere.
    fn scatter(&self, rows: &[f32], width: usize) -> Buffer {
        let mut all = self.context.pool.zeros(self.layout.ids.len() * width);
        for (row, chosen) in rows.chunks_exact(width).zip(&self.layout.chosen) {
            all[chosen * width..][..width].copy_from_slice(row);
        }
        all
    }

    /// The feed-forward layer and attention's output. Returns the gradients to the residual stream before them (N, D) and
    /// to the mixed values (N, H·E).
    fn second_half(
        &self,
        index: usize,
        layer: &Layer,
        saved: &Saved,
        dx: Buffer,
        gradients: &mut Gradients,
    ) -> Result<(Buffer, Buffer), LmError> {
        let (context, pool) = (self.context, &self.context.pool);
        let (width, queries) = (context.width, context.shape.queries());
        let packed = &context.packed.layers[index];
        let mut normed = pool.take(dx.len());
        normed
            .par_chunks_mut(BLOCK * width)
            .zip(saved.middle.par_chunks(BLOCK * width))
            .for_each(|(normed, x)| normalise(x, &packed.mlp_norm, context.eps, normed));
        let to_normed = match (&layer.mlp, &packed.mlp) {
            (Mlp::Experts { router, experts, .. }, PackedMlp::Experts(packed)) => {
                let passed = (&*normed, &*saved.gate_up, &*dx);
                self.experts(index, (router, experts, packed), passed, gradients)?
            }
            (Mlp::Dense(dense), _) => self.dense(dense, &normed, &saved.gate_up, &dx, gradients)?,
            (Mlp::Experts { .. }, PackedMlp::Dense(_)) => unreachable!("they were made of each other"),
        };
        let output = Backwards::new(pool, &[&layer.output])?;
        let last = index + 1 == self.model.layers.len();
        let chosen = last.then(|| super::forward::gather(pool, &saved.mixed, queries, &self.layout.chosen));
        let mixed = chosen.as_deref().unwrap_or(&saved.mixed);
        let mut middle = pool.take(dx.len());
        let mut to_mixed = pool.take(dx.len() / width * queries);
        let parts: Vec<Vec<f32>> = dx
            .par_chunks(BLOCK * width)
            .zip(saved.middle.par_chunks(BLOCK * width))
            .zip(to_normed.par_chunks(BLOCK * width))
            .zip(middle.par_chunks_mut(BLOCK * width))
            .zip(to_mixed.par_chunks_mut(BLOCK * queries))
            .zip(mixed.par_chunks(BLOCK * queries))
            .map(|(((((dx, x), to_normed), middle), to_mixed), mixed)| {
                middle.copy_from_slice(dx);
                let to_norm = self.norm_of_a_block(x, &packed.mlp_norm, to_normed, middle);
                output.apply(middle, to_mixed, || mixed);
                to_norm
            })
            .collect();
        self.put(gradients, &Self::weight_name(index, "post_attention_layernorm"), &in_order(&parts, width));
        gradients.add_linears(pool, &[&layer.output], &middle, mixed)?;
        Ok((middle, to_mixed))
    }

    /// A feed-forward layer. Returns the gradient to its input: (N, D).
    fn dense(
        &self,
        dense: &Dense,
        normed: &[f32],
        gate_up: &[f32],
        dx: &[f32],
        gradients: &mut Gradients,
    ) -> Result<Buffer, LmError> {
        let (pool, width, inner) = (&self.context.pool, self.context.width, self.context.inner);
        let down = Backwards::new(pool, &[&dense.down])?;
        let gate_up_back = Backwards::new(pool, &[&dense.gate, &dense.up])?;
        let rows = dx.len() / width;
        let mut product = pool.take(rows * inner);
        let mut to_gate_up = pool.take(rows * 2 * inner);
        let mut to_normed = pool.take(rows * width);
        dx.par_chunks(BLOCK * width)
            .zip(gate_up.par_chunks(BLOCK * 2 * inner))
            .zip(product.par_chunks_mut(BLOCK * inner))
            .zip(to_gate_up.par_chunks_mut(BLOCK * 2 * inner))
            .zip(to_normed.par_chunks_mut(BLOCK * width))
            .zip(normed.par_chunks(BLOCK * width))
            .for_each(|(((((dx, saved), product), to_gate_up), to_normed), normed)| {
                down.apply(dx, product, || swiglu(pool, saved, inner));
                let rows = saved.chunks_exact(2 * inner).zip(product.chunks_exact_mut(inner));
                for ((saved, product), to_both) in rows.zip(to_gate_up.chunks_exact_mut(2 * inner)) {
                    let ((gate, up), (to_gate, to_up)) = (saved.split_at(inner), to_both.split_at_mut(inner));
                    simd::swiglu_backward(gate, up, product, to_gate, to_up);
                }
                gate_up_back.apply(to_gate_up, to_normed, || normed);
            });
        gradients.add_linears(pool, &[&dense.down], dx, &product)?;
        gradients.add_linears(pool, &[&dense.gate, &dense.up], &to_gate_up, normed)?;
        Ok(to_normed)
    }

    /// A layer's experts and their router. Returns the gradient to their input: (N, D).
    fn experts(
        &self,
        index: usize,
        (router, experts, packed): (&Tensor, &[Dense], &PackedExperts),
        (normed, gate_up, dx): (&[f32], &[f32], &[f32]),
        gradients: &mut Gradients,
    ) -> Result<Buffer, LmError> {
        let (context, pool) = (self.context, &self.context.pool);
        let (width, inner) = (context.width, context.inner);
        let Gradient { routing, mut to_normed, to_logits, to_results, product, to_gate_up } =
            Gradient::new(context, packed, experts, (normed, gate_up, dx))?;
        for (expert, dense) in experts.iter().enumerate() {
            let uses = routing.uses(expert);
            let of = |width: usize| uses.start * width..uses.end * width;
            let inputs = routing.inputs(pool, normed, width, expert);
            gradients.add_linears(pool, &[&dense.down], &to_results[of(width)], &product[of(inner)])?;
            gradients.add_linears(pool, &[&dense.gate, &dense.up], &to_gate_up[of(2 * inner)], &inputs)?;
        }
        let back = Panels::stacked(pool, &[&view(router)?], width); // (X, D)
        let all = experts.len();
        to_normed
            .par_chunks_mut(BLOCK * width)
            .zip(to_logits.par_chunks(BLOCK * all))
            .for_each(|(to_normed, to_logits)| back.multiply(to_logits, to_normed, true));
        let name = Self::weight_name(index, self.model.config().router_name());
        if self.wanted(&name) {
            let (sum, there) = gradients.of(&name, all * width);
            let to = Columns { values: &to_logits, row: all, from: 0, count: all };
            transposed_product(&Panels::stacked(pool, &[normed], width), to, sum, there);
        }
        Ok(to_normed)
    }

    fn weight_name(index: usize, part: &str) -> String {
        format!("model.layers.{index}.{part}.weight")
    }

    /// Queries, keys and values. Adds the gradient to the layer's input to `dx` (N, D).
    fn first_half(
        &self,
        index: usize,
        layer: &Layer,
        saved: &Saved,
        to_qkv: &mut [f32],
        dx: &mut [f32],
        gradients: &mut Gradients,
    ) -> Result<(), LmError> {
        let (context, pool) = (self.context, &self.context.pool);
        let (width, row, head) = (context.width, context.shape.row(), context.shape.width);
        let packed = &context.packed.layers[index];
        let linears = [&layer.query, &layer.key, &layer.value];
        let qkv = Backwards::new(pool, &linears)?;
        let mut normed = pool.take(dx.len());
        let (parts, heads): (Vec<Vec<f32>>, Vec<[Vec<f32>; 2]>) = to_qkv
            .par_chunks_mut(BLOCK * row)
            .zip(self.layout.positions.par_chunks(BLOCK))
            .zip(saved.x.par_chunks(BLOCK * width))
            .zip(normed.par_chunks_mut(BLOCK * width))
            .zip(dx.par_chunks_mut(BLOCK * width))
            .map(|((((to_qkv, positions), x), normed), dx)| {
                turn(context, to_qkv, positions, -1.0);
                normalise(x, &packed.attention_norm, context.eps, normed);
                let heads = self.head_norms_of_a_block(packed, normed, to_qkv);
                let mut to_normed = pool.take(dx.len());
                qkv.apply(to_qkv, &mut to_normed, || &*normed);
                (self.norm_of_a_block(x, &packed.attention_norm, &to_normed, dx), heads)
            })
            .unzip();
        self.put(gradients, &Self::weight_name(index, "input_layernorm"), &in_order(&parts, width));
        if packed.head_norms.is_some() {
            for (kind, name) in ["self_attn.q_norm", "self_attn.k_norm"].into_iter().enumerate() {
                let parts: Vec<&[f32]> = heads.iter().map(|both| both[kind].as_slice()).collect();
                self.put(gradients, &Self::weight_name(index, name), &in_order(&parts, head));
            }
        }
        gradients.add_linears(pool, &linears, to_qkv, &normed)
    }

    /// The gradient through the norms of the heads of queries and keys, in place; returns those to their weights.
    ///
    /// What they were applied to is computed again from `normed` (rows, D).
    fn head_norms_of_a_block(&self, layer: &PackedLayer, normed: &[f32], to_qkv: &mut [f32]) -> [Vec<f32>; 2] {
        let Some(norms) = &layer.head_norms else { return [Vec::new(), Vec::new()] };
        let (context, shape) = (self.context, &self.context.shape);
        let mut qkv = context.pool.take(to_qkv.len());
        layer.qkv.apply(Share::Rows(BLOCK), normed, &mut qkv, false);
        let mut to_norms = [vec![0.0; shape.width], vec![0.0; shape.width]];
        let mut to_head = context.pool.take(shape.width);
        for (before, to_qkv) in qkv.chunks_exact_mut(shape.row()).zip(to_qkv.chunks_exact_mut(shape.row())) {
            let heads = heads_and_norms(shape, before, norms).zip(to_qkv.chunks_exact_mut(shape.width)).enumerate();
            for (head, ((before, norm), to)) in heads {
                let kind = usize::from(head >= shape.heads);
                to_head.fill(0.0);
                simd::rms_norm_backward(before, norm, context.eps, to, &mut to_head, &mut to_norms[kind]);
                to.copy_from_slice(&to_head);
            }
        }
        to_norms
    }
}
