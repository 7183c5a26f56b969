//! The ground that evictor, fault handlers and trackers share: guest memory, its frame words, the userfaultfd over it, the scan clock.
//!
//! Promises: a Resident or Clean frame has its page in memory. Write-protection is only taken away by the owner of an Opening frame (or of a Filling
//! one, whose page nobody else can claim), so that an evictor's protection can't vanish under it. The reverse can happen: an evictor whose
//! claim was called off just before it protects leaves a protection behind, and the next write finds and lifts it. Must never: know about
//! tiers.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::ScanClock;
use crate::counters::Gauge;
use crate::frame::{FrameTable, FrameWord, State};
use crate::memory::GuestMemory;
use crate::refault::RefaultLog;
use crate::status::HugePages;
use crate::sys::mem::{self, NoAccess};
use crate::sys::thp;
use crate::sys::uffd::{Uffd, UffdError};
use crate::units::{FrameIndex, FrameSize, PAGE_SIZE};

/// See the module.
#[derive(Debug)]
pub struct Arena {
    /// Guest memory.
    pub memory: GuestMemory,
    /// A word per frame.
    pub frames: FrameTable,
    /// Registered over all of guest memory.
    pub uffd: Uffd,
    /// Whether the host's own reclaim is kept away.
    pub locked: bool,
    /// Labels for accesses.
    pub clock: ScanClock,
    /// Frames that are Clean.
    pub kept: Gauge,
    /// Who left and came back.
    pub refaults: RefaultLog,
    missing: MissingChunks,
    /// Where no bytes are, for asking after huge pages.
    nowhere: Option<NoAccess>,
    /// Set once, at the end. Relaxed: it only makes long requests give up earlier; the gate in `control` is what orders the end.
    closing: AtomicBool,
}

impl Arena {
    /// Opens a userfaultfd and registers all of `memory` for write-protection (which also makes the kernel map single pages on a fault
    /// instead of a neighbourhood: exact tracking needs that). Locks what gets touched against the host's own reclaim, if this process may:
    /// which pages leave is decided here, and a page that the host unmaps looks as if nobody had used it. Nothing traps before a page
    /// leaves.
    pub fn new(memory: GuestMemory, huge_pages: HugePages) -> Result<Self, UffdError> {
        let size = memory.frame_size();
        let uffd = Uffd::open(size)?;
        let mut locked = true;
        for region in memory.regions() {
            if size == FrameSize::Huge {
                // No other huge pages are used there, and the host never takes these. Locking would even bring them all in at once.
                uffd.register(region.map, region.bytes(), false)?;
                continue;
            }
            let advise = match huge_pages {
                HugePages::Transparent if thp::are_made_on_touch() => thp::want,
                _ => mem::forbid_huge_pages,
            };
            advise(region.map, region.bytes()).map_err(UffdError::HugePages)?;
            uffd.register(region.map, region.bytes(), false)?;
            if let Err(error) = mem::lock_on_fault(region.map, region.bytes()) {
                locked = false;
                tracing::warn!(%error, "guest memory can't be locked: the host's reclaim may unmap pages, which then look idle");
            }
        }
        let frames = FrameTable::new(memory.frames() as usize);
        let missing = MissingChunks::new(memory.frames(), size);
        let nowhere = match size {
            FrameSize::Small => None,
            FrameSize::Huge => Some(NoAccess::new(size.pages() * PAGE_SIZE).map_err(UffdError::NoAddresses)?),
        };
        let (clock, kept, refaults) = (ScanClock::default(), Gauge::default(), RefaultLog::new(memory.frames()));
        Ok(Self {
            memory,
            frames,
            uffd,
            locked,
            clock,
            kept,
            refaults,
            missing,
            nowhere,
            closing: AtomicBool::new(false),
        })
    }

    /// Notices first touches: untouched frames of the range that have memory become resident.
    pub fn refresh(&self, frames: Range<u32>) -> io::Result<()> {
        self.memory.for_each_present(frames.clone(), |run| run.map(FrameIndex).for_each(|frame| self.found(frame)))?;
        match &self.nowhere {
            None => Ok(()),
            Some(nowhere) => self.refresh_unmapped(frames, nowhere),
        }
    }

    /// Notices huge pages that were touched for the first time and unmapped again by a tracker before anybody looked. Asking for one costs some
    /// 20 µs where there is none, so it is done only while a file holds more than is known of.
    fn refresh_unmapped(&self, frames: Range<u32>, nowhere: &NoAccess) -> io::Result<()> {
        let len = self.memory.frame_size().bytes();
        for (region, part) in self.memory.parts(frames) {
            let known = region.frames().filter(|frame| self.frames.get(FrameIndex(*frame)).is_in_memory()).count();
            let mut hidden = region.held()?.saturating_sub(known as u64);
            for frame in part.map(FrameIndex) {
                if hidden == 0 {
                    break;
                }
                let untouched = self.frames.get(frame).state() == State::Untouched;
                if untouched && self.uffd.holds(region.hva(frame), len, nowhere).map_err(io::Error::other)? {
                    self.found(frame);
                    hidden -= 1;
                }
            }
        }
        Ok(())
    }

    /// A frame has memory: if it is untouched, it is resident from now on.
    fn found(&self, frame: FrameIndex) {
        if self.frames.get(frame).state() == State::Untouched {
            let now = self.clock.now();
            // A refusal means that it is no longer untouched, which is all this is for.
            let untouched = |word: &FrameWord| word.state() == State::Untouched;
            let _ = self.frames.update(frame, |word| Some(word).filter(untouched)?.seen(now));
        }
    }

    /// Makes the caller the owner of a frame in memory by `transition` (to Opening), takes its write-protection away, wakes who waits, and
    /// makes it Resident. `Err` is the word that refused.
    pub fn open(
        &self,
        frame: FrameIndex,
        transition: impl Fn(FrameWord) -> Option<FrameWord>,
    ) -> Result<(), FrameWord> {
        self.frames.update(frame, transition)?;
        let opened = self.uffd.unprotect(self.memory.hva(frame), self.memory.frame_size().bytes());
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

    /// log2 of the frames that are registered for missing pages together: what huge pages are decided for in one.
    pub fn piece_shift(&self) -> u32 {
        self.missing.shift
    }

    /// Registers frames again after their registration was ended, for what they were registered for.
    pub fn register_again(&self, start: FrameIndex, count: u32) -> Result<(), UffdError> {
        let len = u64::from(count) << self.memory.frame_size().shift();
        self.uffd.register(self.memory.hva(start), len, self.missing.is_watched(start))
    }

    /// Wakes who waits for a frame; they try again.
    pub fn wake(&self, frame: FrameIndex) {
        if let Err(error) = self.uffd.wake(self.memory.hva(frame), self.memory.frame_size().bytes()) {
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
/// `log2` of the bytes in the smallest chunk, 2 MiB.
const MIN_BYTES_SHIFT: u32 = 21;

impl MissingChunks {
    fn new(frames: u32, size: FrameSize) -> Self {
        let least = MIN_BYTES_SHIFT - size.shift();
        let shift = frames.div_ceil(MAX_CHUNKS).next_power_of_two().ilog2().max(least);
        let chunks = frames.div_ceil(1 << shift) as usize;
        Self { shift, watched: (0..chunks).map(|_| AtomicBool::new(false)).collect(), gate: Mutex::new(()) }
    }

    fn is_watched(&self, frame: FrameIndex) -> bool {
        // Acquire: as in `watch`.
        self.watched[(frame.0 >> self.shift) as usize].load(Ordering::Acquire)
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
                u64::from(part.end - part.start) << memory.frame_size().shift(),
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
            for size in [FrameSize::Small, FrameSize::Huge] {
                let chunks = MissingChunks::new(frames, size);
                assert!(chunks.watched.len() <= MAX_CHUNKS as usize, "{frames} frames");
                assert!(chunks.shift + size.shift() >= MIN_BYTES_SHIFT);
                assert!(chunks.watched.len() as u64 * (1_u64 << chunks.shift) >= u64::from(frames));
            }
        }
    }
}
