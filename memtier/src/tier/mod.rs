//! Where pages go: the trait that every tier fulfils.
//!
//! Promises: a stored page is acknowledged only when the tier can give back exactly its bytes; a load answers with those bytes or with an
//! error, never with others. Must never: know about frames' states, guests or userfaultfd.

pub mod faulty_store;
pub mod file_store;
mod raw_file;
pub mod store;
mod write_ring;

use std::io;

use crate::page::Page;
use crate::units::{FrameSize, Gfn, Shard, SwapEntry};

/// Why a page could not be stored. The page stays where it was; nothing is lost.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No slot is free in any area that is on.
    #[error("no free slot in any swap area")]
    Full,
    /// The write failed; the slot is marked bad.
    #[error("write to {entry} failed")]
    Write {
        /// Where the page was to go.
        entry: SwapEntry,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why a page could not be brought back. The caller poisons that page and no other.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The entry names an area that is not on, or a slot beyond its end, or one not in use.
    #[error("{entry} is not in use")]
    NotInUse {
        /// The entry asked for.
        entry: SwapEntry,
    },
    /// The read failed or came back short.
    #[error("read of {entry} failed")]
    Read {
        /// The entry asked for.
        entry: SwapEntry,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The bytes read are not the bytes stored for this frame.
    #[error("checksum of {entry} for {gfn} is {found:#018x}, stored was {stored:#018x}")]
    Checksum {
        /// The entry asked for.
        entry: SwapEntry,
        /// The frame whose page it should be.
        gfn: Gfn,
        /// The checksum remembered when the page was stored.
        stored: u64,
        /// The checksum of what came back.
        found: u64,
    },
}

/// How much a tier holds, in frames of its guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Frames that fit at most.
    pub total: u64,
    /// Frames that still fit.
    pub free: u64,
}

/// A place for the contents of frames that are out. A tier is made for frames of one size; "a page" is the contents of one such frame here,
/// [`FrameSize::pages`] neighbours in memory. All methods may be called from any thread at once.
pub trait Tier: Send + Sync + std::fmt::Debug {
    /// Stores the pages of `gfns.len()` frames, which lie one after the other at the start of `pages`. One result per frame is pushed to
    /// `results` (cleared first): where its page is now, acknowledged by the store, or why not. At most [`store_batch`] frames.
    fn store(&self, shard: Shard, gfns: &[Gfn], pages: &[Page], results: &mut Vec<Result<SwapEntry, StoreError>>);

    /// Reads back the page stored at `entry` for frame `gfn` and verifies it. The entry stays in use. On the fault path: allocates nothing
    /// when it succeeds, takes no lock that a store may hold over I/O.
    fn load(&self, entry: SwapEntry, gfn: Gfn, into: &mut [Page]) -> Result<(), LoadError>;

    /// Whether the slot of a page that has come back is better kept than freed: the page may leave again unchanged. No while the slot's area
    /// is filling up or going off. On the fault path; a moment's picture.
    fn should_keep(&self, entry: SwapEntry) -> bool;

    /// Whether the slot still holds exactly this page of frame `gfn`, told from what is remembered in memory: nothing is read. Never yes
    /// for a slot of an area that is going off.
    fn still_holds(&self, entry: SwapEntry, gfn: Gfn, pages: &[Page]) -> bool;

    /// Gives the slot back. The caller must be the only one that still knows the entry.
    fn invalidate(&self, shard: Shard, entry: SwapEntry);

    /// Takes the slot of a page that can't be read back out of use: nothing is stored there again. The caller must be the only one that still
    /// knows the entry.
    fn condemn(&self, entry: SwapEntry);

    /// How much fits.
    fn capacity(&self) -> Capacity;
}

/// The most frames one [`Tier::store`] call takes, of any size: one refill of a slot cache, one write to neighbouring slots.
pub const STORE_BATCH: usize = 64;

/// The most frames of this size one [`Tier::store`] call takes. A huge page is a batch of its own: it is eight times as long as one of small
/// pages.
pub const fn store_batch(size: FrameSize) -> usize {
    match size {
        FrameSize::Small => STORE_BATCH,
        FrameSize::Huge => 1,
    }
}
