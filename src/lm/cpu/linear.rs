//! Linear layers as products: their weights in panels, and what comes on top of them.

use std::ops::{Deref, Range};
use std::sync::Arc;

use rayon::prelude::*;

use super::dropout::{add_back, drop_some};
use super::forward::{BLOCK, Share};
use super::matmul::Panels;
use super::packed::view;
use super::pool::{Buffer, Pool};
use super::simd;
use crate::lm::LmError;
use crate::lm::adapter::Noise;
use crate::lm::decoder::Linear;

/// The numbers of a linear layer's weight, with what an adapter adds: (out, in).
fn effective<'a>(
    pool: &Arc<Pool>,
    linear: &'a Linear,
) -> Result<Effective<impl Deref<Target = [f32]> + use<'a>>, LmError> {
    let weight = view(&linear.weight)?;
    // One whose input is partly left out cannot be merged.
    let Some(adapter) = linear.adapter.as_ref().filter(|adapter| adapter.noise.is_none()) else {
        return Ok(Effective::Plain(weight));
    };
    let (rank, inputs) = adapter.a.dims2()?;
    let mut sum = pool.take(weight.len());
    sum.copy_from_slice(&weight);
    let a = Panels::stacked(pool, &[&view(&adapter.a)?], inputs); // (r, in)
    let scaled: Vec<f32> = view(&adapter.b)?.iter().map(|b| b * adapter.scale as f32).collect(); // (out, r)
    let rows = sum.par_chunks_mut(BLOCK * inputs).zip(scaled.par_chunks(BLOCK * rank));
    rows.for_each(|(sum, b)| a.multiply(b, sum, true));
    Ok(Effective::Merged(sum))
}

/// Numbers as they are, or with something added.
enum Effective<Plain> {
    Plain(Plain),
    Merged(Buffer),
}

impl<Plain: Deref<Target = [f32]>> Deref for Effective<Plain> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Plain(numbers) => numbers,
            Self::Merged(numbers) => numbers,
        }
    }
}

/// Linear layers of the same input, whose results lie side by side: x (N, in) to (N, out).
#[derive(Debug)]
pub(super) struct Forwards {
    panels: Panels, // (in, out)
    /// (out), if one of them has a bias.
    bias: Option<Vec<f32>>,
    noisy: Vec<Noisy>,
}

/// An adapter with dropout on its input.
#[derive(Debug)]
struct Noisy {
    noise: Noise,
    inputs: usize,
    rank: usize,
    /// The columns that are its layer's results.
    columns: Range<usize>,
    /// Forwards (in, r), backwards (out, r): what comes first.
    first: Panels,
    /// Forwards (r, out), backwards (r, in), times the scale.
    second: Panels,
}

impl Noisy {
    /// Of those of some linear layers that have dropout.
    fn of(pool: &Arc<Pool>, linears: &[&Linear], backwards: bool) -> Result<Vec<Self>, LmError> {
        let mut all = Vec::new();
        let mut start = 0;
        for linear in linears {
            let (outputs, inputs) = linear.weight.dims2()?;
            let columns = start..start + outputs;
            start = columns.end;
            let Some((adapter, noise)) = linear.adapter.as_ref().and_then(|one| Some((one, one.noise?))) else {
                continue;
            };
            let rank = adapter.a.dim(0)?;
            let (a, b) = (view(&adapter.a)?, view(&adapter.b)?);
            let scaled = |of: &[f32]| -> Vec<f32> { of.iter().map(|x| x * adapter.scale as f32).collect() };
            let (first, second) = if backwards {
                (Panels::stacked(pool, &[&b], rank), Panels::stacked(pool, &[&scaled(&a)], inputs))
            } else {
                (Panels::transposed(pool, &[&a], inputs), Panels::transposed(pool, &[&scaled(&b)], rank))
            };
            all.push(Self { noise, inputs, rank, columns, first, second });
        }
        Ok(all)
    }

    /// Adds to the results (N, row): scale · (drop(x) · Aᵀ) · Bᵀ.
    fn forward(&self, pool: &Arc<Pool>, x: &[f32], y: &mut [f32], row: usize) {
        let rows = x.len() / self.inputs;
        let mut left = pool.take(x.len());
        drop_some(self.noise, x, self.inputs, &mut left);
        let mut inner = pool.take(rows * self.rank);
        self.first.multiply(&left, &mut inner, false);
        let mut change = pool.take(rows * self.columns.len());
        self.second.multiply(&inner, &mut change, false);
        for (y, change) in y.chunks_exact_mut(row).zip(change.chunks_exact(self.columns.len())) {
            simd::add(&mut y[self.columns.clone()], change);
        }
    }

    /// Adds to the gradient to `x`, from that to the results (N, row).
    fn backward(&self, pool: &Arc<Pool>, to: &[f32], row: usize, x: &[f32], to_x: &mut [f32]) {
        let rows = x.len() / self.inputs;
        let mut mine = pool.take(rows * self.columns.len());
        for (mine, to) in mine.chunks_exact_mut(self.columns.len()).zip(to.chunks_exact(row)) {
            mine.copy_from_slice(&to[self.columns.clone()]);
        }
        let mut inner = pool.take(rows * self.rank);
        self.first.multiply(&mine, &mut inner, false);
        let mut change = pool.take(x.len());
        self.second.multiply(&inner, &mut change, false);
        add_back(self.noise, x, self.inputs, &change, to_x);
    }
}

impl Forwards {
    pub(super) fn new(pool: &Arc<Pool>, linears: &[&Linear]) -> Result<Self, LmError> {
        let weights = linears.iter().map(|linear| effective(pool, linear)).collect::<Result<Vec<_>, _>>()?;
        let depth = linears[0].weight.dim(1)?;
        let panels = Panels::transposed(pool, &weights.iter().map(|numbers| &**numbers).collect::<Vec<_>>(), depth);
        let mut bias = None;
        let mut start = 0;
        for linear in linears {
            let end = start + linear.weight.dim(0)?;
            if let Some(own) = &linear.bias {
                bias.get_or_insert_with(|| vec![0.0; panels.columns()])[start..end].copy_from_slice(&view(own)?);
            }
            start = end;
        }
        Ok(Self { panels, bias, noisy: Noisy::of(pool, linears, false)? })
    }

    /// y = the results, or y += the results if `add`.
    pub(super) fn apply(&self, share: Share, x: &[f32], y: &mut [f32], add: bool) {
        share.multiply(&self.panels, x, y, add);
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(bias.len()).for_each(|y| simd::add(y, bias));
        }
        for noisy in &self.noisy {
            noisy.forward(self.panels.pool(), x, y, self.panels.columns());
        }
    }
}

/// The same linear layers for the gradient: from that to their results (N, out) to that to their input (N, in).
pub(super) struct Backwards {
    panels: Panels, // (out, in)
    /// (out).
    row: usize,
    noisy: Vec<Noisy>,
}

impl Backwards {
    pub(super) fn new(pool: &Arc<Pool>, linears: &[&Linear]) -> Result<Self, LmError> {
        let weights = linears.iter().map(|linear| effective(pool, linear)).collect::<Result<Vec<_>, _>>()?;
        let columns = linears[0].weight.dim(1)?;
        let panels = Panels::stacked(pool, &weights.iter().map(|numbers| &**numbers).collect::<Vec<_>>(), columns);
        let mut row = 0;
        for linear in linears {
            row += linear.weight.dim(0)?;
        }
        Ok(Self { panels, row, noisy: Noisy::of(pool, linears, true)? })
    }

    /// Writes the gradient to the input, on this thread. `x` gives the input, where that is needed.
    pub(super) fn apply<X: Deref<Target = [f32]>>(&self, to: &[f32], to_x: &mut [f32], x: impl FnOnce() -> X) {
        self.panels.multiply(to, to_x, false);
        if self.noisy.is_empty() {
            return;
        }
        let x = x();
        for noisy in &self.noisy {
            noisy.backward(self.panels.pool(), to, self.row, &x, to_x);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::lm::adapter::Adapter;
    use crate::lm::cpu::gradients::Gradients;
    use crate::lm::random::Stream;

    fn random(shape: (usize, usize), name: &str) -> Tensor {
        let mut stream = Stream::new(1, name);
        let numbers: Vec<f32> = (0..shape.0 * shape.1).map(|_| stream.normal()).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu).expect("fits")
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32")
    }

    fn near(found: &[f32], wanted: &Tensor) {
        let worst = found.iter().zip(numbers(wanted)).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        assert!(found.len() == wanted.elem_count() && worst < 1e-3, "{worst}");
    }

    /// Two layers side by side, of which the second has an adapter with dropout, against their definition.
    #[test]
    fn dropout_falls_on_what_the_adapter_sees() {
        let pool = Arc::new(Pool::default());
        let (rows, inputs, rank, outputs) = (150, 37, 3, [20, 11]);
        let noise = Noise { seed: 5, share: 0.4 };
        let b = candle_core::Var::from_tensor(&random((outputs[1], rank), "b")).expect("copies");
        let adapter = Adapter {
            a: random((rank, inputs), "a"),
            b: b.as_tensor().clone(),
            scale: 0.5,
            dropout: 0.4,
            noise: Some(noise),
        };
        let linear = |name: &str, outputs, adapter| Linear {
            name: name.to_owned(),
            weight: random((outputs, inputs), name),
            bias: None,
            adapter,
        };
        let layers = [linear("one", outputs[0], None), linear("two", outputs[1], Some(adapter.clone()))];
        let linears: Vec<&Linear> = layers.iter().collect();
        let x = random((rows, inputs), "x");
        let ones = vec![1.0; rows * inputs];
        let mut factors = vec![0.0; rows * inputs];
        add_back(noise, &numbers(&x), inputs, &ones, &mut factors);
        let factors = Tensor::from_vec(factors, (rows, inputs), &Device::Cpu).expect("fits");
        let product = |a: &Tensor, b: &Tensor| a.matmul(b).expect("a product");
        let t = |a: &Tensor| a.t().and_then(|a| a.contiguous()).expect("transposed");
        let left = (&x * &factors).expect("left out");
        let change = (product(&product(&left, &t(&adapter.a)), &t(&b)) * 0.5).expect("scaled");
        let second = (product(&x, &t(&layers[1].weight)) + change).expect("a sum");
        let wanted = Tensor::cat(&[product(&x, &t(&layers[0].weight)), second], 1).expect("side by side");
        let mut y = vec![0.0; rows * 31];
        Forwards::new(&pool, &linears).expect("packs").apply(Share::Rows(96), &numbers(&x), &mut y, false);
        near(&y, &wanted);

        let to = random((rows, 31), "gradient");
        let (to_one, to_two) = (to.narrow(1, 0, 20).expect("a part"), to.narrow(1, 20, 11).expect("a part"));
        let through = (product(&product(&to_two.contiguous().expect("whole"), &b), &adapter.a) * 0.5).expect("scaled");
        let wanted = (product(&to_one.contiguous().expect("whole"), &layers[0].weight)
            + product(&to_two.contiguous().expect("whole"), &layers[1].weight))
        .and_then(|sum| sum + (through * &factors)?)
        .expect("a sum");
        let mut to_x = vec![0.0; rows * inputs];
        let x = numbers(&x);
        Backwards::new(&pool, &linears).expect("packs").apply(&numbers(&to), &mut to_x, || &x[..]);
        near(&to_x, &wanted);

        let mut gradients = Gradients::default();
        gradients.add_linears(&pool, &linears, &numbers(&to), &x).expect("computes");
        let inner = product(&left, &t(&adapter.a));
        near(
            &gradients.take("two.lora_B.weight").expect("wanted"),
            &(product(&t(&to_two), &inner) * 0.5).expect("scaled"),
        );
        let to_inner = product(&to_two.contiguous().expect("whole"), &b);
        near(
            &gradients.take("two.lora_A.weight").expect("wanted"),
            &(product(&t(&to_inner), &left) * 0.5).expect("scaled"),
        );
        assert!(gradients.take("one.weight").is_none());
    }
}
