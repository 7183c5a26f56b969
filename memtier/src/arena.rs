//! The ground that evictor, fault handlers and trackers share: guest memory, its frame words, the userfaultfd over it, the scan clock.
//!
//! Promises: a Resident frame has its page in memory. Write-protection is only taken away by the owner of an Opening frame (or of a Filling
//! one, whose page nobody else can claim), so that an evictor's protection can't vanish under it. The reverse can happen: an evictor whose
//! claim was called off just before it protects leaves a protection behind, and the next write finds and lifts it. Must never: know about
//! tiers.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::ScanClock;
use crate::frame::{FrameTable, FrameWord, State};
use crate::memory::GuestMemory;
use crate::sys::mem;
use crate::sys::uffd::{Uffd, UffdError};
use crate::units::{FrameIndex, PAGE_SIZE};

/// See the module.
#[derive(Debug)]
pub struct Arena {
    /// Guest memory.
    pub memory: GuestMemory,
    /// A word per frame.
    pub frames: FrameTable,
    /// Registered over all of guest memory.
    pub uffd: Uffd,
    /// Labels for accesses.
    pub clock: ScanClock,
    missing: MissingChunks,
    /// Set once, at the end. Relaxed: it only makes long requests give up earlier; the gate in `control` is what orders the end.
    closing: AtomicBool,
}

impl Arena {
    /// Opens a userfaultfd and registers all of `memory` for write-protection (which also makes the kernel map single pages on a fault
    /// instead of a neighbourhood: exact tracking needs that). Locks what gets touched against the host's own reclaim, if this process may:
    /// which pages leave is decided here, and a page that the host unmaps looks as if nobody had used it. Nothing traps before a page
    /// leaves.
    pub fn new(memory: GuestMemory) -> Result<Self, UffdError> {
        let uffd = Uffd::open()?;
        for region in memory.regions() {
            mem::forbid_huge_pages(region.map, region.bytes()).map_err(UffdError::HugePages)?;
            uffd.register(region.map, region.bytes(), false)?;
            if let Err(error) = mem::lock_on_fault(region.map, region.bytes()) {
                tracing::warn!(%error, "guest memory can't be locked: the host's reclaim may unmap pages, which then look idle");
            }
        }
        let frames = FrameTable::new(memory.frames() as usize);
        let missing = MissingChunks::new(memory.frames());
        Ok(Self { memory, frames, uffd, clock: ScanClock::default(), missing, closing: AtomicBool::new(false) })
    }

    /// Notices first touches: untouched frames of the range that have memory become resident.
    pub fn refresh(&self, frames: Range<u32>) -> io::Result<()> {
        let now = self.clock.now();
        self.memory.for_each_present(frames, |run| {
            for frame in run.map(FrameIndex) {
                if self.frames.get(frame).state() == State::Untouched {
                    // A refusal means that it is no longer untouched, which is all this is for.
                    let untouched = |word: &FrameWord| word.state() == State::Untouched;
                    let _ = self.frames.update(frame, |word| Some(word).filter(untouched)?.seen(now));
                }
            }
        })
    }

    /// Makes the caller the owner of a frame in memory by `transition` (to Opening), takes its write-protection away, wakes who waits, and
    /// makes it Resident. `Err` is the word that refused.
    pub fn open(
        &self,
        frame: FrameIndex,
        transition: impl Fn(FrameWord) -> Option<FrameWord>,
    ) -> Result<(), FrameWord> {
        self.frames.update(frame, transition)?;
        let opened = self.uffd.unprotect(self.memory.hva(frame), PAGE_SIZE as u64);
        let (before, _) = self.frames.update(frame, FrameWord::opened)?;
        if let Err(error) = &opened {
            // The frame stays usable: the next write finds the protection and asks again.
            tracing::error!(%error, "taking write-protection away failed");
        }
        if opened.is_err() || before.is_waited_for() {
            self.wake(frame);
        }
        Ok(())
    }

    /// The last step of a frame's owner: moves it on and wakes who waited for that.
    ///
    /// # Panics
    /// If the caller does not own the frame.
    pub fn settle(&self, frame: FrameIndex, transition: impl Fn(FrameWord) -> Option<FrameWord>) {
        match self.frames.update(frame, transition) {
            Ok((before, _)) if before.is_waited_for() => self.wake(frame),
            Ok(_) => {}
            Err(word) => panic!("{frame} was taken from its owner, found {word:?}"),
        }
    }

    /// Long requests shall end at their next step.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Whether the end has come.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// From now on, missing pages of these frames are events.
    pub fn watch_missing(&self, frame: FrameIndex) -> Result<(), UffdError> {
        self.missing.watch(frame, &self.memory, &self.uffd)
    }

    /// Wakes who waits for a frame; they try again.
    pub fn wake(&self, frame: FrameIndex) {
        if let Err(error) = self.uffd.wake(self.memory.hva(frame), PAGE_SIZE as u64) {
            tracing::error!(%error, "waking a waiter failed");
        }
    }
}

/// Which chunks of guest memory are registered for missing faults: those where some page has left.
#[derive(Debug)]
struct MissingChunks {
    /// log2 of the frames in a chunk.
    shift: u32,
    watched: Box<[AtomicBool]>,
    /// Held while registering.
    gate: Mutex<()>,
}

/// Each watched chunk may split a mapping twice; with at most this many chunks a guest of any size stays under 8,192 mappings.
const MAX_CHUNKS: u32 = 2048;
/// 2 MiB: the smallest chunk.
const MIN_SHIFT: u32 = 9;

impl MissingChunks {
    fn new(frames: u32) -> Self {
        let shift = frames.div_ceil(MAX_CHUNKS).next_power_of_two().ilog2().max(MIN_SHIFT);
        let chunks = frames.div_ceil(1 << shift) as usize;
        Self { shift, watched: (0..chunks).map(|_| AtomicBool::new(false)).collect(), gate: Mutex::new(()) }
    }

    fn watch(&self, frame: FrameIndex, memory: &GuestMemory, uffd: &Uffd) -> Result<(), UffdError> {
        let chunk = frame.0 >> self.shift;
        let watched = &self.watched[chunk as usize];
        // Acquire: whoever reads true may punch, so the registration must have happened before.
        if watched.load(Ordering::Acquire) {
            return Ok(());
        }
        let _gate = self.gate.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = chunk << self.shift;
        let end = start.saturating_add(1 << self.shift).min(memory.frames());
        for (region, part) in memory.parts(start..end) {
            uffd.register(
                region.hva(FrameIndex(part.start)),
                u64::from(part.end - part.start) * PAGE_SIZE as u64,
                true,
            )?;
        }
        // Release: pairs with the load above.
        watched.store(true, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_stay_under_the_limit_for_any_guest_size() {
        for frames in [1, 512, 513, 1 << 20, (1 << 20) + 1, 1 << 28, u32::MAX] {
            let chunks = MissingChunks::new(frames);
            assert!(chunks.watched.len() <= MAX_CHUNKS as usize, "{frames} frames");
            assert!(chunks.shift >= MIN_SHIFT);
            assert!(chunks.watched.len() as u64 * (1_u64 << chunks.shift) >= u64::from(frames));
        }
    }
}
