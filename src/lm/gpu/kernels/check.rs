//! Kernels beside plain operations: the same numbers, computed in f32 on the CPU.

mod attention;

use candle_core::{DType, Device, Result, Tensor};

use super::super::plain::{self, Angles};
use super::{Kernel, Turned, Updated};
use crate::lm::optimizer::{OptimizerName, Rates, plain_update};
use crate::lm::random::Stream;

/// How far a kernel may be from what it should give, relative to the largest number there: the type's rounding a few times.
pub(super) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 0.02,
        DType::F16 => 0.004,
        _ => 2e-5,
    }
}

/// The sizes that a kernel is checked in: attention and what comes after it have shapes of their own.
pub(super) fn sizes(kernel: Kernel, all: &[(usize, usize)]) -> Vec<(usize, usize)> {
    match kernel {
        Kernel::Attention | Kernel::AttentionBack | Kernel::Decode | Kernel::Pick => vec![(0, 0)],
        _ => all.to_vec(),
    }
}

/// A kernel on a small input: how far it is from what it should give, or what is wrong with it.
pub(super) fn check(kernel: Kernel, device: &Device, dtype: DType) -> std::result::Result<f64, String> {
    let mut worst = 0f64;
    // One for numbers one by one, one for as many at once as there may be.
    for size in sizes(kernel, &[(7, 70), (12, 256)]) {
        // candle's errors may have a backtrace below them.
        let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let apart = apart(kernel, device, dtype, size).map_err(|error| first_line(error.to_string()))?;
        worst = worst.max(apart);
    }
    if worst <= tolerance(dtype) {
        Ok(worst)
    } else {
        Err(format!("its numbers are {worst:.1e} apart from the plain ones"))
    }
}

/// Numbers for one check: rounded to the type, on the device and here in f32.
struct Inputs<'a> {
    device: &'a Device,
    dtype: DType,
    stream: Stream,
}

impl Inputs<'_> {
    /// A tensor there, and the same here.
    fn tensor(&mut self, shape: &[usize], dtype: DType) -> Result<(Tensor, Tensor)> {
        let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| self.stream.normal()).collect();
        let here = Tensor::from_vec(numbers, shape, &Device::Cpu)?.to_dtype(dtype)?;
        // A copy, where they would be one: kernels change some in place.
        Ok((here.copy()?.to_device(self.device)?, here.to_dtype(DType::F32)?))
    }

    fn next(&mut self, shape: &[usize]) -> Result<(Tensor, Tensor)> {
        self.tensor(shape, self.dtype)
    }
}

/// The largest difference of a tensor that was computed there from the one that was computed here, relative to the
/// largest number of that. Infinite if one is not finite, or all are zero.
fn difference(there: &Tensor, here: &Tensor) -> Result<f64> {
    if there.dims() != here.dims() {
        candle_core::bail!("its result is {:?}, not {:?}", there.dims(), here.dims());
    }
    let numbers =
        |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (there, here) = (numbers(there)?, numbers(here)?);
    let largest = here.iter().fold(0f64, |largest, number| largest.max(number.abs()));
    let apart = there.iter().zip(&here).map(|(a, b)| (a - b).abs() / largest);
    Ok(apart.map(|apart| if apart.is_finite() { apart } else { f64::INFINITY }).fold(0.0, f64::max))
}

/// How far a kernel is from the plain operations on random numbers, for so many rows of such a width, which is even.
pub(super) fn apart(kernel: Kernel, device: &Device, dtype: DType, (rows, width): (usize, usize)) -> Result<f64> {
    const EPS: f64 = 1e-5;
    let mut inputs = Inputs { device, dtype, stream: Stream::new(1, kernel.name()) };
    let mut pairs: Vec<(Tensor, Tensor)> = Vec::new();
    match kernel {
        Kernel::Norm => {
            let (x, x_here) = inputs.next(&[rows, width])?;
            let (change, change_here) = inputs.next(&[rows, width])?;
            let (weight, weight_here) = inputs.next(&[width])?;
            pairs.push((super::rms_norm(&x, &weight, EPS)?, plain::rms_norm(&x_here, &weight_here, EPS)?));
            let (sum, out) = super::add_rms_norm(&x, &change, &weight, EPS)?;
            let sum_here = (x_here + change_here)?;
            pairs.push((out, plain::rms_norm(&sum_here, &weight_here, EPS)?));
            pairs.push((sum, sum_here));
        }
        Kernel::NormBack => {
            let (x, x_here) = inputs.next(&[rows, width])?;
            let (weight, weight_here) = inputs.next(&[width])?;
            let (gradient, gradient_here) = inputs.next(&[rows, width])?;
            let (residual, residual_here) = inputs.next(&[rows, width])?;
            let (to_x, to_weight) = super::rms_norm_back(&x, &weight, EPS, &gradient, Some(&residual), true)?;
            let alone = super::rms_norm_back(&x, &weight, EPS, &gradient, None, false)?.0;
            let (plain_x, plain_weight) = plain::rms_norm_back(&x_here, &weight_here, EPS, &gradient_here, true)?;
            pairs.push((to_x, (&plain_x + residual_here)?));
            pairs.push((alone, plain_x));
            pairs.extend(to_weight.zip(plain_weight));
        }
        Kernel::Turn => {
            let (queries, keys) = (3, 2);
            // As one product gives them.
            let (all, all_here) = inputs.next(&[rows, queries + 2 * keys, width])?;
            let ((cos, cos_here), (sin, sin_here)) =
                (inputs.next(&[rows, width / 2])?, inputs.next(&[rows, width / 2])?);
            let norms = [inputs.next(&[width])?, inputs.next(&[width])?];
            let (of_queries, of_keys, of_values) = ((0, queries), (queries, keys), (queries + keys, keys));
            let part = |all: &Tensor, (first, count): (usize, usize)| all.narrow(1, first, count);
            let angles = Angles::new(cos_here, sin_here, 0.3)?;
            for normed in [false, true] {
                let norm = |at: usize| normed.then(|| &norms[at].0);
                let norm_here = |at: usize| normed.then(|| &norms[at].1);
                for sign in [1.0, -1.0] {
                    let [query, key, value] = [part(&all, of_queries)?, part(&all, of_keys)?, part(&all, of_values)?];
                    let what =
                        Turned { query: &query, key: &key, value: Some(&value), norms: [norm(0), norm(1)], eps: EPS };
                    let turned = super::turn(what, (&cos, &sin), 0.3, sign)?;
                    let [query, key, value] =
                        [part(&all_here, of_queries)?, part(&all_here, of_keys)?, part(&all_here, of_values)?];
                    let here = Turned {
                        query: &query,
                        key: &key,
                        value: Some(&value),
                        norms: [norm_here(0), norm_here(1)],
                        eps: EPS,
                    };
                    let here =
                        if sign > 0.0 { plain::turn(here, &angles)? } else { plain::turn(here, &angles.back()?)? };
                    pairs.extend([(turned.0, here.0), (turned.1, here.1)]);
                    pairs.extend(turned.2.zip(here.2));
                }
            }
        }
        Kernel::Gate | Kernel::GateBack => {
            let (both, both_here) = inputs.next(&[rows, 2 * width])?;
            let (gradient, gradient_here) = inputs.next(&[rows, width])?;
            let halves =
                |both: &Tensor| Ok::<_, candle_core::Error>((both.narrow(1, 0, width)?, both.narrow(1, width, width)?));
            let ((gate, up), (gate_here, up_here)) = (halves(&both)?, halves(&both_here)?);
            if kernel == Kernel::Gate {
                pairs.push((super::swiglu(&gate, &up)?, plain::swiglu(&gate_here, &up_here)?));
            } else {
                let (to_gate, to_up) = super::swiglu_back(&gate.contiguous()?, &up.contiguous()?, &gradient)?;
                let here = plain::swiglu_back(&gate_here, &up_here, &gradient_here)?;
                pairs.extend([(to_gate, here.0), (to_up, here.1)]);
            }
        }
        Kernel::Update => {
            let (gradient, gradient_here) = inputs.next(&[rows, width])?;
            for name in [OptimizerName::AdamW, OptimizerName::RmsProp] {
                let adam = name == OptimizerName::AdamW;
                let (parameter, parameter_here) = inputs.tensor(&[rows, width], DType::F32)?;
                let (first, first_here) = inputs.tensor(&[rows, width], DType::F32)?;
                let (second, second_here) = inputs.tensor(&[rows, width], DType::F32)?;
                let (second, mut second_here) = (second.sqr()?, second_here.sqr()?);
                let copy = Tensor::zeros((rows, width), DType::BF16, device)?;
                let rates = Rates {
                    name,
                    scale: 0.7,
                    size: 0.1,
                    keep: if adam { 0.99 } else { 1.0 },
                    pull: if adam { 0.0 } else { 0.01 },
                    first: 0.9,
                    second: 0.95,
                    root: if adam { 0.8 } else { 1.0 },
                    eps: 1e-6,
                };
                let mut first_here = adam.then_some(first_here);
                let what = Updated {
                    parameter: &parameter,
                    first: adam.then_some(&first),
                    second: &second,
                    copy: Some(&copy),
                };
                super::update(&rates, what, &gradient)?;
                let here = plain_update(&rates, parameter_here, &gradient_here, &mut first_here, &mut second_here)?;
                pairs.push((copy, parameter.to_device(&Device::Cpu)?.to_dtype(DType::BF16)?));
                pairs.extend([(parameter, here), (second, second_here)]);
                pairs.extend(adam.then_some(first).zip(first_here));
            }
        }
        Kernel::Squares => {
            let (one, one_here) = inputs.next(&[rows, width])?;
            let (other, other_here) = inputs.next(&[width])?;
            let sum = super::squares(&[&one, &other], device)?;
            let sum_here = (one_here.sqr()?.sum_all()? + other_here.sqr()?.sum_all()?)?;
            pairs.push((Tensor::new(sum, &Device::Cpu)?, sum_here.to_dtype(DType::F64)?));
        }
        // In shapes of their own.
        Kernel::Attention => pairs = attention::attention(&mut inputs, false)?,
        Kernel::AttentionBack => pairs = attention::attention(&mut inputs, true)?,
        Kernel::Decode => pairs = attention::decode(&mut inputs)?,
        Kernel::Pick => pairs = attention::pick(&mut inputs)?,
    }
    let apart = pairs.iter().map(|(there, here)| difference(there, here));
    apart.collect::<Result<Vec<_>>>().map(|all| all.into_iter().fold(0.0, f64::max))
}
