//! Where a soak's pages are in guest memory.
//!
//! Promises: versioned pages, version table and direct-I/O pages do not overlap, and take nearly all of workload memory. Must never: reach
//! below `WORK_BASE`.

use memtier::status::GuestRange;

use super::SoakError;
use crate::payload::abi::PAGE;
use crate::payload::{PayloadVm, VersionedPages};

/// Pages that the kernel reads into.
const DIRECT_IO_PAGES: u64 = 128;

/// Versioned pages that are picked every other time, and evicted all the time.
const HOT_PAGES: u64 = 64;

/// Version table entries in a page.
const ENTRIES_PER_PAGE: u64 = PAGE / 16;

/// A soak's addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// The versioned pages, followed by their table.
    pub(super) versioned: VersionedPages,
    /// The versioned pages as a range, without the table.
    pub(super) pages: GuestRange,
    /// The hot ones among them.
    pub(super) hot: GuestRange,
    /// Pages that the kernel reads into.
    pub(super) direct_io: GuestRange,
    /// Versioned pages, table and direct-I/O pages.
    pub(super) work: GuestRange,
}

impl Layout {
    /// Divides the largest range of workload memory.
    pub(super) fn of(vm: &PayloadVm, seed: u64) -> Result<Self, SoakError> {
        let work =
            vm.work_ranges().into_iter().max_by_key(|range| range.len).expect("guest memory is larger than the image");
        let rest = work.len / PAGE - DIRECT_IO_PAGES;
        // One table page more than needed when the division leaves a remainder.
        let count = (rest - 1) * ENTRIES_PER_PAGE / (ENTRIES_PER_PAGE + 1);
        let range = |start: u64, pages: u64| GuestRange { start, len: pages * PAGE };
        let direct_io = range(work.start, DIRECT_IO_PAGES);
        let pages = range(direct_io.start + direct_io.len, count);
        let versioned = VersionedPages {
            seed,
            start: pages.start,
            pages: count,
            table: pages.start + pages.len,
            hot: HOT_PAGES,
            vcpus: vm.vcpus().count() as u64,
        };
        Ok(Self { versioned, pages, hot: range(pages.start, HOT_PAGES), direct_io, work })
    }
}
