//! The dirty log as a bitmap for each memory slot, which KVM keeps (`Documentation/virt/kvm/api.rst`, `KVM_GET_DIRTY_LOG`).
//!
//! Protection is manual: reading clears nothing and protects nothing, clearing does both, and only for the pages it names. At the start all
//! bits are set and no page is protected, so that starting takes no time however large the guest is.
//!
//! Promises: one call of KVM's clears at most [`CLEAR_PAGES`] pages, since KVM holds the lock that faulting vCPUs need for as long as that
//! takes. Must never: clear a page that it was not told to.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memtier::DirtyLog;

use super::LeaveGuest;
use super::calls::{WORD_PAGES, clear_dirty_log, get_dirty_log};
use super::slots::{Slots, off};

/// The most pages that one call clears.
const CLEAR_PAGES: u32 = 2048;

/// See the module.
pub struct BitmapLog {
    slots: Slots,
    leave_guest: LeaveGuest,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    on: bool,
    /// Where KVM puts a slot's bitmap; kept from one call to the next, because guests can be large.
    scratch: Vec<u64>,
}

impl BitmapLog {
    /// A log that is off. `leave_guest` gets every vCPU out of the guest once.
    pub fn new(slots: Slots, leave_guest: LeaveGuest) -> Self {
        Self { slots, leave_guest, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whether it is on is right at every point where a panic is possible.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_on(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.on { Ok(state) } else { Err(off()) }
    }
}

impl fmt::Debug for BitmapLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BitmapLog").field("slots", &self.slots.pages()).finish_non_exhaustive()
    }
}

impl DirtyLog for BitmapLog {
    fn start(&self) -> io::Result<()> {
        let mut state = self.state();
        if !state.on {
            self.slots.start()?;
            state.on = true;
        }
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.on {
            *state = State::default();
            self.slots.stop()?;
        }
        Ok(())
    }

    fn written(&self, region: usize, bits: &mut [u64]) -> io::Result<()> {
        let slot = self.slots.region(region)?;
        slot.check_whole(bits.len())?;
        // A processor with a page modification log keeps up to 512 writes to itself until it leaves the guest. KVM's call asks vCPUs to leave
        // but does not wait for them.
        (self.leave_guest)();
        let mut state = self.state_on()?;
        state.scratch.resize(bits.len(), 0);
        get_dirty_log(self.slots.vm(), slot.number, slot.pages, &mut state.scratch)?;
        for (bits, read) in bits.iter_mut().zip(&state.scratch) {
            *bits |= read;
        }
        slot.writes.add_to(bits);
        Ok(())
    }

    fn clear(&self, region: usize, first: u64, bits: &[u64]) -> io::Result<()> {
        let slot = self.slots.region(region)?;
        let word = slot.check_part(first, bits.len())?;
        let _state = self.state_on()?;
        slot.writes.clear(word, bits);
        for piece in pieces(bits, CLEAR_PAGES) {
            let from = first + piece.start as u64 * WORD_PAGES;
            let pages = (piece.len() as u64 * WORD_PAGES).min(slot.pages - from);
            let pages = u32::try_from(pages).map_err(io::Error::other)?;
            clear_dirty_log(self.slots.vm(), slot.number, from, pages, &bits[piece])?;
        }
        Ok(())
    }
}

/// Runs of words that hold all set bits, each with at most `most` of them (but at least one word), none beginning or ending with an empty
/// word. Empty words within a run cost next to nothing.
fn pieces(bits: &[u64], most: u32) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + bits[at..].iter().position(|word| *word != 0)?;
        let (mut end, mut set) = (start, 0);
        for (index, word) in bits.iter().enumerate().skip(start).filter(|(_, word)| **word != 0) {
            set += word.count_ones();
            if end > start && set > most {
                break;
            }
            end = index + 1;
        }
        at = end;
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_every_bit_once_and_not_too_many() {
        let collect = |bits: &[u64], most| pieces(bits, most).collect::<Vec<_>>();
        assert!(collect(&[], 8).is_empty() && collect(&[0, 0], 8).is_empty());
        assert_eq!(collect(&[0, 1, 0, 0, 3, 0], 8), vec![1..5; 1]);
        assert_eq!(collect(&[1, 3, 0, 1, 1, 0], 3), [0..2, 3..5]);
        assert_eq!(collect(&[u64::MAX, u64::MAX, 1], 64), [0..1, 1..2, 2..3]);
        assert_eq!(collect(&[u64::MAX, 1, 1], 1), [0..1, 1..2, 2..3]);
    }
}
