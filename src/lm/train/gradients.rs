//! Gradients of all parameters: gathered over passes, measured.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Storage, Tensor, Var};
use rayon::prelude::*;

use super::super::gpu::kernels::{Kernel, squares as squares_of};
use super::super::{LmError, cpu, gpu};

/// Numbers that one task sums.
const CHUNK: usize = 1 << 15;

/// Gradients of a step, gathered over its passes.
#[derive(Debug, Default)]
pub(super) struct Gradients {
    /// Where the CPU's passes put them.
    pub(super) host: cpu::Gradients,
    /// Where those of other devices put them.
    pub(super) device: gpu::Gradients,
    /// What candle's backward passes left.
    graph: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// Adds what a backward pass through candle's graph left, in f32.
    pub(super) fn add(&mut self, mut pass: GradStore, variables: &BTreeMap<String, Var>) -> Result<(), LmError> {
        for (name, variable) in variables {
            let Some(gradient) = pass.remove(variable) else { continue };
            let gradient = gradient.to_dtype(DType::F32)?;
            let sum = match self.graph.remove(name) {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            };
            self.graph.insert(name.clone(), sum);
        }
        Ok(())
    }

    /// A gradient for each parameter, in the type that its passes computed in or f32. Errs if a parameter got none, which training would otherwise hide; but an expert that
    /// no token used has zeros.
    pub(super) fn finish(mut self, parameters: &BTreeMap<String, Var>) -> Result<BTreeMap<String, Tensor>, LmError> {
        let mut gradients = BTreeMap::new();
        for (name, parameter) in parameters {
            let gradient = match (self.host.take(name), self.device.take(name).or_else(|| self.graph.remove(name))) {
                (Some(numbers), _) => Tensor::from_vec(numbers, parameter.shape(), parameter.device())?,
                (None, Some(gradient)) => gradient,
                (None, None) if name.contains(".experts.") => parameter.zeros_like()?,
                (None, None) => return Err(LmError::NoGradient { name: name.clone() }),
            };
            gradients.insert(name.clone(), gradient);
        }
        Ok(gradients)
    }
}

/// The Euclidean norm over all parameters: summed in f64, in the same order on any number of threads.
pub(super) fn norm(gradients: &BTreeMap<String, Tensor>) -> Result<f64, LmError> {
    let all: Vec<&Tensor> = gradients.values().collect();
    if let Some(first) = all.first()
        && all.iter().all(|one| Kernel::Squares.computes(one.device(), one.dtype()))
    {
        return Ok(squares_of(&all, first.device())?.sqrt());
    }
    let mut sum = 0.0;
    for gradient in gradients.values() {
        sum += sum_of_squares(gradient)?;
    }
    Ok(sum.sqrt())
}

fn sum_of_squares(of: &Tensor) -> Result<f64, LmError> {
    let of = of.contiguous()?;
    {
        let (storage, layout) = of.storage_and_layout();
        if let (Storage::Cpu(storage), DType::F32, Some((start, end))) =
            (&*storage, of.dtype(), layout.contiguous_offsets())
        {
            let numbers = &storage.as_slice::<f32>()?[start..end];
            if numbers.len() <= CHUNK {
                return Ok(squares(numbers));
            }
            let sums: Vec<f64> = numbers.par_chunks(CHUNK).map(squares).collect();
            return Ok(sums.iter().sum());
        }
    }
    Ok(of.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()?)
}

/// Eight sums side by side, because one would wait for its own last addition.
fn squares(numbers: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    let blocks = numbers.chunks_exact(8);
    let rest: f64 = blocks.remainder().iter().map(|number| f64::from(*number).powi(2)).sum();
    for block in blocks {
        for (sum, number) in sums.iter_mut().zip(block) {
            *sum += f64::from(*number) * f64::from(*number);
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn passes_add_up_and_a_parameter_left_out_is_an_error() {
        let var = |values: &[f32]| Var::from_slice(values, values.len(), &Device::Cpu).expect("fits");
        let mut parameters: BTreeMap<String, Var> =
            [("a".to_owned(), var(&[1.0, 2.0])), ("b".to_owned(), var(&[3.0]))].into();
        let pass = |parameters: &BTreeMap<String, Var>| {
            let a = (parameters["a"].as_tensor() * 3.0).and_then(|a| a.sum_all()).expect("computes");
            let b = (parameters["b"].as_tensor() * 4.0).and_then(|b| b.sum_all()).expect("computes");
            (a + b).and_then(|sum| sum.backward()).expect("has a backward")
        };
        let mut gradients = Gradients::default();
        gradients.add(pass(&parameters), &parameters).expect("all there");
        gradients.add(pass(&parameters), &parameters).expect("all there");
        let gradients = gradients.finish(&parameters).expect("all there");
        assert_eq!(gradients["a"].to_vec1::<f32>().expect("f32"), [6.0, 6.0]);
        assert!((norm(&gradients).expect("sums") - (36f64 + 36.0 + 64.0).sqrt()).abs() < 1e-12);

        let mut gradients = Gradients::default();
        gradients.add(pass(&parameters), &parameters).expect("some");
        parameters.insert("x.experts.0.w1".to_owned(), var(&[5.0]));
        parameters.insert("c".to_owned(), var(&[5.0]));
        let error = gradients.finish(&parameters).expect_err("left out");
        assert!(error.to_string().contains("`c`"), "{error}");
    }

    #[test]
    fn threads_change_no_bit_of_the_norm() {
        let numbers: Vec<f32> = (0..3 * CHUNK + 5).map(|n| (n as f32 * 0.7).sin()).collect();
        let plain: f64 = numbers.iter().map(|number| f64::from(*number).powi(2)).sum();
        let tensor = Tensor::from_vec(numbers, 3 * CHUNK + 5, &Device::Cpu).expect("fits");
        let sums: Vec<f64> = [1, 2, 3]
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                pool.install(|| sum_of_squares(&tensor)).expect("sums")
            })
            .into();
        assert!(sums[0] == sums[1] && sums[1] == sums[2]);
        assert!((sums[0] - plain).abs() < 1e-9 * plain);
    }
}
