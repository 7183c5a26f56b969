//! The `unmap` tracker: arming drops the guest mapping's page tables (the data stays in the memfd), and a page that is found mapped again
//! was accessed. Works on every kernel from 6.1 on, sees reads and writes, exactly, with 4 KiB pages.
//!
//! Promises: dropping page tables goes through the MMU notifier, so KVM's own tables for these pages go too; the next access maps the page
//! again inside the kernel, without user space. A vCPU that touches a page meanwhile waits until the call is through, so calls are kept short:
//! as many frames at once as this host drops in about [`TARGET`]. Exact only where the range is registered with userfaultfd, which switches
//! fault-around off, and locked, which keeps the host's reclaim from unmapping pages. Must never: be used on a private mapping, where the
//! same call would destroy data.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::memory::{GuestMemory, Region};
use crate::status::TrackerKind;
use crate::sys::mem;
use crate::sys::pagemap::Pagemap;
use crate::track::AccessTracker;
use crate::units::FrameIndex;

/// What a call should take: well below the millisecond that no vCPU may wait for longer.
pub const TARGET: Duration = Duration::from_micros(300);
/// Frames per call, least and most.
const LEAST: u32 = 64;
const MOST: u32 = 8192;
/// Where it begins: at 0.2 µs a page, 0.2 ms.
const FIRST: u32 = 1024;

/// See the module.
#[derive(Debug)]
pub struct Unmap {
    pagemap: Pagemap,
    // Relaxed, both: one thread at a time arms; the numbers are for pacing and for people.
    frames_per_call: AtomicU32,
    longest_ns: AtomicU64,
}

impl Unmap {
    /// Opens what it needs.
    pub fn new() -> io::Result<Self> {
        Ok(Self::with_pagemap(Pagemap::open()?))
    }

    /// With a given way to read page tables.
    pub fn with_pagemap(pagemap: Pagemap) -> Self {
        Self { pagemap, frames_per_call: AtomicU32::new(FIRST), longest_ns: AtomicU64::new(0) }
    }

    fn drop_some(&self, region: &Region, frames: &Range<u32>, shift: u32) -> io::Result<u32> {
        let most = self.frames_per_call.load(Ordering::Relaxed);
        let count = most.min(frames.end - frames.start);
        let began = Instant::now();
        // SAFETY: the guest mapping is shared, as `RegionSpec` asks.
        unsafe { mem::drop_page_tables(region.hva(FrameIndex(frames.start)), u64::from(count) << shift)? };
        let took = began.elapsed();
        self.longest_ns.fetch_max(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let next = match took {
            took if took > TARGET => (count / 2).max(LEAST),
            took if took < TARGET / 4 && count == most => (most * 2).min(MOST),
            _ => most,
        };
        self.frames_per_call.store(next, Ordering::Relaxed);
        Ok(count)
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
        for (region, mut part) in memory.parts(frames) {
            while !part.is_empty() {
                part.start += self.drop_some(region, &part, memory.frame_size().shift())?;
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
            let len = u64::from(part.end - part.start) << memory.frame_size().shift();
            self.pagemap.present(region.hva(FrameIndex(part.start)), len, |run| {
                // The end may be the region's own end, which is no frame of it any more.
                let last = region.index_of_hva(run.end - 1);
                accessed(region.index_of_hva(run.start).0..last.0 + 1);
            })?;
        }
        Ok(())
    }

    fn take_longest_call(&self) -> Duration {
        Duration::from_nanos(self.longest_ns.swap(0, Ordering::Relaxed))
    }
}
