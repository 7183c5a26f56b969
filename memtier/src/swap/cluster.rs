//! Which free slot is taken next: clusters of slots, so that what is written together lies together.
//!
//! As in the kernel for solid-state disks: wholly free clusters wait in a first-in-first-out list, which spreads the wear; every shard fills
//! a current cluster of its own from front to back; only when no cluster is free are single free slots looked for, between the lowest and the
//! highest slot that may be free. A cluster with an unusable slot in it (the header, a bad slot, the short cluster at the end) is never wholly
//! free and is used that way only.
//!
//! A huge page takes a whole cluster. An area serves pages of one size only, so the two ways of taking never meet.
//!
//! Promises: [`Clusters::take`] finds a free slot if there is one; consecutive slots while a cluster lasts. Must never: be used without the
//! area's lock.

use std::io;
use std::ops::Range;

use super::slot_map::{SlotMap, SlotState, report};
use super::zeroed::Zeroed;
use crate::units::{Shard, SlotOffset};

/// Slots of a cluster.
#[cfg(not(loom))]
pub const CLUSTER_SLOTS: u32 = 512;
/// Slots of a cluster, few for the model checker.
#[cfg(loom)]
pub const CLUSTER_SLOTS: u32 = 4;

/// The slots of a whole cluster.
pub type ClusterSlots = [SlotOffset; CLUSTER_SLOTS as usize];

/// The slots of the whole cluster that begins with `first`.
pub fn cluster_slots(first: SlotOffset) -> ClusterSlots {
    let mut slot = first.0..;
    std::array::from_fn(|_| SlotOffset(slot.next().unwrap_or(u32::MAX)))
}

/// A cluster's number within its area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterIndex(u32);

impl ClusterIndex {
    const fn containing(slot: SlotOffset) -> Self {
        Self(slot.0 / CLUSTER_SLOTS)
    }

    const fn get(self) -> usize {
        self.0 as usize
    }

    /// Its slots, of a whole cluster.
    fn slot_offsets(self) -> ClusterSlots {
        cluster_slots(SlotOffset(self.0 * CLUSTER_SLOTS))
    }

    /// Its slots, as indices. In 64 bits, since the end of the last cluster need not fit 32.
    pub const fn slots(self) -> Range<u64> {
        let start = self.0 as u64 * CLUSTER_SLOTS as u64;
        start..start + CLUSTER_SLOTS as u64
    }
}

/// The part of a shard's current cluster that it has not gone through yet.
#[derive(Clone, Debug)]
struct Current {
    cluster: ClusterIndex,
    rest: Range<u32>,
}

/// The clusters of one area.
#[derive(Debug)]
pub struct Clusters {
    /// Slots in use per cluster, unusable ones included.
    used: Zeroed<u16>,
    free: FreeList,
    /// By shard.
    current: Box<[Option<Current>]>,
    /// No slot below this one is free.
    lowest: u32,
    /// No slot above this one is free.
    highest: u32,
    /// Where the next search for single slots begins.
    search_from: u32,
}

impl Clusters {
    /// The clusters of an area with `slots` slots, numbered from 0.
    pub fn new(slots: u32, shards: u16) -> io::Result<Self> {
        let count = slots.div_ceil(CLUSTER_SLOTS);
        Ok(Self {
            used: Zeroed::new(count as usize)?,
            free: FreeList::new(count as usize, slots / CLUSTER_SLOTS)?,
            current: vec![None; usize::from(shards.max(1))].into(),
            lowest: 0,
            highest: slots.saturating_sub(1),
            search_from: 0,
        })
    }

    /// Leaves a slot out for good, before any was taken.
    pub fn exclude(&mut self, slot: SlotOffset) {
        self.account(&[slot]);
    }

    /// Takes free slots: as many as fit `out` and as one step finds; none only when the map has no free slot.
    pub fn take(&mut self, map: &SlotMap, shard: Shard, out: &mut [SlotOffset]) -> usize {
        if out.is_empty() {
            return 0;
        }
        let shard = usize::from(shard.0).min(self.current.len() - 1);
        loop {
            if self.current[shard].is_none() {
                let Some(cluster) = self.free.pop(&self.used) else { return self.search(map, out) };
                let start = cluster.0 * CLUSTER_SLOTS;
                self.current[shard] = Some(Current { cluster, rest: start..start + CLUSTER_SLOTS });
            }
            let taken = self.take_current(map, shard, out);
            if taken > 0 {
                return taken;
            }
        }
    }

    /// Takes a wholly free cluster with all of its slots; answers its first one.
    pub fn take_whole(&mut self, map: &SlotMap) -> Option<SlotOffset> {
        let cluster = self.free.pop(&self.used)?;
        let slots = cluster.slot_offsets();
        for slot in slots {
            // A wholly free cluster has no slot in another state.
            map.take(slot).unwrap_or_else(report);
        }
        self.account(&slots);
        Some(slots[0])
    }

    /// How many clusters are wholly free, and how many have every slot in use or unusable.
    pub fn whole(&self) -> (u64, u64) {
        let whole = &self.used[..self.free.whole as usize];
        let count = |used: u32| whole.iter().map(|n| u64::from(u32::from(*n) == used)).sum();
        (count(0), count(CLUSTER_SLOTS))
    }

    /// Accounts for a slot that became free. Answers its cluster when that is wholly free now.
    pub fn freed(&mut self, slot: SlotOffset) -> Option<ClusterIndex> {
        self.lowest = self.lowest.min(slot.0);
        self.highest = self.highest.max(slot.0);
        let cluster = ClusterIndex::containing(slot);
        let used = &mut self.used[cluster.get()];
        *used -= 1;
        if *used > 0 || !self.free.covers(cluster) {
            return None;
        }
        // A shard that is still going through it puts it on the list when it is done.
        if !self.current.iter().flatten().any(|current| current.cluster == cluster) {
            self.free.push(cluster);
        }
        Some(cluster)
    }

    /// Slots in use in all clusters, unusable ones included: recounted, for comparing with what is counted along the way.
    pub fn recount(&self) -> u64 {
        self.used.iter().map(|used| u64::from(*used)).sum()
    }

    fn take_current(&mut self, map: &SlotMap, shard: usize, out: &mut [SlotOffset]) -> usize {
        let Some(mut current) = self.current[shard].take() else { return 0 };
        let mut taken = 0;
        while taken < out.len()
            && let Some(slot) = current.rest.next()
        {
            if map.take(SlotOffset(slot)).is_ok() {
                out[taken] = SlotOffset(slot);
                taken += 1;
            }
        }
        self.account(&out[..taken]);
        if !current.rest.is_empty() {
            self.current[shard] = Some(current);
        } else if self.used[current.cluster.get()] == 0 {
            self.free.push(current.cluster);
        }
        taken
    }

    /// No cluster is wholly free: looks for single slots, once round from where the last search ended, passing full clusters by.
    fn search(&mut self, map: &SlotMap, out: &mut [SlotOffset]) -> usize {
        if self.lowest > self.highest {
            return 0;
        }
        let from = self.search_from.clamp(self.lowest, self.highest);
        let mut taken = self.search_range(map, from..=self.highest, out);
        if taken < out.len() && from > self.lowest {
            taken += self.search_range(map, self.lowest..=from - 1, &mut out[taken..]);
        }
        self.account(&out[..taken]);
        self.search_from = match out[..taken].last() {
            Some(last) => last.0.saturating_add(1),
            None => 0,
        };
        taken
    }

    fn search_range(&self, map: &SlotMap, range: std::ops::RangeInclusive<u32>, out: &mut [SlotOffset]) -> usize {
        let mut taken = 0;
        let (mut slot, end) = (u64::from(*range.start()), u64::from(*range.end()));
        while slot <= end && taken < out.len() {
            let at = SlotOffset(u32::try_from(slot).expect("not beyond the range's end"));
            let cluster = ClusterIndex::containing(at);
            if u32::from(self.used[cluster.get()]) == CLUSTER_SLOTS {
                slot = cluster.slots().end;
                continue;
            }
            // Looking before taking spares an atomic exchange on every slot in use.
            if map.get(at) == SlotState::FREE && map.take(at).is_ok() {
                out[taken] = at;
                taken += 1;
            }
            slot += 1;
        }
        taken
    }

    /// Counts slots just taken and moves the bounds off them.
    fn account(&mut self, taken: &[SlotOffset]) {
        for slot in taken {
            self.used[ClusterIndex::containing(*slot).get()] += 1;
            if slot.0 == self.lowest {
                self.lowest = self.lowest.saturating_add(1);
            }
            if slot.0 == self.highest {
                self.highest = self.highest.saturating_sub(1);
            }
        }
    }
}

/// The wholly free clusters, first in, first out. Those never used yet come first and need no memory to be listed.
#[derive(Debug)]
struct FreeList {
    /// Whole clusters; the short one at the end, if there is one, is not counted.
    whole: u32,
    /// Clusters from here on were never taken.
    fresh: u32,
    /// The one behind, as its number plus one; 0 for none.
    next: Zeroed<u32>,
    ends: Option<(ClusterIndex, ClusterIndex)>,
}

impl FreeList {
    fn new(clusters: usize, whole: u32) -> io::Result<Self> {
        Ok(Self { whole, fresh: 0, next: Zeroed::new(clusters)?, ends: None })
    }

    const fn covers(&self, cluster: ClusterIndex) -> bool {
        cluster.0 < self.whole
    }

    fn push(&mut self, cluster: ClusterIndex) {
        self.next[cluster.get()] = 0;
        self.ends = Some(match self.ends {
            None => (cluster, cluster),
            Some((first, last)) => {
                self.next[last.get()] = cluster.0 + 1;
                (first, cluster)
            }
        });
    }

    fn pop(&mut self, used: &[u16]) -> Option<ClusterIndex> {
        while self.fresh < self.whole {
            let cluster = ClusterIndex(self.fresh);
            self.fresh += 1;
            if used[cluster.get()] == 0 {
                return Some(cluster);
            }
        }
        let (first, last) = self.ends?;
        self.ends = self.next[first.get()].checked_sub(1).map(|next| (ClusterIndex(next), last));
        Some(first)
    }
}
