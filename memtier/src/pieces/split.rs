//! Splits a piece without asking the kernel to split anything: its bytes are copied aside, its memory is given back as a whole, and 4 KiB
//! pages with the same bytes take its place.
//!
//! Promises: from the moment the first byte is copied until the new pages are there, nobody writes to the old ones: every frame is Leaving, so
//! a fault waits; that takes as long as copying 2 MiB twice. Whatever fails before the memory is given back leaves the piece as it was; after
//! that there is no giving up, only trying again. Must never: leave a hole where bytes were.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{HUGE_FRAMES, PieceError, Pieces, Shape};
use crate::abort::AbortOnPanic;
use crate::fault::fill::Waits;
use crate::frame::word::{FrameWord, State};
use crate::page::Page;
use crate::sys::{mem, thp};
use crate::units::{FrameIndex, PAGE_SIZE};

/// Bytes of a huge page.
const HUGE_BYTES: u64 = HUGE_FRAMES as u64 * PAGE_SIZE as u64;
/// How often a frame that is just being opened is looked at again.
const TRIES: u32 = 200;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Not ours.
    Apart,
    /// It was touched before.
    Used,
    /// Nobody was seen touching it, but the huge page has memory for it.
    Untouched,
}

impl Pieces {
    /// Makes sure that the piece of a frame is split. It is not called on the fault path, and waits for batches of the evictor.
    pub fn split(&self, frame: FrameIndex) -> Result<(), PieceError> {
        let piece = self.piece(frame);
        let _alone = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        if self.shape_of(piece) == Shape::Split {
            return Ok(());
        }
        let split = self.split_all(piece);
        match &split {
            Ok(()) => {
                self.set(piece, Shape::Split);
                self.counters.splits.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(piece, %error, "piece stays whole");
            }
        }
        split
    }

    fn split_all(&self, piece: usize) -> Result<(), PieceError> {
        let system = |call| move |source| PieceError::System { call, source };
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        for part in self.huge_parts(piece) {
            let start = FrameIndex(part.start);
            let hva = self.arena.memory.hva(start);
            // What comes back must be small.
            mem::forbid_huge_pages(hva, HUGE_BYTES).map_err(system("madvise"))?;
            self.arena.watch_missing(start)?;
            if let Err(error) = self.remake(start, &mut buffer) {
                // Best effort: without it the piece just gets no new huge pages.
                let _ = thp::want(hva, HUGE_BYTES);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Remakes the memory of 512 frames from `start` on.
    fn remake(&self, start: FrameIndex, buffer: &mut [Page]) -> Result<(), PieceError> {
        // From the first frame taken on, faults depend on this thread.
        let _guard = AbortOnPanic;
        let hva = self.arena.memory.hva(start);
        let mut kinds = [Kind::Apart; HUGE_FRAMES as usize];
        let taken = self.withdraw(start, &mut kinds).and_then(|()| {
            self.arena.uffd.protect(hva, HUGE_BYTES)?;
            let read = self.arena.memory.read(start, buffer);
            read.map_err(|source| PieceError::System { call: "reading", source })?;
            let punched = self.arena.memory.punch(start, HUGE_FRAMES);
            punched.map_err(|source| PieceError::System { call: "punching", source })
        });
        if let Err(error) = taken {
            // All of it is still there, perhaps protected.
            if let Err(error) = self.arena.uffd.unprotect(hva, HUGE_BYTES) {
                tracing::error!(%error, "taking write-protection away failed");
            }
            let step = |index: usize| match kinds[index] {
                Kind::Untouched => FrameWord::untaken,
                Kind::Used | Kind::Apart => FrameWord::returned,
            };
            self.settle(start, &kinds, step);
            return Err(error);
        }
        let is_empty = |index: usize| kinds[index] == Kind::Untouched && buffer[index].iter().all(|byte| *byte == 0);
        for (index, page) in buffer.iter().enumerate().filter(|(index, _)| kinds[*index] != Kind::Apart) {
            if !is_empty(index) {
                self.put_back(frame_at(start, index), page);
            }
        }
        self.settle(start, &kinds, |index| if is_empty(index) { FrameWord::left } else { FrameWord::returned });
        Ok(())
    }

    /// Takes all frames out of everybody else's hands, or none.
    fn withdraw(&self, start: FrameIndex, kinds: &mut [Kind]) -> Result<(), PieceError> {
        for (index, kind) in kinds.iter_mut().enumerate() {
            let mut waits = Waits::default();
            let mut tries = 0;
            *kind = loop {
                match self.arena.frames.update(frame_at(start, index), FrameWord::withdraw) {
                    Ok((before, _)) if before.state() == State::Untouched => break Kind::Untouched,
                    Ok(_) => break Kind::Used,
                    Err(word) if word.state() == State::Opening && tries < TRIES => {
                        tries += 1;
                        waits.once();
                    }
                    Err(_) => return Err(PieceError::Busy),
                }
            };
        }
        Ok(())
    }

    fn put_back(&self, frame: FrameIndex, page: &Page) {
        let mut told = false;
        while let Err(error) = self.arena.uffd.copy(self.arena.memory.hva(frame), std::slice::from_ref(page)) {
            if !told {
                tracing::error!(%error, "a page can't be put back yet, its guest waits");
                told = true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn settle(&self, start: FrameIndex, kinds: &[Kind], step: impl Fn(usize) -> fn(FrameWord) -> Option<FrameWord>) {
        for (index, _) in kinds.iter().enumerate().filter(|(_, kind)| **kind != Kind::Apart) {
            self.arena.settle(frame_at(start, index), step(index));
        }
    }
}

fn frame_at(start: FrameIndex, index: usize) -> FrameIndex {
    FrameIndex(start.0 + u32::try_from(index).expect("below 512"))
}
