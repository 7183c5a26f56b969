//! Counts of what a soak did.

use std::sync::{Mutex, PoisonError};

use memtier::status::Outcomes;

/// What was done to the guest's memory from outside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Pages by outcome, over all evictions.
    pub outcomes: Outcomes,
    /// Pages by outcome, over evictions of the pages that the kernel reads into.
    pub direct_io_outcomes: Outcomes,
    /// Reclaims.
    pub reclaims: u64,
    /// Scans, and reads and writes of the idle bitmap.
    pub scans: u64,
    /// Areas switched on or off.
    pub area_switches: u64,
    /// Ranges locked.
    pub locks: u64,
    /// Ranges pinned.
    pub pins: u64,
    /// Times that the guest was paused.
    pub pauses: u64,
    /// Direct reads into guest memory.
    pub direct_reads: u64,
    /// Samples of the status that added up.
    pub samples: u64,
}

/// Totals that many threads add to.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Totals>);

impl Tally {
    /// Counts something.
    pub(super) fn count(&self, change: impl FnOnce(&mut Totals)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The counts so far.
    pub(super) fn totals(&self) -> Totals {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
