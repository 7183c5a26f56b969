//! virtio-rng: entropy for the guest, from the host kernel's generator.
//!
//! Promises: every byte it reports comes from getrandom(2); a request gets at most [`REQUEST_LIMIT`] bytes, so that no guest keeps the thread
//! busy for long. Must never: seed or mix anything itself.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::DeviceMemory;
use crate::pin::Pinner;
use crate::virtio::buffers::{Buffers, Pins};
use crate::virtio::chain::Chain;
use crate::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::virtio::worker::{RequestHandler, Worker};

/// The most bytes that one request gets; the driver asks again for more.
pub const REQUEST_LIMIT: u32 = 64 * 1024;

const QUEUE_SIZES: [u16; 1] = [64];

/// The device.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker>,
}

impl Rng {
    /// A device that is not active.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, pinner, .. } = activation;
        if queues.is_empty() {
            return Err(ActivateError::MissingQueue { index: 0 });
        }
        let handler = Box::new(Entropy { memory, pinner });
        self.worker = Some(Worker::spawn("virtio-rng", queues, handler, interrupt).map_err(ActivateError::Thread)?);
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

struct Entropy {
    memory: DeviceMemory,
    pinner: Arc<dyn Pinner>,
}

impl RequestHandler for Entropy {
    fn handle(&mut self, _queue: u16, chain: &Chain) -> u32 {
        let mut wanted = chain.writable.clone();
        // More than the limit stays untouched.
        let _ = wanted.split_off(REQUEST_LIMIT);
        let Ok(_pins) = Pins::take(&*self.pinner, wanted.segments()) else { return 0 };
        self.fill(wanted)
    }
}

impl Entropy {
    /// Fills as much as it can; answers how much that was.
    fn fill(&self, mut wanted: Buffers) -> u32 {
        let mut bytes = [0; 4096];
        let mut done = 0;
        while !wanted.is_empty() {
            let count = wanted.len().min(4096);
            let part = &mut bytes[..crate::virtio::buffers::as_usize(count)];
            if fill_random(part).is_err() || wanted.copy_from(&self.memory, part).is_err() {
                break;
            }
            let Some(rest) = wanted.split_off(count) else { break };
            wanted = rest;
            done += count;
        }
        done
    }
}

/// Fills `bytes` from the kernel's generator; waits if that was never seeded.
fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the pointer and length are those of a slice that is ours to write.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => done += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;
