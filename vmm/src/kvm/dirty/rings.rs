//! The dirty log from a ring for each vCPU: KVM tells page by page what was written, and by whom.
//!
//! KVM reports a page once and lets it be written freely until the entry is reset; then the page is protected, and its next write is a new
//! entry. Entries are kept as bits here, because reading the log must not clear it. A page that is cleared is protected before this answers:
//! its entry, if it has one, is harvested and reset first.
//!
//! ```text
//!  entry in a ring ──harvest──▶ bit set, entry still taken ──reset──▶ bit set, page protected ──clear──▶ no bit, page protected
//! ```
//!
//! Promises: a ring that is full is emptied by its own vCPU's thread, and no entry is lost by it. Must never: wait for a vCPU while the lock
//! is held, since that vCPU may want to empty its ring.
//!
//! Locks: one, over rings and bits; KVM's own locks under it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use memtier::DirtyLog;

use super::LeaveGuest;
use super::calls::{WORD_PAGES, reset_dirty_rings, words};
use super::ring::Ring;
use super::slots::{Slots, off};

/// See the module.
pub struct RingLog {
    slots: Slots,
    leave_guest: LeaveGuest,
    /// Times that a vCPU found its ring full. Relaxed: a number for people.
    full: AtomicU64,
    state: Mutex<State>,
}

struct State {
    rings: Vec<Ring>,
    /// Pages that each vCPU was first to write.
    by_vcpu: Vec<u64>,
    /// What was written, for each slot; nothing while the log is off.
    written: Option<Vec<Vec<u64>>>,
}

impl RingLog {
    /// A log that is off, with one ring for each vCPU in order. `leave_guest` gets every vCPU out of the guest once.
    pub fn new(slots: Slots, rings: Vec<Ring>, leave_guest: LeaveGuest) -> Self {
        let by_vcpu = vec![0; rings.len()];
        let state = Mutex::new(State { rings, by_vcpu, written: None });
        Self { slots, leave_guest, full: AtomicU64::new(0), state }
    }

    /// Makes room in full rings: called by a vCPU's thread that KVM does not let into the guest before.
    pub fn make_room(&self) -> io::Result<()> {
        self.full.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.harvest();
        reset_dirty_rings(self.slots.vm())
    }

    /// How often a vCPU had to wait until there was room in its ring.
    pub fn times_full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // An entry is kept before it is handed back, so that nothing is lost wherever a panic happens.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Turns entries into bits. While the log is off there are none but those of the past, which are dropped.
    fn harvest(&mut self) {
        let Self { rings, by_vcpu, written } = self;
        for (ring, first_by) in rings.iter_mut().zip(by_vcpu) {
            ring.harvest(|slot, page| {
                if let Some(written) = written
                    && mark(written, slot, page)
                {
                    *first_by += 1;
                }
            });
        }
    }
}

/// Sets a page's bit; whether it was not set before. What is no page of guest memory is left out.
fn mark(written: &mut [Vec<u64>], slot: u32, page: u64) -> bool {
    let slot = usize::try_from(slot).ok().and_then(|slot| written.get_mut(slot));
    let word = usize::try_from(page / WORD_PAGES).ok();
    let Some(word) = slot.zip(word).and_then(|(slot, word)| slot.get_mut(word)) else { return false };
    let bit = 1 << (page % WORD_PAGES);
    let is_new = *word & bit == 0;
    *word |= bit;
    is_new
}

/// A bitmap with all of `pages` bits set, and no other.
fn all_set(pages: u64) -> Vec<u64> {
    let mut bits = vec![u64::MAX; words(pages)];
    if let Some(last) = bits.last_mut()
        && !pages.is_multiple_of(WORD_PAGES)
    {
        *last = (1 << (pages % WORD_PAGES)) - 1;
    }
    bits
}

impl fmt::Debug for RingLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingLog").field("slots", &self.slots.pages()).field("full", &self.full).finish_non_exhaustive()
    }
}

impl DirtyLog for RingLog {
    fn start(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.written.is_none() {
            // KVM protects every page now, and tells each one's first write from now on.
            self.slots.start()?;
            state.written = Some(self.slots.pages().iter().map(|pages| all_set(*pages)).collect());
        }
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.written.take().is_none() {
            return Ok(());
        }
        // With the slots' flags gone KVM adds no entry any more; those that are left would stop vCPUs some day.
        self.slots.stop()?;
        state.harvest();
        reset_dirty_rings(self.slots.vm())
    }

    fn written(&self, region: usize, bits: &mut [u64]) -> io::Result<()> {
        let slot = self.slots.region(region)?;
        slot.check_whole(bits.len())?;
        // What a processor with a page modification log still keeps to itself reaches the rings when it leaves the guest.
        (self.leave_guest)();
        let mut state = self.state();
        state.harvest();
        let known = state.written.as_ref().and_then(|written| written.get(region)).ok_or_else(off)?;
        for (bits, known) in bits.iter_mut().zip(known) {
            *bits |= known;
        }
        slot.writes.add_to(bits);
        Ok(())
    }

    fn clear(&self, region: usize, first: u64, bits: &[u64]) -> io::Result<()> {
        let slot = self.slots.region(region)?;
        let word = slot.check_part(first, bits.len())?;
        let mut state = self.state();
        state.harvest();
        let known = state.written.as_mut().and_then(|written| written.get_mut(region)).ok_or_else(off)?;
        let part = &mut known[word..word + bits.len()];
        // A page without a bit has no entry either, so it is protected already.
        if part.iter().zip(bits).any(|(known, clear)| known & clear != 0) {
            reset_dirty_rings(self.slots.vm())?;
        }
        part.iter_mut().zip(bits).for_each(|(known, clear)| *known &= !clear);
        slot.writes.clear(word, bits);
        Ok(())
    }

    fn written_by_vcpu(&self) -> Vec<u64> {
        self.state().by_vcpu.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_for_pages_that_there_are_and_new_only_once() {
        let mut written = vec![vec![0; 2], vec![0; 1]];
        assert!(mark(&mut written, 0, 65) && !mark(&mut written, 0, 65) && mark(&mut written, 1, 0));
        // Beyond the slot, no such slot, and a slot of the address space for system management.
        for (slot, page) in [(1, 64), (2, 0), (1 << 16, 0), (0, u64::MAX)] {
            assert!(!mark(&mut written, slot, page));
        }
        assert_eq!(written, [vec![0, 2], vec![1]]);
    }

    #[test]
    fn at_first_every_page_counts_as_written_and_nothing_behind_the_last() {
        assert_eq!(all_set(64), [u64::MAX]);
        assert_eq!(all_set(66), [u64::MAX, 3]);
    }
}
