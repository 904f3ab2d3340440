//! The backward pass: from gradients to log-probabilities and divergences to gradients to the weights.
//!
//! Cheap intermediate results (norms, silu(gate) · up, attention weights, logits) are made again rather than kept. Sums
//! over tokens run in fixed blocks that are added in order: the result does not depend on the number of threads.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::attention;
use super::forward::{BLOCK, Context, Saved, normalise, turn};
use super::head::{Hidden, logits, rows_of_a_task};
use super::layout::Layout;
use super::matmul::{Panels, transposed_product};
use super::packed::view;
use super::pool::Buffer;
use super::simd;
use crate::lm::decoder::{Layer, Linear};
use crate::lm::{LmError, Model};

/// Numbers of logits whose gradients are in memory at once.
const LOGITS: usize = 1 << 23;

/// A forward pass with what its gradient needs.
pub(super) struct Pass<'a> {
    pub(super) context: &'a Context,
    pub(super) model: &'a Model,
    pub(super) layout: &'a Layout,
    pub(super) saved: &'a [Saved],
    /// The residual stream after the last layer: (M, D).
    pub(super) x: &'a [f32],
    pub(super) hidden: &'a Hidden,
    pub(super) reference: Option<(&'a Context, &'a Hidden)>,
}

/// Gradients by the names of the weights.
pub(super) type Gradients = BTreeMap<String, Tensor>;

impl Pass<'_> {
    /// The gradients to all weights that want one, from those to log-probabilities and divergences (outputs each).
    pub(super) fn backward(&self, logprobs: &[f32], kls: &[f32]) -> Result<Gradients, LmError> {
        let mut gradients = Gradients::new();
        let (to_hidden, mut to_head) = self.head(logprobs, kls)?;
        let mut dx = self.context.pool.zeros(self.x.len());
        let to_norm = self.norm(self.x, &self.context.packed.norm, &to_hidden, &mut dx);
        self.put(&mut gradients, "model.norm.weight", &to_norm)?;
        for (index, (layer, saved)) in self.model.layers.iter().zip(self.saved).enumerate().rev() {
            dx = self.layer(index, layer, saved, dx, &mut gradients)?;
        }
        let width = self.context.width;
        let tied = self.model.config().tie_word_embeddings;
        if !tied {
            self.put(&mut gradients, "lm_head.weight", &to_head)?;
            to_head.fill(0.0);
        }
        for (dx, id) in dx.chunks_exact(width).zip(&self.layout.ids) {
            simd::add(&mut to_head[*id as usize * width..][..width], dx);
        }
        self.put(&mut gradients, "model.embed_tokens.weight", &to_head)?;
        Ok(gradients)
    }

    fn wanted(&self, name: &str) -> bool {
        self.model.weights()[name].track_op()
    }

    fn put(&self, gradients: &mut Gradients, name: &str, values: &[f32]) -> Result<(), LmError> {
        if self.wanted(name) {
            let shape = self.model.weights()[name].shape();
            gradients.insert(name.to_owned(), Tensor::from_slice(values, shape, &Device::Cpu)?);
        }
        Ok(())
    }

    /// The gradients of the head: to the normalised hidden states (M, D), and to its weight (V, D).
    fn head(&self, logprobs: &[f32], kls: &[f32]) -> Result<(Buffer, Buffer), LmError> {
        let (context, pool) = (self.context, &self.context.pool);
        let (width, vocabulary) = (context.width, context.packed.head.columns());
        let weight = Panels::stacked(pool, &[&view(&self.model.head)?], width);
        let mut to_hidden = pool.take(self.hidden.rows.len());
        let mut to_weight = pool.zeros(vocabulary * width);
        let rows = self.layout.chosen.len();
        let chunk = (LOGITS / vocabulary).clamp(BLOCK, rows.max(BLOCK));
        let task = rows_of_a_task(vocabulary);
        for start in (0..rows).step_by(chunk) {
            let here = start..(start + chunk).min(rows);
            let hidden = &self.hidden.rows[here.start * width..here.end * width];
            let mut to_logits = pool.take(here.len() * vocabulary);
            to_logits
                .par_chunks_mut(task * vocabulary)
                .zip(to_hidden[here.start * width..here.end * width].par_chunks_mut(task * width))
                .enumerate()
                .for_each(|(index, (to_logits, to_hidden))| {
                    self.logits_of_a_task(here.start + index * task, to_logits, logprobs, kls);
                    weight.multiply(to_logits, to_hidden, false);
                });
            transposed_product(pool, &to_logits, hidden, width, &mut to_weight, start > 0);
        }
        Ok((to_hidden, to_weight))
    }

    /// Writes the gradients to the logits of some rows from `first` on: (rows, V).
    fn logits_of_a_task(&self, first: usize, out: &mut [f32], logprobs: &[f32], kls: &[f32]) {
        let vocabulary = self.context.packed.head.columns();
        let rows = out.len() / vocabulary;
        let ours = &self.hidden.rows[first * self.context.width..(first + rows) * self.context.width];
        self.context.packed.head.multiply(ours, out, false);
        let theirs = self.reference.map(|(context, hidden)| {
            let rows = &hidden.rows[first * context.width..(first + rows) * context.width];
            (logits(context, rows), hidden)
        });
        for (row, line) in out.chunks_exact_mut(vocabulary).enumerate() {
            let predictions = &self.layout.predictions[first + row];
            let total = self.hidden.totals[first + row];
            let weight: f32 = predictions.iter().map(|(output, _)| logprobs[*output]).sum();
            match &theirs {
                None => simd::logprob_backward(line, total, weight),
                Some((theirs, hidden)) => {
                    let kl_weight: f32 = predictions.iter().map(|(output, _)| kls[*output]).sum();
                    let (theirs, their_total) = (&theirs[row * vocabulary..][..vocabulary], hidden.totals[first + row]);
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
        let last = index + 1 == self.saved.len();
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
            view(&dense.gate.weight)?,
            view(&dense.up.weight)?,
            view(&dense.down.weight)?,
            view(&layer.output.weight)?,
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
        self.put(gradients, &name("post_attention_layernorm"), &self.in_order(parts))?;
        self.weights(gradients, &[&dense.down], &dx, &product)?;
        self.weights(gradients, &[&dense.gate, &dense.up], &to_gate_up, &normed)?;
        let last = index + 1 == self.saved.len();
        let chosen;
        let mixed = if last {
            chosen = super::forward::gather(pool, &saved.mixed, queries, &self.layout.chosen);
            &*chosen
        } else {
            &*saved.mixed
        };
        self.weights(gradients, &[&layer.output], &middle, mixed)?;
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
        let (query, key, value) = (view(&layer.query.weight)?, view(&layer.key.weight)?, view(&layer.value.weight)?);
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
        self.put(gradients, &name("input_layernorm"), &self.in_order(parts))?;
        self.weights(gradients, &[&layer.query, &layer.key, &layer.value], to_qkv, &normed)
    }

    /// The gradients to the weights of linear layers of one input: from those to their results (N, rows), side by side, and
    /// from what they were applied to (N, columns).
    fn weights(&self, gradients: &mut Gradients, linears: &[&Linear], to: &[f32], x: &[f32]) -> Result<(), LmError> {
        if !linears.iter().any(|linear| linear.weight.track_op()) {
            return Ok(());
        }
        let mut rows = 0;
        let mut columns = 0;
        for linear in linears {
            let (height, width) = linear.weight.dims2()?;
            rows += height;
            columns = width;
        }
        let pool = &self.context.pool;
        let mut product = pool.take(rows * columns);
        transposed_product(pool, to, x, columns, &mut product, false);
        let mut start = 0;
        for linear in linears {
            let end = start + linear.weight.elem_count();
            self.put(gradients, &format!("{}.weight", linear.name), &product[start..end])?;
            start = end;
        }
        Ok(())
    }
}
