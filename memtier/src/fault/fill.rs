//! Brings one frame back from wherever it is.
//!
//! Promises: the caller that moved the frame to Filling owns it until it is Resident, back where it was, or Poisoned; whoever waits for that
//! is woken after it. A slot is freed only after its page is in memory, or kept for a page that may leave again unchanged. Must never:
//! install bytes that the tier did not vouch for.

use std::sync::Arc;

use crate::arena::Arena;
use crate::counters::EventCounters;
use crate::frame::word::{EvictionStamp, FrameWord, State};
use crate::kept::KeptSlots;
use crate::page::{Page, PageSlab};
use crate::sys::uffd::{Filled, UffdError};
use crate::tier::{LoadError, Tier};
use crate::units::{FrameIndex, FrameSize, Gfn, PAGE_SIZE, Shard, SwapEntry};

/// See the module.
#[derive(Debug)]
pub struct Filler {
    arena: Arc<Arena>,
    tier: Arc<dyn Tier>,
    counters: Arc<EventCounters>,
    kept: KeptSlots,
    /// The contents of a zero frame, where the kernel has no call that makes one. Never written, so it costs no memory.
    zeros: Option<PageSlab>,
}

/// What to do with a frame whose bytes can't be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Poison it: somebody needs it now.
    Poison,
    /// Leave it where it is: nobody has asked for it yet.
    Leave,
}

/// What to do with the slot of a page that has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Free it: the page will change, or must not leave, or the slot's area goes off.
    Free,
    /// Keep it while there is plenty, for the case that the page leaves again unchanged.
    KeepIfPlenty,
}

/// Where a page came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A tier.
    Tier,
    /// Nowhere: it is a zero page.
    Zero,
}

/// A frame that was brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    /// From where.
    pub source: Source,
    /// When it had left, if it had.
    pub left_at: Option<EvictionStamp>,
}

/// Why a frame could not be brought back.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// It is in a state that has nothing to bring back, or somebody else is at it.
    #[error("frame is {0:?}")]
    NotOut(FrameWord),
    /// The tier can't give it back. It is poisoned now, or left where it is, as was asked.
    #[error("page {gfn} can't be read back")]
    Unreadable {
        /// Which.
        gfn: Gfn,
        /// Why.
        #[source]
        source: LoadError,
    },
    /// The kernel refused to install it. Nothing is lost, the frame is where it was.
    #[error("page {gfn} can't be installed")]
    Install {
        /// Which.
        gfn: Gfn,
        /// Why.
        #[source]
        source: UffdError,
    },
}

impl Filler {
    /// Fills into `arena` from `tier`.
    pub fn new(arena: Arc<Arena>, tier: Arc<dyn Tier>, counters: Arc<EventCounters>) -> Self {
        let kept = KeptSlots::new(Arc::clone(&arena), Arc::clone(&tier));
        let zeros = (arena.memory.frame_size() == FrameSize::Huge).then(|| arena.memory.frame_buffer());
        Self { arena, tier, counters, kept, zeros }
    }

    /// Brings back a frame that is Swapped, Zero, Discarded or Untouched, by way of `buffer`, which has room for one. Its slot, if it is
    /// freed, goes to `shard`'s cache.
    pub fn fill(
        &self,
        frame: FrameIndex,
        shard: Shard,
        buffer: &mut [Page],
        unreadable: Unreadable,
        slot: Slot,
    ) -> Result<Return, FillError> {
        let (before, filling) = self.arena.frames.update(frame, FrameWord::begin_fill).map_err(FillError::NotOut)?;
        let gfn = self.arena.memory.gfn(frame);
        match filling.entry() {
            None => {
                self.install_zero(frame, gfn)?;
                Ok(Return { source: Source::Zero, left_at: before.left_at() })
            }
            Some(entry) => match self.tier.load(entry, gfn, buffer) {
                Ok(()) => {
                    self.install(frame, gfn, buffer)?;
                    // A locked page does not leave, so its slot would be kept for nothing.
                    let slot = if filling.is_locked() { Slot::Free } else { slot };
                    self.filled_from(frame, entry, shard, slot);
                    Ok(Return { source: Source::Tier, left_at: before.left_at() })
                }
                Err(source) => {
                    match unreadable {
                        Unreadable::Poison => self.poison(frame, gfn, entry, &source),
                        Unreadable::Leave => self.unfill(frame),
                    }
                    Err(FillError::Unreadable { gfn, source })
                }
            },
        }
    }

    fn install(&self, frame: FrameIndex, gfn: Gfn, bytes: &[Page]) -> Result<(), FillError> {
        let hva = self.arena.memory.hva(frame);
        let installed = self.arena.uffd.copy(hva, bytes).and_then(|filled| match filled {
            Filled::Done => Ok(()),
            Filled::Exists => self.install_over(frame, gfn, bytes),
        });
        if let Err(source) = installed {
            self.unfill(frame);
            return Err(FillError::Install { gfn, source });
        }
        Ok(())
    }

    /// The last step for a page that came from a tier. Its slot is freed only now: until here it was the only place that had the bytes for
    /// sure.
    fn filled_from(&self, frame: FrameIndex, entry: SwapEntry, shard: Shard, slot: Slot) {
        if slot == Slot::KeepIfPlenty && self.tier.should_keep(entry) {
            let now = self.arena.clock.now();
            self.arena.kept.up();
            self.arena.settle(frame, |word| word.filled_keeping_slot(now));
        } else {
            self.filled(frame);
            self.tier.invalidate(shard, entry);
        }
    }

    /// A page is there that should have gone when its frame left. If giving it back failed then, it has the same bytes, write-protected. If
    /// it has others, the tier's count: they passed their checksum.
    fn install_over(&self, frame: FrameIndex, gfn: Gfn, bytes: &[Page]) -> Result<(), UffdError> {
        let hva = self.arena.memory.hva(frame);
        if !self.is_there(frame, bytes) {
            tracing::error!(%gfn, "memory that had left is there again with other bytes: replaced");
            if let Err(error) = self.arena.memory.punch(frame, 1) {
                tracing::error!(%gfn, %error, "punching a hole failed");
            }
            if self.arena.uffd.copy(hva, bytes)? == Filled::Exists {
                // The slot stays the page's home: it must not be freed for bytes that nobody vouches for.
                return Err(UffdError::Occupied { page: hva });
            }
        }
        self.arena.uffd.unprotect(hva, self.len())
    }

    /// Whether memory has exactly these bytes. Page by page: the fault path has no second buffer for a huge one.
    fn is_there(&self, frame: FrameIndex, bytes: &[Page]) -> bool {
        let mut found = [[0; PAGE_SIZE]];
        bytes
            .iter()
            .enumerate()
            .all(|(skip, page)| self.arena.memory.read_from(frame, skip, &mut found).is_ok() && found[0] == *page)
    }

    fn install_zero(&self, frame: FrameIndex, gfn: Gfn) -> Result<(), FillError> {
        let hva = self.arena.memory.hva(frame);
        let zeroed = match &self.zeros {
            None => self.arena.uffd.zero(hva),
            Some(zeros) => self.arena.uffd.copy(hva, zeros),
        };
        let installed = zeroed.and_then(|filled| match filled {
            Filled::Done => Ok(()),
            // An untouched frame that the guest touched meanwhile, or a zero page whose memory could not be given back.
            Filled::Exists => self.arena.uffd.unprotect(hva, self.len()),
        });
        match installed {
            Ok(()) => {
                self.filled(frame);
                Ok(())
            }
            Err(source) => {
                self.unfill(frame);
                Err(FillError::Install { gfn, source })
            }
        }
    }

    /// Bytes of a frame.
    fn len(&self) -> u64 {
        self.arena.memory.frame_size().bytes()
    }

    fn filled(&self, frame: FrameIndex) {
        let now = self.arena.clock.now();
        self.arena.settle(frame, |word| word.filled(now));
    }

    /// Back to where it was. Who faulted meanwhile tries again.
    fn unfill(&self, frame: FrameIndex) {
        self.arena.settle(frame, FrameWord::unfilled);
        self.arena.wake(frame);
    }

    fn poison(&self, frame: FrameIndex, gfn: Gfn, entry: SwapEntry, source: &LoadError) {
        tracing::error!(%gfn, error = %source, "page can't be read back: poisoned");
        self.counters.pages_poisoned.add(1);
        // The state first: whoever gets the poison's SIGBUS may ask for it.
        self.arena.settle(frame, FrameWord::poison);
        self.install_poison(frame);
        // Whatever broke it there may break the next page too.
        self.tier.condemn(entry);
    }

    /// Makes accesses to a Poisoned frame fail as failed memory does, and wakes who waits for it. A leftover write-protection mark would be
    /// in the poison's way.
    pub fn install_poison(&self, frame: FrameIndex) {
        let hva = self.arena.memory.hva(frame);
        let len = self.len();
        let poisoned = self.arena.uffd.unprotect_quietly(hva, len).and_then(|()| self.arena.uffd.poison(hva, len));
        if let Err(error) = poisoned {
            tracing::error!(%error, "poisoning failed: the guest asks again and again for a page that is lost");
        }
        // Also when it was poisoned already, or could not be.
        self.arena.wake(frame);
    }

    /// Gives up the slot that a frame in memory has kept, if it has: Clean → Resident.
    pub fn forget_slot(&self, frame: FrameIndex, shard: Shard) -> bool {
        self.kept.forget(frame, shard)
    }

    /// Makes sure that a frame is in memory and has no slot, whatever it takes: cancels an eviction, waits for one that is past that, brings it
    /// back. `Ok(true)` if it had to be brought back. For requests, not for the fault path: it may wait.
    pub fn bring_back(
        &self,
        frame: FrameIndex,
        shard: Shard,
        buffer: &mut [Page],
        unreadable: Unreadable,
    ) -> Result<bool, FillError> {
        let mut waits = Waits::default();
        loop {
            let word = self.arena.frames.get(frame);
            match word.state() {
                State::Resident => return Ok(false),
                // A refusal means that it moved on: look again.
                State::Clean => _ = self.forget_slot(frame, shard),
                State::Poisoned => return Err(FillError::NotOut(word)),
                State::Evicting => self.cancel(frame),
                State::Leaving | State::Filling | State::Opening => waits.once(),
                State::Swapped | State::Zero | State::Discarded | State::Untouched => {
                    match self.fill(frame, shard, buffer, unreadable, Slot::Free) {
                        Ok(back) => {
                            self.counters.pages_fetched.add(u64::from(back.source == Source::Tier));
                            return Ok(true);
                        }
                        Err(FillError::NotOut(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    /// Calls an eviction off, if it can still be. Afterwards the frame is Resident or in somebody else's hands.
    pub fn cancel(&self, frame: FrameIndex) {
        // A refusal means that it can't be called off any more, or that somebody else did.
        let _ = self.arena.open(frame, FrameWord::cancel);
    }
}

/// Waiting for another owner to move a frame on: it is in a system call or reading one page.
#[derive(Debug, Default)]
pub struct Waits {
    count: u32,
}

impl Waits {
    /// Waits a little, longer when it has waited often.
    pub fn once(&mut self) {
        self.count += 1;
        if self.count < 64 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    }
}
