//! Buffers that are used again, so that the kernel need not clear fresh memory in every step.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Idle>);

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<(u64, Vec<f32>)>,
    /// Passes so far.
    pass: u64,
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
        idle.buffers.retain(|(pass, _)| *pass >= oldest);
    }

    /// A buffer of this many numbers, whatever they are.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        // Few sizes, so that batches that differ a little share their buffers.
        let step = (length.next_power_of_two() / 8).max(64);
        let capacity = length.next_multiple_of(step);
        let mut idle = self.idle();
        let fits = idle.buffers.iter().position(|(_, values)| values.len() == capacity);
        let values = fits.map(|at| idle.buffers.swap_remove(at).1);
        drop(idle);
        Buffer { values: values.unwrap_or_else(|| vec![0.0; capacity]), length, pool: Arc::clone(self) }
    }

    /// A buffer of zeros.
    pub(super) fn zeros(self: &Arc<Self>, length: usize) -> Buffer {
        let mut buffer = self.take(length);
        buffer.fill(0.0);
        buffer
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
    }
}
