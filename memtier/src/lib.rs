//! Memory tiers for a VMM's guests: who touched what, what is idle, what goes out, how it comes back.
//!
//! The library sees guest memory as regions of memfds ([`RegionSpec`]) and is driven through [`Memtier`]. No type of KVM is in its
//! interface. It reads bottom up:
//!
//! * [`units`], [`page`], [`sys`]: numbers, buffers, the kernel's interfaces
//! * [`frame`]: one atomic word per guest frame, and every step it may take
//! * [`memory`], [`arena`]: guest memory, and the ground all others stand on
//! * [`track`]: accesses, idle bitmap, ages, scans
//! * [`swap`], [`tier`]: slots, areas, slot caches, and the stores behind them
//! * [`evict`], [`fault`], [`kept`], [`pins`]: out, back, back with its slot kept, and not at all
//! * [`insight`]: what ages tell: curves, working set, heat
//! * [`refault`]: how far pages get before they are wanted back
//! * [`control`], [`status`]: what a client asks and sees
//! * [`hypervisor`]: what the tiers ask of the VMM

mod abort;
pub mod arena;
pub mod clock;
pub mod control;
pub mod counters;
pub mod evict;
pub mod fault;
pub mod frame;
pub mod hypervisor;
pub mod insight;
pub mod kept;
pub mod memory;
pub mod page;
pub mod pieces;
pub mod pins;
pub mod ranges;
pub mod refault;
pub mod status;
pub mod swap;
pub mod sync;
pub mod sys;
pub mod tier;
pub mod track;
pub mod units;

pub use control::{ControlError, Memtier, MemtierConfig};
pub use hypervisor::DirtyLog;
pub use memory::RegionSpec;
pub use pins::PinGuard;
