//! A virtqueue at work: requests come out of the available ring, finished ones go into the used ring, and the driver is called as it wishes.
//!
//! The rings themselves are `virtio-queue`'s; chains are walked by [`crate::virtio::chain`]. Promises: the rings' pages are pinned as long as
//! an [`ActiveQueue`] lives. Must never: give a request back twice or keep one.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::DeviceMemory;
use crate::pin::{PinError, Pinner};
use crate::virtio::buffers::{Pins, Segment, is_memory};
use crate::virtio::chain::{Chain, Table};
use crate::virtio::interrupt::Interrupt;

/// Why a queue can't be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Not a power of two, 0, or more than the device offers.
    #[error("a queue size of {size}, not a power of two up to {max}")]
    BadSize {
        /// What the driver wrote.
        size: u32,
        /// What the device offers.
        max: u16,
    },
    /// A ring lies outside guest memory, or at an address not aligned as it must be.
    #[error("its {ring} at {gpa:#x} is not in guest memory or not aligned")]
    BadAddress {
        /// Which of the three.
        ring: Ring,
        /// Where the driver put it.
        gpa: u64,
    },
    /// A ring can't be pinned.
    #[error("its {ring} can't be pinned")]
    Pin {
        /// Which of the three.
        ring: Ring,
        /// Why.
        #[source]
        source: PinError,
    },
    /// The driver put a chain into the available ring whose head does not exist.
    #[error("chain head {head} in a queue of {size}")]
    BadHead {
        /// The head.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// The rings are not usable: an index that ran away.
    #[error("its rings are broken")]
    Broken(#[source] virtio_queue::Error),
}

/// A part of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// The descriptor table.
    Descriptors,
    /// The ring of requests offered.
    Available,
    /// The ring of requests done.
    Used,
}

impl std::fmt::Display for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
        })
    }
}

/// Where the driver put a queue, as it wrote it: nothing is checked yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Entries.
    pub size: u32,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest physical address of the available ring.
    pub available: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
}

impl QueueLayout {
    /// Checks size, alignment (virtio 1.2, section 2.7) and that everything is guest memory; answers the size.
    pub fn check(&self, memory: &DeviceMemory, max: u16) -> Result<u16, QueueError> {
        let size = u16::try_from(self.size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max)
            .ok_or(QueueError::BadSize { size: self.size, max })?;
        for (ring, segment, alignment) in self.rings(size) {
            let gpa = segment.gpa;
            // Address 0 is what a register holds that was never written.
            if gpa == 0 || gpa % alignment != 0 || !is_memory(memory, gpa, u64::from(segment.len)) {
                return Err(QueueError::BadAddress { ring, gpa });
            }
        }
        Ok(size)
    }

    /// Each part's memory and alignment. Both rings with their event fields at the end.
    fn rings(&self, size: u16) -> [(Ring, Segment, u64); 3] {
        let size = u32::from(size);
        [
            (Ring::Descriptors, Segment { gpa: self.descriptors, len: 16 * size }, 16),
            (Ring::Available, Segment { gpa: self.available, len: 6 + 2 * size }, 2),
            (Ring::Used, Segment { gpa: self.used, len: 6 + 8 * size }, 4),
        ]
    }
}

/// What every queue of a device shares.
#[derive(Clone)]
pub struct QueueContext {
    /// Guest memory.
    pub memory: DeviceMemory,
    /// What keeps guest pages in place.
    pub pinner: Arc<dyn Pinner>,
    /// How to call the driver.
    pub interrupt: Arc<Interrupt>,
    /// The features that driver and device agreed on.
    pub features: u64,
}

/// A queue that the driver set up and the device works on.
pub struct ActiveQueue {
    index: u16,
    size: u16,
    queue: Queue,
    event: EventFd,
    context: QueueContext,
    _rings: [Pins; 3],
}

impl ActiveQueue {
    /// Checks and pins the rings. `event` is what the driver's notifications signal.
    pub fn new(
        index: u16,
        max: u16,
        layout: &QueueLayout,
        event: EventFd,
        context: QueueContext,
    ) -> Result<Self, QueueError> {
        let size = layout.check(&context.memory, max)?;
        let [descriptors, available, used] = layout.rings(size).map(|(ring, segment, _)| {
            Pins::take(&*context.pinner, [&segment]).map_err(|source| QueueError::Pin { ring, source })
        });
        let state = QueueState {
            max_size: max,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: context.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            size,
            ready: true,
            desc_table: layout.descriptors,
            avail_ring: layout.available,
            used_ring: layout.used,
        };
        let queue = Queue::try_from(state).map_err(QueueError::Broken)?;
        Ok(Self { index, size, queue, event, context, _rings: [descriptors?, available?, used?] })
    }

    /// The queue's number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// What the driver's notifications signal.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Works off the available ring: `handle` gets each chain and answers how many bytes it wrote into its memory. Returns when the ring is
    /// empty, or soon after `interrupted` says so; then notifications stay off, and another call must follow.
    pub fn serve(
        &mut self,
        interrupted: impl Fn() -> bool,
        mut handle: impl FnMut(&Chain) -> u32,
    ) -> Result<(), QueueError> {
        loop {
            self.queue.disable_notification(&self.context.memory).map_err(QueueError::Broken)?;
            while let Some(head) = self.pop()? {
                let written = self.walk(head).map_or(0, |chain| handle(&chain));
                self.give_back(head, written)?;
                if interrupted() {
                    return Ok(());
                }
            }
            if !self.queue.enable_notification(&self.context.memory).map_err(QueueError::Broken)? {
                return Ok(());
            }
        }
    }

    fn pop(&mut self) -> Result<Option<u16>, QueueError> {
        let mut available = self.queue.iter(&self.context.memory).map_err(QueueError::Broken)?;
        // Only the head is taken from virtio-queue's chain: it ends silently where ours answers an error.
        let Some(head) = available.next().map(|chain| chain.head_index()) else { return Ok(None) };
        if head >= self.size {
            return Err(QueueError::BadHead { head, size: self.size });
        }
        Ok(Some(head))
    }

    fn walk(&mut self, head: u16) -> Option<Chain> {
        let table = Table {
            memory: &self.context.memory,
            pinner: &*self.context.pinner,
            gpa: self.queue.desc_table(),
            size: self.size,
            longest: self.queue.max_size(),
            indirect: self.context.features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0,
        };
        match Chain::walk(&table, head) {
            Ok(chain) => Some(chain),
            Err(error) => {
                // The driver gets the request back untouched.
                if self.context.interrupt.may_complain() {
                    tracing::warn!(queue = self.index, error = &error as &dyn std::error::Error, "malformed request");
                }
                None
            }
        }
    }

    fn give_back(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let memory = &self.context.memory;
        self.queue.add_used(memory, head, written).map_err(QueueError::Broken)?;
        if self.queue.needs_notification(memory).map_err(QueueError::Broken)? {
            self.context.interrupt.queue_used();
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
