//! A checksum per stored page: over its bytes and over which frame it belongs to.
//!
//! The sums stay in this process's memory: what comes back from a disk is compared with what was remembered here, so neither a damaged slot nor
//! an exchanged one nor an old one passes. The frame number seeds the hash, so that a right page in the wrong frame does not pass either.
//!
//! The same sums tell whether a page that came back has been written to since: if its sum is still that of its slot, it leaves again without
//! being stored. 64 bits decide that. A page that did change has the old sum with a probability of 2^-64: at a million pages leaving per second, once in
//! 600,000 years, far below what memory with error correction lets pass. A chance is not enough against a guest that looks for
//! collisions, for example to undo another's write inside it: so the seed also has a number that is random for each area and never leaves
//! this process.
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

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cluster::ClusterIndex;
use super::zeroed::Zeroed;
use crate::page::Page;
use crate::units::{Gfn, SlotOffset};

/// The sums of one area's slots.
#[derive(Debug)]
pub struct Sums {
    by_slot: Zeroed<AtomicU64>,
    key: u64,
}

impl Sums {
    /// Room for the sums of `slots` slots.
    pub fn new(slots: u32) -> io::Result<Self> {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        // A UUID has fixed bits in either half, at other places.
        Ok(Self { by_slot: Zeroed::new(slots as usize)?, key: high ^ low.rotate_left(17) })
    }

    /// The sum of the page, or of the pages together, that belong to a frame.
    pub fn of(&self, pages: &[Page], gfn: Gfn) -> u64 {
        xxh3_64_with_seed(pages.as_flattened(), self.key ^ gfn.0)
    }

    /// Remembers the sum of the page just stored.
    pub fn set(&self, slot: SlotOffset, sum: u64) {
        self.by_slot[slot.0 as usize].store(sum, Ordering::Relaxed);
    }

    /// The sum remembered; 0 for a slot that never held a page.
    pub fn get(&self, slot: SlotOffset) -> u64 {
        self.by_slot.get(slot.0 as usize).map_or(0, |sum| sum.load(Ordering::Relaxed))
    }

    /// Gives back the memory of a cluster's sums: exactly one page. No slot of the cluster may be in use, nor come in use meanwhile, so this is
    /// called under the area's lock.
    pub fn forget(&self, cluster: ClusterIndex) {
        let slots = cluster.slots();
        let index = |slot| usize::try_from(slot).unwrap_or(usize::MAX);
        self.by_slot.give_back(index(slots.start)..index(slots.end));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::area::SlotArea;
    use super::*;
    use crate::units::{PAGE_SIZE, Shard};

    #[test]
    fn a_sum_depends_on_every_byte_on_the_frame_and_on_the_area() {
        let (sums, others) = (Sums::new(1).unwrap(), Sums::new(1).unwrap());
        let page = [7; PAGE_SIZE];
        let sum = sums.of(&[page], Gfn(1));
        assert_eq!(sum, sums.of(&[page], Gfn(1)));
        assert_ne!(sum, sums.of(&[page], Gfn(2)));
        assert_ne!(sum, others.of(&[page], Gfn(1)));
        for at in [0, 1, PAGE_SIZE / 2, PAGE_SIZE - 1] {
            let mut other = page;
            other[at] ^= 1;
            assert_ne!(sum, sums.of(&[other], Gfn(1)));
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
