//! Huge pages out to swap areas: a whole cluster for each, past the slot caches, as the kernel's multi-page entries go.
//!
//! Only the first slot of a cluster is held: it stands for the page, its sum is the sum of all 512 parts. The others stay as they were handed
//! out, in state cached, nobody's but the holder's.
//!
//! Promises: as for single pages: acknowledged when written, back as it was or not at all; a part that could not be written keeps its cluster
//! out of use. Must never: read; [`Tier::load`](crate::tier::Tier::load) does that, for pages of any size.

use super::areas::SwapArea;
use super::cluster::cluster_slots;
use super::slot_map::report;
use super::swap_tier::{StoreResult, SwapTier, count, write_alone};
use crate::page::Page;
use crate::tier::StoreError;
use crate::tier::store::WriteRun;
use crate::units::{FrameSize, Gfn, SlotOffset};

#[cfg(not(loom))]
const _: () = assert!(FrameSize::Huge.pages() == super::cluster::CLUSTER_SLOTS as usize, "a huge page fills a cluster");

impl SwapTier {
    /// Stores the huge page at the start of `pages`; `None` when no area has a free cluster.
    pub(super) fn store_huge(&self, gfn: Gfn, pages: &[Page]) -> Option<StoreResult> {
        let pages = &pages[..FrameSize::Huge.pages()];
        let entry = self.areas.alloc_cluster()?;
        let first = entry.slot();
        let Some(area) = self.areas.get(entry.area()) else {
            unreachable!("{entry} was just taken, so its area is on")
        };
        let mut run = [WriteRun::new(first, pages)];
        area.store.write(&mut run);
        let [run] = run;
        if let Err(source) = run.outcome
            && !self.write_in_parts(&area, first, pages)
        {
            return Some(Err(StoreError::Write { entry, source }));
        }
        area.sums.set(first, area.sums.of(pages, gfn));
        area.slots.hold(first).unwrap_or_else(report);
        count(&self.counting.pages_written, pages.len());
        Some(Ok(entry))
    }

    /// The write of a cluster failed: finds the slots that it failed for by writing each alone, and takes them out of use. Answers whether
    /// there were none: then all of it is written now.
    fn write_in_parts(&self, area: &SwapArea, first: SlotOffset, pages: &[Page]) -> bool {
        let slots = cluster_slots(first);
        let outcomes: Vec<bool> =
            write_alone(area.store.as_ref(), first, pages).map(|outcome| outcome.is_ok()).collect();
        let with = |wanted| -> Vec<SlotOffset> {
            slots.iter().zip(&outcomes).filter(|(_, ok)| **ok == wanted).map(|(slot, _)| *slot).collect()
        };
        let bad = with(false);
        if bad.is_empty() {
            return true;
        }
        tracing::warn!(area = area.id.0, path = %area.store.path().display(), slots = bad.len(), "writing failed, slots marked bad");
        count(&self.counting.write_errors, 1);
        area.slots.mark_bad(&bad);
        self.areas.free_in(area, &with(true));
        false
    }

    /// Frees the cluster of a page whose first slot was released.
    pub(super) fn free_huge(&self, area: &SwapArea, first: SlotOffset) {
        self.areas.free_in(area, &cluster_slots(first));
    }

    /// Takes the cluster of a page that can't be read back out of use: which part of it is to blame is not known.
    pub(super) fn condemn_huge(&self, area: &SwapArea, first: SlotOffset) {
        area.slots.mark_bad(&cluster_slots(first));
    }
}
