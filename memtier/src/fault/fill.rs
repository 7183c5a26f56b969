//! Brings one frame back from wherever it is.
//!
//! Promises: the caller that moved the frame to Filling owns it until it is Resident, back where it was, or Poisoned; whoever waits for that
//! is woken after it. A slot is freed only after its page is in memory. Must never: install bytes
//! that the tier did not vouch for.

use std::sync::Arc;

use crate::arena::Arena;
use crate::counters::EventCounters;
use crate::frame::word::{FrameWord, State};
use crate::page::Page;
use crate::sys::uffd::{Filled, UffdError};
use crate::tier::{LoadError, Tier};
use crate::units::{FrameIndex, Gfn, PAGE_SIZE, Shard, SwapEntry};

/// See the module.
#[derive(Debug)]
pub struct Filler {
    arena: Arc<Arena>,
    tier: Arc<dyn Tier>,
    counters: Arc<EventCounters>,
}

/// What to do with a frame whose bytes can't be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Poison it: somebody needs it now.
    Poison,
    /// Leave it where it is: nobody has asked for it yet.
    Leave,
}

/// Where a page came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A tier.
    Tier,
    /// Nowhere: it is a zero page.
    Zero,
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
        Self { arena, tier, counters }
    }

    /// Brings back a frame that is Swapped, Zero, Discarded or Untouched, by way of `buffer`. Its slot goes to `shard`'s cache.
    pub fn fill(
        &self,
        frame: FrameIndex,
        shard: Shard,
        buffer: &mut Page,
        unreadable: Unreadable,
    ) -> Result<Source, FillError> {
        let (_, filling) = self.arena.frames.update(frame, FrameWord::begin_fill).map_err(FillError::NotOut)?;
        let gfn = self.arena.memory.gfn(frame);
        match filling.entry() {
            None => self.install_zero(frame, gfn).map(|()| Source::Zero),
            Some(entry) => match self.tier.load(entry, gfn, buffer) {
                Ok(()) => self.install(frame, gfn, entry, shard, buffer).map(|()| Source::Tier),
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

    fn install(
        &self,
        frame: FrameIndex,
        gfn: Gfn,
        entry: SwapEntry,
        shard: Shard,
        bytes: &Page,
    ) -> Result<(), FillError> {
        let hva = self.arena.memory.hva(frame);
        let installed = self.arena.uffd.copy(hva, bytes).and_then(|filled| match filled {
            Filled::Done => Ok(()),
            Filled::Exists => self.install_over(frame, gfn, bytes),
        });
        if let Err(source) = installed {
            self.unfill(frame);
            return Err(FillError::Install { gfn, source });
        }
        self.filled(frame);
        // Only now: until here the slot was the only place that had the bytes for sure.
        self.tier.invalidate(shard, entry);
        Ok(())
    }

    /// A page is there that should have gone when its frame left. If giving it back failed then, it has the same bytes, write-protected. If
    /// it has others, the tier's count: they passed their checksum.
    fn install_over(&self, frame: FrameIndex, gfn: Gfn, bytes: &Page) -> Result<(), UffdError> {
        let hva = self.arena.memory.hva(frame);
        let mut found = [[0; PAGE_SIZE]];
        let same = self.arena.memory.read(frame, &mut found).is_ok() && found[0] == *bytes;
        if !same {
            tracing::error!(%gfn, "memory that had left is there again with other bytes: replaced");
            if let Err(error) = self.arena.memory.punch(frame, 1) {
                tracing::error!(%gfn, %error, "punching a hole failed");
            }
            if self.arena.uffd.copy(hva, bytes)? == Filled::Exists {
                // The slot stays the page's home: it must not be freed for bytes that nobody vouches for.
                return Err(UffdError::Occupied { page: hva });
            }
        }
        self.arena.uffd.unprotect(hva, PAGE_SIZE as u64)
    }

    fn install_zero(&self, frame: FrameIndex, gfn: Gfn) -> Result<(), FillError> {
        let hva = self.arena.memory.hva(frame);
        let installed = self.arena.uffd.zero(hva).and_then(|filled| match filled {
            Filled::Done => Ok(()),
            // An untouched frame that the guest touched meanwhile, or a zero page whose memory could not be given back.
            Filled::Exists => self.arena.uffd.unprotect(hva, PAGE_SIZE as u64),
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
        let poisoned =
            self.arena.uffd.unprotect_quietly(hva, PAGE_SIZE as u64).and_then(|()| self.arena.uffd.poison(hva));
        if let Err(error) = poisoned {
            tracing::error!(%error, "poisoning failed: the guest asks again and again for a page that is lost");
        }
        // Also when it was poisoned already, or could not be.
        self.arena.wake(frame);
    }

    /// Makes sure that a frame is in memory, whatever it takes: cancels an eviction, waits for one that is past that, brings it back.
    /// `Ok(true)` if it had to be brought back. For requests, not for the fault path: it may wait.
    pub fn bring_back(
        &self,
        frame: FrameIndex,
        shard: Shard,
        buffer: &mut Page,
        unreadable: Unreadable,
    ) -> Result<bool, FillError> {
        let mut waits = Waits::default();
        loop {
            let word = self.arena.frames.get(frame);
            match word.state() {
                State::Resident => return Ok(false),
                State::Poisoned => return Err(FillError::NotOut(word)),
                State::Evicting => self.cancel(frame),
                State::Leaving | State::Filling | State::Opening => waits.once(),
                State::Swapped | State::Zero | State::Discarded | State::Untouched => {
                    match self.fill(frame, shard, buffer, unreadable) {
                        Ok(Source::Tier) => {
                            self.counters.pages_fetched.add(1);
                            return Ok(true);
                        }
                        Ok(Source::Zero) => return Ok(true),
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
