//! Who touched what: trackers, the idle bitmap, scans.
//!
//! [`AccessTracker`] is what a way of seeing accesses offers. [`unmap`] works everywhere, [`page_idle`] reads the processor's accessed bits
//! where the host's kernel offers them, [`dirty_log`] sees writes only. [`watcher`] turns accesses into generations and idle bits; [`idle`] is
//! the bitmap that clients read and mark; [`backoff`] spares hot frames; [`scans`] runs series of scans. Must never: move a page.

pub mod backoff;
pub mod choose;
pub mod dirty_log;
pub mod idle;
mod idle_bits;
pub mod page_idle;
mod runs;
pub mod scans;
pub mod unmap;
pub mod watcher;

use std::io;
use std::ops::Range;
use std::time::Duration;

use crate::memory::GuestMemory;
use crate::status::TrackerKind;

/// A way to see accesses: arm a range, later collect which of its frames were accessed since. All methods are called by one thread at a time.
pub trait AccessTracker: Send + Sync + std::fmt::Debug {
    /// Which it is.
    fn kind(&self) -> TrackerKind;

    /// How many frames it wants to be handed at once. Between collecting and arming them, accesses may be lost by some trackers, so it should be
    /// no more than pays.
    fn batch(&self) -> u32;

    /// Whether the guest's next access to an armed frame takes longer. Frames that are known to be hot are then armed less often.
    fn slows_the_guest(&self) -> bool;

    /// Whether a frame that it says was accessed has memory for sure. If not, frames never touched before are left to
    /// [`Arena::refresh`](crate::arena::Arena::refresh).
    fn proves_memory(&self) -> bool;

    /// From now on the frames count as not accessed.
    fn arm(&self, memory: &GuestMemory, frames: Range<u32>) -> io::Result<()>;

    /// Calls `accessed` with each run of frames accessed since they were armed, ascending. Frames never armed count as accessed once
    /// touched. Collecting does not arm: the same frames are told again next time.
    fn collect(&self, memory: &GuestMemory, frames: Range<u32>, accessed: &mut dyn FnMut(Range<u32>))
    -> io::Result<()>;

    /// The longest time since it was last asked that one of its calls may have kept a vCPU waiting.
    fn take_longest_call(&self) -> Duration {
        Duration::ZERO
    }

    /// It is not used any more; nothing of it may be left behind in the host.
    fn retire(&self) {}
}
