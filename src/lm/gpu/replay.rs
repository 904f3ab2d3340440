//! A step of decoding, recorded once and launched as a whole: CUDA's graphs.
//!
//! A step of so many rows is the same launches at the same places, whatever its tokens and lengths, since those lie in
//! tensors that stay where they are. The first one is launched piece by piece, which loads what it needs; the second is
//! recorded as well, and what the recording gives must be what the pieces gave. Where that fails, or the device refuses, it
//! is told once, and steps are launched piece by piece.

use candle_core::{DType, Device, Result, Tensor};

/// What a step is told and gives: tensors that stay where they are.
#[derive(Debug)]
pub(super) struct Fixed {
    slots: usize,
    /// Token by slot, then tokens that are in each slot before: (2, slots) u32.
    told: Tensor,
    /// A random number by slot: (slots) f64.
    pub(super) numbers: Tensor,
    /// 0, 1, …: (slots) u32.
    each: Tensor,
    /// The tokens that were picked: (slots) u32.
    pub(super) tokens: Tensor,
    /// (slots, V) f32, once they were asked for.
    logits: Option<Tensor>,
}

impl Fixed {
    pub(super) fn new(slots: usize, device: &Device) -> Result<Self> {
        let each: Vec<u32> = (0..slots as u32).collect();
        Ok(Self {
            slots,
            told: Tensor::zeros((2, slots), DType::U32, device)?,
            numbers: Tensor::zeros(slots, DType::F64, device)?,
            each: Tensor::new(each.as_slice(), device)?,
            tokens: Tensor::zeros(slots, DType::U32, device)?,
            logits: None,
        })
    }

    /// Tells tokens and lengths by slot, and random numbers where they are needed; other slots get zeros.
    pub(super) fn tell(&self, tokens: &[u32], lengths: &[usize], numbers: Option<&[f64]>) -> Result<()> {
        let mut told = vec![0u32; 2 * self.slots];
        told[..tokens.len()].copy_from_slice(tokens);
        told[self.slots..].iter_mut().zip(lengths).for_each(|(told, length)| *told = *length as u32);
        self.told.slice_set(&Tensor::from_vec(told, (2, self.slots), self.told.device())?, 0, 0)?;
        if let Some(numbers) = numbers {
            let mut all = vec![0f64; self.slots];
            all[..numbers.len()].copy_from_slice(numbers);
            self.numbers.slice_set(&Tensor::new(all, self.numbers.device())?, 0, 0)?;
        }
        Ok(())
    }

    /// Tokens of the first rows: (rows).
    pub(super) fn ids(&self, rows: usize) -> Result<Tensor> {
        self.told.get(0)?.narrow(0, 0, rows)
    }

    /// Lengths of the first rows: (rows).
    pub(super) fn lengths(&self, rows: usize) -> Result<Tensor> {
        self.told.get(1)?.narrow(0, 0, rows)
    }

    /// 0, 1, … of the first rows: (rows).
    pub(super) fn each(&self, rows: usize) -> Result<Tensor> {
        self.each.narrow(0, 0, rows)
    }

    /// Makes room for logits, if there is none.
    pub(super) fn make_room(&mut self, vocabulary: usize) -> Result<()> {
        if self.logits.is_none() {
            self.logits = Some(Tensor::zeros((self.slots, vocabulary), DType::F32, self.told.device())?);
        }
        Ok(())
    }

    /// (slots, V) f32
    pub(super) fn logits(&self) -> Result<&Tensor> {
        self.logits.as_ref().ok_or_else(|| candle_core::Error::msg("there is no room for logits"))
    }
}

/// A kind of step: rows, and what logits are multiplied by where tokens are picked (its bits).
pub(super) type Kind = (usize, Option<u32>);

#[cfg(feature = "cuda")]
pub(super) use graph::Replay;

/// Where there are no graphs, every step is launched piece by piece.
#[cfg(not(feature = "cuda"))]
#[derive(Debug, Default)]
pub(super) struct Replay;

#[cfg(not(feature = "cuda"))]
impl Replay {
    pub(super) fn records(&self, _: &Device) -> bool {
        false
    }

    pub(super) fn forget(&mut self) {}

    pub(super) fn step(
        &mut self,
        _: &Device,
        _: Kind,
        pieces: impl Fn() -> Result<()>,
        _: impl Fn() -> Result<Vec<f32>>,
    ) -> Result<()> {
        pieces()
    }
}

#[cfg(feature = "cuda")]
mod graph {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};

    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{CudaGraph, sys};
    use candle_core::{CudaDevice, Device, Result};

    use super::Kind;
    use crate::env;

    /// How far numbers of a recording may be from those of its pieces, relative to the largest.
    const TOLERANCE: f32 = 1e-2;

    /// Whether recording failed in this process.
    static FAILED: AtomicBool = AtomicBool::new(false);

    struct Recording(CudaGraph);

    #[expect(unsafe_code, reason = "candle's handle says nothing of threads")]
    // SAFETY: a graph may be used by any thread, if by one at a time; it is only reached through `&mut Replay`.
    unsafe impl Send for Recording {}

    /// The steps that were recorded.
    #[derive(Default)]
    pub(in super::super) struct Replay {
        /// `None`: launched once piece by piece.
        kinds: BTreeMap<Kind, Option<Recording>>,
    }

    impl Replay {
        /// Whether steps are recorded on a device.
        pub(in super::super) fn records(&self, device: &Device) -> bool {
            device.is_cuda() && env::GRAPHS.get().as_deref() != Some("off") && !FAILED.load(Ordering::Relaxed)
        }

        /// Forgets all recordings: tensors have moved.
        pub(in super::super) fn forget(&mut self) {
            self.kinds.clear();
        }

        /// Does a step, which `pieces` launches and `result` reads the results of.
        pub(in super::super) fn step(
            &mut self,
            device: &Device,
            kind: Kind,
            pieces: impl Fn() -> Result<()>,
            result: impl Fn() -> Result<Vec<f32>>,
        ) -> Result<()> {
            let Device::Cuda(cuda) = device else { return pieces() };
            if !self.records(device) {
                return pieces();
            }
            match self.kinds.get(&kind) {
                Some(Some(Recording(graph))) => return graph.launch().w(),
                None => {
                    self.kinds.insert(kind, None);
                    return pieces();
                }
                Some(None) => {}
            }
            // What is uploaded for a launch is kept from here on, for the recording to find.
            let kept = cuda.enable_cuda_graph_htod_cache();
            pieces()?;
            let expected = result()?;
            let recorded = record(cuda, &pieces).and_then(|graph| {
                graph.launch().w()?;
                Ok((graph, result()?))
            });
            drop(kept);
            let failed = match recorded {
                Ok((graph, found)) if near(&expected, &found) => {
                    self.kinds.insert(kind, Some(Recording(graph)));
                    return Ok(());
                }
                Ok(_) => "it gives other numbers".to_owned(),
                Err(error) => error.to_string(),
            };
            FAILED.store(true, Ordering::Relaxed);
            self.forget();
            tracing::warn!("steps of decoding are launched piece by piece, for their recording failed: {failed}");
            pieces()
        }
    }

    /// Records launches without doing them.
    fn record(device: &CudaDevice, pieces: &impl Fn() -> Result<()>) -> Result<CudaGraph> {
        let stream = device.cuda_stream();
        let only_here = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(only_here).w()?;
        let done = pieces();
        // What a step takes of the memory is free when it ends; a launch frees what may be left all the same.
        let free = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let ended = stream.end_capture(free);
        // What was refused meanwhile is told of by `done`, and must not be told of again by the next call.
        let refused = stream.context().check_err();
        done?;
        let graph = ended.w()?;
        refused.w()?;
        graph.ok_or_else(|| candle_core::Error::msg("nothing was recorded"))
    }

    fn near(expected: &[f32], found: &[f32]) -> bool {
        let largest = expected.iter().fold(0f32, |largest, number| largest.max(number.abs()));
        let same = |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= TOLERANCE * largest || (a.is_nan() && b.is_nan());
        expected.len() == found.len() && expected.iter().zip(found).all(same)
    }
}
