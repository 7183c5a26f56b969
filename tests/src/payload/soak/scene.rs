//! What the threads of a soak share: the guest, its tiers, and when to end.
//!
//! Promises: the first failure ends everybody, and is the one that is told. Must never: lose a failure because another thread was faster to
//! finish.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use memtier::Memtier;
use memtier::status::{AreaSpec, GuestRange};

use super::SoakError;
use super::layout::Layout;
use super::tally::Tally;
use crate::payload::PayloadVm;
use crate::payload::abi::PAGE;
use crate::payload::rng::Rng;

/// The stage on which a soak's threads act.
pub(super) struct Scene<'a> {
    pub(super) vm: &'a PayloadVm,
    pub(super) memtier: &'a Arc<Memtier>,
    pub(super) layout: Layout,
    /// The two swap areas that are switched on and off.
    pub(super) areas: [AreaSpec; 2],
    pub(super) tally: Tally,
    pub(super) end: End,
    seed: u64,
}

impl<'a> Scene<'a> {
    pub(super) fn new(vm: &'a PayloadVm, layout: Layout, areas: [AreaSpec; 2], seed: u64) -> Self {
        Self { vm, memtier: vm.memtier(), layout, areas, tally: Tally::default(), end: End::default(), seed }
    }

    /// Repeats a step until the soak is over; a failure ends it.
    pub(super) fn repeat(&self, salt: u64, mut step: impl FnMut(&mut Rng) -> Result<(), SoakError>) {
        let mut rng = Rng::new(self.seed ^ salt << 32);
        while !self.end.is_over() {
            if let Err(error) = step(&mut rng) {
                self.end.fail(error);
            }
        }
    }
}

/// A random part of `range`, of at most `most` pages.
pub(super) fn part_of(range: GuestRange, most: u64, rng: &mut Rng) -> GuestRange {
    let pages = range.len / PAGE;
    let count = 1 + rng.below(most.min(pages));
    let first = rng.below(pages - count + 1);
    GuestRange { start: range.start + first * PAGE, len: count * PAGE }
}

/// Whether and why the soak is over.
#[derive(Debug, Default)]
pub(super) struct End {
    over: AtomicBool,
    failure: Mutex<Option<SoakError>>,
    changed: Condvar,
}

impl End {
    /// Whether everybody should end.
    pub(super) fn is_over(&self) -> bool {
        // Relaxed: nothing is read on the strength of it; the failure itself is behind the lock.
        self.over.load(Ordering::Relaxed)
    }

    /// Ends the soak.
    pub(super) fn finish(&self) {
        let _guard = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        self.over.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Ends the soak because of a failure; only the first one counts.
    pub(super) fn fail(&self, error: SoakError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.finish();
    }

    /// Lets time pass between two steps, or less if the soak ends.
    pub(super) fn pass(&self, time: Duration) {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(failure, time, |_| !self.is_over()));
    }

    /// Why the soak failed, if it did.
    pub(super) fn failure(&self) -> Option<SoakError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
