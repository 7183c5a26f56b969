//! One shared mapping of a memfd, aligned so that huge pages could back it.
//!
//! Promises: the start is a multiple of [`ALIGNMENT`]; the mapping stays as long as anyone holds the region, and goes with the last holder.
//! Must never: be read or written here.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use devices::DeviceWrites;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError, NewBitmap};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

/// Every mapping starts at a multiple of this: the size of a huge page.
pub const ALIGNMENT: usize = 2 << 20;

/// Why a mapping could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// No room, or a limit.
    #[error("mmap failed")]
    Mmap(#[source] io::Error),
    /// The mapping was refused by the memory library.
    #[error("mapping refused")]
    Region(#[source] MmapRegionError),
}

/// When the host sets memory aside for a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// Page by page, as they are touched.
    Never,
    /// All of it, before anything is touched: a pool of huge pages that does not suffice is an error of the mapping then, not a SIGBUS of whoever
    /// touches the first page too many.
    AtOnce,
}

impl Reserve {
    const fn flags(self) -> libc::c_int {
        match self {
            Self::Never => libc::MAP_SHARED | libc::MAP_NORESERVE,
            Self::AtOnce => libc::MAP_SHARED,
        }
    }
}

/// Owns a mapping whose region `vm-memory` does not own, because that library cannot choose the address.
#[derive(Debug)]
pub struct Mapping {
    region: Option<Arc<MmapRegion<DeviceWrites>>>,
}

impl Mapping {
    /// Maps `len` bytes of `file` from its start.
    pub fn new(file: File, len: usize, reserve: Reserve) -> Result<Self, MapError> {
        let flags = reserve.flags();
        let start = map_aligned(&file, len, flags).map_err(MapError::Mmap)?;
        // SAFETY: `start` and `len` are the mapping made a line above; it is unmapped only in `drop`, when nobody else holds the region.
        let builder = unsafe {
            MmapRegionBuilder::new_with_bitmap(len, DeviceWrites::with_len(len)).with_raw_mmap_pointer(start)
        };
        let built = builder
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .with_file_offset(FileOffset::new(file, 0))
            .build();
        match built {
            Ok(region) => Ok(Self { region: Some(Arc::new(region)) }),
            Err(source) => {
                unmap(start, len);
                Err(MapError::Region(source))
            }
        }
    }

    /// The region as guest memory from `start` on; `None` if it would end beyond the address space.
    pub fn guest_region(&self, start: u64) -> Option<GuestRegionMmap<DeviceWrites>> {
        GuestRegionMmap::with_arc(Arc::clone(self.region()), GuestAddress(start))
    }

    /// Where the mapping starts in this process.
    pub fn host_address(&self) -> u64 {
        self.region().as_ptr() as u64
    }

    /// The record of what this process writes to it.
    pub fn device_writes(&self) -> &DeviceWrites {
        self.region().bitmap()
    }

    fn region(&self) -> &Arc<MmapRegion<DeviceWrites>> {
        self.region.as_ref().expect("taken only in drop")
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let Some(region) = self.region.take() else { return };
        // Somebody may have kept a copy of the guest memory handle, which is an ordinary value. Then the mapping stays: leaking it is safe,
        // taking it away under a reader is not.
        match Arc::into_inner(region) {
            Some(region) => unmap(region.as_ptr(), region.size()),
            None => tracing::warn!("guest memory is still in use after its machine is gone; it stays mapped"),
        }
    }
}

fn map_aligned(file: &File, len: usize, mut flags: libc::c_int) -> io::Result<*mut u8> {
    let reserved = len.checked_add(ALIGNMENT).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh reservation at an address of the kernel's choice.
    let reservation = unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_NONE, nothing, -1, 0) };
    if reservation == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let reservation = reservation.cast::<u8>();
    let head = reservation.align_offset(ALIGNMENT);
    let start = reservation.wrapping_add(head);
    flags |= libc::MAP_FIXED;
    // SAFETY: `start..start + len` lies within the reservation that this function just made and nobody else knows.
    let mapped =
        unsafe { libc::mmap(start.cast(), len, libc::PROT_READ | libc::PROT_WRITE, flags, file.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        unmap(reservation, reserved);
        return Err(error);
    }
    if head > 0 {
        unmap(reservation, head);
    }
    // A length that is no multiple of the page size leaves the rest of its last page mapped with it.
    let end = start.wrapping_add(len.next_multiple_of(memtier::units::PAGE_SIZE));
    unmap(end, reservation.wrapping_add(reserved) as usize - end as usize);
    // SAFETY: our own mapping; the advice changes no contents. Guest memory in a core dump would be neither small nor ours to show.
    if unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTDUMP) } != 0 {
        let error = io::Error::last_os_error();
        unmap(start, len);
        return Err(error);
    }
    Ok(start)
}

fn unmap(start: *mut u8, len: usize) {
    // SAFETY: called only for ranges of this module's own mappings that nobody uses (see the callers).
    if unsafe { libc::munmap(start.cast(), len) } != 0 {
        tracing::warn!("munmap of {len} bytes failed: {}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::DeviceMemory;
    use vm_memory::Bytes;

    fn is_mapped(address: u64) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        maps.lines().any(|line| line.starts_with(&format!("{address:x}-")))
    }

    fn mapping(len: usize) -> Mapping {
        let file = tempfile::tempfile().expect("file");
        file.set_len(len as u64).expect("size");
        Mapping::new(file, len, Reserve::Never).expect("mapped")
    }

    #[test]
    fn a_mapping_is_aligned_and_goes_when_dropped() {
        let mapping = mapping(3 << 20);
        let address = mapping.host_address();
        assert_eq!(address % ALIGNMENT as u64, 0);
        assert!(is_mapped(address));
        drop(mapping);
        assert!(!is_mapped(address));
    }

    #[test]
    fn a_mapping_outlives_its_owner_while_a_handle_is_kept() {
        let mapping = mapping(1 << 20);
        let region = mapping.guest_region(0).expect("fits");
        let memory = DeviceMemory::from_regions(vec![region]).expect("one region");
        drop(mapping);
        memory.write_obj(7u64, GuestAddress(0x1000)).expect("still there");
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1000)).expect("still there"), 7);
    }
}
