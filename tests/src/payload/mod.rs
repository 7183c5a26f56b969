//! Payload guests: a bare image that runs memory workloads in a real KVM guest at full speed, driven from here.
//!
//! Promises: the guest is a [`vmm::Machine`] like any other; commands end with the guest's own results, an error that names what went
//! wrong, or a time-out. Must never: leave a guest running when its handle is dropped.

#[path = "../../payload/abi.rs"]
pub mod abi;
#[path = "../../payload/pattern.rs"]
pub mod pattern;
#[path = "../../payload/rng.rs"]
pub mod rng;

mod command;
mod error;
mod image;
mod line;
mod memory;
pub mod soak;
mod tiered;
mod vcpu;
mod vm;
mod zipf;

pub use command::{AccessLoop, AccessPattern, Command, Pages, Touch, VersionedPages};
pub use error::PayloadError;
pub use line::{Exception, Mismatch};
pub use memory::GuestWords;
pub use tiered::TieredVm;
pub use vcpu::{Counters, LoopResult, Vcpu, Verified};
pub use vm::{PayloadPlan, PayloadVm};
pub use zipf::quantiles;
