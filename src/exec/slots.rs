//! The GPUs of a machine and their memory, shared out among attempts.
//!
//! An attempt whose need is not known has a GPU to itself, and so has one that ran out of memory beside another. Others share one if
//! their needs fit it together, with a margin; but an empty one is taken first, as two that share one take turns at computing.

use std::collections::BTreeMap;

/// A GPU that is shared out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// `cuda:N`.
    pub device: String,
    /// Bytes of its memory that were free when the run began; `None` if nobody knows: then it has one attempt at a time.
    pub memory: Option<u64>,
}

/// What an attempt wants of a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Want {
    /// Bytes that it will take at most, as far as they are known.
    pub(super) bytes: Option<u64>,
    /// Whether it has to have it to itself.
    pub(super) alone: bool,
    /// Whether it has to be one with more memory than this.
    pub(super) above: Option<u64>,
    /// The number of the one that it would rather have than another that is as empty: its model's weights are there.
    pub(super) near: Option<usize>,
}

/// How much of a GPU one has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Share {
    All,
    /// So many bytes of it.
    Bytes(u64),
}

/// One that has a GPU, or a part of one.
#[derive(Debug, Clone, Copy)]
struct Tenant {
    serial: u64,
    share: Share,
}

/// What an attempt has of the GPUs; given back by [`Slots::leave`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    /// `cuda:N`.
    pub(super) device: String,
    /// Bytes that it may take, where others are on the GPU or may come.
    pub(super) bytes: Option<u64>,
    serial: u64,
}

/// The GPUs of the machine, best first, and who has them. One that no one told of is there all the same, if it is named.
#[derive(Debug, Default)]
pub(super) struct Slots {
    gpus: Vec<Gpu>,
    tenants: BTreeMap<String, Vec<Tenant>>,
    serial: u64,
}

/// What is left of a GPU beside what its tenants are expected to take: a sixteenth, and room for a context of the driver each.
const MARGIN: u64 = 16;
const CONTEXT: u64 = 600 << 20;

impl Slots {
    pub(super) fn new(gpus: &[Gpu]) -> Self {
        Self { gpus: gpus.to_vec(), ..Self::default() }
    }

    /// Takes any GPU, or the one that is named; `None` if there is no room on it now.
    pub(super) fn enter(&mut self, named: Option<&str>, want: Want) -> Option<Slot> {
        let (device, share) = match named {
            Some(device) => (device.to_owned(), self.room_on(device, want)?),
            None => {
                let roomy = self.gpus.iter().filter(|gpu| is_above(gpu, want));
                // The first of the emptiest, by how many are on it.
                let mut found: Vec<(usize, bool, usize, Share)> = Vec::new();
                for (at, gpu) in roomy.enumerate() {
                    let beside = self.tenants.get(&gpu.device).map_or(0, Vec::len);
                    let is_far = want.near.is_some_and(|near| number(&gpu.device) != Some(near));
                    found.extend(self.room_on(&gpu.device, want).map(|share| (beside, is_far, at, share)));
                }
                let (_, _, at, share) = found.into_iter().min()?;
                (self.gpus.iter().filter(|gpu| is_above(gpu, want)).nth(at)?.device.clone(), share)
            }
        };
        self.serial += 1;
        let tenant = Tenant { serial: self.serial, share };
        self.tenants.entry(device.clone()).or_default().push(tenant);
        let bytes = match share {
            Share::All => None,
            Share::Bytes(bytes) => Some(bytes),
        };
        Some(Slot { device, bytes, serial: self.serial })
    }

    /// Takes several GPUs, or none if there are not as many: one for each rank, all of it where there is another rank.
    pub(super) fn enter_all(&mut self, ranks: usize, want: Want) -> Option<Vec<Slot>> {
        let want = Want { alone: want.alone || ranks > 1, ..want };
        let mut slots = Vec::new();
        while slots.len() < ranks {
            match self.enter(None, want) {
                Some(slot) => slots.push(slot),
                None => {
                    slots.iter().for_each(|slot| self.leave(slot));
                    return None;
                }
            }
        }
        Some(slots)
    }

    /// What can be had of a GPU now, if there is room on it.
    fn room_on(&self, device: &str, want: Want) -> Option<Share> {
        let memory = self.gpus.iter().find(|gpu| gpu.device == device).and_then(|gpu| gpu.memory);
        let tenants = self.tenants.get(device).map_or(&[][..], Vec::as_slice);
        let need = want.bytes.filter(|_| !want.alone).map(|bytes| bytes.saturating_add(CONTEXT));
        let (Some(memory), Some(need)) = (memory, need) else { return tenants.is_empty().then_some(Share::All) };
        let usable = memory - memory / MARGIN;
        if need > usable {
            // It may fit all the same: what it needs is estimated.
            return tenants.is_empty().then_some(Share::All);
        }
        let mut taken = 0u64;
        for tenant in tenants {
            let Share::Bytes(bytes) = tenant.share else { return None };
            taken = taken.saturating_add(bytes);
        }
        (taken.saturating_add(need) <= usable).then_some(Share::Bytes(need))
    }

    /// Whether there are so many GPUs, of which none need be free now, that fit what is wanted.
    pub(super) fn could(&self, count: usize, want: Want) -> bool {
        self.gpus.iter().filter(|gpu| is_above(gpu, want)).count() >= count
    }

    /// GPUs that no one is on.
    pub(super) fn empty(&self) -> usize {
        let is_empty = |gpu: &&Gpu| self.tenants.get(&gpu.device).is_none_or(Vec::is_empty);
        self.gpus.iter().filter(is_empty).count()
    }

    /// Bytes of a GPU.
    pub(super) fn memory(&self, device: &str) -> Option<u64> {
        self.gpus.iter().find(|gpu| gpu.device == device)?.memory
    }

    /// Gives a slot back.
    pub(super) fn leave(&mut self, slot: &Slot) {
        if let Some(tenants) = self.tenants.get_mut(&slot.device) {
            tenants.retain(|tenant| tenant.serial != slot.serial);
        }
    }
}

/// The number in the name of a GPU.
pub(super) fn number(device: &str) -> Option<usize> {
    device.strip_prefix("cuda:")?.parse().ok()
}

fn is_above(gpu: &Gpu, want: Want) -> bool {
    want.above.is_none_or(|above| gpu.memory.is_some_and(|memory| memory > above))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn gpus(memory: &[u64]) -> Slots {
        let gpu = |(at, gib): (usize, &u64)| Gpu { device: format!("cuda:{at}"), memory: Some(gib * GIB) };
        Slots::new(&memory.iter().enumerate().map(gpu).collect::<Vec<_>>())
    }

    fn want(gib: u64) -> Want {
        Want { bytes: Some(gib * GIB), ..Want::default() }
    }

    fn device(slot: Option<Slot>) -> String {
        slot.map_or_else(|| "none".to_owned(), |slot| slot.device)
    }

    #[test]
    fn empty_gpus_are_taken_first_and_shared_only_if_all_fits() {
        let mut slots = gpus(&[80, 80]);
        let first = slots.enter(None, want(30)).unwrap();
        assert_eq!(first.device, "cuda:0");
        assert!(first.bytes.is_some_and(|bytes| bytes > 30 * GIB && bytes < 31 * GIB));
        assert_eq!(slots.empty(), 1);
        assert_eq!(device(slots.enter(None, want(30))), "cuda:1");
        assert_eq!(slots.empty(), 0);
        assert_eq!(device(slots.enter(None, want(40))), "cuda:0");
        // 75 of 80 may be taken.
        assert_eq!(device(slots.enter(None, want(45))), "none");
        assert_eq!(device(slots.enter(None, want(20))), "cuda:1");
        slots.leave(&first);
        assert_eq!(device(slots.enter(None, want(30))), "cuda:0");
    }

    #[test]
    fn the_one_with_its_weights_is_taken_of_those_that_are_as_empty() {
        let mut slots = gpus(&[80, 80, 80]);
        let near = Want { near: Some(1), ..want(10) };
        assert_eq!(device(slots.enter(None, near)), "cuda:1");
        assert_eq!(device(slots.enter(None, near)), "cuda:0", "an empty one comes before");
        assert_eq!(device(slots.enter(None, Want { near: Some(7), ..near })), "cuda:2");
        assert_eq!(device(slots.enter(None, near)), "cuda:1");
    }

    #[test]
    fn one_of_which_nothing_is_known_is_alone() {
        let mut slots = gpus(&[80]);
        let alone = slots.enter(None, Want::default()).unwrap();
        assert_eq!((alone.bytes, slots.enter(None, want(1))), (None, None));
        slots.leave(&alone);
        let small = slots.enter(None, want(1)).unwrap();
        assert_eq!(slots.enter(None, Want::default()), None);
        assert_eq!(slots.enter(None, Want { alone: true, ..want(1) }), None);
        slots.leave(&small);
        assert!(slots.enter(None, Want { alone: true, ..want(1) }).is_some_and(|slot| slot.bytes.is_none()));
        // One that is estimated to be too large is tried by itself.
        let mut slots = gpus(&[80]);
        assert!(slots.enter(None, want(200)).is_some() && slots.enter(None, want(1)).is_none());
        // A GPU whose memory no one knows has one at a time, and so has one that no one told of.
        let mut slots = Slots::new(&[Gpu { device: "cuda:0".into(), memory: None }]);
        assert!(slots.enter(None, want(1)).is_some() && slots.enter(None, want(1)).is_none());
        assert!(slots.enter(Some("cuda:5"), want(1)).is_some() && slots.enter(Some("cuda:5"), want(1)).is_none());
    }

    #[test]
    fn named_ones_are_waited_for_and_larger_ones_found() {
        let mut slots = gpus(&[24, 80]);
        assert_eq!(device(slots.enter(Some("cuda:0"), want(20))), "cuda:0");
        assert_eq!(device(slots.enter(Some("cuda:0"), want(20))), "none");
        let larger = Want { alone: true, above: Some(24 * GIB), ..Want::default() };
        assert_eq!(device(slots.enter(None, larger)), "cuda:1");
        assert!(!slots.could(1, Want { above: Some(80 * GIB), ..larger }));
        assert_eq!(slots.memory("cuda:1"), Some(80 * GIB));
    }
}
