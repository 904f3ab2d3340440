//! A step of decoding, recorded once and launched as a whole: CUDA's graphs.
//!
//! A step of so many rows is the same launches at the same places, whatever its tokens and lengths, since those lie in
//! tensors that stay where they are. The first one is launched piece by piece, which loads what it needs; the second is
//! recorded as well, and what the recording gives must be what the pieces gave. Where that fails, or the device refuses, it
//! is told once, and steps are launched piece by piece.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Result, Tensor};

use crate::env;

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

/// How far logits of a recording may be from those of its pieces, relative to the largest; tokens are the same.
const TOLERANCE: f32 = 1e-2;

/// Whether recording failed in this process.
static FAILED: AtomicBool = AtomicBool::new(false);

/// The steps that were recorded.
#[derive(Default)]
pub(super) struct Replay {
    /// `None`: launched once piece by piece.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::zero_sized_map_values, reason = "there are recordings in builds with CUDA")
    )]
    kinds: BTreeMap<Kind, Option<Recording>>,
}

impl Replay {
    /// Whether steps are recorded on a device.
    pub(super) fn records(device: &Device) -> bool {
        device.is_cuda() && env::GRAPHS.get().as_deref() == Some("on") && !FAILED.load(Ordering::Relaxed)
    }

    /// Forgets all recordings: tensors have moved.
    pub(super) fn forget(&mut self) {
        self.kinds.clear();
    }

    /// Does a step, which `pieces` launches and `result` reads the results of.
    pub(super) fn step(
        &mut self,
        device: &Device,
        kind: Kind,
        pieces: impl Fn() -> Result<()>,
        result: impl Fn() -> Result<Vec<f32>>,
    ) -> Result<()> {
        match self.kinds.get(&kind) {
            Some(Some(recording)) => return recording.launch(),
            None => {
                self.kinds.insert(kind, None);
                return pieces();
            }
            Some(None) => {}
        }
        let mut expected = Vec::new();
        let before = || {
            pieces()?;
            expected = result()?;
            Ok(())
        };
        let failed = match Recording::new(device, before, &pieces)? {
            Ok(recording) => match recording.launch().and_then(|()| result()) {
                Ok(found) if near(&expected, &found, kind) => {
                    self.kinds.insert(kind, Some(recording));
                    return Ok(());
                }
                Ok(_) => "it gives other numbers".to_owned(),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        FAILED.store(true, Ordering::Relaxed);
        self.forget();
        tracing::warn!("steps of decoding are launched piece by piece, for their recording failed: {failed}");
        pieces()
    }
}

fn near(expected: &[f32], found: &[f32], kind: Kind) -> bool {
    let largest = expected.iter().fold(0f32, |largest, number| largest.max(number.abs()));
    let apart = if kind.1.is_some() { 0.0 } else { TOLERANCE * largest };
    let same = |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= apart || (a.is_nan() && b.is_nan());
    expected.len() == found.len() && expected.iter().zip(found).all(same)
}

#[cfg(feature = "cuda")]
use graph::Recording;

#[cfg(feature = "cuda")]
mod graph {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{CudaGraph, sys};
    use candle_core::{CudaDevice, Device, Result};

    pub(super) struct Recording(CudaGraph);

    #[expect(unsafe_code, reason = "candle's handle says nothing of threads")]
    // SAFETY: a graph may be used by any thread, if by one at a time; it is only reached through `&mut Replay`.
    unsafe impl Send for Recording {}

    impl Recording {
        /// Records launches without doing them, after `before`, which does the same. Errs where that errs; gives an error
        /// where the recording does.
        pub(super) fn new(
            device: &Device,
            before: impl FnOnce() -> Result<()>,
            pieces: impl Fn() -> Result<()>,
        ) -> Result<Result<Self>> {
            let device = device.as_cuda_device()?;
            // What is uploaded for a launch is kept from here on, for the recording to find.
            let kept = device.enable_cuda_graph_htod_cache();
            before()?;
            let recorded = record(device, pieces);
            drop(kept);
            Ok(recorded.map(Self))
        }

        pub(super) fn launch(&self) -> Result<()> {
            self.0.launch().w()
        }
    }

    fn record(device: &CudaDevice, pieces: impl Fn() -> Result<()>) -> Result<CudaGraph> {
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
}

/// There are no graphs without CUDA, nor devices whose steps are recorded.
#[cfg(not(feature = "cuda"))]
enum Recording {}

#[cfg(not(feature = "cuda"))]
impl Recording {
    fn new(_: &Device, before: impl FnOnce() -> Result<()>, _: impl Fn() -> Result<()>) -> Result<Result<Self>> {
        before()?;
        Ok(Err(candle_core::Error::msg("this program was built without CUDA")))
    }

    fn launch(&self) -> Result<()> {
        match *self {}
    }
}
