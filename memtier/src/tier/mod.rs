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

use crate::page::{Page, PageSlab};
use crate::units::{Gfn, Shard, SwapEntry};

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

/// How much a tier holds, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Pages that fit at most.
    pub total: u64,
    /// Pages that still fit.
    pub free: u64,
}

/// A place for pages that are out. All methods may be called from any thread at once.
pub trait Tier: Send + Sync + std::fmt::Debug {
    /// Stores `gfns.len()` pages, the first that many of `pages`, in order. One result per page is pushed to `results` (cleared first):
    /// where it is now, acknowledged by the store, or why not. At most [`STORE_BATCH`] pages.
    fn store(&self, shard: Shard, gfns: &[Gfn], pages: &PageSlab, results: &mut Vec<Result<SwapEntry, StoreError>>);

    /// Reads back the page stored at `entry` for frame `gfn` and verifies it. The entry stays in use. On the fault path: allocates nothing
    /// when it succeeds, takes no lock that a store may hold over I/O.
    fn load(&self, entry: SwapEntry, gfn: Gfn, into: &mut Page) -> Result<(), LoadError>;

    /// Gives the slot back. The caller must be the only one that still knows the entry.
    fn invalidate(&self, shard: Shard, entry: SwapEntry);

    /// Takes the slot of a page that can't be read back out of use: nothing is stored there again. The caller must be the only one that still
    /// knows the entry.
    fn condemn(&self, entry: SwapEntry);

    /// How much fits.
    fn capacity(&self) -> Capacity;
}

/// The most pages one [`Tier::store`] call takes: one refill of a slot cache, one write to neighbouring slots.
pub const STORE_BATCH: usize = 64;
