//! A shard's own supply of slots, so that evictor and fault path meet an area's lock once in 64 times: the kernel's `swap_slots.c`.
//!
//! Per shard two arrays of 64 under two locks: slots to hand out, and slots given back. The first is refilled, the second flushed, a batch at a
//! time. Slots given back are never handed out from here: they go through the area, which puts neighbours together again. The caches are active
//! while slots are plentiful, so that they can't hoard the last ones: they start when more than 5·64 per shard are free, and are emptied and stop
//! when fewer than 2·64 per shard are; checked when slots are taken.
//!
//! Promises: a slot is in one place, handed out once; [`SlotCaches::drain`] leaves no slot behind that was there when it was called. Must never:
//! hand out a slot of an area after [`SlotCaches::begin_off`] has answered.
//!
//! How a drain can be sure: an area that is going off gives no slots, so what a refill got from it, it got before; and a refill holds the shard's
//! lock from taking the slots to putting them here. The drain takes every shard's lock after that, so it finds them. The same holds for switching
//! the caches off: `active` is cleared before the drain takes a shard's lock, and who takes that lock afterwards sees it cleared. That is why
//! `active` can be relaxed: the locks order it.
//!
//! The model of all this for the loom checker is below; run it with
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p memtier --lib swap::slot_cache
//! ```

use std::sync::Arc;

use super::SwapError;
use super::areas::{Areas, SLOT_BATCH};
use super::sync::{AtomicBool, Mutex, Ordering, lock};
use crate::units::{AreaId, MAX_AREAS, Shard, SlotOffset, SwapEntry};

/// Free slots per shard above which the caches start, in batches.
const ACTIVATE_BATCHES: u64 = 5;
/// Free slots per shard below which they are emptied and stop, in batches.
const DEACTIVATE_BATCHES: u64 = 2;

const NO_ENTRY: SwapEntry = SwapEntry::new(AreaId(0), SlotOffset(0));

/// What the caches have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCacheCounters {
    /// Slots handed out from a cache.
    pub cached: u64,
    /// Slots taken straight from the areas: the caches were off, or nothing was there to fill them.
    pub direct: u64,
    /// Times a cache was refilled.
    pub refills: u64,
    /// Slots given back into a cache.
    pub returned: u64,
    /// Slots given straight back to the areas.
    pub returned_direct: u64,
    /// Times returned slots were flushed.
    pub flushes: u64,
    /// Times all caches were emptied.
    pub drains: u64,
    /// Times the caches started.
    pub activations: u64,
    /// Times they stopped.
    pub deactivations: u64,
}

/// Slots to hand out: `slots[next..end]`.
#[derive(Debug)]
struct Supply {
    slots: [SwapEntry; SLOT_BATCH],
    next: usize,
    end: usize,
    cached: u64,
    direct: u64,
    refills: u64,
}

/// Slots given back: `slots[..count]`.
#[derive(Debug)]
struct Returned {
    slots: [SwapEntry; SLOT_BATCH],
    count: usize,
    returned: u64,
    direct: u64,
    flushes: u64,
}

/// Two cache lines, so that two shards' locks don't share what the processor fetches together.
#[derive(Debug)]
#[repr(align(128))]
struct Padded<T>(T);

#[derive(Debug)]
struct ShardCache {
    supply: Padded<Mutex<Supply>>,
    returned: Padded<Mutex<Returned>>,
}

#[derive(Debug, Default)]
struct Switching {
    drains: u64,
    activations: u64,
    deactivations: u64,
}

/// The caches of all shards, in front of the areas.
#[derive(Debug)]
pub struct SlotCaches {
    areas: Arc<Areas>,
    shards: Box<[ShardCache]>,
    active: AtomicBool,
    /// Held while the caches are switched on or off or drained, so that these don't overlap.
    enable: Mutex<Switching>,
}

impl SlotCaches {
    /// One cache per shard, inactive until there is plenty to cache.
    pub fn new(areas: Arc<Areas>, shards: u16) -> Self {
        let shards = (0..shards.max(1)).map(|_| ShardCache::new()).collect();
        Self { areas, shards, active: AtomicBool::new(false), enable: Mutex::new(Switching::default()) }
    }

    /// Takes slots, as many as fit `out`; fewer when there are no more. Each is in state cached: the caller's alone.
    pub fn take(&self, shard: Shard, out: &mut [SwapEntry]) -> usize {
        self.switch_by_free_slots();
        let mut supply = lock(&self.shard(shard).supply.0);
        let mut taken = supply.hand_out(out);
        while taken < out.len() && self.is_active() && supply.refill(&self.areas, shard) {
            taken += supply.hand_out(&mut out[taken..]);
        }
        if taken < out.len() {
            let direct = self.areas.alloc(shard, &mut out[taken..]);
            supply.direct += direct as u64;
            taken += direct;
        }
        taken
    }

    /// Gives back a slot that holds no page any more, or never did.
    pub fn give_back(&self, shard: Shard, entry: SwapEntry) {
        let mut returned = lock(&self.shard(shard).returned.0);
        if !self.is_active() {
            returned.direct += 1;
            drop(returned);
            self.areas.free(&mut [entry]);
            return;
        }
        if returned.count == SLOT_BATCH {
            returned.flush(&self.areas);
        }
        let count = returned.count;
        returned.slots[count] = entry;
        returned.count += 1;
        returned.returned += 1;
    }

    /// First step of a swapoff: when this has answered, no slot of the area is handed out any more.
    pub fn begin_off(&self, id: AreaId) -> Result<(), SwapError> {
        self.areas.begin_off(id)?;
        self.drain();
        Ok(())
    }

    /// Last step of a swapoff: forgets the area, if no slot of it is in use but those given back to the caches.
    pub fn finish_off(&self, id: AreaId) -> Result<(), SwapError> {
        self.drain();
        self.areas.finish_off(id)
    }

    /// Gives everything in the caches back to the areas.
    pub fn drain(&self) {
        self.drain_locked(&mut lock(&self.enable));
    }

    /// What was done so far.
    pub fn counters(&self) -> SlotCacheCounters {
        let switching = lock(&self.enable);
        let mut sum = SlotCacheCounters {
            drains: switching.drains,
            activations: switching.activations,
            deactivations: switching.deactivations,
            ..SlotCacheCounters::default()
        };
        for shard in &self.shards {
            let supply = lock(&shard.supply.0);
            sum.cached += supply.cached;
            sum.direct += supply.direct;
            sum.refills += supply.refills;
            drop(supply);
            let returned = lock(&shard.returned.0);
            sum.returned += returned.returned;
            sum.returned_direct += returned.direct;
            sum.flushes += returned.flushes;
        }
        sum
    }

    /// How many slots of each area are in the caches. A moment's picture.
    pub fn held(&self) -> [u32; MAX_AREAS] {
        let mut held = [0; MAX_AREAS];
        let mut add = |entries: &[SwapEntry]| entries.iter().for_each(|entry| held[usize::from(entry.area().0)] += 1);
        for shard in &self.shards {
            let supply = lock(&shard.supply.0);
            add(&supply.slots[supply.next..supply.end]);
            drop(supply);
            let returned = lock(&shard.returned.0);
            add(&returned.slots[..returned.count]);
        }
        held
    }

    /// Whether the caches are in use.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    fn shard(&self, shard: Shard) -> &ShardCache {
        // A shard number beyond the last costs locality, nothing else.
        self.shards.get(usize::from(shard.0)).unwrap_or(&self.shards[0])
    }

    /// Whether the caches should change over, given that they are active or not.
    fn should_switch(&self, active: bool) -> bool {
        let per_batch = SLOT_BATCH as u64 * self.shards.len() as u64;
        let free = self.areas.free_slots();
        if active { free < DEACTIVATE_BATCHES * per_batch } else { free > ACTIVATE_BATCHES * per_batch }
    }

    fn switch_by_free_slots(&self) {
        if !self.should_switch(self.is_active()) {
            return;
        }
        let mut switching = lock(&self.enable);
        // Somebody else may have been here first.
        let active = self.is_active();
        if !self.should_switch(active) {
            return;
        }
        self.active.store(!active, Ordering::Relaxed);
        if active {
            switching.deactivations += 1;
            self.drain_locked(&mut switching);
        } else {
            switching.activations += 1;
        }
    }

    fn drain_locked(&self, switching: &mut Switching) {
        switching.drains += 1;
        for shard in &self.shards {
            lock(&shard.supply.0).put_back(&self.areas);
            lock(&shard.returned.0).flush(&self.areas);
        }
    }
}

impl ShardCache {
    fn new() -> Self {
        let slots = [NO_ENTRY; SLOT_BATCH];
        Self {
            supply: Padded(Mutex::new(Supply { slots, next: 0, end: 0, cached: 0, direct: 0, refills: 0 })),
            returned: Padded(Mutex::new(Returned { slots, count: 0, returned: 0, direct: 0, flushes: 0 })),
        }
    }
}

impl Supply {
    fn hand_out(&mut self, out: &mut [SwapEntry]) -> usize {
        let count = out.len().min(self.end - self.next);
        out[..count].copy_from_slice(&self.slots[self.next..self.next + count]);
        self.next += count;
        self.cached += count as u64;
        count
    }

    /// Fills the empty array; `false` when the areas have nothing.
    fn refill(&mut self, areas: &Areas, shard: Shard) -> bool {
        self.next = 0;
        self.end = areas.alloc(shard, &mut self.slots);
        self.refills += u64::from(self.end > 0);
        self.end > 0
    }

    fn put_back(&mut self, areas: &Areas) {
        areas.free(&mut self.slots[self.next..self.end]);
        (self.next, self.end) = (0, 0);
    }
}

impl Returned {
    fn flush(&mut self, areas: &Areas) {
        self.flushes += u64::from(self.count > 0);
        areas.free(&mut self.slots[..self.count]);
        self.count = 0;
    }
}

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
