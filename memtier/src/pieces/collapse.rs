//! Makes huge pages of a piece that is all in memory, and shows a piece's parts to the trackers for a while.
//!
//! A range that is registered for write-protection is not collapsed by the kernel, so the piece is unregistered meanwhile. Nothing of it is out
//! then and nothing can leave: the evictor waits, and what is in memory stays there.
//!
//! Promises: the registration is back when the call returns, whatever happened. Must never: touch a piece of which a page is out.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{HUGE_FRAMES, PieceError, Pieces, Shape};
use crate::sys::{mem, thp};
use crate::units::{FrameIndex, PAGE_SIZE};

const HUGE_BYTES: u64 = HUGE_FRAMES as u64 * PAGE_SIZE as u64;

impl Pieces {
    /// Collapses a piece. `forget` frees the slot that a frame has kept, since a whole piece keeps none.
    pub fn collapse(&self, piece: usize, forget: impl Fn(FrameIndex)) -> Result<(), PieceError> {
        let _alone = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        if !self.can_be_huge(piece) {
            return Err(PieceError::Busy);
        }
        self.frames(piece).map(FrameIndex).for_each(forget);
        if !self.frames(piece).all(|frame| self.arena.frames.get(FrameIndex(frame)).is_resident()) {
            return Err(PieceError::Out);
        }
        let mut refused = None;
        let mut collapsed = 0;
        for part in self.huge_parts(piece) {
            match self.collapse_part(FrameIndex(part.start)) {
                Ok(()) => collapsed += 1,
                Err(error) => refused = Some(error),
            }
        }
        if collapsed > 0 {
            self.set(piece, Shape::Whole);
            self.counters.collapses.fetch_add(1, Ordering::Relaxed);
        }
        match refused {
            None => Ok(()),
            Some(error) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn collapse_part(&self, start: FrameIndex) -> Result<(), PieceError> {
        let system = |call| move |source| PieceError::System { call, source };
        let hva = self.arena.memory.hva(start);
        thp::want(hva, HUGE_BYTES).map_err(system("madvise"))?;
        self.arena.uffd.unregister(hva, HUGE_BYTES)?;
        let collapsed = thp::collapse(hva, HUGE_BYTES).map_err(system("MADV_COLLAPSE"));
        // Without the registration a page that left would be a hole full of zeros to the guest: it has to be back.
        self.arena.register_again(start, HUGE_FRAMES)?;
        if collapsed.is_err() {
            mem::forbid_huge_pages(hva, HUGE_BYTES).map_err(system("madvise"))?;
        }
        collapsed
    }

    /// Lets trackers see the parts of a whole piece: its one entry becomes many. The page itself stays huge.
    pub(super) fn watch_parts(&self, piece: usize) -> Result<(), PieceError> {
        let _alone = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        if self.shape_of(piece) != Shape::Whole {
            return Err(PieceError::Busy);
        }
        for part in self.huge_parts(piece) {
            // Protecting one page makes the kernel break the entry up, and it stays so when the protection is gone.
            let hva = self.arena.memory.hva(FrameIndex(part.start));
            self.arena.uffd.protect(hva, PAGE_SIZE as u64)?;
            self.arena.uffd.unprotect(hva, PAGE_SIZE as u64)?;
        }
        self.set(piece, Shape::Watched);
        Ok(())
    }

    /// Enough of its parts' looks: the piece is whole again, by one entry if the kernel can.
    pub(super) fn unwatch(&self, piece: usize) {
        {
            let _alone = self.shape.write().unwrap_or_else(PoisonError::into_inner);
            self.set(piece, Shape::Whole);
        }
        // Its pages are huge already, so this only mends the mapping; without it the piece is merely slower.
        if let Err(error) = self.collapse(piece, |_| ()) {
            tracing::debug!(piece, %error, "piece keeps its small entries");
        }
    }
}
