//! What a swap area writes to and reads from: numbered slots of one page each.
//!
//! Promises: a write that answers `Ok` can be read back; a read that answers `Ok` filled the whole page. Must never: know which slots are in
//! use, what is in them, or promise that the bytes are the right ones: that is the checksum's work, one level up.

use std::fmt;
use std::io;
use std::path::Path;

use crate::page::Page;
use crate::units::SlotOffset;

/// What kind of thing a store is, as the type column of `/proc/swaps` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// A regular file.
    File,
    /// A block device.
    Partition,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Partition => "partition",
        })
    }
}

/// Pages to write to consecutive slots, and what came of it.
#[derive(Debug)]
pub struct WriteRun<'a> {
    /// Where the first page goes; the others follow.
    pub first: SlotOffset,
    /// The pages, contiguous in memory.
    pub pages: &'a [Page],
    /// `Ok` before the write. After it: `Ok` when every page of the run was taken, else the first error; the slots' contents are unknown then.
    pub outcome: io::Result<()>,
}

impl<'a> WriteRun<'a> {
    /// A run still to be written.
    pub const fn new(first: SlotOffset, pages: &'a [Page]) -> Self {
        Self { first, pages, outcome: Ok(()) }
    }

    /// The run's bytes.
    pub const fn bytes(&self) -> &'a [u8] {
        self.pages.as_flattened()
    }
}

/// Slots of one page each. All methods may be called from any thread at once, also on the same slot; only then the outcome is unspecified.
pub trait PageStore: Send + Sync + fmt::Debug {
    /// How many slots there are, the header's slot 0 included.
    fn slots(&self) -> u64;

    /// Slots known to be unusable, each below [`PageStore::slots`].
    fn bad_slots(&self) -> &[SlotOffset] {
        &[]
    }

    /// Writes every run and fills in its outcome. The runs don't overlap. May wait for I/O and hold a lock meanwhile, one that no read takes.
    fn write(&self, runs: &mut [WriteRun<'_>]);

    /// Reads one slot. Takes no lock that a write may hold, allocates nothing when it succeeds. On an error `into` holds anything.
    fn read(&self, slot: SlotOffset, into: &mut Page) -> io::Result<()>;

    /// Reads consecutive slots, as [`PageStore::read`] does.
    fn read_run(&self, first: SlotOffset, into: &mut [Page]) -> io::Result<()>;

    /// Waits until everything written is where it survives a loss of power.
    fn sync(&self) -> io::Result<()>;

    /// What to show as the area's file.
    fn path(&self) -> &Path;

    /// File or partition.
    fn kind(&self) -> StoreKind;

    /// Whether reads and writes go around the host's page cache.
    fn direct_io(&self) -> bool;
}

/// Where a slot begins in the file.
pub(crate) const fn byte_offset(slot: SlotOffset) -> u64 {
    (slot.0 as u64) << crate::units::PAGE_SHIFT
}
