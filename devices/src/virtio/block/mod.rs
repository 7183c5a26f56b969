//! virtio-blk on a raw file or block device.
//!
//! [`disk`] is the file with its lock, [`request`] what the driver asks, `handler` does it, `config` is what the driver reads about the
//! disk, `iovec` and `sys` are the system calls. Promises: the file is touched only inside its capacity, and a read-only one never
//! changes. Must never: copy a disk's bytes through memory of our own.

mod config;
pub mod disk;
mod handler;
mod iovec;
pub mod request;
mod sys;

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use self::config::ConfigSpace;
pub use self::disk::{Disk, DiskError};
use self::handler::BlockHandler;
use crate::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::virtio::worker::Worker;

/// Entries of the request queue.
pub const QUEUE_SIZE: u16 = 256;

/// The device.
pub struct Block {
    disk: Arc<Disk>,
    config: ConfigSpace,
    worker: Option<Worker>,
}

impl Block {
    /// A device on `disk`, not active.
    pub fn new(disk: Disk) -> Self {
        Self { config: ConfigSpace::new(&disk), disk: Arc::new(disk), worker: None }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        config::features(&self.disk)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let handler = Box::new(BlockHandler::new(Arc::clone(&self.disk), &activation));
        let Activation { queues, interrupt, .. } = activation;
        if queues.is_empty() {
            return Err(ActivateError::MissingQueue { index: 0 });
        }
        self.worker = Some(Worker::spawn("virtio-blk", queues, handler, interrupt).map_err(ActivateError::Thread)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }

    fn pause(&mut self) {
        if let Some(worker) = &self.worker {
            worker.pause();
        }
    }

    fn resume(&mut self) {
        if let Some(worker) = &self.worker {
            worker.resume();
        }
    }
}

#[cfg(test)]
mod fuzz_test;
#[cfg(test)]
mod tests;
