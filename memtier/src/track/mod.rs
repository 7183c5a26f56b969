//! Who touched what: trackers, the idle bitmap, scans.
//!
//! [`AccessTracker`] is what a way of seeing accesses offers; [`unmap`] is the one that works everywhere; [`watcher`] turns accesses into
//! generations and idle bits; [`scans`] runs series of scans. Must never: move a page.

pub mod scans;
pub mod unmap;
pub mod watcher;

use std::io;
use std::ops::Range;

use crate::memory::GuestMemory;

/// A way to see accesses: arm a range, later collect which of its frames were accessed since.
pub trait AccessTracker: Send + Sync + std::fmt::Debug {
    /// From now on the frames count as not accessed.
    fn arm(&self, memory: &GuestMemory, frames: Range<u32>) -> io::Result<()>;

    /// Calls `accessed` with each run of frames accessed since they were armed, ascending. Frames never armed count as accessed once
    /// touched. Collecting does not arm: the same frames are told again next time.
    fn collect(&self, memory: &GuestMemory, frames: Range<u32>, accessed: &mut dyn FnMut(Range<u32>))
    -> io::Result<()>;
}
