//! One vCPU's dirty ring: entries that KVM writes and this process harvests (`Documentation/virt/kvm/api.rst`, `KVM_CAP_DIRTY_LOG_RING`).
//!
//! ```text
//!        KVM: page written           here: harvested        KVM: page protected again
//!  free ───────────────────▶ dirty ─────────────────▶ reset ─────────────────────────▶ free
//!  00                        01                       10                               00
//! ```
//!
//! Promises: entries are harvested in the order in which KVM wrote them, each once, and read only after they are complete. Must never: be
//! harvested by two at once (`&mut self` sees to that), or make a reference to memory that KVM writes.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::VcpuFd;
use memtier::units::PAGE_SIZE;

/// Bits of an entry's flags.
const DIRTY: u32 = 1 << 0;
const RESET: u32 = 1 << 1;

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = size_of::<kvm_dirty_gfn>();

/// The ring of one vCPU, mapped for as long as this lives.
pub struct Ring {
    entries: NonNull<kvm_dirty_gfn>,
    /// How many; a power of two.
    len: usize,
    /// How many were harvested so far: the next one is this number's remainder.
    next: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and nothing else here is tied to one.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the ring of `vcpu`, whose machine was made with rings of `entries` entries, a power of two.
    pub fn map(vcpu: &VcpuFd, entries: u32) -> io::Result<Self> {
        let len = usize::try_from(entries).map_err(io::Error::other)?;
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * i64::try_from(PAGE_SIZE).map_err(io::Error::other)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), len * ENTRY_BYTES, protection, flags, vcpu.as_raw_fd(), offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { entries, len, next: 0 })
    }

    /// Calls `page` with slot and page of every entry that is there, and hands the entries back to be reset.
    pub fn harvest(&mut self, mut page: impl FnMut(u32, u64)) {
        // A vCPU that runs may go on adding; one round is enough of it.
        for _ in 0..self.len {
            // SAFETY: the index is within the mapping, which is page-aligned, so that the entry is aligned too.
            let entry = unsafe { self.entries.add(self.next % self.len) }.as_ptr();
            // SAFETY: the field lies in the mapping, which lives as long as `self`; KVM and this process access it atomically only.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
            // Acquire: KVM fills the entry in before it sets the flag.
            if flags.load(Ordering::Acquire) & DIRTY == 0 {
                return;
            }
            // SAFETY: as above; KVM does not change an entry from when it is dirty until it was handed back.
            let (slot, offset) = unsafe { ((&raw const (*entry).slot).read(), (&raw const (*entry).offset).read()) };
            page(slot, offset);
            // Release: the entry is read before KVM may use it again.
            flags.store(RESET, Ordering::Release);
            self.next = self.next.wrapping_add(1);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, which nobody else knows.
        if unsafe { libc::munmap(self.entries.as_ptr().cast(), self.len * ENTRY_BYTES) } != 0 {
            tracing::warn!("a dirty ring could not be unmapped: {}", io::Error::last_os_error());
        }
    }
}
