//! Guest memory from the host's side, word by word.
//!
//! Promises: every access goes through the guest mapping, so it finds and faults what the guest would. Must never: make references into it.

use std::sync::atomic::Ordering;

use devices::DeviceMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::PayloadError;

/// Words of guest memory by guest physical address.
#[derive(Clone, Copy, Debug)]
pub struct GuestWords<'a> {
    memory: &'a DeviceMemory,
}

impl<'a> GuestWords<'a> {
    /// The words of this memory.
    pub fn new(memory: &'a DeviceMemory) -> Self {
        Self { memory }
    }

    /// The 64-bit word at `address`, a multiple of 8.
    pub fn read(&self, address: u64) -> Result<u64, PayloadError> {
        // Acquire: what the guest wrote before this word is seen after it.
        self.memory
            .load(GuestAddress(address), Ordering::Acquire)
            .map_err(|source| PayloadError::Memory { address, source })
    }

    /// Writes the 64-bit word at `address`, a multiple of 8.
    pub fn write(&self, address: u64, value: u64) -> Result<(), PayloadError> {
        // Release: the guest, seeing this word, sees what was written before it.
        self.memory
            .store(value, GuestAddress(address), Ordering::Release)
            .map_err(|source| PayloadError::Memory { address, source })
    }

    /// Writes words one after the other.
    pub fn write_all(&self, address: u64, values: impl IntoIterator<Item = u64>) -> Result<(), PayloadError> {
        (address..).step_by(8).zip(values).try_for_each(|(address, value)| self.write(address, value))
    }

    /// Where `len` bytes from `address` on are in this process; for system calls that work on guest memory directly.
    pub fn host_range(&self, address: u64, len: u64) -> Result<*mut u8, PayloadError> {
        let len = usize::try_from(len).expect("a part of memory");
        let slice = self.memory.get_slice(GuestAddress(address), len);
        slice.map(|slice| slice.ptr_guard_mut().as_ptr()).map_err(|source| PayloadError::Memory { address, source })
    }
}
