//! Virtio 1.2: devices, how a driver reaches them, and what they have in common.
//!
//! Climb it in this order: [`interrupt`] (how a device calls its driver), [`buffers`] (guest memory that a driver lent), [`chain`] (a request
//! as the driver laid it out), [`queue`] (taking requests, giving them back), [`worker`] (the thread that does it), [`device`] (what every
//! device fulfils), [`mmio`] (the transport), then the devices: [`block`], [`rng`].
//!
//! Promises: guest memory is touched only while its pages are pinned, and only through copies and raw pointers. Must never: trust a number
//! that comes from the driver, or read one twice.

pub mod block;
pub mod buffers;
pub mod chain;
pub mod device;
pub mod interrupt;
pub mod mmio;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod worker;

pub use block::{Block, Disk, DiskError};
pub use device::{ActivateError, Activation, VirtioDevice};
pub use interrupt::Interrupt;
pub use mmio::MmioTransport;
pub use rng::Rng;
