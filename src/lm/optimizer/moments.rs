//! What an optimiser remembers of a parameter's gradients, and how it is kept.

use std::borrow::Cow;

use candle_core::{DType, Tensor, Var};

use super::super::LmError;
use super::eight::{Eight, LEAST};
use super::{OptimizerName, OptimizerSettings};

/// A moment's name, and its numbers in the order of the parameter's.
pub type Moment<'a> = (String, Numbers<'a>);

/// Numbers of a tensor as they are kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Numbers<'a> {
    /// As f32.
    F32(Cow<'a, [f32]>),
    /// As bytes.
    U8(Cow<'a, [u8]>),
}

impl Numbers<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::U8(numbers) => numbers.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether they are as many and of the same type.
    pub(super) fn is_like(&self, other: &Numbers<'_>) -> bool {
        matches!((self, other), (Self::F32(_), Numbers::F32(_)) | (Self::U8(_), Numbers::U8(_)))
            && self.len() == other.len()
    }

    /// Of its own.
    pub fn into_owned(self) -> Numbers<'static> {
        match self {
            Self::F32(numbers) => Numbers::F32(Cow::Owned(numbers.into_owned())),
            Self::U8(numbers) => Numbers::U8(Cow::Owned(numbers.into_owned())),
        }
    }
}

/// The moments of a parameter; there is no first one in `RMSprop`.
#[derive(Debug)]
pub(super) enum Moments {
    /// On the CPU.
    Host { first: Option<Vec<f32>>, second: Vec<f32> },
    /// On the CPU, in eight bits.
    Eight { first: Option<Eight>, second: Eight },
    /// Elsewhere.
    Device { first: Option<Tensor>, second: Tensor },
}

impl Moments {
    /// Zeros. Errs on eight bits where the device cannot.
    pub(super) fn new(settings: &OptimizerSettings, parameter: &Var) -> Result<Self, LmError> {
        let has_first = settings.name == OptimizerName::AdamW;
        let count = parameter.elem_count();
        if !parameter.device().is_cpu() {
            if settings.state_bits == 8 {
                let what = "is 8, which is made for the CPU only".to_owned();
                return Err(LmError::Setting { field: "optimizer.state_bits", what });
            }
            return Self::on_device(has_first, parameter);
        }
        if parameter.dtype() != DType::F32 {
            let what = format!("are {:?}, an optimiser changes f32", parameter.dtype());
            return Err(LmError::Setting { field: "parameters", what });
        }
        Ok(if settings.state_bits == 8 && count >= LEAST {
            Self::Eight { first: has_first.then(|| Eight::new(count)), second: Eight::new(count) }
        } else {
            Self::Host { first: has_first.then(|| vec![0.0; count]), second: vec![0.0; count] }
        })
    }

    /// Zeros of the kind that other devices have.
    pub(super) fn on_device(has_first: bool, parameter: &Var) -> Result<Self, LmError> {
        let first = has_first.then(|| parameter.zeros_like()).transpose()?;
        Ok(Self::Device { first, second: parameter.zeros_like()? })
    }

    /// Everything there is, by name.
    pub(super) fn parts(&self) -> Result<Vec<(&'static str, Numbers<'_>)>, LmError> {
        fn f32s(of: &[f32]) -> Numbers<'_> {
            Numbers::F32(Cow::Borrowed(of))
        }
        let read = |of: &Tensor| -> Result<Numbers<'_>, LmError> {
            Ok(Numbers::F32(Cow::Owned(of.flatten_all()?.to_vec1()?)))
        };
        let mut parts = Vec::new();
        match self {
            Self::Host { first, second } => {
                parts.extend(first.iter().map(|first| ("first", f32s(first))));
                parts.push(("second", f32s(second)));
            }
            Self::Eight { first, second } => {
                let named = [(first.as_ref(), "first", "scale.first"), (Some(second), "second", "scale.second")];
                for (moment, codes, scales) in named {
                    if let Some(moment) = moment {
                        parts.push((codes, Numbers::U8(Cow::Borrowed(&moment.codes[..]))));
                        parts.push((scales, f32s(&moment.scales)));
                    }
                }
            }
            Self::Device { first, second } => {
                if let Some(first) = first {
                    parts.push(("first", read(first)?));
                }
                parts.push(("second", read(second)?));
            }
        }
        Ok(parts)
    }

    /// Puts back what [`Self::parts`] gave; `take` hands out each part, of the right size.
    pub(super) fn restore(
        &mut self,
        parameter: &Var,
        mut take: impl FnMut(&str) -> Option<Numbers<'static>>,
    ) -> Result<(), LmError> {
        match self {
            Self::Host { first, second } => {
                if let Some(first) = first {
                    *first = f32s(take("first"));
                }
                *second = f32s(take("second"));
            }
            Self::Device { first, second } => {
                let tensor = |of: Vec<f32>| Tensor::from_vec(of, parameter.shape(), parameter.device());
                if let Some(first) = first {
                    *first = tensor(f32s(take("first")))?;
                }
                *second = tensor(f32s(take("second")))?;
            }
            Self::Eight { first, second } => {
                let named = [(first.as_mut(), "first", "scale.first"), (Some(second), "second", "scale.second")];
                for (moment, codes, scales) in named {
                    if let Some(moment) = moment {
                        moment.scales = f32s(take(scales));
                        moment.codes = match take(codes) {
                            Some(Numbers::U8(codes)) => codes.into_owned(),
                            _ => Vec::new(),
                        };
                    }
                }
            }
        }
        Ok(())
    }
}

fn f32s(numbers: Option<Numbers<'static>>) -> Vec<f32> {
    match numbers {
        Some(Numbers::F32(numbers)) => numbers.into_owned(),
        _ => Vec::new(),
    }
}
