//! The backward pass: from gradients to log-probabilities and divergences to gradients to the weights.
//!
//! Cheap intermediate results (norms, silu(gate) · up, attention weights, logits) are made again rather than kept. Sums
//! over tokens run in fixed blocks that are added in order: the result does not depend on the number of threads.

use rayon::prelude::*;

use super::attention;
use super::forward::{BLOCK, Context, Saved, Trace, Traces, again, normalise, turn};
use super::gradients::{Columns, Gradients};
use super::head::{Hidden, logits, rows_of_a_task};
use super::layout::Layout;
use super::matmul::{Panels, transposed_product};
use super::packed::{effective, view};
use super::pool::Buffer;
use super::scored::attend;
use super::simd;
use crate::lm::decoder::Layer;
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
        hidden: Hidden,
        (logprobs, kls): (&[f32], &[f32]),
        gradients: &mut Gradients,
    ) -> Result<(), LmError> {
        let to_hidden = self.head(&hidden, logprobs, kls, gradients)?;
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
        hidden: &Hidden,
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
        let chunk = (LOGITS / vocabulary).clamp(BLOCK, rows.max(BLOCK));
        let task = rows_of_a_task(vocabulary);
        for start in (0..rows).step_by(chunk) {
            let here = start..(start + chunk).min(rows);
            let mut to_logits = pool.take(here.len() * vocabulary);
            to_logits
                .par_chunks_mut(task * vocabulary)
                .zip(to_hidden[here.start * width..here.end * width].par_chunks_mut(task * width))
                .enumerate()
                .for_each(|(index, (to_logits, to_hidden))| {
                    self.logits_of_a_task(hidden, here.start + index * task, to_logits, logprobs, kls);
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

    /// Writes the gradients to the logits of some rows from `first` on: (rows, V).
    fn logits_of_a_task(&self, hidden: &Hidden, first: usize, out: &mut [f32], logprobs: &[f32], kls: &[f32]) {
        let vocabulary = self.context.packed.head.columns();
        let rows = out.len() / vocabulary;
        let ours = &hidden.rows[first * self.context.width..(first + rows) * self.context.width];
        self.context.packed.head.multiply(ours, out, false);
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
        self.in_order(parts)
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

    fn in_order(&self, parts: Vec<Vec<f32>>) -> Vec<f32> {
        let mut total = vec![0.0; self.context.width];
        for part in &parts {
            simd::add(&mut total, part);
        }
        total
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
        mut dx: Buffer,
        gradients: &mut Gradients,
    ) -> Result<(Buffer, Buffer), LmError> {
        let (context, pool) = (self.context, &self.context.pool);
        let (width, inner, queries) = (context.width, context.inner, context.shape.queries());
        let packed = &context.packed.layers[index];
        let dense = super::packed::dense(layer);
        let (gate, up, down, output) = (
            effective(pool, &dense.gate)?,
            effective(pool, &dense.up)?,
            effective(pool, &dense.down)?,
            effective(pool, &layer.output)?,
        );
        let down = Panels::stacked(pool, &[&down], inner); // (D, F)
        let gate_up = Panels::stacked(pool, &[&gate, &up], width); // (2F, D)
        let output = Panels::stacked(pool, &[&output], queries); // (D, H·E)
        let rows = dx.len() / width;
        let mut product = pool.take(rows * inner);
        let mut to_gate_up = pool.take(rows * 2 * inner);
        let mut normed = pool.take(rows * width);
        let mut to_mixed = pool.take(rows * queries);
        let mut middle = pool.take(dx.len());
        let parts: Vec<Vec<f32>> = dx
            .par_chunks(BLOCK * width)
            .zip(saved.middle.par_chunks(BLOCK * width))
            .zip(saved.gate_up.par_chunks(BLOCK * 2 * inner))
            .zip(product.par_chunks_mut(BLOCK * inner))
            .zip(to_gate_up.par_chunks_mut(BLOCK * 2 * inner))
            .zip(normed.par_chunks_mut(BLOCK * width))
            .zip(middle.par_chunks_mut(BLOCK * width))
            .zip(to_mixed.par_chunks_mut(BLOCK * queries))
            .map(|(((((((dx, x), saved), product), to_gate_up), normed), middle), to_mixed)| {
                down.multiply(dx, product, false);
                let rows = saved.chunks_exact(2 * inner).zip(product.chunks_exact_mut(inner));
                for ((saved, product), to_both) in rows.zip(to_gate_up.chunks_exact_mut(2 * inner)) {
                    let ((gate, up), (to_gate, to_up)) = (saved.split_at(inner), to_both.split_at_mut(inner));
                    simd::swiglu_backward(gate, up, product, to_gate, to_up);
                }
                let mut to_normed = pool.take(dx.len());
                gate_up.multiply(to_gate_up, &mut to_normed, false);
                normalise(x, &packed.mlp_norm, context.eps, normed);
                middle.copy_from_slice(dx);
                let to_norm = self.norm_of_a_block(x, &packed.mlp_norm, &to_normed, middle);
                output.multiply(middle, to_mixed, false);
                to_norm
            })
            .collect();
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        self.put(gradients, &name("post_attention_layernorm"), &self.in_order(parts));
        gradients.add_linears(context, &[&dense.down], &dx, &product)?;
        gradients.add_linears(context, &[&dense.gate, &dense.up], &to_gate_up, &normed)?;
        let last = index + 1 == self.model.layers.len();
        let chosen;
        let mixed = if last {
            chosen = super::forward::gather(pool, &saved.mixed, queries, &self.layout.chosen);
            &*chosen
        } else {
            &*saved.mixed
        };
        gradients.add_linears(context, &[&layer.output], &middle, mixed)?;
        dx = middle;
        Ok((dx, to_mixed))
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
        let (width, row) = (context.width, context.shape.row());
        let packed = &context.packed.layers[index];
        let (query, key, value) =
            (effective(pool, &layer.query)?, effective(pool, &layer.key)?, effective(pool, &layer.value)?);
        let qkv = Panels::stacked(pool, &[&query, &key, &value], width); // ((H + 2K)·E, D)
        let mut normed = pool.take(dx.len());
        let parts: Vec<Vec<f32>> = to_qkv
            .par_chunks_mut(BLOCK * row)
            .zip(self.layout.positions.par_chunks(BLOCK))
            .zip(saved.x.par_chunks(BLOCK * width))
            .zip(normed.par_chunks_mut(BLOCK * width))
            .zip(dx.par_chunks_mut(BLOCK * width))
            .map(|((((to_qkv, positions), x), normed), dx)| {
                turn(context, to_qkv, positions, -1.0);
                let mut to_normed = pool.take(dx.len());
                qkv.multiply(to_qkv, &mut to_normed, false);
                normalise(x, &packed.attention_norm, context.eps, normed);
                self.norm_of_a_block(x, &packed.attention_norm, &to_normed, dx)
            })
            .collect();
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        self.put(gradients, &name("input_layernorm"), &self.in_order(parts));
        gradients.add_linears(context, &[&layer.query, &layer.key, &layer.value], to_qkv, &normed)
    }
}
