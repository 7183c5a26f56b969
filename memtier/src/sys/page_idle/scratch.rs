//! A few pages of our own, for what calls on them make the kernel do: put fresh pages on its lists, and empty this process's translation caches.
//!
//! Promises: no memory but its own is changed; what stays allocated is a page or two. Must never: be relied on for correctness of data; both
//! calls only make accessed bits exact.
//!
//! **Draining.** A fresh page waits in a per-processor batch of up to 31 before it joins an LRU list, and until then the idle page bitmap does
//! not know it (`mm/swap.c`, `folio_add_lru`). Locked pages wait in a second batch (`mm/mlock.c`). Calls that drain the batches of every
//! processor (`lru_add_drain_all`) are rare: MADV_COLLAPSE (Linux 6.1), and move_pages and mbind on kernels with NUMA. MADV_COLLAPSE drains
//! first and then goes through the huge pages *inside* the range; asked for a single page it drains and does nothing else. It wants a private
//! mapping with room for a huge page that has been touched once, whatever the settings for transparent huge pages are (but the kernel must
//! have them). Not drained by it: a page that somebody has isolated just then. MADV_COLD, munmap and most other calls drain only the
//! processor that they run on.
//!
//! **Flushing.** The bitmap clears accessed bits without flushing translation caches (`ptep_clear_young_notify`): a processor that has the
//! translation cached goes on using the page without setting the bit again. Unmapping more than 33 pages' span at once makes x86 kernels flush
//! everything of the process (`arch/x86/mm/tlb.c`, `tlb_single_page_flush_ceiling`): two pages at the ends of such a span are enough.

use std::io;
use std::ptr::{self, NonNull};

use crate::units::{Hva, PAGE_SIZE};

/// A huge page: what the mapping must have room for.
const HUGE: usize = 2 << 20;
/// The span below it that is touched and unmapped: 64 pages, more than 33, and too small for a huge page.
const SPAN: usize = 64 * PAGE_SIZE;
/// All below the huge page's place: the span, and below that one page that stays.
const BELOW: usize = PAGE_SIZE + SPAN;
/// Bytes reserved, of address space only.
const RESERVED: usize = BELOW + 2 * HUGE;

/// See the module.
#[derive(Debug)]
pub struct Scratch {
    /// The reservation.
    base: NonNull<u8>,
    /// The page that stays; the span follows it, and a huge page's place follows that.
    page: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone; its pages are only ever written volatile, and never read.
unsafe impl Send for Scratch {}
// SAFETY: as above: writes of the same byte from several threads are harmless, nothing depends on what the pages hold.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// Reserves address space and touches a page of it.
    pub fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh reservation at an address of the kernel's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), RESERVED, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let below = base.as_ptr() as usize + BELOW;
        // SAFETY: at most a huge page is skipped, so what follows is inside the reservation.
        let page = unsafe { base.add(below.next_multiple_of(HUGE) - below) };
        let scratch = Self { base, page };
        // What lies around it stays without rights, so that the kernel can't merge the mapping with a neighbour, whose huge pages would
        // then reach into the span.
        // SAFETY: a part of the reservation, which nobody else knows.
        if unsafe { libc::mprotect(page.as_ptr().cast(), BELOW + HUGE, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        scratch.touch();
        Ok(scratch)
    }

    /// A page that stays where it is.
    pub fn page(&self) -> Hva {
        Hva(self.page.as_ptr() as u64)
    }

    /// Writes to it.
    pub fn touch(&self) {
        self.write(0);
    }

    fn write(&self, offset: usize) {
        debug_assert!(offset < BELOW, "{offset:#x} is not in the part that is touched");
        // SAFETY: inside what is mapped for writing, and nobody has a reference to it.
        unsafe { self.page.add(offset).write_volatile(1) };
    }

    /// Puts pages that wait in per-processor batches on their lists, those of every processor. EINVAL: this kernel can't, it is from before
    /// 6.1 or has no transparent huge pages, or they are forbidden for this process (PR_SET_THP_DISABLE).
    pub fn drain_lru(&self) -> io::Result<()> {
        // The span's last page: there is no room for a huge page in it, so nothing is collapsed.
        self.advise(BELOW - PAGE_SIZE, PAGE_SIZE, libc::MADV_COLLAPSE)
    }

    /// Empties the translation caches of all processors that run threads of this process. Guests' own caches are others.
    pub fn flush_tlb(&self) -> io::Result<()> {
        self.write(PAGE_SIZE);
        self.write(BELOW - PAGE_SIZE);
        self.advise(PAGE_SIZE, SPAN, libc::MADV_DONTNEED)
    }

    fn advise(&self, offset: usize, len: usize, advice: libc::c_int) -> io::Result<()> {
        debug_assert!(offset + len <= BELOW, "{offset:#x}+{len:#x} is not in the part that is touched");
        // SAFETY: a part of the mapping; what its pages hold is nobody's concern.
        match unsafe { libc::madvise(self.page.as_ptr().add(offset).cast(), len, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; nothing outside has an address in it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), RESERVED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PageSlab;
    use crate::sys::kpageflags::{KPageFlags, Mapped, PageFrames};

    /// Fresh pages that are not on a list.
    fn waiting(slab: &PageSlab) -> Option<usize> {
        let (frames, flags) = (PageFrames::open().unwrap(), KPageFlags::open().ok()?);
        let mut reader = flags.reader();
        let mut waiting = 0;
        for page in slab.iter() {
            match frames.at(Hva(page.as_ptr() as u64)).unwrap() {
                Mapped::At(pfn) => waiting += usize::from(!reader.head(pfn).unwrap().1.is_on_lru()),
                Mapped::Hidden => return None,
                Mapped::No => panic!("touched, but not there"),
            }
        }
        Some(waiting)
    }

    #[test]
    fn draining_puts_fresh_pages_on_their_lists() {
        let scratch = Scratch::new().unwrap();
        // Kept until the end, so that each slab's pages are fresh.
        let mut slabs = Vec::new();
        let mut seen_waiting = 0;
        while seen_waiting < 10 {
            assert!(slabs.len() < 1000, "no page ever waited, so nothing was shown");
            let mut slab = PageSlab::new(7);
            slab.iter_mut().for_each(|page| page[0] = 1);
            // Without the rights to look there is nothing to compare.
            let Some(before) = waiting(&slab) else { return };
            // The kernel may have isolated a page just then, for a moment.
            let drained = (0..20).any(|_| {
                scratch.drain_lru().unwrap();
                waiting(&slab) == Some(0)
            });
            assert!(drained, "{:?} of {before} pages still wait", waiting(&slab));
            seen_waiting += usize::from(before > 0);
            slabs.push(slab);
        }
    }

    #[test]
    fn flushing_leaves_the_page_that_stays_and_nothing_else() {
        let scratch = Scratch::new().unwrap();
        let frames = PageFrames::open().unwrap();
        assert_eq!((scratch.page().0 + BELOW as u64) % HUGE as u64, 0);
        scratch.flush_tlb().unwrap();
        let mut entries = vec![[0; 8]; BELOW / PAGE_SIZE];
        frames.read(scratch.page(), &mut entries).unwrap();
        let mapped = entries.iter().map(|entry| Mapped::from_entry(*entry) != Mapped::No);
        assert_eq!(mapped.collect::<Vec<_>>(), [vec![true], vec![false; SPAN / PAGE_SIZE]].concat());
    }
}
