//! Gradients to weights, added up over passes in one place.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::dropout::drop_some;
use super::forward::BLOCK;
use super::matmul::{Panels, transposed_product};
use super::packed::view;
use super::pool::Pool;
use super::simd;
use crate::lm::LmError;
use crate::lm::adapter::Adapter;
use crate::lm::decoder::Linear;

/// Gradients by the names of the weights.
#[derive(Debug, Default)]
pub(in crate::lm) struct Gradients(BTreeMap<String, Vec<f32>>);

impl Gradients {
    /// Takes one out.
    pub(in crate::lm) fn take(&mut self, name: &str) -> Option<Vec<f32>> {
        self.0.remove(name)
    }

    /// What a weight of so many numbers has so far: zeros at first. And whether it had anything.
    pub(super) fn of(&mut self, name: &str, count: usize) -> (&mut [f32], bool) {
        let there = self.0.contains_key(name);
        (self.0.entry(name.to_owned()).or_insert_with(|| vec![0.0; count]), there)
    }

    /// Adds a pass's gradient to a weight.
    pub(super) fn add(&mut self, name: &str, values: &[f32]) {
        let (sum, there) = self.of(name, values.len());
        if there {
            simd::add(sum, values);
        } else {
            sum.copy_from_slice(values);
        }
    }

    /// Adds the gradients to the weights of linear layers of one input: from those to their results (N, rows), side by
    /// side, and from what they were applied to (N, columns). What wants none is not computed.
    pub(super) fn add_linears(
        &mut self,
        pool: &Arc<Pool>,
        linears: &[&Linear],
        to: &[f32],
        x: &[f32],
    ) -> Result<(), LmError> {
        self.add_biases(linears, to)?;
        let wants = |linear: &&Linear| linear.weight.track_op() || linear.adapter.is_some();
        if !linears.iter().any(wants) {
            return Ok(());
        }
        let mut row = 0;
        let mut columns = 0;
        for linear in linears {
            let (height, width) = linear.weight.dims2()?;
            row += height;
            columns = width;
        }
        let panels = Panels::stacked(pool, &[x], columns);
        let mut from = 0;
        for linear in linears {
            let height = linear.weight.dim(0)?;
            let mine = Columns { values: to, row, from, count: height };
            if linear.weight.track_op() {
                let (sum, there) = self.of(&format!("{}.weight", linear.name), height * columns);
                transposed_product(&panels, mine, sum, there);
            }
            if let Some(adapter) = &linear.adapter {
                self.add_adapter(pool, linear, adapter, mine, (x, &panels))?;
            }
            from += height;
        }
        Ok(())
    }

    /// The same to their biases.
    fn add_biases(&mut self, linears: &[&Linear], to: &[f32]) -> Result<(), LmError> {
        if !linears.iter().any(|linear| linear.bias.as_ref().is_some_and(Tensor::track_op)) {
            return Ok(());
        }
        let lengths = linears.iter().map(|linear| linear.weight.dim(0)).collect::<Result<Vec<_>, _>>()?;
        let row = lengths.iter().sum();
        let of_a_block = |rows: &[f32]| {
            let mut sum = vec![0.0; row];
            rows.chunks_exact(row).for_each(|line| simd::add(&mut sum, line));
            sum
        };
        let parts: Vec<Vec<f32>> = to.par_chunks(BLOCK * row).map(of_a_block).collect();
        let sum = in_order(&parts, row);
        let mut start = 0;
        for (linear, length) in linears.iter().zip(lengths) {
            if linear.bias.as_ref().is_some_and(Tensor::track_op) {
                self.add(&format!("{}.bias", linear.name), &sum[start..start + length]);
            }
            start += length;
        }
        Ok(())
    }

    /// With x what dropout left and u = x · Aᵀ: to B it is scale · gᵀ · u, to A scale · (g · B)ᵀ · x.
    fn add_adapter(
        &mut self,
        pool: &Arc<Pool>,
        linear: &Linear,
        adapter: &Adapter,
        to: Columns<'_>,
        (x, panels): (&[f32], &Panels),
    ) -> Result<(), LmError> {
        if !adapter.a.track_op() && !adapter.b.track_op() {
            return Ok(());
        }
        let (rank, inputs) = adapter.a.dims2()?;
        let rows = x.len() / inputs;
        // What the adapter saw.
        let mut left = None;
        if let Some(noise) = adapter.noise {
            let left = left.get_or_insert_with(|| pool.take(x.len()));
            let blocks = x.par_chunks(BLOCK * inputs).zip(left.par_chunks_mut(BLOCK * inputs));
            blocks.for_each(|(x, left)| drop_some(noise, x, inputs, left));
        }
        let x = left.as_deref().unwrap_or(x);
        let own = left.as_ref().map(|left| Panels::stacked(pool, &[left], inputs));
        let panels = own.as_ref().unwrap_or(panels);
        let a = Panels::transposed(pool, &[&view(&adapter.a)?], inputs);
        let mut inner = pool.take(rows * rank);
        let blocks = x.par_chunks(BLOCK * inputs).zip(inner.par_chunks_mut(BLOCK * rank));
        blocks.for_each(|(x, inner)| a.multiply(x, inner, false));
        scale(&mut inner, adapter.scale);
        let (sum, there) = self.of(&format!("{}.lora_B.weight", linear.name), to.count * rank);
        transposed_product(&Panels::stacked(pool, &[&inner], rank), to, sum, there);

        let b = Panels::stacked(pool, &[&view(&adapter.b)?], rank);
        inner.par_chunks_mut(BLOCK * rank).enumerate().for_each(|(block, inner)| {
            let mut mine = pool.take(inner.len() / rank * to.count);
            for (at, mine) in mine.chunks_exact_mut(to.count).enumerate() {
                mine.copy_from_slice(&to.values[(block * BLOCK + at) * to.row + to.from..][..to.count]);
            }
            b.multiply(&mine, inner, false);
        });
        scale(&mut inner, adapter.scale);
        let (sum, there) = self.of(&format!("{}.lora_A.weight", linear.name), rank * inputs);
        transposed_product(panels, Columns { values: &inner, row: rank, from: 0, count: rank }, sum, there);
        Ok(())
    }
}

/// The sum of parts, in their order.
pub(super) fn in_order(parts: &[impl AsRef<[f32]>], width: usize) -> Vec<f32> {
    let mut total = vec![0.0; width];
    for part in parts {
        simd::add(&mut total, part.as_ref());
    }
    total
}

fn scale(values: &mut [f32], by: f64) {
    for value in values {
        *value *= by as f32;
    }
}

/// Some columns of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) values: &'a [f32],
    /// From one row to the next.
    pub(super) row: usize,
    pub(super) from: usize,
    pub(super) count: usize,
}
