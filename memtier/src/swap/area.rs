//! One swap area's slots: handed out in batches, taken back in batches, counted, and refused once the area is to be switched off.
//!
//! Promises: a slot is handed out to one taker at a time; `free + used + bad` is always the number of slots without the header. After
//! [`SlotArea::begin_off`] has answered no slot is handed out until [`SlotArea::abort_off`]. Must never: do I/O, or hold its lock while anybody
//! else does.

use std::io;

use super::cluster::{CLUSTER_SLOTS, ClusterIndex, Clusters};
use super::slot_map::{SlotMap, SlotState, WrongState, report};
use super::sync::{AtomicU32, Mutex, Ordering, lock};
use crate::units::{Shard, SlotOffset};

/// How many slots are what. The header's slot 0 is none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// To be handed out.
    pub free: u32,
    /// Handed out: holding pages, in slot caches, or on the way between.
    pub used: u32,
    /// Not to be used.
    pub bad: u32,
}

/// Why an area does not change over to being switched off, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffError {
    /// It is being switched off already, or for good.
    #[error("is being switched off already")]
    Begun,
    /// Nobody began.
    #[error("is not being switched off")]
    NotBegun,
    /// Slots are still handed out.
    #[error("still has {used} slots in use")]
    InUse {
        /// How many.
        used: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    On,
    GoingOff,
    Off,
}

#[derive(Debug)]
struct Inner {
    clusters: Clusters,
    counts: SlotCounts,
    phase: Phase,
}

/// The slots of one area.
#[derive(Debug)]
pub struct SlotArea {
    map: SlotMap,
    /// Guards every change between free and handed out.
    inner: Mutex<Inner>,
    /// Free slots while the area is on, else 0: what a look without the lock sees. Relaxed, since it is a hint: who acts on it takes the
    /// lock and looks again.
    available: AtomicU32,
}

impl SlotArea {
    /// An area of `slots` slots including the header's, for that many shards. Bad slots beyond the end don't matter.
    pub fn new(slots: u32, shards: u16, bad: &[SlotOffset]) -> io::Result<Self> {
        let map = SlotMap::new(slots as usize)?;
        let mut clusters = Clusters::new(slots, shards)?;
        let mut counts = SlotCounts { free: slots, used: 0, bad: 0 };
        for slot in [SlotOffset(0)].iter().chain(bad) {
            // Named twice: excluded once.
            if map.exclude(*slot).is_ok() {
                clusters.exclude(*slot);
                counts.free -= 1;
                counts.bad += u32::from(slot.0 != 0);
            }
        }
        let inner = Mutex::new(Inner { clusters, counts, phase: Phase::On });
        Ok(Self { map, inner, available: AtomicU32::new(counts.free) })
    }

    /// What a slot is used for.
    pub fn state(&self, slot: SlotOffset) -> SlotState {
        self.map.get(slot)
    }

    /// Whether a slot could be had a moment ago.
    pub fn may_have_free(&self) -> bool {
        self.available.load(Ordering::Relaxed) > 0
    }

    /// Whether less than half of the slots are in use, and the area is on: slots may be kept for pages that are in memory (the kernel's
    /// `vm_swap_full`, which looks at all areas together). A moment's picture.
    pub fn has_plenty(&self) -> bool {
        self.available.load(Ordering::Relaxed) as usize > self.map.len() / 2
    }

    /// Whether the area is on. Under the lock: who is told so has been told before any [`SlotArea::begin_off`] that comes later.
    pub fn is_on(&self) -> bool {
        lock(&self.inner).phase == Phase::On
    }

    /// The counts now.
    pub fn counts(&self) -> SlotCounts {
        lock(&self.inner).counts
    }

    /// The counts now, or none at all while the area is being switched off.
    pub fn counts_if_on(&self) -> SlotCounts {
        let inner = lock(&self.inner);
        if inner.phase == Phase::On { inner.counts } else { SlotCounts::default() }
    }

    /// Hands out as many slots as fit `out`, fewer when there are no more. Each is in state cached then.
    pub fn alloc(&self, shard: Shard, out: &mut [SlotOffset]) -> usize {
        let mut inner = lock(&self.inner);
        if inner.phase != Phase::On {
            return 0;
        }
        let mut taken = 0;
        while taken < out.len() {
            match inner.clusters.take(&self.map, shard, &mut out[taken..]) {
                0 => break,
                n => taken += n,
            }
        }
        let n = u32::try_from(taken).expect("no more slots than a u32 counts");
        inner.counts.free -= n;
        inner.counts.used += n;
        self.available.store(inner.counts.free, Ordering::Relaxed);
        taken
    }

    /// Hands out a wholly free cluster with all of its slots, each in state cached then; answers its first one. A bad slot in it keeps a
    /// cluster from being wholly free for good.
    pub fn alloc_cluster(&self) -> Option<SlotOffset> {
        let mut inner = lock(&self.inner);
        if inner.phase != Phase::On {
            return None;
        }
        let first = inner.clusters.take_whole(&self.map)?;
        inner.counts.free -= CLUSTER_SLOTS;
        inner.counts.used += CLUSTER_SLOTS;
        self.available.store(inner.counts.free, Ordering::Relaxed);
        Some(first)
    }

    /// Clusters that are wholly free, and clusters of which every slot is in use or unusable; none at all while the area is being switched
    /// off.
    pub fn whole_clusters_if_on(&self) -> (u64, u64) {
        let inner = lock(&self.inner);
        if inner.phase == Phase::On { inner.clusters.whole() } else { (0, 0) }
    }

    /// Takes slots back that are in state cached. `emptied` hears, still under the lock, of every cluster that is wholly free now. Answers how
    /// many slots more can be had: none while the area is being switched off. A slot that was not handed out is left alone and reported.
    pub fn free(&self, slots: &[SlotOffset], mut emptied: impl FnMut(ClusterIndex)) -> u32 {
        let mut inner = lock(&self.inner);
        let mut freed = 0;
        for slot in slots {
            match self.map.put(*slot) {
                Ok(()) => {
                    freed += 1;
                    if let Some(cluster) = inner.clusters.freed(*slot) {
                        emptied(cluster);
                    }
                }
                Err(error) => report(error),
            }
        }
        inner.counts.free += freed;
        inner.counts.used -= freed;
        if inner.phase != Phase::On {
            return 0;
        }
        self.available.store(inner.counts.free, Ordering::Relaxed);
        freed
    }

    /// Takes slots out of use for good. Their holder could not write to them; they are in state cached.
    pub fn mark_bad(&self, slots: &[SlotOffset]) {
        let mut inner = lock(&self.inner);
        for slot in slots {
            match self.map.condemn(*slot) {
                Ok(()) => {
                    inner.counts.used -= 1;
                    inner.counts.bad += 1;
                }
                Err(error) => report(error),
            }
        }
    }

    /// The slot was handed to the caller and holds a page now.
    pub fn hold(&self, slot: SlotOffset) -> Result<(), WrongState> {
        self.map.hold(slot)
    }

    /// One user less of the page in the slot; `true` when it was the last one, and the slot is the caller's to free.
    pub fn release(&self, slot: SlotOffset) -> Result<bool, WrongState> {
        self.map.release(slot)
    }

    /// Hands out no slot from now on. Answers how many could be had until now.
    pub fn begin_off(&self) -> Result<u32, OffError> {
        let mut inner = lock(&self.inner);
        if inner.phase != Phase::On {
            return Err(OffError::Begun);
        }
        inner.phase = Phase::GoingOff;
        self.available.store(0, Ordering::Relaxed);
        Ok(inner.counts.free)
    }

    /// Hands out slots again. Answers how many can be had.
    pub fn abort_off(&self) -> Result<u32, OffError> {
        let mut inner = lock(&self.inner);
        if inner.phase != Phase::GoingOff {
            return Err(OffError::NotBegun);
        }
        inner.phase = Phase::On;
        self.available.store(inner.counts.free, Ordering::Relaxed);
        Ok(inner.counts.free)
    }

    /// Switches off for good, if no slot is handed out.
    pub fn finish_off(&self) -> Result<(), OffError> {
        let mut inner = lock(&self.inner);
        match (inner.phase, inner.counts.used) {
            (Phase::GoingOff, 0) => {
                inner.phase = Phase::Off;
                Ok(())
            }
            (Phase::GoingOff, used) => Err(OffError::InUse { used }),
            _ => Err(OffError::NotBegun),
        }
    }

    /// Recounts everything from the map and compares: the slow truth against the counters. Only while nothing changes.
    pub fn validate(&self) -> Result<(), String> {
        let inner = lock(&self.inner);
        let mut found = SlotCounts::default();
        for slot in 1..u32::try_from(self.map.len()).expect("made from a u32") {
            match self.map.get(SlotOffset(slot)) {
                SlotState::FREE => found.free += 1,
                SlotState::UNUSABLE => found.bad += 1,
                _ => found.used += 1,
            }
        }
        let in_clusters = inner.clusters.recount();
        let expected = u64::from(found.used) + u64::from(found.bad) + 1;
        if found == inner.counts && in_clusters == expected {
            return Ok(());
        }
        Err(format!("map has {found:?}, counted {:?}; clusters have {in_clusters}, expected {expected}", inner.counts))
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
