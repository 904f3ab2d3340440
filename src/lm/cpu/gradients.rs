//! Gradients to weights, added up over passes in one place.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::forward::{BLOCK, Context};
use super::matmul::{Panels, transposed_product};
use super::packed::view;
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
        context: &Context,
        linears: &[&Linear],
        to: &[f32],
        x: &[f32],
    ) -> Result<(), LmError> {
        let wants = |linear: &&Linear| linear.weight.track_op() || linear.adapter.is_some();
        if !linears.iter().any(wants) {
            return Ok(());
        }
        let pool = &context.pool;
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
                self.add_adapter(context, linear, adapter, mine, (x, &panels))?;
            }
            from += height;
        }
        Ok(())
    }

    /// With u = x · Aᵀ: to B it is scale · gᵀ · u, to A scale · (g · B)ᵀ · x.
    fn add_adapter(
        &mut self,
        context: &Context,
        linear: &Linear,
        adapter: &Adapter,
        to: Columns<'_>,
        (x, panels): (&[f32], &Panels),
    ) -> Result<(), LmError> {
        if !adapter.a.track_op() && !adapter.b.track_op() {
            return Ok(());
        }
        let pool = &context.pool;
        let (rank, inputs) = adapter.a.dims2()?;
        let rows = x.len() / inputs;
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

fn scale(values: &mut [f32], by: f64) {
    values.iter_mut().for_each(|value| *value *= by as f32);
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
