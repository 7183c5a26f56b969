//! Pages out to swap areas and back: slots from the shard's cache, a checksum, one write per run of neighbouring slots.
//!
//! Promises: a page is acknowledged when its write was, and comes back as it was or not at all; a slot that could not be written is never used
//! again, and the pages beside it are not the worse for it. Must never: keep a lock of this module's over I/O.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::SwapError;
use super::areas::{Areas, SwapArea};
use super::slot_cache::{SlotCacheCounters, SlotCaches};
use super::slot_map::report;
use crate::page::Page;
use crate::status::{AreaInfo, AreaSpec, AreaState, Discard};
use crate::tier::file_store::FileStore;
use crate::tier::store::{PageStore, WriteRun};
use crate::tier::{Capacity, LoadError, STORE_BATCH, StoreError, Tier, store_batch};
use crate::units::{AreaId, Bytes, FrameSize, Gfn, PAGE_SIZE, Shard, SlotOffset, SwapEntry};

/// What a tier has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierCounters {
    /// Bytes acknowledged by the stores.
    pub bytes_written: u64,
    /// Bytes of pages brought back and found right.
    pub bytes_read: u64,
    /// Pages whose write failed.
    pub write_errors: u64,
    /// Pages whose read failed.
    pub read_errors: u64,
    /// Pages that came back wrong.
    pub checksum_errors: u64,
    /// Pages for which there was no slot.
    pub full: u64,
}

/// The live counters. Relaxed: each is read for itself, by people.
#[derive(Debug, Default)]
pub(super) struct Counting {
    pub(super) pages_written: AtomicU64,
    pages_read: AtomicU64,
    pub(super) write_errors: AtomicU64,
    read_errors: AtomicU64,
    checksum_errors: AtomicU64,
    full: AtomicU64,
}

/// The swap areas of one guest.
#[derive(Debug)]
pub struct SwapTier {
    pub(super) areas: Arc<Areas>,
    caches: SlotCaches,
    pub(super) counting: Counting,
    size: FrameSize,
}

impl SwapTier {
    /// No area yet, for frames of this size; a slot cache for every vCPU.
    pub fn new(vcpus: u16, size: FrameSize) -> Self {
        let areas = Arc::new(Areas::new(vcpus));
        Self { caches: SlotCaches::new(Arc::clone(&areas), vcpus), areas, counting: Counting::default(), size }
    }

    /// Switches a file or block device on as a swap area.
    pub fn swapon(&self, spec: &AreaSpec) -> Result<AreaId, SwapError> {
        self.areas.check_room(spec.priority)?;
        let store = FileStore::open(&spec.path, spec.size.map(Bytes))?;
        self.swapon_store(Box::new(store), spec.priority)
    }

    /// Switches any store on as a swap area. Its slot 0 is left alone.
    pub fn swapon_store(&self, store: Box<dyn PageStore>, priority: Option<u16>) -> Result<AreaId, SwapError> {
        self.areas.swapon(store, priority)
    }

    /// First step of a swapoff: when this has answered, no page goes to the area any more, save those that a store under way had slots for already.
    /// The caller then brings back what is in it.
    pub fn begin_swapoff(&self, id: AreaId) -> Result<(), SwapError> {
        self.caches.begin_off(id)
    }

    /// Last step of a swapoff: closes the area. [`SwapError::InUse`] while pages are in it or on their way there: bring them back and try again, or
    /// give up with [`SwapTier::abort_swapoff`].
    pub fn finish_swapoff(&self, id: AreaId) -> Result<(), SwapError> {
        self.caches.finish_off(id)
    }

    /// Takes a swapoff back: the area is used again.
    pub fn abort_swapoff(&self, id: AreaId) -> Result<(), SwapError> {
        self.areas.abort_off(id)
    }

    /// One row per area, as `/proc/swaps` has them, highest priority first. Other than there, slots waiting in caches don't count as used.
    pub fn list(&self) -> Vec<AreaInfo> {
        let held = self.caches.held();
        let row = |(priority, area): (i32, Arc<SwapArea>)| info(priority, &area, held[usize::from(area.id.0)]);
        self.areas.list().into_iter().map(row).collect()
    }

    /// What was done so far.
    pub fn counters(&self) -> TierCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TierCounters {
            bytes_written: Bytes::from_pages(get(&self.counting.pages_written)).0,
            bytes_read: Bytes::from_pages(get(&self.counting.pages_read)).0,
            write_errors: get(&self.counting.write_errors),
            read_errors: get(&self.counting.read_errors),
            checksum_errors: get(&self.counting.checksum_errors),
            full: get(&self.counting.full),
        }
    }

    /// What the slot caches have done so far.
    pub fn cache_counters(&self) -> SlotCacheCounters {
        self.caches.counters()
    }

    fn store_small(&self, shard: Shard, gfns: &[Gfn], pages: &[Page], results: &mut Vec<StoreResult>) {
        let mut entries = [SwapEntry::from_bits(0); STORE_BATCH];
        let taken = self.caches.take(shard, &mut entries[..gfns.len()]);
        let entries = &mut entries[..taken];
        // Ascending, so that slots that are neighbours are one write.
        entries.sort_unstable();
        for group in entries.chunk_by(|a, b| a.area() == b.area()) {
            let done = results.len();
            let range = done..done + group.len();
            self.store_in_area(group, &gfns[range.clone()], &pages[range], results);
        }
    }

    /// Stores pages of one area: `entries` ascending, `gfns` and `pages` beside them. Appends one result each.
    fn store_in_area(&self, entries: &[SwapEntry], gfns: &[Gfn], pages: &[Page], results: &mut Vec<StoreResult>) {
        let Some(area) = self.areas.get(entries[0].area()) else {
            unreachable!("{} was just taken, so its area is on", entries[0]);
        };
        let mut bad = Vec::new();
        for (i, outcome) in write_pages(area.store.as_ref(), entries, pages).into_iter().enumerate() {
            let slot = entries[i].slot();
            results.push(match outcome {
                Ok(()) => {
                    area.sums.set(slot, area.sums.of(&pages[i..=i], gfns[i]));
                    area.slots.hold(slot).unwrap_or_else(report);
                    Ok(entries[i])
                }
                Err(source) => {
                    bad.push(slot);
                    Err(StoreError::Write { entry: entries[i], source })
                }
            });
        }
        if !bad.is_empty() {
            area.slots.mark_bad(&bad);
            tracing::warn!(area = area.id.0, path = %area.store.path().display(), slots = bad.len(), "writing failed, slots marked bad");
        }
        count(&self.counting.write_errors, bad.len());
        count(&self.counting.pages_written, entries.len() - bad.len());
    }
}

pub(super) type StoreResult = Result<SwapEntry, StoreError>;

impl Tier for SwapTier {
    fn store(&self, shard: Shard, gfns: &[Gfn], pages: &[Page], results: &mut Vec<StoreResult>) {
        let fits = gfns.len() <= store_batch(self.size) && gfns.len() * self.size.pages() <= pages.len();
        assert!(fits, "a batch fits its pages and store_batch");
        results.clear();
        match self.size {
            FrameSize::Small => self.store_small(shard, gfns, pages, results),
            FrameSize::Huge => results.extend(gfns.iter().map_while(|gfn| self.store_huge(*gfn, pages))),
        }
        count(&self.counting.full, gfns.len() - results.len());
        results.resize_with(gfns.len(), || Err(StoreError::Full));
    }

    fn load(&self, entry: SwapEntry, gfn: Gfn, into: &mut [Page]) -> Result<(), LoadError> {
        let slot = entry.slot();
        let area = self.areas.get(entry.area()).ok_or(LoadError::NotInUse { entry })?;
        if !area.slots.state(slot).holds_page() {
            return Err(LoadError::NotInUse { entry });
        }
        let read = match &mut *into {
            [page] => area.store.read(slot, page),
            pages => area.store.read_run(slot, pages),
        };
        if let Err(source) = read {
            count(&self.counting.read_errors, 1);
            return Err(LoadError::Read { entry, source });
        }
        let (stored, found) = (area.sums.get(slot), area.sums.of(into, gfn));
        if stored != found {
            count(&self.counting.checksum_errors, 1);
            return Err(LoadError::Checksum { entry, gfn, stored, found });
        }
        count(&self.counting.pages_read, into.len());
        Ok(())
    }

    fn should_keep(&self, entry: SwapEntry) -> bool {
        self.areas.get(entry.area()).is_some_and(|area| area.slots.has_plenty())
    }

    fn still_holds(&self, entry: SwapEntry, gfn: Gfn, pages: &[Page]) -> bool {
        let Some(area) = self.areas.get(entry.area()) else { return false };
        let held = area.slots.is_on() && area.slots.state(entry.slot()).holds_page();
        held && area.sums.get(entry.slot()) == area.sums.of(pages, gfn)
    }

    fn invalidate(&self, shard: Shard, entry: SwapEntry) {
        let Some(area) = self.areas.get(entry.area()) else {
            debug_assert!(false, "{entry} invalidated, its area is off");
            return;
        };
        match (self.size, area.slots.release(entry.slot())) {
            (FrameSize::Small, Ok(true)) => self.caches.give_back(shard, entry),
            (FrameSize::Huge, Ok(true)) => self.free_huge(&area, entry.slot()),
            (_, Ok(false)) => {}
            (_, Err(error)) => report(error),
        }
    }

    fn condemn(&self, entry: SwapEntry) {
        let Some(area) = self.areas.get(entry.area()) else {
            debug_assert!(false, "{entry} condemned, its area is off");
            return;
        };
        match (self.size, area.slots.release(entry.slot())) {
            (FrameSize::Small, Ok(true)) => area.slots.mark_bad(&[entry.slot()]),
            (FrameSize::Huge, Ok(true)) => self.condemn_huge(&area, entry.slot()),
            (_, Ok(false)) => {}
            (_, Err(error)) => report(error),
        }
    }

    fn capacity(&self) -> Capacity {
        match self.size {
            FrameSize::Small => self.areas.capacity(),
            FrameSize::Huge => self.areas.capacity_in_clusters(),
        }
    }
}

/// Writes page i to entry i; neighbouring slots in one write. Where that fails each of its pages is written alone, so that one bad sector is one
/// bad slot.
fn write_pages(store: &dyn PageStore, entries: &[SwapEntry], pages: &[Page]) -> Vec<io::Result<()>> {
    let mut runs = Vec::new();
    let mut from = 0;
    for neighbours in entries.chunk_by(|a, b| a.to_bits() + 1 == b.to_bits()) {
        runs.push(WriteRun::new(neighbours[0].slot(), &pages[from..from + neighbours.len()]));
        from += neighbours.len();
    }
    store.write(&mut runs);
    let mut outcomes = Vec::with_capacity(entries.len());
    for run in runs {
        match run.outcome {
            Ok(()) => outcomes.extend(run.pages.iter().map(|_| Ok(()))),
            Err(error) if run.pages.len() == 1 => outcomes.push(Err(error)),
            Err(_) => outcomes.extend(write_alone(store, run.first, run.pages)),
        }
    }
    outcomes
}

pub(super) fn write_alone(
    store: &dyn PageStore,
    first: SlotOffset,
    pages: &[Page],
) -> impl Iterator<Item = io::Result<()>> {
    let mut runs: Vec<_> =
        (first.0..).zip(pages.chunks(1)).map(|(slot, page)| WriteRun::new(SlotOffset(slot), page)).collect();
    store.write(&mut runs);
    runs.into_iter().map(|run| run.outcome)
}

fn info(priority: i32, area: &SwapArea, held: u32) -> AreaInfo {
    let counts = area.slots.counts();
    AreaInfo {
        id: area.id.0,
        path: area.store.path().to_owned(),
        kind: area.store.kind().to_string(),
        size: (u64::from(counts.free) + u64::from(counts.used)) * PAGE_SIZE as u64,
        used: u64::from(counts.used.saturating_sub(held)) * PAGE_SIZE as u64,
        priority,
        bad_slots: u64::from(counts.bad),
        direct_io: area.store.direct_io(),
        encrypted: false,
        discard: Discard::Off,
        state: AreaState::On,
        uuid: None,
        label: String::new(),
    }
}

pub(super) fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

#[cfg(all(test, not(loom)))]
mod tests;
