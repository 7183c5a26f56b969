//! The table of frame words: transitions applied atomically.
//!
//! Promises: a transition is applied to the very word it was computed from, or not at all; the result says which. Must never: block or
//! allocate after it was made.

use crate::frame::word::{FrameWord, State};
use crate::sync::{AtomicU64, Ordering};
use crate::units::FrameIndex;

// Orderings: whoever moves a frame on has finished with its memory and its slot (bytes copied, store acknowledged, hole punched), and the
// next owner must see all of that. So every successful exchange releases what came before it and acquires what the previous owner did.
// Plain loads acquire, because a decision may rest on them (is the page poisoned, what entry holds it).
const EXCHANGE: Ordering = Ordering::AcqRel;
const LOAD: Ordering = Ordering::Acquire;

/// One word per frame of guest memory.
#[derive(Debug)]
pub struct FrameTable {
    words: Box<[AtomicU64]>,
}

impl FrameTable {
    /// A table of `frames` untouched frames. Memory is taken from the system only as words are written.
    #[cfg(not(loom))]
    pub fn new(frames: usize) -> Self {
        let zeroed: Box<[u64]> = vec![0_u64; frames].into_boxed_slice();
        // SAFETY: AtomicU64 has the size, alignment and bit validity of u64 (its documentation says so), and the box is ours alone.
        let words = unsafe { Box::from_raw(Box::into_raw(zeroed) as *mut [AtomicU64]) };
        Self { words }
    }

    /// A table of `frames` untouched frames.
    #[cfg(loom)]
    pub fn new(frames: usize) -> Self {
        Self { words: (0..frames).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// A frame's word now.
    pub fn get(&self, frame: FrameIndex) -> FrameWord {
        FrameWord::from_bits(self.words[frame.get()].load(LOAD))
    }

    /// Applies a transition. Tries again as long as the word changes under it; `Ok` is (before, after), `Err` the word that refuses it.
    pub fn update(
        &self,
        frame: FrameIndex,
        transition: impl Fn(FrameWord) -> Option<FrameWord>,
    ) -> Result<(FrameWord, FrameWord), FrameWord> {
        let word = &self.words[frame.get()];
        let mut before = FrameWord::from_bits(word.load(LOAD));
        loop {
            let after = transition(before).ok_or(before)?;
            match word.compare_exchange_weak(before.to_bits(), after.to_bits(), EXCHANGE, LOAD) {
                Ok(_) => return Ok((before, after)),
                Err(now) => before = FrameWord::from_bits(now),
            }
        }
    }

    /// Frames by state at one walk through the table; each frame counts exactly once.
    pub fn count(&self) -> Counts {
        let mut counts = Counts::default();
        for word in &self.words {
            let word = FrameWord::from_bits(word.load(LOAD));
            counts.by_state[word.state() as usize] += 1;
            counts.locked += u64::from(word.is_locked());
            counts.pinned += u64::from(word.pins() > 0);
        }
        counts
    }
}

/// What [`FrameTable::count`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    by_state: [u64; State::ALL.len()],
    /// Locked frames, in whatever state.
    pub locked: u64,
    /// Frames with at least one pin.
    pub pinned: u64,
}

impl Counts {
    /// Frames in one state.
    pub fn of(&self, state: State) -> u64 {
        self.by_state[state as usize]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::frame::word::{Generation, Ticket};

    #[test]
    fn a_refused_transition_changes_nothing_and_tells_the_word() {
        let table = FrameTable::new(2);
        let refused = table.update(FrameIndex(1), |word| word.claim(Ticket::new(1)));
        assert_eq!(refused, Err(FrameWord::UNTOUCHED));
        table.update(FrameIndex(1), |word| word.seen(Generation(0))).unwrap();
        let counts = table.count();
        assert_eq!((counts.of(State::Untouched), counts.of(State::Resident)), (1, 1));
    }
}
