//! A checksum per stored page: over its bytes and over which frame it belongs to.
//!
//! The sums stay in this process's memory: what comes back from a disk is compared with what was remembered here, so neither a damaged slot nor
//! an exchanged one nor an old one passes. The frame number seeds the hash, so that a right page in the wrong frame does not pass either.
//!
//! Promises: [`Sums::get`] answers what [`Sums::set`] was last told for that slot. Slots never used cost no memory. Must never: be asked about a
//! slot that the caller doesn't know to be in use.
//!
//! Why relaxed is enough: `set` happens before the entry is published (by release, in the frame's state word), and `get` after the entry was read
//! from there (by acquire). The next `set` for the slot comes after it went through the slot caches' and the area's locks. So reader and
//! writers are always ordered by something else. Should they not be, through a bug, then the reader sees another slot's life's sum, the page
//! does not match it, and the load fails, which is what sums are for.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cluster::ClusterIndex;
use super::zeroed::Zeroed;
use crate::page::Page;
use crate::units::{Gfn, SlotOffset};

/// The sum of a page that belongs to a frame.
pub fn page_sum(page: &Page, gfn: Gfn) -> u64 {
    xxh3_64_with_seed(page, gfn.0)
}

/// The sums of one area's slots.
#[derive(Debug)]
pub struct Sums(Zeroed<AtomicU64>);

impl Sums {
    /// Room for the sums of `slots` slots.
    pub fn new(slots: u32) -> io::Result<Self> {
        Zeroed::new(slots as usize).map(Self)
    }

    /// Remembers the sum of the page just stored.
    pub fn set(&self, slot: SlotOffset, sum: u64) {
        self.0[slot.0 as usize].store(sum, Ordering::Relaxed);
    }

    /// The sum remembered; 0 for a slot that never held a page.
    pub fn get(&self, slot: SlotOffset) -> u64 {
        self.0.get(slot.0 as usize).map_or(0, |sum| sum.load(Ordering::Relaxed))
    }

    /// Gives back the memory of a cluster's sums: exactly one page. No slot of the cluster may be in use, nor come in use meanwhile, so this is
    /// called under the area's lock.
    pub fn forget(&self, cluster: ClusterIndex) {
        let slots = cluster.slots();
        let index = |slot| usize::try_from(slot).unwrap_or(usize::MAX);
        self.0.give_back(index(slots.start)..index(slots.end));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::area::SlotArea;
    use super::*;
    use crate::units::{PAGE_SIZE, Shard};

    #[test]
    fn a_sum_depends_on_every_byte_and_on_the_frame() {
        let page = [7; PAGE_SIZE];
        let sum = page_sum(&page, Gfn(1));
        assert_eq!(sum, page_sum(&page, Gfn(1)));
        assert_ne!(sum, page_sum(&page, Gfn(2)));
        for at in [0, 1, PAGE_SIZE / 2, PAGE_SIZE - 1] {
            let mut other = page;
            other[at] ^= 1;
            assert_ne!(sum, page_sum(&other, Gfn(1)));
        }
    }

    #[test]
    fn an_emptied_clusters_sums_are_given_back_and_no_others() {
        let area = SlotArea::new(4 * 512, 1, &[]).unwrap();
        let sums = Sums::new(4 * 512).unwrap();
        let mut slots = vec![SlotOffset(0); 1024];
        assert_eq!(area.alloc(Shard(0), &mut slots), 1024);
        for slot in &slots {
            sums.set(*slot, u64::from(slot.0));
        }
        area.free(&slots[..513], |cluster| sums.forget(cluster));
        for slot in &slots[..512] {
            assert_eq!(sums.get(*slot), 0);
        }
        for slot in &slots[512..] {
            assert_eq!(sums.get(*slot), u64::from(slot.0));
        }
        assert_eq!(sums.get(SlotOffset(1 << 20)), 0);
    }
}
