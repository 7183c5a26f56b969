//! Why something asked of the tiers was not done.

use std::io;

use crate::control::max_age;
use crate::fault::fill::FillError;
use crate::memory::MemoryError;
use crate::pins::PinError;
use crate::ranges::RangeError;
use crate::status::TrackerKind;
use crate::swap::SwapError;
use crate::sys::uffd::UffdError;
use crate::track::idle::IdleError;
use crate::track::page_idle::PageIdleError;
use crate::track::scans::ScanError;
use crate::units::AreaId;

/// Why something asked of the tiers was not done.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The guest has ended.
    #[error("the guest has ended")]
    Closed,
    /// The regions can't be guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// userfaultfd can't be used.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// The tracker can't be started.
    #[error("the {} tracker can't be used", .kind.name())]
    Tracker {
        /// Which.
        kind: TrackerKind,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The idle page bitmap can't be used.
    #[error(transparent)]
    PageIdle(#[from] PageIdleError),
    /// The dirty log was asked for, and the hypervisor has none.
    #[error("the dirty_log tracker can't be used: the hypervisor offers no dirty log")]
    NoDirtyLog,
    /// A thread can't be started.
    #[error("the fault handlers can't be started")]
    Threads(#[source] io::Error),
    /// A range is malformed.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A range is not all guest memory.
    #[error("guest range {start:#x}+{len:#x} is not all guest memory")]
    NotMemory {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Which pages have memory can't be found out.
    #[error("looking for memory in use failed")]
    Look(#[source] io::Error),
    /// The idle bitmap refuses.
    #[error(transparent)]
    Idle(#[from] IdleError),
    /// A scan is refused.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A swap area is refused.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// Neither bytes nor an age was given.
    #[error("reclaim needs bytes, min_idle_scans or both")]
    NothingAsked,
    /// An age that no page can have.
    #[error("min_idle_scans {0} is more than {max}", max = max_age())]
    Age(u32),
    /// A swap area can't be emptied; it stays on.
    #[error("{id} stays on: {pages} of its pages can't be brought back")]
    NotEmptied {
        /// Which.
        id: AreaId,
        /// How many pages.
        pages: u64,
        /// Why, for the first of them.
        #[source]
        source: FillError,
    },
    /// A page of a range to lock can't be brought back; nothing is locked.
    #[error("range can't be locked")]
    Lock(#[source] FillError),
    /// A range can't be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
}
