//! Doing what a driver asks of its disk, one request at a time.
//!
//! Promises: a request's memory is pinned before its first byte is read; whatever goes wrong, the driver finds a status if it left room for
//! one. A driver that can't flush has every write on the disk before it hears of it. Must never: leave bytes in a buffer of a failed read that
//! look like the disk's.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};

use crate::DeviceMemory;
use crate::pin::Pinner;
use crate::virtio::block::disk::Disk;
use crate::virtio::block::request::{Envelope, Limits, Request};
use crate::virtio::buffers::Pins;
use crate::virtio::chain::Chain;
use crate::virtio::device::Activation;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::worker::RequestHandler;

/// What the thread of a disk works with.
pub struct BlockHandler {
    disk: Arc<Disk>,
    memory: DeviceMemory,
    pinner: Arc<dyn Pinner>,
    interrupt: Arc<Interrupt>,
    write_through: bool,
}

impl BlockHandler {
    /// For `disk`, and a driver as `activation` describes it.
    pub fn new(disk: Arc<Disk>, activation: &Activation) -> Self {
        Self {
            disk,
            memory: activation.memory.clone(),
            pinner: Arc::clone(&activation.pinner),
            interrupt: Arc::clone(&activation.interrupt),
            write_through: activation.features & 1 << VIRTIO_BLK_F_FLUSH == 0,
        }
    }

    fn limits(&self) -> Limits {
        Limits { capacity: self.disk.sectors(), read_only: self.disk.read_only() }
    }

    /// Answers the status, and whether all of `envelope.expected` was written.
    fn answer(&self, envelope: &Envelope) -> (u32, bool) {
        let nothing_expected = envelope.expected.is_empty();
        let request = match envelope.read(&self.memory, self.limits()) {
            Ok(request) => request,
            Err(refusal) => {
                tracing::debug!(error = &refusal as &dyn std::error::Error, "disk request refused");
                return (refusal.status(), nothing_expected);
            }
        };
        match self.run(&request) {
            Ok(()) => (VIRTIO_BLK_S_OK, true),
            Err(error) => {
                self.complain(&error, "disk request failed");
                // A read may have got half of its bytes.
                (VIRTIO_BLK_S_IOERR, envelope.expected.zero(&self.memory).is_ok())
            }
        }
    }

    fn run(&self, request: &Request) -> io::Result<()> {
        match request {
            Request::Read { sector, into } => self.disk.read(&self.memory, *sector, into),
            Request::Write { sector, from } => {
                self.disk.write(&self.memory, *sector, from)?;
                self.flush_if_write_through()
            }
            Request::Flush => self.disk.flush(),
            Request::GetId { into } => {
                into.zero(&self.memory).map_err(io::Error::other)?;
                into.copy_from(&self.memory, self.disk.id()).map_err(io::Error::other).map(drop)
            }
            Request::Discard(ranges) => ranges.iter().try_for_each(|range| self.disk.discard(*range)),
            Request::WriteZeroes { ranges, unmap } => {
                ranges.iter().try_for_each(|range| self.disk.write_zeroes(*range, *unmap))?;
                self.flush_if_write_through()
            }
        }
    }

    fn flush_if_write_through(&self) -> io::Result<()> {
        if self.write_through { self.disk.flush() } else { Ok(()) }
    }

    fn complain(&self, error: &(dyn std::error::Error + 'static), what: &str) {
        if self.interrupt.may_complain() {
            tracing::warn!(error, "{what}");
        }
    }

    /// Writes the status; answers whether the driver can read it.
    fn write_status(&self, envelope: &Envelope, status: u32) -> bool {
        let byte = u8::try_from(status).unwrap_or(u8::MAX);
        envelope.status.copy_from(&self.memory, &[byte]).is_ok()
    }
}

impl RequestHandler for BlockHandler {
    fn handle(&mut self, _queue: u16, chain: &Chain) -> u32 {
        let Some(envelope) = Envelope::open(chain) else { return 0 };
        let segments = chain.readable.segments().iter().chain(chain.writable.segments());
        let (status, filled, _pins) = match Pins::take(&*self.pinner, segments) {
            Ok(pins) => {
                let (status, filled) = self.answer(&envelope);
                (status, filled, pins)
            }
            Err(error) => {
                self.complain(&error, "disk request without its memory");
                // The page of the status may be a good one.
                let Ok(pins) = Pins::take(&*self.pinner, envelope.status.segments()) else { return 0 };
                (VIRTIO_BLK_S_IOERR, envelope.expected.is_empty(), pins)
            }
        };
        // The status is the last byte: it counts only when all before it is written too.
        if self.write_status(&envelope, status) && filled { chain.writable.len() } else { 0 }
    }
}

#[cfg(test)]
#[path = "handler_test.rs"]
mod tests;
