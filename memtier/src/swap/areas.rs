//! The areas that are on: which one gives the next slots, and which one an entry belongs to.
//!
//! Promises: an entry's area is found without a lock; slots come from the highest priority that has any; areas of equal priority take turns, a
//! batch each; an area without free slots is passed by until one is freed. Must never: lock an area while it holds the order's lock.
//!
//! The kernel keeps a list of the areas that have room and takes an area out when it fills up. Here every area stays in the order, and the ones
//! without room are passed by: with at most [`MAX_AREAS`] of them that costs nothing, and nothing can get out of step.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use super::SwapError;
use super::area::SlotArea;
use super::cluster::CLUSTER_SLOTS;
use super::sum::Sums;
use super::sync::{AtomicI64, Loaded, Mutex, Ordering, Published, lock};
use crate::tier::Capacity;
use crate::tier::store::PageStore;
use crate::units::{AreaId, MAX_AREAS, Shard, SlotOffset, SwapEntry};

/// Slots that one area hands out before an area of equal priority has its turn: the kernel's `SWAP_BATCH`.
#[cfg(not(loom))]
pub const SLOT_BATCH: usize = 64;
/// Few, for the model checker.
#[cfg(loom)]
pub const SLOT_BATCH: usize = 2;

/// The highest priority that can be asked for: the kernel's `SWAP_FLAG_PRIO_MASK`.
pub const MAX_PRIORITY: u16 = 32767;

/// The priority of the first area that asked for none; the next ones come below it.
const FIRST_AUTOMATIC: i32 = -2;

/// An area that is on.
#[derive(Debug)]
pub struct SwapArea {
    /// Its number.
    pub id: AreaId,
    /// Its slots.
    pub slots: SlotArea,
    /// Its pages' checksums.
    pub sums: Sums,
    /// Where its pages are.
    pub store: Box<dyn PageStore>,
}

impl SwapArea {
    fn free(&self, slots: &[SlotOffset]) -> u32 {
        self.slots.free(slots, |cluster| self.sums.forget(cluster))
    }
}

/// An area that was looked up; it stays while this lives.
#[derive(Debug)]
pub struct AreaRef(Loaded<SwapArea>);

impl AreaRef {
    fn new(loaded: Loaded<SwapArea>) -> Option<Self> {
        loaded.is_some().then_some(Self(loaded))
    }
}

impl Deref for AreaRef {
    type Target = SwapArea;

    fn deref(&self) -> &SwapArea {
        self.0.as_deref().expect("there is one: checked when it was made")
    }
}

#[derive(Debug)]
struct Ranked {
    priority: i32,
    area: Arc<SwapArea>,
}

/// All areas that are on.
#[derive(Debug)]
pub struct Areas {
    by_id: Box<[Published<SwapArea>]>,
    /// By priority, highest first; among equals, whose turn it is first.
    order: Mutex<Vec<Ranked>>,
    /// Slots that can be had, over all areas. Relaxed: a hint for the slot caches. It may be off by what is being taken or freed at the moment,
    /// even below zero, and is exact when nothing moves.
    free: AtomicI64,
    shards: u16,
}

impl Areas {
    /// No area yet.
    pub fn new(shards: u16) -> Self {
        Self {
            by_id: (0..MAX_AREAS).map(|_| Published::empty()).collect(),
            order: Mutex::new(Vec::new()),
            free: AtomicI64::new(0),
            shards,
        }
    }

    /// Refuses what [`Areas::swapon`] would refuse for any store, before one is made.
    pub fn check_room(&self, priority: Option<u16>) -> Result<(), SwapError> {
        match priority {
            Some(priority) if priority > MAX_PRIORITY => Err(SwapError::Priority { priority }),
            _ if lock(&self.order).len() == MAX_AREAS => Err(SwapError::TooManyAreas),
            _ => Ok(()),
        }
    }

    /// Switches an area on.
    pub fn swapon(&self, store: Box<dyn PageStore>, priority: Option<u16>) -> Result<AreaId, SwapError> {
        self.check_room(priority)?;
        let count = u32::try_from(store.slots()).unwrap_or(u32::MAX);
        if count < 2 {
            return Err(SwapError::NoSlots { path: store.path().to_owned() });
        }
        let tables = |source: io::Error| SwapError::Tables { slots: count, source };
        let slots = SlotArea::new(count, self.shards, store.bad_slots()).map_err(tables)?;
        let sums = Sums::new(count).map_err(tables)?;
        let mut order = lock(&self.order);
        let taken = order.iter().fold(0u64, |taken, ranked| taken | 1 << ranked.area.id.0);
        let id = (0u8..).take(MAX_AREAS).find(|id| taken & 1 << id == 0).map(AreaId);
        let id = id.ok_or(SwapError::TooManyAreas)?;
        let priority = priority.map_or_else(|| next_automatic(&order), i32::from);
        let area = Arc::new(SwapArea { id, slots, sums, store });
        let free = area.slots.counts().free;
        // Findable first, then handed out: whoever holds an entry finds its area.
        self.by_id[usize::from(id.0)].store(Some(Arc::clone(&area)));
        let at = order.partition_point(|ranked| ranked.priority >= priority);
        order.insert(at, Ranked { priority, area });
        self.add_free(free);
        Ok(id)
    }

    /// The area with this number, if it is on. Takes no lock; the area stays while the answer lives.
    pub fn get(&self, id: AreaId) -> Option<AreaRef> {
        AreaRef::new(self.by_id.get(usize::from(id.0))?.load())
    }

    /// Takes slots, as many as fit `out`; fewer when there are no more.
    pub fn alloc(&self, shard: Shard, out: &mut [SwapEntry]) -> usize {
        let mut slots = [SlotOffset(0); SLOT_BATCH];
        let mut empty = 0u64;
        let mut taken = 0;
        while taken < out.len() {
            let Some(area) = self.next_area(empty) else { break };
            let want = SLOT_BATCH.min(out.len() - taken);
            let got = area.slots.alloc(shard, &mut slots[..want]);
            let count = i64::try_from(got).expect("at most a batch");
            self.free.fetch_sub(count, Ordering::Relaxed);
            for (entry, slot) in out[taken..].iter_mut().zip(&slots[..got]) {
                *entry = SwapEntry::new(area.id, *slot);
            }
            taken += got;
            if got < want {
                empty |= 1 << area.id.0;
            }
        }
        taken
    }

    /// Takes a whole free cluster from the first area in the order that has one; answers its first slot.
    pub fn alloc_cluster(&self) -> Option<SwapEntry> {
        let mut without = 0u64;
        while let Some(area) = self.next_area(without) {
            if let Some(slot) = area.slots.alloc_cluster() {
                self.free.fetch_sub(i64::from(CLUSTER_SLOTS), Ordering::Relaxed);
                return Some(SwapEntry::new(area.id, slot));
            }
            without |= 1 << area.id.0;
        }
        None
    }

    /// Gives slots of one area back that were taken and hold no page, under one lock.
    pub fn free_in(&self, area: &SwapArea, slots: &[SlotOffset]) {
        self.add_free(area.free(slots));
    }

    /// Gives slots back that were taken and hold no page. Puts those of one area together.
    pub fn free(&self, entries: &mut [SwapEntry]) {
        if !entries.is_sorted_by_key(|entry| entry.area()) {
            entries.sort_unstable_by_key(|entry| entry.area());
        }
        let mut slots = [SlotOffset(0); SLOT_BATCH];
        for group in entries.chunk_by(|a, b| a.area() == b.area()) {
            // An area with slots handed out is on: it can't be switched off for good.
            let Some(area) = self.get(group[0].area()) else {
                debug_assert!(false, "{} freed after its area was switched off", group[0]);
                continue;
            };
            for part in group.chunks(SLOT_BATCH) {
                for (slot, entry) in slots.iter_mut().zip(part) {
                    *slot = entry.slot();
                }
                self.add_free(area.free(&slots[..part.len()]));
            }
        }
    }

    /// Slots that can be had, over all areas.
    pub fn free_slots(&self) -> u64 {
        u64::try_from(self.free.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Slots that can be had and slots there are, of the areas that hand out any.
    pub fn capacity(&self) -> Capacity {
        self.list().iter().fold(Capacity::default(), |sum, (_, area)| {
            let counts = area.slots.counts_if_on();
            Capacity {
                total: sum.total + u64::from(counts.free) + u64::from(counts.used),
                free: sum.free + u64::from(counts.free),
            }
        })
    }

    /// The same in whole clusters: those that are wholly free, and those together with the ones wholly in use.
    pub fn capacity_in_clusters(&self) -> Capacity {
        self.list().iter().fold(Capacity::default(), |sum, (_, area)| {
            let (free, full) = area.slots.whole_clusters_if_on();
            Capacity { total: sum.total + free + full, free: sum.free + free }
        })
    }

    /// Every area with its priority, highest first.
    pub fn list(&self) -> Vec<(i32, Arc<SwapArea>)> {
        lock(&self.order).iter().map(|ranked| (ranked.priority, Arc::clone(&ranked.area))).collect()
    }

    /// No slot of the area is handed out from now on. Those in slot caches are for the caller to drain.
    pub fn begin_off(&self, id: AreaId) -> Result<(), SwapError> {
        let area = self.get(id).ok_or(SwapError::NotOn { id })?;
        let free = area.slots.begin_off().map_err(|error| SwapError::off(id, error))?;
        self.free.fetch_sub(i64::from(free), Ordering::Relaxed);
        Ok(())
    }

    /// Undoes [`Areas::begin_off`].
    pub fn abort_off(&self, id: AreaId) -> Result<(), SwapError> {
        let area = self.get(id).ok_or(SwapError::NotOn { id })?;
        let free = area.slots.abort_off().map_err(|error| SwapError::off(id, error))?;
        self.add_free(free);
        Ok(())
    }

    /// Forgets the area, if no slot of it is in use. Its file is closed when the last reader that looked it up has gone.
    pub fn finish_off(&self, id: AreaId) -> Result<(), SwapError> {
        let area = self.get(id).ok_or(SwapError::NotOn { id })?;
        // From here on the area is off for good, and only this thread comes this far.
        area.slots.finish_off().map_err(|error| SwapError::off(id, error))?;
        let mut order = lock(&self.order);
        let Some(at) = order.iter().position(|ranked| ranked.area.id == id) else {
            return Err(SwapError::NotOn { id });
        };
        let gone = order.remove(at);
        // As in the kernel, automatic priorities move up, so that they don't run away with every swapoff and swapon.
        if gone.priority < 0 {
            for later in order.iter_mut().filter(|ranked| ranked.priority < gone.priority) {
                later.priority += 1;
            }
        }
        self.by_id[usize::from(id.0)].store(None);
        Ok(())
    }

    fn add_free(&self, slots: u32) {
        self.free.fetch_add(i64::from(slots), Ordering::Relaxed);
    }

    /// The first area in the order that may have free slots and is not in the set `but`; its equals have their turn before it.
    fn next_area(&self, but: u64) -> Option<Arc<SwapArea>> {
        let mut order = lock(&self.order);
        let fits = |ranked: &Ranked| but & 1 << ranked.area.id.0 == 0 && ranked.area.slots.may_have_free();
        let at = order.iter().position(fits)?;
        let area = Arc::clone(&order[at].area);
        let end = at + order[at..].partition_point(|ranked| ranked.priority == order[at].priority);
        order[at..end].rotate_left(1);
        Some(area)
    }
}

/// The next priority for an area that asks for none.
fn next_automatic(order: &[Ranked]) -> i32 {
    order.iter().map(|ranked| ranked.priority - 1).fold(FIRST_AUTOMATIC, i32::min)
}

#[cfg(all(test, not(loom)))]
mod tests;
