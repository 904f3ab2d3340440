//! Buffers that are used again, so that the kernel need not clear fresh memory in every step.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::lm::{LmError, memory};

/// Buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Idle>);

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<(u64, Vec<f32>)>,
    /// Passes so far.
    pass: u64,
    /// Bytes of all buffers, in use or not.
    held: u64,
    /// Bytes of buffers at most.
    limit: Option<u64>,
}

fn bytes(numbers: usize) -> u64 {
    numbers as u64 * size_of::<f32>() as u64
}

impl Idle {
    /// Lets go of the buffers that nobody uses and that are not `wanted`.
    fn release(&mut self, wanted: impl Fn(u64) -> bool) {
        let held = &mut self.held;
        self.buffers.retain(|(pass, values)| {
            let wanted = wanted(*pass);
            *held -= if wanted { 0 } else { bytes(values.len()) };
            wanted
        });
    }

    /// Whether so many bytes more are allowed.
    fn allows(&self, bytes: u64) -> bool {
        self.limit.is_none_or(|limit| self.held + bytes <= limit)
    }
}

/// Numbers of a pool, to which they go back.
#[derive(Debug)]
pub(super) struct Buffer {
    values: Vec<f32>,
    length: usize,
    pool: Arc<Pool>,
}

impl Pool {
    fn idle(&self) -> std::sync::MutexGuard<'_, Idle> {
        // A panic elsewhere leaves the list as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the begin of a pass, and lets go of what the pass before had no use for.
    pub(super) fn begin(&self) {
        let mut idle = self.idle();
        idle.pass += 1;
        let oldest = idle.pass - 1;
        idle.release(|pass| pass >= oldest);
    }

    /// From now on buffers are so many bytes at most, in use or not.
    pub(super) fn limit(&self, bytes: Option<u64>) {
        let mut idle = self.idle();
        idle.limit = bytes;
        // What nobody uses is not kept beyond it: else a pass that finds all its buffers here would not notice the limit.
        if !idle.allows(0) {
            idle.release(|_| false);
        }
    }

    /// A buffer of this many numbers, whatever they are. Unwinds to [`memory::guarded`] where there is no memory for it.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        self.try_take(length).unwrap_or_else(|_| memory::give_up(bytes(length)))
    }

    /// As [`Self::take`], with an error where there is no memory for it.
    pub(super) fn try_take(self: &Arc<Self>, length: usize) -> Result<Buffer, LmError> {
        // Few sizes, so that batches that differ a little share their buffers.
        let step = (length.next_power_of_two() / 8).max(64);
        let capacity = length.next_multiple_of(step);
        let mut idle = self.idle();
        let fits = idle.buffers.iter().position(|(_, values)| values.len() == capacity);
        let values = match fits {
            Some(at) => idle.buffers.swap_remove(at).1,
            None => {
                let more = bytes(capacity);
                if !idle.allows(more) {
                    idle.release(|_| false);
                }
                let made = if idle.allows(more) { memory::zeros(capacity).ok() } else { None };
                let values = made.ok_or_else(|| memory::full(more))?;
                idle.held += more;
                values
            }
        };
        Ok(Buffer { values, length, pool: Arc::clone(self) })
    }

    /// A buffer of zeros.
    pub(super) fn zeros(self: &Arc<Self>, length: usize) -> Buffer {
        let mut buffer = self.take(length);
        buffer.fill(0.0);
        buffer
    }
}

impl Buffer {
    /// Where it goes back to.
    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.pool.idle();
        let pass = idle.pass;
        idle.buffers.push((pass, std::mem::take(&mut self.values)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_let_go_of() {
        let pool = Arc::new(Pool::default());
        pool.begin();
        let mut first = pool.take(1000);
        first.fill(7.0);
        let at = first.as_ptr();
        drop(first);
        let again = pool.take(1001);
        assert_eq!((again.as_ptr(), again.len()), (at, 1001));
        drop(again);
        pool.begin();
        assert_eq!(pool.zeros(1000).iter().sum::<f32>(), 0.0);
        pool.begin();
        pool.begin();
        pool.begin();
        assert!(pool.idle().buffers.is_empty());
        assert_eq!(pool.idle().held, 0);
    }

    #[test]
    fn a_limit_holds_for_what_is_in_use() {
        let pool = Arc::new(Pool::default());
        pool.limit(Some(10_000));
        drop(pool.take(1024));
        let one = pool.take(2048);
        assert_eq!(pool.idle().held, 8192, "what was idle had to go");
        assert!(matches!(pool.try_take(1024), Err(LmError::OutOfMemory { .. })));
        assert!(memory::guarded(|| Ok(pool.take(1024).len())).is_err());
        drop(one);
        assert_eq!(pool.try_take(1024).expect("there is room again").len(), 1024);
        pool.limit(None);
        assert_eq!(memory::guarded(|| Ok(pool.take(4096).len())).expect("no limit"), 4096);
    }
}
