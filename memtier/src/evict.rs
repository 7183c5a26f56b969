//! Moves pages out: claim, write-protect, read, store, move the state, punch. A page whose slot was kept when it came back and that is still
//! what the slot holds is not stored again.
//!
//! Promises (`docs/architecture.md`, rules 1, 3 and 4): a page's memory is given back only after a tier acknowledged its bytes, and those
//! were read while nobody could change them unseen; a write, a pin or a lock in between calls the eviction off; whatever fails, the page
//! is back as it was and its slot is free again, one that it had kept included. Must never: make a guest wait for a store (a write fault is answered at once), or take
//! protection away from a frame that it does not own.
//!
//! Locks: a lane's mutex, and under it what keeps pieces as they are, is held for a batch, I/O included; nothing on the fault path takes it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::abort::AbortOnPanic;
use crate::arena::Arena;
use crate::counters::EventCounters;
use crate::fault::fill::Waits;
use crate::frame::word::{FrameWord, State, Ticket};
use crate::kept::KeptSlots;
use crate::page::{Page, PageSlab};
use crate::pieces::Pieces;
use crate::status::Outcomes;
use crate::tier::{STORE_BATCH, StoreError, Tier, store_batch};
use crate::units::{FrameIndex, FrameSize, Gfn, Shard, SwapEntry};

/// See the module.
#[derive(Debug)]
pub struct Evictor {
    arena: Arc<Arena>,
    tier: Arc<dyn Tier>,
    counters: Arc<EventCounters>,
    kept: KeptSlots,
    /// Which parts of guest memory have no huge pages and may leave, in a guest that has some.
    pieces: Option<Arc<Pieces>>,
    /// One per shard of guest memory.
    lanes: Vec<Lane>,
    tickets: AtomicU64,
}

/// A shard's place to work.
#[derive(Debug)]
struct Lane {
    work: Mutex<Work>,
    /// Batches that have ended.
    ended: AtomicU64,
}

/// What one batch works with; kept, so that a batch allocates nothing.
#[derive(Debug)]
struct Work {
    /// The pages of a batch's frames, one frame after the other.
    pages: PageSlab,
    claims: Vec<Claim>,
    gfns: Vec<Gfn>,
    stored: Vec<Result<SwapEntry, StoreError>>,
}

/// A frame on its way out.
#[derive(Clone, Copy, Debug)]
struct Claim {
    frame: FrameIndex,
    /// The slot that the frame had kept: ours to use or to free.
    kept: Option<SwapEntry>,
    fate: Fate,
}

/// What became of a claimed frame so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Claimed; its bytes are in the lane or on their way to the tier.
    Claimed,
    /// All bytes zero.
    Zero,
    /// The tier has it.
    Stored(SwapEntry),
    /// The tier has had it all along, in the slot that was kept.
    Unchanged(SwapEntry),
    /// Leaving; its memory may be given back.
    Leaving,
    /// Back in memory, counted.
    Back,
}

/// How much of what is named shall leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// All of it; every frame is accounted for in the answer.
    Every,
    /// At most this many pages; the answer counts what was tried.
    UpTo(u64),
}

const NOT_TAKEN: Outcomes = Outcomes { evicted: 0, absent: 0, locked: 0, shared: 0, busy: 0, cancelled: 0, error: 1 };

impl Evictor {
    /// An evictor with `shards` lanes.
    pub fn new(
        arena: Arc<Arena>,
        tier: Arc<dyn Tier>,
        counters: Arc<EventCounters>,
        pieces: Option<Arc<Pieces>>,
        shards: u16,
    ) -> Self {
        let size = arena.memory.frame_size();
        let work = || Work {
            pages: PageSlab::new(store_batch(size) * size.pages()),
            claims: Vec::with_capacity(STORE_BATCH),
            gfns: Vec::with_capacity(STORE_BATCH),
            stored: Vec::with_capacity(STORE_BATCH),
        };
        let lane = |_| Lane { work: Mutex::new(work()), ended: AtomicU64::new(0) };
        let lanes = (0..shards.max(1)).map(lane).collect();
        let kept = KeptSlots::new(Arc::clone(&arena), Arc::clone(&tier));
        Self { arena, tier, counters, kept, pieces, lanes, tickets: AtomicU64::new(1) }
    }

    /// Frees the slot that a frame in memory has kept, if it has: for whoever knows that the page was written to since it came back.
    pub fn forget_slot(&self, frame: FrameIndex) -> bool {
        self.kept.forget(frame, self.shard(frame))
    }

    /// Evicts these frames, in batches of neighbours in the order given. When the tier takes nothing of a batch (full, or failing), the rest
    /// is not tried: each try would cost the guest a write fault for nothing.
    pub fn evict(&self, frames: impl Iterator<Item = FrameIndex>, demand: Demand) -> Outcomes {
        let limit = match demand {
            Demand::Every => u64::MAX,
            Demand::UpTo(pages) => pages,
        };
        let mut outcomes = Outcomes::default();
        let mut frames = frames.peekable();
        let mut batch = [FrameIndex(0); STORE_BATCH];
        while outcomes.evicted < limit
            && let Some(first) = frames.peek()
        {
            let place = self.place(*first);
            let room = usize::try_from(limit - outcomes.evicted).unwrap_or(STORE_BATCH).min(store_batch(self.size()));
            let mut count = 0;
            while count < room
                && let Some(frame) = frames.next_if(|frame| self.place(*frame) == place)
            {
                // What can't be claimed takes no room in the batch.
                match refusal(self.arena.frames.get(frame)) {
                    Some(refused) => outcomes.add(&refused),
                    None if !self.is_split(frame) => outcomes.busy += 1,
                    None => {
                        batch[count] = frame;
                        count += 1;
                    }
                }
            }
            if count == 0 {
                continue;
            }
            let done = self.batch(place.0, &batch[..count]);
            outcomes.add(&done);
            if self.arena.is_closing() {
                break;
            }
            if done.error == count as u64 {
                if demand == Demand::Every {
                    frames.for_each(|frame| outcomes.add(&refusal(self.arena.frames.get(frame)).unwrap_or(NOT_TAKEN)));
                }
                break;
            }
        }
        outcomes
    }

    /// Makes sure that no huge page is where the frame is.
    fn is_split(&self, frame: FrameIndex) -> bool {
        self.pieces.as_ref().is_none_or(|pieces| pieces.may_leave(frame) || pieces.split(frame).is_ok())
    }

    /// Waits until every batch that is under way now has ended. Not by taking the lanes' locks: a long request takes its lane again and
    /// again, and an unfair lock could keep us out until it is through.
    pub fn quiesce(&self) {
        for lane in &self.lanes {
            // Acquire: what the batch did is done for whoever sees its end. Pairs with the increment in `batch`.
            let before = lane.ended.load(Ordering::Acquire);
            let mut waits = Waits::default();
            while lane.work.try_lock().is_err() && lane.ended.load(Ordering::Acquire) == before {
                waits.once();
            }
        }
    }

    fn size(&self) -> FrameSize {
        self.arena.memory.frame_size()
    }

    /// What the frames of one batch have in common: shard and region (frames of two regions follow each other only in the table).
    fn place(&self, frame: FrameIndex) -> (Shard, FrameIndex) {
        (self.shard(frame), self.arena.memory.region(frame).base)
    }

    /// Guest memory is divided evenly among the shards.
    fn shard(&self, frame: FrameIndex) -> Shard {
        let shards = u64::try_from(self.lanes.len()).unwrap_or(1);
        let shard = u64::from(frame.0) * shards / u64::from(self.arena.memory.frames());
        Shard(u16::try_from(shard).unwrap_or(0))
    }

    fn batch(&self, shard: Shard, frames: &[FrameIndex]) -> Outcomes {
        let mut outcomes = Outcomes::default();
        // From claim to punch, frames depend on this thread.
        let _guard = AbortOnPanic;
        let Lane { work: lane, ended } = &self.lanes[usize::from(shard.0)];
        let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = &mut *lane;
        let _shape = self.pieces.as_ref().map(|pieces| pieces.hold());
        // Relaxed: only uniqueness counts.
        let ticket = Ticket::new(self.tickets.fetch_add(1, Ordering::Relaxed));
        let mut batch = Batch { evictor: self, shard, ticket, outcomes: &mut outcomes };
        batch.claim(lane, frames);
        if !lane.claims.is_empty() {
            batch.protect(lane);
            batch.read(lane);
            batch.store(lane);
            batch.leave(lane);
            batch.punch(lane);
        }
        // Release: see `quiesce`.
        ended.fetch_add(1, Ordering::Release);
        self.counters.evictions_cancelled.add(outcomes.cancelled);
        self.counters.store_errors.add(outcomes.error);
        outcomes
    }
}

/// One batch's way through the steps. A frame that drops out of one is back in memory and counted.
struct Batch<'a> {
    evictor: &'a Evictor,
    shard: Shard,
    ticket: Ticket,
    outcomes: &'a mut Outcomes,
}

impl Batch<'_> {
    fn claim(&mut self, lane: &mut Work, frames: &[FrameIndex]) {
        lane.claims.clear();
        let pieces = self.evictor.pieces.as_ref();
        for frame in frames.iter().copied() {
            // Its piece may have been collapsed since it was looked at.
            if pieces.is_some_and(|pieces| !pieces.may_leave(frame)) {
                self.outcomes.busy += 1;
                continue;
            }
            match self.frames().update(frame, |word| word.claim(self.ticket)) {
                Ok((before, _)) => {
                    let kept = before.entry();
                    kept.iter().for_each(|_| self.evictor.arena.kept.down());
                    lane.claims.push(Claim { frame, kept, fate: Fate::Claimed });
                }
                Err(word) => self.outcomes.add(&refusal(word).unwrap_or(Outcomes { busy: 1, ..Outcomes::default() })),
            }
        }
        // Neighbours next to each other: fewer and longer ranges for every call that follows.
        lane.claims.sort_unstable_by_key(|claim| claim.frame);
    }

    /// From here on, a write to any claimed frame is an event, and its handler calls the eviction off.
    fn protect(&mut self, lane: &mut Work) {
        for run in runs(&lane.claims, Fate::Claimed) {
            let claims = &mut lane.claims[run];
            let start = self.evictor.arena.memory.hva(claims[0].frame);
            if let Err(error) =
                self.evictor.arena.uffd.protect(start, claims.len() as u64 * self.evictor.size().bytes())
            {
                tracing::error!(%error, "eviction: write-protection failed, pages stay");
                claims.iter_mut().for_each(|claim| self.give_up(claim));
            }
        }
    }

    /// Reads the claimed frames; pages that have to be stored end up at the front of the lane's slab, in order.
    fn read(&mut self, lane: &mut Work) {
        lane.gfns.clear();
        for run in runs(&lane.claims, Fate::Claimed) {
            let claims = &mut lane.claims[run];
            let at = lane.gfns.len();
            let pages = &mut lane.pages[self.pages_of(at).start..self.pages_of(at + claims.len()).start];
            if let Err(error) = self.evictor.arena.memory.read(claims[0].frame, pages) {
                tracing::error!(%error, "eviction: reading guest memory failed, pages stay");
                claims.iter_mut().for_each(|claim| self.give_up(claim));
                continue;
            }
            for (index, claim) in claims.iter_mut().enumerate() {
                let (from, to) = (at + index, lane.gfns.len());
                let gfn = self.evictor.arena.memory.gfn(claim.frame);
                claim.fate = self.fate_of(claim.kept.take(), gfn, &lane.pages[self.pages_of(from)]);
                if claim.fate == Fate::Claimed {
                    if to != from {
                        lane.pages.copy_within(self.pages_of(from), self.pages_of(to).start);
                    }
                    lane.gfns.push(gfn);
                }
            }
        }
    }

    /// Where in the lane's slab the pages of its `index`th frame are.
    fn pages_of(&self, index: usize) -> Range<usize> {
        let pages = self.evictor.size().pages();
        index * pages..(index + 1) * pages
    }

    /// What a claimed page needs, now that its bytes are known. A kept slot that is of no use is freed before anything is stored: it may be
    /// the one that is missing.
    fn fate_of(&self, kept: Option<SwapEntry>, gfn: Gfn, pages: &[Page]) -> Fate {
        let zero = pages.iter().all(is_zero);
        if let Some(entry) = kept {
            if !zero && self.evictor.tier.still_holds(entry, gfn, pages) {
                return Fate::Unchanged(entry);
            }
            self.free(Some(entry));
        }
        if zero { Fate::Zero } else { Fate::Claimed }
    }

    fn store(&mut self, lane: &mut Work) {
        self.store_once(lane);
        // No room: slots that are only kept for the case that a page does not change have to go first.
        if !lane.gfns.is_empty() && self.evictor.kept.give_up(lane.gfns.len(), self.shard) > 0 {
            self.store_once(lane);
        }
        for claim in lane.claims.iter_mut().filter(|claim| claim.fate == Fate::Claimed) {
            self.give_up(claim);
        }
    }

    /// Stores the pages of the claims whose fate is open. Those for which there was no room stay so, and their pages are moved to the front.
    fn store_once(&mut self, lane: &mut Work) {
        if lane.gfns.is_empty() {
            return;
        }
        self.evictor.tier.store(self.shard, &lane.gfns, &lane.pages, &mut lane.stored);
        let mut without_room = 0;
        let open = lane.claims.iter_mut().filter(|claim| claim.fate == Fate::Claimed);
        for (index, (claim, result)) in open.zip(lane.stored.drain(..)).enumerate() {
            match result {
                Ok(entry) => claim.fate = Fate::Stored(entry),
                Err(StoreError::Full) => {
                    lane.gfns[without_room] = lane.gfns[index];
                    lane.pages.copy_within(self.pages_of(index), self.pages_of(without_room).start);
                    without_room += 1;
                }
                Err(error) => {
                    tracing::warn!(%error, "eviction: the store failed, the page stays");
                    self.give_up(claim);
                }
            }
        }
        lane.gfns.truncate(without_room);
    }

    /// Moves what is stored to Leaving: from then on a fault waits. Before that, its chunk traps missing pages.
    fn leave(&mut self, lane: &mut Work) {
        // Read once: a batch takes no more than a few ticks.
        let (refaults, mut left) = (&self.evictor.arena.refaults, 0);
        let now = refaults.now();
        for claim in &mut lane.claims {
            let counters = &self.evictor.counters;
            let (entry, counter) = match claim.fate {
                Fate::Zero => (None, &counters.pages_out_zero),
                Fate::Stored(entry) => (Some(entry), &counters.pages_out),
                Fate::Unchanged(entry) => (Some(entry), &counters.pages_out_clean),
                Fate::Claimed | Fate::Leaving | Fate::Back => continue,
            };
            if let Err(error) = self.evictor.arena.watch_missing(claim.frame) {
                tracing::error!(%error, "eviction: registering for missing pages failed, the page stays");
                self.free(entry);
                self.give_up(claim);
                continue;
            }
            match self.frames().update(claim.frame, |word| word.begin_leave(self.ticket, entry, now)) {
                Ok(_) => {
                    claim.fate = Fate::Leaving;
                    counter.add(1);
                    left += 1;
                }
                Err(word) => {
                    self.free(entry);
                    self.called_off(claim, word);
                }
            }
        }
        refaults.count_left(left);
    }

    /// Gives the memory back, then lets faults go on.
    fn punch(&mut self, lane: &mut Work) {
        for run in runs(&lane.claims, Fate::Leaving) {
            let claims = &lane.claims[run.clone()];
            let count = u32::try_from(claims.len()).expect("a batch is short");
            match self.evictor.arena.memory.punch(claims[0].frame, count) {
                Ok(()) => self.outcomes.evicted += u64::from(count),
                Err(error) => {
                    // The kernel may have taken part of the run. All of it is stored, so all of it may count as out: a page that is still
                    // there is write-protected, reads right, and is kept by the fill that its next write asks for.
                    tracing::error!(%error, "eviction: punching a hole failed, memory is not given back");
                    self.outcomes.error += u64::from(count);
                }
            }
            lane.claims[run].iter().for_each(|claim| self.left(claim.frame));
        }
    }

    fn left(&self, frame: FrameIndex) {
        self.evictor.arena.settle(frame, FrameWord::left);
    }

    /// Something failed: the frame goes back to Resident, if nobody else has brought it there.
    fn give_up(&mut self, claim: &mut Claim) {
        claim.fate = Fate::Back;
        self.outcomes.error += 1;
        self.free(claim.kept.take());
        self.take_back(claim.frame);
    }

    /// The commit was refused: somebody wrote, pinned or locked.
    fn called_off(&mut self, claim: &mut Claim, word: FrameWord) {
        claim.fate = Fate::Back;
        if word.is_claimed_by(self.ticket) {
            self.outcomes.locked += 1;
            self.take_back(claim.frame);
        } else {
            self.outcomes.cancelled += 1;
        }
    }

    fn take_back(&self, frame: FrameIndex) {
        // A refusal means that a write or a pin took it back first.
        let _ = self.evictor.arena.open(frame, |word| word.take_back(self.ticket));
    }

    fn free(&self, entry: Option<SwapEntry>) {
        if let Some(entry) = entry {
            self.evictor.tier.invalidate(self.shard, entry);
        }
    }

    fn frames(&self) -> &crate::frame::FrameTable {
        &self.evictor.arena.frames
    }
}

/// Why a frame in this state can't be claimed, as an outcome; `None` if it can.
fn refusal(word: FrameWord) -> Option<Outcomes> {
    let mut outcomes = Outcomes::default();
    match word.state() {
        State::Resident | State::Clean if word.is_locked() => outcomes.locked = 1,
        State::Resident if word.pins() > 0 => outcomes.busy = 1,
        State::Resident | State::Clean => return None,
        State::Evicting | State::Leaving | State::Filling | State::Opening => outcomes.busy = 1,
        State::Untouched | State::Swapped | State::Zero | State::Discarded | State::Poisoned => outcomes.absent = 1,
    }
    Some(outcomes)
}

/// Runs of claims with one fate whose frames follow each other, at most as long as the batch. Collected first, so that fates may change
/// while the runs are worked on.
fn runs(claims: &[Claim], fate: Fate) -> impl Iterator<Item = Range<usize>> + use<> {
    let mut found = [(0_usize, 0_usize); STORE_BATCH];
    let mut count = 0;
    for (index, claim) in claims.iter().enumerate().filter(|(_, claim)| claim.fate == fate) {
        match found[..count].last_mut() {
            Some((_, end)) if *end == index && claims[index - 1].frame.0 + 1 == claim.frame.0 => *end += 1,
            _ => {
                found[count] = (index, index + 1);
                count += 1;
            }
        }
    }
    found.into_iter().take(count).map(|(start, end)| start..end)
}

fn is_zero(page: &Page) -> bool {
    let (words, _) = page.as_chunks::<8>();
    words.iter().all(|word| u64::from_ne_bytes(*word) == 0)
}
