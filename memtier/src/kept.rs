//! Slots that pages in memory still have ([`State::Clean`]): kept so that a page which nobody has written to can leave again with no I/O,
//! given up when anybody needs the slot or is about to change the page.
//!
//! Promises: a slot is freed once, by whoever took its entry out of the frame's word. Must never: change where a page is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::arena::Arena;
use crate::frame::word::{FrameWord, State};
use crate::tier::Tier;
use crate::units::{FrameIndex, Shard};

/// See the module.
#[derive(Debug)]
pub struct KeptSlots {
    arena: Arc<Arena>,
    tier: Arc<dyn Tier>,
    /// Where the next search begins. Relaxed: any place will do.
    next: AtomicU32,
}

impl KeptSlots {
    /// The kept slots of `arena`'s frames in `tier`.
    pub fn new(arena: Arc<Arena>, tier: Arc<dyn Tier>) -> Self {
        Self { arena, tier, next: AtomicU32::new(0) }
    }

    /// Gives up the slot that a frame has kept, if it has: Clean → Resident. The slot goes to `shard`'s cache.
    pub fn forget(&self, frame: FrameIndex, shard: Shard) -> bool {
        let Ok((before, _)) = self.arena.frames.update(frame, FrameWord::forget_slot) else { return false };
        self.arena.kept.down();
        if let Some(entry) = before.entry() {
            self.tier.invalidate(shard, entry);
        }
        true
    }

    /// Gives up slots until `want` are free, or all are; answers how many. Goes on where the last search ended, at most once round, so that a
    /// tier that stays full is not searched from the start for every batch.
    pub fn give_up(&self, want: usize, shard: Shard) -> usize {
        let frames = self.arena.memory.frames();
        let mut frame = self.next.load(Ordering::Relaxed);
        let mut given = 0;
        for _ in 0..frames {
            if given == want || self.arena.kept.get() == 0 {
                break;
            }
            frame = if frame < frames { frame } else { 0 };
            if self.arena.frames.get(FrameIndex(frame)).state() == State::Clean {
                given += usize::from(self.forget(FrameIndex(frame), shard));
            }
            frame += 1;
        }
        self.next.store(frame, Ordering::Relaxed);
        given
    }
}
