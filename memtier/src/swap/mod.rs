//! Swap areas on disk, as the kernel keeps them: a header page, a slot map, clusters, priorities, and slot caches in front.
//!
//! Read it as a ladder, bottom up: [`header`] (the first page), [`slot_map`] (a byte per slot), [`cluster`] (which slot next), [`area`] (one area's
//! slots), [`sum`] (a checksum per page), [`areas`] (all that are on), [`slot_cache`] (a shard's own supply), [`swap_tier`] (pages in and out), `huge`
//! (the same for huge pages, a cluster each).
//!
//! Promises: what [`SwapTier`] acknowledges it gives back, or an error. Must never: hold a lock of this module over I/O.
//!
//! **Lock order**, outermost first; no lock is taken while one further right is held:
//!
//! ```text
//! SlotCaches::enable > a shard's slots to hand out > a shard's returned slots > Areas::order | SlotArea::inner
//! ```
//!
//! The last two are never held together. A file store's write ring has a lock of its own, taken with none of these held.

pub mod area;
pub mod areas;
pub mod cluster;
mod error;
pub mod header;
mod huge;
pub mod slot_cache;
pub mod slot_map;
pub mod sum;
mod swap_tier;
mod sync;
mod zeroed;

pub use error::SwapError;
pub use slot_cache::SlotCacheCounters;
pub use swap_tier::{SwapTier, TierCounters};
