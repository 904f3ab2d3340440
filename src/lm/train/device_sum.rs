//! The sum of all ranks' gradients where they are, by NCCL: on their GPUs, without a copy on a host. What [`Team::sum`] is
//! elsewhere.
//!
//! The team's own connections bring the ranks together, and stay beside it: they tell of a rank that is lost, for which NCCL
//! would wait for ever.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Range;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor, Var};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::LmError;
use super::super::nccl::{Communicator, ID, Nccl};
use crate::collective::{Team, TeamError};

/// Numbers that are added up at once at most, but for a gradient that has more itself: 128 MiB, in which NCCL is as fast as it
/// gets, and which is little beside the gradients.
const BUCKET: usize = 1 << 25;
/// How long NCCL may take to bring the ranks together.
const PATIENCE: Duration = Duration::from_secs(120);

/// What adds up the gradients of all ranks.
#[derive(Debug)]
pub(super) struct DeviceSum {
    communicator: Communicator,
    version: String,
}

impl DeviceSum {
    /// Comes together with all ranks of a team, each with its device and the library, or the reason why it has none. The inner
    /// error says why that cannot be, in the same words on all ranks.
    pub(super) fn meet(
        team: &mut Team,
        nccl: Result<Nccl, String>,
        device: &Device,
    ) -> Result<Result<Self, String>, TeamError> {
        let versions = all_say(team, &nccl.as_ref().map(Nccl::version).map_err(Clone::clone))?;
        let version = match one_version(&versions) {
            Ok(version) => version,
            Err(why) => return Ok(Err(why)),
        };
        let Ok(nccl) = nccl else { return Ok(Err("this rank has no NCCL".to_owned())) };
        let id = if team.rank() == 0 { nccl.unique_id() } else { Ok(Vec::new()) };
        let id: Result<Vec<u8>, String> = word(&team.said_by_first(bytes(&id)?)?)?;
        let id = id.map(<[u8; ID]>::try_from);
        let id = match id {
            Ok(Ok(id)) => id,
            Ok(Err(other)) => return Err(team.failure(format!("rank 0 says {} bytes instead of an id", other.len()))),
            Err(why) => return Ok(Err(format!("rank 0: {why}"))),
        };
        let begun = current(device).and_then(|()| Communicator::begin(nccl, team.ranks(), team.rank(), id));
        let met = match begun {
            Ok(communicator) => come_together(team, &communicator)?.map(|()| communicator),
            Err(why) => Err(Some(why)),
        };
        let verdicts: Vec<Verdict> = all_say(team, &met.as_ref().map(|_| ()).map_err(Clone::clone))?;
        let refused = verdicts.iter().enumerate().find_map(|(rank, verdict)| match verdict {
            Err(Some(why)) => Some(format!("rank {rank}: {why}")),
            _ => None,
        });
        Ok(match (refused, met) {
            (None, Ok(communicator)) => Ok(Self { communicator, version }),
            (why, _) => Err(why.unwrap_or_else(|| "the ranks did not come together".to_owned())),
        })
    }

    /// NCCL's, such as `2.28.9`.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The sum over all ranks of the gradient for each parameter, in f32; `own` are this rank's, or none where it has computed
    /// nothing.
    pub(super) fn of(
        &self,
        team: &mut Team,
        parameters: &BTreeMap<String, Var>,
        own: BTreeMap<String, Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, LmError> {
        self.in_buckets(BUCKET, team, parameters, own)
    }

    /// As [`DeviceSum::of`], of so many numbers at once.
    fn in_buckets(
        &self,
        most: usize,
        team: &mut Team,
        parameters: &BTreeMap<String, Var>,
        mut own: BTreeMap<String, Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, LmError> {
        let named: Vec<(&String, &Var)> = parameters.iter().collect();
        let counts: Vec<usize> = named.iter().map(|(_, parameter)| parameter.elem_count()).collect();
        let mut sums = BTreeMap::new();
        let Some(device) = named.first().map(|(_, parameter)| parameter.device().clone()) else { return Ok(sums) };
        for bucket in buckets(&counts, most) {
            let all = Tensor::zeros(counts[bucket.clone()].iter().sum::<usize>(), DType::F32, &device)?;
            let mut at = 0;
            for (name, parameter) in &named[bucket] {
                let count = parameter.elem_count();
                if let Some(gradient) = own.remove(*name)
                    && count > 0
                {
                    all.slice_set(&gradient.to_dtype(DType::F32)?.flatten_all()?.contiguous()?, 0, at)?;
                }
                sums.insert((*name).clone(), all.narrow(0, at, count)?.reshape(parameter.shape())?);
                at += count;
            }
            self.add_up(team, &all, &device)?;
        }
        let mark = Mark::on(&device)?;
        team.meanwhile(|team| match (mark.is_passed(), self.communicator.is_ready()) {
            (Ok(passed), Ok(ready)) => Ok((passed && ready).then_some(())),
            (Err(why), _) | (_, Err(why)) => Err(team.failure(why)),
        })?;
        Ok(sums)
    }

    /// Has a line of numbers replaced by its sum over all ranks. Once the device has come to it, that is.
    fn add_up(&self, team: &mut Team, all: &Tensor, device: &Device) -> Result<(), LmError> {
        let count = all.elem_count();
        let (address, stream) = place(all, device)?;
        #[expect(unsafe_code, reason = "NCCL is given an address")]
        // SAFETY: so many f32 are there, and no one else writes to them. They live until all work on them is over, or the
        // communicator is given up: memory is freed in its turn on the same stream.
        let asked = if count == 0 { Ok(()) } else { unsafe { self.communicator.sum(address, count, stream) } };
        team.meanwhile(|team| {
            let ready = asked.clone().and_then(|()| self.communicator.is_ready());
            ready.map(|ready| ready.then_some(())).map_err(|why| team.failure(why))
        })?;
        Ok(())
    }
}

/// Whether a rank has come together with the others; the reason where it has one of its own.
type Verdict = Result<(), Option<String>>;

/// Waits until all ranks have come. They may not, where one of them finds that it cannot: it says so.
fn come_together(team: &mut Team, communicator: &Communicator) -> Result<Verdict, TeamError> {
    let until = Instant::now() + PATIENCE;
    team.meanwhile(|team| {
        let refuses = |rank: usize| team.said(rank).is_some_and(|said| matches!(word(said), Ok(Verdict::Err(_))));
        Ok(match communicator.is_ready() {
            Ok(true) => Some(Ok(())),
            Err(why) => Some(Err(Some(why))),
            Ok(false) if (0..team.ranks()).any(refuses) => Some(Err(None)),
            Ok(false) if Instant::now() > until => {
                Some(Err(Some(format!("NCCL has not brought the ranks together in {} s", PATIENCE.as_secs()))))
            }
            Ok(false) => None,
        })
    })
}

/// The version that all ranks have, in words; else why that is not so.
fn one_version(versions: &[Result<i32, String>]) -> Result<String, String> {
    let mut one: Option<i32> = None;
    for (rank, version) in versions.iter().enumerate() {
        let version = *version.as_ref().map_err(|why| match versions.iter().all(|other| other == version) {
            true => why.clone(),
            false => format!("rank {rank}: {why}"),
        })?;
        let first = *one.get_or_insert(version);
        if version != first {
            return Err(format!("rank {rank} has NCCL {}, rank 0 has {}", dotted(version), dotted(first)));
        }
    }
    one.map(dotted).ok_or_else(|| "there is no rank".to_owned())
}

/// `2.28.9` of 22809.
fn dotted(version: i32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// What every rank says, by rank.
fn all_say<T: Serialize + DeserializeOwned>(team: &mut Team, own: &T) -> Result<Vec<T>, TeamError> {
    team.gather(bytes(own)?)?.iter().map(|said| word(said)).collect()
}

fn bytes(word: &impl Serialize) -> Result<Vec<u8>, TeamError> {
    serde_json::to_vec(word).map_err(|error| TeamError::OutOfStep { what: error.to_string() })
}

fn word<T: DeserializeOwned>(said: &[u8]) -> Result<T, TeamError> {
    serde_json::from_slice(said).map_err(|error| TeamError::OutOfStep { what: error.to_string() })
}

/// Runs of gradients that are added up at once: as many as have no more than `most` numbers, and one at least.
fn buckets(counts: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut buckets: Vec<Range<usize>> = Vec::new();
    let mut filled = 0usize;
    for (index, count) in counts.iter().enumerate() {
        match buckets.last_mut().filter(|_| filled.saturating_add(*count) <= most) {
            Some(bucket) => bucket.end = index + 1,
            None => {
                buckets.push(index..index + 1);
                filled = 0;
            }
        }
        filled += count;
    }
    buckets
}

/// Makes a device the one that this thread's calls mean.
fn current(device: &Device) -> Result<(), String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            device.cuda_stream().context().bind_to_thread().map_err(|error| format!("the driver says {error}"))
        }
        _ => Ok(()),
    }
}

/// Where a tensor's numbers begin, and the stream that its device works on.
fn place(of: &Tensor, device: &Device) -> candle_core::Result<(u64, *mut c_void)> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let address = super::super::gpu::kernels::address(of, device)?;
            Ok((address, device.cuda_stream().cu_stream().cast()))
        }
        #[cfg(test)]
        Device::Cpu => {
            let (storage, _) = of.storage_and_layout();
            let candle_core::Storage::Cpu(storage) = &*storage else {
                candle_core::bail!("a tensor of another device")
            };
            Ok((storage.as_slice::<f32>()?.as_ptr() as u64, std::ptr::null_mut()))
        }
        _ => candle_core::bail!("NCCL is for GPUs, not for {:?} {:?}", device.location(), of.shape()),
    }
}

/// A place in what a device was asked to do.
enum Mark {
    /// All of it is done when it is asked for.
    Passed,
    #[cfg(feature = "cuda")]
    Event(candle_core::cuda_backend::cudarc::driver::CudaEvent),
}

impl Mark {
    /// After all that a device was asked so far.
    fn on(device: &Device) -> candle_core::Result<Self> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                use candle_core::cuda_backend::WrapErr;
                Ok(Self::Event(device.cuda_stream().record_event(None).w()?))
            }
            _ => Ok(Self::Passed),
        }
    }

    /// Whether it has come past it. Errs if something before it has failed.
    fn is_passed(&self) -> Result<bool, String> {
        match self {
            Self::Passed => Ok(true),
            #[cfg(feature = "cuda")]
            Self::Event(event) => event.try_is_complete().map_err(|error| format!("the driver says {error}")),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
