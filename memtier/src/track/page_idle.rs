//! The `page_idle` tracker: the host kernel's idle page bitmap, which asks the accessed bits of every page table that maps a frame, KVM's
//! (EPT/NPT) among them through the MMU notifier. The guest takes no fault for it.
//!
//! A guest frame's host frame is found in `/proc/self/pagemap`; bits are read and set in chunks of 64, in the order of host frames. A frame
//! that is not mapped has not been accessed since it was unmapped, because KVM maps nothing that this process has not mapped.
//!
//! Promises: reads and writes are seen alike, by vCPUs, by devices in this process and by the kernel on their behalf. Frames of a compound page
//! are one: a reference to any of them makes all of them busy, by one reading of the head's bit (the kernel ignores its tails), and heads are
//! found in `/proc/kpageflags`, not assumed. Must never: tell a frame as not accessed that it can't see.
//!
//! **What is exact.** With guest memory in pages of 4 KiB, locked and registered with userfaultfd as
//! [`Arena`](crate::arena::Arena) does it, a frame is told if and only if it was accessed since it was armed. Three things are done for that:
//!
//! * *Fresh pages.* The bitmap does not know a page before it is on an LRU list. When a frame is found that is on none, the kernel's batches of
//!   waiting pages are drained ([`scratch`](crate::sys::page_idle::scratch)), and bits are read again. What is on no list then counts as
//!   accessed.
//! * *Translation caches.* The kernel clears accessed bits without flushing them, and a hot page would look idle for as long as its
//!   translation stays cached. So after marks were set, this process's translations are flushed, and those of the guest too: unmapping
//!   one page that KVM maps makes it flush them all, and a few frames of those just marked are unmapped for that (the guest maps them again
//!   without leaving the kernel). Only if none of them was ever touched by a vCPU, the guest's translations stay.
//! * *Between reading and marking.* A plain write of marks loses the accesses since the bits were read. Here, arming the frames that were
//!   collected last marks only those that were told, and leaves alone those still marked. So an access between the two is told the next time,
//!   or it was to a frame that was told just before; none is lost.
//!
//! **What is not.** Accesses count for all users of the bitmap: another program that marks the same host frames between arming and collecting
//! hides what was accessed before. The kernel skips a page that is locked just then, for a moment. With the multi-generational LRU, unmapping
//! a page forgets its reference (`folio_mark_accessed` returns early), and the kernel's own aging takes references of memory that is not
//! locked. A frame that is being moved by compaction counts as not mapped if it is met in the middle, and as accessed if it moved while its bit
//! was read. Pages of hugetlbfs are on no list at all: each counts as accessed whenever it is mapped, so this tracker is of no use for them.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::memory::{GuestMemory, Region};
use crate::status::{HugePages, TrackerKind};
use crate::sys::mem;
use crate::track::AccessTracker;
use crate::units::{FrameIndex, PAGE_SIZE};

mod host;
mod judge;
mod places;
mod sight;

use host::Host;
pub use host::PageIdleError;
use sight::Sight;

/// Whether this process can track by the host's idle page bitmap: tries it on a page of its own.
pub fn usable() -> Result<(), PageIdleError> {
    PageIdle::open().map(drop)
}

/// See the module.
#[derive(Debug)]
pub struct PageIdle {
    host: Host,
    sight: Mutex<Sight>,
}

impl PageIdle {
    /// Opens what it needs, and tries it on a page of its own.
    pub fn open() -> Result<Self, PageIdleError> {
        Ok(Self { host: Host::open()?, sight: Mutex::new(Sight::new()) })
    }

    /// Whether it can see accesses to memory backed like this.
    pub const fn sees(backing: HugePages) -> bool {
        !matches!(backing, HugePages::Hugetlb2M)
    }

    fn lock(&self) -> MutexGuard<'_, Sight> {
        // What a panicking thread left behind is only what some frames looked like, and it is marked invalid while it changes.
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every processor look at the page tables again when it next touches one of the frames just armed. `few` are some of them.
    fn forget_translations(&self, region: &Region, few: &[FrameIndex]) -> io::Result<()> {
        for frame in few {
            // SAFETY: the guest mapping is shared, as `RegionSpec` asks.
            unsafe { mem::drop_page_tables(region.hva(*frame), PAGE_SIZE as u64)? };
        }
        self.host.flush()
    }
}

impl AccessTracker for PageIdle {
    fn kind(&self) -> TrackerKind {
        TrackerKind::PageIdle
    }

    fn batch(&self) -> u32 {
        places::MOST
    }

    /// Clearing an accessed bit costs the guest nothing; the few pages unmapped per batch are not worth sparing hot frames.
    fn slows_the_guest(&self) -> bool {
        false
    }

    /// A frame is told only if it is mapped, and shared memory is never mapped without a page: a read of a hole allocates one.
    fn proves_memory(&self) -> bool {
        true
    }

    fn arm(&self, memory: &GuestMemory, frames: Range<u32>) -> io::Result<()> {
        let mut sight = self.lock();
        for (region, part) in memory.parts(frames) {
            for batch in batches(part) {
                if !sight.covers(region, &batch) {
                    sight.look(&self.host, memory, region, batch.clone())?;
                }
                let few = sight.mark(&self.host, &batch)?;
                if !few.is_empty() {
                    self.forget_translations(region, &few)?;
                }
            }
        }
        Ok(())
    }

    fn collect(
        &self,
        memory: &GuestMemory,
        frames: Range<u32>,
        accessed: &mut dyn FnMut(Range<u32>),
    ) -> io::Result<()> {
        let mut sight = self.lock();
        for (region, part) in memory.parts(frames) {
            for batch in batches(part) {
                sight.look(&self.host, memory, region, batch)?;
                sight.tell(accessed);
            }
        }
        Ok(())
    }

    /// Marks can't be taken back, and need not be: they say that a frame was not accessed, to whom it may concern, and go with the page or its
    /// next access.
    fn retire(&self) {
        *self.lock() = Sight::new();
    }
}

fn batches(frames: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let end = frames.end;
    frames.step_by(places::MOST as usize).map(move |start| start..start.saturating_add(places::MOST).min(end))
}
