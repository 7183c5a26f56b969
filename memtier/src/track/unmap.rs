//! The `unmap` tracker: arming drops the guest mapping's page tables (the data stays in the memfd), and a page that is found mapped again
//! was accessed. Works on every kernel from 6.1 on, sees reads and writes, exactly, with 4 KiB pages.
//!
//! Promises: dropping page tables goes through the MMU notifier, so KVM's own tables for these pages go too; the next access maps the page
//! again inside the kernel, without user space. Exact only where the range is registered with userfaultfd, which switches fault-around off.
//! Must never: be used on a private mapping, where the same call would destroy data.

use std::io;
use std::ops::Range;

use crate::memory::GuestMemory;
use crate::status::TrackerKind;
use crate::sys::mem;
use crate::sys::pagemap::Pagemap;
use crate::track::AccessTracker;
use crate::units::{FrameIndex, PAGE_SHIFT};

/// See the module.
#[derive(Debug)]
pub struct Unmap {
    pagemap: Pagemap,
}

/// Frames per call: the kernel holds the mapping lock for reading while it drops them, at 0.15-0.2 µs a page (8 MiB in 0.4 ms).
const BATCH: u32 = 2048;

impl Unmap {
    /// Opens what it needs.
    pub fn new() -> io::Result<Self> {
        Ok(Self { pagemap: Pagemap::open()? })
    }

    /// With a given way to read page tables.
    pub fn with_pagemap(pagemap: Pagemap) -> Self {
        Self { pagemap }
    }
}

impl AccessTracker for Unmap {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Unmap
    }

    fn batch(&self) -> u32 {
        8192
    }

    fn slows_the_guest(&self) -> bool {
        true
    }

    fn proves_memory(&self) -> bool {
        true
    }

    fn arm(&self, memory: &GuestMemory, frames: Range<u32>) -> io::Result<()> {
        for (region, part) in memory.parts(frames) {
            for start in part.clone().step_by(BATCH as usize) {
                let count = BATCH.min(part.end - start);
                // SAFETY: the guest mapping is shared, as `RegionSpec` asks.
                unsafe { mem::drop_page_tables(region.hva(FrameIndex(start)), u64::from(count) << PAGE_SHIFT)? };
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
        for (region, part) in memory.parts(frames) {
            let len = u64::from(part.end - part.start) << PAGE_SHIFT;
            self.pagemap.present(region.hva(FrameIndex(part.start)), len, |run| {
                // The end may be the region's own end, which is no frame of it any more.
                let last = region.index_of_hva(run.end - 1);
                accessed(region.index_of_hva(run.start).0..last.0 + 1);
            })?;
        }
        Ok(())
    }
}
