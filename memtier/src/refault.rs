//! How far pages get before they are wanted back: the kernel's refault distance (`mm/workingset.c`).
//!
//! A clock counts the pages that leave. What it shows is remembered with each page that does; when the page comes back by a fault, the
//! difference says how many others left in between. That much more memory would have spared the fault. The clock ticks once per 32nd of guest
//! memory and is remembered modulo 64 ticks, so distances are known in 32nds of guest memory up to twice guest memory; longer ones
//! appear shorter by a multiple of that, as the kernel's do when its counter wraps.
//!
//! Promises: noting allocates nothing and takes no lock. Must never: be more than statistics; nothing rests on a distance.

use crate::counters::Counter;
use crate::frame::word::{EVICTION_STAMPS, EvictionStamp};

/// Buckets of the histogram: one per distance that a stamp can tell apart.
pub const DISTANCES: usize = EVICTION_STAMPS as usize;
/// Ticks while as many pages leave as the guest has.
const TICKS_PER_GUEST: u32 = 32;

/// See the module.
#[derive(Debug)]
pub struct RefaultLog {
    left: Counter,
    frames_per_tick: u64,
    by_distance: [Counter; DISTANCES],
}

/// What a [`RefaultLog`] has seen so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refaults {
    /// Frames in a step of distance: a 32nd of the guest's, at least one.
    pub frames_per_step: u64,
    /// Frames that have left.
    pub left: u64,
    /// Faults by distance: entry `n` counts those for which the clock had ticked `n` times, so between `n - 1` and `n + 1` steps.
    pub by_distance: [u64; DISTANCES],
}

impl RefaultLog {
    /// For a guest of so many frames.
    pub fn new(frames: u32) -> Self {
        let frames_per_tick = u64::from(frames.div_ceil(TICKS_PER_GUEST).max(1));
        Self { left: Counter::default(), frames_per_tick, by_distance: std::array::from_fn(|_| Counter::default()) }
    }

    /// The clock now, to be remembered with a frame that leaves.
    pub fn now(&self) -> EvictionStamp {
        EvictionStamp::new(self.left.get() / self.frames_per_tick)
    }

    /// So many frames have left.
    pub fn count_left(&self, frames: u64) {
        self.left.add(frames);
    }

    /// A frame that left at `stamp` was wanted back.
    pub fn count_refault(&self, stamp: EvictionStamp) {
        self.by_distance[stamp.ticks_until(self.now())].add(1);
    }

    /// What was seen so far.
    pub fn snapshot(&self) -> Refaults {
        Refaults {
            frames_per_step: self.frames_per_tick,
            left: self.left.get(),
            by_distance: std::array::from_fn(|distance| self.by_distance[distance].get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(log: &RefaultLog) -> Vec<(usize, u64)> {
        let by_distance = log.snapshot().by_distance;
        by_distance.into_iter().enumerate().filter(|(_, count)| *count > 0).collect()
    }

    #[test]
    fn a_distance_is_what_left_in_between_in_32nds_of_the_guest() {
        let log = RefaultLog::new(3200);
        assert_eq!(log.snapshot().frames_per_step, 100);
        let first = log.now();
        log.count_refault(first);
        log.count_left(99);
        log.count_refault(first);
        log.count_left(1);
        let second = log.now();
        log.count_refault(first);
        log.count_left(6200);
        log.count_refault(first);
        log.count_refault(second);
        assert_eq!(buckets(&log), [(0, 2), (1, 1), (62, 1), (63, 1)]);
        assert_eq!(log.snapshot().left, 6300);
    }

    #[test]
    fn a_distance_beyond_twice_the_guest_wraps() {
        let log = RefaultLog::new(32);
        log.count_left(40);
        let stamp = log.now();
        log.count_left(60);
        log.count_refault(stamp);
        log.count_left(5);
        log.count_refault(stamp);
        assert_eq!(buckets(&log), [(1, 1), (60, 1)]);
    }

    #[test]
    fn a_tiny_guests_clock_ticks_with_every_frame() {
        assert_eq!(RefaultLog::new(1).snapshot().frames_per_step, 1);
        assert_eq!(RefaultLog::new(33).snapshot().frames_per_step, 2);
    }
}
