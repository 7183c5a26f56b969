//! Calls on guest memory's mapping and file: drop page tables, punch holes, find what is there.
//!
//! Promises: works on whole pages; a hole punched is memory given back. Must never: be called on anything but guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use crate::units::{Hva, PAGE_SIZE};

/// Drops the page tables of a shared mapping's range (`MADV_DONTNEED_LOCKED`, Linux 5.18: also where it is locked). The data stays in the
/// file; the next touch maps it again.
///
/// # Safety
/// The range must be a shared file mapping: on private memory this call destroys data.
pub unsafe fn drop_page_tables(start: Hva, len: u64) -> io::Result<()> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: for a shared file mapping the call changes no data, only where the next touch finds it; the caller promises that it is one.
    match unsafe { libc::madvise(start.0 as *mut libc::c_void, len, libc::MADV_DONTNEED_LOCKED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps the kernel's own reclaim away from a mapping's pages once they are touched; brings none in.
pub fn lock_on_fault(start: Hva, len: u64) -> io::Result<()> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: changes no data, only which pages the kernel may take.
    match unsafe { libc::mlock2(start.0 as *const libc::c_void, len, libc::MLOCK_ONFAULT) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps the kernel from using transparent huge pages for a mapping. A hole punched into part of a huge page that can't be split right then
/// leaves the page there, zeroed: the tiers would take a page for gone that the guest still reads, as zeros.
pub fn forbid_huge_pages(start: Hva, len: u64) -> io::Result<()> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: changes no data, only how the kernel backs the range from now on.
    match unsafe { libc::madvise(start.0 as *mut libc::c_void, len, libc::MADV_NOHUGEPAGE) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel without them.
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            error => Err(error),
        },
    }
}

/// Gives a range of the file back: its pages are gone, in every mapping, and read as zero.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (to_off(offset)?, to_off(len)?);
    loop {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: fallocate takes no pointers.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The first byte at or after `from` that the file holds, or `None` if there is none. Holes are skipped at no cost; a way to find the end of
/// data that stops at a given place the system does not offer.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_DATA)
}

/// Which pages of a shared file mapping the file holds, mapped or not: `held.len()` pages from `start` on, bit 0 of each byte (mincore(2)).
pub fn pages_held(start: Hva, held: &mut [u8]) -> io::Result<()> {
    let len = held.len() * PAGE_SIZE;
    // SAFETY: the kernel writes one byte per page of the range, which is as many as `held` has.
    match unsafe { libc::mincore(start.0 as *mut libc::c_void, len, held.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes of memory that a file on shmem or hugetlbfs holds, mapped or not.
pub fn bytes_held(file: &File) -> io::Result<u64> {
    // Always in units of 512 bytes (stat(2)).
    Ok(file.metadata()?.blocks() * 512)
}

/// Whether a file's pages come from the host's pool of huge pages (hugetlbfs, a memfd with `MFD_HUGETLB`).
pub fn is_hugetlb(file: &File) -> io::Result<bool> {
    // SAFETY: all-zero bytes are a value of this plain struct of numbers.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills in the struct it is given.
    match unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } {
        0 => Ok(stat.f_type == libc::HUGETLBFS_MAGIC),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A range of this process's address space that nothing can read.
#[derive(Debug)]
pub struct NoAccess {
    start: Hva,
    len: usize,
}

impl NoAccess {
    /// Reserves one of `len` bytes.
    pub fn new(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { start: Hva(start as u64), len })
        }
    }

    /// Its first address.
    pub fn start(&self) -> Hva {
        self.start
    }
}

impl Drop for NoAccess {
    fn drop(&mut self) {
        // SAFETY: our own mapping, made in `new`, which nobody can have a reference into.
        unsafe { libc::munmap(self.start.0 as *mut libc::c_void, self.len) };
    }
}

fn seek(file: &File, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    // SAFETY: lseek takes no pointers.
    let at = unsafe { libc::lseek(file.as_raw_fd(), to_off(from)?, whence) };
    match u64::try_from(at) {
        Ok(at) => Ok(Some(at)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

fn to_off(n: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(n).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn data_is_found_between_holes_and_punched_again() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), None);
        file.write_at(&[1; 0x2000], 0x3000).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), Some(0x3000));
        punch_hole(&file, 0x3000, 0x1000).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), Some(0x4000));
        assert_eq!(bytes_held(&file).unwrap(), 0x1000);
        assert!(!is_hugetlb(&file).unwrap());
    }
}
