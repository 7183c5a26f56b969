//! A descriptor chain: one request as the driver laid it out in the descriptor table (virtio 1.2, section 2.7.5).
//!
//! Promises: a chain is walked once, every descriptor is read once, and the result holds only memory that exists; a loop in a
//! table ends. An indirect table is copied while it is pinned. Must never: take a broken chain for a short one.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::DeviceMemory;
use crate::pin::{PinError, Pinner};
use crate::virtio::buffers::{BufferError, Buffers, Pins, Segment, is_memory};

const DESCRIPTOR: u32 = 16;

/// Why a chain is not a request.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A descriptor names a successor beyond the table.
    #[error("descriptor {index} does not exist in a table of {size}")]
    BeyondTable {
        /// The descriptor named.
        index: u16,
        /// Descriptors in the table.
        size: u16,
    },
    /// More descriptors than the table has: a loop.
    #[error("more than {size} descriptors")]
    TooMany {
        /// Descriptors in the table.
        size: u16,
    },
    /// Memory for the device to read comes after memory to write.
    #[error("a readable descriptor after a writable one")]
    ReadableAfterWritable,
    /// An indirect table without that feature, inside another one, with a successor, or of an impossible length.
    #[error("an indirect table of {len} bytes that is not allowed")]
    BadIndirect {
        /// Bytes that the descriptor gives it.
        len: u32,
    },
    /// A descriptor's memory can't be taken.
    #[error("a descriptor with memory that can't be used")]
    Buffer(#[from] BufferError),
    /// The indirect table can't be pinned.
    #[error("an indirect table that can't be read")]
    Pin(#[from] PinError),
    /// A descriptor can't be read.
    #[error("a descriptor that can't be read")]
    Memory(#[from] GuestMemoryError),
}

/// A descriptor table with what is needed to walk it.
pub struct Table<'a> {
    /// Guest memory.
    pub memory: &'a DeviceMemory,
    /// What keeps an indirect table in place while it is copied.
    pub pinner: &'a dyn Pinner,
    /// Guest physical address of the queue's descriptor table, which is checked and pinned.
    pub gpa: u64,
    /// The queue's size.
    pub size: u16,
    /// The most descriptors in an indirect table. By the standard that is the queue's size, but Linux goes by the size that the device
    /// offered even when it had to take a smaller one.
    pub longest: u16,
    /// Whether the driver may use indirect tables.
    pub indirect: bool,
}

/// A request's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What the device may read.
    pub readable: Buffers,
    /// What the device may write.
    pub writable: Buffers,
}

impl Chain {
    /// Walks the chain that begins with descriptor `head`.
    pub fn walk(table: &Table<'_>, head: u16) -> Result<Self, ChainError> {
        let mut chain = Self::default();
        let mut next = Some(head);
        // Each descriptor at most once, so this ends.
        for _ in 0..table.size {
            let Some(index) = next else { return Ok(chain) };
            let descriptor = table.read(index)?;
            next = successor(&descriptor);
            if has(&descriptor, VRING_DESC_F_INDIRECT) {
                if !table.indirect || next.is_some() {
                    return Err(ChainError::BadIndirect { len: descriptor.len() });
                }
                chain.walk_indirect(table, &descriptor)?;
            } else {
                chain.add(table.memory, &descriptor)?;
            }
        }
        if next.is_some() { Err(ChainError::TooMany { size: table.size }) } else { Ok(chain) }
    }

    fn walk_indirect(&mut self, table: &Table<'_>, at: &Descriptor) -> Result<(), ChainError> {
        let descriptors = copy_indirect(table, at)?;
        let size = u16::try_from(descriptors.len()).unwrap_or(u16::MAX);
        let mut next = Some(0);
        for _ in 0..size {
            let Some(index) = next else { return Ok(()) };
            let descriptor = descriptors.get(usize::from(index)).ok_or(ChainError::BeyondTable { index, size })?;
            if has(descriptor, VRING_DESC_F_INDIRECT) {
                return Err(ChainError::BadIndirect { len: descriptor.len() });
            }
            next = successor(descriptor);
            self.add(table.memory, descriptor)?;
        }
        if next.is_some() { Err(ChainError::TooMany { size }) } else { Ok(()) }
    }

    fn add(&mut self, memory: &DeviceMemory, descriptor: &Descriptor) -> Result<(), ChainError> {
        let (gpa, len) = (descriptor.addr().0, descriptor.len());
        if has(descriptor, VRING_DESC_F_WRITE) {
            self.writable.push(memory, gpa, len)?;
        } else if self.writable.is_empty() {
            self.readable.push(memory, gpa, len)?;
        } else {
            return Err(ChainError::ReadableAfterWritable);
        }
        Ok(())
    }
}

impl Table<'_> {
    fn read(&self, index: u16) -> Result<Descriptor, ChainError> {
        if index >= self.size {
            return Err(ChainError::BeyondTable { index, size: self.size });
        }
        let gpa = self.gpa + u64::from(index) * u64::from(DESCRIPTOR);
        Ok(self.memory.read_obj(GuestAddress(gpa))?)
    }
}

/// Copies an indirect table, so that what is checked is what is used.
fn copy_indirect(table: &Table<'_>, at: &Descriptor) -> Result<Vec<Descriptor>, ChainError> {
    let (gpa, len) = (at.addr().0, at.len());
    if len == 0 || len % DESCRIPTOR != 0 || len / DESCRIPTOR > u32::from(table.longest) {
        return Err(ChainError::BadIndirect { len });
    }
    if !is_memory(table.memory, gpa, u64::from(len)) {
        return Err(BufferError::NotMemory { gpa, len }.into());
    }
    let _pins = Pins::take(table.pinner, [&Segment { gpa, len }])?;
    (0..len / DESCRIPTOR)
        .map(|index| Ok(table.memory.read_obj(GuestAddress(gpa + u64::from(index * DESCRIPTOR)))?))
        .collect()
}

fn has(descriptor: &Descriptor, flag: u32) -> bool {
    u32::from(descriptor.flags()) & flag != 0
}

fn successor(descriptor: &Descriptor) -> Option<u16> {
    has(descriptor, VRING_DESC_F_NEXT).then(|| descriptor.next())
}

#[cfg(test)]
#[path = "chain_test.rs"]
mod tests;
