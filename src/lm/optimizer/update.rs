//! One update: a pass over parameter, moments and gradient, in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;

use super::super::LmError;
use super::super::gpu::kernels::{self, Kernel, Updated};
use super::super::random::hash;
use super::OptimizerName;
use super::eight::{self, BLOCK, Eight, Form};
use super::moments::Moments;

/// Numbers that one task updates; smaller tensors are not worth a second thread.
pub(super) const CHUNK: usize = 1 << 15;

/// The numbers of one update.
#[derive(Debug, Clone, Copy)]
pub(in crate::lm) struct Rates {
    pub(in crate::lm) name: OptimizerName,
    /// Times the gradient, before all else: clipping.
    pub(in crate::lm) scale: f64,
    /// Learning rate, over AdamW's first bias correction.
    pub(in crate::lm) size: f64,
    /// Times the parameter, before the update (AdamW).
    pub(in crate::lm) keep: f64,
    /// Times the parameter, added to the gradient (`RMSprop`).
    pub(in crate::lm) pull: f64,
    /// First moment's decay.
    pub(in crate::lm) first: f64,
    /// Second moment's decay.
    pub(in crate::lm) second: f64,
    /// Under the root of the second moment: AdamW's second bias correction.
    pub(in crate::lm) root: f64,
    pub(in crate::lm) eps: f64,
}

/// Updates a parameter and its moments, and its copy in another type. `key` is what rounding is random by.
pub(super) fn update(
    rates: &Rates,
    (parameter, copy): (&Var, Option<&Var>),
    gradient: &Tensor,
    moments: &mut Moments,
    key: u64,
) -> Result<(), LmError> {
    if let Moments::Device { first, second } = moments
        && Kernel::Update.computes(parameter.device(), gradient.dtype())
        && parameter.is_contiguous()
        && copy.is_none_or(|copy| copy.dtype() == DType::BF16 && copy.is_contiguous())
    {
        let (parameter, copy) = (parameter.as_detached_tensor(), copy.map(candle_core::Var::as_detached_tensor));
        let what = Updated { parameter: &parameter, first: first.as_ref(), second, copy: copy.as_ref() };
        return Ok(kernels::update(rates, what, gradient)?);
    }
    // It may be of the type that passes compute in; one at a time, so that there are not all of them twice.
    let gradient = gradient.to_dtype(parameter.dtype())?.contiguous()?;
    match moments {
        Moments::Device { first, second } => {
            let updated = plain(rates, parameter.as_detached_tensor(), &gradient, first, second)?;
            parameter.set(&updated)?;
        }
        host => parameter.inplace_op2(&gradient, &Update { rates, moments: RefCell::new(host), key })?,
    }
    if let Some(copy) = copy {
        copy.set(&parameter.as_detached_tensor().to_dtype(copy.dtype())?)?;
    }
    Ok(())
}

/// The update on the CPU: first operand the parameter, second the gradient.
struct Update<'a> {
    rates: &'a Rates,
    moments: RefCell<&'a mut Moments>,
    key: u64,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "optimizer-update"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        parameter_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let whole = |layout: &Layout| {
            layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("not contiguous".to_owned()))
        };
        let (start, end) = whole(gradient_layout)?;
        let gradient = &gradient.as_slice::<f32>()?[start..end];
        let (start, end) = whole(parameter_layout)?;
        let CpuStorage::F32(parameter) = parameter else { candle_core::bail!("a parameter is not f32") };
        let parameter = &mut parameter[start..end];
        match &mut **self.moments.borrow_mut() {
            Moments::Host { first, second } => host(self.rates, parameter, first.as_deref_mut(), second, gradient),
            Moments::Eight { first, second } => {
                in_eight_bits(self.rates, parameter, first.as_mut(), second, gradient, self.key);
            }
            Moments::Device { .. } => candle_core::bail!("moments of another device"),
        }
        Ok(())
    }
}

fn host(rates: &Rates, parameter: &mut [f32], first: Option<&mut [f32]>, second: &mut [f32], gradient: &[f32]) {
    let (parameters, gradients) = (parameter.par_chunks_mut(CHUNK), gradient.par_chunks(CHUNK));
    match (first, parameters.len()) {
        (Some(first), 0 | 1) => adamw(rates, parameter, first, second, gradient),
        (None, 0 | 1) => rmsprop(rates, parameter, second, gradient),
        (Some(first), _) => {
            let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
            parameters.zip(moments).zip(gradients).for_each(|((parameter, (first, second)), gradient)| {
                adamw(rates, parameter, first, second, gradient);
            });
        }
        (None, _) => {
            let moments = second.par_chunks_mut(CHUNK);
            parameters.zip(moments).zip(gradients).for_each(|((parameter, second), gradient)| {
                rmsprop(rates, parameter, second, gradient);
            });
        }
    }
}

/// As [`host`]; the moments of a block are in f32 while it is updated.
fn in_eight_bits(
    rates: &Rates,
    parameter: &mut [f32],
    first: Option<&mut Eight>,
    second: &mut Eight,
    gradient: &[f32],
    key: u64,
) {
    let step = |block: usize, parameter: &mut [f32], moments: [Option<(&mut [u8], &mut f32)>; 2], gradient: &[f32]| {
        let mut numbers = [[0.0; BLOCK]; 2];
        let [m, v] = numbers.each_mut().map(|numbers| &mut numbers[..gradient.len()]);
        let forms = [Form::Signed, Form::Positive];
        for ((numbers, moment), form) in [&mut *m, &mut *v].into_iter().zip(&moments).zip(forms) {
            if let Some((codes, scale)) = moment {
                eight::read(form, codes, **scale, numbers);
            }
        }
        match rates.name {
            OptimizerName::AdamW => adamw(rates, parameter, m, v, gradient),
            OptimizerName::RmsProp => rmsprop(rates, parameter, v, gradient),
        }
        for (index, ((numbers, moment), form)) in [m, v].into_iter().zip(moments).zip(forms).enumerate() {
            if let Some((codes, scale)) = moment {
                eight::write(form, numbers, hash(key, (2 * block + index) as u64), codes, scale);
            }
        }
    };
    let blocks = parameter
        .par_chunks_mut(BLOCK)
        .zip(second.codes.par_chunks_mut(BLOCK))
        .zip(&mut second.scales)
        .zip(gradient.par_chunks(BLOCK))
        .with_min_len(CHUNK / BLOCK)
        .enumerate();
    match first {
        None => blocks.for_each(|(block, (((parameter, codes), scale), gradient))| {
            step(block, parameter, [None, Some((codes, scale))], gradient);
        }),
        Some(first) => blocks.zip(first.codes.par_chunks_mut(BLOCK)).zip(&mut first.scales).for_each(
            |(((block, (((parameter, codes), scale), gradient)), first_codes), first_scale)| {
                step(block, parameter, [Some((first_codes, first_scale)), Some((codes, scale))], gradient);
            },
        ),
    }
}

/// The order of operations is that of `torch.optim.AdamW`.
fn adamw(rates: &Rates, parameter: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
    let (scale, keep, size) = (rates.scale as f32, rates.keep as f32, rates.size as f32);
    let (new_first, second_kept, new_second) =
        ((1.0 - rates.first) as f32, rates.second as f32, (1.0 - rates.second) as f32);
    let (root, eps) = (rates.root as f32, rates.eps as f32);
    for (((parameter, first), second), gradient) in parameter.iter_mut().zip(first).zip(second).zip(gradient) {
        let gradient = gradient * scale;
        *first += (gradient - *first) * new_first;
        *second = *second * second_kept + gradient * gradient * new_second;
        *parameter = *parameter * keep - size * (*first / (second.sqrt() / root + eps));
    }
}

/// The order of operations is that of `torch.optim.RMSprop`: no momentum, not centred, no bias correction.
fn rmsprop(rates: &Rates, parameter: &mut [f32], second: &mut [f32], gradient: &[f32]) {
    let (scale, pull, size) = (rates.scale as f32, rates.pull as f32, rates.size as f32);
    let (kept, new, eps) = (rates.second as f32, (1.0 - rates.second) as f32, rates.eps as f32);
    for ((parameter, second), gradient) in parameter.iter_mut().zip(second).zip(gradient) {
        let gradient = gradient * scale + *parameter * pull;
        *second = *second * kept + gradient * gradient * new;
        *parameter -= size * (gradient / (second.sqrt() + eps));
    }
}

/// The same in candle's operations, for devices without a kernel here. Returns the parameter's new value.
pub(in crate::lm) fn plain(
    rates: &Rates,
    parameter: Tensor,
    gradient: &Tensor,
    first: &mut Option<Tensor>,
    second: &mut Tensor,
) -> candle_core::Result<Tensor> {
    let gradient = ((gradient.detach() * rates.scale)? + (&parameter * rates.pull)?)?;
    *second = ((&*second * rates.second)? + (gradient.sqr()? * (1.0 - rates.second))?)?;
    let direction = match first {
        Some(first) => {
            *first = (&*first + ((&gradient - &*first)? * (1.0 - rates.first))?)?;
            first.clone()
        }
        None => gradient,
    };
    let denominator = ((second.sqrt()? / rates.root)? + rates.eps)?;
    (parameter * rates.keep)? - ((direction / denominator)? * rates.size)?
}
