//! Pins: frames that must stay in memory while a device or the kernel works on them by address.
//!
//! Promises (`docs/architecture.md`, rule 4): a pinned frame is in memory and is not claimed for eviction until its last pin is gone. Direct
//! I/O holds references that write-protection does not see; only the pin keeps its page. Must never: pin a part of what was asked for.

use std::ops::Range;
use std::sync::Arc;

use crate::arena::Arena;
use crate::fault::fill::{FillError, Filler, Unreadable};
use crate::frame::word::{FrameWord, State};
use crate::page::PageSlab;
use crate::units::{FrameIndex, Gfn, Shard};

/// Why frames could not be pinned. None of them is.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Part of the range is not guest memory.
    #[error("guest range {start:#x}+{len:#x} is not all guest memory")]
    NotMemory {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A page of it is poisoned, or was found unreadable now.
    #[error("page {0} of the range is lost")]
    Lost(Gfn),
    /// A page of it has more pins than a frame word can count.
    #[error("page {0} has too many pins")]
    TooMany(Gfn),
    /// A page of it could not be brought back now.
    #[error("page can't be brought back for a pin")]
    Fill(#[from] FillError),
}

/// Frames that stay until this drops.
#[derive(Debug)]
pub struct PinGuard {
    arena: Arc<Arena>,
    frames: Vec<Range<u32>>,
    /// How many of them, in order, are pinned.
    pinned: u64,
}

impl PinGuard {
    /// Pins the frames that hold `len` bytes (at least one) from guest physical address `start` on, bringing back those that are out.
    pub(crate) fn new(arena: &Arc<Arena>, filler: &Filler, start: u64, len: u64) -> Result<Self, PinError> {
        let not_memory = || PinError::NotMemory { start, len };
        let last = start.checked_add(len.max(1) - 1).ok_or_else(not_memory)?;
        let (frames, outside) = arena.memory.indices(Gfn::containing(start).0..Gfn::containing(last).0 + 1);
        if outside != 0 {
            return Err(not_memory());
        }
        // From here on, dropping the guard takes back what was pinned so far.
        let mut guard = Self { arena: Arc::clone(arena), frames, pinned: 0 };
        let mut buffer = None;
        for part in 0..guard.frames.len() {
            for frame in guard.frames[part].clone().map(FrameIndex) {
                guard.pin(frame, filler, &mut buffer)?;
                guard.pinned += 1;
            }
        }
        Ok(guard)
    }

    fn pin(&self, frame: FrameIndex, filler: &Filler, buffer: &mut Option<PageSlab>) -> Result<(), PinError> {
        loop {
            let Err(word) = self.arena.frames.update(frame, FrameWord::pin) else { return Ok(()) };
            match word.state() {
                State::Resident => return Err(PinError::TooMany(self.arena.memory.gfn(frame))),
                State::Poisoned => return Err(PinError::Lost(self.arena.memory.gfn(frame))),
                _ => {
                    let pages = buffer.get_or_insert_with(|| self.arena.memory.frame_buffer());
                    match filler.bring_back(frame, Shard(0), pages, Unreadable::Poison) {
                        Ok(_) => {}
                        Err(FillError::NotOut(_) | FillError::Unreadable { .. }) => {
                            return Err(PinError::Lost(self.arena.memory.gfn(frame)));
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    }
}

impl Drop for PinGuard {
    fn drop(&mut self) {
        let pinned = usize::try_from(self.pinned).unwrap_or(usize::MAX);
        for frame in self.frames.iter().cloned().flatten().take(pinned).map(FrameIndex) {
            if let Err(word) = self.arena.frames.update(frame, FrameWord::unpin) {
                unreachable!("{frame} is pinned by us, found {word:?}");
            }
        }
    }
}
