//! Ranges that a client wants in memory, always.
//!
//! Promises: all of a request's ranges are locked or none; a locked page is in memory (or was never touched) and does not leave. Must never:
//! leave a mark on a frame that the list does not show.

use std::ops::Range;

use crate::control::{ControlError, Memtier, lock};
use crate::fault::fill::Unreadable;
use crate::frame::word::State;
use crate::ranges::{RangeSet, frames_of};
use crate::status::GuestRange;
use crate::units::{FrameIndex, Shard};

/// A piece of a range inside one region: as frame numbers and as indices.
struct Piece {
    gfns: Range<u64>,
    frames: Range<u32>,
}

impl Memtier {
    /// Locks ranges: brings their pages back, and keeps them in memory. All or none.
    pub fn lock(&self, ranges: &[GuestRange]) -> Result<(), ControlError> {
        let _open = self.enter()?;
        let pieces = self.pieces(ranges)?;
        let mut locks = lock(&self.locks);
        let before = locks.clone();
        pieces.iter().for_each(|piece| locks.insert(piece.gfns.clone()));
        self.mark(&locks, &pieces);
        // Marked first: what is brought back must not be claimed again.
        self.bring_all_back(&pieces).inspect_err(|_| {
            self.mark(&before, &pieces);
            *locks = before;
        })
    }

    fn bring_all_back(&self, pieces: &[Piece]) -> Result<(), ControlError> {
        let mut buffer = self.arena.memory.frame_buffer();
        for frame in pieces.iter().flat_map(|piece| piece.frames.clone()).map(FrameIndex) {
            // Untouched memory has nothing that could leave.
            if self.arena.frames.get(frame).state() != State::Untouched {
                self.filler.bring_back(frame, Shard(0), &mut buffer, Unreadable::Leave).map_err(ControlError::Lock)?;
            }
        }
        Ok(())
    }

    /// Unlocks ranges, locked or not.
    pub fn unlock(&self, ranges: &[GuestRange]) -> Result<(), ControlError> {
        let pieces = self.pieces(ranges)?;
        let mut locks = lock(&self.locks);
        pieces.iter().for_each(|piece| locks.remove(piece.gfns.clone()));
        self.mark(&locks, &pieces);
        Ok(())
    }

    /// The locked ranges.
    pub fn locks(&self) -> Vec<GuestRange> {
        lock(&self.locks).to_guest_ranges()
    }

    /// Marks the frames of these pieces as the set says.
    fn mark(&self, locks: &RangeSet, pieces: &[Piece]) {
        for frame in pieces.iter().flat_map(|piece| piece.frames.clone()).map(FrameIndex) {
            let on = locks.contains(self.arena.memory.gfn(frame).0);
            self.arena.frames.update(frame, |word| word.lock(on)).expect("every word takes the mark");
        }
    }

    /// The pieces of ranges that must be all guest memory.
    fn pieces(&self, ranges: &[GuestRange]) -> Result<Vec<Piece>, ControlError> {
        let mut pieces = Vec::new();
        for range in ranges {
            let (parts, outside) = self.arena.memory.indices(frames_of(range, self.arena.memory.frame_size())?);
            if outside > 0 {
                return Err(ControlError::NotMemory { start: range.start, len: range.len });
            }
            pieces.extend(parts.into_iter().map(|frames| {
                let memory = &self.arena.memory;
                let last = FrameIndex(frames.end - 1);
                Piece { gfns: memory.gfn(FrameIndex(frames.start)).0..memory.gfns(last).end, frames }
            }));
        }
        Ok(pieces)
    }
}
