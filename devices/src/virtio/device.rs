//! What a virtio device is, seen from its transport.
//!
//! Promises: a device is activated at most once between two resets, with rings that were checked and pinned. Must never: know where on a bus
//! it lives, or which transport serves it.

use std::io;
use std::sync::Arc;

use crate::DeviceMemory;
use crate::pin::Pinner;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{ActiveQueue, QueueError};

/// Why a device did not start. The driver sees DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver did not set up a queue that the device can't do without.
    #[error("queue {index} was not set up")]
    MissingQueue {
        /// The queue's number.
        index: u16,
    },
    /// A queue's rings can't be used.
    #[error("queue {index} can't be used")]
    Queue {
        /// The queue's number.
        index: u16,
        /// What is wrong with it.
        #[source]
        source: QueueError,
    },
    /// The device's thread or one of its events could not be made.
    #[error("the device's thread did not start")]
    Thread(#[source] io::Error),
}

/// What a device needs to start.
pub struct Activation {
    /// The features that driver and device agreed on.
    pub features: u64,
    /// Guest memory.
    pub memory: DeviceMemory,
    /// The queues that the driver set up, in ascending order.
    pub queues: Vec<ActiveQueue>,
    /// How to call the driver.
    pub interrupt: Arc<Interrupt>,
    /// What keeps guest pages in place.
    pub pinner: Arc<dyn Pinner>,
}

/// A device behind a transport. The transport calls its methods one at a time, from vCPU threads or the machine's own.
pub trait VirtioDevice: Send {
    /// The device's type number (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// The device's own feature bits. Those of rings and transport are the transport's business.
    fn features(&self) -> u64;

    /// The largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Fills `data` from the configuration space; what lies beyond it is zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes a write to the configuration space. Most devices have nothing to write there.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts working on the queues.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops for good: when this returns, no thread of the device touches guest memory, and all pins are gone. The device can be activated
    /// again. May be called in any state, paused ones too.
    fn reset(&mut self);

    /// Stops until [`Self::resume`]: when this returns, no request is being worked on, and every finished one is in its used ring. Pins of
    /// the rings stay. Does nothing to a device that is not active.
    fn pause(&mut self);

    /// Goes on after [`Self::pause`], beginning with what arrived in between.
    fn resume(&mut self);
}
